"""Torch modules for the layers that torch itself does not have. Importing this imports torch.

`Chain` is what `portable_rnn.to_torch` returns for a `Sequential`: its state dict has the names of the model's
parameters. All modules are batch-first and take whole sequences, without lengths.
"""

# mypy: disable-error-code="misc"

from __future__ import annotations

from typing import Any

import array_api_compat.torch as xp
import torch
from torch import nn

from ..cells import activation

__all__ = [
    "Chain",
    "Elementwise",
    "Ends",
    "Flip",
    "Last",
    "Max",
    "Mean",
    "Merge",
    "ReversedGRU",
    "ReversedLSTM",
    "ReversedRNN",
    "SharedDropout",
]


class Chain(nn.Sequential):
    """`torch.nn.Sequential` that hands on a recurrent module's outputs and drops its final state."""

    def forward(self, x: Any) -> Any:
        """(B, T, features) or integers (B, T) through every module."""
        for module in self:
            x = module(x)
            x = x[0] if isinstance(x, tuple) else x
        return x


class _Reversed:
    """Runs a recurrent module from the last step to the first; outputs stand at their own step."""

    def forward(self, x: Any, state: Any = None) -> Any:
        """As the module's own."""
        y, final = super().forward(x.flip(1), state)
        return y.flip(1), final


class ReversedRNN(_Reversed, nn.RNN):
    """Elman network from the end."""


class ReversedLSTM(_Reversed, nn.LSTM):
    """LSTM from the end."""


class ReversedGRU(_Reversed, nn.GRU):
    """GRU from the end."""


class Last(nn.Module):
    """(B, T, F) -> (B, F): the last step."""

    def forward(self, x: Any) -> Any:
        """`x` at its last step."""
        return x[:, -1]


class Mean(nn.Module):
    """(B, T, F) -> (B, F): the mean over time."""

    def forward(self, x: Any) -> Any:
        """The mean of `x` over time."""
        return x.mean(dim=1)


class Max(nn.Module):
    """(B, T, F) -> (B, F): the largest value over time; the gradient goes to one step."""

    def forward(self, x: Any) -> Any:
        """The maximum of `x` over time."""
        return x.max(dim=1).values


class Flip(nn.Module):
    """The steps in reversed order."""

    def forward(self, x: Any) -> Any:
        """`x` with time reversed."""
        return x.flip(1)


class Ends(nn.Module):
    """(B, T, 2 * H) -> (B, 2 * H): the first half at the last step, the second at the first."""

    def forward(self, x: Any) -> Any:
        """Where each direction ends."""
        half = x.shape[-1] // 2
        return torch.cat([x[:, -1, :half], x[:, 0, half:]], dim=-1)


class Merge(nn.Module):
    """The two halves of the features as one."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode

    def forward(self, x: Any) -> Any:
        """Sum, product or mean of the halves."""
        left, right = x.chunk(2, dim=-1)
        if self.mode == "mul":
            return left * right
        return left + right if self.mode == "sum" else (left + right) / 2

    def extra_repr(self) -> str:
        """The mode."""
        return repr(self.mode)


class SharedDropout(nn.Module):
    """Dropout with one mask for all steps of a sequence."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Any) -> Any:
        """`x` with whole features dropped, in training."""
        return x * nn.functional.dropout(torch.ones_like(x[:, :1]), self.p, self.training)

    def extra_repr(self) -> str:
        """The probability."""
        return f"p={self.p}"


class Elementwise(nn.Module):
    """An activation of `portable_rnn.activations` by its name."""

    def __init__(self, function: str) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Any:
        """``f(x)``; torch differentiates it."""
        return activation(self.function).forward(xp, x)

    def extra_repr(self) -> str:
        """The name."""
        return repr(self.function)
