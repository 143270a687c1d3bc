"""A store of planted classes, and a head fitted on it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from embedx.heads.spec import HeadSpec
from embedx.steps.fit_head import fit_head
from tests.heads.fakes import make_store, planted


@pytest.fixture(scope="session")
def planted_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six classes in 16 dimensions, 240 rows, column `label`; tests must not change it."""
    vectors, labels = planted(40, 6, 16, noise=0.8)
    return make_store(tmp_path_factory.mktemp("planted") / "store", vectors, {"label": list(labels)})


@pytest.fixture(scope="session")
def fitted(planted_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    path = tmp_path_factory.mktemp("fitted") / "head"
    return path, fit_head(HeadSpec(planted_store, "label", path))


@pytest.fixture
def head_path(fitted: tuple[Path, dict], tmp_path: Path) -> Path:
    """A copy of the fitted head, to be changed at will."""
    return Path(shutil.copytree(fitted[0], tmp_path / "head"))
