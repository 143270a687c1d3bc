"""Folders as sources: every entry is listed as an image file, or counted with the reason why not."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from embedx.core.errors import CorpusError
from embedx.corpora.decode import IMAGE_SUFFIXES

MAX_REASONS = 100
"""Distinct suffixes that are counted one by one: numbered files (`scan.00001`) have a new one each."""

_SUFFIX = re.compile(r"\.\w{1,16}")
"""What is shown as a suffix. Others may hold line breaks, control sequences of terminals, or bytes that are no text."""


def iterate_images(root: Path, ignored: Counter[str]) -> Iterator[tuple[str, str]]:
    """Yield (absolute path, path relative to `root`) of image files, sorted by folder.

    Links to files are followed, links to folders are not: they may lead in circles.

    Args:
        root: the folder.
        ignored: counts the other entries, by suffix or reason; a hidden folder or a link to one counts once.

    Raises:
        CorpusError: a folder cannot be listed.
    """
    top = os.path.abspath(root)
    stack = [top]
    while stack:
        folder = stack.pop()
        subfolders = []
        for entry in _entries(folder):
            if reason := _reason_to_ignore(entry):
                ignored[_bounded(reason, ignored)] += 1
            elif entry.is_dir(follow_symlinks=False):
                subfolders.append(entry.path)
            else:
                yield entry.path, os.path.relpath(entry.path, top).replace(os.sep, "/")
        stack.extend(reversed(subfolders))


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise CorpusError(f"cannot list {folder}: {error.strerror}", "Check its permissions") from error


def _reason_to_ignore(entry: os.DirEntry[str]) -> str | None:
    is_folder = entry.is_dir(follow_symlinks=False)
    if entry.name.startswith("."):
        return "hidden folder" if is_folder else "hidden"
    if is_folder:
        return None
    if os.path.isdir(entry.path):
        return "link to a folder"
    suffix = os.path.splitext(entry.name)[1].lower()
    return None if suffix in IMAGE_SUFFIXES else _shown(suffix)


def suffix_reason(suffix: str, ignored: Counter[str]) -> str:
    """Return under which name a file that is no image is counted."""
    return _bounded(_shown(suffix), ignored)


def _shown(suffix: str) -> str:
    return "no suffix" if not suffix else suffix if _SUFFIX.fullmatch(suffix) else "other suffix"


def _bounded(reason: str, ignored: Counter[str]) -> str:
    return reason if reason in ignored or len(ignored) < MAX_REASONS else "other suffix"
