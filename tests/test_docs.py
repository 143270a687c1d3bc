"""The commands of the documents do what the documents say."""

import re
import shlex
import shutil
import tomllib
from importlib.metadata import version

import pytest

from embedx.cli.job import read_job
from tests.conftest import ROOT, Command

README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "data", folder / "data")
    shutil.copytree(ROOT / "jobs", folder / "jobs")
    return Command(folder)


def test_readme_commands_run_in_order(checkout):
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.strip()]
    assert len(lines) >= 15 and all(line.startswith("embedx ") for line in lines)
    for line in lines:
        done = checkout(*shlex.split(line)[1:])
        assert done.stdout.strip(), line
        if "money back" in line:
            assert done.stdout.splitlines()[0].split()[2].startswith("refund-"), done.stdout
        if "where is it" in line:
            assert done.stdout.count("delivery-") == 3, done.stdout


def test_the_job_runs_again_and_embeds_nothing(checkout):
    steps = checkout.json("run", "jobs/support.toml")["steps"]
    assert [step["use"] for step in steps] == ["extract", "verify", "index", "fit-head", "evaluate"]
    again = checkout.json("run", "jobs/support.toml")["steps"]
    assert again[0]["report"]["items"]["embedded"] == 0 and again[1]["report"]["ok"]


def test_readme_python_runs(checkout):
    import subprocess
    import sys

    (code,) = blocks("python")
    (checkout.cwd / "script.py").write_text(code + "    print(hits.ids[0][0], labels[0])\n")
    done = subprocess.run([sys.executable, "script.py"], cwd=checkout.cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("password-"), done.stdout


def test_job_errors_name_the_step(checkout, tmp_path):
    job = tmp_path / "bad.toml"
    job.write_text('[[step]]\nuse = "extract"\nsources = ["data/support.jsonl"]\nencodr = "minilm"\n')
    error = checkout.json("run", job, status=2)["error"]
    assert "step 1 (extract): unknown key 'encodr'" in error["message"] and "encoder" in error["remedy"]
    job.write_text('[[step]]\nuse = "index"\nstore = "gone"\nout = "i"\n')
    error = checkout.json("run", job, status=1)["error"]
    assert error["message"].startswith("step 1 (index): gone does not exist")
    job.write_text('[[step]]\nuse = "explode"\n')
    assert "unknown use 'explode'" in checkout.json("run", job, status=2)["error"]["message"]


def test_environment_wins_over_the_job_file(checkout, tmp_path):
    job = tmp_path / "job.toml"
    job.write_text(
        '[[step]]\nuse = "extract"\nsources = ["data/support.jsonl"]\nencoder = "minilm"\nout = "envstore"\n'
        'runtime = "openvino"\nlimit = 5\n'
    )
    (step,) = checkout.json("run", job, env={"EMBEDX_RUNTIME": "torch"})["steps"]
    assert step["report"]["encoder"]["runtime"].startswith("torch") and step["report"]["items"]["embedded"] == 5


def test_every_job_file_is_valid():
    jobs = sorted((ROOT / "jobs").glob("*.toml"))
    assert jobs
    for job in jobs:
        assert read_job(job)


def test_the_changelog_knows_the_version():
    assert f"## {version('embedx')} " in (ROOT / "CHANGELOG.md").read_text()
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == version("embedx")


def test_readme_shows_the_two_commands():
    assert "make demo" in README and "make test" in README
