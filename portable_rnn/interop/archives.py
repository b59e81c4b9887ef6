"""Zip archives whose declared sizes are believed only as far as the file's own."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError

__all__ = ["Members", "checked_members"]

# An archive may unpack to so many times its own size, and to so much whatever its size
_RATIO = 4
_FREE = 2**20
_MAX_MEMBERS = 100_000


class Members:
    """The members of an open archive by name, read one by one."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self.sizes = {entry.filename: entry.file_size for entry in archive.infolist()}

    def __contains__(self, name: str) -> bool:
        return name in self.sizes

    def __iter__(self) -> Iterator[str]:
        return iter(self.sizes)

    def read(self, name: str) -> bytes:
        """A member's bytes.

        Raises
        ------
        InputError
            It is damaged or encrypted.
        """
        try:
            return self._archive.read(name)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError, ValueError, KeyError) as error:
            raise InputError(f"expected a whole archive, got a damaged member {name!r}: save the file again") from error


def checked_members(path: Path) -> Members:
    """The members of a zip archive, after the sum of their declared sizes was compared with the file's.

    Raises
    ------
    InputError
        It is no whole archive, unpacks to more than 4 times its size and 1 MiB, or is packed by a method that takes
        memory of its own.
    """
    try:
        archive = zipfile.ZipFile(path)  # closed with the last reference to it
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
        raise InputError("expected a whole zip archive, got a file that is cut short or of another kind") from error
    entries = archive.infolist()
    total, size = sum(entry.file_size for entry in entries), path.stat().st_size
    if total > _RATIO * size + _FREE or len(entries) > _MAX_MEMBERS:
        raise InputError(
            f"expected an archive that unpacks to at most {_RATIO} times its {size:,} bytes, got {total:,} bytes in "
            f"{len(entries):,} members: pack it again without compression"
        )
    if any(entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for entry in entries):
        raise InputError("expected an archive that is stored or deflated, got another compression: pack it again")
    members = Members(archive)
    if len(members.sizes) != len(entries):
        raise InputError("expected each member of the archive once, got two of the same name: the file is damaged")
    return members
