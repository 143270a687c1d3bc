"""Every benchmark still starts: what it imports is there."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT

SHARED = ("harness.py", "measured.py")
SCRIPTS = sorted(path.name for path in (ROOT / "benchmarks").glob("*.py") if path.name not in SHARED)


@pytest.mark.parametrize("script", SCRIPTS)
def test_it_starts(script):
    command = [sys.executable, str(ROOT / "benchmarks" / script), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "usage:" in done.stdout, done.stderr
