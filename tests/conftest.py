"""Fixtures shared by all tests: real data where it is, a private cache, a small real store."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import settings

from tests.servers import dask_cluster

# A busy machine is no error, and what fails here must fail everywhere.
settings.register_profile("embedx", deadline=None, derandomize=True, database=None, print_blob=True)
settings.load_profile("embedx")

ROOT = Path(__file__).resolve().parent.parent


def external_data() -> Path:
    return Path(os.environ.get("EMBEDX_TEST_DATA", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real weights and data; tests that need it are skipped where it is absent."""
    folder = external_data()
    if not (folder / "data" / "clinc150").is_dir():
        pytest.skip(f"no real data at {folder} (set EMBEDX_TEST_DATA)")
    return folder


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of this test session: models are converted once, and nothing of the user's is read or written."""
    base = tmp_path_factory.getbasetemp()
    # With several test processes, one cache for all of them: a folder beside each one's own.
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    folder = Path(os.environ.get("EMBEDX_TEST_CACHE") or shared / "embedx-cache")
    os.environ["EMBEDX_CACHE"] = str(folder)
    return folder


_kept = ExitStack()


def pytest_sessionfinish() -> None:
    _kept.close()


@functools.cache
def warm_workers() -> str:
    """The address of workers that this test process keeps, so that not every extraction waits for new ones."""
    return _kept.enter_context(dask_cluster({}))


OF_WORKERS = {"--workers", "--threads", "--cluster"}

OF_THE_DRIVER = {"EMBEDX_SHARD_ITEMS", "EMBEDX_LEASE_S"}


class Command:
    """Runs the real command line in its own process.

    An extraction that says nothing about its workers, in arguments or environment, runs on warm ones.
    """

    def __init__(self, cwd: Path) -> None:
        self.cwd = cwd

    def __call__(
        self, *arguments: object, status: int = 0, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        all_env = {**os.environ, **(env or {})}
        if arguments[:1] == ("extract",) and OF_WORKERS.isdisjoint(arguments) and OF_THE_DRIVER.issuperset(env or ()):
            all_env.setdefault("EMBEDX_CLUSTER", warm_workers())
        done = subprocess.run(
            [sys.executable, "-m", "embedx", *map(str, arguments)],
            cwd=self.cwd,
            env=all_env,
            capture_output=True,
            text=True,
            timeout=1500,
        )
        assert done.returncode == status, f"exit {done.returncode}, wanted {status}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def json(self, *arguments: object, status: int = 0, env: dict[str, str] | None = None) -> dict:
        done = self(*arguments, "--json", status=status, env=env)
        return json.loads(done.stdout)


@pytest.fixture
def embedx(tmp_path: Path) -> Command:
    """The command line, run in a fresh folder."""
    return Command(tmp_path)


SUPPORT = ROOT / "data" / "support.jsonl"


@pytest.fixture(scope="session")
def support_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small real store of texts with the column `intent`. Tests must not change it."""
    folder = tmp_path_factory.mktemp("support")
    Command(folder)("extract", SUPPORT, "--encoder", "minilm", "--columns", "intent", "--out", "store")
    return folder / "store"


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
