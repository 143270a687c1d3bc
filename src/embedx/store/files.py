"""The files below one place, local or in an object store: the few operations a store, index or head needs of them.

Nothing here is renamed: a file appears whole under its name, is replaced whole, or is created only where none is.
Names are relative to the place, with slashes.
"""

from __future__ import annotations

import functools
import os
import secrets
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from errno import EACCES, ENOENT
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from embedx.core.paths import fsync_dir, json_bytes, replacing, write_atomic
from embedx.core.places import Place, Url

T = TypeVar("T")
R = TypeVar("R")

Data = bytes | memoryview


@dataclass(frozen=True)
class Entry:
    """A file that a listing found: its name, relative to the place, and its size."""

    name: str
    size_bytes: int


class Files(Protocol):
    """What a place can do. `FileNotFoundError` says that a file is not there; `StoreError` and `BusyError` the rest."""

    @property
    def place(self) -> Place:
        """Where the files lie."""

    @property
    def at_a_time(self) -> int:
        """How many files to ask for at once: far away, most of a request is waiting."""

    def exists(self, name: str = "") -> bool:
        """Whether there is a file of this name; without one, whether there is anything at all."""

    def list(self, prefix: str = "") -> list[Entry]:
        """List everything below a folder (`data/`), by name, in one go; empty where there is none."""

    def folders(self) -> tuple[set[str], set[str]]:
        """Return the names of the folders and of the files at the top."""

    def size(self, name: str) -> int:
        """Return a file's size in bytes."""

    def read(self, name: str) -> bytes:
        """Read a file whole."""

    def open(self, name: str) -> pa.NativeFile:
        """Open a file to read parts of it."""

    def write(self, name: str, data: Data) -> None:
        """Write a file whole and durably, in place of an older one."""

    def create(self, name: str, data: Data) -> bool:
        """Write a file whole and durably, if none is there; says whether it did."""

    def writing(self, name: str) -> AbstractContextManager[Path]:
        """Give a local name to write to; on a clean exit it becomes the file, whole and durable."""

    def fetch(self, name: str, scratch: Path) -> Path:
        """Return the path of a local file with this content, made in `scratch` if need be."""

    def delete(self, names: Iterable[str]) -> None:
        """Delete files; those that are not there are none's concern."""

    def delete_below(self, prefix: str) -> None:
        """Delete everything below a folder, and the folder."""

    def try_writing(self, folder: str, data: str) -> None:
        """Raise an OSError or EmbedxError if this process cannot write to a folder that is there, and to `data`."""

    def free_bytes(self) -> int | None:
        """Return how much can still be written; None where nobody knows."""

    def delta_options(self) -> dict[str, str]:
        """Return what Delta's library needs to reach the place."""


@dataclass(frozen=True)
class File:
    """One file of a place; it need not be there."""

    files: Files
    name: str

    def __str__(self) -> str:
        return f"{self.files.place}/{self.name}"

    def exists(self) -> bool:
        """Whether it is there."""
        return self.files.exists(self.name)

    def size(self) -> int:
        """Return its size in bytes."""
        return self.files.size(self.name)

    def read(self) -> bytes:
        """Read it whole."""
        return self.files.read(self.name)

    def open(self) -> pa.NativeFile:
        """Open it to read parts of it."""
        return self.files.open(self.name)

    def write(self, data: Data) -> None:
        """Write it whole and durably."""
        self.files.write(self.name, data)

    def write_json(self, value: Any) -> None:
        """Write JSON, indented for people."""
        self.write(json_bytes(value))

    def create(self, data: Data) -> bool:
        """Write it if it is not there; says whether it did."""
        return self.files.create(self.name, data)

    def writing(self) -> AbstractContextManager[Path]:
        """Give a local name to write to, which becomes the file on a clean exit."""
        return self.files.writing(self.name)

    def fetch(self, scratch: Path) -> Path:
        """Return the path of a local file with its content."""
        return self.files.fetch(self.name, scratch)

    def delete(self) -> None:
        """Delete it if it is there."""
        self.files.delete([self.name])


@functools.lru_cache(maxsize=64)
def open_files(place: Place) -> Files:
    """Return this process's access to a place; nothing is read yet."""
    if isinstance(place, Url):
        from embedx.store.objects import ObjectFiles

        return ObjectFiles(place)
    return LocalFiles(place)


def as_file(path: Place | File) -> File:
    """Return a file for its path or URL."""
    return path if isinstance(path, File) else File(open_files(path.parent), path.name)


def read_all(files: Files, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield a function's result for every item, in order, so many at a time as the place likes."""
    if files.at_a_time == 1:
        yield from map(function, items)
        return
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(files.at_a_time) as pool:
        for item in items:
            # Not all at once: results wait in memory until they are asked for.
            if len(waiting) == files.at_a_time:
                yield waiting.popleft().result()
            waiting.append(pool.submit(function, item))
        while waiting:
            yield waiting.popleft().result()


@dataclass(frozen=True)
class LocalFiles:
    """A folder. Files are written beside their place, synced, and named."""

    root: Path
    at_a_time: int = 1

    @property
    def place(self) -> Path:
        """The folder."""
        return self.root

    def exists(self, name: str = "") -> bool:
        """See `Files`."""
        return (self.root / name).is_file() if name else self.root.is_dir()

    def list(self, prefix: str = "") -> list[Entry]:
        """See `Files`."""
        return sorted(self._walk(str(self.root / prefix), prefix), key=lambda entry: entry.name)

    def _walk(self, folder: str, prefix: str) -> Iterator[Entry]:
        try:
            found = list(os.scandir(folder))
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(entry.path, f"{prefix}{entry.name}/")
                continue
            with suppress(FileNotFoundError):  # It went while we looked.
                yield Entry(f"{prefix}{entry.name}", entry.stat().st_size)

    def folders(self) -> tuple[set[str], set[str]]:
        """See `Files`."""
        if not self.root.is_dir():
            return set(), set()
        found = list(os.scandir(self.root))
        folders = {entry.name for entry in found if entry.is_dir()}
        return folders, {entry.name for entry in found} - folders

    def size(self, name: str) -> int:
        """See `Files`."""
        return (self.root / name).stat().st_size

    def read(self, name: str) -> bytes:
        """See `Files`."""
        return (self.root / name).read_bytes()

    def open(self, name: str) -> pa.NativeFile:
        """See `Files`."""
        return pa.OSFile(str(self.root / name), "rb")

    def write(self, name: str, data: Data) -> None:
        """See `Files`."""
        write_atomic(self.root / name, data)

    def create(self, name: str, data: Data) -> bool:
        """See `Files`."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
        created = False
        try:
            # 0666 less the umask, like any file the user writes: stores are shared between people.
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileExistsError):
                os.link(temporary, path)
                created = True
        finally:
            temporary.unlink(missing_ok=True)
        fsync_dir(path.parent)
        return created

    def writing(self, name: str) -> AbstractContextManager[Path]:
        """See `Files`."""
        return replacing(self.root / name)

    def fetch(self, name: str, scratch: Path) -> Path:
        """See `Files`."""
        return self.root / name

    def delete(self, names: Iterable[str]) -> None:
        """See `Files`; a folder that is empty now goes too."""
        folders = set()
        for name in names:
            (self.root / name).unlink(missing_ok=True)
            folders.add((self.root / name).parent)
        for folder in folders - {self.root}:
            with suppress(OSError):
                folder.rmdir()

    def delete_below(self, prefix: str) -> None:
        """See `Files`."""
        shutil.rmtree(self.root / prefix, ignore_errors=True)

    def try_writing(self, folder: str, data: str) -> None:
        """See `Files`."""
        probe = self.root / folder / f".probe-{secrets.token_hex(6)}"
        try:
            probe.touch(exist_ok=False)
            probe.unlink()
        except FileNotFoundError:
            raise FileNotFoundError(ENOENT, "is not there", str(self.root / folder)) from None
        # No folder is made for the trial: a run that ends before its first shard leaves none.
        place = self.root / data
        there = next(parent for parent in (place, *place.parents) if parent.is_dir())
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(EACCES, "cannot be written", str(there))

    def free_bytes(self) -> int | None:
        """See `Files`."""
        return shutil.disk_usage(self.root).free

    def delta_options(self) -> dict[str, str]:
        """See `Files`."""
        return {}
