"""This library beside what a user might take instead: training steps and forward passes of RNN, GRU and LSTM.

Run ``python benchmarks/peers.py`` in the repository's folder. Without options it takes a good while, most of it at the
largest size; ``--help`` lists them. It prints a table for each cell and kind of work, and which of the targets are met.
``--json PATH`` keeps every time; ``python benchmarks/compare.py OLD NEW`` compares two such files.

Peers: torch.nn, Flax nnx, Equinox, Keras on JAX and on PyTorch, thinc (LSTM only), onnxruntime (forward only), and this
library on NumPy, JAX and PyTorch. A peer that is not installed is named as such. ``pip install torch jax flax equinox
keras thinc onnx onnxruntime`` brings them all.

Each peer has a process of its own and all wait while one computes. In each round every peer is timed once, in random
order; times are medians, and ratios are taken round by round. Each library uses as many threads as it wants to. torch,
onnxruntime and this library have the same weights and inputs, and their outputs and gradients must agree to 1e-4. Flax,
Equinox, Keras and thinc draw weights of their own: the same shapes, the same work, other numbers.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]  # the checkout, whether the package is installed or not

from portable_rnn.bench.cases import Peer
from portable_rnn.bench.command import add_options, run, write_json
from portable_rnn.bench.libraries import gemm_peer, ours_peer, torch_peer
from portable_rnn.bench.picture import draw
from portable_rnn.bench.report import report
from portable_rnn.errors import InputError, MissingDependencyError


def all_peers(threads: int | None) -> list[Peer]:
    """Every library; the first one is what the others are compared with."""
    jax = {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "0"}
    keras_jax = jax | {"KERAS_BACKEND": "jax"}
    keras_torch = {"KERAS_BACKEND": "torch", "CUDA_VISIBLE_DEVICES": ""}
    runtime = {"threads": threads}  # it takes the number of threads from its session alone
    return [
        ours_peer("numpy"),
        ours_peer("jax", "cpu"),
        ours_peer("torch", "cpu"),
        torch_peer(),
        Peer("flax", "peer_layers:flax", ("jax", "flax"), environment=jax),
        Peer("equinox", "peer_layers:equinox", ("jax", "equinox"), environment=jax),
        Peer("keras-jax", "peer_layers:keras_jax", ("jax", "keras"), environment=keras_jax),
        Peer("keras-torch", "peer_layers:keras_torch", ("torch", "keras"), environment=keras_torch),
        Peer("thinc", "peer_layers:thinc", ("thinc",), cells=("LSTM",)),
        Peer(
            "onnxruntime",
            "peer_layers:onnxruntime",
            ("onnx", "onnxruntime"),
            options=runtime,
            kinds=("forward",),
            same_weights=True,
        ),
    ]


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_options(parser)
    args = parser.parse_args(argv)
    try:
        found = run(all_peers(args.threads), gemm_peer("numpy"), args, path=[str(HERE)])
        print(report(found))
        if args.json is not None:
            write_json(found, args.json)
        if args.plot is not None:
            draw(found, args.plot)
    except (InputError, MissingDependencyError) as error:
        print(f"peers.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
