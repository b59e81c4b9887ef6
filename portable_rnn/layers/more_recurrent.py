"""More recurrent layers: layer-normalised LSTM and GRU, minGRU and minLSTM.

Their maths is in `cells/layer_norm.py` and `cells/minimal.py`; all else they share with the layers of `recurrent.py`.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import ClassVar

from ..arrays import Positive
from ..cells import Cell, LayerNormGRUCell, LayerNormLSTMCell, MinGRUCell, MinLSTMCell
from .recurrent import RecurrentLayer

__all__ = ["LayerNormGRU", "LayerNormLSTM", "MinGRU", "MinLSTM"]


@dataclass(frozen=True, repr=False)
class LayerNormLSTM(RecurrentLayer):
    """Long short-term memory with layer normalisation.

    ``a = gain_ih * LN(Wx @ x) + bias_ih + gain_hh * LN(Wh @ h) + bias_hh``, each product normalised over all 4 * H
    rows; ``c' = f * c + i * g``; ``h' = o * tanh(gain_c * LN(c') + bias_c)``.
    ``LN(a) = (a - mean(a)) / sqrt(var(a) + epsilon)``, for each sequence and step by itself.
    x (B, T, I) -> y (B, T, D * H); the state is the tuple (h, c), each (num_layers * D, B, H). Parameters: those of
    `LSTM`, and ``gain_ih_l0``, ``gain_hh_l0`` (4 * H,), ``gain_c_l0`` and ``bias_c_l0`` (H,). Gains start at 1 and
    biases at 0, whatever the initializer, as in `torch.nn.LayerNorm`.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, bidirectional, reverse, dropout, recurrent_dropout, zoneout,
    recompute_every, initializer
        As in `RecurrentLayer`.
    epsilon : float
        Added to the variance.

    References
    ----------
    Ba, Kiros and Hinton (2016), Layer normalization, arXiv:1607.06450, equations 20 to 22 of the supplement.

    Examples
    --------
    >>> import numpy as np, portable_rnn as prnn
    >>> layer = prnn.LayerNormLSTM(3, 5)
    >>> params = layer.init(seed=0)
    >>> params["gain_c_l0"].tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0]
    >>> y, (h, c) = layer.apply(params, np.ones((2, 7, 3), dtype="float32"), lengths=[7, 4])
    >>> y.shape, c.shape
    ((2, 7, 5), (1, 2, 5))
    """

    _: KW_ONLY
    epsilon: Positive = 1e-5

    @cached_property
    def cell(self) -> Cell:
        """The cell that every layer and direction runs."""
        return LayerNormLSTMCell(self.epsilon)


@dataclass(frozen=True, repr=False)
class LayerNormGRU(RecurrentLayer):
    """Gated recurrent unit with layer normalisation.

    With ``z = gain_ih * LN(Wx @ x) + bias_ih`` and ``m = gain_hh * LN(Wh @ h) + bias_hh``: ``r = sigmoid(z_r + m_r)``,
    ``u = sigmoid(z_u + m_u)``, ``n = tanh(z_n + r * m_n)``, ``h' = (1 - u) * n + u * h``. The 2 * H rows of r and u are
    normalised together, the H rows of n by themselves.
    x (B, T, I) -> y (B, T, D * H), state (num_layers * D, B, H). Parameters: those of `GRU`, gates in the order
    r, u, n, and ``gain_ih_l0``, ``gain_hh_l0`` (3 * H,). Gains start at 1 and biases at 0, whatever the initializer.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, bidirectional, reverse, dropout, recurrent_dropout, zoneout,
    recompute_every, initializer
        As in `RecurrentLayer`.
    epsilon : float
        Added to the variance.

    References
    ----------
    Ba, Kiros and Hinton (2016), Layer normalization, arXiv:1607.06450, equations 23 to 26 of the supplement. Their
    update gate is one minus this one, which is torch's.

    Examples
    --------
    >>> import numpy as np, portable_rnn as prnn
    >>> layer = prnn.LayerNormGRU(3, 5, bidirectional=True)
    >>> layer.apply(layer.init(seed=0), np.ones((2, 7, 3), dtype="float32"))[0].shape
    (2, 7, 10)
    """

    _: KW_ONLY
    epsilon: Positive = 1e-5

    @cached_property
    def cell(self) -> Cell:
        """The cell that every layer and direction runs."""
        return LayerNormGRUCell(self.epsilon)


@dataclass(frozen=True, repr=False)
class MinGRU(RecurrentLayer):
    """Minimal gated recurrent unit: a gate that sees the input only.

    ``u = sigmoid(Wx_u @ x + b_u)``, ``n = Wx_n @ x + b_n``, ``h' = (1 - u) * h + u * n``.
    x (B, T, I) -> y (B, T, D * H), state (num_layers * D, B, H). Parameters: ``weight_ih_l0`` (2 * H, I) and
    ``bias_ih_l0`` (2 * H,), rows in the order u, n. There is no product with h, so nothing for a recurrent dropout.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, bidirectional, reverse, dropout, zoneout, recompute_every, initializer
        As in `RecurrentLayer`.
    positive : bool
        ``n = g(Wx_n @ x + b_n)`` with g(a) = a + 1/2 where a >= 0, else sigmoid(a): the form which the paper runs in
        log space.

    References
    ----------
    Feng et al. (2024), Were RNNs all we needed?, arXiv:2410.01201, section 3.1.

    Examples
    --------
    >>> import numpy as np, portable_rnn as prnn
    >>> layer = prnn.MinGRU(3, 5)
    >>> {name: p.shape for name, p in layer.init(seed=0).items()}
    {'weight_ih_l0': (10, 3), 'bias_ih_l0': (10,)}
    """

    _: KW_ONLY
    positive: bool = False

    recurrent_dropout: ClassVar[float] = 0.0  # type: ignore[misc]  # not an option: there is no product with h

    @cached_property
    def cell(self) -> Cell:
        """The cell that every layer and direction runs."""
        return MinGRUCell(self.positive)


@dataclass(frozen=True, repr=False)
class MinLSTM(RecurrentLayer):
    """Minimal long short-term memory: two gates that see the input only, scaled to add up to 1.

    ``f, i = sigmoid(Wx @ x + b)``, ``n = Wx_n @ x + b_n``, ``h' = f / (f + i) * h + i / (f + i) * n``.
    x (B, T, I) -> y (B, T, D * H), state (num_layers * D, B, H): there is no second state c. Parameters:
    ``weight_ih_l0`` (3 * H, I) and ``bias_ih_l0`` (3 * H,), rows in the order f, i, n.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, bidirectional, reverse, dropout, zoneout, recompute_every, initializer
        As in `RecurrentLayer`. The paper starts from a positive forget bias: initializer="torch(forget_bias=1)".
    positive : bool
        As in `MinGRU`.

    References
    ----------
    Feng et al. (2024), Were RNNs all we needed?, arXiv:2410.01201, section 3.2.

    Examples
    --------
    >>> import numpy as np, portable_rnn as prnn
    >>> layer = prnn.MinLSTM(3, 5, 2)
    >>> y, state = layer.apply(layer.init(seed=0), np.ones((2, 7, 3), dtype="float32"))
    >>> y.shape, state.shape
    ((2, 7, 5), (2, 2, 5))
    """

    _: KW_ONLY
    positive: bool = False

    recurrent_dropout: ClassVar[float] = 0.0  # type: ignore[misc]  # not an option: there is no product with h

    @cached_property
    def cell(self) -> Cell:
        """The cell that every layer and direction runs."""
        return MinLSTMCell(self.positive)
