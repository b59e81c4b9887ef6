"""Model files from one format to another, the passport as text, and the two commands of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import portable_rnn as prnn
from portable_rnn.cli import main
from portable_rnn.interop.convert import convert, describe
from portable_rnn.layers import Activation

NETWORK = prnn.Sequential(prnn.GRU(3, 4), prnn.Last(), prnn.Linear(4, 2))


def model_file(folder: Path, network: prnn.Layer = NETWORK) -> Path:
    """A saved model."""
    path = folder / "ours.safetensors"
    prnn.Model(network, seed=3).save(path)
    return path


def same_outputs(left: prnn.Model, right: prnn.Model) -> None:
    x = np.random.default_rng(0).standard_normal((2, 5, 3)).astype("float32")
    np.testing.assert_allclose(left.predict(x), right.predict(x), atol=1e-6)


def test_a_state_dict_becomes_a_model(tmp_path: Path) -> None:
    source = model_file(tmp_path)
    plain = safetensors.numpy.load_file(source)  # without the passport
    safetensors.numpy.save_file(plain, tmp_path / "plain.safetensors")
    with pytest.raises(prnn.InputError, match="pass pooling"):
        convert(tmp_path / "plain.safetensors", tmp_path / "back.safetensors")
    assert not (tmp_path / "back.safetensors").exists()
    convert(tmp_path / "plain.safetensors", tmp_path / "back.safetensors", pooling="last")
    back = prnn.load(tmp_path / "back.safetensors")
    assert back.network == NETWORK
    assert back.metadata["source_file"] == "plain.safetensors"
    same_outputs(back, prnn.load(source))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".onnx"])
def test_there_and_back(tmp_path: Path, suffix: str) -> None:
    needed = "onnx" if suffix == ".onnx" else "torch"
    pytest.importorskip(needed, reason=f"{needed} is not installed: its files can't be written")
    source, other, back = model_file(tmp_path), tmp_path / f"other{suffix}", tmp_path / "back.safetensors"
    convert(source, other)
    convert(other, back, pooling="auto" if suffix == ".onnx" else "last")
    assert prnn.load(back).network == NETWORK
    same_outputs(prnn.load(back), prnn.load(source))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([source.name, other.name, back.name])


def test_there_and_back_by_keras(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed: Keras runs on it here")
    import os

    os.environ.setdefault("KERAS_BACKEND", "torch")
    pytest.importorskip("keras", reason="Keras is not installed: its files can't be written")
    source, other, back = model_file(tmp_path), tmp_path / "m.keras", tmp_path / "back.safetensors"
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)  # Keras reads its weights so
        convert(source, other)
        convert(other, back)
    assert prnn.load(back).network == NETWORK
    same_outputs(prnn.load(back), prnn.load(source))
    assert "source: keras" in describe(back)


def test_torch_writes_a_plain_state_dict(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: its files can't be written")
    convert(model_file(tmp_path, prnn.LSTM(2, 3)), tmp_path / "m.pt")
    torch.nn.LSTM(2, 3).load_state_dict(torch.load(tmp_path / "m.pt", weights_only=True))


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (("a.h5", "b.safetensors"), {}, "unknown suffix"),
        (("a.safetensors", "b.txt"), {}, "unknown suffix"),
        (("a.safetensors", "a.safetensors"), {}, "over itself"),
        (("a.safetensors", "b.safetensors"), {}, "no file"),
        (("a.keras", "b.safetensors"), {"pooling": "last"}, "says itself"),
        (("a.onnx", "b.safetensors"), {"order": ["x"]}, "says itself"),
    ],
)
def test_what_can_not_be_converted_is_refused(
    tmp_path: Path, names: tuple[str, str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(prnn.InputError, match=message):
        convert(tmp_path / names[0], tmp_path / names[1], **options)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed: its files can't be written")
    source = model_file(tmp_path, prnn.LSTM(2, 3, peepholes=True))
    (tmp_path / "m.pt").write_bytes(b"old")
    with pytest.raises(prnn.InputError, match="no peepholes"):
        convert(source, tmp_path / "m.pt")
    assert (tmp_path / "m.pt").read_bytes() == b"old"
    with pytest.raises(prnn.InputError, match="can't write"):
        convert(model_file(tmp_path), tmp_path / "nowhere" / "m.pt")


def test_the_passport_as_text(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed: it is the source here")
    import torch

    model = prnn.from_torch(torch.nn.GRU(3, 4, bias=False))
    model.metadata["author"] = "somebody"
    model.save(tmp_path / "m.safetensors")
    text = describe(tmp_path / "m.safetensors")
    for line in (
        "network: 84 parameters of float32",
        "  0: GRU(3, 4, bias=False)",
        f"written by portable_rnn: {prnn.__version__}",
        "GRU variant: reset_after (torch, cuDNN, Keras 3)",
        "source: torch",
        f"source version: {torch.__version__}",
        "source type: GRU",
        "author: somebody",
    ):
        assert line in text.splitlines(), line
    assert "biases: two biases" in text
    assert "gate order: LSTM i f g o, GRU r z n, peephole i f o" in text
    assert "conversion check: outputs equal" in text


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = {"rnn.weight_ih_l0": np.ones((4, 3)), "rnn.weight_hh_l0": np.ones((4, 4)), "head.weight": np.ones((2, 4))}
    plain = {name: value.astype("float32") for name, value in plain.items()} | {"head.bias": np.ones(2, "float32")}
    source, target = str(tmp_path / "plain.safetensors"), str(tmp_path / "m.safetensors")
    safetensors.numpy.save_file(plain, source)
    words = ["convert", source, target, "--nonlinearity", "relu", "--order", "rnn,head"]
    assert main([*words, "--pooling", "none"]) == 0
    assert "RNN(3, 4, bias=False, nonlinearity='relu'), Linear(4, 2)" in capsys.readouterr().out
    assert main([*words, "--pooling", "mean"]) == 0
    assert "Mean()" in capsys.readouterr().out
    assert main(["info", target]) == 0
    assert "  1: Mean()" in capsys.readouterr().out
    assert main(words) == 2
    assert "pass pooling=None" in capsys.readouterr().err
    assert main(["info", source]) == 2
    assert "not a portable_rnn model" in capsys.readouterr().err


def test_the_command_line_asks_what_stands_between(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"0.weight": (4, 3), "2.weight": (5, 4), "4.weight": (2, 5)}
    plain = {name: np.ones(shape, "float32") for name, shape in sizes.items()}
    plain |= {name.replace("weight", "bias"): np.ones(shape[0], "float32") for name, shape in sizes.items()}
    source, target = str(tmp_path / "plain.safetensors"), str(tmp_path / "m.safetensors")
    safetensors.numpy.save_file(plain, source)
    assert main(["convert", source, target]) == 2
    assert "'1' between '0' and '2'; '3' between '2' and '4'" in capsys.readouterr().err
    for given, expected in (
        ("tanh", ["tanh", "tanh"]),
        ("relu, none", ["relu"]),
        ("hard_sigmoid(0.2, 0.5),softsign", ["hard_sigmoid(0.2, 0.5)", "softsign"]),
    ):
        assert main(["convert", source, target, "--activations", given]) == 0
        layers: Any = prnn.load(target).network
        assert [layer.function for layer in layers.layers if isinstance(layer, Activation)] == expected
    assert main(["convert", source, target, "--activations", "relu,relu,relu"]) == 2
    assert "a list of 2" in capsys.readouterr().err
