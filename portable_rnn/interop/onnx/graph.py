"""An ONNX graph as a layer: run on any array library, and run backward by the pullback of every node."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ...arrays import (
    PARAMETERS,
    Array,
    Marks,
    Params,
    State,
    apart,
    backend_of,
    check_unwritten,
    checked_arrays,
    copied,
    device_scope,
    dtype_name,
    is_array,
    is_floating,
    is_traced,
    leaves,
    map_leaves,
    namespace_of,
    on_their_device,
    to_numpy,
    write_counts,
)
from ...errors import InputError
from ...layers import Layer, uniform
from .budget import FREE, Budget
from .engine import Step, common_backend, evaluate, placed, reverse
from .nodes import Constant, Host, Node, Port
from .operators import OPERATORS
from .stepwise import runs_stepwise

__all__ = ["RECURRENT", "Graph"]

RECURRENT = ("RNN", "GRU", "LSTM")
_STATE = 2**16  # numbers in a row of a state that the graph makes itself


@dataclass(frozen=True, repr=False)
class Graph(Layer):
    """A network in ONNX's operators.

    As a layer it takes its first input x (B, T, ...) and gives its first output, batch first and time second wherever
    the file has them. Lengths become the graph's ``sequence_lens``, where it has them as an input. Its other floating
    inputs are the state, its other outputs the new state, as they stand in the file: one array, or a tuple. `run` and
    `run_vjp` take and give any inputs and outputs by name, exactly as the file has them.

    Parameters are the file's initializers of floating dtype with at least one axis, under their own names and in
    ONNX's own layout; every floating dtype is computed as the parameters'.

    Attributes
    ----------
    nodes : tuple of Node
        In an order in which they can be computed.
    inputs, outputs : tuple of Port
    weights : tuple of (name, shape)
    constants : tuple of (name, Constant)
        Initializers that are not parameters.
    opset : int
        Version of ONNX's operator set.
    time_first : bool
        Whether the first input has its time axis before the batch axis.
    y_axes : tuple
        The batch and the time axis of the first output; None where there is none.
    lengths : str
        Name of the input that is ``sequence_lens``, or "".
    """

    nodes: tuple[Node, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    weights: tuple[tuple[str, tuple[int, ...]], ...] = ()
    constants: tuple[tuple[str, Constant], ...] = ()
    opset: int = 17
    time_first: bool = False
    y_axes: tuple[int | None, int | None] = (0, None)
    lengths: str = ""

    needs_time = False

    def __repr__(self) -> str:
        kinds = ", ".join(f"{count} {op}" for op, count in Counter(n.op for n in self.nodes).most_common())
        ports = [", ".join(map(str, ports)) for ports in (self.inputs, self.outputs)]
        return f"Graph({kinds}; {ports[0]} -> {ports[1]})"

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.nodes, self.inputs, self.outputs, self.weights, self.opset))

    # ------------------------------------------------------------------ by name

    @on_their_device
    def run(self, params: Params, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The graph's outputs by name.

        Parameters
        ----------
        params : dict of str to array
        inputs : dict of str to array
            One for each of `inputs`, in the file's own order of axes.

        Raises
        ------
        InputError
            An input is missing or does not fit; a node can't compute.
        BackendError
            Arrays of different libraries, devices or floating dtypes.
        """
        params, inputs = self._named(params, inputs)
        values, like, _ = self.evaluate(params, inputs)
        outputs = {port.name: placed(values[port.name], like) for port in self.outputs}
        return {name: apart(y, params, inputs) for name, y in outputs.items()}

    @on_their_device
    def run_vjp(
        self, params: Params, inputs: Mapping[str, Array]
    ) -> tuple[dict[str, Array], Callable[[Mapping[str, Array]], tuple[Params, dict[str, Array]]]]:
        """Run the graph and return the function that runs it backward.

        Parameters
        ----------
        params, inputs
            As in `run`.

        Returns
        -------
        outputs, pullback
            ``dparams, dinputs = pullback({name: cotangent})`` takes the cotangents of any of the outputs.
        """
        params, inputs = self._named(params, inputs)
        inputs = map_leaves(copied, inputs)
        values, like, tape = self.evaluate(params, inputs)
        before = write_counts(params)

        @on_their_device
        def pullback(doutputs: Mapping[str, Array]) -> tuple[Params, dict[str, Array]]:
            check_unwritten(params, before)
            with device_scope(like):
                found = reverse(tape, doutputs, like)
                floating = {n: x for n, x in inputs.items() if like.xp.isdtype(x.dtype, "real floating")}
                wanted = [
                    {n: found.get(n, like.xp.zeros_like(x)) for n, x in kind.items()} for kind in (params, floating)
                ]
                dparams, dinputs = apart(wanted, doutputs)
            return dparams, dinputs

        return map_leaves(copied, {port.name: placed(values[port.name], like) for port in self.outputs}), pullback

    def _named(self, params: Params, inputs: Mapping[str, Array]) -> tuple[Params, dict[str, Array]]:
        names = [port.name for port in self.inputs]
        if set(inputs) != set(names):
            raise InputError(
                f"expected the inputs {', '.join(map(str, self.inputs))}; got {', '.join(inputs) or 'none'}"
            )
        params = self.check_params(params)
        everything = [*params.values(), *inputs.values()]
        if not everything:
            return params, {}
        floating = [a for a in everything if is_array(a) and is_floating(namespace_of(a), a.dtype)]
        common = backend_of(floating[0] if floating else everything[0])
        found = checked_arrays(inputs, common, PARAMETERS if params else f"{names[0]} is")
        return params, {name: found[name] for name in names}

    # ------------------------------------------------------------------ as a layer

    @property
    def keeps_time(self) -> bool:  # type: ignore[override]
        """Whether the first output has a time axis."""
        return self.y_axes[1] is not None

    @property
    def takes_integers(self) -> bool:  # type: ignore[override]
        """Whether the first input is integers (B, T)."""
        return bool(self.inputs) and not self.inputs[0].floating

    @property
    def streams(self) -> bool:  # type: ignore[override]
        """Whether it can run one step at a time: it takes a state, and no node needs the whole sequence."""
        return self._streams

    @cached_property
    def _streams(self) -> bool:
        whole = any(node.op in RECURRENT and node.get("direction", "forward") != "forward" for node in self.nodes)
        return not whole and runs_stepwise(self)

    @property
    def in_width(self) -> int | None:
        return _last(self.inputs[0]) if self.inputs and self.inputs[0].floating else None

    def out_width(self, features: int | None) -> int | None:
        return _last(self.outputs[0])

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        return dict(self.weights)

    def draw(self, rng: np.random.Generator) -> dict[str, np.ndarray[Any, Any]]:
        return uniform(rng, self.parameter_shapes(), 0.1)

    @property
    def states(self) -> tuple[Port, ...]:
        """The inputs that are the state."""
        return tuple(port for port in self.inputs[1:] if port.floating)

    def check_input(self, x: Array, xp: Any) -> None:
        extra = [port for port in self.inputs[1:] if not port.floating and port.name != self.lengths]
        if not self.inputs or extra:
            what = ", ".join(map(str, extra)) or "no input at all"
            raise InputError(f"the graph has {what}: run it by Graph.run, with its inputs by name")
        port = self.inputs[0]
        dims = port.dims
        if dims is not None and self.time_first:
            dims = (dims[1], dims[0], *dims[2:])
        fits = dims is None or (
            x.ndim == len(dims) and all(not isinstance(d, int) or d == n for d, n in zip(dims, x.shape, strict=True))
        )
        if not fits or 0 in x.shape:
            order = " (batch before time, here)" if self.time_first else ""
            raise InputError(f"the graph expects {port}{order}, got shape {tuple(x.shape)}")
        if not xp.isdtype(x.dtype, "real floating" if port.floating else "integral"):
            raise InputError(f"the graph expects {port}, got {dtype_name(xp, x.dtype)}")

    def check_state(self, state: State, batch_size: int) -> None:
        count = len(self.states)
        if state is not None and (count == 0 or (count > 1 and len(tuple(leaves(state))) != count)):
            raise InputError(f"the graph's state is {', '.join(map(str, self.states)) or 'None'}")

    def forward(self, params: Params, x: Array, state: State, marks: Marks, masks: Any) -> tuple[Array, State, Any]:
        if marks.resets is not None:
            raise InputError("a graph from ONNX has no resets: cut the sequences apart")
        if marks.lengths is not None and not self.lengths:
            raise InputError("the graph has no sequence_lens among its inputs: it takes sequences of one length")
        xp = namespace_of(x)
        batch, steps = x.shape[0], x.shape[1] if x.ndim > 1 else 1
        inputs = {self.inputs[0].name: _swapped(xp, x) if self.time_first else x}
        if self.lengths:
            everyone = Host(np.full(batch, steps, dtype=np.int32))
            inputs[self.lengths] = everyone if marks.lengths is None else marks.lengths
        given = list(leaves(state)) if state is not None else [None] * len(self.states)
        for port, part in zip(self.states, given, strict=True):
            inputs[port.name] = Host(_zeros(port, batch)) if part is None else part
        values, like, tape = self.evaluate(params, inputs, x)
        first, *others = (placed(values[port.name], like) for port in self.outputs)
        final = None if not others else others[0] if len(others) == 1 else tuple(others)
        return self._turned(xp, first), final, (tape, x, given, like)

    def backward(self, params: Params, residuals: Any, dy: Array, dstate: State) -> tuple[Params, Array | None, State]:
        tape, x, given, like = residuals
        xp = like.xp
        cotangents = {self.outputs[0].name: self._turned(xp, dy, back=True)}
        cotangents |= dict(zip([port.name for port in self.outputs[1:]], leaves(dstate), strict=False))
        found = reverse(tape, cotangents, like)
        grads = {name: found.get(name, xp.zeros_like(params[name])) for name, _ in self.weights}
        dx = None
        if xp.isdtype(x.dtype, "real floating"):
            dx = found.get(self.inputs[0].name)
            dx = xp.zeros_like(x) if dx is None else _swapped(xp, dx) if self.time_first else dx
        dinitial = [
            xp.zeros_like(part) if part is not None and port.name not in found else found.get(port.name)
            for port, part in zip(self.states, given, strict=True)
        ]
        return grads, dx, None if not dinitial else dinitial[0] if len(dinitial) == 1 else tuple(dinitial)

    def _turned(self, xp: Any, y: Array, back: bool = False) -> Array:
        """The first output with batch and time in front, or such an array as the file has it."""
        front = [axis for axis in self.y_axes if axis is not None and axis < y.ndim]
        perm = (*front, *(k for k in range(y.ndim) if k not in front))
        if perm == tuple(range(y.ndim)):
            return y
        return xp.permute_dims(y, tuple(int(k) for k in np.argsort(perm)) if back else perm)

    # ------------------------------------------------------------------ inside

    def evaluate(
        self, params: Params, inputs: Mapping[str, Any], *beside: Array, budget: Budget | None = None
    ) -> tuple[dict[str, Any], Any, list[Step]]:
        """Every value by name, where they live, and what the backward pass needs; without checks.

        Inputs are arrays or `Host` values; `beside` are arrays that tell where to compute, too.
        """
        arrays = [*params.values(), *(v for v in inputs.values() if not isinstance(v, Host)), *beside]
        like = common_backend(arrays)
        given = self._host_values | params | {name: self._input(name, value) for name, value in inputs.items()}
        values, tape = evaluate(self.nodes, self.opset, given, like, budget)
        return values, like, tape

    def _input(self, name: str, value: Any) -> Any:
        """An input; on the host where a shape is made of it and its values are known."""
        known = isinstance(value, Host) or name not in self._shaping_inputs or is_traced(value)
        return value if known else Host(to_numpy(value))

    @cached_property
    def _host_values(self) -> dict[str, Any]:
        return {name: Host(constant.array) for name, constant in self.constants}

    @cached_property
    def _shaping_inputs(self) -> set[str]:
        used = {node.inputs[k] for node in self.nodes for k in OPERATORS[node.op].host if node.has_input(k)}
        return used & {port.name for port in self.inputs}


def _swapped(xp: Any, x: Array) -> Array:
    return xp.permute_dims(x, (1, 0, *range(2, x.ndim)))


def _last(port: Port) -> int | None:
    last = port.dims[-1] if port.dims else None
    return last if isinstance(last, int) else None


def _zeros(port: Port, batch: int) -> np.ndarray[Any, Any]:
    """A zero state of a port's shape; a size that the file leaves open is the batch's."""
    if port.dims is None:
        raise InputError(f"the state {port} has no shape in the file: pass it")
    shape = [d if isinstance(d, int) else batch for d in port.dims]
    if math.prod(shape) > FREE + batch * _STATE:
        raise InputError(f"the state {port} is too large to be made of zeros: pass it")
    return np.zeros(shape, dtype=port.dtype)
