"""What the commands print. Everything else is tested on the steps, the real process in `test_real_corpora.py`."""

import json

import pytest
import typer
from typer.testing import CliRunner

from embedx.cli import evaluate, fit_head, predict
from embedx.core.errors import UsageError


@pytest.fixture
def run(tmp_path, monkeypatch):
    app = typer.Typer()
    for module in (fit_head, evaluate, predict):
        module.register(app)
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout

    return call


def test_people_read_a_summary(run, planted_store):
    text = run("fit-head", planted_store, "--label", "label", "--out", "h", "--seed", "1")
    assert "6 classes from 240 rows" in text and "hold-out, 48 rows" in text and "h/report.html" in text
    text = run("evaluate", planted_store, "--head", "h", "--label", "label")
    assert "accuracy" in text and "240 rows" in text and "unseen" not in text
    text = run("predict", planted_store, "--head", "h", "--out", "p.parquet")
    assert "Predicted 240 items" in text and "p.parquet" in text


def test_machines_read_one_object(run, fitted, planted_store):
    report = json.loads(run("evaluate", planted_store, "--head", fitted[0], "--label", "label", "--json"))
    assert report["metrics"]["n"] == 240 and len(report["per_class"]) == 6
    report = json.loads(run("predict", planted_store, "--head", fitted[0], "--out", "p.parquet", "--json"))
    assert {"n", "out", "seconds", "counts"} <= report.keys()


def test_flags_reach_the_step(run, planted_store):
    flags = ["--test-size", "0", "--kind", "logistic", "--json"]
    report = json.loads(run("fit-head", planted_store, "--label", "label", "--out", "h", *flags))
    assert report["evaluation"]["method"] == "cross-validation"
    with pytest.raises(UsageError, match="--kind"):
        run("fit-head", planted_store, "--label", "label", "--out", "h", "--kind", "forest")
    with pytest.raises(UsageError, match="label itself"):
        run("fit-head", planted_store, "--label", "label", "--out", "h", "--group", "label")
