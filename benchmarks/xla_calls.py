"""How JAX calls a loop of machine code: by ``buffer_callback``, beside ``pure_callback`` and XLA's own loop.

``python benchmarks/xla_calls.py`` prints, for LSTMs of several sizes, the time of a training step's forward and
backward pass under ``jax.jit`` with each way of calling, relative to ``buffer_callback``. Ways take turns, and the
best of many rounds counts. Needs jax and llvmlite.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np

SIZES = [(16, 50, 32, 64), (32, 100, 64, 128), (64, 100, 64, 256)]  # batch, steps, inputs, hidden


def by_pure_callback(jax: Any) -> Callable[..., Any]:
    """Calls through `jax.pure_callback`, which copies the arrays."""
    from portable_rnn.execution.machine import xla_call

    def call(program: Any, reverse: bool, results: Any, *leaves: Any) -> Any:
        def compute(*arrays: Any) -> Any:
            found = [np.empty(form.shape, form.dtype) for form in results]
            xla_call.run_on_host(program, reverse, [np.asarray(array) for array in arrays], found)
            return found

        return jax.pure_callback(compute, results, *leaves)

    return call


def measure(size: tuple[int, int, int, int], rounds: int) -> dict[str, float]:
    """Seconds of the fastest step, by the way of calling."""
    import jax

    import portable_rnn as prnn
    from portable_rnn.execution.machine import xla_call

    batch, steps, inputs, hidden = size
    layer = prnn.LSTM(inputs, hidden)
    params = layer.init(0, "jax")
    x = jax.numpy.asarray(np.random.default_rng(0).standard_normal((batch, steps, inputs), dtype="float32"))

    def step(params: Any, x: Any) -> Any:
        y, _, pullback = layer.vjp(params, x)
        return pullback(y)[:2]

    ways: dict[str, Callable[..., Any] | None] = {
        "buffer_callback": xla_call.call_with_buffers,
        "pure_callback": by_pure_callback(jax),
        "lax.scan": None,
    }
    compiled = {}
    for name, way in ways.items():
        jax.clear_caches()
        worth = 1 << 60 if way is None else 0
        with (
            mock.patch.object(xla_call, "WORTH_A_CALL", worth),
            mock.patch.object(xla_call, "call_with_buffers", way),
        ):
            compiled[name] = jax.jit(step).lower(params, x).compile()
    best = dict.fromkeys(compiled, float("inf"))
    for _ in range(rounds):
        for name, function in compiled.items():
            start = time.perf_counter()
            jax.block_until_ready(function(params, x))
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args(arguments)
    print("| batch, steps, inputs, hidden | way | ms | of buffer_callback's time |\n|---|---|---|---|")
    for size in SIZES:
        found = measure(size, options.rounds)
        for name, seconds in found.items():
            ratio = seconds / found["buffer_callback"]
            print(f"| {', '.join(map(str, size))} | {name} | {1e3 * seconds:.2f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
