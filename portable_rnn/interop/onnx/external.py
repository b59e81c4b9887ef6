"""Arrays whose bytes lie in other files, in the folder of the model and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import InputError

__all__ = ["ExternalFiles"]

_RATIO = 4  # arrays may share bytes, but not without end


class ExternalFiles:
    """The files beside a model.

    Parameters
    ----------
    folder : Path, optional
        Where they may lie; None where the model came without a path.
    """

    def __init__(self, folder: Path | None) -> None:
        self._root = None if folder is None else folder.resolve()
        self._sizes: dict[Path, int] = {}
        self._read = 0

    def read(self, name: str, tensor: Any, size: int) -> bytes:
        """The bytes of an array.

        Raises
        ------
        InputError
            They lie outside the folder, are not there, or all arrays so far are far more than the files they are in.
        """
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        root = self._root
        if root is None:
            raise InputError(
                f"{name} has its data in {location!r}: pass the model's path, so that the file can be found"
            )
        try:
            offset, length = (int(entries.get(key) or other) for key, other in (("offset", 0), ("length", size)))
            path = (root / location).resolve()
            inside = bool(location) and path.is_relative_to(root) and path.is_file()
            available = path.stat().st_size if inside else 0
        except (OSError, ValueError) as error:
            raise InputError(f"{name} has its data at a place that can't be read: {location!r}") from error
        if not inside:
            raise InputError(f"{name} has its data in {location!r}: expected a file in the model's own folder")
        if offset < 0 or length != size or offset + length > available:
            raise InputError(
                f"{name} needs {size:,} bytes, {location!r} is to give {length:,} from {offset:,} on and has "
                f"{available:,}"
            )
        self._sizes[path] = available
        self._read += length
        if self._read > _RATIO * sum(self._sizes.values()):
            raise InputError(
                f"{name} has its data in {location!r}: expected arrays of at most {_RATIO} times the files they are "
                f"in, got {self._read:,} bytes"
            )
        with path.open("rb") as file:
            file.seek(offset)
            return bytes(file.read(length))
