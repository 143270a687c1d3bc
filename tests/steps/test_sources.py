"""The same corpus from every kind of source is the same store."""

import numpy as np
import pytest

from embedx.store.reader import open_store
from tests import photos, servers
from tests.conftest import Command

FILES = photos.photos()
BAD = {"cats/cut.png", "dogs/page.jpg"}
FLAGS = ("--encoder", "pixels:8", "--max-failures", "2", "--columns", "label")


def contents(command, store):
    """id -> vector, id -> label, and id -> (stage, error) of the failures."""
    opened = open_store(command.cwd / store)
    ids, vectors = opened.vectors()
    labels = opened.table(["item_id", "label"]).to_pylist()
    failures = command.json("failures", store)["failures"]
    return (
        dict(zip(ids, vectors)),
        {row["item_id"]: row["label"] for row in labels},
        {failure["id"]: (failure["stage"], failure["error"]) for failure in failures},
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    photos.write_folder(folder / "photos", FILES)
    photos.write_tar(folder / "photos.tar", FILES)
    photos.write_parquet(folder / "photos.parquet", FILES, row_group_size=5)
    photos.write_dataset(folder / "dataset", FILES)
    env = photos.PIXELS
    with servers.web_server() as web, servers.s3_server() as s3, servers.dask_cluster(env) as scheduler:
        web.files.update({f"/{name}": data for name, data in FILES.items()})
        web.files["/photos.tar"] = (folder / "photos.tar").read_bytes()
        photos.write_url_table(folder / "urls.jsonl", web.url, FILES)
        objects = {f"photos/{name}": data for name, data in FILES.items()}
        servers.fill_bucket(
            s3,
            "corpus",
            {**objects, "photos.tar": folder / "photos.tar", "t/photos.parquet": folder / "photos.parquet"},
        )
        yield Command(folder), servers.s3_options(s3), {**env, "EMBEDX_CLUSTER": scheduler}, web.url


def sources(options, url):
    return {
        "folder": ["photos"],
        "tar": ["photos.tar"],
        "parquet": ["photos.parquet"],
        "dataset": ["dataset"],
        "urls": ["urls.jsonl", "--allow-private-networks"],
        "s3": ["s3://corpus/photos/", *options],
        "s3-tar": ["s3://corpus/photos.tar", *options],
        "web-tar": [f"{url}/photos.tar"],
        "s3-parquet": ["s3://corpus/t/", *options],
    }


def test_every_kind_of_source_gives_the_same_store(corpus):
    command, options, env, url = corpus
    found = {}
    for name, arguments in sources(options, url).items():
        report = command.json("extract", *arguments, *FLAGS, "--out", f"{name}-store", env=env)
        assert (report["items"]["embedded"], report["items"]["failed"]) == (10, 2), (name, report)
        found[name] = contents(command, f"{name}-store")
    vectors, labels, failures = found["folder"]
    assert set(vectors) == set(FILES) - BAD and set(failures) == BAD
    assert len({tuple(vector) for vector in vectors.values()}) == 10
    for name, (theirs, their_labels, their_failures) in found.items():
        assert set(theirs) == set(vectors), name
        for item_id, vector in vectors.items():
            np.testing.assert_array_equal(theirs[item_id], vector, err_msg=f"{name} {item_id}")
        assert their_labels == labels, name
        assert their_failures == failures, name
    for name, arguments in sources(options, url).items():
        again = command.json("extract", *arguments, *FLAGS, "--out", f"{name}-store", "--dry-run", env=env)
        assert (again["items"]["planned"], again["items"]["unchanged"]) == (0, 10), (name, again)
