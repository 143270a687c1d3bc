"""The folder of a head: it appears whole, is replaced whole, or stays as it was.

head/   head.skops   the estimator
        report.html  for people
        card.json    what it is, with the sha256 of head.skops
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from embedx.core.errors import StoreError
from embedx.core.paths import fsync_dir
from embedx.core.places import Place, Url
from embedx.heads.objects import check_prefix

FILES = ("head.skops", "report.html", "card.json")

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@dataclass(frozen=True)
class HeadFiles:
    """Where the files of one head are written."""

    folder: Path


def check_target(folder: Place) -> None:
    """Refuse a place where no head can or should be written, before any work is done.

    Raises:
        StoreError: it is a file, holds something that is no head, or cannot be written.
    """
    if isinstance(folder, Url):
        check_prefix(folder)
        return
    if folder.is_dir():
        names = sorted(path.name for path in folder.iterdir())
        strangers = [name for name in names if name not in FILES]
        if strangers or (names and "card.json" not in names):
            # Replacing a head removes its folder, so a file of the user's in it must stop us too.
            raise StoreError(
                f"{folder} is not empty and is no embedx head (it holds {(strangers or names)[0]!r})",
                "Pass a new or empty folder as --out",
            )
    elif folder.exists() or folder.is_symlink():
        raise StoreError(f"{folder} is a file, not a folder", "Pass another --out")
    parent = folder.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise StoreError(f"{folder} cannot be written ({parent} is a file)", "Pass another --out")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise StoreError(
            f"{folder} cannot be written ({parent} is read-only)", "Pass another --out, or change its rights"
        )


@contextmanager
def new_head(folder: Path) -> Iterator[HeadFiles]:
    """Write a head beside its place and move it there once it is complete and durable.

    Yields:
        Where to write. When the block fails, nothing is left of it and an older head stays.

    Raises:
        StoreError: the place is taken or cannot be written.
    """
    check_target(folder)
    place = folder.resolve()
    pending = place.with_name(f".{place.name}.new-{secrets.token_hex(6)}")
    try:
        # mkdir and not mkdtemp: artefacts are shared between people, so the umask decides who may read them.
        pending.mkdir(parents=True)
        yield HeadFiles(pending)
        for path in pending.iterdir():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        fsync_dir(pending)
        _move_into_place(pending, place)
        fsync_dir(place.parent)
    except OSError as error:
        raise StoreError(
            f"{folder} cannot be written ({error.strerror or error})", "Check the disk and the permissions"
        ) from error
    finally:
        # After an exchange this is the older head.
        shutil.rmtree(pending, ignore_errors=True)


def _move_into_place(pending: Path, folder: Path) -> None:
    try:
        # An empty folder is replaced by POSIX' own rule.
        pending.rename(folder)
        return
    except OSError:
        if not folder.is_dir():
            raise
    if _exchange(pending, folder):
        return
    # Without an exchanging rename (macOS, NFS) there is a moment without a head, but never half of one.
    older = folder.with_name(f".{folder.name}.old-{secrets.token_hex(6)}")
    folder.rename(older)
    try:
        pending.rename(folder)
    except OSError:
        older.rename(folder)
        raise
    shutil.rmtree(older, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step; False where the system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    done = rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), ctypes.c_uint(_RENAME_EXCHANGE))
    return bool(done == 0)
