"""What a command prints: one JSON object or a short summary on stdout, progress and errors on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from typing import Annotated, TextIO

import typer

from embedx.core.reports import Progress, Report

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
        sys.stdout.write("\n".join(_printable(line) for line in lines) + "\n")
    sys.stdout.flush()


def _printable(line: str) -> str:
    """Escape control characters: an id must not move the cursor and hide its own line."""
    return "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in line)


def show_error(message: str, remedy: str, code: int, as_json: bool) -> int:
    """Print an error in one line (or one JSON object) and return its exit status."""
    if as_json:
        error = {"error": {"code": code, "message": message, "remedy": remedy}}
        sys.stdout.write(json.dumps(error, ensure_ascii=False) + "\n")
    else:
        sys.stderr.write(f"{_printable(f'embedx: {message}' + ('. ' + remedy if remedy else ''))}\n")
    return code


def note_error(error: Report, as_json: bool) -> int:
    """Say the error that a report holds, where the report itself was not printed whole; return its exit status."""
    if not as_json:
        show_error(error["message"], error["remedy"], error["code"], as_json=False)
    return int(error["code"])


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
    """Shows progress: a bar on a terminal, else one line every 30 s and one for each new note."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._bar: _Bar | None = None
        self._last = 0.0
        self._note = ""

    def __call__(self, progress: Progress) -> None:
        """Show the present state, if it is time to."""
        if self._stream.isatty():
            if self._bar is None:
                self._bar = _Bar(self._stream)
            self._bar.show(progress)
            return
        now = time.monotonic()
        if progress.note != self._note or now - self._last >= LINE_EVERY_S:
            self._last, self._note = now, progress.note
            self._stream.write(progress_text(progress) + "\n")
            self._stream.flush()

    def close(self) -> None:
        """Take the bar away, so that what follows starts on a fresh line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class _Bar:
    """A rich progress bar with our own rate and time left: rich's would count what was reused."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        columns = (TextColumn("{task.fields[step]}"), BarColumn(bar_width=24), TextColumn("{task.fields[text]}"))
        self._rich = RichProgress(*columns, console=Console(file=stream), transient=True)
        self._task = self._rich.add_task("", total=None, step="", text="")
        self._rich.start()

    def show(self, progress: Progress) -> None:
        text = progress_text(progress).removeprefix(progress.step).strip()
        total = progress.total or None
        self._rich.update(self._task, total=total, completed=progress.done, step=progress.step, text=text)

    def close(self) -> None:
        self._rich.stop()


def progress_text(progress: Progress) -> str:
    """Return the state in one line: count, rate, time left, failures, note."""
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
