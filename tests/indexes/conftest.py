from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from embedx.indexes import audit
from embedx.indexes.build import BuiltIndex, build_index
from embedx.indexes.spec import IndexSpec
from tests.indexes.fakes import FakeStore


@pytest.fixture(autouse=True)
def quick_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speed is measured for milliseconds only; the figures are not under test."""
    monkeypatch.setattr(audit, "SPEED_S", 0.02)


@pytest.fixture
def store() -> FakeStore:
    """60 items of 8 values in three classes, with a few columns of each type."""
    rng = np.random.default_rng(5)
    n = 60
    return FakeStore(
        rng.standard_normal((n, 8)) + 0.2,
        {
            "label": [("red", "green", "blue")[row % 3] for row in range(n)],
            "text": [f"text number {row}" for row in range(n)],
            "size": [row for row in range(n)],
            "weight": [None if row == 4 else row / 2 for row in range(n)],
        },
    )


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., BuiltIndex]:
    """Build an index in `tmp_path / "index"`."""

    def run(store: FakeStore, **asked: object) -> BuiltIndex:
        return build_index(store, IndexSpec(store=store.path, out=tmp_path / "index", **asked))

    return run


@pytest.fixture
def index_path(tmp_path: Path) -> Path:
    return tmp_path / "index"
