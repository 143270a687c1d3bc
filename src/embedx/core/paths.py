"""Where embedx keeps what can be rebuilt: compiled models, cards and digests."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from embedx.core.digests import fingerprint


def cache_dir() -> Path:
    """Return the cache folder: `EMBEDX_CACHE`, else `$XDG_CACHE_HOME/embedx`, else `~/.cache/embedx`."""
    if configured := os.environ.get("EMBEDX_CACHE"):
        return Path(configured).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "embedx"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a private name to write to; on a clean exit it becomes `path`, whole and durable, else it is deleted.

    The file has the mode of any file that the user writes: artefacts are shared between people.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_dir(path.parent)


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Write a file so that it is there whole or not at all, and survives a power cut."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def append_line(path: Path, line: str) -> None:
    """Append a line to a file, without waiting for the disk."""
    with path.open("a") as file:
        file.write(line + "\n")


def fsync_dir(path: Path) -> None:
    """Make a folder's entries durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented for people."""
    write_atomic(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """Return JSON as files hold it, indented for people."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def cached_json(kind: str, key: Any) -> Any | None:
    """Return what `remember_json` kept under a key, or None."""
    path = _cache_path(kind, key)
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def remember_json(kind: str, key: Any, value: Any) -> None:
    """Keep a JSON value for later processes; a cache that cannot be written is no error."""
    try:
        write_atomic(_cache_path(kind, key), json.dumps(value).encode())
    except OSError:
        pass


def _cache_path(kind: str, key: Any) -> Path:
    return cache_dir() / kind / f"{fingerprint(key)}.json"
