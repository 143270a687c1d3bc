"""What changed in tars, tables and objects is found, and nothing else is embedded again."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedx.core.specs import Access, CorpusSpec, ExtractSpec, FailureLimit, Resources
from embedx.steps.extract import extract
from embedx.steps.forecast import plan_extract
from embedx.steps.verify import verify
from embedx.store.reader import open_store
from tests import photos, servers

FILES = {name: data for name, data in photos.photos().items() if name not in ("cats/cut.png", "dogs/page.jpg")}


@pytest.fixture(scope="module")
def run():
    """Plan or run an extraction in this process, on a warm worker; returns the report's counts."""
    with servers.dask_cluster(photos.PIXELS) as scheduler:
        from embedx.encoders.registry import parse_ref

        def run(out, *sources, plan=False, resources=None, **corpus):
            limit = FailureLimit(count=2)
            spec = ExtractSpec(
                CorpusSpec(tuple(map(str, sources)), **corpus), parse_ref("pixels:8"), out, max_failures=limit
            )
            report = plan_extract(spec) if plan else extract(spec, Resources(cluster=scheduler))
            return {name: report["items"][name] for name in ("planned", "new", "changed", "updated", "unchanged")}

        yield run


@pytest.fixture(autouse=True)
def encoder(monkeypatch):
    for folder in reversed(photos.PIXELS["PYTHONPATH"].split(os.pathsep)):
        monkeypatch.syspath_prepend(folder)


def counts(planned, new, changed, updated, unchanged):
    return {"planned": planned, "new": new, "changed": changed, "updated": updated, "unchanged": unchanged}


WRITERS = {"tar": photos.write_tar, "parquet": photos.write_parquet}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_rewritten_archive_embeds_what_changed(run, tmp_path, kind):
    write, path, out = WRITERS[kind], tmp_path / f"a.{kind}", tmp_path / "s"
    write(path, FILES)
    assert run(out, path) == counts(10, 10, 0, 0, 0)
    os.utime(path, (1, 1))
    assert run(out, path, plan=True) == counts(0, 0, 0, 0, 10), "touched, and read to see that it is the same"
    # One picture differs, one is new and in front of all others, so that every offset moves.
    other = {"aa/new.png": FILES["cats/3.jpg"], **FILES, "dogs/8.png": FILES["cats/7.png"]}
    write(path, other)
    # The path of an image is where it lies, and that moved: rows are rewritten, not embedded.
    assert run(out, path) == counts(2, 1, 1, 9, 0)
    assert run(out, path, plan=True) == counts(0, 0, 0, 0, 11)
    ids, vectors = open_store(out).vectors()
    known = dict(zip(ids, map(tuple, vectors)))
    assert known["dogs/8.png"] == known["cats/7.png"] != known["cats/1.png"]


def test_objects_are_known_by_their_tags(run, tmp_path):
    with servers.s3_server() as s3:
        options = tuple({**servers.S3_FLAGS, "endpoint_url": s3}.items())
        access = {"access": Access(options)}
        servers.fill_bucket(s3, "pics", {f"p/{name}": data for name, data in FILES.items()})
        assert run(tmp_path / "s", "s3://pics/p/", **access) == counts(10, 10, 0, 0, 0)
        servers.fill_bucket(s3, "pics", {"p/dogs/8.png": FILES["cats/7.png"], "p/cats/1.png": FILES["cats/1.png"]})
        assert run(tmp_path / "s", "s3://pics/p/", **access) == counts(1, 0, 1, 0, 9)
        assert verify(tmp_path / "s", deep=5, access=access["access"])["ok"]
        without = verify(tmp_path / "s", deep=1)["problems"]
        assert len(without) == 1 and "cannot be embedded again" in without[0]["message"]


def test_verify_reads_what_the_store_says_again(run, tmp_path):
    """The carried path is the locator, whatever the source was."""
    photos.write_tar(tmp_path / "a.tar", FILES)
    photos.write_parquet(tmp_path / "b.parquet", {f"b/{name}": data for name, data in FILES.items()})
    run(tmp_path / "s", tmp_path / "a.tar", tmp_path / "b.parquet", columns=())
    run(tmp_path / "t", tmp_path / "a.tar")
    assert verify(tmp_path / "t", deep=5)["ok"]


def test_datasets_with_paths_and_with_both(run, tmp_path):
    """Hugging Face's struct may hold bytes, a path, or either from row to row."""
    photos.write_folder(tmp_path, FILES)
    names = list(FILES)
    for kind, has_bytes in (("paths", []), ("mixed", names[::2])):
        rows = [{"id": n, "image": {"bytes": FILES[n] if n in has_bytes else None, "path": n}} for n in names]
        rows.append({"id": "null", "image": {"bytes": None, "path": None}})
        schema = pa.schema([("id", pa.string()), ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))])
        pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / f"{kind}.parquet", row_group_size=4)
        found = run(tmp_path / kind, tmp_path / f"{kind}.parquet")
        assert found == counts(11, 11, 0, 0, 0) and open_store(tmp_path / kind).count == 10
