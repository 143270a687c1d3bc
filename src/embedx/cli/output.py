"""What a command prints: one JSON object or a short summary on stdout, progress and errors on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from typing import Annotated, TextIO

import typer

from embedx.core.reports import Progress, ProgressHook, Report

AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print exactly one JSON object, the report, on stdout.", rich_help_panel="Output"),
]

LINE_EVERY_S = 30.0
"""Without a terminal, progress is one line this often."""


def show_report(report: Report, as_json: bool, lines: Iterable[str]) -> None:
    """Print a report: as JSON, or as the lines of its human summary."""
    if as_json:
        sys.stdout.write(json.dumps(report, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def show_error(message: str, remedy: str, code: int, as_json: bool) -> int:
    """Print an error in one line (or one JSON object) and return its exit status."""
    if as_json:
        error = {"error": {"code": code, "message": message, "remedy": remedy}}
        sys.stdout.write(json.dumps(error, ensure_ascii=False) + "\n")
    else:
        sys.stderr.write(f"embedx: {message}{'. ' + remedy if remedy else ''}\n")
    return code


def format_seconds(seconds: float) -> str:
    """Return `4.2 s`, `3 min 05 s` or `2 h 07 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def format_bytes(size: float) -> str:
    """Return a size with a binary unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


class ProgressLine:
    """Shows progress: a live line on a terminal, else one line every 30 s."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._last = 0.0
        self._note = ""
        self._open = False

    def __call__(self, progress: Progress) -> None:
        """Show the present state, if it is time to."""
        now = time.monotonic()
        new_note = progress.note != self._note
        if not new_note and now - self._last < (0.2 if self._live else LINE_EVERY_S):
            return
        self._last, self._note = now, progress.note
        text = self._text(progress)
        if self._live:
            self._stream.write(f"\r\x1b[2K{text}")
            self._open = True
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def close(self) -> None:
        """End a live line, so that what follows starts on a fresh one."""
        if self._open:
            self._stream.write("\r\x1b[2K")
            self._stream.flush()
            self._open = False

    @staticmethod
    def _text(progress: Progress) -> str:
        parts = [progress.step]
        if progress.total:
            parts.append(f"{progress.done:,}/{progress.total:,} ({100 * progress.done / progress.total:.0f} %)")
            if progress.done > progress.reused:
                parts.append(f"{progress.rate:,.0f}/s")
            if progress.eta_s is not None and progress.done < progress.total:
                parts.append(f"{format_seconds(progress.eta_s)} left")
            if progress.failed:
                parts.append(f"{progress.failed:,} failed")
        if progress.note:
            parts.append(progress.note)
        return "  ".join(parts)


def progress_hook(quiet: bool = False) -> ProgressHook:
    """Return where a step should report its progress."""
    from embedx.core.reports import no_progress

    return no_progress if quiet else ProgressLine()
