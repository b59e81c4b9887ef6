"""A device is chosen by its name, and its arrays stay on it whatever the current device is."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np
import pytest

import portable_rnn as prnn
from portable_rnn.arrays import device_scope


@pytest.mark.parametrize(
    ("device", "number"),
    [(None, 0), ("cuda", 0), ("gpu", 0), ("cuda:0", 0), ("gpu:1", 1), ("cuda:1", 1), ("1", 1), (0, 0), (1, 1)],
)
def test_devices_by_name_and_number(device: Any, number: int) -> None:
    found = prnn.backend("cupy", device=device).device
    assert isinstance(found, cupy.cuda.Device)
    assert found.id == number
    assert prnn.backend("cupy", device=found).device == found
    assert cupy.cuda.Device().id == 0


@pytest.mark.parametrize(
    "device", ["moon:7", "cuda:7", "cuda:-1", "cuda:", "cuda:1.0", "cuda 1", "cpu", "", "-1", "١", -1, 7, True, 1.0, ()]
)
def test_other_devices_are_refused(device: Any) -> None:
    with pytest.raises(prnn.BackendError, match=r"can't use device .*: expected a ") as caught:
        prnn.backend("cupy", device=device)
    assert "\n" not in str(caught.value)


def test_backends_can_be_keys() -> None:
    one, same, other = (prnn.backend("cupy", device=k) for k in (1, 1, 0))
    assert one == same
    assert hash(one) == hash(same)
    assert {one: "one", other: "other"}[same] == "one"


def test_the_current_device_is_given_back_where_a_call_fails() -> None:
    layer = prnn.LSTM(2, 3)
    target = prnn.backend("cupy", device="cuda:1")
    with pytest.raises(prnn.InputError):
        layer.apply(layer.init(backend=target), prnn.asarray(np.ones((1, 2, 7)), target))
    assert cupy.cuda.Device().id == 0


def test_arrays_of_two_devices_are_refused() -> None:
    layer = prnn.LSTM(2, 3)
    params = layer.init(backend=prnn.backend("cupy", device=1))
    x = prnn.asarray(np.ones((1, 2, 2)), prnn.backend("cupy", device=0))
    with pytest.raises(prnn.BackendError, match="x is cupy float32 on <CUDA Device 0>"):
        layer.apply(params, x)


def test_a_scope_is_of_the_first_device_of_cupys() -> None:
    def current(*values: Any) -> int:
        with device_scope(*values):
            return int(cupy.cuda.Device().id)

    x = prnn.asarray(np.ones(2), prnn.backend("cupy", device=1))
    model = prnn.Model(prnn.LSTM(2, 3), backend=prnn.backend("cupy", device=1))
    for value in (x, model.backend, model, prnn.Stream(model), {"a": [None, x]}, (3, "text", x)):
        assert current(value) == 1
    assert current(np.ones(2), x) == 1  # sizes and constants are often NumPy's
    assert current() == current(3, None) == current(np.ones(2)) == 0


def test_a_model_moves_between_devices() -> None:
    model = prnn.Model(prnn.LSTM(2, 3), backend=prnn.backend("cupy", device=1), seed=0)
    moved = model.to("cupy", device="cuda:0")
    assert {p.device.id for p in model.params.values()} == {1}
    assert {p.device.id for p in moved.params.values()} == {0}
    x = np.ones((1, 4, 2))
    one, other = (prnn.to_numpy(m.predict(prnn.asarray(x, m.backend))) for m in (model, moved))
    np.testing.assert_array_equal(one, other)
