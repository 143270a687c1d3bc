"""Large JPEGs are decoded at reduced size where, and only where, the vectors stay inside bf16's gate."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from embedx.api import open_store
from embedx.corpora.decode import decode_image
from embedx.inference.gates import measure_fidelity, passes_gate


def photograph(number, size):
    """Return a JPEG of smooth random colours: as much detail as a large photograph has a pixel."""
    random = np.random.default_rng(number)
    small = Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    data = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).save(data, "JPEG", quality=92)
    return data.getvalue()


def enlarge(path, target):
    Image.open(path).convert("RGB").resize((3200, 2900), Image.Resampling.BICUBIC).save(target, quality=90)


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [
        ((1600, 1200), 300, (400, 300)),
        ((1600, 1200), 301, (800, 600)),
        ((1600, 1200), 1200, (1600, 1200)),
        ((1200, 1600), 300, (300, 400)),
        ((1601, 1203), 300, (401, 301)),
        ((1600, 1200), 0, (1600, 1200)),
    ],
)
def test_the_shorter_side_keeps_at_least_what_is_asked(size, side, expected):
    image = decode_image(photograph(0, size), "x", side)
    assert image.size == expected
    assert ("jpeg_scale" in image.info) == (size != expected)


def test_orientation_and_other_formats_are_as_ever():
    turned = Image.open(io.BytesIO(photograph(1, (1600, 1200))))
    exif = turned.getexif()
    exif[0x0112] = 6
    data = io.BytesIO()
    turned.save(data, "JPEG", exif=exif)
    assert decode_image(data.getvalue(), "x", 300).size == (300, 400)
    png = io.BytesIO()
    turned.save(png, "PNG")
    assert decode_image(png.getvalue(), "x", 300).size == (1600, 1200)


def test_a_bf16_store_of_large_jpegs(embedx, tmp_path, shared):
    folder = tmp_path / "photos"
    folder.mkdir()
    real = sorted((shared / "data" / "clothing" / "test").rglob("*.jpg"))[::33]
    for number, path in enumerate(real[:10]):
        enlarge(path, folder / f"{number}.jpg")
    weights = shared / "weights" / "squeezenet1_0.pth"
    # An early layer, which is surely inside the gate; the last one is on its edge.
    layer = ("--layer", "features.5", "--pooling", "avg")
    encoder = ("--encoder", "torchvision:squeezenet1_0", "--weights", weights, *layer)
    fast = embedx.json("extract", "photos", *encoder, "--precision", "bf16", "--out", "fast")
    exact = embedx.json("extract", "photos", *encoder, "--precision", "fp32", "--out", "exact")
    assert fast["reduced_jpegs"] == 10
    assert "reduced_jpegs" not in exact
    card = json.loads((tmp_path / "fast" / "_embedx" / "encoder.json").read_text())
    assert card["jpeg_side"] >= 300
    assert f"JPEGs reduced to {card['jpeg_side']} pixels" in fast["encoder"]["why_precision"]
    vectors = [open_store(tmp_path / name).vectors()[1] for name in ("fast", "exact")]
    assert passes_gate(measure_fidelity(*vectors), "bf16")
    # What comes later is decoded alike, small images are left alone, and verify knows.
    (folder / "small.jpg").write_bytes(real[10].read_bytes())
    enlarge(real[11], folder / "large.jpg")
    later = embedx.json("extract", "photos", *encoder, "--out", "fast")
    assert (later["items"]["embedded"], later["reduced_jpegs"]) == (2, 1)
    assert embedx.json("verify", "fast", "--deep", "12")["ok"]
