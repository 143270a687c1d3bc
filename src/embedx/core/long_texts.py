"""What becomes of texts that are longer than their encoder reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from embedx.core.errors import UsageError

WINDOWS = 1
"""Raised when texts are cut into other windows than before: stores of older windows are then refused."""

MODES = ("truncate", "chunk")
POOLS = ("mean", "max")


@dataclass(frozen=True)
class LongTexts:
    """How long texts are read.

    Attributes:
        mode: truncate reads the beginning; chunk reads all of it, in overlapping windows.
        pool: mean or max of the windows' vectors, one row for each text; None keeps each window as a row of its own.
    """

    mode: str = "truncate"
    pool: str | None = None

    @property
    def chunks(self) -> bool:
        """Whether texts are cut into windows."""
        return self.mode == "chunk"

    @property
    def has_rows(self) -> bool:
        """Whether a text may have several rows, its chunks."""
        return self.chunks and self.pool is None

    @property
    def flags(self) -> str:
        """The command line's words for it."""
        return f"--long {self.mode}" + (f" --chunk-pool {self.pool}" if self.pool else "")

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON of a store's card; also what makes shards of two runs fit each other."""
        return {"mode": self.mode, "pool": self.pool, "windows": WINDOWS} if self.chunks else {"mode": self.mode}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LongTexts:
        """Read `to_dict`'s result.

        Raises:
            ValueError: texts were cut by other rules than this version's.
        """
        if data.get("windows", WINDOWS) != WINDOWS:
            raise ValueError(f"texts were cut into windows of kind {data['windows']}, this embedx knows {WINDOWS}")
        return cls(data["mode"], data.get("pool"))


TRUNCATED = LongTexts()
"""Only the beginning of a long text is read."""


def parse_long(mode: str | None, pool: str | None) -> LongTexts | None:
    """Read `--long` and `--chunk-pool`; None where neither is given: as the store has it, a new one truncates.

    Raises:
        UsageError: a word nobody knows, or words that exclude each other.
    """
    for flag, value, choices in (("--long", mode, MODES), ("--chunk-pool", pool, POOLS)):
        if value is not None and value not in choices:
            raise UsageError(f"{flag} {value!r} is not one of {', '.join(choices)}", f"Pass {' or '.join(choices)}")
    if pool is not None and mode != "chunk":
        raise UsageError(f"--chunk-pool {pool} pools the windows of --long chunk", "Pass --long chunk too")
    return LongTexts(mode, pool) if mode else None
