"""Arrays may stand in memory in any order: kernels of our own read elements by their number."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np
import pytest
from cases import RECURRENT, hard_case
from trees import mapped, relative_error

import portable_rnn as prnn


def spread(x: np.ndarray[Any, Any]) -> Any:
    """The same numbers on the device, as every second element along each axis of a larger array, in Fortran's order."""
    wide = cupy.full([2 * size for size in x.shape], cupy.nan, x.dtype, order="F")
    view = wide[(slice(None, None, 2),) * x.ndim]
    view[...] = cupy.asarray(x)
    assert x.size < 2 or not view.flags.c_contiguous
    return view


def outcome(layer: prnn.Layer, inputs: dict[str, Any], dy: Any) -> Any:
    y, state, pullback = layer.vjp(**inputs)
    return mapped(prnn.to_numpy, (y, state, *pullback(dy, state)))


@pytest.mark.parametrize("name", RECURRENT)
def test_views_give_the_numbers_of_arrays_in_order(name: str) -> None:
    case = hard_case(name)
    expected = outcome(case.layer, case.inputs, case.dy)
    inputs = {key: value if key == "lengths" else mapped(spread, value) for key, value in case.inputs.items()}
    assert relative_error(outcome(case.layer, inputs, spread(case.dy)), expected) < 1e-11
