"""Weights from torch and to torch: values and gradients equal torch's own, round trips, files, refusals."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import portable_rnn as prnn
from portable_rnn.layers import Activation, Ends, Flip, Masked, Merge, SharedDropout, Softmax

torch = pytest.importorskip("torch", reason="torch is not installed: nothing to convert from")
nn = torch.nn
safetensors_torch = pytest.importorskip("safetensors.torch")

WIDE = {"dtype": torch.float64}


def check_gradients(
    module: Any, model: prnn.Model, x: np.ndarray, *, time_first: bool = False, tolerance: float = 1e-10
) -> None:
    """Outputs, and the gradients of a random projection of them, of module and model; 1e-10 of the largest."""
    module = module.eval()
    tensor = torch.tensor(x.swapaxes(0, 1) if time_first else x)
    if tensor.is_floating_point():
        tensor.requires_grad_()
    y = module(tensor)
    y = y[0] if isinstance(y, tuple) else y
    y = y.transpose(0, 1) if time_first and y.ndim == 3 else y
    ours, _, pullback = model.network.vjp(model.params, x)
    np.testing.assert_allclose(ours, y.detach().numpy(), rtol=1e-10, atol=1e-12)
    dy = np.random.default_rng(0).standard_normal(ours.shape)
    y.backward(torch.tensor(dy))
    gradients, dx, _ = pullback(dy)
    expected = [p.grad.numpy() for p in module.parameters()]
    assert len(expected) == len(gradients)
    for theirs, (name, gradient) in zip(expected, gradients.items(), strict=True):
        scale = max(1.0, float(np.max(np.abs(theirs))))
        np.testing.assert_allclose(gradient, theirs, rtol=0, atol=tolerance * scale, err_msg=name)
    if dx is not None:
        theirs = tensor.grad.numpy().swapaxes(0, 1) if time_first else tensor.grad.numpy()
        np.testing.assert_allclose(dx, theirs, rtol=0, atol=tolerance * max(1.0, float(np.max(np.abs(theirs)))))


# ---------------------------------------------------------------------- torch's recurrent modules

KINDS = ("RNN", "LSTM", "GRU")


@st.composite
def recurrent_modules(draw: st.DrawFn) -> Any:
    """Any option of any kind, any small size."""
    kind = draw(st.sampled_from(KINDS))
    hidden = draw(st.integers(2, 5))
    layers = draw(st.integers(1, 3))
    options: dict[str, Any] = {}
    if kind == "RNN":
        options["nonlinearity"] = draw(st.sampled_from(["tanh", "relu"]))
    if kind == "LSTM":
        options["proj_size"] = draw(st.integers(0, hidden - 1))
    torch.manual_seed(draw(st.integers(0, 1000)))
    return getattr(nn, kind)(
        draw(st.integers(1, 4)),
        hidden,
        layers,
        bias=draw(st.booleans()),
        batch_first=draw(st.booleans()),
        dropout=0.3 if layers > 1 and draw(st.booleans()) else 0.0,
        bidirectional=draw(st.booleans()),
        **options,
        **WIDE,
    )


@settings(max_examples=60)
@given(recurrent_modules(), st.integers(1, 4), st.integers(1, 6))
def test_recurrent_modules_keep_outputs_and_gradients(module: Any, batch: int, steps: int) -> None:
    model = prnn.from_torch(module)
    assert model.backend.dtype_name == "float64"
    assert model.network.dropout == module.dropout
    x = np.random.default_rng(1).standard_normal((batch, steps, module.input_size))
    check_gradients(module, model, x, time_first=not module.batch_first)


@settings(max_examples=40)
@given(recurrent_modules(), st.booleans())
def test_torch_to_ours_to_torch_is_bit_for_bit(module: Any, wide: bool) -> None:
    module = module if wide else module.float()
    model = prnn.from_torch(module)
    again = prnn.to_torch(model)
    assert type(again) is type(module)
    for option in ("input_size", "hidden_size", "num_layers", "bias", "dropout", "bidirectional", "proj_size", "mode"):
        assert getattr(again, option) == getattr(module, option)
    assert again.batch_first
    theirs, back = module.state_dict(), again.state_dict()
    assert list(theirs) == list(back)
    for name, value in theirs.items():
        assert value.dtype == back[name].dtype
        assert torch.equal(value, back[name])
    for name, value in prnn.from_torch(again).params.items():
        np.testing.assert_array_equal(value, model.params[name])


@pytest.mark.parametrize("kind", ["RNNCell", "LSTMCell", "GRUCell"])
@pytest.mark.parametrize("bias", [True, False])
def test_cells(kind: str, bias: bool) -> None:
    cell = getattr(nn, kind)(3, 4, bias=bias, **WIDE)
    model = prnn.from_torch(cell)
    assert type(model.network).__name__ == kind.removesuffix("Cell")
    x = np.random.default_rng(0).standard_normal((2, 5, 3))
    state = None
    for t in range(5):
        state = cell(torch.tensor(x[:, t]), state)
    h = state[0] if isinstance(state, tuple) else state
    np.testing.assert_allclose(model.predict(x)[:, -1], h.detach().numpy(), atol=1e-13)


def test_float32_and_half_precision_become_float32_and_backends_are_chosen() -> None:
    half = nn.GRU(2, 3).to(torch.bfloat16)
    model = prnn.from_torch(half)
    assert model.backend.dtype_name == "float32"
    np.testing.assert_array_equal(model.params["weight_ih_l0"], half.weight_ih_l0.float().detach().numpy())
    on_torch = prnn.from_torch(nn.GRU(2, 3), backend="torch", dtype="float64")
    assert isinstance(on_torch.params["weight_ih_l0"], torch.Tensor)
    assert on_torch.params["weight_ih_l0"].dtype == torch.float64


def test_the_model_does_not_share_memory_with_the_module() -> None:
    module = nn.LSTM(2, 3)
    model = prnn.from_torch(module, backend="torch")
    before = model.params["weight_ih_l0"].clone()
    with torch.no_grad():
        module.weight_ih_l0 += 1.0
    assert torch.equal(model.params["weight_ih_l0"], before)
    again = prnn.to_torch(model)
    with torch.no_grad():
        again.weight_ih_l0 += 1.0
    assert torch.equal(model.params["weight_ih_l0"], before)


# ---------------------------------------------------------------------- modules of modules


class Classifier(nn.Module):
    """Embedding, recurrent module, a pooling, and a head, as people write them."""

    def __init__(self, pooling: str | None, *, batch_first: bool = True, bidirectional: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 4)
        self.rnn = nn.LSTM(4, 3, num_layers=2, batch_first=batch_first, bidirectional=bidirectional, dropout=0.2)
        width = 6 if bidirectional else 3
        self.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(width, 5), nn.ReLU(), nn.Identity(), nn.Linear(5, 2))
        self.pooling = pooling

    def forward(self, x: Any) -> Any:
        """x (B, T) or, time first, (T, B)."""
        time = 1 if self.rnn.batch_first else 0
        zeros = torch.zeros(2 * (1 + self.rnn.bidirectional), x.shape[1 - time], 3)
        y, (h, _) = self.rnn(self.embed(x), (zeros, zeros))
        if self.pooling == "last":
            y = y.select(time, -1)
        elif self.pooling == "ends":
            y = torch.cat([h[-2], h[-1]], dim=-1)
        elif self.pooling == "mean":
            y = y.mean(dim=time)
        elif self.pooling == "max":
            y = y.max(dim=time).values
        return self.head(y)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("pooling", [None, "last", "ends", "mean", "max"])
def test_a_module_is_the_chain_of_its_children_with_the_pooling_that_fits(
    pooling: str | None, batch_first: bool
) -> None:
    torch.manual_seed(0)
    module = Classifier(pooling, batch_first=batch_first).double()
    model = prnn.from_torch(module)
    kinds = [type(layer).__name__ for layer in model.network.layers]
    pooled = [] if pooling is None else [pooling.capitalize()]
    assert kinds == ["Embedding", "LSTM", *pooled, "Dropout", "Linear", "Activation", "Linear"]
    torch.set_default_dtype(torch.float64)  # its own zeros
    try:
        check_gradients(module, model, np.array([[1, 4, 4, 0, 9], [3, 2, 1, 0, 10]]), time_first=not batch_first)
    finally:
        torch.set_default_dtype(torch.float32)
    assert "time" in model.metadata.get("conversion_notes", "") or batch_first
    chosen = prnn.from_torch(module, pooling=pooling)
    assert chosen.network == model.network
    wrong = "max" if pooling != "max" else "mean"
    with pytest.raises(prnn.ConversionError, match=r"largest relative difference is .*\(y"):
        prnn.from_torch(module, pooling=wrong)


def test_a_plain_sequential_and_its_activations() -> None:
    torch.manual_seed(0)
    activations = [
        nn.Tanh(), nn.Sigmoid(), nn.ReLU(), nn.Softsign(), nn.Softplus(), nn.ELU(0.7), nn.LeakyReLU(0.2),
        nn.Hardsigmoid(), nn.Threshold(0.1, 0.0), nn.Softmax(dim=-1), nn.LogSoftmax(dim=-1),
    ]  # fmt: skip
    for activation in activations:
        module = nn.Sequential(nn.Linear(3, 4), activation, nn.ModuleList([nn.Linear(4, 2)])[0]).double()
        model = prnn.from_torch(module)
        assert len(model.network.layers) == 3
        # torch's own backward of hardsigmoid has the sixth in float32
        tolerance = 1e-7 if isinstance(activation, nn.Hardsigmoid) else 1e-10
        check_gradients(module, model, np.random.default_rng(0).standard_normal((2, 5, 3)), tolerance=tolerance)
        again = prnn.from_torch(prnn.to_torch(model))
        assert again.network == model.network


def test_metadata_says_where_it_came_from_and_survives_a_file(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Embedding(5, 3, padding_idx=0), nn.Linear(3, 2, bias=False))
    model = prnn.from_torch(module)
    assert model.metadata["source_framework"] == "torch"
    assert model.metadata["source_version"] == str(torch.__version__)
    assert model.metadata["source_type"] == "Sequential"
    assert "largest relative difference" in model.metadata["conversion_check"]
    assert "padding_idx=0" in model.metadata["conversion_notes"]
    model.save(tmp_path / "m.safetensors")
    assert prnn.load(tmp_path / "m.safetensors").metadata == model.metadata


# ---------------------------------------------------------------------- what is refused


class Doubling(nn.Module):
    """Does more than call its children."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.second = nn.Linear(4, 2)

    def forward(self, x: Any) -> Any:
        """Twice what the first gives goes into the second."""
        return self.second(2 * self.first(x))


class Unused(Doubling):
    """Never calls one of its children."""

    def forward(self, x: Any) -> Any:
        """The first is left out."""
        return self.second(torch.cat([x, x[..., :1]], dim=-1))


class Own(nn.Module):
    """Has a parameter beside its children's."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.inner = nn.Linear(2, 2)


def _weight_normed() -> Any:
    return torch.nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.LayerNorm(3), "torch LayerNorm can't be converted"),
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.GELU()), "child '1': torch GELU"),
        (lambda: nn.Transformer(4, 2, 1, 1, 4, batch_first=True), "Transformer can't be converted"),
        (lambda: nn.Sequential(), "can't be converted|no layers"),
        (lambda: nn.Embedding(3, 2, max_norm=1.0), "max_norm"),
        (lambda: nn.Softmax(dim=0), "dim=-1"),
        (lambda: Own(), r"parameters of its own \(scale\)"),
        (lambda: _weight_normed(), "parametrizations"),
        (lambda: Doubling(), "the first child that is given another input than in a chain is 'second'"),
        (lambda: Unused(), "never calls 'first'"),
        (lambda: 3, "got int"),
    ],
)
def test_what_can_not_be_converted_is_refused(make: Any, message: str) -> None:
    with pytest.raises(prnn.InputError, match=message):
        prnn.from_torch(make())


@pytest.mark.parametrize("kind", KINDS)
def test_swapped_gates_are_found(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from portable_rnn.interop import torch_layers as interop

    honest = interop._host_params

    def swapped(*arguments: Any) -> Any:
        params = honest(*arguments)
        return {name: value[::-1].copy() for name, value in params.items()}

    monkeypatch.setattr(interop, "_host_params", swapped)
    with pytest.raises(prnn.ConversionError, match=rf"'{kind}' with 1 time steps .* relative difference is"):
        prnn.from_torch(getattr(nn, kind)(2, 3))


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(prnn.MissingDependencyError, match=r"portable-rnn\[torch\]"):
        prnn.from_torch(object())
    with pytest.raises(prnn.MissingDependencyError, match=r"portable-rnn\[torch\]"):
        prnn.to_torch(prnn.Model(prnn.Last()))


# ---------------------------------------------------------------------- state dicts and files


def expected_classifier() -> prnn.Layer:
    """`Classifier("last")` without its dropout."""
    layers = [prnn.LSTM(4, 3, 2, bidirectional=True), prnn.Last(), prnn.Linear(6, 5), Activation("relu")]
    return prnn.Sequential(prnn.Embedding(11, 4), *layers, prnn.Linear(5, 2))


def test_a_state_dict_says_what_it_belongs_to() -> None:
    module = Classifier("last")
    state_dict = module.state_dict()
    with pytest.raises(prnn.InputError, match="pass pooling=None, 'last'"):
        prnn.from_torch(state_dict)
    with pytest.raises(prnn.InputError, match=r"'head\.2', 'head\.3' between 'head\.1' and 'head\.4'"):
        prnn.from_torch(state_dict, pooling="last")
    model = prnn.from_torch(state_dict, pooling="last", activations=["none", "relu"])
    assert model.network == expected_classifier()
    for name, value in zip(model.params, state_dict.values(), strict=True):
        np.testing.assert_array_equal(model.params[name], value.numpy())
    assert "can't be run" in model.metadata["conversion_check"]


@settings(max_examples=30)
@given(recurrent_modules())
def test_a_recurrent_state_dict_is_read_whole(module: Any) -> None:
    nonlinearity = getattr(module, "nonlinearity", None)
    model = prnn.from_torch(module.state_dict(), nonlinearity=nonlinearity)
    expected = prnn.from_torch(module)
    assert model.network.parameter_shapes() == expected.network.parameter_shapes()
    x = np.random.default_rng(0).standard_normal((2, 3, module.input_size))
    np.testing.assert_array_equal(model.predict(x), expected.predict(x))


def test_what_a_state_dict_leaves_open_is_asked_for() -> None:
    with pytest.raises(prnn.InputError, match="nonlinearity='tanh' or 'relu'"):
        prnn.from_torch(nn.RNN(2, 3).state_dict())
    assert prnn.from_torch(nn.RNNCell(2, 3).state_dict(), nonlinearity="relu").network.nonlinearity == "relu"
    with pytest.raises(prnn.InputError, match="pass network="):
        prnn.from_torch(nn.Linear(3, 3, bias=False).state_dict())
    embedding = nn.Embedding(5, 3)
    model = prnn.from_torch(embedding.state_dict(), network=prnn.Embedding(5, 3))
    np.testing.assert_array_equal(model.params["weight"], embedding.weight.detach().numpy())
    with pytest.raises(prnn.InputError, match="the network wants"):
        prnn.from_torch(embedding.state_dict(), network=prnn.Linear(5, 3))
    with pytest.raises(prnn.InputError, match="has 1 layers with parameters, the state dict 2"):
        prnn.from_torch(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)).state_dict(), network=prnn.Linear(1, 1))


def test_a_network_for_a_state_dict_under_other_names() -> None:
    module = Classifier("mean").double()
    model = prnn.from_torch(module)
    same = prnn.from_torch(module.state_dict(), network=model.network)
    x = np.array([[1, 2, 3]])
    np.testing.assert_array_equal(same.predict(x), model.predict(x))
    # peepholes are no torch option, but a state dict may well hold them
    layer = prnn.LSTM(2, 3, peepholes=True)
    params = {f"cell.{name}": torch.tensor(value) for name, value in layer.init().items()}
    assert prnn.from_torch(params, network=layer).network == layer


@pytest.mark.parametrize(
    ("state_dict", "message"),
    [
        ({}, "empty"),
        ({"norm.weight": np.ones(3), "norm.bias": np.ones(3)}, r"'norm' of the state dict has weight \(3,\)"),
        ({"a.weight": [[1.0]]}, "tensor or an array"),
        ({"a.weight": np.ones((2, 2), dtype="int64")}, "floating"),
        ({"a.weight_ih_l0": np.ones((6, 2))}, "needs a weight_hh_l0"),
        ({"a.weight_ih_l0": np.ones((7, 2)), "a.weight_hh_l0": np.ones((7, 3))}, "7 rows of gates"),
        ({"a.weight_ih_l0": np.ones((12, 2)), "a.weight_hh_l0": np.ones((9, 3))}, "looks like LSTM"),
    ],
)
def test_a_state_dict_of_nothing_known_is_refused(state_dict: Any, message: str) -> None:
    with pytest.raises(prnn.InputError, match=message):
        prnn.from_torch(state_dict)


def test_files(tmp_path: Path) -> None:
    module = Classifier("last")
    answers: Any = {"pooling": "last", "activations": {"head.0": "dropout", "head.2": "relu"}}
    expected = prnn.from_torch(module.state_dict(), **answers)
    assert expected.network == expected_classifier()
    torch.save(module.state_dict(), tmp_path / "m.pt")
    torch.save({"state_dict": module.state_dict(), "epoch": 3}, tmp_path / "wrapped.pth")
    safetensors_torch.save_file(module.state_dict(), tmp_path / "m.safetensors")
    for name in ("m.pt", "wrapped.pth", "m.safetensors"):
        model = prnn.from_torch(tmp_path / name, **answers)
        assert model.network == expected.network, name
        for key, value in expected.params.items():
            np.testing.assert_array_equal(model.params[key], value)


def test_a_file_without_order_is_put_in_order_or_the_order_is_asked_for(tmp_path: Path) -> None:
    module = nn.ModuleDict({"z": nn.Linear(3, 3), "a": nn.Linear(3, 3)})
    safetensors_torch.save_file(module.state_dict(), tmp_path / "m.safetensors")
    with pytest.raises(prnn.InputError, match=r"order=\('a', 'z'\)"):
        prnn.from_torch(tmp_path / "m.safetensors")
    model = prnn.from_torch(tmp_path / "m.safetensors", order=("z", "a"), activations="tanh")
    np.testing.assert_array_equal(model.params["0.weight"], module["z"].weight.detach().numpy())
    with pytest.raises(prnn.InputError, match="name every layer once"):
        prnn.from_torch(tmp_path / "m.safetensors", order=("z",))
    long = nn.Sequential(*(nn.Linear(2, 2) for _ in range(11)))
    safetensors_torch.save_file(long.state_dict(), tmp_path / "long.safetensors")
    model = prnn.from_torch(tmp_path / "long.safetensors", activations="none")
    np.testing.assert_array_equal(model.params["10.weight"], long[10].weight.detach().numpy())


class Payload:
    """An object that would run code if it were ever unpickled."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("a pickle was loaded",))


def test_bad_files_are_refused_and_nothing_in_them_runs(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "m.pt")
    whole = (tmp_path / "m.pt").read_bytes()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 30):
        (tmp_path / "cut.pt").write_bytes(whole[:size])
        with pytest.raises(prnn.InputError, match="cut short"):
            prnn.from_torch(tmp_path / "cut.pt")
    torch.save({"weight": Payload()}, tmp_path / "evil.pt")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Payload()))
    for name in ("evil.pt", "module.pt", "raw.pt"):
        with pytest.raises(prnn.InputError, match=r"never loaded|can't be read"):
            prnn.from_torch(tmp_path / name)
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    with pytest.raises(prnn.InputError, match="holds list"):
        prnn.from_torch(tmp_path / "list.pt")
    prnn.Model(prnn.Linear(2, 2)).save(tmp_path / "m.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "m.safetensors").read_bytes()[:-5])
    for name, message in (("cut.safetensors", "whole"), ("none.pt", "no file"), ("m.txt", "no file")):
        with pytest.raises(prnn.InputError, match=message):
            prnn.from_torch(tmp_path / name)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize("legacy", [False, True])
def test_every_dtype_and_layout_of_a_file(legacy: bool, tmp_path: Path) -> None:
    """Read without torch: what is a dense tensor is what torch.load gives, anything else is refused by its kind."""
    from portable_rnn.interop.state_dict_files import host_arrays
    from portable_rnn.interop.torch_file import read_torch_file

    base = torch.randn(6, 4)
    dense = {
        "plain": base, "transposed": base.T, "strided": base[1:3, ::2], "wide": base.double(), "half": base.half(),
        "bfloat16": base.bfloat16(), "parameter": nn.Parameter(base), "scalar": torch.tensor(2.5),
        "sliced": base[4:], "tied": base,
    }  # fmt: skip
    others = {
        "quantized": torch._empty_affine_quantized([2, 2], scale=1.0, zero_point=0, dtype=torch.qint8),
        "sparse": torch.eye(3).to_sparse(),
        "meta": torch.empty(2, 2, device="meta"),
        "expanded": torch.zeros(1).expand(2**15, 2**15),
        "integer": torch.arange(4),
        "complex": torch.zeros(2, dtype=torch.complex64),
    }
    torch.save(
        dense | others | {"object": nn.Linear(2, 2)}, tmp_path / "m.pt", _use_new_zipfile_serialization=not legacy
    )
    found = read_torch_file(tmp_path / "m.pt")
    for name, expected in dense.items():
        got = host_arrays({name: found[name]})[name]
        assert got.dtype == (np.float64 if name == "wide" else np.float32)
        np.testing.assert_array_equal(got, expected.detach().to(torch.float64).numpy())
    for name in (*others, "object"):
        for source in (found[name], others.get(name, nn.Linear(2, 2))):
            with pytest.raises(prnn.InputError, match=f"'{name}'"):
                prnn.from_torch({name: source})


def test_a_newer_passport_is_refused_with_what_to_upgrade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portable_rnn.models.checkpoint.FORMAT_VERSION", "2.0")
    prnn.Model(prnn.Linear(2, 2)).save(tmp_path / "m.safetensors")
    monkeypatch.undo()
    for read in (prnn.load, prnn.from_torch):
        with pytest.raises(prnn.InputError, match=r"pip install --upgrade portable-rnn"):
            read(tmp_path / "m.safetensors")


# ---------------------------------------------------------------------- to torch

NETWORKS: dict[str, prnn.Layer] = {
    "rnn": prnn.RNN(3, 4, 2, nonlinearity="relu", bidirectional=True),
    "lstm": prnn.LSTM(3, 4, 2, proj_size=2, dropout=0.1),
    "lstm-options-of-ours": prnn.LSTM(3, 4, initializer="keras", recompute_every=2),
    "lstm-reverse": prnn.LSTM(3, 4, reverse=True),
    "gru-reverse": prnn.Sequential(prnn.GRU(3, 4, reverse=True), Flip(), prnn.Last()),
    "rnn-reverse": prnn.Sequential(prnn.RNN(3, 4, 2, reverse=True), prnn.Max()),
    "linear": prnn.Linear(3, 4, bias=False),
    "embedding": prnn.Embedding(5, 3),
    "mean": prnn.Sequential(prnn.GRU(3, 4), prnn.Mean(), prnn.Dropout(0.3), prnn.Linear(4, 2), Softmax(log=True)),
    "nested": prnn.Sequential(prnn.Sequential(prnn.LSTM(3, 4, bidirectional=True), prnn.Linear(8, 6)), Merge("mul")),
    "ends": prnn.Sequential(SharedDropout(0.2), prnn.GRU(3, 4, bidirectional=True), Ends(), Merge("ave"), Softmax()),
    **{
        spec: prnn.Sequential(prnn.Linear(3, 2), Activation(spec))
        for spec in (*prnn.activations.ACTIVATIONS, "hard_sigmoid(0.5, 0.25)")
    },
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_model_becomes_a_torch_module_and_comes_back(name: str, tmp_path: Path) -> None:
    model = prnn.Model(NETWORKS[name], dtype="float64", seed=3)
    module = prnn.to_torch(model)
    assert not module.training
    x: Any = np.random.default_rng(0).standard_normal((2, 5, 3))
    x = np.array([[0, 4, 2]]) if model.network.takes_integers else x
    check_gradients(module, model, x)
    again = prnn.from_torch(module)
    assert len(again.params) == len(model.params)
    if name not in ("nested", "identity", "lstm-options-of-ours"):  # flattened, left out, unknown there
        assert again.network == model.network
    np.testing.assert_array_equal(again.predict(x), model.predict(x))
    # a file of ours is a plain state dict there
    model.save(tmp_path / "m.safetensors")
    state_dict = safetensors_torch.load_file(tmp_path / "m.safetensors")
    module.load_state_dict(state_dict, strict=True)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (prnn.LSTM(2, 3, peepholes=True), "no peepholes=True"),
        (prnn.LSTM(2, 3, coupled=True), "no coupled=True"),
        (prnn.LSTM(2, 3, activation="relu"), "no activation='relu'"),
        (prnn.LSTM(2, 3, output_activation="relu"), "no output_activation='relu'"),
        (prnn.GRU(2, 3, reset_after=False), "no reset_after=False"),
        (prnn.GRU(2, 3, recurrent_activation="hard_sigmoid"), "no recurrent_activation"),
        (prnn.RNN(2, 3, nonlinearity="softsign"), "no 'softsign'"),
        (prnn.RNN(2, 3, clip=1.0), "no clip=1.0"),
        (prnn.RNN(2, 3, zoneout=0.1), "no zoneout=0.1"),
        (prnn.Sequential(prnn.RNN(2, 3), prnn.RNN(3, 3, recurrent_dropout=0.1)), "layer 1 is .* no recurrent_dropout"),
        (Masked(prnn.RNN(2, 3)), "no module for Masked"),
    ],
)
def test_what_torch_can_not_express_is_refused(layer: prnn.Layer, message: str) -> None:
    with pytest.raises(prnn.InputError, match=message):
        prnn.to_torch(prnn.Model(layer))


def test_to_torch_takes_a_model() -> None:
    with pytest.raises(prnn.InputError, match="got Linear"):
        prnn.to_torch(prnn.Linear(2, 2))  # type: ignore[arg-type]


def test_trained_modules_drop_in_training() -> None:
    module = prnn.to_torch(prnn.Model(prnn.Sequential(SharedDropout(0.5), prnn.Linear(3, 3)))).train()
    x = torch.ones(4, 6, 3)
    dropped = module[0](x)
    assert torch.equal(dropped, dropped[:, :1].expand_as(x))
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
