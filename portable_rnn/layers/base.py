"""What every layer shares: initial parameters, checked calls, and the pair `apply` and `vjp`."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from ..arrays import (
    Array,
    Backend,
    Configuration,
    Lengths,
    Marks,
    Params,
    Pullback,
    State,
    apart,
    backend_of,
    check_cotangent,
    check_shapes,
    check_unwritten,
    checked_params,
    checked_sequences,
    checked_state,
    copied,
    dtype_name,
    from_host,
    is_floating,
    is_traced,
    map_leaves,
    namespace_of,
    on_their_device,
    time_marks,
    to_numpy,
    write_counts,
)
from ..arrays import backend as as_backend
from ..errors import InputError
from ..execution import forward_only
from .drawing import check_memory, random_generator

__all__ = ["Layer", "Stateless", "Wrapper", "valid_steps", "zero_padding"]


@dataclasses.dataclass(frozen=True, repr=False)
class Layer(Configuration, abc.ABC):
    """A layer's configuration; parameters and states are arrays that the caller holds.

    A subclass is a frozen dataclass that gives `forward` and `backward`, and `parameter_shapes` and `draw` where it has
    parameters. One with layers inside names them in `children` and `map_children`: that is how everything that looks
    through a network finds them. `Stateless` is the base of layers that are a function of x.
    """

    def __repr__(self) -> str:
        fields = dataclasses.fields(self)
        shown = [(f.name, getattr(self, f.name), f.default) for f in fields]
        inside = ", ".join(
            repr(value) if default is dataclasses.MISSING else f"{name}={value!r}"
            for name, value, default in shown
            if value != default
        )
        return f"{type(self).__name__}({inside})"

    keeps_time: ClassVar[bool] = True  # the output has a time axis
    needs_time: ClassVar[bool] = True  # the input must have one
    takes_integers: ClassVar[bool] = False  # the input is (B, T) integers, without a features axis
    streams: ClassVar[bool] = True  # can run one time step at a time

    @property
    def in_width(self) -> int | None:
        """Input features, or None where any number will do."""
        return None

    def out_width(self, features: int | None) -> int | None:
        """Output features for this many input features (None: unknown)."""
        return features

    def children(self) -> dict[str, Layer]:
        """The layers inside, in the order of computation, each under the name that prefixes its parameters.

        A child named "0" has its parameter ``weight`` as ``0.weight``; one named "" has it as ``weight``.
        """
        return {}

    def map_children(self, function: Callable[[Layer], Layer]) -> Layer:
        """The same layer with each of its `children` replaced by what `function` makes of it."""
        return self

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """The name and shape of every parameter, as in torch's state dict; those of the children where not given."""
        return {
            prefixed(child, name): shape
            for child, layer in self.children().items()
            for name, shape in layer.parameter_shapes().items()
        }

    @abc.abstractmethod
    def forward(self, params: Params, x: Array, state: State, marks: Marks, masks: Any) -> tuple[Array, State, Any]:
        """(y, final state, residuals), without checks: the traceable inside of `apply` and `vjp`."""

    @abc.abstractmethod
    def backward(self, params: Params, residuals: Any, dy: Array, dstate: State) -> tuple[Params, Array | None, State]:
        """(dparams, dx, cotangent of the initial state), without checks; `dstate` may be None."""

    def parameter_gradients(self, params: Params, residuals: Any, dy: Array, dstate: State) -> Params:
        """The first of what `backward` returns; a layer that gives the others at a price leaves them out here."""
        return self.backward(params, residuals, dy, dstate)[0]

    def check_input(self, x: Array, xp: Any) -> None:
        """Raise InputError where `x` has the wrong rank, feature count or kind of dtype."""
        check_rank_and_features(x, xp, (3,) if self.needs_time else (2, 3), self.in_width, type(self).__name__)

    def check_values(self, x: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any] | None) -> None:
        """Raise InputError where integers before the rows' ends are out of range; called where `takes_integers`."""

    def draw(self, rng: np.random.Generator) -> dict[str, np.ndarray[Any, Any]]:
        """Initial parameters as float64 NumPy arrays; those of the children where not given."""
        return {
            prefixed(child, name): value
            for child, layer in self.children().items()
            for name, value in layer.draw(rng).items()
        }

    def dropout_masks(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
        """Dropout masks for an x of this shape as a nest of NumPy arrays (0 or 1 / (1 - p)), or None.

        Drawn on the host, so that a seed gives the same run on every library; `apply` and `vjp` take them, placed on
        the parameters' library, as ``masks=``.
        """
        return None

    def check_state(self, state: State, batch_size: int) -> None:
        """Raise InputError where `state` doesn't fit; a layer without state takes None only."""
        if state is not None:
            raise InputError(f"{type(self).__name__} has no state: expected state=None, got {type(state).__name__}")

    def init(
        self, seed: int | np.random.Generator = 0, backend: str | ModuleType | Array | Backend = "numpy"
    ) -> Params:
        """Draw initial parameters.

        They are drawn on the host by NumPy's Philox generator, so a seed gives the same numbers on every library.

        Parameters
        ----------
        seed : int or numpy.random.Generator
        backend : as in `portable_rnn.backend`

        Returns
        -------
        dict of str to array
            Named and shaped as in torch's state dict.

        Examples
        --------
        >>> import portable_rnn as prnn
        >>> sorted(prnn.Linear(3, 2).init(seed=0))
        ['bias', 'weight']
        """
        target = backend if isinstance(backend, Backend) else as_backend(backend)
        check_memory(self._shapes, f"the parameters of {self}")
        drawn = self.draw(random_generator(seed))
        return {name: from_host(value.astype(target.dtype_name), target) for name, value in drawn.items()}

    @on_their_device
    def apply(
        self,
        params: Params,
        x: Array | Sequence[Array],
        state: State = None,
        lengths: Lengths = None,
        *,
        resets: Any = None,
        masks: Any = None,
    ) -> tuple[Array, State]:
        """Run the layer forward.

        Parameters
        ----------
        params : dict of str to array
        x : array (B, T, features), or a list of B arrays (T_i, features)
        state : optional
            Initial state, as the layer returns it; zero when left out.
        lengths : sequence of B integers or integer array, optional
            Valid steps of each row, 0 to T. What stands behind them is never looked at.
        resets : array (B, T) of booleans, optional
            Steps that start from a zero state: several sequences one after another in one row.
        masks : optional
            From `dropout_masks`; without them nothing is dropped.

        Returns
        -------
        y, state

        Raises
        ------
        InputError
            Shapes, dtypes, lengths or parameter names don't fit.
        BackendError
            Arrays of different libraries, devices or floating dtypes.
        """
        params, x, state, marks = self._checked(params, x, state, lengths, resets)
        with forward_only():
            y, final, _ = self.forward(params, x, state, marks, masks)
        y = apart(y, x)
        return y, apart(final, y, state)

    @on_their_device
    def vjp(
        self,
        params: Params,
        x: Array | Sequence[Array],
        state: State = None,
        lengths: Lengths = None,
        *,
        resets: Any = None,
        masks: Any = None,
    ) -> tuple[Array, State, Pullback]:
        """Run the layer forward and return the function that runs it backward.

        Parameters
        ----------
        params, x, state, lengths, resets, masks
            As in `apply`.

        Returns
        -------
        y, state, pullback
            ``dparams, dx, dstate = pullback(dy, dstate=None)`` takes the cotangents of `y` and of the final state
            (None means zero) and returns those of the parameters, of `x` (None where `x` is integers) and of the
            initial state. It may be called again.

        Notes
        -----
        What the pullback needs of `x`, `state`, `lengths`, `resets`, and of `y` and `state` as returned, it has for
        itself: ``y -= target; pullback(y)`` is right. The arrays of `params` and `masks` must not be written to before
        the last pullback. PyTorch counts writes, so there a changed parameter is an error; NumPy and CuPy can't tell,
        and the gradient would be wrong. New arrays in the dict (``params[name] = params[name] - step``) do no harm.

        Raises
        ------
        InputError, BackendError
            As in `apply`; the pullback too, for cotangents that don't fit and for parameters that PyTorch knows to
            have been written to.
        """
        params, x, state, marks = self._checked(params, x, state, lengths, resets)
        x = copied(x)
        state, marks = map_leaves(copied, state), Marks(marks.lengths, map_leaves(copied, marks.resets))
        y, final, residuals = self.forward(params, x, state, marks, masks)
        y, final = copied(y), map_leaves(copied, final)
        before = write_counts(params)

        @on_their_device
        def pullback(dy: Array | None = None, dstate: State = None) -> tuple[Params, Array | None, State]:
            dy = check_cotangent("dy", dy, y)
            dstate = check_cotangent("dstate", dstate, final)
            check_unwritten(params, before)
            dy = namespace_of(y).zeros_like(y) if dy is None else dy
            dparams, dx, dinitial = self.backward(params, residuals, dy, dstate)
            return dparams, apart(dx, dy), apart(dinitial, dstate)

        return y, final, pullback

    def _checked(
        self, params: Params, x: Any, state: State, lengths: Lengths, resets: Any
    ) -> tuple[Params, Array, State, Marks]:
        params, expected = checked_params(params, self._shapes, self)
        x, lengths = checked_sequences(x, lengths, expected)
        expected = expected or backend_of(x)
        self.check_input(x, expected.xp)
        state = checked_state(state, expected)
        self.check_state(state, x.shape[0])
        marks = time_marks(lengths, resets, x)
        if self.takes_integers and not is_traced(x) and not is_traced(marks.lengths):
            self.check_values(to_numpy(x), None if marks.lengths is None else to_numpy(marks.lengths))
        return params, x, state, marks

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return self.parameter_shapes()

    def check_params(self, params: Params) -> Params:
        """The parameters as plain arrays; InputError where names or shapes are not `parameter_shapes`."""
        return checked_params(params, self._shapes, self)[0]

    def check_shapes(self, found: Mapping[str, tuple[int, ...]]) -> None:
        """Raise InputError where names or shapes are not `parameter_shapes`."""
        check_shapes(found, self._shapes, self)


def prefixed(child: str, name: str) -> str:
    """The name that a child's parameter has in its parent."""
    return f"{child}.{name}" if child else name


class Stateless(Layer):
    """A layer without parameters and state: ``y = f(x)`` and its pullback."""

    @abc.abstractmethod
    def transform(self, xp: Any, x: Array, lengths: Array | None, mask: Any) -> tuple[Array, Any]:
        """(y, residuals). `mask` is one of `dropout_masks`, or None."""

    @abc.abstractmethod
    def pullback(self, xp: Any, residuals: Any, dy: Array) -> Array:
        """dx, from what `transform` returned and the cotangent of y."""

    def forward(self, params: Params, x: Array, state: State, marks: Marks, masks: Any) -> tuple[Array, State, Any]:
        y, residuals = self.transform(namespace_of(x), x, marks.lengths, masks)
        return y, None, residuals

    def backward(self, params: Params, residuals: Any, dy: Array, dstate: State) -> tuple[Params, Array | None, State]:
        return {}, self.pullback(namespace_of(dy), residuals, dy), None


@dataclasses.dataclass(frozen=True, repr=False)
class Wrapper(Layer):
    """A layer around one other; parameters, state and features are those of the layer inside.

    A subclass gives `forward` and `backward`.
    """

    layer: Layer

    @property
    def keeps_time(self) -> bool:  # type: ignore[override]
        """As the layer inside."""
        return self.layer.keeps_time

    @property
    def needs_time(self) -> bool:  # type: ignore[override]
        """As the layer inside."""
        return self.layer.needs_time

    @property
    def takes_integers(self) -> bool:  # type: ignore[override]
        """As the layer inside."""
        return self.layer.takes_integers

    @property
    def in_width(self) -> int | None:
        return self.layer.in_width

    def out_width(self, features: int | None) -> int | None:
        return self.layer.out_width(features)

    def children(self) -> dict[str, Layer]:
        return {"": self.layer}

    def map_children(self, function: Callable[[Layer], Layer]) -> Layer:
        return dataclasses.replace(self, layer=function(self.layer))

    def dropout_masks(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
        return self.layer.dropout_masks(rng, shape)

    def check_input(self, x: Array, xp: Any) -> None:
        self.layer.check_input(x, xp)

    def check_values(self, x: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any] | None) -> None:
        self.layer.check_values(x, lengths)

    def check_state(self, state: State, batch_size: int) -> None:
        self.layer.check_state(state, batch_size)


def check_rank_and_features(x: Array, xp: Any, ranks: tuple[int, ...], features: int | None, who: str) -> None:
    """Raise InputError unless `x` is floating, not empty, of one of `ranks`, with `features` on its last axis."""
    if x.ndim not in ranks:
        wanted = " or ".join("(batch, time, features)" if r == 3 else "(batch, features)" for r in ranks)
        hint = "; add the missing axis, such as x[None, ...] for one sequence" if x.ndim < min(ranks) else ""
        raise InputError(f"{who} expects x of shape {wanted}, got shape {tuple(x.shape)}{hint}")
    if 0 in x.shape:
        raise InputError(f"{who} expects at least one row, step and feature, got shape {tuple(x.shape)}")
    if features is not None and x.shape[-1] != features:
        raise InputError(f"{who} expects {features} features, got {x.shape[-1]} (shape {tuple(x.shape)})")
    if not is_floating(xp, x.dtype):
        raise InputError(
            f"{who} expects floating x, got {dtype_name(xp, x.dtype)}: "
            "convert it with portable_rnn.asarray(x, backend, dtype='float32')"
        )


def valid_steps(xp: Any, lengths: Array, steps: int, like: Array) -> Array:
    """Booleans (B, T): whether step t of row b is before its end."""
    times = xp.arange(steps, dtype=lengths.dtype, device=backend_of(like).device)
    return times[None, :] < lengths[:, None]


def zero_padding(xp: Any, x: Array, lengths: Array | None) -> Array:
    """`x` (B, T, ...) with everything past the rows' ends replaced by zero, NaN included."""
    if lengths is None:
        return x
    valid = valid_steps(xp, lengths, x.shape[1], x)
    return xp.where(valid[(...,) + (None,) * (x.ndim - 2)], x, xp.zeros_like(x))
