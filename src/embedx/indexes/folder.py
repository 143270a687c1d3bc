"""The files of one version of an index."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from embedx.core.places import Place


@dataclass(frozen=True)
class VersionFiles:
    """Paths of one version.

    Attributes:
        folder: where its files lie on this machine.
        place: the index, where that is not in the same place.
    """

    folder: Path
    place: Place | None = None

    @property
    def index(self) -> Path:
        """The FAISS structure."""
        return self.folder / "index.faiss"

    @property
    def ids(self) -> Path:
        """`item_id` and the carried columns, in the structure's row order."""
        return self.folder / "ids.parquet"

    @property
    def card(self) -> Path:
        """The card, written last."""
        return self.folder / "card.json"

    @property
    def root(self) -> Place:
        """The index."""
        return self.place or self.folder.parent.parent

    @property
    def number(self) -> int:
        """The version's number."""
        return int(self.folder.name)
