"""Writing files: whole or not at all, with the mode and owner of the file that is replaced, and nothing left behind.

A file is written beside its target under a name of our own and renamed. The writer holds a lock on it, which the
system drops when the process ends, however it ends. So a file of this name without a lock belongs to nobody, and the
next writer in the folder removes it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import time
from collections.abc import Iterator
from importlib.util import find_spec
from typing import IO, Any

from ..errors import InputError

__all__ = ["check_writable", "replacing", "write_file"]

_PREFIX, _MARK = ".portable-rnn-", ".part"
_STREAMS = ("/dev/stdout", "/dev/stderr", "/dev/fd/", "/proc/")
_HAS_LOCKS = find_spec("fcntl") is not None  # not on Windows
_DAY = 24 * 3600.0
_FLAGS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


def write_file(path: str | os.PathLike[str], data: bytes | memoryview, *, what: str = "file") -> None:
    """Write a file whole or not at all; see `replacing`.

    Parameters
    ----------
    path : path
    data : bytes
    what : str
        What an error calls the file.

    Raises
    ------
    InputError
        The file can't be written. What stood there before still does.
    """
    with replacing(path, what=what) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, what: str = "file", suffix: str = "") -> Iterator[IO[bytes]]:
    """An open file whose content takes the place of `path` when the block ends without an error.

    A link is followed, so that its target is replaced. Mode, owner and extended attributes stay as they are where the
    system allows it; a new file gets the mode that `open` would give it. File and folder are synchronized with the
    disk. A device or a pipe is written to directly.

    Parameters
    ----------
    path : path
    what : str
        What an error calls the file.
    suffix : str
        Of the file's name until it is renamed, for a library that looks at it.

    Yields
    ------
    binary file
        Its `name` is the path that a library may open and write itself.

    Raises
    ------
    InputError
        The file can't be written: no such folder, no permission, a full disk. What stood there before still does.
    """
    with _own_errors(path, what):
        if _is_stream(path):
            with open(path, "wb") as file:
                yield file
            return
        target, old = _place(path)
        folder = os.path.dirname(target)
        remove_abandoned(folder)
        with _temporary(folder, suffix, private=old is not None) as file:
            yield file
            file.flush()
            if old is not None:
                _copy_attributes(file.fileno(), target, old)
            os.fsync(file.fileno())
            _rename(file, target)
        _synchronize(folder)


def check_writable(path: str | os.PathLike[str], *, what: str = "file") -> None:
    """Raise InputError where `replacing` would, apart from a disk that is full later."""
    with _own_errors(path, what):
        if not _is_stream(path):
            target, _ = _place(path)
            with _temporary(os.path.dirname(target), "", private=True):
                pass


@contextlib.contextmanager
def _own_errors(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"can't write the {what} {os.fspath(path)!r}: {error.strerror or error}: "
            "give another path, or make room or permission; what stood there is unchanged"
        ) from error


def _place(path: str | os.PathLike[str]) -> tuple[str, os.stat_result | None]:
    """Where the file itself is to stand, links followed, and the status of what stands there."""
    target = os.path.realpath(path)
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        named = folder if os.path.islink(path) else os.path.dirname(os.fspath(path))
        raise FileNotFoundError(errno.ENOENT, f"the folder {named!r} does not exist")
    old = _status(target)
    if old is not None and stat.S_ISDIR(old.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    if old is not None and not os.access(target, os.W_OK):  # renaming would not ask
        raise PermissionError(errno.EACCES, "it is write-protected")
    return target, old


def remove_abandoned(folder: str) -> None:
    """Remove what writers that were killed have left in a folder."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        found = [entry.path for entry in entries if entry.name.startswith(_PREFIX) and _MARK in entry.name]
        for path in found:
            with contextlib.suppress(OSError):
                _remove_if_abandoned(path)


def _remove_if_abandoned(path: str) -> None:
    file = os.open(path, os.O_RDWR | getattr(os, "O_NONBLOCK", 0) | _FLAGS)
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            return
        if _HAS_LOCKS:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an OSError where its writer lives
        elif time.time() - status.st_mtime < _DAY:
            return
        if _is_at(path, status):
            os.unlink(path)
    finally:
        os.close(file)


@contextlib.contextmanager
def _temporary(folder: str, suffix: str, *, private: bool) -> Iterator[IO[bytes]]:
    """A new locked file, removed at the end where it was not renamed."""
    while True:
        path = os.path.join(folder, f"{_PREFIX}{secrets.token_hex(6)}{_MARK}{suffix}")
        # the umask is the system's business: it applies to what `open` is asked for
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600 if private else 0o666)
        if _locked(handle, path):
            break
        os.close(handle)
    try:
        with open(path, "r+b", opener=lambda *_: handle) as file:
            yield file
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)


def _locked(handle: int, path: str) -> bool:
    """Lock a new file; False where another writer has removed it in the moment before."""
    if not _HAS_LOCKS:
        return True
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: nobody can lock it, so nobody removes it
        return True
    return _is_at(path, os.fstat(handle))


def _is_at(path: str, status: os.stat_result) -> bool:
    """Whether this very file still stands at `path`."""
    found = _status(path)
    return found is not None and (found.st_dev, found.st_ino) == (status.st_dev, status.st_ino)


def _status(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _is_stream(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is no place for a regular file: a device, a pipe, standard output."""
    if os.path.abspath(path).startswith(_STREAMS):
        return True
    found = _status(os.fspath(path))
    return found is not None and not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode)


def _copy_attributes(handle: int, target: str, old: os.stat_result) -> None:
    """The owner, the extended attributes (access control lists among them) and the mode of the file to replace."""
    if hasattr(os, "fchown"):
        for owner in ((old.st_uid, -1), (-1, old.st_gid)):
            with contextlib.suppress(OSError):
                os.fchown(handle, *owner)
    if hasattr(os, "listxattr"):
        with contextlib.suppress(OSError):
            for name in os.listxattr(target):
                with contextlib.suppress(OSError):
                    os.setxattr(handle, name, os.getxattr(target, name))
    mode = stat.S_IMODE(old.st_mode)
    new = os.fstat(handle)
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        mode &= 0o777  # what ran as the old owner must not run as the new one
    if hasattr(os, "fchmod"):
        os.fchmod(handle, mode)


def _rename(file: IO[Any], target: str) -> None:
    if not _HAS_LOCKS:  # an open file can't be renamed there
        file.close()
    os.replace(file.name, target)


def _synchronize(folder: str) -> None:
    """Bring the folder's new entry to the disk, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
