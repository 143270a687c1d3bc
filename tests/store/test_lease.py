"""The lease on an S3 API: one holder, found out by all others, taken over only when it is dead or late."""

import json
import threading
import time

import pytest

from embedx.core.errors import BusyError, StoreError, UsageError
from embedx.store import lease
from embedx.store.lease import holding
from embedx.store.objects import ObjectFiles
from embedx.store.writing import writing

NAME = "_embedx/lease.json"


@pytest.fixture
def files(url):
    return ObjectFiles(url)


def state(files):
    return json.loads(files.read(NAME))


def foreign(files, **changes):
    """Write a lease of a process on another machine."""
    files.write(NAME, json.dumps({"owner": "x", "seconds": 60, "beat": 0, "released": False, "host": "far",
                                  "pid": 1, "born": 0, "machine": "another", "since": "today", **changes}).encode())  # fmt: skip


def test_one_at_a_time(url, files):
    with writing(url):
        with pytest.raises(BusyError, match="another embedx process is writing to") as caught, writing(url):
            pass
        assert "lease runs out in" in caught.value.remedy and caught.value.exit_code == 75
        assert not state(files)["released"]
    assert state(files)["released"]
    with writing(url):
        pass
    assert [entry.name for entry in files.list()] == [NAME], "no probe is left"


def test_of_many_that_want_it_one_has_it(files):
    begin, all_tried, held, refused = threading.Barrier(6), threading.Event(), [], []

    def hold():
        begin.wait()
        try:
            with holding(files, NAME) as got:
                held.append(got)
                assert all_tried.wait(60)
        except BusyError:
            refused.append(1)
            if len(refused) == 5:
                all_tried.set()

    threads = [threading.Thread(target=hold) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 1 and len(refused) == 5


def test_a_late_one_is_taken_over_and_a_dead_one_at_once(files):
    foreign(files, seconds=6)
    with pytest.raises(BusyError, match="far, process 1") as caught, holding(files, NAME):
        pass
    assert "lease runs out in" in caught.value.remedy
    end = time.monotonic() + 30
    while True:
        try:
            with holding(files, NAME) as got:
                got.check()
            break
        except BusyError:
            assert time.monotonic() < end
            time.sleep(0.3)
    # This machine's own dead are known: a process of this number was born at another time.
    foreign(files, seconds=3600, machine=lease._machine(), pid=1, born=1.0)
    with holding(files, NAME) as got:
        got.check()


def test_it_is_kept_as_long_as_it_is_held(files, monkeypatch):
    monkeypatch.setenv("EMBEDX_LEASE_S", "5")
    with holding(files, NAME) as got:
        monkeypatch.setattr(lease, "_machine", lambda: "another")
        for _ in range(16):
            time.sleep(0.5)
            with pytest.raises(BusyError), holding(files, NAME):
                pass
        got.check()
        assert state(files)["beat"] >= 3


def test_who_has_lost_it_finds_out(url, files, monkeypatch):
    monkeypatch.setenv("EMBEDX_LEASE_S", "2")
    with writing(url) as layout:
        layout.check_held()
        foreign(files)
        with pytest.raises(BusyError, match="took over"):
            layout.check_held()
        time.sleep(1)
        with pytest.raises(BusyError, match="took over"):
            layout.check_held()
    assert state(files)["owner"] == "x" and not state(files)["released"], "the successor's lease is left alone"


def test_a_lost_answer_is_no_lost_lease(files):
    with holding(files, NAME) as got:
        got._mark = {"e_tag": '"of long ago"'}  # as after a write that landed and whose answer did not arrive
        got.check()


def test_a_damaged_lease_runs_out(files, monkeypatch):
    monkeypatch.setattr(lease, "DEFAULT_S", 1.0)
    files.write(NAME, b"{")
    time.sleep(2.1)
    with holding(files, NAME) as got:
        got.check()


def test_how_long_it_lasts(monkeypatch):
    monkeypatch.setenv("EMBEDX_LEASE_S", "soon")
    with pytest.raises(UsageError, match="EMBEDX_LEASE_S"):
        lease.lease_seconds()


@pytest.mark.parametrize("ignored", ["create", "replace"])
def test_an_object_store_without_conditions_is_refused(files, monkeypatch, ignored):
    def overwrite(self, name, data, *mark):
        self.write(name, data)
        return mark[0] if mark else True

    monkeypatch.setattr(ObjectFiles, ignored, overwrite)
    name = {"create": "If-None-Match", "replace": "If-Match"}[ignored]
    with pytest.raises(StoreError, match=f"ignores {name}"), holding(files, NAME):
        pass
