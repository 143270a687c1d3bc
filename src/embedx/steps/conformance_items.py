"""What encoders are judged on: awkward texts and images that every encoder of their kind must embed."""

from __future__ import annotations

import functools
import io
from typing import Any

import numpy as np
from PIL import Image

from embedx.encoders.vision import canary_images

TEXTS = (
    "Paris",
    "a cat",
    "The quick brown fox jumps over the lazy dog.",
    "HOW do I reset my PASSWORD? The link in the e-mail says that it has expired.",
    "def add(a, b):\n\treturn a + b  # see https://example.org/?q=1&r=2",
    "Der Fluß fließt über die Brücke; naïve cafés, Łódź, São Paulo.",
    "東京は日本の首都です。Привет, мир! مرحبا بالعالم",
    "🙂 e\u0301 and é, ﬁne \u200b zero width, 3½ × 10⁻³ m²",
    "  leading, trailing and   inner   spaces  ",
    " ".join(f"Sentence number {number} is about the weather in the mountains." for number in range(90)),
)
"""One word to far beyond 512 tokens, several scripts, odd spaces; none is empty."""

LONG_TEXT = "\n\n".join(" ".join(TEXTS[1:-1]) + f" Chapter {number} ends here." for number in range(60))
"""Some 40,000 characters in all those scripts: to be cut into windows."""


@functools.cache
def image_files() -> tuple[bytes, ...]:
    """Return awkward files: odd sizes, grey, CMYK, palette, alpha, 16 bits, rotated by EXIF, tiny, a ribbon."""
    canaries = canary_images()
    exif = Image.Exif()
    exif[0x0112] = 6
    return (
        _encoded(canaries[0].resize((301, 97)), "PNG"),
        _encoded(Image.fromarray(np.asarray(canaries[3].convert("L")).astype(np.uint16) * 257), "PNG"),
        _encoded(canaries[2].convert("L"), "PNG"),
        _encoded(canaries[3].convert("CMYK"), "TIFF"),
        _encoded(canaries[4].convert("P"), "GIF"),
        _encoded(canaries[5].convert("RGBA"), "PNG"),
        _encoded(canaries[0], "JPEG", exif=exif.tobytes()),
        _encoded(canaries[1].resize((2, 2)), "PNG"),
        _encoded(canaries[1].resize((63, 640)), "WEBP", lossless=True),
    )


def _encoded(image: Image.Image, format: str, **how: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **how)
    return file.getvalue()
