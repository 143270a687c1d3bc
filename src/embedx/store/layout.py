"""Every file and folder name of a store, once.

store/
  _delta_log/                        versions
  _embedx/encoder.json               card, fingerprint, precision, dim, canary vectors
  _embedx/lock                       held (flock) by the one writer; in an object store lease.json, renewed by it
  _embedx/runs/<run>/run.json        what the run is based on
                     plan.arrow      items to embed, one record batch per shard; gone once published
                     receipts.jsonl  of finished shards, as their writers said them; gone once published
                     requests.json   requests to a remote encoder so far; gone once published
                     hosts/          connections to web servers that workers share; gone once published
                     failures/*.arrow  failed items of one attempt at one shard
                     identities.arrow  item -> size and mtime of its file, for the next run's diff; the newest only
                     failures.arrow  items of the store that have no vector, as of this run
                     files.json      sha256, size and rows of each file the run added
                     report.json
  data/<run>/00017.parquet           one shard: exclusive, immutable, receipt in its footer

No `.parquet` file lies under `_embedx/`: recursive globs of other tools would take it for data.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from embedx.core.places import Place, absolute
from embedx.store.files import File, Files, open_files

STORE_FORMAT = 1
"""Version of this layout. Raise it on any change that older code would misread, and keep a reader for the old one."""


META = "_embedx/"
"""The folder of everything that is not data."""

RUNS = "_embedx/runs/"
"""The folder of run records."""

DATA = "data/"
"""The folder of shard files."""


def _nobody_else() -> None:
    """A lock of the operating system cannot be lost while its holder lives."""


@dataclass(frozen=True)
class StoreLayout:
    """Names of one store.

    Attributes:
        root: where it lies.
        check_held: raises a BusyError if this process is its writer no more.
    """

    root: Place
    check_held: Callable[[], None] = field(default=_nobody_else, compare=False, repr=False)

    @property
    def files(self) -> Files:
        """Its files."""
        return open_files(self.root)

    @property
    def encoder(self) -> File:
        """The encoder's card, written when the store is created."""
        return File(self.files, "_embedx/encoder.json")

    def exists(self) -> bool:
        """Whether there is something of a store."""
        return META.rstrip("/") in self.files.folders()[0]

    def run(self, run: str) -> RunLayout:
        """Return the names of one run."""
        return RunLayout(self.root, run)


@dataclass(frozen=True)
class RunLayout:
    """Names of one run."""

    root: Place
    run: str

    @property
    def files(self) -> Files:
        """The store's files."""
        return open_files(self.root)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Give a local folder for what nobody needs afterwards: on the store's own disk, where it has one."""
        if isinstance(self.root, Path):
            folder = self.root / self.folder / "scratch"
            folder.mkdir(parents=True, exist_ok=True)
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        else:
            with TemporaryDirectory(prefix="embedx-") as name:
                yield Path(name)

    @property
    def folder(self) -> str:
        """The run's record."""
        return f"{RUNS}{self.run}/"

    @property
    def data(self) -> str:
        """The folder of the run's shard files."""
        return f"{DATA}{self.run}/"

    @property
    def hosts(self) -> str:
        """The folder in which workers share their connections to web servers; none where they share no disk."""
        return f"{absolute(self.root)}/{self.folder}hosts" if isinstance(self.root, Path) else ""

    def shard_name(self, shard: int) -> str:
        """Return a shard's path relative to the store, as Delta names it."""
        return f"{self.data}{shard:05d}.parquet"

    def shard(self, shard: int) -> File:
        """Return a shard."""
        return File(self.files, self.shard_name(shard))

    def attempt_failures(self, shard: int, attempt: str) -> File:
        """Return where one attempt at a shard records its failed items."""
        return self.file(f"failures/{shard:05d}-{attempt}.arrow")

    def file(self, name: str) -> File:
        """Return one file of the run's record, e.g. `plan.arrow`."""
        return File(self.files, self.folder + name)
