"""From Flax: cells, RNN, Bidirectional and chains of them, in both of its APIs (nnx and linen)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from ..arrays import Array, Backend
from ..errors import InputError
from ..layers import GRU, LSTM, RNN, Activation, Dropout, Embedding, Flip, Layer, Linear, Merge, SharedDropout, Softmax
from ..models import Model
from .common import HostParams, Piece, Source, first_line, model_of, name_of_type, require
from .selftest import Host, check_chain, coarsest, passed

__all__ = ["from_flax"]

# Our gates in order, and the letters that Flax gives their two dense layers: ii hi, if hf, ...
LSTM_GATES = "ifgo"
GRU_GATES = "rzn"


def from_flax(
    module: Any,
    variables: Mapping[str, Any] | None = None,
    *,
    backend: str | ModuleType | Array | Backend = "numpy",
    dtype: Any = None,
) -> Model:
    """A Flax module as a model.

    Of nnx and of linen: `LSTMCell`, `OptimizedLSTMCell`, `GRUCell`, `SimpleCell`, alone or in `RNN` (``reverse``,
    ``keep_order``, ``time_major``) and `Bidirectional`; `Linear` or `Dense`, `Embed`, `Dropout`, and a `Sequential` of
    these with activation functions between them. A cell alone becomes the layer that runs it over time.

    Parameters
    ----------
    module : flax.nnx.Module or flax.linen.Module
    variables : mapping, optional
        What ``module.init`` returned, or its "params": of a linen module, which doesn't hold them itself.
    backend, dtype : as in `Model`
        float64 stays float64 and all else becomes float32 where `dtype` is left out.

    Returns
    -------
    Model
        Its metadata says where it came from and how well the outputs agreed.

    Raises
    ------
    InputError
        A module, function or option that there is no counterpart for.
    ConversionError
        The result does not give the module's outputs.
    MissingDependencyError
        Flax is not installed.

    Notes
    -----
    Flax has one bias for each gate, at the input or at the state: it goes where it was, and zeros stand at the other.

    Examples
    --------
    ::

        cell = nnx.GRUCell(3, 8, rngs=nnx.Rngs(0))
        prnn.from_flax(nnx.RNN(cell)).network  # GRU(3, 8)
        prnn.from_flax(linen.RNN(linen.LSTMCell(8)), variables).network
    """
    flax = require("flax", "flax", "from_flax")
    require("jax", "jax", "from_flax")
    from flax import linen, nnx

    if isinstance(module, nnx.Module):
        if variables is not None:
            raise InputError("an nnx module holds its own parameters: leave variables out")
        reader = _Reader(nnx, {})
        run = _nnx_runner(nnx, module)
    elif isinstance(module, linen.Module):
        if variables is None:
            raise InputError("a linen module doesn't hold its parameters: pass variables, as module.init returned them")
        params = variables.get("params", variables)
        reader = _Reader(linen, params)
        run = _linen_runner(linen, module, variables if "params" in variables else {"params": variables})
    else:
        raise InputError(f"from_flax takes a module of flax.nnx or flax.linen, got {name_of_type(module)}")
    pieces = reader.pieces(module, reader.tree, type(module).__name__)
    notes = ["time_major=True there: the model takes (batch, time, features)"] if reader.time_major else []
    worst, computed = _checked(pieces, run, bool(reader.time_major))
    source = Source("flax", str(flax.__version__), f"{reader.kind} {type(module).__name__}", tuple(notes))
    return model_of(pieces, source, passed(worst, computed), backend, dtype)


def _checked(pieces: Sequence[Piece], run: Callable[[Any], Any], time_major: bool) -> tuple[float, str]:
    import jax

    kinds = {value.dtype.name for piece in pieces for value in piece.params.values()}
    wide = "float64" if "float64" in kinds and jax.config.jax_enable_x64 else "float32"
    computed: set[str] = {wide}

    def on_host(x: Host) -> Host:
        given = x if x.dtype.kind == "f" else x.astype("int32")
        given = given.swapaxes(0, 1) if time_major else given
        try:
            y = run(jax.numpy.asarray(given, dtype=wide if x.dtype.kind == "f" else None))
        except Exception as error:  # whatever JAX and Flax raise
            raise InputError(f"the module can't be run on {x.shape} input: {first_line(error)}") from error
        computed.add(y.dtype.name)
        found = np.asarray(y.astype(wide))
        return found.swapaxes(0, 1) if time_major and found.ndim == 3 else found

    features = next((piece.layer.in_width for piece in pieces if piece.layer.in_width), 1)
    first = pieces[0].layer
    on_host(np.zeros((1, 1), dtype="int32") if isinstance(first, Embedding) else np.zeros((1, 1, features)))
    name = coarsest(computed)
    return check_chain(pieces, on_host, name), name


def _nnx_runner(nnx: Any, module: Any) -> Callable[[Any], Any]:
    module = nnx.clone(module)
    module.eval()
    if isinstance(module, nnx.RNNCellBase):
        return lambda x: _stepped(module, _carry(module, x, nnx.Rngs(0)), x)
    if isinstance(module, nnx.RNN):

        def with_carry(x: Any) -> Any:
            rows = x.swapaxes(0, 1) if module.time_major else x
            return _outputs(module, module(x, initial_carry=_carry(module.cell, rows, nnx.Rngs(0))))

        return with_carry
    return lambda x: _outputs(module, module(x))


def _carry(cell: Any, x: Any, rngs: Any) -> Any:
    """The initial carry in the dtype of x, which not every cell gives."""
    import jax

    return jax.tree.map(lambda part: part.astype(x.dtype), cell.initialize_carry(x[:, 0].shape, rngs))


def _linen_runner(linen: Any, module: Any, variables: Mapping[str, Any]) -> Callable[[Any], Any]:
    if isinstance(module, linen.RNNCellBase):
        import jax

        def over_time(x: Any) -> Any:
            carry = module.initialize_carry(jax.random.key(0), x[:, 0].shape)
            return _stepped(lambda c, x_t: module.apply(variables, c, x_t), carry, x)

        return over_time
    return lambda x: _outputs(module, module.apply(variables, x))


def _stepped(cell: Callable[..., Any], carry: Any, x: Any) -> Any:
    import jax

    ys = []
    for t in range(x.shape[1]):
        carry, y = cell(carry, x[:, t])
        ys.append(y)
    return jax.numpy.stack(ys, axis=1)


def _outputs(module: Any, result: Any) -> Any:
    """The outputs; with return_carry the carry stands before them."""
    return result[1] if getattr(module, "return_carry", False) else result


# ---------------------------------------------------------------------- modules to layers


@dataclass
class _Reader:
    """Reads modules of one API; nnx modules hold their parameters, those of linen stand in a tree beside them."""

    api: Any
    tree: Any
    time_major: bool | None = None

    @property
    def kind(self) -> str:
        """ "nnx" or "linen"."""
        return "nnx" if self.api.__name__.endswith("nnx") else "linen"

    def pieces(self, module: Any, tree: Any, name: str) -> list[Piece]:
        """What a module, or a function between two, becomes."""
        api = self.api
        if isinstance(module, api.RNNCellBase):
            layer, params = self._cell(module, tree, name)
            return [Piece(name, layer, _suffixed(params, ""))]
        if isinstance(module, api.RNN):
            self._same_order(module)
            layer, params = self._cell(module.cell, _child(tree, "cell"), name, reverse=module.reverse)
            flips = module.reverse and not module.keep_order
            return [Piece(name, layer, _suffixed(params, "")), *([Piece(f"{name} backwards", Flip(), {})] * flips)]
        if isinstance(module, api.Bidirectional):
            return self._bidirectional(module, tree, name)
        if isinstance(module, api.Sequential):
            inside: list[Piece] = []
            for k, part in enumerate(module.layers):
                inside += self.pieces(part, _child(tree, f"layers_{k}"), f"{name}.{k}")
            return inside
        if isinstance(module, api.Linear if self.kind == "nnx" else api.Dense):
            kernel, bias = self._dense(module, tree)
            if kernel.ndim != 2:
                raise InputError(f"{name!r} has a kernel of shape {kernel.shape}: expected two dimensions")
            params = {"weight": np.ascontiguousarray(kernel.T)} | ({} if bias is None else {"bias": bias})
            return [Piece(name, Linear(kernel.shape[0], kernel.shape[1], bias is not None), params)]
        if isinstance(module, api.Embed):
            table = _host(module.embedding if self.kind == "nnx" else tree["embedding"])
            return [Piece(name, Embedding(table.shape[0], table.shape[1]), {"weight": table})]
        if isinstance(module, api.Dropout):
            if tuple(module.broadcast_dims) not in ((), (1,), (-2,)):
                raise InputError(f"Dropout {name!r} has broadcast_dims={module.broadcast_dims}: expected () or (-2,)")
            shared = bool(module.broadcast_dims)
            return [Piece(name, SharedDropout(module.rate) if shared else Dropout(module.rate), {})]
        return self._function(module, name)

    def _function(self, function: Any, name: str) -> list[Piece]:
        import jax

        if function is jax.nn.softmax or function is jax.nn.log_softmax:
            return [Piece(name, Softmax(log=function is jax.nn.log_softmax), {})]
        if callable(function) and not isinstance(function, self.api.Module):
            spec = activation_name(function, name)
            return [] if spec == "identity" else [Piece(name, Activation(spec), {})]
        raise InputError(
            f"{name_of_type(function)} {name!r} can't be converted: there is no such layer here; known are LSTMCell, "
            "OptimizedLSTMCell, GRUCell, SimpleCell, RNN, Bidirectional, Linear, Dense, Embed, Dropout, Sequential and "
            "activation functions"
        )

    def _same_order(self, module: Any) -> None:
        if self.time_major not in (None, bool(module.time_major)):
            raise InputError("some of the modules have time_major=True and some have not: expected one of the two")
        self.time_major = bool(module.time_major)

    def _bidirectional(self, module: Any, tree: Any, name: str) -> list[Piece]:
        self._same_order(module)
        forward, backward = (
            self._cell(rnn.cell, _child(_child(tree, part), "cell"), name, bidirectional=True)
            for part, rnn in (("forward_rnn", module.forward_rnn), ("backward_rnn", module.backward_rnn))
        )
        if forward[0] != backward[0]:
            raise InputError(f"the directions of {name!r} differ, {forward[0]} and {backward[0]}: expected equal ones")
        params = _suffixed(forward[1], "") | _suffixed(backward[1], "_reverse")
        return [Piece(name, forward[0], params), *_merge(module.merge_fn, name)]

    def _dense(self, module: Any, tree: Any) -> tuple[Host, Host | None]:
        """(kernel, bias) of a dense layer, by its module (nnx) or its part of the tree (linen)."""
        if self.kind == "nnx":
            bias = getattr(module, "bias", None)
            return _host(module.kernel), None if bias is None else _host(bias)
        return _host(tree["kernel"]), _host(tree["bias"]) if "bias" in tree else None

    def _cell(
        self, cell: Any, tree: Any, name: str, *, reverse: bool = False, bidirectional: bool = False
    ) -> tuple[Layer, HostParams]:
        """The layer that runs a cell, and one direction's parameters without suffix."""
        api = self.api
        options: dict[str, Any] = {"reverse": reverse, "bidirectional": bidirectional}
        if isinstance(cell, api.SimpleCell):
            if cell.residual:
                raise InputError(f"SimpleCell {name!r} has residual=True: there is no such cell here")
            params = _joined([self._gate(cell, tree, "dense_i", "i")], [self._gate(cell, tree, "dense_h", "h")])
            options["nonlinearity"] = activation_name(cell.activation_fn, name)
            return RNN(*_sizes(params, 1), bias="bias_ih" in params, **options), params
        kinds = (
            (api.LSTMCell, LSTM, LSTM_GATES),
            (api.OptimizedLSTMCell, LSTM, LSTM_GATES),
            (api.GRUCell, GRU, GRU_GATES),
        )
        found = next(((layer, gates) for kind, layer, gates in kinds if isinstance(cell, kind)), None)
        if found is None:
            raise InputError(
                f"{name!r} runs {name_of_type(cell)}: expected LSTMCell, OptimizedLSTMCell, GRUCell or SimpleCell"
            )
        layer, gates = found
        if hasattr(cell, "dense_i"):  # nnx: one dense layer for all gates
            inputs = [self._gate(cell, tree, "dense_i", "")]
            states = [self._gate(cell, tree, "dense_h", "")]
        else:
            inputs = [self._gate(cell, tree, _attribute("i" + gate), "i" + gate) for gate in gates]
            states = [self._gate(cell, tree, "h" + gate, "h" + gate) for gate in gates]
        params = _joined(inputs, states)
        options["activation"] = activation_name(cell.activation_fn, name)
        options["recurrent_activation"] = activation_name(cell.gate_fn, name)
        return layer(*_sizes(params, len(gates)), bias="bias_ih" in params, **options), params

    def _gate(self, cell: Any, tree: Any, attribute: str, key: str) -> tuple[Host, Host | None]:
        if self.kind == "nnx":
            return self._dense(getattr(cell, attribute), None)
        return self._dense(None, tree[key])


def _attribute(key: str) -> str:
    return "if_" if key == "if" else key  # a word of Python's own


def _child(tree: Any, name: str) -> Any:
    return tree.get(name, {}) if isinstance(tree, Mapping) else {}


def _sizes(params: HostParams, gates: int) -> tuple[int, int]:
    rows, features = params["weight_ih"].shape
    return features, rows // gates


def _joined(inputs: Sequence[tuple[Host, Host | None]], states: Sequence[tuple[Host, Host | None]]) -> HostParams:
    """The gates' (kernel, bias) as rows; without any bias there is none, else zeros stand for those that lack."""
    params = {}
    some = any(bias is not None for _, bias in (*inputs, *states))
    for end, parts in (("ih", inputs), ("hh", states)):
        params[f"weight_{end}"] = np.concatenate([kernel.T for kernel, _ in parts])
        if some:
            params[f"bias_{end}"] = np.concatenate(
                [np.zeros(kernel.shape[1], kernel.dtype) if bias is None else bias for kernel, bias in parts]
            )
    return {name: params[name] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if name in params}


def _suffixed(params: HostParams, direction: str) -> HostParams:
    return {f"{name}_l0{direction}": value for name, value in params.items()}


def _host(value: Any) -> Host:
    """A copy of a parameter on the host, float32 where NumPy lacks the dtype."""
    value = value[...] if hasattr(value, "shape") else value
    found: Host = np.array(value)
    return found if found.dtype in (np.float32, np.float64) else found.astype("float32")


def _merge(function: Any, name: str) -> list[Piece]:
    """What a Bidirectional's merge function does, by trying it."""
    left, right = np.array([[2.0, 3.0]]), np.array([[5.0, 7.0]])
    found = np.asarray(function(left, right))
    if found.shape == (1, 4) and np.array_equal(found, np.concatenate([left, right], axis=-1)):
        return []
    for mode, expected in (("sum", left + right), ("mul", left * right), ("ave", (left + right) / 2)):
        if found.shape == expected.shape and np.allclose(found, expected):
            return [Piece(f"{name} merged", Merge(mode), {})]
    raise InputError(f"the merge_fn of Bidirectional {name!r} neither joins, adds, multiplies nor averages")


def activation_name(function: Any, name: str) -> str:
    """Our name of a function of JAX."""
    import jax

    nn, jnp = jax.nn, jax.numpy
    known = {
        "tanh": (jnp.tanh, nn.tanh),
        "sigmoid": (nn.sigmoid,),
        "relu": (nn.relu,),
        "softsign": (nn.soft_sign,),
        "softplus": (nn.softplus,),
        "elu": (nn.elu,),
        "leaky_relu": (nn.leaky_relu,),
        f"hard_sigmoid({1 / 6!r}, 0.5)": (nn.hard_sigmoid,),
        "exponential": (jnp.exp,),
        "identity": (nn.identity,),
    }
    for spec, functions in known.items():
        if any(function is f for f in functions):
            return spec
    raise InputError(
        f"{name!r} has the activation {getattr(function, '__name__', function)!r}: expected one of JAX's tanh, "
        "sigmoid, relu, soft_sign, softplus, elu, leaky_relu, hard_sigmoid, exp, identity"
    )
