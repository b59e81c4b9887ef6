"""The libraries that the package itself times: this one on any array library, PyTorch, and a bare matrix product."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from ..arrays import Array, Backend, asarray, leaves, to_numpy
from ..arrays import backend as as_backend
from ..execution import jit
from .cases import Case, Peer, Task

__all__ = ["GEMM_FLOPS", "GEMM_SIZE", "gemm_peer", "ours_peer", "torch_peer"]

GEMM_SIZE = 2048
GEMM_FLOPS = 2.0 * GEMM_SIZE**3


def ours_peer(library: str, device: str | None = None) -> Peer:
    """This library with arrays of `library`."""
    packages = () if library == "numpy" else (library,)
    options = {"library": library, "device": device}
    # JAX as it is unless asked; predictions compiled, too, as in a process that trains, unless that is turned off
    environment = {"JAX_ENABLE_X64": "0", "PORTABLE_RNN_COMPILE": os.environ.get("PORTABLE_RNN_COMPILE", "1")}
    return Peer(f"ours-{library}", f"{__name__}:ours", packages, options, environment, same_weights=True)


def torch_peer(device: str = "cpu") -> Peer:
    """``torch.nn`` on "cpu" or "cuda" (cuDNN)."""
    return Peer("torch", f"{__name__}:torch_layer", ("torch",), {"device": device}, same_weights=True)


def gemm_peer(library: str, device: str | None = None) -> Peer:
    """The square float32 product that the floor is taken from."""
    return Peer("gemm", f"{__name__}:gemm", (), {"library": library, "device": device})


def ours(case: Case, *, library: str, device: str | None = None) -> Task:
    """`Layer.apply`, or `Layer.vjp` and its pullback; the whole of it is compiled on JAX."""
    target = as_backend(library, device, "float32")
    layer = case.layer
    params = layer.init(0, target)
    x, dy = (asarray(array, target) for array in case.arrays())
    wait = _waiting(target)

    def forward(params: Any, x: Array) -> Any:
        return layer.apply(params, x)[0]

    def train(params: Any, x: Array, dy: Array) -> Any:
        y, _, pullback = layer.vjp(params, x)
        dparams, dx, _ = pullback(dy)
        return y, dx, dparams

    run, arguments = (forward, (params, x)) if case.kind == "forward" else (train, (params, x, dy))
    step = jit(target.xp, run)

    def outputs(result: Any) -> dict[str, np.ndarray[Any, Any]]:
        if case.kind == "forward":
            return {"y": to_numpy(result)}
        y, dx, dparams = result
        return {name: to_numpy(array) for name, array in ({"y": y, "dx": dx} | dparams).items()}

    return Task(lambda: wait(step(*arguments)), outputs)


def torch_layer(case: Case, *, device: str) -> Task:
    """``torch.nn.LSTM`` and its like with this library's weights: ``y.backward(dy)``, or ``no_grad`` and ``eval``."""
    import torch

    module = getattr(torch.nn, case.cell)(*case.size[2:], batch_first=True)
    module.load_state_dict({name: torch.from_numpy(value) for name, value in case.layer.init(0).items()})
    module = module.to(device)
    x, dy = (torch.from_numpy(array).to(device) for array in case.arrays())
    x.requires_grad_(case.kind == "train")
    module.train(case.kind == "train")
    wait: Callable[[], Any] = torch.cuda.synchronize if torch.device(device).type == "cuda" else bool
    learnt = dict(module.named_parameters())

    def forward() -> Any:
        with torch.no_grad():
            y = module(x)[0]
        wait()
        return y

    def train() -> Any:
        x.grad = None
        for parameter in learnt.values():
            parameter.grad = None
        y = module(x)[0]
        y.backward(dy)
        wait()
        return y

    def outputs(y: Any) -> dict[str, np.ndarray[Any, Any]]:
        found = {"y": y}
        if case.kind == "train":
            found |= {"dx": x.grad} | {name: parameter.grad for name, parameter in learnt.items()}
        return {name: array.detach().cpu().numpy() for name, array in found.items()}

    return Task(forward if case.kind == "forward" else train, outputs)


def gemm(case: Case, *, library: str, device: str | None = None) -> Task:
    """A product of two square matrices, whatever the case is."""
    target = as_backend(library, device, "float32")
    rng = np.random.default_rng(0)
    a, b = (asarray(rng.standard_normal((GEMM_SIZE, GEMM_SIZE), dtype=np.float32), target) for _ in range(2))
    multiply, wait = jit(target.xp, target.xp.matmul), _waiting(target)
    return Task(lambda: wait(multiply(a, b)), lambda product: {"product": to_numpy(product)})


def _waiting(target: Backend) -> Callable[[Any], Any]:
    """A function that returns a nest of arrays once they are computed: some libraries run ahead."""
    if target.name == "numpy" or (target.name == "torch" and str(target.device) == "cpu"):
        return lambda result: result

    def wait(result: Any) -> Any:
        found = list(leaves(result))
        if all(hasattr(array, "block_until_ready") for array in found):
            for array in found:
                array.block_until_ready()
        else:
            to_numpy(found[-1][(slice(-1, None),) * found[-1].ndim])  # a queue in order: its last result is the end
        return result

    return wait
