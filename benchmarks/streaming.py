"""Streams: what a time step costs beside other libraries, and whether memory stays constant.

Run ``python benchmarks/streaming.py`` in the repository's folder. It prints the tables of ``docs/long-sequences.md``:
about two minutes; ``--steps 10000000`` for the longest stream, some minutes more. Libraries that are not installed are
left out.

Every library computes the same LSTM with the same weights, float32, one sequence, H features in and out, on one thread.
The libraries take turns in short blocks, so that a busy machine slows all of them alike; a ratio is the median over
blocks that stood side by side.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import os
import statistics
import time
import tracemalloc
from collections.abc import Callable

# one thread each: a step is too small for more, and waiting threads would disturb the library that runs next
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("KERAS_BACKEND", "torch")

import numpy as np

import portable_rnn as prnn

SIZES = (10, 64, 256)
ROUNDS = 60
SECONDS_A_BLOCK = 0.02

Step = Callable[[], np.ndarray]


# ---------------------------------------------------------------------- one step, by library


def stream_step(model: prnn.Model, x: np.ndarray) -> Step:
    """`prnn.Stream` on NumPy."""
    stream = prnn.Stream(model)
    return lambda: stream.step(x)


def torch_step(model: prnn.Model, x: np.ndarray) -> Step:
    """`torch.nn.LSTMCell` without gradients."""
    import torch

    torch.set_num_threads(1)
    size = x.shape[1]
    cell = torch.nn.LSTMCell(size, size)
    cell.load_state_dict({name.removesuffix("_l0"): torch.from_numpy(p) for name, p in model.params.items()})
    x_t = torch.from_numpy(x)
    state = (torch.zeros(1, size), torch.zeros(1, size))

    def step() -> np.ndarray:
        nonlocal state
        with torch.inference_mode():
            state = cell(x_t, state)
        return state[0].numpy()

    return step


def keras_step(model: prnn.Model, x: np.ndarray) -> Step:
    """`keras.layers.LSTMCell`, called as it is, on the backend of $KERAS_BACKEND."""
    import keras

    size = x.shape[1]
    cell = keras.layers.LSTMCell(size)
    cell.build((1, size))
    p = model.params
    bias = p["bias_ih_l0"] + p["bias_hh_l0"]
    cell.set_weights([p["weight_ih_l0"].T, p["weight_hh_l0"].T, bias])
    if keras.backend.backend() == "torch":
        import torch

        no_gradients = torch.inference_mode
    else:
        from contextlib import nullcontext as no_gradients
    x_t = keras.ops.convert_to_tensor(x)
    state = [keras.ops.zeros((1, size)), keras.ops.zeros((1, size))]

    def step() -> np.ndarray:
        nonlocal state
        with no_gradients():
            y, state = cell(x_t, state)
        return keras.ops.convert_to_numpy(y)

    return step


def onnxruntime_step(model: prnn.Model, x: np.ndarray) -> Step:
    """onnxruntime's LSTM operator over one step, the state going in and out."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(one_step_onnx(model.params), options, providers=["CPUExecutionProvider"])
    size = x.shape[1]
    x_t = x[None]
    h = c = np.zeros((1, 1, size), dtype=np.float32)

    def step() -> np.ndarray:
        nonlocal h, c
        h, c = session.run(["h_new", "c_new"], {"x": x_t, "h": h, "c": c})
        return h[0]

    return step


def one_step_onnx(params: dict[str, np.ndarray]) -> bytes:
    """An ONNX model with one LSTM node: x (1, 1, H), h and c (1, 1, H) -> the new h and c."""
    from onnx import TensorProto, helper, numpy_helper

    size = params["weight_hh_l0"].shape[1]

    def onnx_gates(p: np.ndarray) -> np.ndarray:
        i, f, g, o = np.split(p, 4)
        return np.concatenate([i, o, f, g])  # ONNX's order

    weights = {
        "W": onnx_gates(params["weight_ih_l0"])[None],
        "R": onnx_gates(params["weight_hh_l0"])[None],
        "B": np.concatenate([onnx_gates(params["bias_ih_l0"]), onnx_gates(params["bias_hh_l0"])])[None],
    }

    def named(*names: str) -> list[object]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, size]) for name in names]

    node = helper.make_node("LSTM", ["x", "W", "R", "B", "", "h", "c"], ["", "h_new", "c_new"], hidden_size=size)
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph([node], "step", named("x", "h", "c"), named("h_new", "c_new"), initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    return bytes(model.SerializeToString())


LIBRARIES = {
    "portable_rnn.Stream, NumPy": ((), stream_step),
    "torch.nn.LSTMCell": (("torch",), torch_step),
    "keras.layers.LSTMCell": (("keras", os.environ["KERAS_BACKEND"]), keras_step),
    "onnxruntime, LSTM of one step": (("onnxruntime", "onnx"), onnxruntime_step),
}


# ---------------------------------------------------------------------- latency


def latencies(size: int) -> dict[str, tuple[float, float]]:
    """By library: the median of a step in microseconds, and the median ratio to torch's block of the same round."""
    model = prnn.Model(prnn.LSTM(size, size), seed=0)
    x = np.random.default_rng(0).standard_normal((1, size), dtype=np.float32)
    steps = {
        name: make(model, x)
        for name, (needed, make) in LIBRARIES.items()
        if all(importlib.util.find_spec(module) for module in needed)
    }
    check_equal(steps)
    repeats = {name: max(1, round(SECONDS_A_BLOCK / block(step, 50))) for name, step in steps.items()}
    blocks: dict[str, list[float]] = {name: [] for name in steps}
    for k in range(ROUNDS):
        names = list(steps) if k % 2 else list(steps)[::-1]  # nobody always follows the same one
        for name in names:
            blocks[name].append(block(steps[name], repeats[name]))
    yardstick = blocks.get("torch.nn.LSTMCell", [float("nan")] * ROUNDS)
    return {
        name: (
            1e6 * statistics.median(times),
            statistics.median(t / y for t, y in zip(times, yardstick, strict=True)),
        )
        for name, times in blocks.items()
    }


def check_equal(steps: dict[str, Step]) -> None:
    """All libraries must compute the same third step."""
    outputs = {name: [step() for _ in range(3)][-1] for name, step in steps.items()}
    expected = next(iter(outputs.values()))
    for name, y in outputs.items():
        if not np.allclose(y, expected, atol=1e-5):
            raise RuntimeError(f"{name} computes something else")


def block(step: Step, repeats: int) -> float:
    """Seconds a step takes, over a block of them."""
    started = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - started) / repeats


def print_latencies() -> None:
    """The first table."""
    found = {size: latencies(size) for size in SIZES}
    print(f"\nOne step of an LSTM, one sequence, float32, one thread: microseconds (ratio to torch), {ROUNDS} blocks\n")
    print("| library | " + " | ".join(f"H = {size}" for size in SIZES) + " |")
    print("|---" * (1 + len(SIZES)) + "|")
    for name in next(iter(found.values())):
        cells = [f"{found[size][name][0]:.1f} ({found[size][name][1]:.2f})" for size in SIZES]
        print(f"| {name} | " + " | ".join(cells) + " |")


# ---------------------------------------------------------------------- memory


def print_memory(steps: int, size: int = 10) -> None:
    """The second table: memory at some points of one long stream."""
    stream = prnn.Stream(prnn.Model(prnn.LSTM(size, size), seed=0))
    x = np.random.default_rng(0).standard_normal((64, 1, size), dtype=np.float32)

    def run(count: int) -> float:
        started = time.perf_counter()
        for k in range(count):
            stream.step(x[k % 64])
        return time.perf_counter() - started

    run(1000)
    done, rows = 1000, []
    points = sorted({1000, steps // 100, steps // 10, steps // 2, steps})
    for point in points:
        seconds, count = run(point - done), point - done
        done = point
        # traced while it runs a little further: tracing every step would take several times as long
        gc.collect()
        tracemalloc.start()
        run(10)
        before = tracemalloc.get_traced_memory()[0]
        run(1000)
        gc.collect()
        growth = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
        done += 1010
        rows.append((point, resident_bytes() / 2**20, growth, 1e6 * seconds / count if count else float("nan")))
    print(f"One stream of an LSTM with H = {size}\n")
    print("| steps done | resident memory, MiB | Python allocations over 1,000 further steps, bytes | µs a step |")
    print("|---|---|---|---|")
    for point, resident, growth, micro in rows:
        print(f"| {point:,} | {resident:.2f} | {growth:+,} | {'' if micro != micro else f'{micro:.1f}'} |")


def resident_bytes() -> int:
    """What the process holds in memory now."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:  # no Linux: the largest so far
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_000_000, help="length of the long stream (1,000,000)")
    arguments = parser.parse_args()
    print_memory(arguments.steps)
    print_latencies()


if __name__ == "__main__":
    main()
