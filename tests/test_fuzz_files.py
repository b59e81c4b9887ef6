"""Damaged model files of every sort: each is a model or an error of the library in one printable line, in bounded time.

A few hundred files by default; ``PORTABLE_RNN_FUZZ=5000`` reads so many of each sort.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from mutations import Mutation, any_bytes, fields, safetensors_header, zip_member

import portable_rnn as prnn

FILES = int(os.environ.get("PORTABLE_RNN_FUZZ", "200"))
SECONDS = 2.0  # of CPU for a file
MEGABYTES = 512  # of memory more than before, over all files
NETWORK = prnn.Sequential(prnn.Embedding(7, 3), prnn.LSTM(3, 2, 2, bidirectional=True), prnn.Last(), prnn.Linear(4, 3))
ANSWERS: dict[str, Any] = {"pooling": "last", "activations": None, "nonlinearity": None}


@dataclass(frozen=True)
class Sort:
    """A sort of file.

    Attributes
    ----------
    suffix : str
    whole : sequence of bytes
        Small files to damage.
    mutations : sequence of Mutation
    read : callable
    share : float
        Of the number of files, where one takes long.
    """

    suffix: str
    whole: Sequence[bytes]
    mutations: Sequence[Mutation]
    read: Callable[[Path], prnn.Model]
    share: float = 1.0


def arrays() -> dict[str, np.ndarray]:
    """A state dict of torch."""
    names = {"0.": "embed.", "1.": "rnn.", "3.": "head."}
    params = prnn.Model(NETWORK, seed=1).params
    return {name.replace(name[:2], names[name[:2]], 1): value for name, value in params.items()}


def state_dict(path: Path) -> prnn.Model:
    return prnn.from_torch(path, **ANSWERS)


def ordered_state_dict(path: Path) -> prnn.Model:
    return prnn.from_torch(path, order=("embed", "rnn", "head"), **ANSWERS)


def safetensors_files(folder: Path) -> Sort:
    return Sort(".safetensors", [safetensors.numpy.save(arrays())], (any_bytes, safetensors_header), ordered_state_dict)


def torch_files(folder: Path) -> Sort:
    torch = pytest.importorskip("torch", reason="torch is not installed: its files can't be written")
    tensors = {name: torch.tensor(value) for name, value in arrays().items()}
    whole = []
    for legacy in (False, True):
        torch.save({"state_dict": tensors}, folder / "m.pt", _use_new_zipfile_serialization=not legacy)
        whole.append((folder / "m.pt").read_bytes())

    def member(data: bytes, rng: np.random.Generator) -> bytes:
        return zip_member(data, rng) if data[:2] == b"PK" else any_bytes(data, rng)

    return Sort(".pt", whole, (any_bytes, member, member), state_dict)


def keras_files(folder: Path) -> Sort:
    pytest.importorskip("torch", reason="torch is not installed: Keras runs on it here")
    os.environ.setdefault("KERAS_BACKEND", "torch")
    pytest.importorskip("keras", reason="Keras is not installed: its files can't be written")
    prnn.to_keras(prnn.Model(prnn.Sequential(prnn.Embedding(7, 3), prnn.GRU(3, 2), prnn.Linear(2, 3)))).save(
        folder / "m.keras"
    )
    whole = [(folder / "m.keras").read_bytes()]
    return Sort(".keras", whole, (any_bytes, zip_member, zip_member, zip_member), prnn.from_keras, share=0.25)


def onnx_files(folder: Path) -> Sort:
    pytest.importorskip("onnx", reason="onnx is not installed: its files can't be written")
    networks = [NETWORK, prnn.Sequential(prnn.GRU(3, 2), prnn.Max()), prnn.RNN(3, 2, 2, clip=0.5)]
    whole = []
    for network in networks:
        proto = prnn.to_onnx(prnn.Model(network))
        whole.append(proto.SerializeToString())
        del proto.metadata_props[:]
        whole.append(proto.SerializeToString())
    return Sort(".onnx", whole, (any_bytes, fields, fields), prnn.from_onnx)


def outcome(sort: Sort, path: Path) -> str:
    """What became of a file."""
    try:
        model = sort.read(path)
    except prnn.InputError as error:
        return "refused" if str(error).isprintable() else f"not printable: {error!r}"
    try:
        model.predict(np.ones((2, 4), dtype="int64") if model.network.takes_integers else np.ones((2, 4, 3), "float32"))
    except prnn.InputError:
        return "does not run"
    return "runs"


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
@pytest.mark.parametrize("make", [safetensors_files, torch_files, keras_files, onnx_files])
def test_damaged_files_are_read_or_refused(make: Callable[[Path], Sort], tmp_path: Path) -> None:
    sort = make(tmp_path)
    path = tmp_path / f"damaged{sort.suffix}"
    for whole in sort.whole:
        path.write_bytes(whole)
        assert outcome(sort, path) == "runs"
    rng = np.random.default_rng(20260101)
    outcomes: Counter[str] = Counter()
    before = memory()
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # Keras has one for many a damaged field
        for k in range(max(1, int(FILES * sort.share))):
            mutation = sort.mutations[int(rng.integers(len(sort.mutations)))]
            path.write_bytes(mutation(sort.whole[k % len(sort.whole)], rng))
            started = time.process_time()
            try:
                outcomes[outcome(sort, path)] += 1
            except Exception as error:
                kept = path.rename(tmp_path / f"{k}{sort.suffix}")
                raise AssertionError(f"file {k}, {kept}: {type(error).__name__}: {error}") from error
            assert time.process_time() - started < SECONDS, f"file {k}"
    assert set(outcomes) <= {"refused", "runs", "does not run"}
    assert outcomes["refused"]
    assert memory() - before < MEGABYTES


def memory() -> float:
    """The most memory so far in megabytes, 0 where that can't be known."""
    if sys.platform != "linux":
        return 0.0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
