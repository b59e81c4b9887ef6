"""What comes from a file is safe to print."""

import copy
import pickle

import pytest

import portable_rnn as prnn
from portable_rnn.errors import printable


@pytest.mark.parametrize(
    "text",
    ["\x1b[2J", "a\nb\r\t\x00\x7f\x9b31m", "\u202egnp.exe", "\u2028\u2029\u200b\ufeff", "\ud800", "\x1b" * 999],
)
def test_printable_text_has_one_line_and_no_control_characters(text: str) -> None:
    """Whatever is not printable is written as its escape, and the rest stays."""
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown) <= 200


def test_printable_text_that_is_short_stays() -> None:
    """Only a text over the limit is cut, and the cut is seen."""
    assert printable("a" * 200) == "a" * 200
    assert printable("a" * 201) == "a" * 199 + "…"
    assert printable("é 日本 🙂") == "é 日本 🙂"


@pytest.mark.parametrize("kind", [prnn.InputError, prnn.BackendError, prnn.ConversionError])
def test_an_error_is_one_printable_line(kind: type[prnn.InputError]) -> None:
    """Whatever it quotes, and still after it crossed a process."""
    error = kind("layer '\x1b[2J\n' of the file: " + "x" * 10_000)
    assert str(error).isprintable()
    assert len(str(error)) == 4000
    for same in (copy.deepcopy(error), pickle.loads(pickle.dumps(error))):
        assert (type(same), str(same)) == (kind, str(error))
