"""Every command of docs/several-encoders.md runs as it stands there, and says what the page says."""

import re
import shlex
import subprocess
import sys

import pytest

from embedx.store.reader import open_store
from tests import servers
from tests.conftest import ROOT, Command, write_jsonl
from tests.steps.test_several import MOBILENET, SQUEEZENET

PAGE = (ROOT / "docs" / "several-encoders.md").read_text()


@pytest.fixture(autouse=True)
def workers(cache, monkeypatch):
    """Workers that stay warm between the commands."""
    with servers.dask_cluster({}) as scheduler:
        monkeypatch.setenv("EMBEDX_CLUSTER", scheduler)
        monkeypatch.setenv("EMBEDX_RUNTIME", "torch")  # converting the models is tried elsewhere
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory, shared):
    folder = tmp_path_factory.mktemp("several-docs")
    (folder / "squeezenet.toml").write_text(SQUEEZENET.format(weights=shared / "weights"))
    (folder / "mobilenet.toml").write_text(MOBILENET.format(weights=shared / "weights"))
    (folder / "minilm-128.toml").write_text('family = "minilm"\ntruncate_dim = 128\n')
    write_jsonl(folder / "texts.jsonl", [{"id": str(n), "text": f"text number {n}"} for n in range(20)])
    (folder / "photos").mkdir()
    for number, path in enumerate(sorted((shared / "data" / "clothing" / "test").rglob("*.jpg"))[:120:12]):
        (folder / "photos" / f"{number}.jpg").write_bytes(path.read_bytes())
    return Command(folder)


def test_the_commands_run_in_order(place):
    lines = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    assert len(lines) == 7
    said = [place(*shlex.split(line)[1:]).stdout for line in lines]
    assert "10 items" in said[0] and "read once for the 2 stores of stores" in said[0]
    assert said[3].startswith("nothing to do: 10 items of stores/squeezenet")
    assert len(list((place.cwd / "layers").iterdir())) == 4
    assert [open_store(place.cwd / "texts" / name).card.dim for name in ("words", "short")] == [384, 128]
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (place.cwd / "script.py").write_text(code)
    done = subprocess.run([sys.executable, "script.py"], cwd=place.cwd, capture_output=True, text=True)
    assert done.stdout == "[0, 0] 10\n", done.stderr
