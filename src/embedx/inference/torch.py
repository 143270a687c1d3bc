"""The torch runtime: CUDA where there is one, any CPU otherwise."""

from __future__ import annotations

import queue
from typing import Any

import numpy as np

from embedx.core.contracts import Encoder
from embedx.core.errors import EncoderError

TOKEN_BUDGET = {"cuda": 32_768, "cpu": 2_048}
IMAGE_BATCH = {"cuda": 256, "cpu": 16}

CUDA_STREAMS = 2
"""Batches on the way at a time: while one is computed, the next one is copied."""


class TorchRuntime:
    """A frozen module on a device; open it with `open_torch`.

    A batch that does not fit the device's memory is halved, and the size that fitted is remembered.

    Args:
        module: named tensors -> (n, dim); on the device, in eval mode.
        precision: fp32 or bf16.
        device: cpu or cuda.
        autocast: compute in bf16 where torch thinks fit, because the module has no part that could be cast whole.
        channels_last: whether images go in as (n, height, width, channels) in memory.
    """

    name = "torch"

    def __init__(
        self, module: Any, precision: str, device: str, autocast: bool = False, channels_last: bool = False
    ) -> None:
        self.precision = precision
        self.parallel_requests = CUDA_STREAMS if device == "cuda" else 1
        self._module = module
        self._device = device
        self._autocast = autocast
        self._channels_last = channels_last
        self._streams: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(self.parallel_requests):
            self._streams.put(_new_stream(device))
        self._most_elements: int | None = None

    def forward(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Run one batch; returns (n, dim) float32. Thread-safe: calls beyond `parallel_requests` wait."""
        stream = self._streams.get()
        try:
            return self._forward(inputs, stream)
        finally:
            self._streams.put(stream)

    def _forward(self, inputs: dict[str, np.ndarray], stream: Any) -> np.ndarray:
        import torch

        first = next(iter(inputs.values()))
        if self._most_elements is not None and first.size > self._most_elements and len(first) > 1:
            return self._halves(inputs, stream)
        try:
            with torch.inference_mode(), torch.cuda.stream(stream), self._casting():
                tensors = {name: self._moved(array) for name, array in inputs.items()}
                return self._module(**tensors).float().cpu().numpy()
        except torch.OutOfMemoryError:
            if len(first) == 1:
                raise EncoderError("one item alone does not fit the device's memory", "Use --device cpu") from None
            self._most_elements = min(first.size // 2, self._most_elements or first.size)
            torch.cuda.empty_cache()
        return self._halves(inputs, stream)

    def _moved(self, array: np.ndarray) -> Any:
        """Return an input on the device; from pinned memory, so that the copy does not hold up the other stream."""
        import torch

        tensor = torch.from_numpy(array)
        if self._device == "cuda":
            tensor = tensor.pin_memory().to(self._device, non_blocking=True)
        if self._channels_last and tensor.ndim == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        return tensor

    def _halves(self, inputs: dict[str, np.ndarray], stream: Any) -> np.ndarray:
        half = len(next(iter(inputs.values()))) // 2
        parts = [{name: array[part] for name, array in inputs.items()} for part in (slice(half), slice(half, None))]
        return np.concatenate([self._forward(part, stream) for part in parts])

    def _casting(self) -> Any:
        import torch

        return torch.autocast(self._device, dtype=torch.bfloat16, enabled=self._autocast)

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
    return on_device(encoder.build(), precision, device)


def on_device(module: Any, precision: str, device: str) -> TorchRuntime:
    """Move a module to a device and cast what may be cast; it is changed."""
    import torch

    module = module.to(device)
    autocast = precision == "bf16" and not hasattr(module, "backbone")
    if precision == "bf16" and not autocast:
        # Once, where autocast would cast the weights again in every batch.
        module.backbone.to(torch.bfloat16)
    # Convolutions read pixels with all their channels; matrices do not care. cuDNN and oneDNN want it said.
    channels_last = any(isinstance(part, torch.nn.Conv2d) for part in module.modules())
    if channels_last:
        module = module.to(memory_format=torch.channels_last)
    return TorchRuntime(module, precision, device, autocast, channels_last)


def _new_stream(device: str) -> Any:
    """Return a CUDA stream; None, which is no stream and changes nothing, for the CPU."""
    if device != "cuda":
        return None
    import torch

    return torch.cuda.Stream()
