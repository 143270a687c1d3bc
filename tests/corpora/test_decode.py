"""Every awkward image decodes upright or says why not; nothing is silently grey, wrong or loud."""

from __future__ import annotations

import os
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from embedx.core.contracts import Broken
from embedx.corpora.decode import FORMATS, IMAGE_SUFFIXES, MAX_PIXELS, decode_image
from tests.corpora.hostile import encoded, photo, png_of_size

DATA = Path(os.environ.get("EMBEDX_TEST_DATA", Path(__file__).parents[2].parent / "shared")) / "data"

NOT_DECODABLE = {
    "65536-uint32-limit.png": "4,294,967,296 pixels",
    "check.svg": "an SVG drawing",
    "cielab-dagams.tiff": "of a kind that Pillow cannot read",
    "circle.svg": "an SVG drawing",
    "corrupt-header.jpg": "cut off or damaged",
    "giant-image.jpg": "280,000,000 pixels",
    "struct-image-04-t.svg": "an SVG drawing",
    "truncated.jpg": "cut off or damaged",
    "truncated.png": "cut off or damaged",
}


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def fixtures(name: str) -> Path:
    if not (DATA / name).is_dir():
        pytest.skip(f"{DATA / name} is not on this machine (set EMBEDX_TEST_DATA)")
    return DATA / name


def decoded(data: bytes, name: str = "x") -> np.ndarray:
    image = decode_image(data, name)
    assert not isinstance(image, Broken), image
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def test_every_fixture_decodes_or_says_why_not():
    broken = {}
    for path in sorted(fixtures("sharp-fixtures").iterdir()):
        result = decode_image(path.read_bytes(), path.name)
        if isinstance(result, Broken):
            broken[path.name] = result
        else:
            assert result.mode == "RGB", path.name
    assert broken.keys() == NOT_DECODABLE.keys()
    for name, part in NOT_DECODABLE.items():
        assert part in broken[name].message
        assert broken[name].message.startswith(name)
        assert broken[name].stage == "decode"
        assert "BytesIO" not in broken[name].message


@pytest.mark.parametrize("kind", ["Landscape", "Portrait"])
def test_all_orientations_are_the_same_picture(kind):
    folder = fixtures("exif-orientation")
    small = []
    for number in range(9):
        image = decode_image((folder / f"{kind}_{number}.jpg").read_bytes(), kind)
        assert not isinstance(image, Broken)
        assert (image.width > image.height) == (kind == "Landscape")
        small.append(np.asarray(image.resize((48, 48))).astype(int))
    # The pictures carry their number in the middle, and were compressed one by one.
    assert max(np.abs(one - small[1]).mean() for one in small) < 6
    turned = np.asarray(Image.fromarray(small[1].astype(np.uint8)).rotate(180)).astype(int)
    assert np.abs(turned - small[1]).mean() > 30


def test_matches_what_library_users_do():
    folder = fixtures("sharp-fixtures")
    for name in ("Landscape_6.jpg", "Channel_digital_image_CMYK_color.jpg", "d.png", "with-alpha.png", "concert.jpg"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = ImageOps.exif_transpose(Image.open(folder / name)).convert("RGB")
        np.testing.assert_array_equal(decoded((folder / name).read_bytes()), np.asarray(expected))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "LAB"])
def test_modes_keep_the_picture(mode):
    image = photo().convert(mode)
    # A bilevel image is dots: compare blurred.
    ours = Image.fromarray(decoded(encoded(image, "TIFF")).astype(np.uint8)).resize((20, 15), Image.Resampling.BOX)
    grey = mode in ("1", "L", "LA")
    expected = photo().convert("L" if grey else "RGB").convert("RGB").resize((20, 15), Image.Resampling.BOX)
    assert np.abs(np.asarray(ours).astype(int) - np.asarray(expected)).mean() < 8


@pytest.mark.parametrize("format", ["PNG", "TIFF", "JPEG2000"])
def test_16_bit_grey_is_scaled_not_clipped(format):
    grey = np.asarray(photo().convert("L")).astype(np.uint16)
    data = encoded(Image.fromarray(grey * 257), format)
    np.testing.assert_allclose(decoded(data)[..., 0], grey, atol=1)


def test_16_bit_grey_is_turned_upright_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = Image.fromarray(np.asarray(photo().convert("L")).astype(np.uint16) * 257)
    assert decoded(encoded(grey, "PNG", exif=exif.tobytes())).shape == (320, 240, 3)


def test_32_bit_numbers_are_refused():
    result = decode_image(encoded(photo().convert("F"), "TIFF"), "height.tif")
    assert isinstance(result, Broken)
    assert "without a defined white" in result.message


def test_transparent_palette_is_silent():
    image = photo().convert("P")
    data = encoded(image, "PNG", transparency=bytes(range(256)))
    np.testing.assert_array_equal(decoded(data), np.asarray(image.convert("RGB")))


def test_first_frame_of_animations():
    for format in ("GIF", "WEBP", "PNG", "TIFF"):
        frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue", "lime")]
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
        red, green, blue = decoded(data).mean(axis=(0, 1))
        assert red > 240 and green < 15 and blue < 15, format


@pytest.mark.parametrize(
    ("format", "how"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("JPEG2000", {}),
        ("PPM", {}),
        ("ICO", {}),
    ],
)
@pytest.mark.parametrize("tolerant", [False, True])
def test_truncated_files_are_failures(format, how, tolerant, monkeypatch):
    # Other libraries in the process may have switched on Pillow's tolerance.
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)
    data = encoded(photo(), format, **how)
    decoded(data)
    for share in (0.3, 0.6, 0.95):
        result = decode_image(data[: int(len(data) * share)], "cut")
        assert isinstance(result, Broken), (format, share)


@pytest.mark.parametrize(
    ("data", "error", "part"),
    [
        (b"", "EmptyFile", "is empty"),
        (b"\0" * 100, "UnidentifiedImageError", "only zero bytes"),
        (b"<!DOCTYPE html><html>not found</html>", "UnidentifiedImageError", "an HTML page"),
        (b'<?xml version="1.0"?>\n<svg/>', "UnidentifiedImageError", "an SVG drawing"),
        (b'{"error": 404}', "UnidentifiedImageError", "JSON"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "UnidentifiedImageError", "PostScript"),
        (b"%PDF-1.7", "UnidentifiedImageError", "a PDF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "UnidentifiedImageError", "HEIC"),
        (b"no image at all", "UnidentifiedImageError", "no image that can be read"),
    ],
)
def test_what_is_no_image_is_named(data, error, part):
    result = decode_image(data, "thing.jpg")
    assert isinstance(result, Broken)
    assert (result.stage, result.error, result.retryable) == ("decode", error, False)
    assert part in result.message


def test_bombs_are_refused_from_the_header_even_when_pillow_allows_them(monkeypatch):
    data = png_of_size(40_000, 40_000)
    for limit in (Image.MAX_IMAGE_PIXELS, None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        result = decode_image(data, "bomb.png")
        assert isinstance(result, Broken)
        assert result.error == "DecompressionBombError"
        assert "1,600,000,000 pixels" in result.message and f"{MAX_PIXELS:,}" in result.message


def test_large_images_below_the_limit_do_not_warn(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60_000)  # from here on Pillow warns, from twice as many it refuses
    assert decoded(encoded(photo(), "PNG")).shape == (240, 320, 3)


def test_broken_exif_costs_nothing_but_the_orientation():
    for exif in (
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0",
        b"Exif\0\0" + b"\xff" * 40,
    ):
        assert decoded(encoded(photo(), "JPEG", exif=exif)).shape == (240, 320, 3)


def test_threads_decode_alike():
    files = [
        encoded(photo((60 + n, 40)), format) for n, format in enumerate(("JPEG", "PNG", "WEBP", "GIF", "TIFF") * 8)
    ]
    expected = [decoded(data) for data in files]
    wrong = []

    def work():
        for data, image in zip(files, expected):
            if not np.array_equal(decoded(data), image):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_allow_lists():
    assert {".jpg", ".jpeg", ".png", ".webp", ".tif", ".avif"} <= IMAGE_SUFFIXES
    assert not {".svg", ".eps", ".pdf", ".txt", ".psd", ".heic"} & IMAGE_SUFFIXES
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in IMAGE_SUFFIXES)
    assert not {"EPS", "PDF", "WMF"} & set(FORMATS)
    Image.init()
    known = {suffix for suffix, format in Image.registered_extensions().items() if format in FORMATS}
    assert known - IMAGE_SUFFIXES == {".pfm"}  # floating point
