"""The torch runtime: CUDA where there is one, any CPU otherwise."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from embedx.core.contracts import Encoder
from embedx.core.errors import EncoderError

TOKEN_BUDGET = {"cuda": 32_768, "cpu": 2_048}
IMAGE_BATCH = {"cuda": 256, "cpu": 16}


class TorchRuntime:
    """A frozen module on a device; open it with `open_torch`.

    A batch that does not fit the device's memory is halved, and the size that fitted is remembered.
    """

    name = "torch"

    def __init__(self, module: Any, precision: str, device: str) -> None:
        self.precision = precision
        self.parallel_requests = 1
        self._module = module
        self._device = device
        self._lock = threading.Lock()
        self._most_elements: int | None = None

    def forward(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Run one batch; returns (n, dim) float32. Thread-safe: one call at a time."""
        with self._lock:
            return self._forward(inputs)

    def _forward(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        import torch

        first = next(iter(inputs.values()))
        if self._most_elements is not None and first.size > self._most_elements and len(first) > 1:
            return self._halves(inputs)
        try:
            with torch.inference_mode(), self._autocast():
                tensors = {name: torch.from_numpy(array).to(self._device) for name, array in inputs.items()}
                return self._module(**tensors).float().cpu().numpy()
        except torch.OutOfMemoryError:
            if len(first) == 1:
                raise EncoderError("one item alone does not fit the device's memory", "Use --device cpu") from None
            self._most_elements = first.size // 2
            torch.cuda.empty_cache()
        return self._halves(inputs)

    def _halves(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        half = len(next(iter(inputs.values()))) // 2
        parts = [{name: array[part] for name, array in inputs.items()} for part in (slice(half), slice(half, None))]
        return np.concatenate([self._forward(part) for part in parts])

    def _autocast(self) -> Any:
        import torch

        return torch.autocast(self._device, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def batch_budget(self, modality: str) -> int:
        """Return the fastest batch: padded tokens for texts, images for images."""
        return (TOKEN_BUDGET if modality == "text" else IMAGE_BATCH)[self._device]


def open_torch(encoder: Encoder, precision: str, threads: int, device: str) -> TorchRuntime:
    """Build an encoder's module on a device.

    Args:
        encoder: what to run.
        precision: fp32 or bf16.
        threads: cores to use on the CPU.
        device: cpu or cuda.

    Raises:
        EncoderError: there is no such device.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise EncoderError("there is no CUDA device (or torch cannot use it)", "Use --device cpu")
    # Explicit, because Dask's nanny sets OMP_NUM_THREADS=1.
    torch.set_num_threads(threads)
    return TorchRuntime(encoder.build().to(device), precision, device)
