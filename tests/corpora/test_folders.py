"""Folders: every entry is listed or counted, whatever it is called."""

import json
import os
import time
from collections import Counter

import pytest

from embedx.core.errors import CorpusError
from embedx.core.specs import CorpusSpec
from embedx.corpora.folders import iterate_images
from embedx.corpora.listing import open_corpus
from embedx.corpora.storage import file_identity

NAMES = (
    "a b.jpg",
    "100%.jpg",
    "a%20b.jpg",
    "a#b?c&d=e.jpg",
    "quote'\".jpg",
    "back\\slash.jpg",
    "new\nline.jpg",
    "tab\tbell\a.jpg",
    "caf\u00e9.jpg",
    "cafe\u0301.jpg",
    "\u202egpj.jpg",
    "*.jpg",
    "-rf.jpg",
    "~.jpg",
    "=.jpg",
    "x" * 251 + ".jpg",
)


def listed(root):
    ignored = Counter()
    return [relative for _, relative in iterate_images(root, ignored)], ignored


def test_every_name_is_an_id_of_its_own(tmp_path):
    for name in NAMES:
        (tmp_path / name).write_bytes(b"x")
        (tmp_path / f"of {name[:200]}").mkdir()
        (tmp_path / f"of {name[:200]}" / name).write_bytes(b"x")
    names, ignored = listed(tmp_path)
    assert sorted(names) == sorted([*NAMES, *(f"of {name[:200]}/{name}" for name in NAMES)])
    assert not ignored


def test_every_other_entry_is_counted(tmp_path):
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "real" / "1.jpg").write_bytes(b"x")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "hidden.jpg").write_bytes(b"x")
    (tmp_path / ".hidden.jpg").write_bytes(b"x")
    (tmp_path / "notes.TXT").write_bytes(b"x")
    (tmp_path / "print.eps").write_bytes(b"x")
    (tmp_path / "README").write_bytes(b"x")
    (tmp_path / "jpg").write_bytes(b"x")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "loop.jpg").symlink_to(tmp_path)
    (tmp_path / ".link").symlink_to(tmp_path)
    (tmp_path / "dangling.png").symlink_to("nowhere.png")
    (tmp_path / "self.gif").symlink_to("self.gif")
    (tmp_path / "file.webp").symlink_to("real/1.jpg")
    os.mkfifo(tmp_path / "pipe.bmp")
    (tmp_path / "folder.jpg").mkdir()
    names, ignored = listed(tmp_path)
    assert sorted(names) == ["dangling.png", "file.webp", "pipe.bmp", "real/1.jpg", "self.gif"]
    assert ignored == {
        "hidden folder": 1,
        "hidden": 2,
        ".txt": 1,
        ".eps": 1,
        "no suffix": 2,
        "link to a folder": 2,
    }


def test_odd_suffixes_are_counted_under_one_name(tmp_path):
    """They stand in the report, which a million of them, or one control sequence, would make useless."""
    for name in ("a.\x1b[2J", "b.new\nline", "c." + "x" * 100, "d. txt", "e.", "f.jpg "):
        (tmp_path / name).write_bytes(b"x")
    for number in range(300):
        (tmp_path / f"scan.{number:05d}").write_bytes(b"x")
    (tmp_path / "z.txt").write_bytes(b"x")
    with open(os.fsencode(tmp_path) + b"/g.\xff", "wb"):
        pass
    names, ignored = listed(tmp_path)
    assert not names and sum(ignored.values()) == 308
    assert len(ignored) <= 101 and ignored["other suffix"] >= 7
    json.dumps(ignored, ensure_ascii=False).encode()


def test_a_name_that_is_not_utf8_is_a_failed_item(tmp_path):
    try:
        with open(os.fsencode(tmp_path) + b"/caf\xe9.jpg", "wb"):
            pass
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (tmp_path / "good.jpg").write_bytes(b"x")
    corpus = open_corpus(CorpusSpec((str(tmp_path),)))
    rows = [row for batch in corpus.iterate_batches() for row in batch.to_pylist()]
    assert [row["item_id"] for row in rows] == ["caf\\udce9.jpg", "good.jpg"]
    assert rows[0]["problem"].startswith("the id is not UTF-8: byte 0xe9 at character 4")
    assert rows[1]["problem"] is None


def test_an_unreadable_folder_stops_the_listing(tmp_path, monkeypatch):
    """Its items are not known, so they must not count as gone."""
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked" / "1.jpg").write_bytes(b"x")
    (tmp_path / "locked").chmod(0)
    try:
        if os.access(tmp_path / "locked", os.R_OK):  # root may read everything; a folder that goes away reads alike
            monkeypatch.setattr(os, "scandir", refuse_locked(os.scandir))
        with pytest.raises(CorpusError, match="cannot list .*locked: Permission denied"):
            listed(tmp_path)
    finally:
        (tmp_path / "locked").chmod(0o700)


def refuse_locked(scandir):
    def refusing(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    return refusing


def test_identities_tell_files_apart(tmp_path):
    first, second = tmp_path / "1.jpg", tmp_path / "2.jpg"
    for path in (first, second):
        path.write_bytes(b"x")
        os.utime(path, (1, 1))
    before = file_identity(str(first))
    assert before == file_identity(str(first)) != file_identity(str(second))
    time.sleep(0.05)  # Linux before 6.13 counts the time of files in steps of a few milliseconds
    first.write_bytes(b"y")
    os.utime(first, (1, 1))
    assert file_identity(str(first)) != before, "like size and time, but another ctime"
    assert file_identity(str(tmp_path / "gone")) == file_identity("a\0b") == "missing"
