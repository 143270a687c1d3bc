"""A head in an object store: the card is replaced last, by one PUT, and names an estimator that is never overwritten.

head/   head-<sha256>.skops   the estimator, under the beginning of its digest
        card.json             what it is; until it is replaced the older head stands
        report.html           for people
"""

from __future__ import annotations

import hashlib
import re

from embedx.core.errors import StoreError
from embedx.core.places import Url
from embedx.store.files import open_files

_OURS = re.compile(r"head(-[0-9a-f]{12})?\.skops|report\.html|card\.json")


def estimator_name(sha256: str) -> str:
    """Return the name of an estimator's object."""
    return f"head-{sha256[:12]}.skops"


def check_prefix(place: Url) -> None:
    """Refuse a prefix where no head can or should be written, before any work is done.

    Raises:
        StoreError: it holds something that is no head, or cannot be written.
        BusyError: the object store cannot be reached.
    """
    files = open_files(place)
    folders, names = files.folders()
    strangers = sorted(folders | {name for name in names if not _OURS.fullmatch(name)})
    if strangers:
        raise StoreError(
            f"{place} is not empty and is no embedx head (it holds {strangers[0]!r})",
            "Pass a new or empty place as --out",
        )
    files.try_writing("", "")


def write_head(place: Url, contents: dict[str, bytes]) -> None:
    """Write a head, in place of an older one if there is one.

    Args:
        place: where to.
        contents: of `head.skops`, `report.html` and `card.json`.
    """
    check_prefix(place)
    files = open_files(place)
    estimator = contents["head.skops"]
    name = estimator_name(hashlib.sha256(estimator).hexdigest())
    files.write(name, estimator)
    files.write("card.json", contents["card.json"])
    files.write("report.html", contents["report.html"])
    files.delete(old for old in files.folders()[1] if old.endswith(".skops") and old != name)
