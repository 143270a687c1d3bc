"""The folder of an index: versions beside each other, and CURRENT, which names the one to read.

index/
  CURRENT                    "0002": replaced atomically, after everything else
  .lock                      held by the one builder
  versions/0002/             index.faiss  ids.parquet  card.json; never changed once it has this name
  versions/.building-*/      a build under way, or what is left of one that was killed

A reader reads CURRENT once and keeps to that version, so a rebuild never disturbs it.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from embedx.core.errors import BusyError, StoreError
from embedx.core.paths import fsync_dir, write_atomic
from embedx.core.places import Place, Url
from embedx.indexes.folder import VersionFiles
from embedx.indexes.objects import PendingObjects, fetch_version, new_objects

_VERSION = re.compile(r"^\d{4,}$")
_BUILDING = ".building-"


def current_version(root: Place) -> VersionFiles:
    """Return the version to read.

    Raises:
        StoreError: there is no index, or CURRENT names none.
    """
    if isinstance(root, Url):
        return fetch_version(root)
    if not root.is_dir():
        raise StoreError(f"{root} does not exist", f"Create it with: embedx index STORE --out {root}")
    try:
        text = (root / "CURRENT").read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise StoreError(f"{root} is not an embedx index", "Pass the folder given as --out to embedx index") from None
    except (OSError, ValueError) as error:
        raise StoreError(f"{root / 'CURRENT'} cannot be read ({error})", "Build the index again") from error
    # Matched, not joined blindly: the file must not be able to name a path outside the index.
    if not _VERSION.match(text) or not (root / "versions" / text).is_dir():
        raise StoreError(
            f"{root / 'CURRENT'} names {text[:40]!r}, which is no version of it",
            "Build the index again with embedx index",
        )
    return VersionFiles(root / "versions" / text)


@contextmanager
def new_version(root: Place) -> Iterator[PendingVersion | PendingObjects]:
    """Hold an index's folder for one build, and leave nothing behind when the build fails.

    Yields:
        Where to write the version's files; nothing is visible before its `publish`.

    Raises:
        StoreError: the folder is something else, or cannot be written.
        BusyError: another build holds it.
    """
    if isinstance(root, Url):
        with new_objects(root) as pending_objects:
            yield pending_objects
        return
    _check_is_ours(root)
    created = not root.exists()
    lock = FileLock(str(root / ".lock"))
    try:
        (root / "versions").mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise BusyError(f"{root} is being built by another process", "Try again when it has finished") from None
    except OSError as error:
        raise _unwritable(root, error) from error
    pending = None
    try:
        for left_over in (root / "versions").glob(_BUILDING + "*"):
            shutil.rmtree(left_over, ignore_errors=True)
        pending = PendingVersion(root, VersionFiles(Path(tempfile.mkdtemp(dir=root / "versions", prefix=_BUILDING))))
        yield pending
    except OSError as error:
        raise _unwritable(root, error) from error
    finally:
        if pending is not None:
            shutil.rmtree(pending.files.folder, ignore_errors=True)
        if not (root / "CURRENT").exists():
            _clear(root, created)
        lock.release()


@dataclass(frozen=True)
class PendingVersion:
    """A version being written.

    Attributes:
        root: the index.
        files: where its files go meanwhile.
    """

    root: Path
    files: VersionFiles

    def publish(self) -> VersionFiles:
        """Make the files durable, give them their version's name, then point CURRENT at it."""
        for path in self.files.folder.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        self.files.folder.chmod(0o755)
        fsync_dir(self.files.folder)
        taken = [int(path.name) for path in (self.root / "versions").iterdir() if path.name.isdigit()]
        folder = self.root / "versions" / f"{max(taken, default=0) + 1:04d}"
        self.files.folder.rename(folder)
        fsync_dir(self.root / "versions")
        write_atomic(self.root / "CURRENT", f"{folder.name}\n".encode())
        return VersionFiles(folder)


def _check_is_ours(root: Path) -> None:
    if not root.exists():
        return
    if not root.is_dir():
        raise StoreError(f"{root} is a file, not a folder", "Pass another --out")
    if (root / "CURRENT").exists():
        return
    # A first build that was killed leaves these; its folder may be taken again.
    strangers = [path.name for path in root.iterdir() if path.name not in (".lock", "versions")]
    strangers = [name for name in strangers if not name.startswith(".CURRENT.")]
    if strangers:
        raise StoreError(
            f"{root} is not empty and is no embedx index (it holds {sorted(strangers)[0]!r})",
            "Pass a new or empty folder as --out",
        )


def _clear(root: Path, created: bool) -> None:
    if created:
        shutil.rmtree(root, ignore_errors=True)
        return
    (root / ".lock").unlink(missing_ok=True)
    with suppress(OSError):
        (root / "versions").rmdir()


def _unwritable(root: Path, error: OSError) -> StoreError:
    return StoreError(f"{root} cannot be written ({error.strerror or error})", "Check the disk and the permissions")
