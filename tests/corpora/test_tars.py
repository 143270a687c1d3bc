"""Tars: every member is an item, a column of one, a named failure, or counted."""

import io
import json
import os
import subprocess
import sys
import tarfile
from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from embedx.core.contracts import Broken
from embedx.core.errors import CorpusError, UsageError
from embedx.core.specs import CorpusSpec
from embedx.corpora import tars
from embedx.corpora.content import ImageReader
from embedx.corpora.listing import open_corpus
from tests import photos
from tests.conftest import ROOT

FILES = {name: data for name, data in photos.photos().items() if name not in ("cats/cut.png", "dogs/page.jpg")}


def rows_of(*sources, **more):
    corpus = open_corpus(CorpusSpec(tuple(map(str, sources)), **more))
    return [row for batch in corpus.iterate_batches() for row in batch.to_pylist()], corpus


def read_all(rows):
    with ImageReader([row["locator"] for row in rows], [row["identity"] for row in rows]) as reader:
        return [reader.read(position) for position in range(len(rows))]


def add(tar, name, data=b"", **attributes):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in attributes.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(data))


def test_members_are_read_by_offset(tmp_path):
    path = photos.write_tar(tmp_path / "a.tar", FILES)
    rows, corpus = rows_of(path)
    assert [row["item_id"] for row in rows] == list(FILES) and corpus.positional == ()
    assert [row["c_label"] for row in rows] == [name.split("/")[0] for name in FILES]
    assert [row["c_path"] for row in rows] == [row["locator"] for row in rows]
    contents = read_all(rows)
    assert [content.size_bytes for content in contents] == [len(data) for data in FILES.values()]
    assert not any(isinstance(content.item, Broken) for content in contents)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_and_name(tmp_path, format):
    image = FILES["cats/1.png"]
    names = ["./a.png", "b c.png", "sub/é.png" if format != tarfile.USTAR_FORMAT else "sub/e.png"]
    names += ["long/" + "x" * 150 + ".png"] if format != tarfile.USTAR_FORMAT else []
    with tarfile.open(tmp_path / "a.tar", "w", format=format) as tar:
        for name in names:
            add(tar, name, image)
    rows, _ = rows_of(tmp_path / "a.tar")
    assert [row["item_id"] for row in rows] == [name.removeprefix("./") for name in names]
    assert all(content.size_bytes == len(image) for content in read_all(rows))


NAMES = st.one_of(
    st.sampled_from(
        ["a/1.png", "./b.jpg", "x" * 100, "long/" + "y" * 150, "dir/", "\u00fc.png", "a b.png", "caf\udce9.png", "/z"]
    ),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20),
)
MEMBERS = st.lists(
    st.tuples(NAMES, st.binary(max_size=1500), st.sampled_from([0, 1.5, 2**34]), st.sampled_from("000000LSFDg")),
    max_size=6,
)
KINDS = {"0": tarfile.REGTYPE, "L": tarfile.LNKTYPE, "S": tarfile.SYMTYPE, "F": tarfile.FIFOTYPE, "D": tarfile.DIRTYPE}


@given(members=MEMBERS, format=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
@settings(max_examples=150, deadline=None)
def test_headers_are_understood_as_by_tarfile(members, format):
    """Fast or not, and whatever extended headers there are: the same names, offsets and sizes."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=format, errors="surrogateescape") as tar:
        for name, data, mtime, kind in members:
            member = tarfile.TarInfo(name)
            member.mtime, member.linkname = mtime, "x" if kind in "LS" else ""
            member.type, member.size = KINDS.get(kind, tarfile.REGTYPE), len(data) if kind in "0g" else 0
            member.pax_headers = {"path": "renamed.png"} if kind == "g" and format == tarfile.PAX_FORMAT else {}
            try:
                tar.addfile(member, io.BytesIO(data))
            except ValueError:  # USTAR: the name is too long, or the time too late
                continue
    written.seek(0)
    with tarfile.open(fileobj=written, errors="surrogateescape") as tar:
        expected = [(m.name.removeprefix("./"), m.offset_data, m.size) for m in tar if m.isreg()]
    written.seek(0)
    found = [tuple(member)[:3] for member in tars._iterate_members(written, "a.tar", Counter())]
    assert found == expected


def test_plain_headers_are_not_left_to_tarfile(tmp_path, monkeypatch):
    """Also those with the extended header of a time, as WebDataset's writer makes them."""
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(50):
            add(tar, f"{number}.png", FILES["cats/1.png"], mtime=1.5 if number % 2 else 1)
    asked = []
    real = tarfile.TarFile.next
    monkeypatch.setattr(tarfile.TarFile, "next", lambda self: (asked.append(self.offset), real(self))[1])
    assert len(rows_of(tmp_path / "a.tar")[0]) == 50 and len(asked) <= 4, "at the beginning and the end, per reading"


def test_companions_are_columns(tmp_path):
    image = FILES["cats/1.png"]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "001.png", image)
        add(tar, "001.txt", "a café\n".encode())
        add(tar, "001.json", json.dumps({"caption": "x", "width": 7, "tags": ["a"]}).encode())
        add(tar, "001.cls", b"3")
        add(tar, "002.json", b'{"caption": null}')
        add(tar, "002.png", image)
        add(tar, "002.seg.png", image)
        add(tar, "003.png", image)
        add(tar, "003.json", b"no json")
        add(tar, "notes.md", b"x")
    rows, corpus = rows_of(tmp_path / "a.tar", columns=("txt", "caption", "width", "tags"))
    assert [row["item_id"] for row in rows] == ["001.png", "002.png", "002.seg.png", "003.png"]
    first = {name: rows[0][f"c_{name}"] for name in ("label", "txt", "caption", "width", "tags")}
    assert first == {"label": "3", "txt": "a café", "caption": "x", "width": "7", "tags": '["a"]'}
    assert all(row["c_caption"] is None for row in rows[1:]) and corpus.ignored == {".md": 1}
    with pytest.raises(CorpusError, match=r"no column 'colour'.*caption"):
        rows_of(tmp_path / "a.tar", columns=("colour",))


def test_patterns_shards_and_prefixes(tmp_path):
    for number in range(3):
        photos.write_tar(tmp_path / f"{number:05d}.tar", FILES)
    rows, corpus = rows_of(tmp_path / "{00000..00002}.tar", id_prefix="source")
    assert len(rows) == 3 * len(FILES) and len({row["item_id"] for row in rows}) == len(rows)
    assert rows[0]["item_id"] == "00000.tar/cats/1.png" and rows[-1]["source"] == "00002.tar"
    assert [source.label for source in corpus.sources] == ["00000.tar", "00001.tar", "00002.tar"]
    assert len(rows_of(tmp_path / "{00000,00002}.tar")[0]) == 2 * len(FILES)
    with pytest.raises(CorpusError, match=r"00003\.tar does not exist"):
        rows_of(tmp_path / "{00000..00003}.tar")
    with pytest.raises(UsageError, match="counts from"):
        rows_of(tmp_path / "{9..1}.tar")
    with pytest.raises(UsageError, match="more than"):
        rows_of(tmp_path / "{0..99999999999}.tar")


def test_doubled_ids_of_shards_are_refused_by_name(embedx, tmp_path):
    for number in range(2):
        photos.write_tar(tmp_path / f"{number}.tar", {"a/1.png": FILES["cats/1.png"]})
    arguments = ("extract", "{0..1}.tar", "--encoder", "pixels:8", "--out", "s")
    error = embedx.json(*arguments, env=photos.PIXELS, status=1)["error"]
    assert "'a/1.png' is listed 2 times, in 0.tar and 1.tar" in error["message"]
    assert "--id-prefix source" in error["remedy"]
    planned = embedx.json(*arguments, "--id-prefix", "source", "--dry-run", env=photos.PIXELS)
    assert planned["items"]["planned"] == 2
    assert planned["sources"][0]["first"][0]["id"] == "0.tar/a/1.png"


def test_img2dataset_folders(tmp_path):
    """Tars with the Parquet files that describe them, which are no corpus of their own."""
    for number in range(2):
        photos.write_tar(
            tmp_path / f"{number:05d}.tar", {f"{number}{name}".replace("/", ""): d for name, d in FILES.items()}
        )
        (tmp_path / f"{number:05d}.parquet").write_bytes(b"PAR1")
        (tmp_path / f"{number:05d}_stats.json").write_text("{}")
    (tmp_path / "_tmp").mkdir()
    rows, corpus = rows_of(tmp_path)
    assert len(rows) == 2 * len(FILES) and corpus.ignored == {"beside a tar": 4}
    assert corpus.sources[0].label == f"{tmp_path.name}/00000.tar"


def test_hostile_members(tmp_path):
    image = FILES["cats/1.png"]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "good.png", image)
        add(tar, "../../up.png", image)
        add(tar, "/etc/absolute.png", image)
        add(tar, "sym.png", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(tar, "hard.png", type=tarfile.LNKTYPE, linkname="/etc/passwd")
        add(tar, "null.png", type=tarfile.CHRTYPE, devmajor=1, devminor=3)
        add(tar, "pipe.png", type=tarfile.FIFOTYPE)
        add(tar, "folder.png", type=tarfile.DIRTYPE)
        add(tar, "nul\udcff.png", image)
    before = set(os.listdir(tmp_path))
    rows, corpus = rows_of(tmp_path / "a.tar")
    problems = {row["item_id"]: row["problem"] for row in rows}
    assert list(problems) == ["good.png", "../../up.png", "/etc/absolute.png", "nul\\udcff.png"]
    assert problems["good.png"] is None
    assert "leads out of the archive" in problems["../../up.png"] and "leads out" in problems["/etc/absolute.png"]
    assert "not UTF-8" in problems["nul\\udcff.png"]
    assert corpus.ignored == {"link in a tar": 2, "device in a tar": 2}
    assert set(os.listdir(tmp_path)) == before, "nothing is unpacked"


def header(name, size, type=tarfile.REGTYPE):
    member = tarfile.TarInfo(name)
    member.size, member.type = size, type
    return member.tobuf(tarfile.GNU_FORMAT)


def sparse(path, *parts):
    """A file of headers at places: (place, bytes). What lies between takes no disk."""
    with path.open("wb") as file:
        for place, data in parts:
            file.seek(place)
            file.write(data)
    return path


def test_a_huge_member_is_a_named_failure(tmp_path):
    size = 20 * 2**30
    end = 512 + size
    path = sparse(
        tmp_path / "a.tar",
        (0, header("huge.png", size)),
        (end, header("good.png", len(FILES["cats/1.png"])) + FILES["cats/1.png"].ljust(1024, b"\0")),
        (end + 1536, b"\0" * 1024),
    )
    rows, _ = rows_of(path)
    assert [row["item_id"] for row in rows] == ["huge.png", "good.png"]
    assert f"has {size:,} bytes" in rows[0]["problem"]
    assert not isinstance(read_all(rows)[1].item, Broken)


PEAK = """
import resource, sys
from embedx.core.errors import CorpusError
from embedx.core.specs import CorpusSpec
from embedx.corpora.listing import open_corpus

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    list(open_corpus(CorpusSpec((sys.argv[1],))).iterate_batches())
except CorpusError as error:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error.message)
"""


@pytest.mark.parametrize("type", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_of_gigabytes_takes_no_memory(tmp_path, type):
    size = 4 * 2**30
    path = sparse(tmp_path / "a.tar", (0, header("x", size, type)), (512 + size, b"\0" * 1024))
    done = subprocess.run([sys.executable, "-c", PEAK, str(path)], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    taken, _, message = done.stdout.partition(" ")
    assert int(taken) < 100 * 1024 and "a member header of 4,294,967,296 bytes" in message


SECOND = 512 + -(-len(FILES["cats/1.png"]) // 512) * 512
"""Where the second member's header stands."""


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda data: b"", "a.tar cannot be read"),
        (lambda data: b"no tar at all" * 100, "a.tar cannot be read"),
        (lambda data: data[:3000], "a.tar cannot be read|cut off"),
        (lambda data: data[:SECOND] + b"\x01" * 512 + data[SECOND + 512 :], f"damaged or cut off at byte {SECOND:,}"),
        (lambda data: data + data, "more behind its end"),
    ],
)
def test_damage_is_an_error_and_not_the_end(tmp_path, spoil, said):
    path = photos.write_tar(tmp_path / "a.tar", {f"{n}.png": FILES["cats/1.png"] for n in range(3)})
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(CorpusError, match=said):
        rows_of(path)


@pytest.mark.parametrize(("suffix", "mode"), [("gz", "w:gz"), ("bz2", "w:bz2"), ("xz", "w:xz")])
def test_compressed_tars_are_named(tmp_path, suffix, mode):
    for name in (f"a.tar.{suffix}", "a.tar"):
        with tarfile.open(tmp_path / name, mode) as tar:
            add(tar, "a.png", FILES["cats/1.png"])
        with pytest.raises(CorpusError, match="unpack it"):
            rows_of(tmp_path / name)


def test_a_tar_without_its_end_mark_is_read_and_counted(tmp_path):
    path = photos.write_tar(tmp_path / "a.tar", {"a.png": FILES["cats/1.png"]})
    used = 512 + -(-len(FILES["cats/1.png"]) // 512) * 512
    path.write_bytes(path.read_bytes()[:used])
    rows, corpus = rows_of(path)
    assert len(rows) == 1 and corpus.ignored == {"tar without an end mark": 1}


def test_a_tar_that_was_replaced_is_not_read(tmp_path):
    """The bytes at the old offsets belong to other items by now."""
    path = photos.write_tar(tmp_path / "a.tar", FILES)
    rows, _ = rows_of(path)
    photos.write_tar(path, dict(reversed(FILES.items())))
    for content in read_all(rows):
        assert isinstance(content.item, Broken) and content.item.error == "SourceChanged" and content.item.retryable
