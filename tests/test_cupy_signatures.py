"""CuPy where no GPU is: every call that the library makes is held against CuPy's own signatures.

Layers, losses and a training step run on array-api-strict, whose functions are the standard's and no others, and each
call is recorded: the name, how many arguments by position, which keywords. Each must then exist in
`array_api_compat.cupy` and take those arguments. This shows that CuPy has what is asked of it, not what it computes.
The time loop that CuPy alone runs is recorded on NumPy; its kernels are tested in test_cupy_kernels.py.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from cases import OTHERS, RECURRENT, hard_case
from trees import mapped

import portable_rnn as prnn
from portable_rnn import execution
from portable_rnn.cells import activations
from portable_rnn.execution.cuda import program as cuda
from portable_rnn.layers import wrappers as composite

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import gpu_launches

cupy = pytest.importorskip("cupy", reason="CuPy is not installed: there are no signatures to compare with")
strict = pytest.importorskip("array_api_strict")
target = pytest.importorskip("array_api_compat.cupy")

UFUNC_KEYWORDS = {"out", "dtype"}
FUSIBLE = {"where"}  # what cupy.fuse takes beside ufuncs
OF_STRICT_ONLY = {"Device"}  # used in the branch for this library alone


class Call(NamedTuple):
    """How a function of the namespace was called; `positional` is None where a name was only looked up."""

    name: str
    positional: int | None = None
    keywords: tuple[str, ...] = ()
    fused: bool = False


# ---------------------------------------------------------------------- recording


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[Call]]:
    """Every use of array-api-strict's public names while the context is open."""
    calls: set[Call] = set()
    fusing: list[Any] = []
    original = types.ModuleType.__getattribute__

    def spy(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **keywords: Any) -> Any:
            calls.add(Call(name, len(arguments), tuple(sorted(keywords)), bool(fusing)))
            return function(*arguments, **keywords)

        return called

    class Recording(types.ModuleType):
        def __getattribute__(self, name: str) -> Any:
            value = original(self, name)
            if name.startswith("_") or name in OF_STRICT_ONLY:
                return value
            if isinstance(value, types.FunctionType):
                return spy(name, value)
            calls.add(Call(name))
            return value

    def fused(xp: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        def kernel(*arrays: Any) -> Any:
            fusing.append(function)
            try:
                return function(xp, *arrays)
            finally:
                fusing.pop()

        return kernel

    with monkeypatch.context() as patch:
        patch.setattr(execution, "_fused", fused)
        patch.setattr(strict, "__class__", Recording)
        try:
            yield calls
        finally:
            strict.__class__ = types.ModuleType


def use_every_layer(backend: prnn.Backend) -> None:
    """Forward and backward, with everything a layer can be given."""
    small = [
        composite.Activation("elu"),
        composite.Softmax(),
        composite.Softmax(log=True),
        composite.SharedDropout(0.4),
        composite.Flip(),
        composite.Ends(),
        composite.Merge("sum"),
        composite.Merge("mul"),
        composite.Masked(prnn.LSTM(4, 3)),
        composite.Masked(prnn.GRU(4, 3), hold=False),
        *(cls(4, 3, 2, bidirectional=True) for cls in (prnn.LayerNormLSTM, prnn.LayerNormGRU)),
        *(cls(4, 3, 2, positive=p) for cls in (prnn.MinGRU, prnn.MinLSTM) for p in (False, True)),
        prnn.LSTM(4, 3, recompute_every=2),
    ]
    for layer in small:
        params = layer.init(seed=0, backend=backend)
        x = prnn.asarray(np.random.default_rng(0).standard_normal((2, 5, 4)), backend)
        for rows, lengths in ((x, [5, 2]), (x[:1, ...], [3])):  # one column takes other operations
            y, state, pullback = layer.vjp(params, rows, lengths=lengths)
            pullback(y, state)
    for name in (*RECURRENT, *OTHERS):
        case = hard_case(name)
        placed = {
            key: mapped(lambda a: prnn.asarray(a, backend, dtype=_floating(a)), value)
            for key, value in (case.inputs | case.cotangents).items()
            if key != "lengths"
        }
        dy, dstate = placed.pop("dy"), placed.pop("dstate")
        _, _, pullback = case.layer.vjp(**placed, lengths=case.lengths)
        pullback(dy, dstate)


def _floating(array: np.ndarray) -> str | None:
    return "float64" if array.dtype.kind == "f" else None


def train_with_everything(backend: prnn.Backend) -> None:
    """One epoch with every loss and every optimizer."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 4, 2))
    values = rng.standard_normal((6, 3))
    classes = rng.integers(0, 3, 6)
    losses = {
        "mse": values,
        "mae": values,
        prnn.losses.huber(0.5): values,
        "binary_cross_entropy": (values > 0).astype("float64"),
        "cross_entropy": classes,
    }
    optimizers = [
        prnn.sgd(0.1, momentum=0.9, nesterov=True),
        prnn.rmsprop(0.01),
        prnn.adam(prnn.cosine_decay(0.01, 10)),
        prnn.adamw(prnn.warmup_cosine_decay(0.01, 2, 10)),
        prnn.sgd(prnn.exponential_decay(0.1, 0.9)),
    ]
    network = prnn.Sequential(prnn.LSTM(2, 3, bidirectional=True), prnn.Last(), prnn.Dropout(0.2), prnn.Linear(6, 3))
    for (loss, y), optimizer in zip(losses.items(), optimizers, strict=True):
        model = prnn.Model(network, backend=backend, dtype="float64", seed=0)
        model.fit(
            prnn.asarray(x, backend),
            prnn.asarray(y, backend),
            loss=loss,
            optimizer=optimizer,
            epochs=1,
            batch_size=4,
            lengths=[4, 0, 3, 1, 4, 2],
            validation_data=(prnn.asarray(x, backend), prnn.asarray(y, backend)),
            clip_norm=1.0,
            progress=False,
        )
        model.predict(prnn.asarray(x, backend))
        model.evaluate(prnn.asarray(x, backend), prnn.asarray(y, backend))
    per_step = prnn.Model(prnn.Sequential(prnn.GRU(2, 3), prnn.Linear(3, 3)), backend=backend, dtype="float64")
    tokens = prnn.asarray(rng.integers(0, 3, (6, 4)), backend)
    per_step.fit(prnn.asarray(x, backend), tokens, loss="cross_entropy", epochs=1, progress=False)
    per_step.step(prnn.asarray(x[:, 0], backend))


@contextmanager
def cupy_loops_recorded() -> Iterator[set[Call]]:
    """Every call of the loops that CuPy alone runs, on NumPy: of its namespace, and of `Calls` as "cupy.NAME"."""
    calls: set[Call] = set()

    def spy(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **keywords: Any) -> Any:
            calls.add(Call(name, len(arguments), tuple(sorted(keywords))))
            return function(*arguments, **keywords)

        return called

    class Recording:
        def __init__(self, xp: Any) -> None:
            self.xp = xp

        def __getattr__(self, name: str) -> Any:
            value = getattr(self.xp, name)
            return value if isinstance(value, type) else spy(name, value)

    def kernel(source: str, name: str) -> Callable[..., None]:
        return spy("cupy.RawKernel.__call__", lambda *_: None)

    stand_in = cuda.Calls(
        spy("cupy.dot", np.dot),
        spy("cupy.sum", np.sum),
        spy("cupy.ascontiguousarray", np.ascontiguousarray),
        spy("cupy.RawKernel", kernel),
    )
    run = cuda.CudaProgram.run
    with gpu_launches.numpy_as_cupy(stand_in), pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            cuda.CudaProgram, "run", lambda self, xp, *rest, **named: run(self, Recording(xp), *rest, **named)
        )
        patch.setattr(np, "empty", np.zeros)
        yield calls


# ---------------------------------------------------------------------- comparing


def problem(call: Call) -> str | None:
    """Why CuPy would refuse this call, or None."""
    function = getattr(target, call.name, None)
    if function is None:
        return f"CuPy has no {call.name}"
    if call.positional is None:
        return None
    whole_sum = call.name == "sum" and not call.keywords  # may end a fused kernel
    if call.fused and not (isinstance(function, cupy.ufunc) or call.name in FUSIBLE or whole_sum):
        return f"cupy.fuse can't compile {call.name}"
    if isinstance(function, cupy.ufunc):
        if call.positional != function.nin:
            return f"{call.name} takes {function.nin} arrays, not {call.positional}"
        unknown = set(call.keywords) - UFUNC_KEYWORDS
        return f"{call.name} has no keyword {', '.join(sorted(unknown))}" if unknown else None
    return _unbound(call, function)


def _unbound(call: Call, function: Callable[..., Any]) -> str | None:
    try:
        signature = inspect.signature(function)
    except ValueError:
        return None  # compiled, and says nothing about itself
    try:
        bound = signature.bind(*[None] * call.positional, **dict.fromkeys(call.keywords))
    except TypeError as error:
        return f"{call.name}: {error}"
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD and parameter.name in bound.arguments:
            # the wrapper hands these on to CuPy's own function
            own = inspect.signature(getattr(cupy, call.name)).parameters
            unknown = set(bound.arguments[parameter.name]) - own.keys()
            if unknown:
                return f"{call.name} has no keyword {', '.join(sorted(unknown))}"
    return None


@pytest.fixture(scope="module")
def loop_calls() -> set[Call]:
    with cupy_loops_recorded() as found:
        use_every_layer(prnn.backend("numpy", dtype="float64"))
    return found


@pytest.fixture(scope="module")
def calls() -> set[Call]:
    backend = prnn.backend(strict, dtype="float64")
    with pytest.MonkeyPatch.context() as patch, recorded(patch) as found:
        use_every_layer(backend)
        train_with_everything(backend)
    return found


def test_every_recorded_call_is_one_that_cupy_takes(calls: set[Call]) -> None:
    problems = {call: problem(call) for call in calls}
    assert not {call: why for call, why in problems.items() if why}


def test_the_recording_holds_what_is_known_to_be_called(calls: set[Call]) -> None:
    names = {call.name for call in calls}
    assert len(names) > 40
    assert {"tanh", "where", "concat", "stack", "tensordot", "permute_dims", "asarray", "take", "exp"} <= names
    assert Call("sum", 1, ("axis",)) in calls
    assert any(call.fused for call in calls)
    assert sum(call.positional is not None for call in calls) > 40


def test_what_the_loops_of_cupy_alone_call_is_there(loop_calls: set[Call]) -> None:
    own = {call for call in loop_calls if call.name.startswith("cupy.")}
    assert {call.name for call in own} == {
        *("cupy.dot", "cupy.sum", "cupy.ascontiguousarray", "cupy.RawKernel", "cupy.RawKernel.__call__")
    }
    assert {"empty", "asarray", "multiply"} <= {call.name for call in loop_calls - own}
    assert [why for call in loop_calls - own if (why := problem(call))] == []
    real = cuda.library_calls()
    functions = {"cupy.dot": real.dot, "cupy.sum": real.sum, "cupy.ascontiguousarray": real.in_order}
    for call in own:
        if call.name in functions:
            assert call.positional is not None
            inspect.signature(functions[call.name]).bind(*[None] * call.positional, **dict.fromkeys(call.keywords))
        else:  # compiled, and says nothing about itself: (source, name) and (grid, block, arguments)
            assert call in {Call("cupy.RawKernel", 2), Call("cupy.RawKernel.__call__", 3)}
    kernel = real.kernel('extern "C" __global__ void nothing() {}', "nothing")  # compiled when it is called
    assert (kernel.name, kernel.backend) == ("nothing", "nvrtc")
    for attribute in ("flags", "strides", "itemsize", "device", "T", "shape", "dtype"):
        assert hasattr(cupy.ndarray, attribute)
    assert hasattr(cupy.cuda.Device, "__enter__")


def test_devices_need_no_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cupy.cuda.Device.__hash__ is None

    class Device(str):
        __hash__ = None  # type: ignore[assignment]
        __slots__ = ()

    elsewhere = dataclasses.replace(prnn.backend("numpy", dtype="float64"), device=Device("cpu"))
    monkeypatch.setattr(activations, "backend_of", lambda x: elsewhere)
    block = activations.GateBlock(("sigmoid", "tanh"))
    found = block.columns(prnn.backend("numpy").xp, np.ones(1), 2)
    assert found is not None
    np.testing.assert_array_equal(found[0][:, 0], [0.5, 0.5, 1, 1])


def test_almost_every_recorded_function_can_be_inspected(calls: set[Call]) -> None:
    opaque = set()
    for name in {call.name for call in calls if call.positional is not None}:
        function = getattr(target, name)
        if not isinstance(function, cupy.ufunc):
            try:
                inspect.signature(function)
            except ValueError:
                opaque.add(name)
    assert opaque <= {"from_dlpack"}


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (Call("scatter_add", 3), "CuPy has no scatter_add"),
        (Call("float128"), "CuPy has no float128"),
        (Call("tanh", 1, ("axis",)), "tanh has no keyword axis"),
        (Call("tanh", 2), "tanh takes 1 arrays, not 2"),
        (Call("concat", 1, ("along",)), "concat: .*'along'"),
        (Call("stack", 4), "stack: too many positional arguments"),
        (Call("astype", 1), "astype: missing a required argument: 'dtype'"),
        (Call("zeros", 1, ("dtype", "device", "fill")), "zeros has no keyword fill"),
        (Call("sum", 1, ("axis",), fused=True), "cupy.fuse can't compile sum"),
    ],
    ids=str,
)
def test_a_planted_call_that_cupy_lacks_is_found(call: Call, why: str) -> None:
    found = problem(call)
    assert found is not None
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(found)


def test_a_planted_layer_that_uses_what_cupy_lacks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = prnn.backend(strict, dtype="float64")
    x = prnn.asarray(np.ones((1, 2, 3)), backend)

    def forward(params: Any, x: Any, *_: Any) -> Any:
        xp = x.__array_namespace__()
        return xp.tanh(xp.only_in_strict(x, axis=1)), None, None

    monkeypatch.setattr(strict, "only_in_strict", lambda x, axis: x, raising=False)
    layer = prnn.Last()
    object.__setattr__(layer, "forward", forward)
    with recorded(monkeypatch) as found:
        layer.apply({}, x)
    assert Call("only_in_strict", 1, ("axis",)) in found
    assert [problem(call) for call in found if problem(call)] == ["CuPy has no only_in_strict"]


def test_recording_leaves_the_library_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    before = strict.tanh
    with recorded(monkeypatch):
        assert strict.tanh is not before
    assert strict.tanh is before
    assert type(strict) is types.ModuleType
