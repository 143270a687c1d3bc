"""Every command of docs/sources.md and of `embedx extract --help` runs as it stands there."""

import csv
import io
import json
import os
import re
import shlex
import tarfile

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import photos, servers
from tests.conftest import ROOT, Command, write_jsonl

FILES = {name: data for name, data in photos.photos().items() if name not in ("cats/cut.png", "dogs/page.jpg")}

REVIEWS = [{"id": str(n), "text": f"review number {n}", "stars": n % 5 + 1} for n in range(10)]


def commands():
    text = (ROOT / "docs" / "sources.md").read_text()
    found = [line for block in re.findall(r"```\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    from embedx.cli.extract import EPILOG

    found += [line for line in EPILOG.splitlines() if line.startswith("embedx extract")]
    return list(dict.fromkeys(found))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder that holds what the documents name."""
    folder = tmp_path_factory.mktemp("docs")
    for name, encoder in {"encoder": "8", "small": "8", "large": "eight"}.items():
        (folder / f"{name}.toml").write_text(f'family = "pixels"\nname = "{encoder}"\n')
    write_jsonl(folder / "reviews.jsonl", REVIEWS)
    table = io.StringIO()
    csv.writer(table).writerows([("key", "body"), *((row["id"], row["text"]) for row in REVIEWS)])
    with pa.CompressedOutputStream(str(folder / "reviews.csv.zst"), "zstd") as file:
        file.write(table.getvalue().encode())
    pq.write_table(pa.Table.from_pylist(REVIEWS), folder / "reviews.parquet")
    with duckdb.connect(str(folder / "shop.duckdb")) as database:
        database.execute(f"create table reviews as select * from '{folder / 'reviews.parquet'}'")
    (folder / "sources.txt").write_text("# two tables\nreviews.jsonl\n")
    photos.write_folder(folder / "photos", FILES)
    (folder / "shards").mkdir()
    for number in range(2):
        with tarfile.open(folder / "shards" / f"{number:05d}.tar", "w") as tar:
            for name, data in FILES.items():
                stem = name.rpartition(".")[0]
                parts = {name: data, f"{stem}.txt": b"a caption", f"{stem}.json": json.dumps({"width": 3}).encode()}
                for part, content in parts.items():
                    member = tarfile.TarInfo(part)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        (folder / "shards" / f"{number:05d}.parquet").write_bytes(b"img2dataset's account")
    photos.write_parquet(folder / "photos.parquet", FILES)
    photos.write_dataset(folder / "dataset", FILES)
    with (folder / "shop.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("sku", "picture"), *((name, f"photos/{name}") for name in FILES)])
    with servers.web_server() as web, servers.s3_server() as s3:
        web.files.update({f"/{name}": data for name, data in FILES.items()})
        photos.write_url_table(folder / "urls.jsonl", web.url, FILES)
        (folder / "urls.txt").write_text("".join(f"{web.url}/{name}\n" for name in FILES))
        objects = {f"photos/{name}": data for name, data in FILES.items()}
        servers.fill_bucket(s3, "bucket", {**objects, "shards/00000.tar": folder / "shards" / "00000.tar"})
        env = {
            **photos.PIXELS,
            "AWS_ENDPOINT_URL": s3,
            "AWS_ACCESS_KEY_ID": servers.S3_FLAGS["key"],
            "AWS_SECRET_ACCESS_KEY": servers.S3_FLAGS["secret"],
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        with servers.dask_cluster(env) as scheduler:
            yield Command(folder), {**env, "EMBEDX_CLUSTER": scheduler}


def test_there_is_an_example_of_every_kind():
    text = "\n".join(commands())
    for kind in ("jsonl", "zst", "--sql", "duckdb", "photos/", ".tar", ".parquet", "dataset/", "urls.", "s3://", "@"):
        assert kind in text, kind


@pytest.mark.parametrize("number", range(len(commands())))
def test_the_command_runs(place, number):
    command, env = place
    line = commands()[number]
    arguments = shlex.split(line.replace("--out store", f"--out store-{number}"))[1:]
    if "urls." in line:
        arguments.append("--allow-private-networks")  # the test's web server is on this machine
    if "minilm" in line or "--dry-run" in line:
        arguments += [] if "--dry-run" in line else ["--dry-run"]  # the texts' encoder is tried elsewhere
    report = command.json(*arguments, env=env)
    items = report["items"]
    expected = 2 * len(FILES) if "shards/" in line and "00000.tar" not in line else 10
    expected = 4 if "stars > 3" in line else expected
    expected *= line.count("--encoder")
    assert items["planned"] == expected and items["failed"] == 0, report
    if "--dry-run" not in arguments:
        assert items["embedded"] == expected


def test_a_dry_run_shows_what_was_understood(place):
    command, env = place
    shown = command("extract", "photos.parquet", "dataset", "urls.jsonl", "shards", "--id-prefix", "source",
                    "--encoder", "encoder.toml", "--out", "dry", "--dry-run", env=env).stdout  # fmt: skip
    for part in (
        "photos.parquet: parquet table, image bytes in 'image'; ids: photos.parquet/ + column 'id'",
        "dataset/data-00000-of-00001.arrow: arrow table, images in 'image'",
        "urls.jsonl: jsonl table, paths or URLs of images in 'url'",
        "shards/00000.tar: tar of images",
        "columns: id (string), image (binary), label (string)",
        "photos.parquet/cats/1.png: parquet:0:image:",
    ):
        assert part in shown, shown
    assert not os.path.exists(command.cwd / "dry")
