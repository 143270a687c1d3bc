"""Remote files: a prefix is listed once, tars and tables are read by ranges, neighbours together."""

import re
from collections import Counter

import pytest

from embedx.core.contracts import Broken
from embedx.core.errors import CorpusError, UsageError
from embedx.core.places import Access, parse_storage_option
from embedx.core.specs import CorpusSpec
from embedx.corpora import prefetch
from embedx.corpora.content import ImageReader
from embedx.corpora.listing import open_corpus
from embedx.corpora.locators import Locator, parse_locator, url_problem
from embedx.corpora.prefetch import plan_units
from embedx.corpora.sources import open_sources
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
    with ImageReader([row["locator"] for row in rows], [row["identity"] for row in rows], access) as reader:
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
