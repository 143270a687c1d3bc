"""Delete and vacuum: items leave as a version, files leave when no version needs them."""

import os
import time

from embedx.store.reader import open_store
from tests.conftest import write_jsonl
from tests.steps.test_extract import content, start, texts, wait_for_shards

ARGUMENTS = ("extract", "c.jsonl", "--encoder", "minilm", "--out", "s")
ENV = {"EMBEDX_SHARD_ITEMS": "10"}


def test_delete_and_vacuum(embedx, tmp_path):
    write_jsonl(tmp_path / "c.jsonl", texts(40))
    embedx(*ARGUMENTS, env=ENV)
    before = content(tmp_path / "s")
    # A whole file, a part of another, and an id that is not there.
    gone = [f"t{n:05d}" for n in (*range(10), 25)]
    (tmp_path / "ids.txt").write_text("\n".join([*gone, "nobody"]) + "\n")
    report = embedx.json("delete", "s", "--ids", "ids.txt")
    assert (report["removed"], report["missing"], report["version"]) == (11, ["nobody"], 1)
    after = content(tmp_path / "s")
    assert after.keys() == before.keys() - set(gone)
    assert all((after[item_id][1] == before[item_id][1]).all() for item_id in after)
    assert open_store(tmp_path / "s", version=0).count == 40
    assert content(tmp_path / "s").keys() == after.keys() and embedx.json("verify", "s")["ok"]
    replaced = embedx.json("vacuum", "s")["replaced"]
    assert replaced == [], "an older version may still be read within the retention"
    time.sleep(1.1)
    report = embedx.json("vacuum", "s", "--retention-hours", "0")
    assert len(report["replaced"]) == 2 and report["orphans"] == []
    assert embedx.json("verify", "s")["ok"] and content(tmp_path / "s").keys() == after.keys()
    assert embedx.json(*ARGUMENTS, env=ENV)["items"]["embedded"] == 11, "deleted items are new again"


def test_delete_refuses_what_makes_no_sense(embedx, tmp_path):
    write_jsonl(tmp_path / "c.jsonl", texts(5))
    embedx(*ARGUMENTS)
    (tmp_path / "ids.txt").write_text("nobody\n")
    assert "none of the 1 ids" in embedx("delete", "s", "--ids", "ids.txt", status=1).stderr
    write_jsonl(tmp_path / "all.jsonl", texts(5))
    assert "all 5 items" in embedx("delete", "s", "--ids", "all.jsonl", status=1).stderr
    assert "no file of ids" in embedx("delete", "s", "--ids", "gone.txt", status=1).stderr
    assert len(os.listdir(tmp_path / "s" / "_embedx" / "runs")) == 1


def test_vacuum_spares_interrupted_runs_and_takes_leftovers(embedx, tmp_path):
    write_jsonl(tmp_path / "c.jsonl", texts(5))
    embedx(*ARGUMENTS)
    write_jsonl(tmp_path / "c.jsonl", texts(1200))
    run = start(tmp_path, *ARGUMENTS, env={"EMBEDX_SHARD_ITEMS": "50"})
    wait_for_shards(tmp_path, 4, run)
    os.killpg(run.pid, 9)
    run.wait()
    stray = tmp_path / "s" / "data" / "000000-gone"
    stray.mkdir()
    (stray / "00000.parquet").write_bytes(b"left behind")
    report = embedx.json("vacuum", "s")
    assert "data/000000-gone/00000.parquet" in report["orphans"]
    assert all("000000-gone" in name or "/." in name for name in report["orphans"]), "no shard of the open run"
    assert not stray.exists()
    assert embedx.json(*ARGUMENTS, env={"EMBEDX_SHARD_ITEMS": "50"})["shards"]["reused"] >= 2
    assert open_store(tmp_path / "s").count == 1200


def test_vacuum_keeps_what_the_log_no_longer_tells(embedx, tmp_path):
    from deltalake import DeltaTable

    write_jsonl(tmp_path / "c.jsonl", texts(5))
    embedx(*ARGUMENTS)
    DeltaTable(str(tmp_path / "s")).create_checkpoint()
    (tmp_path / "s" / "_delta_log" / f"{0:020d}.json").unlink()
    notes = next((tmp_path / "s" / "data").iterdir()) / "notes.txt"
    notes.write_text("somebody's own")
    assert embedx.json("vacuum", "s", "--retention-hours", "0.5")["orphans"] == []
    assert notes.exists() and len(content(tmp_path / "s")) == 5
    embedx("vacuum", "s", "--retention-hours", "nan", status=1)


def test_identities_are_kept_of_the_newest_run_only(embedx, tmp_path):
    from PIL import Image

    def paint(name, shade):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 40), (shade, 10, 200)).save(tmp_path / name)

    for number in range(3):
        paint(f"a/{number}.png", number)
        paint(f"b/{number}.png", 100 + number)
    encoder = tmp_path / "weights.pth"
    save_squeezenet(encoder)
    arguments = ("--encoder", "torchvision:squeezenet1_1", "--weights", encoder, "--out", "s")
    embedx("extract", "one=a", *arguments)
    # The same relative paths would clash: another alias and other names.
    (tmp_path / "b").rename(tmp_path / "c")
    for number in range(3):
        (tmp_path / f"c/{number}.png").rename(tmp_path / f"c/c{number}.png")
    embedx("extract", "two=c", *arguments)
    files = list((tmp_path / "s" / "_embedx" / "runs").glob("*/identities.arrow"))
    assert len(files) == 1, "the newest knows what the older ones knew"
    report = embedx.json("extract", "one=a", *arguments)
    assert report["items"]["unchanged"] == 3 and report["items"]["planned"] == 0, "of the first run's source too"
    assert embedx.json("verify", "s")["ok"]


def save_squeezenet(path):
    import torch
    from torchvision import models

    torch.manual_seed(0)
    torch.save(models.squeezenet1_1(weights=None).state_dict(), path)


def test_digests_come_from_the_writer_also_after_a_crash(embedx, tmp_path):
    """A resumed run publishes the sha256 that the shard's writer said: damage in between is found by verify."""
    rows = texts(60)
    rows[5]["text"] = None
    write_jsonl(tmp_path / "c.jsonl", rows)
    arguments = ("extract", "c.jsonl", "--encoder", "minilm", "--out", "s")
    embedx(*arguments, "--max-failures", "0", status=3, env={"EMBEDX_SHARD_ITEMS": "20"})
    (noted,) = (tmp_path / "s" / "_embedx" / "runs").glob("*/receipts.jsonl")
    assert len(noted.read_text().splitlines()) == 3
    path = sorted((tmp_path / "s" / "data").glob("*/*.parquet"))[1]
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    report = embedx.json(*arguments, "--max-failures", "1")
    assert report["shards"]["reused"] == 3
    (problem,) = embedx.json("verify", "s", status=1)["problems"]
    assert "sha256" in problem["message"] and problem["path"].endswith(path.name)
    assert not noted.exists()
