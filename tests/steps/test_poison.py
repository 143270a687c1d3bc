"""Items that kill or hang the worker process are found, quarantined and listed; all others are embedded."""

import pytest

from embedx.store.reader import open_store
from tests.conftest import ROOT, write_jsonl
from tests.steps.test_extract import texts

PLUGIN = {"PYTHONPATH": f"{ROOT / 'tests' / 'plugins' / 'poison'}:{ROOT / 'src'}"}


@pytest.mark.parametrize(
    ("word", "said", "env"), [("KILL", "kills the worker", {}), ("HANG", "never ends", {"EMBEDX_WATCHDOG_S": "25"})]
)
def test_the_bad_item_is_quarantined(embedx, tmp_path, support_store, word, said, env):
    # With support_store the model is converted already, which would take longer than this watchdog allows.
    rows = texts(16)
    rows[9]["text"] = f"this one will {word} it"
    write_jsonl(tmp_path / "c.jsonl", rows)
    # The sample of --precision auto lies in the first shard, which is sound.
    arguments = ("extract", "c.jsonl", "--encoder", "poison:minilm", "--out", "s", "--max-failures", "1")
    report = embedx.json(*arguments, env={**PLUGIN, **env, "EMBEDX_SHARD_ITEMS": "2"})
    assert (report["items"]["embedded"], report["items"]["failed"]) == (15, 1)
    (failure,) = embedx.json("failures", "s")["failures"]
    assert failure["id"] == "t00009" and said in failure["message"]
    assert open_store(tmp_path / "s").count == 15
