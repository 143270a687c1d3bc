"""Plug-ins written by following docs/plugins.md: really installed by pip, they work with every command."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from embedx.core.errors import CorpusError
from embedx.corpora import plugins
from tests import photos
from tests.conftest import ROOT, Command

PAGE = (ROOT / "docs" / "plugins.md").read_text()
PLUGINS = ROOT / "tests" / "plugins"
FILES = {
    "embedx-wordhash/pyproject.toml": "wordhash/pyproject.toml",
    "embedx-wordhash/wordhash/__init__.py": "wordhash/wordhash/__init__.py",
    "embedx-wordhash/wordhash/family.py": "wordhash/wordhash/family.py",
    "embedx-zip/pyproject.toml": "zips/pyproject.toml",
    "embedx-zip/embedx_zip.py": "zips/embedx_zip.py",
}
"""What the page's blocks are called there -> in our tests."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def shown() -> dict[str, str]:
    """The files that the page shows."""
    codes = {"toml": iter(blocks("toml")), "py": iter(blocks("python"))}
    return {name: next(codes[name.rpartition(".")[2]]) for name in FILES}


def test_the_page_is_the_packages():
    assert len(blocks("toml")) + len(blocks("python")) == len(FILES)
    for name, code in shown().items():
        assert code == (PLUGINS / FILES[name]).read_text(), name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the packages as the page shows them, and the packages installed from it."""
    folder = tmp_path_factory.mktemp("plugin")
    for name, code in shown().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(code)
    shutil.copytree(ROOT / "data", folder / "data")
    # Offline and beside the environment: --no-deps because it has them, --target because tests leave nothing behind.
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(folder / "site")]
    packages = sorted({str(folder / name.partition("/")[0]) for name in FILES})
    subprocess.run([sys.executable, "-m", "pip", "install", *options, *packages], check=True, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def env(folder):
    return {"PYTHONPATH": f"{folder / 'site'}:{PLUGINS / 'pixels'}:{ROOT / 'src'}"}


def test_the_commands_of_the_encoder_work(folder, env):
    command = Command(folder)
    install, *lines = blocks("bash")[0].splitlines()
    assert install == "pip install ./embedx-wordhash" and len(lines) == 6
    said = {line.split()[1]: command(*shlex.split(line)[1:], env=env).stdout for line in lines}
    assert "wordhash:small keeps the contract" in said["conformance"], said["conformance"]
    assert said["search"].count("delivery-") >= 2, said["search"]
    report = command.json("evaluate", "words-store", "--head", "words-head", "--label", "intent", env=env)
    assert report["metrics"]["accuracy"] > 0.8
    assert "wordhash:large" in command("encoders", env=env).stdout
    assert command.json("verify", "words-store", "--deep", "5", env=env)["ok"]
    # Where the package is missing, what it made can be read, and an error names what is missing.
    error = command.json("search", "words-index", "--text", "parcel", status=2)["error"]
    assert "wordhash" in error["message"]


def test_the_commands_of_the_source_work(folder, env):
    command = Command(folder)
    rows = [json.loads(line) for line in (folder / "data" / "support.jsonl").read_text().splitlines()]
    with zipfile.ZipFile(folder / "letters.zip", "w") as archive:
        for row in rows:
            archive.writestr(f"{row['intent']}/{row['id']}.txt", row["text"])
    install, dry, extract, *lines = blocks("bash")[1].splitlines()
    assert install == "pip install ./embedx-zip" and len(lines) == 2
    (source,) = command.json(*shlex.split(dry)[1:], env=env)["sources"]
    assert source["label"] == "letters.zip" and source["path"] == f"zip:{folder / 'letters.zip'}"
    assert source["first"][0]["content"] == rows[0]["text"][:100]
    assert command.json(*shlex.split(extract)[1:], env=env)["items"]["embedded"] == len(rows)
    said = [command(*shlex.split(line)[1:], env=env).stdout for line in lines]
    assert said[1].count("delivery/") >= 2, said[1]
    # Where the package is missing, the source is a path that does not exist.
    error = command.json(*shlex.split(extract)[1:], status=1)["error"]
    assert "zip:letters.zip does not exist" in error["message"]


def test_images_of_a_source_are_read_by_workers_and_again_when_they_change(folder, env):
    command = Command(folder)
    files = {name: data for name, data in photos.photos().items() if name.endswith(".jpg")}
    assert len(files) >= 4
    first, second, third, *_ = files

    def write(files, damaged=None):
        with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        if damaged:
            data = bytearray((folder / "photos.zip").read_bytes())
            data[data.index(files[damaged]) + 50] ^= 255  # its checksum in the archive's directory stays what it was
            (folder / "photos.zip").write_bytes(data)

    arguments = [
        "extract",
        "shop=zip:photos.zip",
        "--encoder",
        "pixels:8",
        "--columns",
        "folder",
        "--out",
        "photos-store",
    ]
    write(files, damaged=first)
    report = command.json(*arguments, "--max-failures", "2", env=env)
    failed = {row["id"]: row for row in command.json("failures", "photos-store")["failures"]}
    assert failed[first]["stage"] == "read" and failed[first]["error"] == "BadZipFile", failed
    broken = len(failed) - 1  # of the photographs some are no images
    assert report["items"]["embedded"] == len(files) - len(failed)
    # The same archive written again is unchanged; one of its images is another now, one new, one mended.
    write({**files, second: files[third], "new.jpg": files[second]})
    report = command.json(*arguments, "--max-failures", "2", "--retry-failed", env=env)
    assert report["items"]["embedded"] == 3 and report["items"]["unchanged"] == len(files) - 2 - broken, report["items"]
    assert command.json("verify", "photos-store", "--deep", "10", env=env)["ok"]


class Rows:
    """A source of a plug-in that gives what it was made with."""

    place = "here"

    def __init__(self, columns, rows=(), read=None):
        self._columns, self._rows, self.read = columns, rows, read

    def columns(self):
        return self._columns

    def iterate_rows(self, columns):
        for row in self._rows:
            if isinstance(row, Exception):
                raise row
            yield row


@pytest.mark.parametrize(
    ("opened", "message"),
    [
        (Rows({"text": "varchar"}), "'text' the type 'varchar'"),
        (Rows({"text": "string"}, [{"text": "one"}, RuntimeError("line 2 is torn")]), "RuntimeError: line 2 is torn"),
        (Rows({"text": "string"}, ["one"]), "AttributeError"),
        (object(), "no place"),
        (OSError("connection refused with s3cr3t"), r"connection refused with \*\*\*"),
    ],
)
def test_a_plug_in_that_fails_is_named(monkeypatch, opened, message):
    from embedx.core.specs import Access, CorpusSpec
    from embedx.corpora.listing import open_corpus

    class Module:
        @staticmethod
        def open_source(place, options):
            assert place == "//host/topic" and options == {"key": "s3cr3t"}
            if isinstance(opened, Exception):
                raise opened
            return opened

    monkeypatch.setattr(plugins, "plugin_modules", lambda: {"queue": "queue_source"})
    monkeypatch.setitem(sys.modules, "queue_source", Module)
    spec = CorpusSpec(("queue://host/topic",), access=Access((("key", "s3cr3t"),)))
    with pytest.raises(CorpusError, match=message) as raised:
        list(open_corpus(spec).iterate_batches())
    assert raised.value.message.startswith("queue:") and "s3cr3t" not in str(raised.value)


@pytest.mark.parametrize(
    ("read", "error", "retryable"),
    [
        (lambda key: {}[key], "KeyError", False),
        (lambda key: Path(f"/nowhere/{key}").read_bytes(), "FileNotFoundError", False),
        (lambda key: (_ for _ in ()).throw(TimeoutError("slow")), "TimeoutError", True),
        (lambda key: "text", "NoBytes", False),
    ],
)
def test_what_a_plug_in_cannot_read_is_a_failed_item(read, error, retryable):
    from embedx.corpora.storage import ReadError

    with pytest.raises(ReadError) as raised:
        plugins.PluginTable("queue:here", "queue", Rows({}, read=read)).read("a/b:c.jpg")
    assert (raised.value.error, raised.value.retryable) == (error, retryable)
    assert "a/b:c.jpg" in str(raised.value)


def test_a_worker_without_the_package_says_so():
    from embedx.corpora.content import read_image

    with pytest.raises(CorpusError, match="source plug-in 'queue'"):
        read_image("plugin:queue%3A//host/topic:cats/1.jpg")


def test_the_page_names_every_check():
    from embedx.steps.conformance_checks import CHECKS

    rows = re.findall(r"^\| ([a-z, ]+) \|", PAGE.partition("\n## A source\n")[0], re.MULTILINE)
    assert [name for row in rows for name in row.split(", ") if row != "check"] == list(CHECKS)
