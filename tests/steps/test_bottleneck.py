"""What a run says its time went to: shares, advice, and the trace."""

import itertools
import json
from collections import Counter

import pytest

from embedx.core.phases import Phases
from embedx.steps.bottleneck import describe_bottleneck, encoder_busy_share
from tests.conftest import SUPPORT, write_jsonl


@pytest.mark.parametrize(
    ("stages", "kind", "expected"),
    [
        (
            {"wait_prepare": 6, "wait_forward": 4, "read": 1, "prepare": 9},
            "image",
            "preparing: the encoder waited 60 %",
        ),
        ({"wait_prepare": 6, "wait_forward": 4, "read": 9, "prepare": 1}, "image", "reading: the encoder waited 60 %"),
        ({"wait_prepare": 1, "wait_forward": 9}, "text", "encoder: it waited 10 %"),
        ({}, "text", "none"),
    ],
)
def test_one_line(stages, kind, expected):
    assert describe_bottleneck(Counter(stages), kind).startswith(expected)


def test_advice_fits_the_cause():
    slow_decoding = Counter({"wait_prepare": 9.0, "wait_forward": 1.0, "prepare": 9.0})
    assert "decode" in describe_bottleneck(slow_decoding, "image")
    assert "tokenise" in describe_bottleneck(slow_decoding, "text")
    busy = Counter({"wait_forward": 1.0})
    assert "bf16" in describe_bottleneck(busy, "image", "fp32")
    assert "bf16" not in describe_bottleneck(busy, "image", "bf16")
    assert encoder_busy_share(slow_decoding) == 0.1
    assert encoder_busy_share(Counter()) is None


def test_phases_add_up_and_count_failures():
    phases = Phases()
    with phases.span("a"), phases.span("b"):
        pass
    with pytest.raises(ValueError), phases.span("a"):
        raise ValueError
    assert [span.name for span in phases.spans] == ["b", "a", "a"]
    assert set(phases.seconds()) == {"a", "b"}


def test_the_trace_of_a_run(embedx, tmp_path):
    write_jsonl(tmp_path / "c.jsonl", [{"id": str(n), "text": f"document {n}"} for n in range(50)])
    report = embedx.json(
        *("extract", "c.jsonl", "--encoder", "minilm", "--out", "s", "--profile", "trace.json"),
        env={"EMBEDX_SHARD_ITEMS": "10"},
    )
    assert {"open", "plan", "start workers", "try encoder", "embed", "publish"} == set(report["phase_seconds"])
    assert sum(report["phase_seconds"].values()) <= report["seconds"]
    assert 0 < report["encoder_busy_share"] <= 1
    # [CLS] document N [SEP]
    assert report["tokens_per_s"] == pytest.approx(50 * 4 / report["seconds"], abs=0.2)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    shards = [event for event in events if event["name"].startswith("shard")]
    (embed,) = (event for event in events if event["name"] == "embed")
    assert len(shards) == 5 and sum(event["args"]["items"] for event in shards) == 50
    for shard in shards:
        assert embed["ts"] <= shard["ts"] + 1e6 and shard["ts"] + shard["dur"] <= embed["ts"] + embed["dur"] + 1e6
        assert {"forward", "prepare", "wait_forward", "total"} <= set(shard["args"])
    for one, other in itertools.pairwise(shards):  # of one row, in order of time
        if one["tid"] == other["tid"]:
            assert one["ts"] + one["dur"] <= other["ts"]


def test_a_profile_that_cannot_be_written_is_said_before_the_run(embedx, tmp_path):
    write_jsonl(tmp_path / "c.jsonl", [{"id": "1", "text": "a document"}])
    (tmp_path / "file").write_text("")
    extract = ("extract", "c.jsonl", "--encoder", "minilm", "--out", "s")
    error = embedx.json(*extract, "--profile", "file/trace.json", status=2)["error"]
    assert "--profile" in error["message"]
    assert not (tmp_path / "s").exists()
    error = embedx.json(*extract, "--profile", "trace.json", "--dry-run", status=2)["error"]
    assert "--dry-run" in error["message"]


def test_a_run_with_nothing_to_do_has_a_trace_too(embedx, tmp_path):
    embedx.json("extract", SUPPORT, "--encoder", "minilm", "--columns", "intent", "--limit", "20", "--out", "s")
    again = ("extract", SUPPORT, "--encoder", "minilm", "--columns", "intent", "--limit", "20", "--out", "s")
    assert embedx.json(*again, "--profile", "t.json")["run"] is None
    names = {event["name"] for event in json.loads((tmp_path / "t.json").read_text())["traceEvents"]}
    assert names == {"open", "plan"}
