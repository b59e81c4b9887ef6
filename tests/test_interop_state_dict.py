"""What a bare state dict can't say is asked for or noted; what is no plain array is refused by its name."""

from __future__ import annotations

import io
import pickle
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import portable_rnn as prnn
from portable_rnn.cli import main
from portable_rnn.interop.pickles import Foreign, load_plain
from portable_rnn.interop.state_dict_gaps import missing_numbers
from portable_rnn.layers import Activation, Softmax


def linear(name: str, inputs: int, outputs: int) -> dict[str, np.ndarray]:
    """A Linear's arrays."""
    rng = np.random.default_rng(len(name))
    return {f"{name}.weight": rng.standard_normal((outputs, inputs)), f"{name}.bias": rng.standard_normal(outputs)}


def lstm(name: str, inputs: int, hidden: int, ends: tuple[str, ...] = ("",)) -> dict[str, np.ndarray]:
    """An LSTM's arrays."""
    shapes = {"weight_ih": (4 * hidden, inputs), "weight_hh": (4 * hidden, hidden)}
    return {f"{name}.{key}_l0{end}": np.ones(shape) for end in ends for key, shape in shapes.items()}


def kinds(model: prnn.Model) -> list[str]:
    """The layers, activations by their names."""
    layers = model.network.layers if isinstance(model.network, prnn.Sequential) else (model.network,)
    return [layer.function if isinstance(layer, Activation) else type(layer).__name__ for layer in layers]


OPEN = {
    "a number left out": (linear("0", 3, 4) | linear("2", 4, 2), r"'1' between '0' and '2'"),
    "two left out": (linear("head.0", 3, 4) | linear("head.3", 4, 2), r"'head\.1', 'head\.2' between"),
    "the first left out": (linear("net.1", 3, 2), r"'net\.0' in front of 'net\.1'"),
    "other names": (linear("fc1", 3, 4) | linear("fc2", 4, 2), r"between 'fc1' and 'fc2'"),
    "a list of modules": (linear("fcs.0", 3, 4) | linear("fcs.1", 4, 2), r"between 'fcs\.0' and 'fcs\.1'"),
    "in front of a recurrent layer": (linear("project", 3, 4) | lstm("rnn", 4, 2), "between 'project' and 'rnn'"),
    "between blocks": (linear("b.0.fc", 3, 4) | linear("b.2.fc", 4, 2), r"'b\.1' between 'b\.0\.fc' and 'b\.2\.fc'"),
    "behind a recurrent layer": (lstm("rnn", 3, 4) | linear("head.1", 4, 2), r"'head\.0' between 'rnn' and 'head\.1'"),
}


@pytest.mark.parametrize("name", OPEN)
def test_what_may_stand_between_is_asked_for(name: str) -> None:
    state_dict, place = OPEN[name]
    pooling = None if name == "behind a recurrent layer" else "auto"
    with pytest.raises(prnn.InputError, match=f"{place}.*'relu', 'tanh'.*'none'"):
        prnn.from_torch(state_dict, pooling=pooling)
    without, with_one = (prnn.from_torch(state_dict, pooling=pooling, activations=a) for a in ("none", "tanh"))
    assert [kind for kind in kinds(with_one) if kind != "tanh"] == kinds(without)
    assert kinds(with_one).count("tanh") == 1
    notes = with_one.metadata["conversion_notes"]
    assert "one chain" in notes
    assert "dropout" in notes


def test_answers_are_one_for_all_one_for_each_or_by_name() -> None:
    state_dict = linear("fc1", 3, 4) | linear("head.0", 4, 5) | linear("head.2", 5, 2)
    expected = ["Linear", "relu", "Linear", "Softmax", "Linear"]
    for answers in (["relu", "softmax"], ("relu", "softmax"), {"fc1": "relu", "head.1": "softmax"}):
        assert kinds(prnn.from_torch(state_dict, activations=answers)) == expected
    assert kinds(prnn.from_torch(state_dict, activations="elu(0.5)")).count("elu(0.5)") == 2
    assert kinds(prnn.from_torch(state_dict, activations=[None, "dropout"])) == ["Linear"] * 3
    for wrong in (["relu"], ["relu"] * 3, {"fc1": "relu"}, {"fc1": "relu", "head.1": "relu", "fc9": "relu"}, 3):
        with pytest.raises(prnn.InputError, match="activations: expected what stands"):
            prnn.from_torch(state_dict, activations=wrong)  # type: ignore[arg-type]
    with pytest.raises(prnn.InputError, match="got 3"):
        prnn.from_torch(state_dict, activations=[3, 3])  # type: ignore[list-item]
    with pytest.raises(prnn.InputError, match="gelu"):
        prnn.from_torch(state_dict, activations="gelu")
    with pytest.raises(prnn.InputError, match="activations: expected None"):
        prnn.from_torch(linear("fc", 3, 2), activations="relu")
    log = prnn.from_torch(linear("0", 3, 4) | linear("2", 4, 2), activations="log_softmax")
    assert log.network.layers[1] == Softmax(log=True)


def test_a_number_left_out_behind_a_recurrent_layer_is_its_pooling() -> None:
    state_dict = lstm("0", 3, 4) | linear("2", 4, 2)
    assert kinds(prnn.from_torch(state_dict, pooling="last")) == ["LSTM", "Last", "Linear"]
    with pytest.raises(prnn.InputError, match="'1' between '0' and '2'"):
        prnn.from_torch(state_dict, pooling=None)
    state_dict = lstm("0", 3, 4) | linear("3", 4, 2)
    with pytest.raises(prnn.InputError, match="'2' between '0' and '3'"):
        prnn.from_torch(state_dict, pooling="last")
    assert kinds(prnn.from_torch(state_dict, pooling="last", activations="relu")) == ["LSTM", "Last", "relu", "Linear"]


def test_pooling_is_asked_for_wherever_time_is_left() -> None:
    bag = {"embed.weight": np.ones((7, 3))} | linear("fc", 3, 2)
    with pytest.raises(prnn.InputError, match="pass pooling=None"):
        prnn.from_torch(bag)
    assert kinds(prnn.from_torch(bag, pooling="mean")) == ["Embedding", "Mean", "Linear"]
    with pytest.raises(prnn.InputError, match="pooling: expected None, as no layer"):
        prnn.from_torch(linear("fc", 3, 2), pooling="mean")
    with pytest.raises(prnn.InputError, match="has one direction"):
        prnn.from_torch(lstm("rnn", 3, 4) | linear("fc", 4, 2), pooling="ends")
    both = lstm("rnn", 3, 4, ("", "_reverse"))
    assert kinds(prnn.from_torch(both | linear("fc", 8, 2), pooling="ends")) == ["LSTM", "Ends", "Linear"]
    with pytest.raises(prnn.InputError, match=r"takes 4 features, but .* gives 8: .*Merge\('sum'\)"):
        prnn.from_torch(both | linear("fc", 4, 2), pooling="last")


def test_a_decoder_is_no_link_of_a_chain_unless_it_is_said() -> None:
    """Its first state is the encoder's last, more often than not, which no chain can express."""
    state_dict = lstm("encoder", 3, 4) | lstm("decoder.rnn", 4, 4)
    with pytest.raises(prnn.InputError, match=r"'decoder\.rnn' .* got a decoder"):
        prnn.from_torch(state_dict)
    assert kinds(prnn.from_torch(state_dict, order=("encoder", "decoder.rnn"))) == ["LSTM", "LSTM"]
    assert kinds(prnn.from_torch(lstm("rnn1", 3, 4) | lstm("rnn2", 4, 4))) == ["LSTM", "LSTM"]
    assert kinds(prnn.from_torch(lstm("encoder", 3, 4) | linear("decoder", 4, 2), pooling=None)) == ["LSTM", "Linear"]


def test_answers_to_what_is_not_open_are_refused() -> None:
    with pytest.raises(prnn.InputError, match="nonlinearity: expected None"):
        prnn.from_torch(linear("fc", 3, 2), nonlinearity="relu")
    for option in ({"pooling": "last"}, {"activations": "relu"}, {"nonlinearity": "relu"}):
        with pytest.raises(prnn.InputError, match="beside network="):
            prnn.from_torch(linear("fc", 3, 2), network=prnn.Linear(3, 2), **option)
    with pytest.raises(prnn.InputError, match="network: expected a layer"):
        prnn.from_torch(linear("fc", 3, 2), network="Linear")  # type: ignore[arg-type]
    with pytest.raises(prnn.InputError, match="order must name"):
        prnn.from_torch(linear("fc", 3, 2), order=[3])  # type: ignore[list-item]


def test_a_given_network_in_a_file_without_order(tmp_path: Path) -> None:
    """The names of a safetensors file come sorted: layers of equal shapes could be exchanged."""
    import safetensors.numpy

    network = prnn.Sequential(prnn.Linear(3, 3), Activation("relu"), prnn.Linear(3, 3), prnn.Linear(3, 2))
    state_dict = linear("z", 3, 3) | linear("a", 3, 3) | linear("out", 3, 2)
    safetensors.numpy.save_file(state_dict, tmp_path / "m.safetensors")
    with pytest.raises(prnn.InputError, match=r"pass order="):
        prnn.from_torch(tmp_path / "m.safetensors", network=network)
    model = prnn.from_torch(tmp_path / "m.safetensors", network=network, order=("z", "a", "out"))
    np.testing.assert_array_equal(model.params["2.weight"], state_dict["a.weight"])
    unlike = prnn.Sequential(prnn.Linear(3, 4), Activation("relu"), prnn.Linear(4, 2))
    state_dict = linear("z", 3, 4) | linear("a", 4, 2)
    safetensors.numpy.save_file(state_dict, tmp_path / "m.safetensors")
    model = prnn.from_torch(tmp_path / "m.safetensors", network=unlike)
    np.testing.assert_array_equal(model.params["0.weight"], state_dict["z.weight"])


def test_numbers_of_two_containers_are_no_order(tmp_path: Path) -> None:
    import safetensors.numpy

    state_dict = linear("up.0", 3, 3) | linear("down.0", 3, 3)
    safetensors.numpy.save_file(state_dict, tmp_path / "m.safetensors")
    with pytest.raises(prnn.InputError, match="pass order="):
        prnn.from_torch(tmp_path / "m.safetensors", activations="relu")


def test_missing_numbers_of_nested_containers() -> None:
    assert missing_numbers(["a.0.x", "a.0.y", "a.2.x"]) == [(), (), ("a.1",)]
    assert missing_numbers(["1.1", "1.3"]) == [("0", "1.0"), ("1.2",)]


# ---------------------------------------------------------------------- hostile names and shapes


@pytest.mark.parametrize(
    "state_dict",
    [
        lstm("r", 3, 4) | {"r.weight_ih_l99999999999999999999": np.ones((16, 4))},
        lstm("r", 3, 4) | {"r.weight_ih_l10000000": np.ones((16, 4))},
        lstm("r", 3, 4) | {"r.weight_ih_l²": np.ones((16, 4))},
        lstm("r", 3, 4) | {"r.weight_ih_l2": np.ones((16, 4)), "r.weight_hh_l2": np.ones((16, 4))},
        lstm("r", 3, 4) | {"r.weight_ih_l": np.ones((16, 4))},
        linear("a.0", 3, 4) | linear("a.99999999999999999999", 4, 2),
        linear("a.0", 3, 4) | linear("a.999999", 4, 2),
        linear("a.0", 3, 4) | linear("a.²", 4, 2),
        {"r.weight_ih_l0": np.ones((0, 3)), "r.weight_hh_l0": np.ones((0, 0))},
        {"r.weight_ih_l0": np.ones((4, 3)), "r.weight_hh_l0": np.ones(())},
        {"weight": np.ones((0, 2)), "bias": np.ones(0)},
        {"weight": np.ones(()), "a.weight": np.ones((2, 2))},
        {3: np.ones((2, 2))},
        {"a." * 10**5 + "weight": np.ones((2, 2))},
        {"bn.weight": np.ones(3), "bn.running_mean": np.ones(3), "bn.num_batches_tracked": np.asarray(1)},
        {"weight": np.ones((2, 2), dtype=complex)},
        {"weight": np.ones((2, 2), dtype=object)},
    ],
)
def test_names_and_shapes_of_no_network_are_refused(state_dict: Any) -> None:
    with pytest.raises(prnn.InputError):
        prnn.from_torch(state_dict, activations=None)


def test_names_are_printed_without_control_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import safetensors.numpy

    name = "\x1b[2J\nevil"
    safetensors.numpy.save_file(linear(name, 3, 2), tmp_path / "m.safetensors")
    assert main(["convert", str(tmp_path / "m.safetensors"), str(tmp_path / "out.safetensors")]) == 0
    assert main(["info", str(tmp_path / "out.safetensors")]) == 0
    shown = capsys.readouterr().out
    assert "evil" in shown
    assert all(line.isprintable() for line in shown.split("\n"))
    with pytest.raises(prnn.InputError) as caught:
        prnn.from_torch({f"{name}.weight": np.ones(3)})
    assert str(caught.value).isprintable()


def test_weights_that_are_no_numbers_are_named() -> None:
    state_dict = linear("fc", 3, 2)
    for lost in (np.nan, np.inf):
        state_dict["fc.bias"][1] = lost
        with pytest.raises(prnn.InputError, match=r"'bias' holds 1 NaN or infinite .*expected finite weights"):
            prnn.from_torch(state_dict)


# ---------------------------------------------------------------------- pickles


class Evil:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> Any:
        return (sys.exit, ("code was run",))


def test_pickles_become_plain_values_and_call_nothing() -> None:
    value = {"a": [1, 2.5, None, True, b"x", ("y", -3)], "b": {"c": 10**30}, "e": {1, 2}, "n": "\ud800", 3: ""}
    for protocol in range(6):
        data = pickle.dumps(value | {"f": Evil(), "g": print, "h": re.compile("x"), "i": Evil}, protocol)
        found = load_plain(io.BytesIO(data), lambda name, arguments: Foreign(name), Foreign)
        assert found.pop("f") == Foreign("sys.exit")
        assert all(isinstance(found.pop(key), Foreign) for key in "ghi")
        expected = value | {"e": [1, 2]} if protocol > 3 else value | {"e": found["e"], "a": found["a"]}
        assert found == expected


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a pickle",
        b"\x80\x02K\x01",  # no end
        b"\x80\x02.",  # nothing on the stack
        b"\x80\x02e.",  # no mark
        b"\x80\x02h\x07.",  # nothing kept there
        b"\x80\x02}K\x01s.",  # a key without a value
        b"\x80\x02\x8b\xff\xff\xff\x7f1.",  # an integer of 2 GB
        b"I" + b"9" * 5000 + b"\n.",
        b"\x80\x02" + b"N0" * 300_000 + b".",
    ],
)
def test_broken_pickles_are_refused(data: bytes) -> None:
    with pytest.raises(prnn.InputError):
        load_plain(io.BytesIO(data), lambda name, arguments: None, Foreign)


def test_nested_keys_are_not_hashed() -> None:
    """Sixty tuples, each of the one before twice: to hash the last would take for ever."""
    data = b"\x80\x02}N" + b"".join(b"q" + bytes([k]) + b"h" + bytes([k]) + b"\x86" for k in range(60)) + b"Ns."
    assert load_plain(io.BytesIO(data), lambda name, arguments: None, Foreign) == {}


def test_an_archive_of_another_compression_is_refused(tmp_path: Path) -> None:
    """LZMA takes as much memory as the archive says."""
    with zipfile.ZipFile(tmp_path / "m.pt", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("m/data.pkl", pickle.dumps({}, 2))
    with pytest.raises(prnn.InputError, match="stored or deflated"):
        prnn.from_torch(tmp_path / "m.pt")


def test_an_archive_that_unpacks_to_far_more_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", pickle.dumps({}, 2))
        archive.writestr("m/data/0", bytes(2**26))
    with pytest.raises(prnn.InputError, match="unpacks to at most 4 times"):
        prnn.from_torch(tmp_path / "m.pt")
