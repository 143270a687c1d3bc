"""Files in an object store, by obstore: the Rust library that Delta's own uses, so both are reached in the same way.

A file is one object: one PUT makes it appear whole. `If-None-Match` creates only where nothing is, `If-Match`
replaces only what one has read; both are the object store's own promise, so no server of ours is needed.
"""

from __future__ import annotations

import functools
import io
import re
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from embedx.core.errors import BusyError, EmbedxError, StoreError
from embedx.core.places import Url
from embedx.core.storage_options import NAMES, object_options
from embedx.store.files import Data, Entry

TAIL_BYTES = 2**16
"""Asked for with the first request for a file: the footers of most Parquet and Arrow files are shorter."""

AHEAD_BYTES = 2**18
"""Read beyond what is asked for: a record batch follows its own description."""

SINGLE_PUT_BYTES = 2**26
"""Larger files that may replace others are sent in parts; they too appear whole, when the last part is there."""

RETRIES = 6
"""Of a request that failed for a reason that may pass; with growing pauses, a minute at most."""

_CONNECTION = re.compile(r"error sending request|connect|timed? ?out|dns|connection|reset|HTTP error", re.IGNORECASE)


@dataclass(frozen=True)
class Version:
    """What an object was when it was read: a later write can insist on it.

    Attributes:
        data: its content.
        mark: the object store's name of this version.
        modified: when it was written, by the object store's clock.
    """

    data: bytes
    mark: dict[str, str]
    modified: datetime


@dataclass(frozen=True)
class ObjectFiles:
    """The objects below a prefix."""

    place: Url
    at_a_time: int = 32

    @functools.cached_property
    def _store(self) -> Any:
        return _open_store(self.place)

    def exists(self, name: str = "") -> bool:
        """See `Files`."""
        if not name:
            return any(map(bool, self.folders()))
        try:
            self.size(name)
        except FileNotFoundError:
            return False
        return True

    def list(self, prefix: str = "") -> list[Entry]:
        """See `Files`."""
        import obstore

        with self._naming(prefix):
            found = [Entry(meta["path"], meta["size"]) for chunk in obstore.list(self._store, prefix) for meta in chunk]
        return sorted(found, key=lambda entry: entry.name)

    def folders(self) -> tuple[set[str], set[str]]:
        """See `Files`."""
        import obstore

        with self._naming(""):
            found = obstore.list_with_delimiter(self._store)
        return set(found["common_prefixes"]), {meta["path"] for meta in found["objects"]}

    def size(self, name: str) -> int:
        """See `Files`."""
        import obstore

        with self._naming(name):
            return int(obstore.head(self._store, name)["size"])

    def read(self, name: str) -> bytes:
        """See `Files`."""
        import obstore

        with self._naming(name):
            return bytes(obstore.get(self._store, name).bytes())

    def read_version(self, name: str) -> Version:
        """Read an object so that it can be replaced only if nobody else has meanwhile."""
        import obstore

        with self._naming(name):
            answer = obstore.get(self._store, name)
            return Version(bytes(answer.bytes()), _mark(answer.meta), answer.meta["last_modified"])

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Read some bytes of an object."""
        import obstore

        with self._naming(name):
            return bytes(obstore.get_range(self._store, name, start=start, end=stop))

    def read_tail(self, name: str, length: int) -> tuple[bytes, int]:
        """Read the last bytes of an object; returns them, and its size."""
        import obstore

        if self.place.scheme == "az":  # knows no range from the end
            size = self.size(name)
            return self.read_range(name, max(0, size - length), size), size
        with self._naming(name):
            answer = obstore.get(self._store, name, options={"range": {"suffix": length}})
            return bytes(answer.bytes()), int(answer.meta["size"])

    def open(self, name: str) -> pa.NativeFile:
        """See `Files`."""
        return pa.PythonFile(_Ranges(self, name), mode="r")

    def write(self, name: str, data: Data) -> None:
        """See `Files`."""
        self._put(name, data, "overwrite")

    def create(self, name: str, data: Data) -> bool:
        """See `Files`."""
        from obstore.exceptions import AlreadyExistsError

        try:
            self._put(name, data, "create")
        except AlreadyExistsError:
            return False
        return True

    def replace(self, name: str, data: Data, mark: dict[str, str]) -> dict[str, str] | None:
        """Write an object in place of one version of it; returns the new one's mark, or None if it was another."""
        from obstore.exceptions import PreconditionError

        try:
            return self._put(name, data, mark)
        except PreconditionError:
            return None

    def _put(self, name: str, data: Data, mode: Any) -> dict[str, str]:
        import obstore

        with self._naming(name):
            return _mark(obstore.put(self._store, name, data, mode=mode, use_multipart=False))

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """See `Files`."""
        with tempfile.TemporaryDirectory(prefix="embedx-") as folder:
            path = Path(folder) / name.rpartition("/")[2]
            yield path
            self.upload(name, path)

    def upload(self, name: str, path: Path) -> None:
        """Write a local file's content whole, in place of an older object."""
        import obstore

        in_parts = path.stat().st_size > SINGLE_PUT_BYTES
        with self._naming(name):
            obstore.put(self._store, name, path, use_multipart=in_parts, chunk_size=2**24, max_concurrency=4)

    def fetch(self, name: str, scratch: Path) -> Path:
        """See `Files`."""
        import obstore

        path = scratch / name.replace("/", "%")
        if path.exists():  # What is fetched is never written again.
            return path
        part = path.with_name(f"{path.name}.part")
        with self._naming(name), part.open("wb") as file:
            for chunk in obstore.get(self._store, name).stream(min_chunk_size=2**20):
                file.write(chunk)
        return part.rename(path)

    def delete(self, names: Iterable[str]) -> None:
        """See `Files`."""
        import obstore

        if listed := list(names):
            with self._naming(listed[0]):
                obstore.delete(self._store, listed)

    def delete_below(self, prefix: str) -> None:
        """See `Files`."""
        self.delete(entry.name for entry in self.list(prefix))

    def try_writing(self, folder: str, data: str) -> None:
        """See `Files`."""
        for where in (folder, data):
            probe = f"{where}.probe-{secrets.token_hex(6)}"
            self.write(probe, b"")
            self.delete([probe])

    def free_bytes(self) -> int | None:
        """See `Files`."""
        return None

    def delta_options(self) -> dict[str, str]:
        """See `Files`."""
        return object_options(self.place)

    @contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        """Raise what went wrong in words: which object, and what to do; never with a credential in it."""
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            yield
        except (AlreadyExistsError, PreconditionError, EmbedxError):
            raise
        except Exception as error:  # obstore's own, and the built-in ones that it borrows
            raise explained(error, self.place / name if name else self.place) from None


def _mark(meta: Any) -> dict[str, str]:
    return {key: value for key in ("e_tag", "version") if (value := meta[key])}


def explained(error: Exception, place: Url) -> Exception:
    """Return the exception that says what is wrong with a place: FileNotFoundError, StoreError or BusyError."""
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

    text = str(error)
    code = re.search(r"<Code>(.*?)</Code>", text)
    message = re.search(r"<Message>(.*?)</Message>", text)
    said = ": ".join(found[1] for found in (code, message) if found) or " ".join(text.split())[:160]
    said = place.access.hide(said)
    if code and code[1] == "NoSuchBucket":
        return StoreError(f"the bucket of {place} does not exist", "Create it, or check the name and --storage-option")
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(2, "No such object", str(place))
    if isinstance(error, (PermissionDeniedError, UnauthenticatedError)) or (code and code[1] == "AccessDenied"):
        return StoreError(
            f"{place} is not accessible ({said})", "Check the credentials: the environment, or --storage-option"
        )
    if code is None and _CONNECTION.search(text):
        return BusyError(f"{place} cannot be reached", "Check the network and the endpoint, then try again")
    return StoreError(f"{place}: {said}", "Check the URL, the credentials and --storage-option")


def _open_store(place: Url) -> Any:
    from obstore.exceptions import BaseError, UnknownConfigurationKeyError
    from obstore.store import AzureStore, GCSStore, S3Store

    kinds = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
    options = object_options(place)
    allow_http = options.pop("allow_http", "false") == "true"
    try:
        return kinds[place.scheme](
            place.bucket,
            prefix=place.key or None,
            config=options,
            client_options={"allow_http": allow_http, "connect_timeout": "10s", "timeout": "600s"},
            retry_config={"max_retries": RETRIES, "retry_timeout": timedelta(seconds=60)},
        )
    except UnknownConfigurationKeyError as error:
        found = re.search(r"key '(.*?)'|Configuration key: '(.*?)'", str(error))
        name = next(filter(None, found.groups()), "") if found else ""
        raise StoreError(
            f"--storage-option {name} is not known for the store {place}",
            f"Known are {', '.join(NAMES[place.scheme])}, and the names of object_store",
        ) from None
    except (BaseError, ValueError, TypeError) as error:
        said = place.access.hide(" ".join(str(error).split()))[:200]
        raise StoreError(f"{place} cannot be opened ({said})", "Check the --storage-option flags") from None


class _Ranges(io.RawIOBase):
    """An object as a file that reads ranges: its end with the first request, then what is asked for and a bit more."""

    def __init__(self, files: ObjectFiles, name: str) -> None:
        self._files = files
        self._name = name
        tail, self._size = files.read_tail(name, TAIL_BYTES)
        # Two pieces are kept: the tail, with the footer, and the last one read.
        self._pieces = [(self._size - len(tail), tail), (0, b"")]
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = (0, self._position, self._size)[whence] + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        start = min(self._position, self._size)
        stop = self._size if size < 0 else min(start + size, self._size)
        self._position = stop
        if start == stop:
            return b""
        for at, piece in self._pieces:
            if at <= start and stop <= at + len(piece):
                return piece[start - at : stop - at]
        end = min(self._size, stop + AHEAD_BYTES)
        piece = self._files.read_range(self._name, start, end)
        self._pieces[1] = (start, piece)
        return piece[: stop - start]
