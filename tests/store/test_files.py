"""One suite for both kinds of places: a folder, and a prefix on an S3 API."""

import os
import threading
import urllib.request

import pyarrow as pa
import pytest

from embedx.core.errors import BusyError, StoreError
from embedx.core.places import Access, Url
from embedx.store.files import Entry, File, open_files, read_all
from embedx.store.objects import TAIL_BYTES


@pytest.fixture(params=["folder", "object store"])
def files(request, tmp_path):
    place = tmp_path / "place" if request.param == "folder" else request.getfixturevalue("url")
    return open_files(place)


def test_what_is_written_is_listed_and_read(files):
    assert not files.exists() and files.list() == [] and files.folders() == (set(), set())
    files.write("a/one.bin", b"1")
    files.write("a/b/ü ä#%.bin", b"22")
    files.write("top", b"333")
    assert files.exists() and files.exists("top") and not files.exists("a/none")
    assert files.list("a/") == [Entry("a/b/ü ä#%.bin", 2), Entry("a/one.bin", 1)]
    assert [entry.name for entry in files.list()] == ["a/b/ü ä#%.bin", "a/one.bin", "top"]
    assert files.folders() == ({"a"}, {"top"})
    assert files.read("a/b/ü ä#%.bin") == b"22" and files.size("a/one.bin") == 1
    files.write("top", b"replaced")
    assert files.read("top") == b"replaced"
    files.delete(["top", "was never there", "a/one.bin"])
    assert [entry.name for entry in files.list()] == ["a/b/ü ä#%.bin"]
    files.delete_below("a/")
    assert files.list() == []


def test_of_many_that_create_one_does(files):
    begin, made = threading.Barrier(8), []

    def create(number):
        begin.wait()
        if files.create("data/x.parquet", f"writer {number}".encode()):
            made.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and files.read("data/x.parquet") == f"writer {made[0]}".encode()
    assert files.list() == [Entry("data/x.parquet", 8)], "no temporary is left"


def test_a_file_that_was_not_finished_is_not_there(files):
    with files.writing("r/plan.arrow") as path:
        path.write_bytes(b"whole")
    with pytest.raises(RuntimeError), files.writing("r/plan.arrow") as path:
        path.write_bytes(b"ha")
        raise RuntimeError("killed")
    assert files.read("r/plan.arrow") == b"whole" and len(files.list()) == 1


def test_what_is_missing_is_named(files):
    for action in (files.read, files.size, files.open):
        with pytest.raises(FileNotFoundError) as caught:
            action("none.bin")
        assert "none.bin" in str(caught.value)


def test_parts_of_a_file(files, tmp_path):
    data = os.urandom(5 * TAIL_BYTES + 17)
    files.write("x", data)
    with files.open("x") as opened:
        assert opened.size() == len(data)
        for start, length in ((len(data) - 8, 8), (0, 4), (4, 3 * TAIL_BYTES), (TAIL_BYTES, 1), (len(data), 5)):
            opened.seek(start)
            assert opened.read(length) == data[start : start + length]
        opened.seek(0)
        assert opened.read() == data
    assert files.fetch("x", tmp_path).read_bytes() == data
    with File(files, "x").open() as opened, pytest.raises(pa.ArrowInvalid):
        pa.ipc.open_file(opened)


def test_many_are_read_in_order(files):
    names = [f"d/{number:03d}" for number in range(70)]
    for name in names:
        files.write(name, name.encode())
    assert list(read_all(files, files.read, names)) == [name.encode() for name in names]


def test_a_tail_is_one_request(s3, url):
    files = open_files(url)
    files.write("x", b"y" * TAIL_BYTES)
    s3.new_requests()
    with files.open("x") as opened:
        opened.seek(opened.size() - 8)
        opened.read(8)
        opened.seek(0)
        opened.read()
    assert [request[0] for request in s3.new_requests()] == ["GET"]


# -- what can be wrong with an object store -------------------------------------------------------------------------


def with_options(url, bucket=None, **options):
    text = f"s3://{bucket}/x" if bucket else url.text
    return open_files(Url(text, Access((*dict(url.access.options, **options).items(),))))


def test_a_bucket_that_is_not_there(url):
    files = with_options(url, bucket="nowhere")
    for action in (files.list, files.folders, lambda: files.read("x"), lambda: files.write("x", b"")):
        with pytest.raises(StoreError, match="bucket of s3://nowhere/x.* does not exist"):
            action()


def test_an_object_store_that_cannot_be_reached(url, monkeypatch):
    monkeypatch.setattr("embedx.store.objects.RETRIES", 1)
    with pytest.raises(BusyError, match="cannot be reached"):
        with_options(url, endpoint_url="http://127.0.0.1:9").list()


def test_options_nobody_knows(url):
    with pytest.raises(StoreError, match="--storage-option canary-name is not known") as caught:
        with_options(url, **{"canary-name": "canary-value"}).list()
    assert "canary-value" not in str(caught.value)


def check_keys(s3, after):
    """Let the server check keys after so many requests."""
    request = urllib.request.Request(
        s3.url + "/moto-api/reset-auth", after, {"Content-Type": "text/plain"}, method="POST"
    )
    urllib.request.urlopen(request).read()


def test_wrong_keys_are_named_and_not_shown(s3, url):
    check_keys(s3, b"0")
    try:
        with pytest.raises(StoreError, match="not accessible|Forbidden|InvalidAccessKeyId") as caught:
            open_files(url).list()
    finally:
        check_keys(s3, b"inf")
    assert "credentials" in caught.value.remedy and "canary" not in str(caught.value)
