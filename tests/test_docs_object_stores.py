"""Every command and script of docs/object-stores.md runs as it stands there."""

import os
import re
import shlex
import subprocess
import sys

import pytest

from tests import servers
from tests.conftest import ROOT, Command

TEXT = (ROOT / "docs" / "object-stores.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    (folder / "data").symlink_to(ROOT / "data")
    with servers.s3_process(folder) as s3, servers.dask_cluster(s3.env) as scheduler:
        s3.client().create_bucket(Bucket="bucket")
        yield folder, {**s3.env, "EMBEDX_CLUSTER": scheduler}


def test_the_commands_run(place):
    folder, env = place
    commands = [line for block in blocks("") for line in block.splitlines()]
    assert len(commands) >= 12
    said = {}
    for line in commands:
        if shlex.split(line)[0] == "embedx":
            arguments = shlex.split(line)[1:]
            said[arguments[0]] = Command(folder)(*arguments, env=env).stdout
    assert "refund" in said["search"] and "60 items" in said["predict"] and "sound store" in said["verify"]


def test_the_script_runs(place):
    folder, env = place
    (script,) = blocks("python")
    code = script + "\nassert vectors.shape == (60, 384) and len(set(ids)) == 60"
    subprocess.run([sys.executable, "-c", code], cwd=folder, env={**os.environ, **env}, check=True, timeout=120)


def test_the_options_are_those_that_are_known():
    from embedx.core.storage_options import NAMES

    for scheme, names in NAMES.items():
        (row,) = [line for line in TEXT.splitlines() if line.startswith(f"| `{scheme}://`")]
        assert re.findall(r"`(\w+)`", row) == list(names)
