"""The Delta table of a store: which files a version holds, and the one transaction that publishes a run."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Schema, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction, create_table_with_add_actions

from embedx.core.errors import BusyError, StoreError
from embedx.core.paths import fsync_dir
from embedx.core.places import Place, Url
from embedx.store.files import open_files
from embedx.store.objects import explained

APP = "embedx"
"""Application id of the fence: two runs planned on one version cannot both commit."""

CONFIGURATION: dict[str, str | None] = {
    "delta.logRetentionDuration": "interval 3650 days",
    "delta.deletedFileRetentionDuration": "interval 7 days",
    "delta.checkpointInterval": "100",
}


@dataclass(frozen=True)
class DataFile:
    """One data file of a version.

    Attributes:
        path: relative to the store.
        size_bytes: as committed.
        rows: as committed.
    """

    path: str
    size_bytes: int
    rows: int


@dataclass(frozen=True)
class NewFile:
    """A file to publish, with the smallest and largest id in it."""

    file: DataFile
    first_id: str
    last_id: str


@dataclass(frozen=True)
class Snapshot:
    """A version of a store's table; version -1 is the empty store before the first publish."""

    root: Place
    version: int
    schema: pa.Schema | None
    files: tuple[DataFile, ...]
    sequence: int
    table: DeltaTable | None = field(default=None, compare=False, repr=False)

    @property
    def rows(self) -> int:
        """Rows of the version."""
        return sum(file.rows for file in self.files)

    def markers(self, runs: list[str]) -> dict[str, int]:
        """Return run -> PUBLISHED or CLOSED for those of `runs` that the log knows."""
        if self.table is None:
            return {}
        markers = {run: self.table.transaction_version(_run_app(run)) for run in runs}
        return {run: marker for run, marker in markers.items() if marker is not None}


def open_snapshot(root: Place, version: int | None = None) -> Snapshot:
    """Read the present or an old version of a store's table.

    Raises:
        StoreError: the version does not exist or the log cannot be read.
    """
    table = _open_table(root, version)
    if table is None:
        return Snapshot(root, -1, None, (), 0)
    actions = pa.table(table.get_add_actions(flatten=True))
    files = [
        DataFile(unquote(path), size, rows or 0)
        for path, size, rows in zip(
            actions["path"].to_pylist(), actions["size_bytes"].to_pylist(), actions["num_records"].to_pylist()
        )
    ]
    return Snapshot(
        root=root,
        version=table.version(),
        schema=pa.schema(table.schema().to_arrow()),
        files=tuple(sorted(files, key=lambda file: file.path)),
        sequence=table.transaction_version(APP) or 0,
        table=table,
    )


def _open_table(root: Place, version: int | None = None) -> DeltaTable | None:
    try:
        return DeltaTable(str(root), version=version, storage_options=open_files(root).delta_options())
    except TableNotFoundError:
        if version is None:
            return None
        raise StoreError(f"{root} has no version {version}", "See embedx history") from None
    except (DeltaError, OSError) as error:
        if isinstance(root, Url) and not isinstance(error, DeltaError):
            raise explained(error, root) from None
        asked = f" version {version}" if version is not None else ""
        said = _without_secrets(root, error)
        raise StoreError(f"{root}{asked} cannot be read: {said}", "See embedx history for the versions") from None


PUBLISHED = 1
CLOSED = 2
"""A run's marker in the log: published itself, or closed because a later run adopted what it had finished."""


def run_markers(root: Place, runs: list[str]) -> dict[str, int]:
    """Return run -> PUBLISHED or CLOSED for those of `runs` that the log knows."""
    return open_snapshot(root).markers(runs)


@dataclass(frozen=True)
class Transition:
    """What one publish changes.

    Attributes:
        run: becomes the transaction's marker.
        base: the snapshot the run was planned on.
        adds: new files.
        removes: files of the base that go.
        schema: of the store.
        closes: interrupted runs that end with this one.
    """

    run: str
    base: Snapshot
    adds: list[NewFile]
    removes: list[DataFile]
    schema: pa.Schema
    closes: tuple[str, ...] = ()


def publish(transition: Transition) -> Snapshot:
    """Commit a run as one Delta transaction and return the store as it is then.

    Delta accepts missing files and concurrent appends of the same ids, so the caller has checked the files, and
    the transaction is fenced: it fails if anything of ours was committed since the base version.

    Raises:
        BusyError: another run was published meanwhile.
        StoreError: the log cannot be written.
    """
    root, run, base = transition.base.root, transition.run, transition.base
    options = open_files(root).delta_options()
    adds = [_add_action(new) for new in transition.adds]
    removes = [
        RemoveAction(
            path=file.path,
            data_change=True,
            deletion_timestamp=int(time.time() * 1000),
            size=file.size_bytes,
            partition_values={},
        )
        for file in transition.removes
    ]
    properties = CommitProperties(
        custom_metadata={"run": run},
        max_commit_retries=0,
        app_transactions=[
            Transaction(APP, base.sequence + 1),
            Transaction(_run_app(run), PUBLISHED),
            *(Transaction(_run_app(closed), CLOSED) for closed in transition.closes),
        ],
    )
    schema = Schema.from_arrow(transition.schema)
    try:
        if base.version < 0:
            create_table_with_add_actions(
                str(root),
                schema,
                adds,
                mode="error",
                configuration=CONFIGURATION,
                storage_options=options,
                commit_properties=properties,
            )
        else:
            table = DeltaTable(str(root), version=base.version, storage_options=options)
            table.create_write_transaction(
                [*adds, *removes], mode="append", schema=schema, partition_by=[], commit_properties=properties
            )
    except (CommitFailedError, DeltaError, OSError) as error:
        # The commit may have landed although its answer was an error.
        if not run_markers(root, [run]):
            if isinstance(error, CommitFailedError):
                raise BusyError(
                    f"{root} was changed by another writer since version {base.version} "
                    f"({_without_secrets(root, error)})",
                    "Run the same command again: finished shards are kept",
                ) from None
            said = _without_secrets(root, error)
            raise StoreError(f"cannot commit to {root}: {said}", "Mend the cause and run the same command") from None
    present = open_snapshot(root)
    if present.version < 0:
        raise StoreError(f"{root} has no Delta log after the commit", "Check the file system and run the same command")
    if isinstance(root, Path):
        _fsync_commit(root / "_delta_log", present.version)
    return present


def _without_secrets(root: Place, error: Exception) -> str:
    return root.access.hide(str(error)) if isinstance(root, Url) else str(error)


def _fsync_commit(log: Path, version: int) -> None:
    # delta-rs does not sync its commit file; without this a power cut could lose a published run.
    commit = log / f"{version:020d}.json"
    if commit.exists():
        with commit.open("rb") as file:
            os.fsync(file.fileno())
    fsync_dir(log)


def _add_action(new: NewFile) -> AddAction:
    stats = {
        "numRecords": new.file.rows,
        "minValues": {"item_id": new.first_id},
        "maxValues": {"item_id": new.last_id},
        "nullCount": {"item_id": 0},
    }
    return AddAction(
        path=new.file.path,
        size=new.file.size_bytes,
        partition_values={},
        modification_time=int(time.time() * 1000),
        data_change=True,
        stats=json.dumps(stats),
    )


def _run_app(run: str) -> str:
    return f"{APP}:{run}"


def vacuum(root: Place, retention_hours: float, dry_run: bool) -> list[str]:
    """Delete replaced files that no version within the retention needs; returns their paths.

    Lite: only what the log itself has removed. A full vacuum would take uncommitted shards for garbage.
    """
    table = _open_table(root)
    if table is None:
        return []
    deleted: list[str] = table.vacuum(
        retention_hours=math.ceil(retention_hours), dry_run=dry_run, enforce_retention_duration=False, full=False
    )
    return deleted


def history(root: Place) -> list[dict]:
    """Return the versions of a store, newest first: version, run, time (ms since 1970) and operation."""
    table = _open_table(root)
    if table is None:
        return []
    return [
        {
            "version": entry.get("version"),
            "run": entry.get("run"),
            "timestamp_ms": entry.get("timestamp"),
            "operation": entry.get("operation"),
        }
        for entry in table.history()
    ]
