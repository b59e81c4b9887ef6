"""Writing files: whole or not at all, as the file before was, and nothing left behind."""

from __future__ import annotations

import ast
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import portable_rnn as prnn
from portable_rnn.files import check_writable, replacing, write_file

POSIX = pytest.mark.skipif(os.name != "posix", reason="modes, owners and signals of POSIX")


def listed(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def refused(call: Callable[[], Any], path: Path) -> str:
    with pytest.raises(prnn.InputError, match="can't write") as caught:
        call()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_new_file_and_one_that_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for data in (b"first", b"second and longer", b""):
        write_file(path, data)
        assert path.read_bytes() == data
    assert listed(tmp_path) == ["file"]


@POSIX
def test_a_new_file_has_the_mode_that_open_gives(tmp_path: Path) -> None:
    (tmp_path / "opened").write_bytes(b"")
    write_file(tmp_path / "ours", b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "opened").stat().st_mode


@POSIX
def test_the_umask_is_never_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("another thread's files would get this mask"))
    prnn.Model(prnn.Linear(1, 1)).save(tmp_path / "m")


@POSIX
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o755, 0o444])
def test_mode_and_owner_stay(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(mode)
    if not os.access(path, os.W_OK):
        assert "write-protected" in refused(lambda: write_file(path, b"new"), path)
        return
    if os.geteuid() == 0:
        os.chown(path, 12345, 23456)
        path.chmod(mode)
    before = path.stat()
    write_file(path, b"new")
    after = path.stat()
    assert path.read_bytes() == b"new"
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


@POSIX
def test_nobody_reads_a_private_file_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o600)
    with replacing(path) as file:
        assert stat.S_IMODE(os.stat(file.name).st_mode) == 0o600


@POSIX
def test_extended_attributes_stay(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    try:
        os.setxattr(path, "user.origin", b"here")
    except (AttributeError, OSError):
        pytest.skip("no extended attributes here")
    write_file(path, b"new")
    assert os.getxattr(path, "user.origin") == b"here"


@POSIX
@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_and_its_target_is_written(tmp_path: Path, exists: bool) -> None:
    (tmp_path / "store").mkdir()
    target, link, second = tmp_path / "store" / "file", tmp_path / "link", tmp_path / "second"
    if exists:
        target.write_bytes(b"old")
    link.symlink_to(Path("store", "file"))
    second.symlink_to(link)
    write_file(second, b"new")
    assert second.is_symlink()
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert listed(tmp_path / "store") == ["file"]
    assert listed(tmp_path) == ["link", "second", "store"]


@POSIX
def test_a_pipe_is_written_to_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(path.read_bytes()))
    reader.start()
    write_file(path, b"through")
    reader.join(10)
    assert found == [b"through"]
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_the_longest_name_that_the_system_takes(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    write_file(path, b"data")
    assert listed(tmp_path) == [path.name]


# ---------------------------------------------------------------------- what can't be written


def test_places_that_can_not_be_written(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere" / "file", tmp_path / ("n" * 256)):
        for call in (lambda path=path: write_file(path, b""), lambda path=path: check_writable(path)):
            refused(call, path)
    assert listed(tmp_path) == []


@POSIX
def test_a_loop_of_links_and_a_folder_that_is_read_only(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    refused(lambda: write_file(tmp_path / "a", b""), tmp_path / "a")
    folder = tmp_path / "locked"
    folder.mkdir()
    (folder / "file").write_bytes(b"old")
    folder.chmod(0o555)
    try:
        if os.access(folder, os.W_OK):
            pytest.skip("this user may write everywhere")
        refused(lambda: write_file(folder / "file", b"new"), folder / "file")
        assert (folder / "file").read_bytes() == b"old"
    finally:
        folder.chmod(0o755)


def half_written(path: Path, error: type[BaseException]) -> None:
    with replacing(path) as file:
        file.write(b"half")
        raise error


def test_an_error_inside_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error):
            half_written(path, error)
    assert path.read_bytes() == b"old"
    assert listed(tmp_path) == ["file"]


FULL = """
import resource, sys
import portable_rnn as prnn
model = prnn.Model(prnn.Sequential(prnn.GRU(8, 64), prnn.Last(), prnn.Linear(64, 1)))
history = model.fit([[[0.0] * 8]], [[0.0]], epochs=1, progress=False)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
def convert(path):
    from portable_rnn.interop.convert import _write
    import pathlib
    _write(model, pathlib.Path(path))
for name, save in {"m.safetensors": model.save, "h.png": history.plot, "m.onnx": convert, "m.pt": convert}.items():
    try:
        save(name)
    except prnn.MissingDependencyError:
        pass
    except prnn.InputError as error:
        assert "can't write" in str(error), error
        continue
    else:
        sys.exit(f"{name} was written")
"""


@POSIX
def test_a_full_disk_leaves_the_old_files(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: every writer fails in the middle."""
    names = ["h.png", "m.onnx", "m.pt", "m.safetensors"]
    for name in names:
        (tmp_path / name).write_bytes(b"old")
    child([FULL], tmp_path)
    assert listed(tmp_path) == names
    assert all((tmp_path / name).read_bytes() == b"old" for name in names)


# ---------------------------------------------------------------------- killed and concurrent writers


def child(arguments: list[str], folder: Path, timeout: float = 60) -> str:
    environment = os.environ | {"PYTHONPATH": str(Path(prnn.__file__).parents[1])}
    command = [sys.executable, "-c", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout


KILLED = """
import os, random, signal, time
import portable_rnn.files as files
data = os.urandom(1 << 20)
left = most = 0
for seed in range(40):
    pid = os.fork()
    if not pid:
        while True:
            files.write_file("model", data)
    time.sleep(0.03 * random.Random(seed).random())
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    parts = [name for name in os.listdir(".") if name != "model"]
    left += len(parts)
    most = max(most, len(parts))
    assert not os.path.exists("model") or open("model", "rb").read() == data
files.write_file("another", b"")
print(left, most, *sorted(os.listdir(".")))
"""


@POSIX
def test_the_next_save_removes_what_killed_processes_left(tmp_path: Path) -> None:
    left, most, *names = child([KILLED], tmp_path).split()
    assert int(left) > 0, "no process was killed while it wrote: the test shows nothing"
    assert int(most) == 1
    assert names == ["another", "model"]


CONCURRENT = """
import os
from portable_rnn.files import write_file
for number in range(4):
    if not os.fork():
        data = bytes([number]) * (1 << 16)
        for _ in range(25):
            write_file("model", data)
        os._exit(0)
codes = [os.wait()[1] for _ in range(4)]
assert codes == [0] * 4, codes
found = open("model", "rb").read()
assert len(found) == 1 << 16 and len(set(found)) == 1
assert os.listdir(".") == ["model"]
"""


@POSIX
def test_processes_that_write_one_file_do_not_disturb_each_other(tmp_path: Path) -> None:
    child([CONCURRENT], tmp_path)


def test_a_writer_that_lives_keeps_its_file(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as file:
        file.write(b"first")
        write_file(tmp_path / "b", b"other")
        write_file(tmp_path / "a", b"other")
        file.write(b", second")
    assert (tmp_path / "a").read_bytes() == b"first, second"
    assert listed(tmp_path) == ["a", "b"]


def test_files_of_others_stay(tmp_path: Path) -> None:
    names = [".model.abcdefgh.part", ".portable-rnn", "x.part"]
    for name in names:
        (tmp_path / name).write_bytes(b"theirs")
    if os.name == "posix":
        (tmp_path / ".portable-rnn-1.part").symlink_to(tmp_path / "x.part")
        os.mkfifo(tmp_path / ".portable-rnn-2.part")
        names += [".portable-rnn-1.part", ".portable-rnn-2.part"]
    write_file(tmp_path / "model", b"")
    assert listed(tmp_path) == sorted([*names, "model"])


def test_no_other_part_of_the_package_writes_files() -> None:
    package = Path(prnn.__file__).parent
    paths = [path for path in package.rglob("*.py") if path.parent.name != "files"]
    found = {f"{path.relative_to(package)}:{line}" for path in paths for line in writing_lines(path)}
    assert not found, "use portable_rnn.files"


def writing_lines(path: Path) -> list[int]:
    """Lines that open a file to write, or rename one."""
    names = ("mkstemp", "NamedTemporaryFile", "write_text", "write_bytes", "umask", "replace")
    lines = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name.rpartition(".")[2] in names and name != "dataclasses.replace":
            is_file = name.rpartition(".")[2] != "replace" or name == "os.replace"
        else:
            modes = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            is_file = name.rpartition(".")[2] == "open" and any(mode[:1] in "wax" for mode in modes)
        lines += [node.lineno] * is_file
    return lines


def test_models_are_saved_through_it(tmp_path: Path) -> None:
    model = prnn.Model(prnn.GRU(2, 3))
    (tmp_path / "store").mkdir()
    (tmp_path / "m").symlink_to(tmp_path / "store" / "m")
    model.save(tmp_path / "m")
    assert (tmp_path / "m").is_symlink()
    np.testing.assert_array_equal(prnn.load(tmp_path / "m").params["weight_hh_l0"], model.params["weight_hh_l0"])
