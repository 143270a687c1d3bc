"""The one writer of a store: a lock of the operating system on a local folder, a lease in an object store."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from embedx.core.errors import BusyError, StoreError
from embedx.core.places import Place, Url
from embedx.store.files import open_files
from embedx.store.layout import META, StoreLayout


@contextmanager
def writing(root: Place) -> Iterator[StoreLayout]:
    """Be the one writer of a store for the time of a block.

    A local folder is created if need be and removed again if nothing came of it.

    Raises:
        BusyError: another process is.
        StoreError: the place cannot be written, or holds something else.
    """
    check_out(root)
    with _leasing(root) if isinstance(root, Url) else _locking(root) as layout:
        yield layout


@contextmanager
def _leasing(root: Url) -> Iterator[StoreLayout]:
    from embedx.store.lease import holding
    from embedx.store.objects import ObjectFiles

    with holding(ObjectFiles(root), f"{META}lease.json") as lease:
        yield StoreLayout(root, lease.check)


@contextmanager
def _locking(root: Path) -> Iterator[StoreLayout]:
    layout = StoreLayout(root)
    meta = root / META
    runs = meta / "runs"
    created = [folder for folder in (runs, *runs.parents) if not folder.exists()]
    try:
        runs.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(meta / "lock"), timeout=0)
        lock.acquire()
    except Timeout:
        raise BusyError(
            f"another embedx process is writing to {root}", "Wait for it to end, or choose another --out"
        ) from None
    except OSError as error:
        _remove_empty(created)
        raise StoreError(f"cannot write to {root}: {error.strerror or error}", "Choose another --out") from error
    try:
        yield layout
    finally:
        empty = not layout.encoder.exists() and not any(runs.iterdir())
        if empty:
            (meta / "lock").unlink(missing_ok=True)
        lock.release()
        if empty:
            _remove_empty(created)


def check_out(root: Place) -> None:
    """Raise a StoreError unless `root` is a store, an empty folder or absent."""
    if isinstance(root, Path):
        _check_path(root)
    try:
        folders, files = open_files(root).folders()
    except OSError as error:
        raise StoreError(f"cannot read {root}: {error.strerror}", "Choose another --out") from error
    if (folders or files) and META.rstrip("/") not in folders:
        raise StoreError(f"{root} is not empty and no embedx store", "Choose another --out, or an empty folder")


def _check_path(root: Path) -> None:
    if re.search(r"%[0-9A-Fa-f]{2}", str(root.resolve())):
        # Delta's own library decodes such a path, and would write to another folder.
        raise StoreError(f"{root} has a percent sign before two hex digits", "Choose another --out")
    try:
        str(root.resolve()).encode()
    except UnicodeEncodeError:
        raise StoreError(f"{str(root)!a} is not valid UTF-8", "Choose another --out") from None
    if root.is_symlink() and not root.exists():
        raise StoreError(f"{root} is a broken link", "Choose another --out")
    if root.exists() and not root.is_dir():
        raise StoreError(f"{root} is a file", "Choose another --out")


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return
