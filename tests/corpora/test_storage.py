"""Remote files: a prefix is listed once, tars and tables are read by ranges, neighbours together."""

import asyncio
import io
import re
from collections import Counter
from contextlib import contextmanager

import pyarrow as pa
import pytest
import xxhash

from embedx.core.contracts import Broken
from embedx.core.errors import CorpusError, UsageError
from embedx.core.places import Access, parse_storage_option
from embedx.core.specs import CorpusSpec
from embedx.corpora import arrow_files, prefetch, prefixes, ranges
from embedx.corpora.content import ImageReader
from embedx.corpora.listing import open_corpus
from embedx.corpora.locators import Locator, parse_locator, url_problem
from embedx.corpora.prefetch import plan_units
from embedx.corpora.sources import open_sources
from embedx.corpora.storage import Storage, shared_storage
from tests import photos, servers

FILES = {name: data for name, data in photos.photos().items() if name not in ("cats/cut.png", "dogs/page.jpg")}


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    folder = tmp_path_factory.mktemp("s3")
    photos.write_tar(folder / "a.tar", FILES)
    photos.write_parquet(folder / "a.parquet", FILES, row_group_size=3)
    with servers.s3_server() as s3:
        objects = {f"p/{name}": data for name, data in FILES.items()}
        tars = {f"tars/{number}.tar": folder / "a.tar" for number in range(3)}
        extra = {"p/notes.md": b"x", "p/.hidden/1.png": b"x", "t/a.parquet": folder / "a.parquet", "empty/x.bin": b""}
        servers.fill_bucket(s3, "pics", {**objects, **tars, **extra})
        yield Access(tuple({**servers.S3_FLAGS, "endpoint_url": s3}.items()))


@pytest.fixture
def requests(monkeypatch):
    """How often each operation was asked of S3."""
    import aiobotocore.client

    counted = Counter()
    real = aiobotocore.client.AioBaseClient._make_api_call

    async def call(self, operation, parameters):
        counted[operation] += 1
        return await real(self, operation, parameters)

    monkeypatch.setattr(aiobotocore.client.AioBaseClient, "_make_api_call", call)
    return counted


def rows_of(access, *sources, **more):
    corpus = open_corpus(CorpusSpec(sources, access=access, **more), modality="image")
    return [row for batch in corpus.iterate_batches() for row in batch.to_pylist()], corpus


def read_all(rows, access):
    locators, identities = [row["locator"] for row in rows], [row["identity"] for row in rows]
    with ImageReader(locators, identities, access or Access()) as reader:
        return [reader.read(position) for position in range(len(rows))]


def test_a_prefix_is_listed_once(bucket, requests):
    rows, corpus = rows_of(bucket, "s3://pics/p/")
    assert [row["item_id"] for row in rows] == list(FILES) and corpus.ignored == {".md": 1, "hidden": 1}
    assert [row["c_label"] for row in rows] == [name.split("/")[0] for name in FILES]
    assert rows[0]["locator"] == "s3://pics/p/cats/1.png"
    assert requests["ListObjectsV2"] == 1 and requests["HeadObject"] == 0
    again = open_corpus(corpus.spec, modality="image", sources=corpus.sources)
    assert sum(batch.num_rows for batch in again.iterate_batches()) == len(rows) and requests["ListObjectsV2"] == 1
    assert [content.size_bytes for content in read_all(rows, bucket)] == [len(data) for data in FILES.values()]


def test_a_tar_is_read_by_ranges_of_many_members(bucket, requests):
    rows, _ = rows_of(bucket, "s3://pics/tars/1.tar")
    assert requests["GetObject"] <= 2, "headers come with what is around them"
    requests.clear()
    assert [content.size_bytes for content in read_all(rows, bucket)] == [len(data) for data in FILES.values()]
    assert requests["GetObject"] == 1, "ten neighbours in one range"


def test_a_prefix_of_shards_is_its_shards(bucket):
    rows, corpus = rows_of(bucket, "s3://pics/tars/", id_prefix="source")
    assert [source.label for source in corpus.sources] == [f"tars/{number}.tar" for number in range(3)]
    assert len(rows) == 30 and rows[-1]["item_id"].startswith("tars/2.tar/")
    assert len(rows_of(bucket, "s3://pics/tars/{0..1}.tar", on_duplicate="first")[0]) == 20


def test_parquet_cells_are_read_from_afar(bucket, requests):
    rows, _ = rows_of(bucket, "s3://pics/t/")
    requests.clear()
    assert [content.size_bytes for content in read_all(rows, bucket)] == [len(data) for data in FILES.values()]
    assert requests["GetObject"] <= 6, "not one for each of ten cells"


def test_an_object_that_was_replaced_is_not_read(bucket):
    rows, _ = rows_of(bucket, "s3://pics/tars/0.tar")
    stale = [{**row, "identity": row["identity"].replace(":s3://", "other:s3://")} for row in rows]
    assert {content.item.error for content in read_all(stale, bucket)} == {"SourceChanged"}


@contextmanager
def replaced_after(monkeypatch, operation, replace):
    """Replace an object between two requests: right after the first answer to one of S3's operations."""
    import aiobotocore.client

    real = aiobotocore.client.AioBaseClient._make_api_call
    done = []

    async def call(self, name, parameters):
        found = await real(self, name, parameters)
        if name == operation and not done:
            done.append(name)
            await asyncio.to_thread(replace)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(aiobotocore.client.AioBaseClient, "_make_api_call", call)
        yield
    assert done


def put(access, key, data):
    servers.fill_bucket(dict(access.options)["endpoint_url"], "pics", {key: data})


@pytest.mark.parametrize("kind", ["tar", "parquet", "arrow"])
def test_an_object_that_is_replaced_between_two_requests_is_no_mix(bucket, tmp_path, monkeypatch, kind):
    """Both have the same size and places: only the tag tells them apart."""
    first = {f"x/{n}.png": FILES["cats/1.png"] for n in range(4)}
    other = {name: bytes(reversed(data)) for name, data in first.items()}
    old, new = tmp_path / f"old.{kind}", tmp_path / f"new.{kind}"
    for path, files in ((old, first), (new, other)):
        {"tar": photos.write_tar, "parquet": photos.write_parquet, "arrow": write_arrow}[kind](path, files)
    assert old.stat().st_size == new.stat().st_size
    put(bucket, f"swap.{kind}", old)
    rows, _ = rows_of(bucket, f"s3://pics/swap.{kind}")
    with replaced_after(monkeypatch, "HeadObject", lambda: put(bucket, f"swap.{kind}", new)):
        found = read_all(rows, bucket)
    assert {content.item.error for content in found} == {"SourceChanged"}
    assert all(content.item.retryable and f"swap.{kind}" in content.item.message for content in found)
    again, _ = rows_of(bucket, f"s3://pics/swap.{kind}")
    assert {row["identity"] for row in again}.isdisjoint(row["identity"] for row in rows)


def test_a_source_that_is_replaced_while_it_is_listed_is_an_error(bucket, tmp_path, monkeypatch):
    photos.write_tar(tmp_path / "a.tar", FILES)
    put(bucket, "listed.tar", tmp_path / "a.tar")
    changed = (tmp_path / "a.tar").read_bytes()[:-1] + b"\1"
    with (
        pytest.raises(CorpusError, match="listed.tar .*changed"),
        replaced_after(monkeypatch, "HeadObject", lambda: put(bucket, "listed.tar", changed)),
    ):
        rows_of(bucket, "s3://pics/listed.tar")


def test_a_single_object_that_is_replaced_is_read_anew_and_whole(bucket, requests, monkeypatch):
    put(bucket, "one/1.png", FILES["cats/1.png"])
    rows, _ = rows_of(bucket, "s3://pics/one/")
    requests.clear()
    assert read_all(rows, bucket)[0].size_bytes == len(FILES["cats/1.png"])
    assert requests == {"GetObject": 1}, "the listing said what it is"
    for name in ("cats/7.png", "cats/1.png"):  # larger, and smaller again
        put(bucket, "one/1.png", FILES[name])
        (content,) = read_all(rows, bucket)
        assert content.digest == xxhash.xxh3_128_hexdigest(FILES[name])


def test_a_web_tar_that_is_replaced_is_noticed(tmp_path):
    with servers.web_server() as web:
        for knows_conditions in (True, False):
            web.handler.knows_conditions = knows_conditions
            web.files["/a.tar"] = photos.write_tar(tmp_path / "a.tar", FILES).read_bytes()
            rows, _ = rows_of(Access(), f"{web.url}/a.tar")
            locators, identities = [row["locator"] for row in rows], [row["identity"] for row in rows]
            with ImageReader(locators, identities) as reader:
                assert reader.read(0).size_bytes == len(FILES[rows[0]["item_id"]])
            with ImageReader([*locators, *locators], [*identities, *identities]) as reader:
                reader._files.get(f"{web.url}/a.tar", lambda: reader_info(f"{web.url}/a.tar"))
                web.files["/a.tar"] = bytes(reversed(web.files["/a.tar"]))
                assert reader.read(0).item.error == "SourceChanged"


def reader_info(url):
    return shared_storage(Access()).info(url)


def write_arrow(path, files, kind=pa.ipc.new_stream):
    rows = [{"id": name, "label": photos.label_of(name), "image": data} for name, data in files.items()]
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as sink, kind(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    return path


@pytest.mark.parametrize("kind", [pa.ipc.new_stream, pa.ipc.new_file])
def test_arrow_files_are_read_from_afar(bucket, tmp_path, kind, monkeypatch):
    large = {name: data + bytes(100_000) for name, data in FILES.items()}
    put(bucket, "x/a.arrow", write_arrow(tmp_path / "a.arrow", large, kind))
    monkeypatch.setattr(ranges, "FIRST_BYTES", 256)
    monkeypatch.setattr(ranges, "SKIPPED_BYTES", 0)
    read = []
    real = Storage.read_range
    monkeypatch.setattr(Storage, "read_range", lambda *a: (read.append(a[-1]), real(*a))[1])
    rows, _ = rows_of(bucket, "s3://pics/x/a.arrow", columns=("label",))
    local, _ = rows_of(Access(), str(tmp_path / "a.arrow"), columns=("label",))
    assert [row["item_id"] for row in rows] == [row["item_id"] for row in local] == list(FILES)
    assert [row["c_label"] for row in rows] == [row["c_label"] for row in local]
    assert sum(read) < 300_000, "the images, of a megabyte, are not read to be listed"
    assert [content.digest for content in read_all(rows, bucket)] == [
        content.digest for content in read_all(local, None)
    ]


def test_a_dataset_of_hugging_face_is_read_from_afar(bucket, tmp_path):
    photos.write_dataset(tmp_path / "d", FILES)
    put(bucket, "hf/data.arrow", next((tmp_path / "d").glob("*.arrow")))
    rows, _ = rows_of(bucket, "s3://pics/hf/data.arrow", columns=("label",))
    assert {row["c_label"] for row in rows} == {"cats", "dogs"}
    assert [content.size_bytes for content in read_all(rows, bucket)] == [len(data) for data in FILES.values()]


def test_remote_arrow_files_that_cannot_be_read(bucket, tmp_path):
    whole = write_arrow(tmp_path / "a.arrow", FILES).read_bytes()
    categories = pa.table({"id": ["a"], "image": [b"x"], "label": pa.array(["x"]).dictionary_encode()})
    with pa.OSFile(str(tmp_path / "c.arrow"), "wb") as sink, pa.ipc.new_stream(sink, categories.schema) as writer:
        writer.write_table(categories)
    for data, said in (
        (whole[: len(whole) // 2], "cut off"),
        (b"no arrow file at all", "damaged|without a schema"),
        (b"", "without a schema"),
        ((tmp_path / "c.arrow").read_bytes(), "dictionaries"),
    ):
        put(bucket, "x/bad.arrow", data)
        with pytest.raises(CorpusError, match=said):
            rows_of(bucket, "s3://pics/x/bad.arrow")
    for place in range(8, len(whole) - 8, max(1, len(whole) // 60)):
        data = whole[:place] + b"\xff" * 8 + whole[place + 8 :]
        try:
            file = arrow_files.RemoteArrow(io.BytesIO(data), len(data))
            [file.read_batch(number, file.schema.names).validate(full=True) for number in range(len(file.rows))]
        except (ValueError, OSError, pa.ArrowException):
            continue  # whatever comes of it, it comes back


def test_a_long_prefix_is_listed_page_by_page(bucket, requests, monkeypatch):
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "3")
    monkeypatch.setattr(prefixes, "REMEMBERED", 4)
    rows, corpus = rows_of(bucket, "s3://pics/p/")
    assert [row["item_id"] for row in rows] == list(FILES) and corpus.ignored == {".md": 1, "hidden": 1}
    pages = requests["ListObjectsV2"]
    assert 3 < pages <= 5, "12 objects in pages of 3 (or 4), once"
    again = open_corpus(corpus.spec, modality="image", sources=corpus.sources)
    assert [row["item_id"] for batch in again.iterate_batches() for row in batch.to_pylist()] == list(FILES)
    assert requests["ListObjectsV2"] == 2 * pages, "what is not remembered is listed again"
    assert [source.label for source in open_sources(CorpusSpec(("s3://pics/tars/",), access=bucket))] == [
        "tars/0.tar", "tars/1.tar", "tars/2.tar",
    ]  # fmt: skip


def test_a_file_is_fetched_in_growing_pieces():
    data, asked = bytes(range(256)) * 40_000, []

    def read(offset, length):
        asked.append((offset, length))
        return data[offset : offset + length]

    file = ranges.open_ranges(read, len(data))
    assert file.read() == data and len(asked) <= 8, "on and on: few requests"
    asked.clear()
    for place in range(0, len(data), 2**21):
        file.seek(place)
        assert file.read(512) == data[place : place + 512]
    assert {length for _, length in asked[:-1]} == {ranges.FIRST_BYTES}, "looked at once: little of each"
    file.seek(-5, 2)
    assert file.read() == data[-5:] and file.read(1) == b"" and file.tell() == len(data)


def test_what_is_missing_is_named(bucket):
    for url, said in (
        ("s3://pics/gone.tar", "gone.tar"),
        ("s3://nowhere/x/", "nowhere"),
        ("s3://pics/empty/", "no images, tars or tables"),
        ("gopher://x/y.tar", "are not read"),
        ("s3://", "names no host or bucket"),
        ("simplecache::s3://pics/a.tar", "not read|does not exist"),
        ("s3://pics/a.tar::file:///etc/passwd", "chain"),
    ):
        with pytest.raises(CorpusError, match=said):
            rows_of(bucket, url)
    (gone,) = read_all([{"locator": "s3://pics/gone.png", "identity": "x"}], bucket)
    assert isinstance(gone.item, Broken) and "gone.png" in gone.item.message


def test_secrets_are_not_shown(bucket):
    wrong = Access((("key", "canary-key"), ("secret", "canary-secret"), ("endpoint_url", "http://127.0.0.1:9")))
    assert "canary" not in repr(wrong) and "canary" not in repr(CorpusSpec(("x",), access=wrong))
    assert wrong.hide("got canary-secret back") == "got *** back"
    with pytest.raises(UsageError) as caught:
        parse_storage_option("canary-no-equals")
    assert "canary" not in str(caught.value)


def test_neighbours_share_a_range(monkeypatch):
    monkeypatch.setattr(prefetch, "RANGE_BYTES", 1000)
    monkeypatch.setattr(prefetch, "GAP_BYTES", 100)
    spans = [(0, 300), (350, 300), (800, 10), (5000, 10), (5010, 900), (5910, 200)]
    locators = [Locator("tar", "s3://b/a.tar", offset=start, length=length) for start, length in spans]
    units = plan_units([*locators, Locator("tar", "s3://b/b.tar", offset=6120, length=1), Locator("file", "/local")])
    found = [(unit.place[-5:], unit.start, unit.stop, unit.positions) for unit in units]
    assert found == [
        ("a.tar", 0, 650, [0, 1]),
        ("a.tar", 800, 810, [2]),
        ("a.tar", 5000, 5910, [3, 4]),
        ("a.tar", 5910, 6110, [5]),
        ("b.tar", 6120, 6121, [6]),
    ]


@pytest.mark.parametrize(
    "locator",
    [
        Locator("file", "/a/b c.png"),
        Locator("file", "s3://b/a:b.png"),
        Locator("tar", "/a:b/c.tar", offset=512, length=7),
        Locator("parquet", "s3://b/x.parquet", row=17, column="a:b/ü"),
        Locator("arrow", "/x.arrow", row=0, column="image"),
    ],
)
def test_locators_are_read_back(locator):
    assert parse_locator(str(locator)) == locator


def test_urls_that_are_not_read():
    assert url_problem("https://example.org/a b.png") is None and url_problem("s3://b/k") is None
    for url in ("http://u:p@h/x", "http://u@h/x", "http:///x", "file:///etc/passwd", "http://[::1", "ssh://h/x"):
        assert url_problem(url), url
    assert re.search("user name or password", url_problem("http://u:p@h/x"))


def test_lists_of_sources(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("x\n")
    (tmp_path / "b.txt").write_text("x\n")
    (tmp_path / "list").write_text("# comment\n\nfirst=a.txt\n  b.txt\n")
    assert [source.label for source in open_sources(CorpusSpec(("@list",)))] == ["first", "b.txt"]
    for wrong, said in (("@gone", "cannot be read"), ("@empty", "is empty")):
        (tmp_path / "empty").write_text("\n")
        with pytest.raises(CorpusError, match=said):
            open_sources(CorpusSpec((wrong,)))
