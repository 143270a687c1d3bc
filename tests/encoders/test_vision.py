"""The preprocessing of images: the arithmetic of torchvision and timm, to the last bit."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image

from embedx.core.contracts import Broken, EncoderCard
from embedx.core.errors import UsageError
from embedx.core.specs import PreprocessSpec
from embedx.encoders import vision
from embedx.encoders.vision import ImageEncoder, ImageTransform, canary_images

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def transform(resize=256, crop=224, interpolation="bilinear", **how) -> ImageTransform:
    resize, crop = ((size, size) if isinstance(size, int) else size for size in (resize, crop))
    return ImageTransform(resize, crop, interpolation, MEAN, STD, **how)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoder(of: ImageTransform) -> ImageEncoder:
    identity = {"preprocessing": of.to_dict()}
    card = EncoderCard("fake:x", "fake", "image", 4, "f" * 64, identity, {}, False, 1.0, 1)
    return ImageEncoder(card, lambda: pytest.fail("nobody asked for the model"))


def sizes(count: int):
    draw = random.Random(0)
    for _ in range(count):
        yield draw.choice(
            [
                (draw.randint(1, 40), draw.randint(1, 40)),
                (draw.randint(1, 900), draw.randint(1, 900)),
                (draw.randint(4, 9), draw.randint(200, 600)),
            ]
        )
    yield from [(1, 1), (256, 256), (224, 224), (255, 256), (257, 600)]


@pytest.mark.parametrize(
    ("resize", "crop"), [(256, 224), (232, 224), (224, 224), (35, 32), (97, 96), (64, 99), (250, 223)]
)
def test_equals_torchvision_bit_by_bit(resize, crop):
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as F

    for number, (width, height) in enumerate(sizes(40)):
        interpolation = ("bilinear", "bicubic", "lanczos", "nearest")[number % 4]
        image = noise(width, height)
        expected = F.center_crop(F.resize(image, [resize], InterpolationMode(interpolation)), [crop])
        ours = transform(resize, crop, interpolation).apply(image)
        assert ours.shape == (3, crop, crop) and ours.dtype == np.uint8
        np.testing.assert_array_equal(ours, F.pil_to_tensor(expected).numpy(), f"{width} x {height}")


@pytest.mark.parametrize(
    ("size", "crop_pct", "mode"),
    [((224, 224), 0.875, "center"), ((256, 128), 0.9, "center"), ((224, 160), 0.95, "squash")],
)
def test_equals_timm_bit_by_bit(size, crop_pct, mode):
    from timm.data.transforms_factory import transforms_imagenet_eval

    theirs = transforms_imagenet_eval(size, crop_pct, mode, interpolation="bicubic", normalize=False)
    scaled = tuple(int(side / crop_pct) for side in size)
    ours = transform(scaled, size, "bicubic", squash=mode == "squash")
    for width, height in sizes(40):
        image = noise(width, height)
        np.testing.assert_array_equal(ours.apply(image), theirs(image).numpy(), f"{width} x {height}")


@pytest.mark.parametrize("size", [(3, 4000), (5000, 11), (6000, 1), (1, 1600)])
def test_ribbons_cost_no_gigabytes(size, monkeypatch):
    smooth = noise(max(2, size[0] // 40), max(2, size[1] // 40)).resize(size, Image.Resampling.BICUBIC)
    windowed = transform(64, 56)
    monkeypatch.setattr(vision, "_MAX_RESIZED_PIXELS", 0)
    quick = windowed.apply(smooth).astype(int)
    monkeypatch.setattr(vision, "_MAX_RESIZED_PIXELS", 2**40)
    assert np.abs(quick - windowed.apply(smooth)).max() <= 2


def test_images_too_small_for_the_crop_get_black_borders():
    image = Image.new("RGB", (10, 10), "white")
    out = transform(100, 201).apply(image)
    assert (out[:, 50:150, 50:150] == 255).all()
    assert out.sum() == 3 * 100 * 100 * 255


def test_prepare_keeps_failures_as_values():
    items = [noise(30, 40), Broken("decode", "OSError", "gone"), noise(300, 200), noise(9, 9).convert("RGBA"), None]
    prepared = encoder(transform(32, 24)).prepare(items)
    assert prepared.positions.tolist() == [0, 2] and prepared.positions.dtype == np.int64
    assert prepared.failures[1] == items[1]
    assert [prepared.failures[n].stage for n in (3, 4)] == ["prepare", "prepare"]
    assert "RGBA" in prepared.failures[3].message
    enc = encoder(transform(32, 24))
    assert enc.cost(prepared).tolist() == [1, 1]
    batch = enc.collate(prepared.items)
    assert batch["pixels"].shape == (2, 3, 24, 24) and batch["pixels"].dtype == np.uint8


def test_prepare_of_nothing():
    prepared = encoder(transform()).prepare([])
    assert len(prepared.items) == 0 and prepared.positions.shape == (0,)


def test_transform_survives_json():
    original = transform((256, 200), (224, 180), "bicubic", squash=True)
    assert ImageTransform.from_dict(original.to_dict()) == original


def test_overrides():
    changed = transform().with_overrides(PreprocessSpec(resize=300, interpolation="bicubic", mean=(0.5, 0.5, 0.5)))
    assert changed == ImageTransform((300, 300), (224, 224), "bicubic", (0.5, 0.5, 0.5), STD)
    assert transform().with_overrides(PreprocessSpec()) == transform()


@pytest.mark.parametrize(
    "spec",
    [
        PreprocessSpec(resize=0),
        PreprocessSpec(crop=-1),
        PreprocessSpec(crop="224"),
        PreprocessSpec(interpolation="cubic"),
        PreprocessSpec(mean=(0.5,)),
        PreprocessSpec(std=(0.5, 0.5, 0.0)),
    ],
)
def test_wrong_overrides_are_usage_errors(spec):
    with pytest.raises(UsageError, match="preprocess"):
        transform().with_overrides(spec)


def test_canaries_are_fixed_and_tell_apart():
    import hashlib

    images = canary_images()
    digest = hashlib.sha256(b"".join(image.tobytes() for image in images)).hexdigest()
    assert digest == "d80690a0e227bbc3b009673d789c7618a9bf97c975f3d8626b00bd3a74309dbc"
    assert all(image.mode == "RGB" for image in images)
    assert len({image.size for image in images}) == len(images)
