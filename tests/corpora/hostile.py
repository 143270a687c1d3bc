"""Images made to be trouble, each with what must become of it. One place for all tests that need them."""

from __future__ import annotations

import functools
import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image


def photo(size: tuple[int, int] = (320, 240)) -> Image.Image:
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    channels = 128 + 100 * np.sin(x / 17), 255 * y / height, 128 + 90 * np.cos((x + y) / 23)
    return Image.fromarray(np.stack(channels, axis=2).astype(np.uint8))


def encoded(image: Image.Image, format: str, **how) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **how)
    return file.getvalue()


@dataclass(frozen=True)
class Bad:
    """A file that must become a failure.

    Attributes:
        name: of the file.
        data: its bytes.
        error: the error's class.
        said: part of the message.
    """

    name: str
    data: bytes
    error: str
    said: str


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(chunk: bytes, image: Image.Image | None = None) -> bytes:
    """A PNG with one more chunk after its header."""
    data = encoded(image or photo((8, 8)), "PNG")
    return data[:33] + chunk + data[33:]


def png_of_size(width: int, height: int) -> bytes:
    """A tiny PNG whose header claims a size."""
    data = encoded(Image.new("L", (1, 1)), "PNG")
    return data[:8] + png_chunk(b"IHDR", struct.pack(">II", width, height) + data[24:29]) + data[33:]


def gif_of_size(width: int, height: int) -> bytes:
    data = bytearray(encoded(Image.new("P", (1, 1)), "GIF"))
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


def gif_with_frame_of_size(width: int, height: int) -> bytes:
    """A GIF of an innocent screen with a frame that is larger."""
    data = bytearray(encoded(Image.new("P", (1, 1)), "GIF"))
    place = data.index(b"\x2c\0\0\0\0")
    data[place + 5 : place + 9] = struct.pack("<HH", width, height)
    return bytes(data)


def bmp_of_size(width: int, height: int) -> bytes:
    data = bytearray(encoded(Image.new("RGB", (1, 1)), "BMP"))
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


def jpeg_of_size(width: int, height: int) -> bytes:
    data = bytearray(encoded(Image.new("L", (1, 1)), "JPEG"))
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def tiff_with(tags: dict[int, int]) -> bytes:
    """A small TIFF of which some tags have other values."""
    data = bytearray(encoded(Image.new("L", (4, 4)), "TIFF"))
    (place,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, place)
    for entry in range(place + 2, place + 2 + 12 * count, 12):
        (tag,) = struct.unpack_from("<H", data, entry)
        if tag in tags:
            struct.pack_into("<HHII", data, entry, tag, 4, 1, tags[tag])
    return bytes(data)


def webp_of_size(width: int, height: int) -> bytes:
    inner = encoded(Image.new("RGB", (1, 1)), "WEBP", lossless=True)[12:]
    extended = b"\0\0\0\0" + struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body = b"WEBP" + b"VP8X" + struct.pack("<I", 10) + extended + inner
    return b"RIFF" + struct.pack("<I", len(body)) + body


def jpeg2000_of_size(width: int, height: int) -> bytes:
    data = bytearray(encoded(Image.new("L", (1, 1)), "JPEG2000"))
    box = data.index(b"ihdr")
    data[box + 4 : box + 12] = struct.pack(">II", height, width)
    size = data.index(b"\xff\x51")
    data[size + 6 : size + 14] = struct.pack(">II", width, height)
    return bytes(data)


def ico_with(png: bytes) -> bytes:
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(png), 22) + png


def cut(data: bytes, share: float = 0.6) -> bytes:
    return data[: int(len(data) * share)]


HUGE = 60_000
TOO_MANY = f"claims {HUGE * HUGE:,} pixels"
ZEROS = zlib.compress(b"\0" * 50_000_000)
BOMB = "DecompressionBombError"
UNKNOWN = "UnidentifiedImageError"

BOMBS = [
    Bad("bomb.png", png_of_size(HUGE, HUGE), BOMB, TOO_MANY),
    Bad("bomb.gif", gif_of_size(HUGE, HUGE), BOMB, TOO_MANY),
    Bad("bomb-frame.gif", gif_with_frame_of_size(HUGE, HUGE), BOMB, TOO_MANY),
    Bad("bomb.bmp", bmp_of_size(HUGE, HUGE), BOMB, TOO_MANY),
    Bad("bomb-upside-down.bmp", bmp_of_size(1, -(2**31)), BOMB, "claims 2,147,483,648 pixels"),
    Bad("bomb.jpg", jpeg_of_size(HUGE, HUGE), BOMB, TOO_MANY),
    Bad("bomb.tif", tiff_with({256: HUGE, 257: HUGE}), BOMB, TOO_MANY),
    Bad("bomb.webp", webp_of_size(HUGE, HUGE), BOMB, TOO_MANY),
    Bad("bomb.jp2", jpeg2000_of_size(HUGE, HUGE), BOMB, TOO_MANY),
    Bad("bomb.ppm", f"P6 {HUGE} {HUGE} 255\n".encode(), BOMB, TOO_MANY),
    Bad("bomb.ico", ico_with(png_of_size(HUGE, HUGE)), BOMB, TOO_MANY),
    Bad("limit.png", png_of_size(2**31 - 1, 2**31 - 1), BOMB, "pixels"),
]
"""Decompression bombs: headers that claim billions of pixels."""

GIANT_HEADERS = [
    Bad("text.png", png_with(png_chunk(b"zTXt", b"k\0\0" + ZEROS)), "ValueError", "metadata that unpack to more"),
    Bad("profile.png", png_with(png_chunk(b"iCCP", b"k\0\0" + ZEROS)), "ValueError", "metadata that unpack to more"),
    Bad("unicode.png", png_with(png_chunk(b"iTXt", b"k\0\1\0\0\0" + ZEROS)), "ValueError", "metadata that unpack"),
    Bad("chunk.png", png_of_size(8, 8)[:33] + b"\xff\xff\xff\xffIDAT", "OSError", "cut off or damaged"),
    Bad("far.tif", b"II*\0" + struct.pack("<I", 2**32 - 1) + b"\0" * 50, UNKNOWN, "a TIFF that is cut off"),
    Bad("many.tif", b"II*\0" + struct.pack("<IH", 8, 65_535) + b"\xff" * 400, UNKNOWN, "a TIFF that is cut off"),
    Bad("bits.tif", tiff_with({258: HUGE}), UNKNOWN, "of a kind that Pillow cannot read"),
    Bad("endless.ppm", b"P6 " + b"1" * 1_000_000 + b" 1 255\n", "ValueError", "Token too long"),
]
"""Headers that are giant, or say that something giant follows."""

DAMAGED = [
    Bad("empty.jpg", b"", "EmptyFile", "is empty (0 bytes)"),
    Bad("zeros.png", b"\0" * 1000, UNKNOWN, "only zero bytes"),
    Bad("no-width.tif", tiff_with({256: 0}), UNKNOWN, "a TIFF that is cut off"),
    Bad("heights.tif", encoded(photo().convert("F"), "TIFF"), "ValueError", "without a defined white"),
    Bad("noise.jpg", bytes(range(256)) * 8, UNKNOWN, "no image that can be read"),
    Bad("fax.tif", tiff_with({259: 5}), "OSError", "cut off or damaged"),
]

FOREIGN = [
    Bad("page.jpg", b"<!DOCTYPE html><html>404</html>", UNKNOWN, "an HTML page"),
    Bad("answer.png", b'{"error": "not found"}', UNKNOWN, "JSON or other text"),
    Bad("drawing.png", b'<?xml version="1.0"?><svg/>', UNKNOWN, "an SVG drawing"),
    Bad("print.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", UNKNOWN, "PostScript"),
    Bad("print.tif", encoded(photo((9, 9)), "EPS"), UNKNOWN, "PostScript"),
    Bad("paper.jpg", encoded(photo((9, 9)), "PDF"), UNKNOWN, "a PDF document"),
    Bad("phone.jpg", b"\0\0\0\x18ftypheic\0\0\0\0", UNKNOWN, "a HEIC photo"),
    Bad("film.gif", b"\0\0\0\x18ftypmp42\0\0\0\0", UNKNOWN, "a video"),
    Bad("layers.png", b"8BPS\0\1" + b"\0" * 40, UNKNOWN, "a Photoshop document"),
    Bad("archive.png", b"PK\3\4" + b"\0" * 40, UNKNOWN, "a ZIP archive"),
    Bad("archive.jpg", b"\x1f\x8b\x08" + b"\0" * 40, UNKNOWN, "gzip data"),
    Bad("script.bmp", b"import os\n", UNKNOWN, "no image that can be read"),
    Bad("comments.png", b"<!---->" * 500, UNKNOWN, "no image that can be read"),
    Bad("commented.png", b"<!-- a -->\n<!-- b --><svg/>", UNKNOWN, "an SVG drawing"),
    Bad("old.png", encoded(photo((9, 9)), "SGI"), UNKNOWN, "no image that can be read"),
]
"""A wrong extension: other things under the name of an image."""

FORMATS_OF_SUFFIXES = {
    ".jpg": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".gif": "GIF",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".jp2": "JPEG2000",
    ".ppm": "PPM",
    ".ico": "ICO",
    ".avif": "AVIF",
}


@functools.cache
def truncated() -> tuple[Bad, ...]:
    """A cut-off file of every format; some plugins look for the end before they know their own."""
    unknown = {"AVIF": "an AVIF image that is cut off", "ICO": "damaged at its start"}
    return tuple(
        Bad(
            f"cut{suffix}",
            cut(encoded(photo(), format)),
            UNKNOWN if format in unknown else "OSError",
            unknown.get(format, "is cut off or damaged"),
        )
        for suffix, format in FORMATS_OF_SUFFIXES.items()
    )


def all_bad() -> list[Bad]:
    return [*BOMBS, *GIANT_HEADERS, *DAMAGED, *FOREIGN, *truncated()]


@functools.cache
def good() -> dict[str, bytes]:
    """Files that look like trouble and are none: every kind of pixel, small, animated, turned, or misnamed."""
    grey_16 = Image.fromarray(np.asarray(photo().convert("L")).astype(np.uint16) * 257)
    turned = Image.Exif()
    turned[0x0112] = 6
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue", "lime")]
    return {
        "plain.jpg": encoded(photo(), "JPEG"),
        "cmyk.jpg": encoded(photo().convert("CMYK"), "JPEG"),
        "grey.jpg": encoded(photo().convert("L"), "JPEG"),
        "bilevel.png": encoded(photo().convert("1"), "PNG"),
        "16-bit.png": encoded(grey_16, "PNG"),
        "16-bit.tif": encoded(grey_16, "TIFF"),
        "palette.png": encoded(photo().convert("P"), "PNG"),
        "palette.gif": encoded(photo().convert("P"), "GIF"),
        "transparent.png": encoded(photo().convert("P"), "PNG", transparency=0),
        "alpha.png": encoded(photo().convert("RGBA"), "PNG"),
        "alpha.webp": encoded(photo().convert("RGBA"), "WEBP"),
        "grey-alpha.png": encoded(photo().convert("LA"), "PNG"),
        "animated.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "animated.webp": encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "animated.png": encoded(frames[0], "PNG", save_all=True, append_images=frames[1:]),
        "turned.jpg": encoded(photo(), "JPEG", exif=turned.tobytes()),
        "one.png": encoded(Image.new("RGB", (1, 1), "red"), "PNG"),
        "one.gif": encoded(Image.new("P", (1, 1)), "GIF"),
        "ribbon.png": encoded(photo((2000, 1)), "PNG"),
        "pole.png": encoded(photo((1, 2000)), "PNG"),
        "really-a.png": encoded(photo(), "JPEG"),
        "really-b.jpg": encoded(photo(), "PNG"),
        "really-c.bmp": encoded(photo(), "WEBP"),
        "SHOUTED.JPEG": encoded(photo(), "JPEG"),
        "long.jpg": encoded(photo((8, 8)), "JPEG") + b"\0" * 100_000,
        "app.jpg": b"\xff\xd8" + (b"\xff\xe1\xff\xff" + b"x" * 65_533) * 20 + encoded(photo(), "JPEG")[2:],
        "comment.ppm": b"P6 #" + b"c" * 1_000_000 + b"\n2 2 255\n" + b"\0" * 12,
        "strips.tif": tiff_with({278: 2**32 - 1, 279: 2**32 - 1}),
    }
