"""Why bytes could not be read: an item's failure, not the run's."""

from __future__ import annotations

from embedx.core.redaction import redact

CHANGED = "SourceChanged"
"""The error of a file that is not the one any more that was listed."""


class ReadError(Exception):
    """Bytes could not be read. Signatures and tokens of URLs are cut out of the message.

    Args:
        message: what a person can act on.
        error: a short name of the cause.
        retryable: whether another try may help.
    """

    def __init__(self, message: str, error: str = "ReadError", retryable: bool = True) -> None:
        super().__init__(redact(message))
        self.error = error
        self.retryable = retryable


def changed(place: str) -> ReadError:
    """Return the error of a file that was replaced: its bytes there are another item's by now."""
    return ReadError(f"{place} changed after it was listed: run the same command again", CHANGED)
