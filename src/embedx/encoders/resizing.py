"""Large photographs resized by torch: Pillow's convolution with shorter integers, seven times as fast, where it may be.

Both filter in 8 bits, rows first; of torch's values some 2 in 1,000 are one grey level off. Most encoders stay inside
the fp32 gate with that, a few do not. So an encoder is asked, once: of some images of the corpus it gets both forms.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np

from embedx.core.paths import cached_json, remember_json

if TYPE_CHECKING:
    from PIL.Image import Image

    from embedx.encoders.vision import ImageTransform

LARGE_PIXELS = 2_000_000
"""What is smaller Pillow resizes in some milliseconds."""

IMPORT_S = 2.0
"""Loading torch takes about so long, where the runtime has not; it is loaded when Pillow has taken as long."""

PAIRS = 16
"""Images on which an encoder is asked."""

_FILTERS = ("bilinear", "bicubic")


Judge = Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], bool]
"""Images by Pillow, the same by torch -> whether the encoder's vectors of both are the same. Thread-safe."""


class Resizing:
    """How an encoder's large images are resized in this process: by Pillow, until torch has been found to be as good.

    Thread-safe.

    Args:
        transform: what is done to images.
        fingerprint: the encoder's.
    """

    def __init__(self, transform: ImageTransform, fingerprint: str) -> None:
        self._transform = transform
        self._fingerprint = fingerprint
        self._lock = threading.Lock()
        self._spent_s = 0.0
        self._pairs: list[tuple[np.ndarray, np.ndarray]] = []
        self._judge: Judge | None = None
        self._key: list[str] = []
        self.by_torch: bool | None = None

    def ask(self, judge: Judge, precision: str) -> None:
        """Let somebody who runs the encoder at a precision judge; what is found is remembered for other processes."""
        self._judge = judge
        self._key = [self._fingerprint, precision, version("torch"), version("pillow")]

    def forbid(self) -> None:
        """Leave it to Pillow: others prepare their images by this encoder, too, and nobody can ask all of them."""
        self.by_torch = False

    def apply(self, image: Image) -> tuple[np.ndarray, bool]:
        """Return (3, height, width) uint8 of an RGB image, and whether torch resized it."""
        suits = self._judge is not None and self._transform.interpolation in _FILTERS and _is_large(image)
        if self.by_torch is False or not suits:
            return self._transform.apply(image), False
        if self.by_torch:
            fast = self._fast(image)
            return (self._transform.apply(image), False) if fast is None else (fast, True)
        started = time.perf_counter()
        array = self._transform.apply(image)
        with self._lock:
            self._spent_s += time.perf_counter() - started
            is_worth_it = self._spent_s > IMPORT_S or "torch" in sys.modules
        if is_worth_it:
            self._try(image, array)
        return array, False

    def _try(self, image: Image, array: np.ndarray) -> None:
        """Take an image for the judge; the one that completes the sample waits for the answer."""
        if (known := cached_json("resizing", self._key)) is not None:
            self.by_torch = known
            return
        fast = self._fast(image)
        if fast is None:
            return
        with self._lock:
            self._pairs.append((array, fast))
            if len(self._pairs) != PAIRS:
                return
            plain, resized = zip(*self._pairs)
        assert self._judge is not None
        found = self._judge(plain, resized)
        remember_json("resizing", self._key, found)
        if self.by_torch is None:
            self.by_torch = found

    def _fast(self, image: Image) -> np.ndarray | None:
        try:
            return self._transform.apply(image, torch_resize)
        except _NotContiguousError:
            return None


class _NotContiguousError(Exception):
    """The image's rows lie in several blocks, see `core/memory.py`, or this Pillow does not show them."""


def _is_large(image: Image) -> bool:
    return image.width * image.height >= LARGE_PIXELS


def torch_resize(image: Image, size: tuple[int, int], interpolation: str) -> Image:
    """Resize an RGB image without copying it first; `size` is (width, height).

    Raises:
        _NotContiguousError: its memory is not one block.
    """
    import pyarrow as pa
    import torch
    from PIL import Image as PIL

    if not hasattr(image, "__arrow_c_array__"):
        raise _NotContiguousError
    try:
        exported = pa.array(image)
    except ValueError as error:
        raise _NotContiguousError from error
    # By its address, because torch warns of arrays that are read-only, as Arrow's are; it is read only here, too.
    # Three channels and one that is not used.
    height, width = image.height, image.width
    memory = (ctypes.c_uint8 * (4 * height * width)).from_address(exported.values.buffers()[1].address)
    channels = torch.from_numpy(np.ctypeslib.as_array(memory).reshape(1, height, width, 4)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        resized = torch.nn.functional.interpolate(channels, size[::-1], mode=interpolation, antialias=True)
    del exported  # not before
    return PIL.fromarray(resized[0, :3].permute(1, 2, 0).contiguous().numpy())
