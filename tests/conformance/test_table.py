"""The committed table of encoders lists exactly the suite's cases."""

from __future__ import annotations

import re
import subprocess
import sys

from embedx.encoders.registry import FAMILIES
from tests.conformance.test_conformance import CASES, SHORT, keep
from tests.conftest import ROOT


def listed(table: str) -> list[str]:
    return re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)


def test_the_table_lists_every_case_once():
    names = listed((ROOT / "docs" / "encoders.md").read_text())
    assert sorted(names) == sorted(CASES), "run `make conformance` to make docs/encoders.md again"


def test_every_family_has_cases():
    for cases in (CASES, SHORT):
        # A remote encoder has no library to compare with: tests/encoders/test_remote.py knows the server's own vectors.
        assert {name.partition(":")[0] for name in cases} >= set(FAMILIES) - {"remote"}


def test_the_table_is_made_of_the_last_measurements(tmp_path, monkeypatch):
    monkeypatch.setenv("EMBEDX_CONFORMANCE_OUT", str(tmp_path / "measured.jsonl"))
    measured = {
        "encoder": "timm:resnet18 --layer layer3",
        "modality": "image",
        "dim": 256,
        "runtime": "openvino",
        "fp32": {"raw_min": 0.99999999, "centred_min": 0.99995},
        "bf16": {"raw_min": 0.98, "centred_min": 0.9, "passes": False},
        "items_per_s": 123.4,
        "weights": "real",
    }
    keep(measured | {"dim": 1})
    keep(measured)
    keep(measured | {"encoder": "minilm", "bf16": None})
    command = [sys.executable, ROOT / "jobs" / "encoder_table.py", tmp_path / "measured.jsonl", tmp_path / "t.md"]
    subprocess.run(command, check=True, capture_output=True)
    table = (tmp_path / "t.md").read_text()
    assert listed(table) == ["minilm", "timm:resnet18 --layer layer3"]
    assert "| 256 | openvino | 0.999999 | 0.999950 | 0.980000 misses | 123 | real |" in table
    assert "not measured" in table
