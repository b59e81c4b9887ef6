"""Cells and layers of one's own in model files: named by their module path, found only where they are registered."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import portable_rnn as prnn
from portable_rnn.layers import Wrapper
from portable_rnn.layers.registry import LIBRARY
from portable_rnn.models import network_from_config, network_to_config

CELLS = {name: cls for name, cls in LIBRARY.items() if not issubclass(cls, prnn.Layer)}
X = np.random.default_rng(0).standard_normal((2, 4, 2), dtype="float32")


@prnn.register
@dataclasses.dataclass(frozen=True)
class LeakyCell(prnn.cells.ElmanCell):
    """A cell of one's own."""

    leak: float = 0.1


@dataclasses.dataclass(frozen=True)
class ForgottenCell(prnn.cells.ElmanCell):
    """One that nobody registered."""


@prnn.register
@dataclasses.dataclass(frozen=True, repr=False)
class Residual(Wrapper):
    """A layer of one's own, with a layer inside."""

    scale: float = 1.0

    def forward(self, params: Any, x: Any, state: Any, marks: Any, masks: Any) -> Any:
        y, final, residuals = self.layer.forward(params, x, state, marks, masks)
        return x + self.scale * y, final, residuals

    def backward(self, params: Any, residuals: Any, dy: Any, dstate: Any) -> Any:
        grads, dx, dinitial = self.layer.backward(params, residuals, self.scale * dy, dstate)
        return grads, dx + dy, dinitial


NETWORKS = {
    **{name: prnn.Recurrent(cls(), 2, 3) for name, cls in CELLS.items()},
    "own cell": prnn.Sequential(prnn.Recurrent(LeakyCell("relu", leak=0.5), 2, 3, 2, zoneout=0.25), prnn.Linear(3, 2)),
    "own layer": prnn.Masked(prnn.Sequential(Residual(prnn.Recurrent(LeakyCell(), 2, 2), 0.5)), 7.0),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_any_cell_comes_back(name: str, tmp_path: Path) -> None:
    model = prnn.Model(NETWORKS[name])
    model.save(tmp_path / "m.safetensors")
    again = prnn.load(tmp_path / "m.safetensors")
    assert again.network == model.network
    np.testing.assert_array_equal(again.predict(X), model.predict(X))


def test_the_file_names_a_class_by_its_module_path() -> None:
    config = network_to_config(prnn.Recurrent(LeakyCell(), 2, 3))
    assert config["cell"] == {"type": f"{__name__}:LeakyCell", "nonlinearity": "tanh", "clip": None, "leak": 0.1}
    assert network_to_config(prnn.Recurrent(prnn.cells.GRUCell(), 2, 3))["cell"]["type"] == "GRUCell"


def test_what_is_not_registered_is_refused_with_the_line_that_registers_it(tmp_path: Path) -> None:
    with pytest.raises(prnn.InputError, match=r"got a ForgottenCell: call prnn.register\(ForgottenCell\) before"):
        prnn.Model(prnn.Recurrent(ForgottenCell(), 2, 3)).save(tmp_path / "m.safetensors")
    config = network_to_config(prnn.Recurrent(LeakyCell(), 2, 3))
    config["cell"]["type"] = "somebodys_cells:ForgottenCell"
    with pytest.raises(prnn.InputError, match=r"import somebodys_cells\S* and call prnn.register\(ForgottenCell\)"):
        network_from_config(config)


def test_a_class_that_moved_keeps_its_old_name_in_files() -> None:
    config = network_to_config(prnn.Recurrent(LeakyCell(leak=0.5), 2, 3))
    config["cell"]["type"] = "old_place:LeakyCell"
    prnn.register(LeakyCell, name="old_place:LeakyCell")
    network = network_from_config(config)
    assert network == prnn.Recurrent(LeakyCell(leak=0.5), 2, 3)
    assert network_to_config(network)["cell"]["type"] == f"{__name__}:LeakyCell"


NAMES = ["this:s", "os:system", "subprocess:Popen", "builtins:eval", "antigravity:", ":", "a:b\x1b[2J"]
NAMES += ["x:" + "y" * 10**6]
REFUSE = """
import json, sys
import portable_rnn as prnn
from portable_rnn.models import network_from_config
names = json.load(sys.stdin)
before = set(sys.modules)
for name in names:
    try:
        network_from_config({"type": "Recurrent", "cell": {"type": name}, "input_size": 1, "hidden_size": 1})
    except prnn.InputError as error:
        assert str(error).isprintable() and len(str(error)) < 500, error
        assert set(sys.modules) == before, set(sys.modules) - before
        print("refused")
"""


def test_a_file_causes_no_import() -> None:
    """In a process of its own, where the modules are not imported yet."""
    names = json.dumps(NAMES)
    done = subprocess.run([sys.executable, "-c", REFUSE], input=names, capture_output=True, text=True, check=False)
    assert done.stdout == "refused\n" * len(NAMES), done.stderr


@pytest.mark.parametrize("cls", [int, object, ForgottenCell(), "LeakyCell", type("Plain", (prnn.cells.ElmanCell,), {})])
def test_only_dataclasses_that_are_layers_or_cells_are_registered(cls: Any) -> None:
    if dataclasses.is_dataclass(cls) and isinstance(cls, type):
        assert prnn.register(cls) is cls  # it inherits the fields
        return
    with pytest.raises(prnn.InputError, match="cls: expected a dataclass that is a layer or a cell"):
        prnn.register(cls)


def test_a_name_of_the_library_stays_its_own() -> None:
    with pytest.raises(prnn.InputError, match="name: expected a name that the library has no class for, got 'LSTM'"):
        prnn.register(LeakyCell, name="LSTM")


def test_a_field_that_json_cannot_hold_is_named() -> None:
    @prnn.register
    @dataclasses.dataclass(frozen=True)
    class Odd(prnn.cells.ElmanCell):
        extra: Any = None

    with pytest.raises(prnn.InputError, match="extra: expected a number, a text, None or a registered object"):
        network_to_config(prnn.Recurrent(Odd(extra=object), 2, 3))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "ElmanCell"}, "unknown layer 'ElmanCell'"),
        ({"type": "Masked", "layer": {"type": "ElmanCell"}}, "network.layer: expected a known layer"),
        ({"type": "Recurrent", "cell": {"type": "Last"}, "input_size": 1, "hidden_size": 1}, "unknown cell 'Last'"),
        ({"type": "Recurrent", "cell": "ElmanCell", "input_size": 1, "hidden_size": 1}, "expected a known cell"),
    ],
)
def test_a_layer_is_no_cell_and_a_cell_no_layer(config: Any, message: str) -> None:
    with pytest.raises(prnn.InputError, match=message):
        network_from_config(config)
