"""The source `zip`: the images of a ZIP archive, else its .txt files, one text each."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from embedx.core.sources import Stored

IMAGES = (".jpg", ".jpeg", ".png", ".webp")


class ZipSource:
    """The members of an archive."""

    def __init__(self, path: Path) -> None:
        self.place = str(path.resolve())
        self._archive = zipfile.ZipFile(path)
        files = [member for member in self._archive.infolist() if not member.is_dir()]
        images = [member for member in files if member.filename.lower().endswith(IMAGES)]
        self._content = "image" if images else "text"
        self._members = images or [member for member in files if member.filename.lower().endswith(".txt")]

    def columns(self) -> dict[str, str]:
        """Return column -> type."""
        return {"id": "string", self._content: "image" if self._content == "image" else "string", "folder": "string"}

    def iterate_rows(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield a row for each member, in the archive's order."""
        for member in self._members:
            row: dict[str, Any] = {"id": member.filename, "folder": str(PurePosixPath(member.filename).parent)}
            if "image" in columns:
                row["image"] = Stored(member.filename, f"{member.CRC:08x}-{member.file_size}")
            if "text" in columns:
                row["text"] = self._archive.read(member).decode(errors="surrogateescape")
            yield row

    def read(self, key: str) -> bytes:
        """Return the bytes of a member."""
        return self._archive.read(key)


def open_source(place: str, options: Mapping[str, str]) -> ZipSource:
    """Open the archive at a path."""
    return ZipSource(Path(place).expanduser())
