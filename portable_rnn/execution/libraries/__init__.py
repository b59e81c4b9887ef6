"""How time loops and large arrays are treated: one class for each library that differs from the plain way."""

from types import ModuleType

from ...arrays import library_name
from .base import Library
from .cupy import CupyLibrary
from .jax import JaxLibrary
from .on_processor import NumpyLibrary, TorchLibrary

__all__ = ["CupyLibrary", "JaxLibrary", "Library", "NumpyLibrary", "TorchLibrary", "library_of"]

_LIBRARIES = {library.name: library for library in (NumpyLibrary(), TorchLibrary(), JaxLibrary(), CupyLibrary())}
_PLAIN = Library()


def library_of(xp: ModuleType) -> Library:
    """What is known of the library that a namespace belongs to."""
    return _LIBRARIES.get(library_name(xp), _PLAIN)
