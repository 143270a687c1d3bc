"""Every file and folder name of a store, once.

store/
  _delta_log/                        versions
  _embedx/encoder.json               card, fingerprint, precision, dim, canary vectors
  _embedx/lock                       held (flock) by the one writer
  _embedx/runs/<run>/run.json        what the run is based on
                     plan.arrow      items to embed, one record batch per shard; gone once published
                     receipts.jsonl  of each finished shard, as its writer said it; gone once published
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

from dataclasses import dataclass
from pathlib import Path

STORE_FORMAT = 1
"""Version of this layout. Raise it on any change that older code would misread, and keep a reader for the old one."""


@dataclass(frozen=True)
class StoreLayout:
    """Paths of one store."""

    root: Path

    @property
    def delta_log(self) -> Path:
        """The Delta log; it exists exactly when something was published."""
        return self.root / "_delta_log"

    @property
    def meta(self) -> Path:
        """The folder of everything that is not data."""
        return self.root / "_embedx"

    @property
    def encoder(self) -> Path:
        """The encoder's card, written when the store is created."""
        return self.meta / "encoder.json"

    @property
    def lock(self) -> Path:
        """The writer's lock."""
        return self.meta / "lock"

    @property
    def runs(self) -> Path:
        """The folder of run records."""
        return self.meta / "runs"

    def run(self, run: str) -> RunLayout:
        """Return the paths of one run."""
        return RunLayout(self.root, run)


@dataclass(frozen=True)
class RunLayout:
    """Paths of one run."""

    root: Path
    run: str

    @property
    def folder(self) -> Path:
        """The run's record."""
        return self.root / "_embedx" / "runs" / self.run

    @property
    def data(self) -> Path:
        """The folder of the run's shard files."""
        return self.root / "data" / self.run

    @property
    def hosts(self) -> Path:
        """The folder in which workers share their connections to web servers."""
        return self.folder / "hosts"

    def shard_name(self, shard: int) -> str:
        """Return a shard's path relative to the store, as Delta names it."""
        return f"data/{self.run}/{shard:05d}.parquet"

    def shard(self, shard: int) -> Path:
        """Return a shard's path."""
        return self.root / self.shard_name(shard)

    def attempt_failures(self, shard: int, attempt: str) -> Path:
        """Return where one attempt at a shard records its failed items."""
        return self.folder / "failures" / f"{shard:05d}-{attempt}.arrow"

    def file(self, name: str) -> Path:
        """Return one file of the run's record, e.g. `plan.arrow`."""
        return self.folder / name
