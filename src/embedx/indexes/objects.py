"""An index in an object store: built here and uploaded whole, CURRENT last; read through a local cache.

index/
  CURRENT                    "0002": replaced by one PUT, after everything else
  lease.json                 held by the one builder
  versions/0002/             index.faiss  ids.parquet  card.json; never changed

FAISS maps a local file. A version's card has the digests of its files, so the card's own digest is the key of the
cache: what lies there under it is that version, and nothing is fetched twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from embedx.core.digests import file_sha256
from embedx.core.errors import BusyError, StoreError
from embedx.core.paths import cache_dir
from embedx.core.places import Url
from embedx.indexes.folder import VersionFiles
from embedx.store.files import open_files
from embedx.store.lease import Lease, holding
from embedx.store.objects import ObjectFiles

_VERSION = re.compile(r"\d{4,}")
_UNUSED_S = 7 * 86_400
"""Cached versions that nobody has opened for so long go when a new one comes."""


def fetch_version(place: Url) -> VersionFiles:
    """Return the current version of an index, as it lies in the local cache; it is fetched if need be.

    Raises:
        StoreError: there is no index, CURRENT names none, or a file is not the one that its card describes.
        BusyError: the object store cannot be reached.
    """
    files = open_files(place)
    try:
        number = files.read("CURRENT").decode("utf-8", "replace").strip()
    except FileNotFoundError:
        if files.exists():
            raise StoreError(
                f"{place} is not an embedx index", "Pass the place given as --out to embedx index"
            ) from None
        raise StoreError(f"{place} does not exist", f"Create it with: embedx index STORE --out {place}") from None
    try:
        if not _VERSION.fullmatch(number):
            raise FileNotFoundError
        card = files.read(f"versions/{number}/card.json")
    except FileNotFoundError:
        raise StoreError(
            f"{place}/CURRENT names {number[:40]!r}, which is no version of it",
            "Build the index again with embedx index",
        ) from None
    cached = _cached(place, card, number)
    if not cached.is_dir():
        _make_room(cached.parent.parent)
        with _building(place) as folder:
            _fetch(place, number, card, folder)
            _move(folder, cached)
    os.utime(cached.parent)
    return VersionFiles(cached, place)


def _fetch(place: Url, number: str, card: bytes, folder: Path) -> None:
    files = open_files(place)
    (folder / "card.json").write_bytes(card)
    try:
        described = json.loads(card)["files"]
        wanted = {name: str(described[name]["sha256"]) for name in ("index.faiss", "ids.parquet")}
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{place}/versions/{number}/card.json is damaged ({error})", "Build the index again") from None
    for name, sha256 in wanted.items():
        where = f"{place}/versions/{number}/{name}"
        try:
            fetched = files.fetch(f"versions/{number}/{name}", folder).rename(folder / name)
        except FileNotFoundError:
            raise StoreError(f"{where} is missing", "Build the index again with embedx index") from None
        if file_sha256(fetched) != sha256:
            raise StoreError(f"{where} was changed: its sha256 is not the card's", "Build the index again")


@dataclass(frozen=True)
class PendingObjects:
    """A version being written, in a local folder.

    Attributes:
        place: the index.
        files: where its files go meanwhile.
        lease: of the one builder.
    """

    place: Url
    files: VersionFiles
    lease: Lease

    def publish(self) -> VersionFiles:
        """Upload the files under their version's name, the card last, then point CURRENT at it."""
        there = ObjectFiles(self.place)
        taken = {entry.name.split("/")[1] for entry in there.list("versions/")}
        number = f"{max((int(name) for name in taken if name.isdigit()), default=0) + 1:04d}"
        for path in (self.files.index, self.files.ids, self.files.card):
            there.upload(f"versions/{number}/{path.name}", path)
        self.lease.check()
        there.write("CURRENT", f"{number}\n".encode())
        # What was built here need not be fetched.
        cached = _cached(self.place, self.files.card.read_bytes(), number)
        _move(self.files.folder, cached)
        return VersionFiles(cached, self.place)


@contextmanager
def new_objects(place: Url) -> Iterator[PendingObjects]:
    """Hold an index's place for one build.

    Raises:
        StoreError: the place is something else, or cannot be written.
        BusyError: another build holds it.
    """
    there = ObjectFiles(place)
    folders, names = there.folders()
    strangers = sorted((folders - {"versions"}) | (names - {"CURRENT", "lease.json"}))
    if strangers and "CURRENT" not in names:
        raise StoreError(
            f"{place} is not empty and is no embedx index (it holds {strangers[0]!r})",
            "Pass a new or empty place as --out",
        )
    try:
        with holding(there, "lease.json") as lease, _building(place) as folder:
            _remove_unfinished(there)
            yield PendingObjects(place, VersionFiles(folder, place), lease)
    except BusyError as error:
        raise BusyError(error.message.replace("writing to", "building"), error.remedy) from None


def _remove_unfinished(there: ObjectFiles) -> None:
    """Delete what a build that was killed has left: versions without a card."""
    names = [entry.name for entry in there.list("versions/")]
    whole = {name.split("/")[1] for name in names if name.endswith("/card.json")}
    there.delete(name for name in names if name.split("/")[1] not in whole)


@contextmanager
def _building(place: Url) -> Iterator[Path]:
    """Give a folder beside the cached versions of an index."""
    home = _home(place)
    home.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=home, prefix=".building-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _home(place: Url) -> Path:
    return cache_dir() / "indexes" / hashlib.sha256(str(place).encode()).hexdigest()[:16]


def _cached(place: Url, card: bytes, number: str) -> Path:
    return _home(place) / hashlib.sha256(card).hexdigest()[:16] / number


def _move(folder: Path, cached: Path) -> None:
    cached.parent.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):  # Another process has just done the same.
        folder.rename(cached)


def _make_room(home: Path) -> None:
    if not home.is_dir():
        return
    for folder in home.iterdir():
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > _UNUSED_S:
                shutil.rmtree(folder, ignore_errors=True)
