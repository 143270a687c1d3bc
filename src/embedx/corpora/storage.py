"""Files wherever they are: local paths, and URLs. The one place that opens what a source names."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from stat import S_ISREG
from typing import Any, BinaryIO

from embedx.core.errors import CorpusError
from embedx.core.redaction import redact
from embedx.core.specs import Access
from embedx.corpora.errors import CHANGED, ReadError, changed
from embedx.corpora.locators import is_remote, scheme_of
from embedx.corpora.ranges import open_ranges
from embedx.corpora.systems import S3, WEB, iterate_files, open_system, read_s3_range
from embedx.corpora.web import WebFiles

MARKS = ("ETag", "etag", "md5Hash", "content_md5", "Content-MD5", "LastModified", "last_modified", "Last-Modified")
"""What file systems call the things that change with an object, the most telling first."""

ANEW = 3
"""Tries at an object that is replaced while it is read."""


@dataclass(frozen=True)
class FileInfo:
    """A file that was found.

    Attributes:
        place: its path or URL.
        size_bytes: of it.
        token: changes whenever the file may have changed; without the secret parts of a URL.
        tag: of an object, by which its server can tell whether it is still the same; empty if there is none.
    """

    place: str
    size_bytes: int
    token: str
    tag: str = ""


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

    def open(self, place: str, known: FileInfo | None = None) -> BinaryIO:
        """Open a file for reading from its beginning; seekable. A remote one is the same object to its end.

        Args:
            place: its path or URL.
            known: what `info` said of it.

        Raises:
            CorpusError: it cannot be opened; reading raises it, too.
        """
        if not is_remote(place):
            return open(place, "rb")
        with self._naming(place):
            file = known or self.info(place)

        def read(offset: int, length: int) -> bytes:
            with self._naming(place):
                return self.read_range(file, offset, length)

        return open_ranges(read, file.size_bytes)

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

    def read_range(self, file: FileInfo, offset: int, length: int) -> bytes:
        """Read some bytes of a remote file, of exactly the one that was described.

        Raises:
            ReadError: they could not be read, or not all of them, or the file is another one by now.
        """
        if not length:
            return b""
        place, system = file.place, self._system(file.place)
        is_checked = bool(file.tag) and scheme_of(place) in (*S3, *WEB)
        try:
            if isinstance(system, WebFiles):
                data = system.read_range(place, offset, offset + length, file.tag)
            elif is_checked:
                data = read_s3_range(system, place, offset, offset + length, file.tag)
            else:
                data = system.cat_file(place, start=offset, end=offset + length)
        except Exception as error:
            if not isinstance(error, (ReadError, FileNotFoundError)) and self._is_another(file):
                raise changed(place) from error
            raise self._failed(place, error) from error
        if not is_checked and self._is_another(file):
            raise changed(place)
        if len(data) != length:
            raise ReadError(f"{place} gave {len(data):,} bytes instead of {length:,} at {offset:,}", "ShortRead")
        return data

    def read_file(self, place: str, limit: int, token: str = "") -> bytes:
        """Read a whole remote file; one that was replaced since it was listed is read as it is now.

        Args:
            place: its URL.
            limit: bytes; a larger file is refused unread.
            token: of its `FileInfo` when it was listed, which saves asking again.

        Raises:
            ReadError: it cannot be read, is too large, or changes all the time.
        """
        file = _known_file(place, token) or self.info(place)
        for attempt in range(ANEW):
            if file.size_bytes > limit:
                raise ReadError(
                    f"{place} has {file.size_bytes:,} bytes; more than {limit:,} are refused unread",
                    "FileTooLarge",
                    False,
                )
            try:
                return self.read_range(file, 0, file.size_bytes)
            except ReadError as error:
                if error.error != CHANGED or attempt + 1 == ANEW:
                    raise
                file = self.info(place)
        raise AssertionError

    def _is_another(self, file: FileInfo) -> bool:
        try:
            return self.info(file.place).token != file.token
        except ReadError:
            return False

    def is_folder(self, place: str) -> bool:
        """Whether a place is a local folder, or a prefix of a remote file system.

        Raises:
            CorpusError: there is nothing at all.
        """
        if not is_remote(place):
            return os.path.isdir(place)
        if place.endswith("/"):
            return True
        if scheme_of(place) in WEB:
            return False
        with self._naming(place):
            return bool(self._system(place).isdir(place))

    def find(self, prefix: str) -> Iterator[FileInfo]:
        """Yield the files below a remote prefix, as they are listed.

        Raises:
            CorpusError: it cannot be listed.
        """
        if scheme_of(prefix) in WEB:
            raise CorpusError(f"{prefix} cannot be listed", "A web server has no folders: give a table of URLs")
        with self._naming(prefix):
            for place, info in iterate_files(self._system(prefix), prefix):
                yield _file_info(place, info)

    def hide(self, error: BaseException) -> str:
        """Return an error's message on one line, without secrets."""
        return self.access.hide(" ".join(str(error).split()))[:300] or type(error).__name__

    def _system(self, place: str) -> Any:
        return open_system(scheme_of(place), self.access)

    def _failed(self, place: str, error: Exception) -> ReadError:
        if isinstance(error, ReadError):
            return error
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


def _file_info(place: str, info: dict[str, Any]) -> FileInfo:
    if info.get("type") == "directory":
        raise ReadError(f"{place} is no file but a prefix", "NotAFile", False)
    size = int(info.get("size") or 0)
    mark = next((str(info[name]) for name in MARKS if info.get(name)), "")
    tag = str(info.get("ETag") or "")
    # S3 takes a tag with quotes or without, as its versions of listing and description give it.
    tag = tag.strip('"') if scheme_of(place) in S3 else tag
    return FileInfo(place, size, f"{size}:{mark.strip(chr(34))}:{redact(place)}", tag)


def _known_file(place: str, token: str) -> FileInfo | None:
    """Return what a token of an S3 object says; None for others, whose tags do not stand in it."""
    size, _, rest = token.partition(":")
    mark = rest.removesuffix(f":{place}")
    if scheme_of(place) not in S3 or not size.isdigit() or mark == rest or not mark:
        return None
    return FileInfo(place, int(size), token, mark)
