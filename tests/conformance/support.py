"""What every family's cases share: the shape of a case, awkward images, texts, and weights for libraries to load."""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from embedx.core.specs import EncoderSpec
from embedx.steps.conformance_items import TEXTS, image_files

SHARED = Path(os.environ.get("EMBEDX_TEST_DATA", Path(__file__).parents[2].parent / "shared"))


@dataclass(frozen=True)
class Made:
    """An encoder as embedx opens it, and the library's own way to the same vectors.

    Attributes:
        spec: opened by `embedx.encoders.registry.open_encoder`.
        recipe: file bytes (images) or texts -> (n, dim) float32, with the library's public API only.
    """

    spec: EncoderSpec
    recipe: Callable[[list[Any]], np.ndarray]


@dataclass(frozen=True)
class Case:
    """One row of the table of encoders.

    Attributes:
        name: what stands in the table: the reference, and the options that differ from the defaults.
        make: builds the case in an empty folder, where it may write weights.
        real: whether the weights are real ones and not seeded random ones.
        modality: image or text.
    """

    name: str
    make: Callable[[Path], Made]
    real: bool = False
    modality: str = "image"


def real_weights(name: str) -> Path:
    """Return a file or folder of real weights, or skip the test where it is absent."""
    path = SHARED / "weights" / name
    if not path.exists():
        pytest.skip(f"{path} is not on this machine (set EMBEDX_TEST_DATA)")
    return path


def as_users_open(data: bytes) -> Image.Image:
    """Open an image file as users of the libraries do, upright and with 16 bits scaled to 8 (see corpora/decode)."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode.startswith("I;16"):  # .convert clips it in some versions of Pillow
        image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
    return image.convert("RGB")


@functools.cache
def photos() -> tuple[bytes, ...]:
    """Seven real photos where we have them, else none: what a precision costs is judged on them too."""
    folder = SHARED / "data" / "clothing" / "test"
    return tuple(path.read_bytes() for path in sorted(folder.rglob("*.jpg"))[::53][:7])


def items_of(case: Case) -> list[Any]:
    """Return what a case is judged on: file bytes or texts."""
    if case.modality == "text":
        return list(TEXTS)
    return [*image_files(), *(photos() if case.real else ())]


def settle(model: Any, preprocess: Callable[[Any], Any]) -> Any:
    """Give a randomly initialised vision model the batch statistics of our images, and return it in eval mode.

    Without them the activations of deep networks shrink or grow with every layer, until what distinguishes two
    images is lost in float32's noise.
    """
    import torch

    norms = [part for part in model.modules() if isinstance(part, torch.nn.modules.batchnorm._BatchNorm)]
    if norms:
        for part in norms:
            part.momentum = 1.0
        with torch.no_grad():
            model.train()(torch.stack([preprocess(as_users_open(data)) for data in image_files()]))
    return model.eval().requires_grad_(False)


def gem(maps: Any) -> Any:
    """Generalised-mean pooling as its authors write it, p = 3: (n, channels, height, width) -> (n, channels)."""
    import torch.nn.functional as F

    return F.avg_pool2d(maps.clamp(min=1e-6).pow(3), maps.shape[-2:]).pow(1 / 3).flatten(1)


def save_state_dict(model: Any, folder: Path) -> Path:
    """Save a torch model's weights as users do; returns the file."""
    import torch

    path = folder / "weights.pth"
    torch.save(model.state_dict(), path)
    return path
