"""A plug-in written by following docs/plugins.md: really installed by pip, it works with every command."""

import re
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT, Command

PAGE = (ROOT / "docs" / "plugins.md").read_text()
PLUGIN = ROOT / "tests" / "plugins" / "wordhash"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_page_is_the_package():
    assert blocks("toml") == [(PLUGIN / "pyproject.toml").read_text()]
    assert blocks("python") == [(PLUGIN / "wordhash" / name).read_text() for name in ("__init__.py", "family.py")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the package as the page shows it, and the package installed from it."""
    folder = tmp_path_factory.mktemp("plugin")
    package = folder / "embedx-wordhash"
    (package / "wordhash").mkdir(parents=True)
    (package / "pyproject.toml").write_text(blocks("toml")[0])
    for name, code in zip(("__init__.py", "family.py"), blocks("python")):
        (package / "wordhash" / name).write_text(code)
    shutil.copytree(ROOT / "data", folder / "data")
    # Offline and beside the environment: --no-deps because it has them, --target because tests leave nothing behind.
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(folder / "site")]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(package)], check=True, cwd=folder)
    return folder


def test_the_commands_of_the_page_work(folder):
    command = Command(folder)
    env = {"PYTHONPATH": f"{folder / 'site'}:{ROOT / 'src'}"}
    (block,) = blocks("bash")
    install, *lines = block.splitlines()
    assert install == "pip install ./embedx-wordhash" and len(lines) == 6
    said = {line.split()[1]: command(*shlex.split(line)[1:], env=env).stdout for line in lines}
    assert "wordhash:small keeps the contract" in said["conformance"], said["conformance"]
    assert said["search"].count("delivery-") >= 2, said["search"]
    report = command.json("evaluate", "words-store", "--head", "words-head", "--label", "intent", env=env)
    assert report["metrics"]["accuracy"] > 0.8
    assert "wordhash:large" in command("encoders", env=env).stdout
    assert command.json("verify", "words-store", "--deep", "5", env=env)["ok"]
    # Where the package is missing, what it made can be read, and an error names what is missing.
    error = command.json("search", "words-index", "--text", "parcel", status=2)["error"]
    assert "wordhash" in error["message"]


def test_the_page_names_every_check():
    from embedx.steps.conformance_checks import CHECKS

    rows = re.findall(r"^\| ([a-z, ]+) \|", PAGE, re.MULTILINE)
    assert [name for row in rows for name in row.split(", ") if row != "check"] == list(CHECKS)
