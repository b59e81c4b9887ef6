"""Recurrent layers: RNN, LSTM, GRU, and `Recurrent` for a cell of your own.

A layer is configuration: `RecurrentLayer` has what all of them share, and each states its own options and its cell.
The time loop is in `direction.py`, the maths of a step in `cells.py`.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from ..arrays import Array, Count, Marks, Params, Positive, Probability, Size, State, integer, namespace_of
from ..cells import ActivationName, Cell, ElmanCell, GRUCell, LSTMCell
from ..errors import InputError, unexpected
from ..execution import jit, keeps_residuals
from .base import Layer
from .drawing import choice_mask, keep_mask
from .initializers import InitializerName, draw, scheme
from .time.stack import Masks, stack_backward, stack_forward, state_sizes, suffixes

__all__ = ["GRU", "LSTM", "RNN", "Recurrent", "RecurrentLayer"]


# Each layer of a stack has its own parameters: a number that no machine can hold is refused before they are named
Depth = Annotated[int, integer(1, 10_000)]


@dataclass(frozen=True, repr=False)
class RecurrentLayer(Layer):
    """What all recurrent layers share: a stack of one cell, in one direction or both.

    A subclass is a frozen dataclass with its own keyword options and the attribute `cell`.

    Parameters
    ----------
    input_size, hidden_size, num_layers : int
    bias : bool
    bidirectional : bool
        A second direction that runs from each row's own end; its outputs follow the first's on the last axis.
    reverse : bool
        Run from each row's own end to its start; outputs stand at their own time step.
    dropout : float
        Probability of dropping an output between two layers, in training.
    recurrent_dropout : float
        Probability of dropping an entry of h in the recurrent product, in training; one mask for all steps of a
        sequence (Gal and Ghahramani 2016).
    zoneout : float
        Probability of keeping an entry of the old state, drawn for each step in training; its expectation otherwise
        (Krueger et al. 2016).
    recompute_every : int, optional
        Keep the state at every so many steps only, and run the steps between again in the backward pass: the same
        gradients in O(T / n + n) memory, for one more forward pass.
    initializer : str
        How `init` draws the parameters: "torch", "keras", "irnn" (identity and relu, Le et al. 2015), or one of them
        with changes, such as "torch(recurrent=orthogonal, forget_bias=1)"; see `portable_rnn.initializers.scheme`.
    """

    input_size: Size
    hidden_size: Size
    num_layers: Depth = 1
    _: KW_ONLY
    bias: bool = True
    bidirectional: bool = False
    reverse: bool = False
    dropout: Probability = 0.0
    recurrent_dropout: Probability = 0.0
    zoneout: Probability = 0.0
    recompute_every: Size | None = None
    initializer: InitializerName = "torch"

    if TYPE_CHECKING:  # a cached property in the layers here, a field in `Recurrent`

        @property
        def cell(self) -> Cell:
            """The cell that every layer and direction runs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reverse and self.bidirectional:
            raise InputError("reverse=True runs one direction, from the end: it can't be bidirectional as well")

    @property
    def directions(self) -> int:
        """1, or 2 where bidirectional."""
        return 2 if self.bidirectional else 1

    @property
    def streams(self) -> bool:  # type: ignore[override]
        """Whether the layer runs forward in time only."""
        return not (self.bidirectional or self.reverse)

    @property
    def in_width(self) -> int:
        return self.input_size

    def out_width(self, features: int | None) -> int:
        return state_sizes(self)[0] * self.directions

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        features = self.input_size
        for ends in suffixes(self):
            for end in ends:
                own = self.cell.parameter_shapes(features, self.hidden_size, self.bias)
                shapes |= {name + end: shape for name, shape in own.items()}
            features = self.out_width(None)
        return shapes

    def forward(self, params: Params, x: Array, state: State, marks: Marks, masks: Any) -> tuple[Array, State, Any]:
        run = jit(namespace_of(x), stack_forward, static=("layer", "keep"))
        return run(params, x, state, marks, masks, layer=self, keep=keeps_residuals())

    def backward(self, params: Params, residuals: Any, dy: Array, dstate: State) -> tuple[Params, Array | None, State]:
        run = jit(namespace_of(dy), stack_backward, static=("layer",))
        grads, dx, dinitial, _ = run(params, residuals, dy, dstate, layer=self)
        return grads, dx, dinitial

    def parameter_gradients(self, params: Params, residuals: Any, dy: Array, dstate: State) -> Params:
        run = jit(namespace_of(dy), stack_backward, static=("layer", "with_dx"))
        grads: Params = run(params, residuals, dy, dstate, layer=self, with_dx=False)[0]
        return grads

    def check_state(self, state: State, batch_size: int) -> None:
        if state is None:
            return
        count = self.num_layers * self.directions
        sizes = state_sizes(self)
        parts = state if isinstance(state, (tuple, list)) else (state,)
        wanted = [(count, batch_size, size) for size in sizes]
        got = [tuple(part.shape) if part is not None else None for part in parts]
        if got != wanted or (len(sizes) == 1 and isinstance(state, (tuple, list))):
            form = f"an array {wanted[0]}" if len(sizes) == 1 else f"a tuple of arrays {', '.join(map(str, wanted))}"
            raise InputError(
                f"state of {type(self).__name__} must be {form}, got "
                f"{'an array' if not isinstance(state, (tuple, list)) else 'a tuple'} of shape "
                f"{', '.join(map(str, got))}"
            )

    def draw(self, rng: np.random.Generator) -> dict[str, np.ndarray[Any, Any]]:
        return draw(
            rng,
            scheme(self.initializer),
            self.parameter_shapes(),
            self.hidden_size,
            constants=getattr(self.cell, "constants", None),
            forget_gate=getattr(self.cell, "forget_gate", None),
        )

    def dropout_masks(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Any:
        batch_size, steps = shape[:2]
        sizes = state_sizes(self)
        width = self.out_width(None)
        runs = range(self.num_layers * self.directions)
        between = recurrent = zoneout = None
        if self.dropout and self.num_layers > 1:
            shape = (steps, width, batch_size)
            between = [keep_mask(rng, shape, self.dropout) for _ in range(self.num_layers - 1)]
        if self.recurrent_dropout:
            recurrent = [keep_mask(rng, (sizes[0], batch_size), self.recurrent_dropout) for _ in runs]
        if self.zoneout:
            zoneout = [tuple(choice_mask(rng, (steps, n, batch_size), self.zoneout) for n in sizes) for _ in runs]
        masks = Masks(between, recurrent, zoneout)
        return None if masks == Masks() else masks


@dataclass(frozen=True, repr=False)
class RNN(RecurrentLayer):
    """Elman network: ``h' = f(Wx @ x + Wh @ h + b)``.

    x (B, T, I) -> y (B, T, D * H) with D directions; state (num_layers * D, B, H), index layer * D + direction.
    Parameters are named and shaped as in `torch.nn.RNN`: ``weight_ih_l0`` (H, I), ``weight_hh_l0`` (H, H),
    ``bias_ih_l0``, ``bias_hh_l0`` (H,), the other layers and the reverse direction with their own suffix.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, bidirectional, reverse, dropout, recurrent_dropout, zoneout,
    recompute_every, initializer
        As in `RecurrentLayer`.
    nonlinearity : str
        "tanh", "relu", "sigmoid" or another of `portable_rnn.activations.ACTIVATIONS`.
    clip : float, optional
        Bound on the gates' pre-activations, as in ONNX.

    References
    ----------
    Elman (1990), Finding structure in time, Cognitive Science 14.

    Examples
    --------
    >>> import numpy as np, portable_rnn as prnn
    >>> layer = prnn.RNN(3, 5, bidirectional=True)
    >>> params = layer.init(seed=0)
    >>> y, state = layer.apply(params, np.ones((2, 7, 3), dtype="float32"))
    >>> y.shape, state.shape
    ((2, 7, 10), (2, 2, 5))
    """

    _: KW_ONLY
    nonlinearity: ActivationName = "tanh"
    clip: Positive | None = None

    @cached_property
    def cell(self) -> Cell:
        """The cell that every layer and direction runs."""
        return ElmanCell(self.nonlinearity, self.clip)


@dataclass(frozen=True, repr=False)
class LSTM(RecurrentLayer):
    """Long short-term memory.

    ``i, f, o = sigmoid(...)``, ``g = tanh(...)``, ``c' = f * c + i * g``, ``h' = o * tanh(c')``.
    x (B, T, I) -> y (B, T, D * H); the state is the tuple (h, c), each (num_layers * D, B, H). Parameters are named
    and shaped as in `torch.nn.LSTM`, gates in the order i, f, g, o: ``weight_ih_l0`` (4 * H, I).

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, bidirectional, reverse, dropout, recurrent_dropout, zoneout,
    recompute_every, initializer
        As in `RecurrentLayer`.
    proj_size : int
        Rows of a projection ``weight_hr_l0`` (proj_size, H) of h; 0 for none. y and h then have `proj_size` features.
    peepholes : bool
        Gates that see the cell state, by ``weight_peephole_l0`` (3 * H,) in the order i, f, o.
    coupled : bool
        One gate for input and forget, ``f = 1 - i``; the weights then have three gates, i, g, o, and peepholes i, o.
    activation, recurrent_activation, output_activation : str
        In place of the tanh of g, of sigmoid, and of the tanh of c' (the same as `activation` when left out).

    References
    ----------
    Hochreiter and Schmidhuber (1997); Gers, Schmidhuber and Cummins (2000); Sak, Senior and Beaufays (2014).

    Examples
    --------
    >>> import numpy as np, portable_rnn as prnn
    >>> layer = prnn.LSTM(3, 5, num_layers=2)
    >>> y, (h, c) = layer.apply(layer.init(seed=0), np.ones((2, 7, 3), dtype="float32"), lengths=[7, 4])
    >>> y.shape, c.shape, bool((y[1, 4:] == 0).all())
    ((2, 7, 5), (2, 2, 5), True)
    """

    _: KW_ONLY
    proj_size: Count = 0
    peepholes: bool = False
    coupled: bool = False
    activation: ActivationName = "tanh"
    recurrent_activation: ActivationName = "sigmoid"
    output_activation: ActivationName | None = None
    clip: Positive | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.proj_size >= self.hidden_size:
            wanted = f"0 (no projection), or less than hidden_size {self.hidden_size}"
            raise unexpected("proj_size", wanted, self.proj_size, "pass a smaller one, or a larger hidden_size")

    @cached_property
    def cell(self) -> Cell:
        """The cell that every layer and direction runs."""
        return LSTMCell(
            self.proj_size,
            self.peepholes,
            self.coupled,
            self.activation,
            self.recurrent_activation,
            self.output_activation,
            self.clip,
        )


@dataclass(frozen=True, repr=False)
class GRU(RecurrentLayer):
    """Gated recurrent unit.

    ``r, z = sigmoid(...)``, ``n = tanh(...)``, ``h' = (1 - z) * n + z * h``.
    x (B, T, I) -> y (B, T, D * H), state (num_layers * D, B, H). Parameters are named and shaped as in
    `torch.nn.GRU`, gates in the order r, z, n: ``weight_ih_l0`` (3 * H, I).

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, bidirectional, reverse, dropout, recurrent_dropout, zoneout,
    recompute_every, initializer
        As in `RecurrentLayer`.
    reset_after : bool
        True: the reset gate acts on ``Wh @ h + b``, as in torch, cuDNN and Keras 3. False: on h, as published.
    activation, recurrent_activation : str
        In place of tanh and of sigmoid.

    References
    ----------
    Cho et al. (2014), Learning phrase representations using RNN encoder-decoder, arXiv:1406.1078.

    Examples
    --------
    >>> import numpy as np, portable_rnn as prnn
    >>> layer = prnn.GRU(3, 5)
    >>> params, x = layer.init(seed=0), np.ones((2, 7, 3), dtype="float32")
    >>> y, state, pullback = layer.vjp(params, x)
    >>> dparams, dx, dstate = pullback(np.ones_like(y))
    >>> dparams["weight_hh_l0"].shape, dx.shape, dstate.shape
    ((15, 5), (2, 7, 3), (1, 2, 5))
    """

    _: KW_ONLY
    reset_after: bool = True
    activation: ActivationName = "tanh"
    recurrent_activation: ActivationName = "sigmoid"
    clip: Positive | None = None

    @cached_property
    def cell(self) -> Cell:
        """The cell that every layer and direction runs."""
        return GRUCell(self.reset_after, self.activation, self.recurrent_activation, self.clip)


def cell_methods_missing(cell: Any) -> list[str]:
    """The methods of `Cell` that an object or class lacks."""
    methods = ("parameter_shapes", "state_sizes", "prepare", "step", "step_backward", "parameter_gradients")
    return [method for method in methods if not callable(getattr(cell, method, None))]


def _check_cell(cell: Any) -> None:
    missing = cell_methods_missing(cell)
    if missing or isinstance(cell, type):
        remedy = f"give it {', '.join(missing)}" if missing else "pass an object of the class"
        raise unexpected("cell", "a cell such as prnn.cells.ElmanCell()", cell, remedy)
    if type(cell).__hash__ is None:
        raise unexpected("cell", "a cell with a hash", cell, "make its class a frozen dataclass")


@dataclass(frozen=True, repr=False)
class _OfCell:
    """The field `cell`: a dataclass takes the fields of its last base first."""

    cell: Cell


@dataclass(frozen=True, repr=False)
class Recurrent(RecurrentLayer, _OfCell):
    """A recurrent layer of any cell.

    x (B, T, I) -> y (B, T, D * H). The state is one array (num_layers * D, B, H), or a tuple of them where the cell
    has several.

    Parameters
    ----------
    cell : Cell
        A hashable object with the methods of `portable_rnn.cells.Cell`.
    input_size, hidden_size, num_layers, bias, bidirectional, reverse, dropout, recurrent_dropout, zoneout,
    recompute_every, initializer
        As in `RecurrentLayer`.

    Examples
    --------
    >>> import numpy as np, portable_rnn as prnn
    >>> layer = prnn.Recurrent(prnn.cells.ElmanCell("softsign"), 3, 5)
    >>> layer.apply(layer.init(seed=0), np.ones((2, 7, 3), dtype="float32"))[0].shape
    (2, 7, 5)
    """

    def __post_init__(self) -> None:
        _check_cell(self.cell)
        super().__post_init__()
