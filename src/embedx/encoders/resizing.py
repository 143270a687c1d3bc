"""Large photographs resized by torch: Pillow's convolution with shorter integers, many at a time, where it may be.

Both filter in 8 bits, rows first; of torch's values some 2 in 1,000 are one grey level off. Most encoders stay inside
the fp32 gate with that, a few do not. So an encoder is asked, once: of some images of the corpus it gets both forms.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class _Pair:
    """One image in both forms, (3, height, width) uint8, and the seconds that each took."""

    plain: np.ndarray
    fast: np.ndarray
    plain_s: float
    fast_s: float


class Resizing:
    """How an encoder's large images are resized in this process: by Pillow, until torch has been found to be as good.

    An encoder may be run in two precisions at a time; then both have to find so. Thread-safe.

    Args:
        fingerprint: the encoder's.
    """

    def __init__(self, fingerprint: str) -> None:
        self._fingerprint = fingerprint
        self._lock = threading.Lock()
        self._spent_s = 0.0
        self._pairs: list[_Pair] = []
        self._judges: dict[str, Judge] = {}
        self._verdicts: dict[str, bool] = {}
        self._is_forbidden = False

    def ask(self, precision: str, judge: Judge) -> None:
        """Let somebody who runs the encoder at a precision judge; what is found is remembered for other processes."""
        with self._lock:
            self._judges[precision] = judge

    def withdraw(self, precision: str, judge: Judge) -> None:
        """Ask somebody no longer, who does not run the encoder any more."""
        with self._lock:
            if self._judges.get(precision) == judge:
                del self._judges[precision]

    def forbid(self) -> None:
        """Leave it to Pillow: others prepare their images by this encoder, too, and nobody can ask all of them."""
        self._is_forbidden = True

    @property
    def by_torch(self) -> bool | None:
        """Whether torch resizes; None where that is not decided."""
        with self._lock:
            verdicts = [self._verdicts.get(precision) for precision in self._judges]
        if self._is_forbidden or not verdicts or False in verdicts:
            return False
        return None if None in verdicts else True

    def apply(self, transform: ImageTransform, image: Image) -> tuple[np.ndarray, bool]:
        """Return (3, height, width) uint8 of an RGB image, and whether torch resized it."""
        suits = transform.interpolation in _FILTERS and image.width * image.height >= LARGE_PIXELS
        by_torch = self.by_torch if suits else False
        if by_torch and (fast := _apply_fast(transform, image)) is not None:
            return fast, True
        started = time.perf_counter()
        array = transform.apply(image)
        if by_torch is None:
            try:
                self._try(transform, image, array, time.perf_counter() - started)
            except Exception:  # the image is resized; no trial of something faster may cost it
                self.forbid()
        return array, False

    def _try(self, transform: ImageTransform, image: Image, plain: np.ndarray, plain_s: float) -> None:
        """Take an image for the judges; the one that completes the sample waits for the answer."""
        with self._lock:
            self._spent_s += plain_s
            if self._spent_s < IMPORT_S and "torch" not in sys.modules:
                return
            for precision in self._judges:
                if precision not in self._verdicts and (known := cached_json("resizing", self._key(precision))):
                    self._verdicts[precision] = known["by_torch"]
        if self.by_torch is not None:
            return
        import torch  # noqa: F401  not a part of what is timed

        started = time.perf_counter()
        fast = _apply_fast(transform, image)
        if fast is None:
            return
        pair = _Pair(plain, fast, plain_s, time.perf_counter() - started)
        with self._lock:
            if len(self._pairs) >= PAIRS:
                return  # somebody is asking
            self._pairs.append(pair)
            if len(self._pairs) < PAIRS:
                return
            unasked = {name: judge for name, judge in self._judges.items() if name not in self._verdicts}
        for precision, judge in unasked.items():
            self._verdicts[precision] = self._ask_one(precision, judge)
        with self._lock:
            self._pairs = []

    def _ask_one(self, precision: str, judge: Judge) -> bool:
        is_faster = sum(pair.fast_s for pair in self._pairs) < sum(pair.plain_s for pair in self._pairs)
        try:
            same = judge([pair.plain for pair in self._pairs], [pair.fast for pair in self._pairs])
        except Exception:  # no reason to lose an image that Pillow has resized well, nor to believe it for ever
            return False
        remember_json("resizing", self._key(precision), {"by_torch": is_faster and same, "same": same})
        return is_faster and same

    def _key(self, precision: str) -> list[str]:
        return [self._fingerprint, precision, version("torch"), version("pillow")]


class _NotContiguousError(Exception):
    """The image's rows lie in several blocks, see `core/memory.py`, or this Pillow does not show them."""


def _apply_fast(transform: ImageTransform, image: Image) -> np.ndarray | None:
    try:
        return transform.apply(image, torch_resize)
    except _NotContiguousError:
        return None


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
    if len(exported) != image.height * image.width:  # rows that somebody lets Pillow align
        raise _NotContiguousError
    # By its address, because torch warns of arrays that are read-only, as Arrow's are; it is read only here, too.
    # Three channels and one that is not used.
    height, width = image.height, image.width
    memory = (ctypes.c_uint8 * (4 * height * width)).from_address(exported.values.buffers()[1].address)
    channels = torch.from_numpy(np.ctypeslib.as_array(memory).reshape(1, height, width, 4)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        resized = torch.nn.functional.interpolate(channels, size[::-1], mode=interpolation, antialias=True)
    del exported  # not before
    return PIL.fromarray(resized[0, :3].permute(1, 2, 0).contiguous().numpy())
