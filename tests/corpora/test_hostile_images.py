"""Files that mean harm: each becomes a failure that a person understands, and none takes memory or hangs."""

import io
import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from embedx.core.contracts import Broken
from embedx.corpora.content import digest_images, read_image
from embedx.corpora.decode import MAX_FILE_BYTES, decode_image
from tests.corpora import hostile

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("bad", hostile.all_bad(), ids=lambda bad: bad.name)
def test_bad_images_say_what_they_are(bad):
    result = decode_image(bad.data, bad.name)
    assert isinstance(result, Broken)
    assert (result.stage, result.error, result.retryable) == ("decode", bad.error, False)
    assert result.message.startswith(bad.name) and bad.said in result.message
    assert "Plugin" not in result.message and "BytesIO" not in result.message and len(result.message) <= 500


@pytest.mark.parametrize("name", hostile.good())
def test_good_images_are_the_plain_decode(name):
    data = hostile.good()[name]
    result = decode_image(data, name)
    assert not isinstance(result, Broken), result
    if name.startswith("16-bit"):  # where Pillow's own way clips to white
        expected = np.asarray(hostile.photo().convert("L").convert("RGB"))
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    np.testing.assert_array_equal(np.asarray(result), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation_is_made_upright(orientation, format):
    """Shown as a viewer does: EXIF says how the stored pixels were turned away from the scene."""
    scene = np.asarray(hostile.photo((48, 32)))
    stored = {
        1: scene,
        2: scene[:, ::-1],
        3: scene[::-1, ::-1],
        4: scene[::-1],
        5: scene.transpose(1, 0, 2),
        6: np.rot90(scene),
        7: scene[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(scene, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    how = {"quality": 95, "subsampling": 0} if format == "JPEG" else {"lossless": True} if format == "WEBP" else {}
    data = hostile.encoded(Image.fromarray(np.ascontiguousarray(stored)), format, exif=exif.tobytes(), **how)
    result = decode_image(data, "x")
    assert not isinstance(result, Broken), result
    assert np.abs(np.asarray(result).astype(int) - scene).max() <= (12 if format == "JPEG" else 0)


MEASURE = """
import resource, sys
from embedx.core.contracts import Broken
from embedx.corpora.decode import decode_image
from tests.corpora import hostile

assert not isinstance(decode_image(hostile.encoded(hostile.photo(), "PNG"), "warm.png"), Broken)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for bad in [*hostile.BOMBS, *hostile.GIANT_HEADERS]:
    assert isinstance(decode_image(bad.data, bad.name), Broken)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_bombs_and_giant_headers_take_no_memory():
    done = subprocess.run([sys.executable, "-c", MEASURE], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 32 * 1024, "kB beyond what a small image takes; unpacked they would be gigabytes"


def failure(path) -> Broken:
    result = read_image(str(path)).item
    assert isinstance(result, Broken) and result.stage == "read", result
    assert digest_images([str(path)]) == [None]
    return result


def test_what_is_no_file_is_not_read(tmp_path):
    """A pipe would wait for ever, a device would never end."""
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "s.jpg"))
    for name in ("folder.jpg", "pipe.jpg", "zero.jpg", "s.jpg"):
        broken = failure(tmp_path / name)
        assert broken.error == "NotAFile" and not broken.retryable
        assert name in broken.message and "is no file but a folder, pipe, socket or device" in broken.message


def test_what_is_too_large_for_any_image_is_not_read(tmp_path):
    path = tmp_path / "large.tif"
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    broken = failure(path)
    assert broken.error == "FileTooLarge" and "1,073,741,825 bytes" in broken.message and not broken.retryable


def test_what_cannot_be_opened_can_be_tried_again(tmp_path):
    (tmp_path / "dangling.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    for name, error, said in (
        ("gone.jpg", "FileNotFoundError", "No such file"),
        ("dangling.jpg", "FileNotFoundError", "No such file"),
        ("loop.jpg", "OSError", "Too many levels of symbolic links"),
    ):
        broken = failure(tmp_path / name)
        assert (broken.error, broken.retryable) == (error, True)
        assert said in broken.message and name in broken.message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_must_not_be_read_is_a_failure(tmp_path):
    path = tmp_path / "secret.jpg"
    path.write_bytes(hostile.good()["plain.jpg"])
    path.chmod(0)
    broken = failure(path)
    assert broken.error == "PermissionError" and "Permission denied" in broken.message and broken.retryable


@pytest.mark.parametrize("path", ["a\0b.jpg", "lone \ud800.jpg"])
def test_what_can_be_no_path_is_a_failure(path):
    broken = failure(path)
    assert broken.error in ("ValueError", "UnicodeEncodeError") and not broken.retryable
    broken.message.encode()
