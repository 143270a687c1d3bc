"""The lock of an object store: an object that its holder renews, and that others may take when it no longer does.

All of it is two conditional writes: `If-None-Match` makes the lease, `If-Match` renews, releases or takes it over,
and of two processes that do so at once one fails. A lease that is not renewed runs out; how old it is, the object
store's own clock says, so that no two machines need to agree on the time.

Whoever has lost the lease finds out before it publishes. Should it be held up between that and the commit, Delta's
conditional commit is the last fence: of two runs that were planned on one version, one is refused.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from embedx.core.errors import BusyError, EmbedxError, StoreError, UsageError
from embedx.store.objects import ObjectFiles, Version

DEFAULT_S = 60.0
"""After so many seconds without a renewal a lease runs out; `EMBEDX_LEASE_S` says otherwise."""

BEATS = 4
"""Renewals in that time: some may be late, or fail."""


def lease_seconds() -> float:
    """Return how long a lease of this process lasts.

    Raises:
        UsageError: `EMBEDX_LEASE_S` is no number of seconds.
    """
    text = os.environ.get("EMBEDX_LEASE_S") or str(DEFAULT_S)
    try:
        seconds = float(text)
        if not 1 <= seconds <= 86_400:
            raise ValueError
    except ValueError:
        raise UsageError(f"EMBEDX_LEASE_S={text!r} is no number of seconds from 1 to 86400", "Unset it") from None
    return seconds


class Lease:
    """A lease that this process holds. Take it with `holding`.

    Args:
        files: where it lies.
        name: of the object.
        state: what it says.
    """

    def __init__(self, files: ObjectFiles, name: str, state: dict[str, Any]) -> None:
        self._files = files
        self._name = name
        self._state = state
        self._mark: dict[str, str] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._is_lost = False

    def check(self) -> None:
        """Renew it now.

        Raises:
            BusyError: another process holds it, or the object store cannot be reached.
        """
        with self._lock:
            if not self._is_lost:
                self._is_lost = not self._write({**self._state, "beat": self._state["beat"] + 1})
        if self._is_lost:
            raise BusyError(
                f"another embedx process took over {self._files.place}, for this one did not renew its lease in time",
                "Run the same command again: finished shards are kept",
            )

    def take(self) -> None:
        """Take the lease if it is free, released, run out, or its holder is dead.

        Raises:
            BusyError: another process holds it.
        """
        if not self._files.create(self._name, _to_json(self._state)):
            found = self._files.read_version(self._name)
            left = 0.0 if self._is_ours(found) else self._seconds_left(found)
            if left > 0:
                raise self._busy(found, left)
            self._mark = found.mark
            if not self._write(self._state):
                raise self._busy(self._files.read_version(self._name), self._state["seconds"])
        else:
            self._mark = self._files.read_version(self._name).mark

    def prove(self) -> None:
        """Refuse an object store that takes conditional writes for ordinary ones: everything here rests on them.

        Raises:
            StoreError: it does.
        """
        with self._lock:
            old = self._mark
            self._write({**self._state, "beat": self._state["beat"] + 1})
            data = _to_json(self._state)
            ignored = "If-None-Match" if self._files.create(self._name, data) else ""
            ignored = ignored or ("If-Match" if self._files.replace(self._name, data, old) else "")
        if ignored:
            raise StoreError(
                f"the object store of {self._files.place} ignores {ignored}: two writers could not be kept apart",
                "Use one with conditional writes, or a local --out",
            )

    def release(self) -> None:
        """Let the next one have it at once. The object stays, for to delete it could delete a successor's."""
        self._over.set()
        with self._lock, suppress(EmbedxError, FileNotFoundError):
            if not self._is_lost:
                self._write({**self._state, "released": True})

    def keep(self) -> None:
        """Renew it until it is released or lost; runs in a thread of its own."""
        while not self._over.wait(self._state["seconds"] / BEATS) and not self._is_lost:
            with suppress(EmbedxError):  # One that fails is made good by the next; what is lost is said by `check`.
                self.check()

    def _write(self, state: dict[str, Any]) -> bool:
        """Replace the lease by a new state; False if it is not ours any more."""
        mark = self._files.replace(self._name, _to_json(state), self._mark)
        if mark is None:
            # A write whose answer was lost looks refused when it is tried again: what stands there decides.
            with suppress(FileNotFoundError):
                found = self._files.read_version(self._name)
                mark = found.mark if self._is_ours(found) else None
        if mark is None:
            return False
        self._mark, self._state = mark, state
        return True

    def _is_ours(self, found: Version) -> bool:
        return bool(_read(found).get("owner") == self._state["owner"])

    def _seconds_left(self, found: Version) -> float:
        state = _read(found)
        if state.get("released") or _is_dead(state):
            return 0.0
        return float(state.get("seconds", DEFAULT_S)) - (self._server_time() - found.modified).total_seconds()

    def _server_time(self) -> datetime:
        probe = f"{self._name}.{secrets.token_hex(6)}"
        self._files.write(probe, b"what time is it?")
        try:
            return self._files.read_version(probe).modified
        finally:
            self._files.delete([probe])

    def _busy(self, found: Version, left: float) -> BusyError:
        state = _read(found)
        who = f"{state.get('host', 'unknown host')}, process {state.get('pid', '?')}, since {state.get('since', '?')}"
        return BusyError(
            f"another embedx process is writing to {self._files.place} ({who})",
            f"Wait for it to end, or choose another --out; if it is dead, its lease runs out in {max(1, left):.0f} s, "
            "and then the same command goes on",
        )


@contextmanager
def holding(files: ObjectFiles, name: str) -> Iterator[Lease]:
    """Hold a lease for the time of a block.

    Raises:
        BusyError: another process holds it; says who, and when it runs out.
    """
    state = {
        "owner": secrets.token_hex(8),
        "seconds": lease_seconds(),
        "beat": 0,
        "released": False,
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        **_who_we_are(),
    }
    lease = Lease(files, name, state)
    lease.take()
    threading.Thread(target=lease.keep, name="embedx-lease", daemon=True).start()
    try:
        lease.prove()
        yield lease
    finally:
        lease.release()


def _who_we_are() -> dict[str, Any]:
    born = round(psutil.Process().create_time(), 1)
    return {"host": socket.gethostname(), "pid": os.getpid(), "born": born, "machine": _machine()}


def _machine() -> str:
    """Return what tells this boot of this machine, and this container, from all others; empty where nothing does."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _is_dead(state: dict[str, Any]) -> bool:
    """Whether the holder was a process of this very machine that is no more: nobody needs to wait for it."""
    if not state.get("machine") or state["machine"] != _machine():
        return False
    try:
        process = psutil.Process(int(state["pid"]))
        return abs(process.create_time() - float(state["born"])) > 2 or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False


def _to_json(state: dict[str, Any]) -> bytes:
    return json.dumps(state).encode()


def _read(version: Version) -> dict[str, Any]:
    try:
        state = json.loads(version.data)
    except ValueError:
        return {}
    return state if isinstance(state, dict) else {}
