"""Verifying an index: everything that opening checks, and the digests of its files."""

from __future__ import annotations

from embedx.core.digests import file_sha256
from embedx.core.errors import StoreError
from embedx.core.places import Place
from embedx.indexes.search import open_index


def find_problems(path: str | Place) -> list[str]:
    """Return what is wrong with the current version of an index, one line each; empty when nothing is."""
    try:
        index = open_index(path)
    except StoreError as error:
        return [error.message]
    problems = []
    for name, promised in index.card.files.items():
        member = index.files.folder / name
        if file_sha256(member) != promised["sha256"]:
            problems.append(f"{member} was changed: its sha256 is not the card's")
    return problems
