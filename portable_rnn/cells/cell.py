"""What a cell is, and the notation that all cells share: one time step forward, the same step backward.

Notation
--------
Everything is feature-first: one sequence is a column.

========================= ================ =====================================================================
``h``                     (H, B)           hidden state; (P, B) in an LSTM with projection
``c``                     (H, B)           cell state of the LSTM
``z``                     (G * H, B)       input part of the pre-activations, ``Wx @ x + b``, computed for all steps
                                           at once before the time loop
``a``                     (G * H, B)       pre-activations
``Wx``, ``Wh``            (G * H, I / H)   torch's ``weight_ih`` and ``weight_hh``
``dX``                    as X             cotangent of X: the derivative of the loss with respect to X
========================= ================ =====================================================================

Gates are row blocks in torch's order: ``i f g o`` (LSTM), ``r u n`` (GRU; torch and cuDNN write ``r z n``, but ``z``
is taken here). A step returns what its backward needs (the residual) as a dict of arrays, so that the same code runs
in a Python loop and under ``jax.lax.scan``. What is a sum over time (the weight gradients) is left to
`parameter_gradients`, one large product after the loop.

A cell of your own is a class with the methods of `Cell`; `portable_rnn.Recurrent` makes a layer of it.
"""

from __future__ import annotations

from typing import Any, Protocol

from ..arrays import Array, Params, device_of
from ..execution import leaves_sums, stacked

__all__ = ["Cell", "column", "dropped", "summed_outer", "weight_shapes"]

Arrays = tuple[Array, ...]
Residual = dict[str, Array]
Shapes = dict[str, tuple[int, ...]]


class Cell(Protocol):
    """What the time loop needs of a cell. A cell is hashable configuration: a frozen dataclass.

    Two attributes are optional. ``constants``: first words of parameters' names that start at a constant whatever the
    layer's `initializer`, such as ``{"gain": 1.0}``. ``forget_gate``: the row block of the biases which a scheme's
    `forget_bias` is for.
    """

    def parameter_shapes(self, input_size: int, hidden_size: int, bias: bool) -> Shapes:
        """Names, without suffix, and shapes of one direction's parameters; ``weight_ih`` is always one."""

    def state_sizes(self, hidden_size: int) -> tuple[int, ...]:
        """Rows of each array of the state; the first is the output."""

    def prepare(self, xp: Any, p: Params) -> Params:
        """Do once what all steps share. ``"Wx"`` (G * H, I) is the input weight, ``"b"`` its bias, if any."""

    def step(self, xp: Any, w: Params, z: Array, state: Arrays, drop: Array | None) -> tuple[Arrays, Residual]:
        """(state) -> (new state, residual). `drop` is a mask of h in the recurrent product, or None."""

    def step_backward(
        self, xp: Any, w: Params, residual: Residual, dstate: Arrays, drop: Array | None
    ) -> tuple[Arrays, Array, Residual]:
        """(cotangent of the new state) -> (cotangent of the old state, dz, what `parameter_gradients` needs).

        For every matrix of `w`, such as ``"Wh"``, its transpose is there too, as ``"Wh.T"``.
        """

    def parameter_gradients(self, xp: Any, dz: Array, h_before: Array, residuals: Any, emitted: Any) -> Params:
        """Gradients of all but ``weight_ih``, from stacks over time: dz (T, G * H, B), h_before (T, H, B).

        `residuals` and `emitted` are what the steps returned; `column` takes one of their arrays over all steps. All of
        them may be a block of the steps, in which case the gradients of the blocks are added.
        """


# ---------------------------------------------------------------------- for writing cells


def weight_shapes(rows: int, input_size: int, out_size: int, bias: bool) -> Shapes:
    """The two weights and, if any, the two biases, named as in torch."""
    shapes: Shapes = {"weight_ih": (rows, input_size), "weight_hh": (rows, out_size)}
    return shapes | {"bias_ih": (rows,), "bias_hh": (rows,)} if bias else shapes


def summed_outer(xp: Any, left: Array, right: Array) -> Array:
    """Sum over time and batch of ``left[t] @ right[t].T``: (T, M, B), (T, N, B) -> (M, N), as one product."""
    if leaves_sums(xp):  # and where the columns are laid side by side
        return xp.tensordot(left, right, axes=((0, 2), (0, 2)))
    return xp.matmul(columns_of(xp, left), columns_of(xp, right).T)


def summed(xp: Any, terms: Array) -> Array:
    """Sum over time and batch: (T, M, B) -> (M,)."""
    if leaves_sums(xp):
        return xp.sum(terms, axis=(0, 2))
    columns = columns_of(xp, terms)
    ones = xp.ones((columns.shape[1], 1), dtype=terms.dtype, device=device_of(terms))
    return xp.matmul(columns, ones)[:, 0]  # a product takes less time than a sum over two axes


def columns_of(xp: Any, a: Array) -> Array:
    """The columns of all steps: (T, M, B) -> (M, T * B)."""
    return xp.reshape(xp.permute_dims(a, (1, 0, 2)), (a.shape[1], -1))


def column(xp: Any, rows: Any, name: str) -> Array:
    """One array of every step's dict, stacked over time (T, ...)."""
    return stacked(xp, [row[name] for row in rows]) if isinstance(rows, list) else rows[name]


def dropped(h: Array, drop: Array | None) -> Array:
    """`h` as the recurrent product sees it."""
    return h if drop is None else h * drop


def summed_bias(p: Params) -> Params:
    """The two biases as one column, for cells that only see their sum."""
    return {"b": (p["bias_ih"] + p["bias_hh"])[:, None]} if "bias_ih" in p else {}


def clipped(xp: Any, a: Array, limit: float | None) -> tuple[Array, Array | None]:
    """`a` within [-limit, limit], and where it was inside, which is where a gradient passes."""
    if limit is None:
        return a, None
    return xp.clip(a, -limit, limit), xp.abs(a) < limit


def where_inside(xp: Any, da: Array, inside: Array | None) -> Array:
    """The cotangent of what `clipped` took."""
    return da if inside is None else xp.where(inside, da, xp.zeros_like(da))


def optional_residual(name: str, array: Array | None) -> Residual:
    """A dict of one array, or of none."""
    return {} if array is None else {name: array}
