"""The errors embedx raises on purpose, and the exit status each one means.

EmbedxError                     exit 1
├── UsageError                  exit 2   the command, spec or job file is wrong
│   └── UnknownEncoderError              no family or name like this
├── CorpusError                          a source is missing, empty, broken or ambiguous
├── EncoderError                         weights are missing or do not fit, the model cannot be built
│   └── TooLargeError                    it, or one item alone, does not fit the device's memory
├── FingerprintMismatchError             vectors, index, head and encoder do not belong together
├── StoreError                           a store, index or head is absent, damaged or of another kind
├── TooManyFailuresError        exit 3   more items failed than --max-failures allows
├── BusyError                   exit 75  locked by another run, scheduler unreachable
└── InterruptedRunError         exit 130 or 143; finished shards are kept
"""

from __future__ import annotations

from embedx.core.redaction import redact


class EmbedxError(Exception):
    """Base of everything the library raises on purpose. Signatures and tokens of URLs are cut out of what it says.

    Args:
        message: one line that names the offending thing.
        remedy: one line that says what to do about it.
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        message, remedy = redact(message), redact(remedy)
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}. {self.remedy}" if self.remedy else self.message

    def to_dict(self) -> dict[str, int | str]:
        """Return the JSON shape of reports: code (the exit status), message, remedy."""
        return {"code": self.exit_code, "message": self.message, "remedy": self.remedy}

    def __reduce__(self) -> tuple:
        # The default rebuilds from args alone and would lose the remedy between processes.
        return (type(self), (self.message, self.remedy))


class UsageError(EmbedxError):
    """The command line, a spec or a job file is wrong."""

    exit_code = 2


class UnknownEncoderError(UsageError):
    """No encoder family or name like the one given."""


class CorpusError(EmbedxError):
    """A source is missing, empty, broken or ambiguous."""


class EncoderError(EmbedxError):
    """Weights are missing or do not fit, or the model cannot be built."""


class TooLargeError(EncoderError):
    """An encoder, or one item alone, does not fit the device's memory."""


class FingerprintMismatchError(EmbedxError):
    """Two artefacts come from different encoders and must not be combined."""


class StoreError(EmbedxError):
    """A store, index or head is absent, damaged or of another kind."""


class TooManyFailuresError(EmbedxError):
    """More items failed than the run allows; nothing was published, everything is kept."""

    exit_code = 3


class BusyError(EmbedxError):
    """Somebody else holds the store, or the scheduler cannot be reached: try again later."""

    exit_code = 75


class InterruptedRunError(EmbedxError):
    """A signal stopped the run; the same command resumes it.

    Args:
        message: what was stopped.
        remedy: how to go on.
        signal_number: 2 or 15; the exit status is 128 plus it.
    """

    def __init__(self, message: str, remedy: str = "", signal_number: int = 2) -> None:
        super().__init__(message, remedy)
        self.exit_code = 128 + signal_number
