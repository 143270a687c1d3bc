"""Reading an item's content: its bytes, wherever they are, their digest, and the decoded item or why there is none."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import xxhash

from embedx.core.contracts import Broken
from embedx.core.redaction import is_redacted, redact
from embedx.core.specs import NO_ACCESS, Access
from embedx.corpora.cells import CellReader
from embedx.corpora.decode import MAX_FILE_BYTES, decode_image
from embedx.corpora.errors import ReadError, changed
from embedx.corpora.locators import Locator, is_remote, parse_locator, scheme_of
from embedx.corpora.plugins import PluginTable, open_plugin
from embedx.corpora.prefetch import Prefetcher, Unit, plan_units
from embedx.corpora.storage import FileInfo, shared_storage, stat_token
from embedx.corpora.values import printable

HANDLES_KEPT = 16
"""Open tars and tables of a shard; its rows stand in the order of their files."""

DIGEST_THREADS = 8

T = TypeVar("T")


@dataclass(frozen=True)
class Content:
    """An item's content.

    Attributes:
        item: a decoded image, or a Broken.
        digest: xxh3-128 (hex) of the bytes; empty if they could not be read.
        size_bytes: of the content.
        is_reduced: whether it is a JPEG that was decoded at less than its size.
    """

    item: Any
    digest: str
    size_bytes: int
    is_reduced: bool = False


def read_image(locator: str, access: Access = NO_ACCESS, jpeg_side: int = 0) -> Content:
    """Read and decode one image; failures are values. For many, an `ImageReader` is faster."""
    with ImageReader([locator], access=access, jpeg_side=jpeg_side) as reader:
        return reader.read(0)


def digest_images(locators: Sequence[str], access: Access = NO_ACCESS) -> list[str | None]:
    """Return the xxh3-128 (hex) of the bytes of images; None for what cannot be read.

    None, too, for what only a web server has: it is fetched once, by the worker that embeds it.
    """
    here = ["" if scheme_of(locator) in ("http", "https") else locator for locator in locators]
    with ImageReader(here, access=access) as reader, ThreadPoolExecutor(DIGEST_THREADS) as pool:
        return list(pool.map(reader.digest, range(len(here))))


class ImageReader:
    """Reads the images of some rows, in about their order, from several threads.

    Args:
        locators: where they are.
        identities: what they were when they were listed; tars and tables that are others now are not read.
        access: of remote files.
        jpeg_side: see `decode_image`.
    """

    def __init__(
        self,
        locators: Sequence[str],
        identities: Sequence[str] | None = None,
        access: Access = NO_ACCESS,
        jpeg_side: int = 0,
    ) -> None:
        self._names = [redact(locator) for locator in locators]
        self._identities = identities
        self._access = access
        self._jpeg_side = jpeg_side
        self._locators = [parse_locator(locator) for locator in locators]
        self._tars: _Kept[_Tar] = _Kept()
        self._files: _Kept[FileInfo] = _Kept()
        self._cells: _Kept[CellReader] = _Kept()
        self._plugins: _Kept[PluginTable] = _Kept()
        self._prefetcher = Prefetcher(plan_units(self._locators), self._read_unit)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._prefetcher.close()

    def read(self, position: int) -> Content:
        """Read and decode an image."""
        name = self._names[position]
        try:
            data = self._bytes(position)
        except ReadError as error:
            return Content(Broken("read", error.error, printable(str(error)), error.retryable), "", 0)
        except MemoryError:
            return Content(Broken("read", "MemoryError", f"no memory left to read {name}", True), "", 0)
        item = decode_image(data, name, self._jpeg_side)
        is_reduced = not isinstance(item, Broken) and "jpeg_scale" in item.info
        return Content(item, xxhash.xxh3_128_hexdigest(data), len(data), is_reduced)

    def digest(self, position: int) -> str | None:
        """Return the xxh3-128 (hex) of an image's bytes, or None if they cannot be read."""
        try:
            return xxhash.xxh3_128_hexdigest(self._bytes(position))
        except (ReadError, MemoryError):
            return None

    def _bytes(self, position: int) -> bytes:
        locator = self._locators[position]
        if is_remote(locator.place) and is_redacted(locator.place):
            raise ReadError(
                f"{locator} is kept without its signature, so that it cannot be fetched again", "Redacted", False
            )
        if locator.kind in ("parquet", "arrow"):
            return self._cell(position, locator)
        if locator.kind == "plugin":
            return self._plugins.get(locator.place, lambda: open_plugin(locator.place, self._access)).read(locator.key)
        if is_remote(locator.place):
            unit, data = self._prefetcher.take(position)
            return data if locator.kind == "file" else data[locator.offset - unit.start :][: locator.length]
        if locator.kind == "tar":
            tar = self._tars.get(locator.place, lambda: _Tar(locator.place))
            try:
                return tar.read(locator.offset, locator.length)
            finally:
                self._check(position, tar.token)  # after it: a tar may be written anew in its place at any moment
        return _read_file(locator.place)

    def _cell(self, position: int, locator: Locator) -> bytes:
        reader = self._cells.get(f"{locator.place}\0{locator.column}", lambda: CellReader(locator, self._access))
        self._check(position, reader.token)
        cell = reader.read(locator.row)
        if cell.data is not None:
            return cell.data
        if is_remote(locator.place) or scheme_of(cell.path or ""):
            raise ReadError(f"{locator} holds no bytes but the path {cell.path!r}", "NoBytes", False)
        return _read_file(os.path.join(os.path.dirname(locator.place), cell.path or ""))

    def _check(self, position: int, token: str) -> None:
        """Refuse a file that was replaced since it was listed: its bytes there are another item's by now."""
        if self._identities is not None and not self._identities[position].endswith(token):
            raise changed(self._locators[position].place)

    def _read_unit(self, unit: Unit) -> bytes:
        storage, first = shared_storage(self._access), unit.positions[0]
        if unit.stop:
            # Asked for once: each range is then read only if the file is still the same.
            file = self._files.get(unit.place, lambda: storage.info(unit.place))
            self._check(first, file.token)
            return storage.read_range(file, unit.start, unit.stop - unit.start)
        if scheme_of(unit.place) in ("http", "https"):
            from embedx.corpora.http import shared_fetcher

            return shared_fetcher(self._access).fetch(unit.place)
        identity = self._identities[first] if self._identities is not None else ""
        return storage.read_file(unit.place, MAX_FILE_BYTES, identity)


class _Tar:
    """An open local tar. Closed when nobody holds it any more: a thread may still read when another makes room."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._file = -1
        try:
            self._file = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise ReadError(f"{place}: {error.strerror}", type(error).__name__) from None

    @property
    def token(self) -> str:
        """Of the open file as it is now."""
        return stat_token(os.fstat(self._file), self._place)

    def read(self, offset: int, length: int) -> bytes:
        if length > MAX_FILE_BYTES:
            raise ReadError(f"{self._place} has a member of {length:,} bytes, which is refused", "FileTooLarge", False)
        try:
            data = os.pread(self._file, length, offset)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ReadError(f"{self._place}: {reason}", type(error).__name__) from None
        if len(data) != length:
            raise ReadError(f"{self._place} ends within the member at byte {offset:,}", "CutOff")
        return data

    def __del__(self) -> None:
        if self._file >= 0:
            os.close(self._file)


class _Kept(Generic[T]):
    """The things opened last, by name."""

    def __init__(self) -> None:
        self._things: OrderedDict[str, T] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str, make: Callable[[], T]) -> T:
        with self._lock:
            if name not in self._things:
                self._things[name] = make()
            self._things.move_to_end(name)
            while len(self._things) > HANDLES_KEPT:
                self._things.popitem(last=False)
            return self._things[name]


def _read_file(path: str) -> bytes:
    try:
        stat = os.stat(path)
        # What must not even be read: it might never end, or not fit the memory.
        if not S_ISREG(stat.st_mode):
            raise ReadError(f"{path} is no file but a folder, pipe, socket or device", "NotAFile", False)
        if stat.st_size > MAX_FILE_BYTES:
            raise ReadError(
                f"{path} has {stat.st_size:,} bytes; more than {MAX_FILE_BYTES:,} are refused unread",
                "FileTooLarge",
                False,
            )
        return Path(path).read_bytes()
    except OSError as error:
        # A file system that hiccups may not the next time: worth another try.
        raise ReadError(f"{path}: {error.strerror or error}", type(error).__name__) from None
    except ValueError as error:
        raise ReadError(f"{printable(path)!r} can be no path: {error}", "ValueError", False) from None
