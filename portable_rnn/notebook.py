"""The one-page notebook's network: the same class and functions, with the exact gradient.

A sequence is a list of columns. With H hidden features and B columns side by side (the notebook: one)::

    h[0] = 0
    h[t] = tanh(Wxh @ x[t] + Whh @ h[t-1] + bh)      t = 1 ... T
    y    = Why @ h[T] + by

The notebook's own `backward` had two faults, told in ``docs/notebook.md``: it evaluated ``dtanh`` at h, which is
already ``tanh(a)``, and it added the gradient of y at every step, though y sees the last h only.

Source: Elman (1990), Finding structure in time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from .arrays import (
    Array,
    Backend,
    Params,
    device_of,
    from_host,
    is_array,
    namespace_of,
    on_their_device,
    placed,
    positive,
    size,
    to_numpy,
    tree_to_numpy,
    zeros_beside,
)
from .arrays import backend as as_backend
from .cells import ElmanCell
from .errors import InputError, NonFiniteError
from .execution import records
from .layers import Span, check_memory, random_generator, run_direction, run_direction_backward

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["SimpleRNN", "dsigmoid", "dtanh", "sigmoid", "tanh"]

BLOCK = 128  # columns in one product of the weight gradients
LARGE = 1 << 15  # numbers of all hidden states, from which on a sequence runs as those of the layers do
CELL = ElmanCell("tanh")
WEIGHTS = ("Wxh", "Whh", "Why", "bh", "by")


# ---------------------------------------------------------------------- functions of the pre-activation


@on_their_device
def sigmoid(x: Array | ArrayLike) -> Array:
    """Logistic function ``1 / (1 + exp(-x))``, without overflow.

    Parameters
    ----------
    x : array of any library, number or list of numbers
        Integers become the library's default floating dtype (NumPy: float64).

    Returns
    -------
    array of the same library and floating dtype; NumPy for numbers and lists

    Examples
    --------
    >>> from portable_rnn.notebook import sigmoid
    >>> float(sigmoid(0))
    0.5
    """
    xp, x = _floating(x)
    # Not the tanh form of the gates: here small values keep their digits, as in the formula.
    e = xp.exp(-xp.abs(x))
    return xp.where(x < 0, e, xp.ones_like(e)) / (1 + e)


@on_their_device
def dsigmoid(x: Array | ArrayLike) -> Array:
    """Derivative of `sigmoid` at the pre-activation x: ``sigmoid(x) * (1 - sigmoid(x))``.

    Parameters and return value are those of `sigmoid`.

    Examples
    --------
    >>> from portable_rnn.notebook import dsigmoid
    >>> float(dsigmoid(0))
    0.25
    """
    return sigmoid(x) * sigmoid(-_floating(x)[1])


@on_their_device
def tanh(x: Array | ArrayLike) -> Array:
    """Hyperbolic tangent. Parameters and return value are those of `sigmoid`.

    Examples
    --------
    >>> from portable_rnn.notebook import tanh
    >>> float(tanh(0))
    0.0
    """
    xp, x = _floating(x)
    return xp.tanh(x)


@on_their_device
def dtanh(x: Array | ArrayLike) -> Array:
    """Derivative of `tanh` at the pre-activation x: ``1 - tanh(x)**2``.

    Where only ``h = tanh(x)`` is at hand the derivative is ``1 - h**2``, not ``dtanh(h)``. Parameters and return value
    are those of `sigmoid`.

    Examples
    --------
    >>> from portable_rnn.notebook import dtanh
    >>> float(dtanh(0))
    1.0
    """
    return 1 - tanh(x) ** 2


def _floating(x: Any) -> tuple[Any, Array]:
    """The namespace and `x` as a floating array of it."""
    x = x if is_array(x) else to_numpy(x)
    xp = namespace_of(x)
    if xp.isdtype(x.dtype, "real floating"):
        return xp, x
    default = xp.__array_namespace_info__().default_dtypes(device=device_of(x))["real floating"]
    return xp, xp.astype(x, default)


# ---------------------------------------------------------------------- the network


class SimpleRNN:
    """A recurrent layer with a linear output at the last step, trained one update per sequence.

    Weights, hidden states and gradients live on the backend. What goes in may be NumPy or lists, and what `forward`,
    `predict` and `train` return is NumPy, so a notebook written for NumPy runs on every array library.

    Parameters
    ----------
    input_size, hidden_size, output_size : int
        I, H and O.
    learning_rate : float
        Step size of the plain gradient descent, kept as ``lr``.
    backend : as in `portable_rnn.backend`
        A Backend computes in its own dtype; everything else in float64, or in float32 where the device has no float64
        (JAX without ``jax_enable_x64``).
    seed : int, optional
        Draws the weights with NumPy's Philox generator, the same on every library. Left out, they come from NumPy's
        global generator, so ``np.random.seed(0)`` gives the notebook's own initial weights, bit for bit.

    Attributes
    ----------
    Wxh, Whh, Why : array (H, I), (H, H), (O, H)
        Drawn in this order as ``randn * 0.01``.
    bh, by : array (H, 1), (O, 1)
        Zero at the start.
    lr : float
    last_inputs : list
        What the last forward pass was given.
    backend : portable_rnn.Backend

    Raises
    ------
    InputError
        A size or the learning rate is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> from portable_rnn.notebook import SimpleRNN
    >>> rnn = SimpleRNN(seed=0)
    >>> for _ in range(500):
    ...     loss = rnn.train([np.array([[1]]), np.array([[2]])], np.array([[3]]))
    >>> rnn.predict([[[1]], [[2]]]).round(3)
    array([[3.]])
    """

    _ARRAYS = (*WEIGHTS, "_hs", "_saved", "_last_h", "_x", "_good")

    def __init__(
        self,
        input_size: int = 1,
        hidden_size: int = 10,
        output_size: int = 1,
        learning_rate: float = 0.01,
        backend: str | ModuleType | Array | Backend = "numpy",
        seed: int | None = None,
    ) -> None:
        input_size, hidden_size = size("input_size", input_size), size("hidden_size", hidden_size)
        output_size = size("output_size", output_size)
        self.input_size, self.hidden_size, self.output_size = input_size, hidden_size, output_size
        self.lr = positive("learning_rate", learning_rate)

        shapes = {"Wxh": (hidden_size, input_size), "Whh": (hidden_size,) * 2, "Why": (output_size, hidden_size)}
        check_memory(shapes, "the weights")
        # Drawn before the array library is looked up: importing one may draw from the global generator too, and that
        # is where the notebook's weights come from.
        normal = np.random.standard_normal if seed is None else random_generator(seed).standard_normal
        Wxh, Whh, Why = (normal(shape) * 0.01 for shape in shapes.values())

        self.backend = _widest(backend)
        self._dtype = np.dtype(self.backend.dtype_name)
        self.Wxh, self.Whh, self.Why = self._place(Wxh), self._place(Whh), self._place(Why)
        self.bh = self._place(np.zeros((hidden_size, 1)))
        self.by = self._place(np.zeros((output_size, 1)))

        self.last_inputs: Any = None
        self._hs: dict[int, Array] | None = {}  # None where `_saved` has them, as one array
        self._saved: Any = None
        self._last_h: Array | None = None
        self._updates = 0
        self._good = self._weights()  # the last weights whose loss was finite

    def __getstate__(self) -> dict[str, Any]:
        on_backend = {name: tree_to_numpy(value) for name, value in vars(self).items() if name in self._ARRAYS}
        return vars(self) | on_backend | {"last_inputs": tree_to_numpy(self.last_inputs)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        backend = state["backend"]
        vars(self).update(state, **{name: placed(state[name], backend) for name in self._ARRAYS if name in state})

    @property
    def last_hs(self) -> dict[int, Array]:
        """The hidden states of the last forward pass, ``{0: zeros, 1: after the first step, ...}``."""
        if self._hs is None:
            hs = self._saved.hs
            self._hs = {0: self._saved.h_initial, **{t + 1: hs[t, ...] for t in range(hs.shape[0])}}
        return self._hs

    @on_their_device
    def forward(self, inputs: Iterable[Any]) -> NDArray[Any]:
        """Run the network over a sequence, or over B sequences of the same length.

        Parameters
        ----------
        inputs : list of T arrays (I, B)
            One column for each sequence; integers will do.

        Returns
        -------
        ndarray (O, B)
            ``Why @ h[T] + by``.

        Raises
        ------
        InputError
            No steps, a step of the wrong shape, or NaN, infinity or text in one.
        """
        return to_numpy(self._forward(inputs))

    @on_their_device
    def backward(self, d_y: ArrayLike, learning: bool = True) -> Params:
        """Back-propagate through the last forward pass, exactly.

        Parameters
        ----------
        d_y : array (O, B)
            Derivative of the loss with respect to y.
        learning : bool
            Whether to subtract ``lr`` times the gradients from the weights.

        Returns
        -------
        dict of str to array
            The gradients, named and shaped as the weights: Wxh, Whh, Why, bh, by; summed over the B columns.

        Raises
        ------
        InputError
            There was no forward pass yet, or `d_y` does not have the shape of its result.
        """
        if self._last_h is None:
            raise InputError("backward needs a forward pass: call rnn.forward(inputs) first")
        shape = self.output_size, self._last_h.shape[1]
        gradients = self._gradients(self._place(_column(d_y, "d_y", shape).copy()))
        if learning:
            self._descend({name: float(self.lr) * gradient for name, gradient in gradients.items()})
        return gradients

    @on_their_device
    def train(self, inputs: Iterable[Any], target: ArrayLike) -> Any:
        """Update the weights once: forward, ``loss = sum((y - target)**2)``, backward with ``d_y = 2 * (y - target)``.

        Parameters
        ----------
        inputs : list of T arrays (I, B)
        target : array (O, B), or list of O numbers or one number where that is all y has

        Returns
        -------
        NumPy scalar
            The loss before the update, summed over the B columns.

        Raises
        ------
        InputError
            As in `forward`; `target` does not fit y or is not finite.
        NonFiniteError
            The loss is not finite any more. The weights go back to the last ones whose loss was.

        Examples
        --------
        >>> from portable_rnn.notebook import SimpleRNN
        >>> rnn = SimpleRNN(seed=0)
        >>> two_sequences = [[[1, 4]], [[2, 3]]]
        >>> bool(rnn.train(two_sequences, [[3, 7]]) > rnn.train(two_sequences, [[3, 7]]))
        True
        """
        y = to_numpy(self._forward(inputs))
        error = y - _column(target, "target", y.shape)
        loss = np.vdot(error, error)
        self._check_loss(loss)
        # gradients are linear in d_y, so the learning rate goes in here, once
        self._descend(self._gradients(self._place(2 * float(self.lr) * error)))
        return loss

    def predict(self, inputs: Iterable[Any]) -> NDArray[Any]:
        """The output for a sequence; another name for `forward`."""
        return self.forward(inputs)

    # ------------------------------------------------------------------ the same on the backend's own arrays

    def _forward(self, inputs: Iterable[Any]) -> Array:
        x, steps, batch = self._side_by_side(inputs)
        if steps * batch * self.hidden_size >= LARGE and records(self.backend.xp):
            h, saved = self._run_as_a_layer(x, steps, batch)
            self._hs, self._saved = None, saved
        else:
            hs = self._hidden(x, steps, batch)
            self._hs, self._saved, h = hs, None, hs[steps]
        self.last_inputs, self._x, self._last_h = inputs, x, h
        return self.Why @ h + self.by

    def _gradients(self, d_y: Array) -> Params:
        found = self._recurrent_gradients(d_y) if self._saved is None else self._gradients_as_a_layer(d_y)
        assert self._last_h is not None
        return {**found, "Why": d_y @ self._last_h.T, "by": _summed(self.backend.xp, d_y)}

    def _hidden(self, x: Array, steps: int, batch: int) -> dict[int, Array]:
        """The hidden states, and at 0 the initial one."""
        xp = self.backend.xp
        h = self._no_state(batch)
        hs = {0: h}
        for t in range(steps):
            x_t = x[:, t * batch : (t + 1) * batch]
            a = self.Wxh @ x_t + self.bh
            h = xp.tanh(a + self.Whh @ h if t else a)  # h[0] = 0 has nothing to add
            hs[t + 1] = h
        return hs

    def _recurrent_gradients(self, d_y: Array) -> Params:
        xp, hs, x, back_Whh = self.backend.xp, self.last_hs, self._x, self.Whh.T
        steps, batch = len(hs) - 1, d_y.shape[1]
        many = max(BLOCK // batch, 1)
        da = dWxh = dWhh = sum_of_da = None
        for k in reversed(range(0, steps, many)):
            n = min(k + many, steps)
            das = []
            for t in range(n, k, -1):
                # The last h, and no other, feeds y = Why @ h + by; an earlier one the next a = Wxh @ x + Whh @ h + bh.
                dh = self.Why.T @ d_y if t == steps else back_Whh @ da
                da = dh * (1 - hs[t] * hs[t])  # h = tanh(a)
                das.append(da)
                sum_of_da = da if t == steps else sum_of_da + da

            # The sum over steps and columns is a product of all of them side by side, in blocks that stay in cache.
            das = _beside(xp, das[::-1])
            h_before = _beside(xp, [hs[t] for t in range(k, n)])
            x_block = x[:, k * batch : n * batch]
            dWxh = das @ x_block.T if n == steps else dWxh + das @ x_block.T
            dWhh = das @ h_before.T if n == steps else dWhh + das @ h_before.T
        return {"Wxh": dWxh, "Whh": dWhh, "bh": _summed(xp, sum_of_da)}

    # ------------------------------------------------------------------ the same as an `RNN` layer runs it

    def _as_a_layer(self) -> Params:
        bias = self.bh[:, 0]
        return {
            "weight_ih": self.Wxh,
            "weight_hh": self.Whh,
            "bias_ih": bias,
            "bias_hh": self.backend.xp.zeros_like(bias),
        }

    def _run_as_a_layer(self, x: Array, steps: int, batch: int) -> tuple[Array, Any]:
        """The last hidden state, and what is saved for the way back."""
        xp = self.backend.xp
        x = xp.permute_dims(xp.reshape(x, (self.input_size, steps, batch)), (1, 0, 2))
        state = (self._no_state(batch),)
        _, (h,), saved = run_direction(xp, CELL, False, self._as_a_layer(), x, state, Span(), None)
        return h, saved

    def _gradients_as_a_layer(self, d_y: Array) -> Params:
        # y sees the last h only: its cotangent is that of the final state, and no step has one of its own
        d_last = (self.Why.T @ d_y,)
        xp, p = self.backend.xp, self._as_a_layer()
        found, *_ = run_direction_backward(xp, CELL, False, p, self._saved, None, d_last, with_dx=False)
        return {"Wxh": found["weight_ih"], "Whh": found["weight_hh"], "bh": found["bias_ih"][:, None]}

    def _no_state(self, batch: int) -> Array:
        return zeros_beside(self.bh, (self.hidden_size, batch))

    def _descend(self, steps: Params) -> None:
        for name, step in steps.items():
            setattr(self, name, getattr(self, name) - step)

    # ------------------------------------------------------------------ the way in

    def _side_by_side(self, inputs: Iterable[Any]) -> tuple[Array, int, int]:
        """The columns of all steps as one array (I, T * B) of the backend; T; B."""
        try:
            columns = [x if type(x) is np.ndarray else to_numpy(x) for x in inputs]
        except TypeError:
            raise InputError(f"inputs must be a list of columns, got {type(inputs).__name__}") from None
        if not columns:
            raise InputError("inputs must have at least one step, got an empty list")
        batch = columns[0].shape[-1] if columns[0].ndim == 2 else 1
        shape = (self.input_size, max(batch, 1))
        for t, x in enumerate(columns):
            if x.shape != shape or x.dtype.kind not in "fiub":
                raise InputError(_unlike(f"inputs[{t}]", x, shape))
        x = np.concatenate(columns, axis=1, dtype=self._dtype)
        if np.count_nonzero(np.isfinite(x)) != x.size:
            raise InputError("inputs must be finite, got NaN or infinity")
        return self._place(x), len(columns), batch

    def _place(self, host: NDArray[Any]) -> Array:
        return from_host(host.astype(self._dtype, copy=False), self.backend)

    # ------------------------------------------------------------------ a loss that explodes

    def _weights(self) -> Params:
        return {name: getattr(self, name) for name in WEIGHTS}

    def _check_loss(self, loss: Any) -> None:
        self._updates += 1
        if math.isfinite(loss):
            self._good = self._weights()
            return
        for name, value in self._good.items():
            setattr(self, name, value)
        raise NonFiniteError(
            f"the loss is {loss} at update {self._updates}; the last good weights were kept: "
            "try a smaller learning_rate or scaled data",
            step=self._updates,
            layer="SimpleRNN",
            good_params=self._good,
        )


def _widest(library: Any) -> Backend:
    """The backend in float64 where it has that."""
    narrow = as_backend(library)
    if isinstance(library, Backend):
        return narrow
    try:
        wide = as_backend(library, dtype="float64")
        wide.xp.zeros(1, dtype=wide.dtype, device=wide.device)
    except Exception:  # every library has its own word for it
        return narrow
    return wide


def _beside(xp: Any, blocks: list[Array]) -> Array:
    """The columns of all blocks as one array."""
    return blocks[0] if len(blocks) == 1 else xp.concat(blocks, axis=1)


def _summed(xp: Any, columns: Array) -> Array:
    """The sum of the columns, as a column; `xp.sum` takes longer than a small matrix product."""
    return columns if columns.shape[1] == 1 else xp.sum(columns, axis=1, keepdims=True)


def _column(value: Any, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """`value` as a finite host array of this shape; a flat one or a number where that is all there is."""
    host = to_numpy(value)
    if host.shape in ((), shape[:1]) and host.size == math.prod(shape):
        host = host.reshape(shape)
    if host.shape != shape or host.dtype.kind not in "fiub":
        raise InputError(_unlike(name, host, shape))
    if np.count_nonzero(np.isfinite(host)) != host.size:
        raise InputError(f"{name} must be finite, got NaN or infinity")
    return host


def _unlike(name: str, got: NDArray[Any], shape: tuple[int, ...]) -> str:
    if got.shape == shape:
        return f"{name} must be numbers, got dtype {got.dtype}"
    fix = f": np.reshape({name}, {shape}) makes it one" if got.size == math.prod(shape) else ""
    return f"{name} must have shape {shape}, one column for each sequence, got {got.shape}{fix}"
