"""The driver's notes of finished shards, so that a resumed run reads neither footers nor bytes of what is noted."""

from __future__ import annotations

import json
from contextlib import suppress

from embedx.core.paths import append_line
from embedx.store.files import LocalFiles
from embedx.store.layout import RunLayout
from embedx.store.shards import Receipt

FEWEST_NOTED = 32
"""Receipts that are written to an object store together."""


class ReceiptNotes:
    """Keeps receipts in `receipts.jsonl`. What was not written down before a crash is read from the footers.

    A local file is appended to. An object cannot be: it is written again when an eighth has come to it, so that all
    writes together are a few times the last one, and a reader asks for one object.

    Args:
        layout: the run's.
    """

    def __init__(self, layout: RunLayout) -> None:
        self._layout = layout
        self._lines: list[str] = []
        self._written = 0

    def add(self, receipt: Receipt) -> None:
        """Keep a receipt, now or soon."""
        files, file = self._layout.files, self._layout.file("receipts.jsonl")
        if isinstance(files, LocalFiles):
            append_line(files.root / file.name, receipt.to_json())
            return
        self._lines.append(receipt.to_json())
        if len(self._lines) - self._written >= max(FEWEST_NOTED, self._written // 8):
            self.flush()

    def flush(self) -> None:
        """Write down what is not yet."""
        if len(self._lines) > self._written:
            self._layout.file("receipts.jsonl").write("".join(f"{line}\n" for line in self._lines).encode())
            self._written = len(self._lines)


def read_receipts(layout: RunLayout) -> dict[tuple[str, int], Receipt]:
    """Return (file, size) -> the receipt that was noted; a line cut off by a crash counts for nothing."""
    try:
        lines = layout.file("receipts.jsonl").read().decode().splitlines()
    except (OSError, ValueError):
        return {}
    receipts = {}
    for line in lines:
        with suppress(ValueError, TypeError):
            receipt = Receipt(**json.loads(line))
            receipts[layout.shard_name(receipt.shard), receipt.size_bytes] = receipt
    return receipts
