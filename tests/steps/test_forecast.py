"""`--estimate` embeds a sample and writes nothing; its figures come from real work."""

import itertools

from embedx.steps.forecast import _spread
from tests.conftest import SUPPORT, write_jsonl
from tests.steps.test_extract import texts


def test_estimate_samples_and_writes_nothing(embedx, tmp_path):
    rows = texts(300)
    rows[7]["text"] = None
    write_jsonl(tmp_path / "c.jsonl", rows)
    arguments = ("extract", "c.jsonl", "--encoder", "minilm", "--out", "s", "--runtime", "openvino")
    report = embedx.json(*arguments, "--estimate", env={"EMBEDX_SHARD_ITEMS": "100"})
    estimate = report["estimate"]
    assert report["items"]["planned"] == 300 == estimate["sampled"], "a small corpus is sampled whole"
    assert estimate["failed"] == 1
    assert estimate["items_per_s"] > 0 and estimate["bytes"] > 299 * 384 and estimate["runtime"].startswith("openvino")
    assert {path.name for path in tmp_path.iterdir()} == {"c.jsonl"}, "nothing is left behind"
    shown = embedx(*arguments, "--estimate").stdout
    assert "300 items sampled" in shown and "for all, on openvino" in shown and "bottleneck" in shown


def test_estimate_has_nothing_to_say_of_a_finished_store(embedx, tmp_path):
    embedx("extract", SUPPORT, "--encoder", "minilm", "--out", "s")
    error = embedx.json("extract", SUPPORT, "--encoder", "minilm", "--out", "s", "--estimate", status=1)["error"]
    assert "nothing is left to embed" in error["message"]


def test_samples_are_spread_from_the_first_on():
    for count in (1, 2, 5, 64, 1000):
        order = list(_spread(count))
        assert sorted(order) == list(range(count))
    first = sorted(list(_spread(1000))[:10])
    gaps = [after - before for before, after in itertools.pairwise(first)]
    assert max(gaps) < 200 and min(gaps) > 30
