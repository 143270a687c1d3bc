"""Bytes of one image file to an upright RGB image, or the reason why not.

What a pixel becomes follows the users of torchvision, timm and open_clip, who call `.convert("RGB")`: alpha
is dropped and not composited, palettes are looked up, CMYK is converted without its colour profile, embedded
profiles are not applied. Two deviations, because theirs are accidents: EXIF orientation is applied, and
16-bit grey is scaled to 8 bits, where `.convert` of some Pillow versions clips it to white.
"""

from __future__ import annotations

import functools
import io
import re
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from embedx.core.contracts import Broken

if TYPE_CHECKING:
    from PIL.Image import Image, Transpose

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF", "PPM", "ICO")
"""The only Pillow formats ever opened. Not EPS (it runs Ghostscript), not formats without a magic number."""

# fmt: off
IMAGE_SUFFIXES = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif",
    ".png", ".apng",
    ".webp",
    ".gif",
    ".bmp", ".dib",
    ".tif", ".tiff",
    ".jp2", ".j2k", ".j2c", ".jpc", ".jpx", ".jpf",
    ".avif", ".avifs",
    ".ppm", ".pgm", ".pbm", ".pnm",
    ".ico",
))
# fmt: on
"""File name endings (lower case, with the dot) that a folder listing takes for images."""

MAX_PIXELS = 178_956_970
"""Larger images are refused from their header; it is where Pillow refuses by default, twice where it warns."""

MAX_FILE_BYTES = 2**30
"""Larger files are refused unread: the largest allowed image takes as much uncompressed, at 16 bits per channel."""

_MAGIC = (
    (rb"\s*(<\?xml[^>]*>\s*)?(<!--(?:(?!-->).)*-->\s*)*(<!DOCTYPE svg[^>]*>\s*)?<svg", "an SVG drawing"),
    (rb"\s*<(!doctype html|html|head|body)", "an HTML page"),
    (rb"\s*[{\[]", "JSON or other text"),
    (rb"%PDF", "a PDF document"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "PostScript"),
    (rb"....ftyp(heic|heix|heim|heis|hevc|mif1|msf1)", "a HEIC photo"),
    (rb"....ftypavi[fs]", "an AVIF image that is cut off, or that this Pillow cannot read"),
    (rb"....ftyp|\x1aE\xdf\xa3", "a video"),
    (rb"8BPS", "a Photoshop document"),
    (rb"PK\x03\x04", "a ZIP archive"),
    (rb"\x1f\x8b", "gzip data"),
    (rb"(II\*\0|MM\0\*|II\+\0|MM\0\+)", "a TIFF that is cut off, or of a kind that Pillow cannot read"),
    (rb"\0+$", "only zero bytes"),
)
_DAMAGED = re.compile(r"truncated|unexpected end|not enough|too short|broken data|decoder error|decoder object", re.I)
"""What Pillow's plugins say of files that begin well."""

_MAGIC_PATTERNS = tuple((re.compile(pattern, re.IGNORECASE | re.DOTALL), what) for pattern, what in _MAGIC)


def decode_image(data: bytes, name: str, jpeg_side: int = 0) -> Image | Broken:
    """Decode the first frame of an image file. Thread-safe, and silent: no Python warnings.

    Args:
        data: the whole file.
        name: what to call the file in messages.
        jpeg_side: a JPEG is decoded at a half, a quarter or an eighth of its size where that leaves its shorter side
            at least so many pixels: most of its cosines are then never computed. 0 decodes every pixel.

    Returns:
        An upright image in mode RGB, or why there is none; its `info["jpeg_scale"]` is 2, 4 or 8 where it was reduced.
    """
    if not data:
        return Broken("decode", "EmptyFile", f"{name} is empty (0 bytes)")
    try:
        image = _load(data, jpeg_side)
        turn = _orientation(image)
        image = _to_rgb(image)
        return image if turn is None else image.transpose(turn)
    except MemoryError:
        return Broken("decode", "MemoryError", f"no memory left to decode {name}", retryable=True)
    except Exception as error:  # Pillow's plugins raise nearly everything on damaged files
        return Broken("decode", type(error).__name__, _explain(error, data, name))


def _load(data: bytes, jpeg_side: int) -> Image:
    from PIL import Image, ImageFile

    _silence_pillow()
    # Both are process-wide in Pillow, and some libraries change them. Cut-off files would turn silently grey, and
    # images within images (the PNG in an ICO, the frames of a GIF) would be of any size.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
    image = Image.open(io.BytesIO(data), formats=_formats())
    if image.width * image.height == 0:
        raise ValueError(f"the image is {image.width} x {image.height} pixels")
    if jpeg_side and image.format == "JPEG":
        width = image.width
        # Pillow's draft takes the smallest scale that leaves at least this size.
        image.draft(None, (jpeg_side, jpeg_side))
        if image.width < width:
            image.info["jpeg_scale"] = round(width / image.width)
    image.load()
    return image


def _to_rgb(image: Image) -> Image:
    from PIL import Image

    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PPM", "PNG")):
        # The high byte, which is also what Pillow keeps of 16-bit RGB.
        bits = getattr(image, "tag_v2", {}).get(258, (16,))[0]
        grey = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(
            "its pixels are 32-bit numbers without a defined white; convert it to 8 or 16 bits per channel"
        )
    if image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    image.info.pop("transparency", None)  # dropped in any case, and Pillow warns about some kinds
    return image.convert("RGB")


def _orientation(image: Image) -> Transpose | None:
    # Not ImageOps.exif_transpose: it also rewrites the EXIF data, which fails on broken ones.
    from PIL.Image import Transpose

    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:  # broken EXIF is no reason to lose the pixels
        return None
    return {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }.get(value)


@functools.cache
def _formats() -> tuple[str, ...]:
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


_PILLOW_FILTER: tuple[Any, ...] = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


def _silence_pillow() -> None:
    # catch_warnings is not thread-safe, so one filter for Pillow's own modules is put in front, and put back
    # when somebody has reset the filters. Broken files would otherwise print a line each, in every worker.
    if _PILLOW_FILTER not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")


def _explain(error: Exception, data: bytes, name: str) -> str:
    from PIL import Image, UnidentifiedImageError

    text = " ".join(str(error).split())
    if isinstance(error, Image.DecompressionBombError):
        claimed = re.search(r"\((\d+) pixels\)", text)
        size = f"claims {int(claimed[1]):,} pixels" if claimed else "claims too many pixels"
        return f"{name} {size}; more than {MAX_PIXELS:,} are refused unread, as a decompression bomb"
    if isinstance(error, UnidentifiedImageError):
        for pattern, what in _MAGIC_PATTERNS:
            if pattern.match(data[:4096]):
                return f"{name} holds {what}; readable are {', '.join(FORMATS)}"
        return f"{name} holds no image that can be read: damaged at its start, or none of {', '.join(FORMATS)}"
    if "MAX_TEXT" in text:
        return f"{name} has metadata that unpack to more than a megabyte, as a decompression bomb's do"
    if _DAMAGED.search(text):
        return f"{name} is cut off or damaged: {text}"[:500]
    return f"{name} cannot be decoded: {text or type(error).__name__}"[:500]
