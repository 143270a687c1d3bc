"""Single values of a corpus: what counts as a text, what a carried value is stored as, what is not Unicode."""

from __future__ import annotations

import json
import math
import unicodedata
from typing import Any

import xxhash

from embedx.core.errors import CorpusError

MAX_TEXT_CHARACTERS = 2**26
"""Longer texts are refused: a tokenizer took 15.7 GB of memory for one of 200 million characters."""

MAX_CELL_BYTES = 2**28
"""Longer values of typed tables are not made Python objects, which copies them several times: 64 M characters of four
bytes, or an image file of a size that no camera writes."""

_INVISIBLE = ("Cc", "Cf", "Zl", "Zp", "Zs")
"""Unicode categories without ink: controls (NUL among them), format characters, separators."""


class Oversized(int):
    """Stands for a value of so many bytes, or one behind so many, which was not read."""


def text_of(value: Any) -> str | None:
    """Return a carried value as a string: strings as they are, everything else as JSON; None stays None."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Oversized):
        raise CorpusError(
            f"a value of {value:,} bytes cannot be carried", "Leave the column out of --columns, or the row out"
        )
    if isinstance(value, (bool, int, float, list, dict)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def text_problem(name: str, value: Any) -> str | None:
    """Return why the value of a column is no text to embed, or None if it is one."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return f"column {name!r} is null"
    if isinstance(value, Oversized):
        return (
            f"column {name!r} holds {value:,} bytes (or its page of the Parquet file does); "
            f"more than {MAX_CELL_BYTES:,} are refused"
        )
    if not isinstance(value, str):
        return f"column {name!r} holds {type(value).__name__}, not text"
    if len(value) > MAX_TEXT_CHARACTERS:
        return f"column {name!r} holds {len(value):,} characters; more than {MAX_TEXT_CHARACTERS:,} are refused"
    if not value.strip():
        return f"column {name!r} is empty"
    if not value.isprintable() and all(unicodedata.category(character) in _INVISIBLE for character in value):
        return f"column {name!r} holds nothing but control and other invisible characters"
    return unicode_problem(f"column {name!r}", value)


def broken_identity(content: str) -> str:
    """Return an identity that no good item has: null is not the text "None"."""
    return xxhash.xxh3_128_hexdigest(f"\0broken\0{content}".encode("utf-8", "surrogatepass"))


def unicode_problem(what: str, text: str) -> str | None:
    """Return why a string is no Unicode text, or None if it is.

    Args:
        what: what to call it in the message.
        text: decoded with `surrogateescape`, so that a byte 0xNN which is no UTF-8 stands there as U+DCNN.
    """
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        if 0xDC80 <= code <= 0xDCFF:
            return (
                f"{what} is not UTF-8: byte 0x{code - 0xDC00:02x} at character {error.start + 1}; "
                "it may be Windows-1252 or Latin-1"
            )
        return f"{what} is not valid Unicode: lone surrogate U+{code:04X} at character {error.start + 1}"
    return None


def printable(text: str) -> str:
    r"""Return a string that can be printed and stored: what is no Unicode is written as `\udcNN`."""
    return text.encode("utf-8", "backslashreplace").decode()
