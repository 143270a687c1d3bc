"""Runs: the lock of the one writer, the record of each run, and what interrupted runs left behind."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from filelock import FileLock, Timeout

from embedx.core.errors import BusyError, StoreError
from embedx.core.paths import write_json
from embedx.store import delta
from embedx.store.adoption import FinishedShard
from embedx.store.layout import RunLayout, StoreLayout
from embedx.store.shards import FAILURE_SCHEMA, Receipt, read_arrow, read_receipt


@contextmanager
def writing(root: Path) -> Iterator[StoreLayout]:
    """Hold the store's lock; the folder is created if need be and removed again if nothing came of it.

    Raises:
        BusyError: another process holds it.
        StoreError: the folder cannot be written, or holds something else.
    """
    layout = StoreLayout(root)
    check_out(root)
    created = _missing_parents(layout.runs)
    try:
        layout.runs.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(layout.lock), timeout=0)
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
        empty = not layout.encoder.exists() and not any(layout.runs.iterdir())
        if empty:
            layout.lock.unlink(missing_ok=True)
        lock.release()
        if empty:
            _remove_empty(created)


def check_out(root: Path) -> None:
    """Raise a StoreError unless `root` is a store, an empty folder or absent."""
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
    try:
        foreign = root.is_dir() and any(root.iterdir()) and not StoreLayout(root).meta.is_dir()
    except OSError as error:
        raise StoreError(f"cannot read {root}: {error.strerror}", "Choose another --out") from error
    if foreign:
        raise StoreError(f"{root} is not empty and no embedx store", "Choose another --out, or an empty folder")


def _missing_parents(path: Path) -> list[Path]:
    return [folder for folder in (path, *path.parents) if not folder.exists()]


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


@dataclass(frozen=True)
class RunRecord:
    """What a run is based on; `run.json`.

    Attributes:
        run: its name: a sequence number, then a random part.
        sequence: one more than the newest run's when it began.
        base_version: the store's version it was planned on.
        basis: fingerprint of what makes finished shards of another run fit this one: encoder, precision,
            mantissa, columns.
        planned: items to embed.
    """

    run: str
    sequence: int
    base_version: int
    basis: str
    planned: int


def new_run_name(layout: StoreLayout, sequence: int) -> str:
    """Return a name for a new run that sorts after all others."""
    newest = max((int(path.name.split("-")[0]) for path in _run_folders(layout)), default=0)
    return f"{max(newest, sequence) + 1:06d}-{secrets.token_hex(3)}"


def begin_run(layout: RunLayout, record: RunRecord) -> None:
    """Write `run.json`, the marker that the run's plan is complete."""
    write_json(layout.file("run.json"), asdict(record))


def _run_folders(layout: StoreLayout) -> list[Path]:
    if not layout.runs.is_dir():
        return []
    return sorted(path for path in layout.runs.iterdir() if path.is_dir() and path.name.split("-")[0].isdigit())


@dataclass(frozen=True)
class RunHistory:
    """The runs of a store: published, and interrupted ones that can be adopted from.

    Attributes:
        published: names, oldest first.
        interrupted: name -> record, oldest first.
        abandoned: names of runs whose plan was never completed, or that a later run has closed.
    """

    published: tuple[str, ...]
    interrupted: dict[str, RunRecord]
    abandoned: tuple[str, ...]


def read_history(layout: StoreLayout) -> RunHistory:
    """List a store's runs. Whether one was published is for the Delta log to say."""
    names = [path.name for path in _run_folders(layout)]
    markers = delta.run_markers(layout.root, names) if layout.delta_log.is_dir() else {}
    published = [name for name in names if markers.get(name) == delta.PUBLISHED]
    interrupted: dict[str, RunRecord] = {}
    abandoned = []
    for name in names:
        if name in published:
            continue
        if name in markers:
            abandoned.append(name)
            continue
        try:
            interrupted[name] = RunRecord(**json.loads(layout.run(name).file("run.json").read_text()))
        except (OSError, ValueError, TypeError):
            abandoned.append(name)
    return RunHistory(tuple(published), interrupted, tuple(abandoned))


def latest_failures(layout: StoreLayout, history: RunHistory) -> Path | None:
    """Return the `failures.arrow` that holds as of the newest published run."""
    for name in reversed(history.published):
        path = layout.run(name).file("failures.arrow")
        if path.exists():
            return path
    return None


def identity_files(layout: StoreLayout, history: RunHistory) -> list[Path]:
    """Return `identities.arrow` of the published runs, oldest first; the newest knows all that the older ones do."""
    paths = [layout.run(name).file("identities.arrow") for name in history.published]
    return [path for path in paths if path.exists()]


def find_finished(layout: StoreLayout, run: str) -> list[tuple[FinishedShard, Receipt]]:
    """Return the whole shard files of an interrupted run: one listing, and the footers of those not noted.

    A file that is not whole cannot be a committed shard (shards are linked under their name when complete), so it
    is damage; it is left alone and its items are embedded again.
    """
    run_layout = layout.run(run)
    noted = _noted_receipts(run_layout)
    found = []
    if not run_layout.data.is_dir():
        return []
    for entry in sorted(os.scandir(run_layout.data), key=lambda entry: entry.name):
        if entry.name.startswith(".") or not entry.name.endswith(".parquet"):
            continue
        try:
            receipt = noted.get((entry.name, entry.stat().st_size)) or read_receipt(Path(entry.path))
            failed = read_attempt_failures(run_layout, receipt) if receipt.failed else None
        except (StoreError, OSError, pa.ArrowException):
            continue
        ids = tuple(failed.column("item_id").to_pylist()) if failed else ()
        name = run_layout.shard_name(receipt.shard)
        found.append((FinishedShard(run, receipt.shard, name, receipt.rows, ids, receipt.embedded), receipt))
    return found


def note_receipt(layout: RunLayout, receipt: Receipt) -> None:
    """Keep a finished shard's receipt, so that a resumed run reads neither its footer nor its bytes to publish it."""
    with layout.file("receipts.jsonl").open("a") as file:
        file.write(receipt.to_json() + "\n")


def _noted_receipts(layout: RunLayout) -> dict[tuple[str, int], Receipt]:
    """Return (file name, size) -> what `note_receipt` kept; a line cut off by a crash counts for nothing."""
    try:
        lines = layout.file("receipts.jsonl").read_text().splitlines()
    except OSError:
        return {}
    receipts = {}
    for line in lines:
        with suppress(ValueError, TypeError):
            receipt = Receipt(**json.loads(line))
            receipts[layout.shard(receipt.shard).name, receipt.size_bytes] = receipt
    return receipts


def read_attempt_failures(layout: RunLayout, receipt: Receipt) -> pa.Table:
    """Return the failed items that a receipt names."""
    if not receipt.failures_file:
        return FAILURE_SCHEMA.empty_table()
    return read_arrow(layout.folder / "failures" / receipt.failures_file)


def discard_record(layout: RunLayout) -> None:
    """Delete the record of a run that was never published; its shard files are `vacuum`'s to judge."""
    shutil.rmtree(layout.folder, ignore_errors=True)


def discard_shards(layout: RunLayout, used: set[str]) -> None:
    """Delete the shard files of a closed run that no version uses."""
    if not layout.data.is_dir():
        return
    for path in layout.data.iterdir():
        if f"data/{layout.run}/{path.name}" not in used:
            path.unlink(missing_ok=True)
    if not any(layout.data.iterdir()):
        layout.data.rmdir()


def finish_record(layout: RunLayout, report: dict[str, Any]) -> None:
    """Write a published run's report and drop what only an open run needs."""
    write_json(layout.file("report.json"), report)
    layout.file("plan.arrow").unlink(missing_ok=True)
    layout.file("rewrites.arrow").unlink(missing_ok=True)
    layout.file("receipts.jsonl").unlink(missing_ok=True)
    layout.file("requests.json").unlink(missing_ok=True)
    layout.file("requests.json.lock").unlink(missing_ok=True)
    shutil.rmtree(layout.hosts, ignore_errors=True)
    shutil.rmtree(layout.folder / "failures", ignore_errors=True)
