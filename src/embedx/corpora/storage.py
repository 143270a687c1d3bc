"""Files wherever they are: local paths, and URLs through fsspec. The one place that opens what a source names."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from stat import S_ISREG
from typing import Any, BinaryIO

from embedx.core.errors import CorpusError
from embedx.core.places import Access
from embedx.core.storage_options import fsspec_options
from embedx.corpora.locators import is_remote, scheme_of

READAHEAD_BYTES = 2**20
"""Of a remote file that is read from its beginning."""

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az", "abfss": "az"}
EXTRAS |= {"http": "http", "https": "http"}
"""Scheme -> the extra of embedx that brings its library."""

TIMEOUTS: dict[str, dict[str, Any]] = {"s3": {"config_kwargs": {"connect_timeout": 10, "read_timeout": 60}}}


@dataclass(frozen=True)
class FileInfo:
    """A file that was found.

    Attributes:
        place: its path or URL.
        size_bytes: of it.
        token: changes whenever the file may have changed.
    """

    place: str
    size_bytes: int
    token: str


class ReadError(Exception):
    """Bytes could not be read; an item's failure, not the run's.

    Args:
        message: what a person can act on.
        error: a short name of the cause.
        retryable: whether another try may help.
    """

    def __init__(self, message: str, error: str = "ReadError", retryable: bool = True) -> None:
        super().__init__(message)
        self.error = error
        self.retryable = retryable


def file_identity(place: str) -> str:
    """Return a token that changes whenever a local file may have changed; `missing` if there is none.

    It has the path, for a table may point an id to another file of like size and time, and the ctime, which tells
    two swapped files apart. Where any of it differs, the file's digest decides.
    """
    try:
        return stat_token(os.stat(place), place)
    except (OSError, ValueError):  # ValueError: a NUL character in the path
        return "missing"


def stat_token(stat: os.stat_result, place: str) -> str:
    """Return the token of a local file from its stat."""
    return f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}:{place}"


class Storage:
    """Opens, lists and describes files. Thread-safe; use `shared_storage`.

    Args:
        access: credentials and options of remote file systems.
    """

    def __init__(self, access: Access) -> None:
        self.access = access

    def open(self, place: str, readahead: int = READAHEAD_BYTES) -> BinaryIO:
        """Open a file for reading from its beginning.

        Args:
            place: its path or URL.
            readahead: bytes fetched beyond what is asked for, of a remote file.

        Raises:
            CorpusError: it cannot be opened.
        """
        if not is_remote(place):
            return open(place, "rb")
        with self._naming(place):
            file: BinaryIO = self._system(place).open(place, "rb", block_size=readahead, cache_type="readahead")
            return file

    def info(self, place: str) -> FileInfo:
        """Describe a file.

        Raises:
            ReadError: it is not there, or is no file.
        """
        if is_remote(place):
            try:
                return _file_info(place, self._system(place).info(place))
            except Exception as error:  # every library behind fsspec raises its own
                raise self._failed(place, error) from error
        try:
            stat = os.stat(place)
        except (OSError, ValueError) as error:
            raise ReadError(f"{place}: {getattr(error, 'strerror', None) or error}", type(error).__name__) from error
        if not S_ISREG(stat.st_mode):
            raise ReadError(f"{place} is no file but a folder, pipe, socket or device", "NotAFile", False)
        return FileInfo(place, stat.st_size, stat_token(stat, place))

    def read_range(self, place: str, offset: int, length: int) -> bytes:
        """Read some bytes of a remote file.

        Raises:
            ReadError: they could not be read, or not all of them.
        """
        if not length:
            return b""
        try:
            data: bytes = self._system(place).cat_file(place, start=offset, end=offset + length)
        except Exception as error:
            raise self._failed(place, error) from error
        if len(data) != length:
            # Servers that know no ranges send the whole file.
            raise ReadError(f"{place} gave {len(data):,} bytes instead of {length:,} at {offset:,}", "ShortRead")
        return data

    def read_file(self, place: str, limit: int) -> bytes:
        """Read a whole remote file.

        Raises:
            ReadError: it cannot be read, or is larger than `limit` bytes.
        """
        info = self.info(place)
        if info.size_bytes > limit:
            raise ReadError(
                f"{place} has {info.size_bytes:,} bytes; more than {limit:,} are refused unread", "FileTooLarge", False
            )
        return self.read_range(place, 0, info.size_bytes)

    def is_folder(self, place: str) -> bool:
        """Whether a place is a local folder, or a prefix of a remote file system.

        Raises:
            CorpusError: there is nothing at all.
        """
        if not is_remote(place):
            return os.path.isdir(place)
        if place.endswith("/"):
            return True
        with self._naming(place):
            return bool(self._system(place).isdir(place)) and scheme_of(place) not in ("http", "https")

    def find(self, prefix: str) -> Iterator[FileInfo]:
        """Yield the files below a remote prefix, sorted by name; they are listed once.

        Raises:
            CorpusError: it cannot be listed.
        """
        if scheme_of(prefix) in ("http", "https"):
            raise CorpusError(f"{prefix} cannot be listed", "A web server has no folders: give a table of URLs")
        system = self._system(prefix)
        with self._naming(prefix):
            # Not from a cache: a second listing in this process must see what is new.
            system.invalidate_cache()
            found: dict[str, dict[str, Any]] = system.find(prefix, detail=True)
        for name in sorted(found):
            if found[name].get("type") != "directory" and not name.endswith("/"):
                yield _file_info(f"{scheme_of(prefix)}://{name.partition('://')[2] or name}", found[name])

    def hide(self, error: BaseException) -> str:
        """Return an error's message on one line, without secrets."""
        return self.access.hide(" ".join(str(error).split()))[:300] or type(error).__name__

    def _system(self, place: str) -> Any:
        return _open_system(scheme_of(place), self.access)

    def _failed(self, place: str, error: Exception) -> ReadError:
        if isinstance(error, CorpusError):
            return ReadError(error.message, "NoFileSystem", False)
        gone = isinstance(error, FileNotFoundError)
        what = "does not exist" if gone else self.hide(error)
        return ReadError(f"{place}: {what}", type(error).__name__)

    @contextmanager
    def _naming(self, place: str) -> Iterator[None]:
        try:
            yield
        except CorpusError:
            raise
        except Exception as error:  # every library behind fsspec raises its own
            raise CorpusError(
                f"{place} cannot be read ({self._failed(place, error)})",
                "Check the URL, the credentials (environment or --storage-option) and the network",
            ) from None


@functools.lru_cache(maxsize=16)
def shared_storage(access: Access) -> Storage:
    """Return this process's storage for an access."""
    return Storage(access)


@functools.lru_cache(maxsize=32)
def _open_system(scheme: str, access: Access) -> Any:
    import fsspec

    options = _nested({name: _option(value) for name, value in fsspec_options(access, scheme).items()})
    if scheme in ("http", "https"):
        options = {name: value for name, value in options.items() if name in ("client_kwargs", "headers")}
    # Without its cache of listings a prefix is listed when it is asked for, and what has changed is seen.
    options = {**TIMEOUTS.get(scheme.removesuffix("a"), {}), "use_listings_cache": False, **options}
    try:
        return fsspec.filesystem(scheme, **options)
    except ImportError as error:
        extra = f"pip install 'embedx[{EXTRAS[scheme]}]'" if scheme in EXTRAS else "Install what the message names"
        raise CorpusError(f"{scheme}:// needs a library that is not installed ({error})", extra) from None
    except (TypeError, ValueError) as error:
        raise CorpusError(
            f"the file system of {scheme}:// does not take these options ({access.hide(str(error))})",
            "Check the --storage-option flags",
        ) from None


def _nested(options: dict[str, Any]) -> dict[str, Any]:
    # s3fs takes the region only as an argument of the client below it.
    if "region" in options:
        region = {"region_name": options.pop("region")}
        options["client_kwargs"] = {**region, **options.get("client_kwargs", {})}
    return options


def _option(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if text.startswith("{"):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def _file_info(place: str, info: dict[str, Any]) -> FileInfo:
    if info.get("type") == "directory":
        raise ReadError(f"{place} is no file but a prefix", "NotAFile", False)
    size = int(info.get("size") or 0)
    marks = (info.get(name) for name in ("ETag", "etag", "md5Hash", "content_md5", "LastModified", "last_modified"))
    mark = next((str(value).strip('"') for value in marks if value), "")
    return FileInfo(place, size, f"{size}:{mark}:{place}")
