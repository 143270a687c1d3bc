"""The torch runtime: CUDA or Apple's MPS where there is one, any CPU otherwise."""

from __future__ import annotations

import functools
import operator
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from embedx.core.contracts import Encoder
from embedx.core.errors import EncoderError, TooLargeError
from embedx.core.machine import cpu_name
from embedx.inference.clock import best_of
from embedx.inference.compiling import COMPILE_AFTER_S, CompiledWhenItPays
from embedx.inference.gates import is_interchangeable, measure_fidelity, passes_gate
from embedx.inference.pipeline import MAX_BATCH_ITEMS


@dataclass(frozen=True)
class Device:
    """What suits a kind of device.

    Attributes:
        tokens: padded tokens of the fastest batch of texts.
        images: of the fastest batch.
        streams: batches on the way at a time: while one is computed, the next one is copied.
    """

    tokens: int
    images: int
    streams: int


DEVICES = {"cuda": Device(32_768, 256, 2), "mps": Device(8_192, 64, 1), "cpu": Device(2_048, 16, 1)}
"""Those of MPS are a guess between the other two: none was at hand."""

SHORT_TOKENS = 24
"""Of a sentence."""


class TorchRuntime:
    """A frozen module on a device; open it with `open_torch`.

    A batch that does not fit the device's memory is halved, and the size that fitted is remembered. What still does not
    fit is tried once more when nothing else is on the way.

    Args:
        module: named tensors -> (n, dim); on the device, in eval mode.
        precision: fp32 or bf16.
        device: cpu, cuda or mps.
        autocast: compute in bf16 where torch thinks fit, because the module has no part that could be cast whole.
        channels_last: whether images go in as (n, height, width, channels) in memory.
    """

    name = "torch"

    def __init__(
        self, module: Any, precision: str, device: str, autocast: bool = False, channels_last: bool = False
    ) -> None:
        self.precision = precision
        self.parallel_requests = DEVICES[device].streams
        self.is_packed = False
        self._module = module
        self._device = device
        self._autocast = autocast
        self._channels_last = channels_last
        self._streams: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(self.parallel_requests):
            self._streams.put(_new_stream(device))
        self._alone = threading.Lock()
        self._most_elements: int | None = None

    @property
    def way(self) -> str:
        """How it computes, for people."""
        ways = {"packed": self.is_packed, "compiled": getattr(self._module, "is_compiled", False)}
        return ", ".join([f"torch {self.precision}", *(way for way, taken in ways.items() if taken)])

    @property
    def hardware(self) -> str:
        """The GPU, or the CPU."""
        import torch

        return torch.cuda.get_device_name() if self._device == "cuda" else f"{self._device} {cpu_name()}"

    def forward(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Run one batch; returns (n, dim) float32. Thread-safe: calls beyond `parallel_requests` wait.

        Raises:
            TooLargeError: one item alone does not fit the device's memory.
        """
        try:
            return self._forward_with(inputs, streams=1)
        except TooLargeError:
            if self.parallel_requests == 1:
                raise
        with self._alone:  # Two that gather streams at a time would wait for each other's.
            return self._forward_with(inputs, streams=self.parallel_requests)

    def _forward_with(self, inputs: dict[str, np.ndarray], streams: int) -> np.ndarray:
        held = [self._streams.get() for _ in range(streams)]
        try:
            return self._forward(inputs, held[0])
        finally:
            for stream in held:
                self._streams.put(stream)

    def compile_when_it_pays(self, key: list[Any], any_shape: bool, after_s: float = COMPILE_AFTER_S) -> None:
        """Let the module be compiled while it is in use, see `CompiledWhenItPays`."""
        key = [*key, self._device, self.precision]
        self._module = CompiledWhenItPays(self._module, key, self.precision, any_shape, after_s)

    def _forward(self, inputs: dict[str, np.ndarray], stream: Any) -> np.ndarray:
        import torch

        first = next(iter(inputs.values()))
        if self._most_elements is not None and first.size > self._most_elements and len(first) > 1:
            return self._halves(inputs, stream)
        try:
            with torch.inference_mode(), torch.cuda.stream(stream), self._casting():
                tensors = {name: self._moved(array) for name, array in inputs.items()}
                return self._module(**tensors).float().cpu().numpy()
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            if len(first) > 1:
                self._most_elements = min(first.size // 2, self._most_elements or first.size)
        # Here, because an exception that is being handled keeps the tensors of the batch.
        if self._device != "cpu":
            getattr(torch, self._device).empty_cache()
        if len(first) == 1:
            raise TooLargeError("one item alone does not fit the device's memory", "Use --device cpu")
        return self._halves(inputs, stream)

    def _moved(self, array: np.ndarray) -> Any:
        """Return an input on the device; from pinned memory, so that the copy does not hold up the other stream."""
        import torch

        tensor = torch.from_numpy(array)
        if self._device == "cuda":
            tensor = tensor.pin_memory()
        if self._device != "cpu":
            tensor = tensor.to(self._device, non_blocking=self._device == "cuda")
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
        return DEVICES[self._device].tokens if modality == "text" else DEVICES[self._device].images


def open_torch(encoder: Encoder, precision: str, threads: int, device: str) -> TorchRuntime:
    """Build an encoder's module on a device.

    On CUDA texts are computed packed where that is faster and as faithful, and what is not packed is compiled where
    that pays. On MPS fp32 is compared with the CPU first.

    Args:
        encoder: what to run.
        precision: fp32 or bf16.
        threads: cores to use on the CPU.
        device: cpu, cuda or mps.

    Raises:
        TooLargeError: the encoder does not fit the device's memory.
        EncoderError: there is no such device, or it gives other vectors than the CPU.
    """
    import torch

    if not device_is_there(device):
        raise EncoderError(f"there is no {device.upper()} device (or torch cannot use it)", "Use --device cpu")
    # Explicit, because Dask's nanny sets OMP_NUM_THREADS=1.
    torch.set_num_threads(threads)
    if device == "cuda":
        # fp32 is to be fp32: convolutions would compute with 10 bits of mantissa otherwise, by torch's default.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    module = encoder.build()
    if device == "mps":
        check_device(encoder, module, device)
    try:
        runtime = on_device(module, precision, device)
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        told = f"{encoder.card.ref} in {precision} does not fit the device's memory"
        raise TooLargeError(told, "Use --precision bf16, or --device cpu") from None
    if device == "cuda":
        if precision == "bf16":  # the packed kernel knows nothing else
            pack_where_it_pays(encoder, module, runtime)
        if not runtime.is_packed:
            key = [encoder.card.fingerprint, runtime.hardware]
            runtime.compile_when_it_pays(key, encoder.card.modality == "text")
    return runtime


def device_is_there(device: str) -> bool:
    """Whether torch can compute on a kind of device."""
    import torch

    there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    return there[device]() if device in there else True


def on_device(module: Any, precision: str, device: str) -> TorchRuntime:
    """Cast what may be cast of a module and move it to a device; it is changed."""
    import torch

    autocast = precision == "bf16" and not hasattr(module, "backbone")
    if precision == "bf16" and not autocast:
        # Once, where autocast would cast the weights again in every batch.
        cast_to_bf16(module.backbone)
    # Convolutions read pixels with all their channels; matrices do not care. cuDNN and oneDNN want it said.
    channels_last = any(isinstance(part, torch.nn.Conv2d) for part in module.modules())
    if channels_last:
        module = module.to(memory_format=torch.channels_last)
    # Last: moving waits until it is done, and other streams than this one's may then read the weights.
    return TorchRuntime(module.to(device), precision, device, autocast, channels_last)


def cast_to_bf16(backbone: Any) -> None:
    """Cast a module to bf16 in place, but for the frequencies of rotary positions; transformers keeps them, too.

    With 8 bits of mantissa the angles of far tokens are wrong by whole turns, so that long texts get other vectors.
    """
    import torch

    kept = [
        (part, name, buffer)
        for part in backbone.modules()
        for name, buffer in part.named_buffers(recurse=False)
        if name.endswith("inv_freq")
    ]
    backbone.to(torch.bfloat16)
    for part, name, buffer in kept:
        setattr(part, name, buffer)


def check_device(encoder: Encoder, module: Any, device: str) -> None:
    """Compare a device with the CPU on the encoder's canaries, in fp32; the module ends up on it.

    Raises:
        EncoderError: the device computes another function.
    """
    inputs = encoder.collate(encoder.prepare(encoder.canaries()).items)
    reference, vectors = (on_device(module, "fp32", where).forward(inputs) for where in ("cpu", device))
    fidelity = measure_fidelity(vectors, reference)
    if not (np.isfinite(vectors).all() and passes_gate(fidelity, "fp32")):
        raise EncoderError(
            f"{device.upper()} gives other vectors of {encoder.card.ref} than the CPU ({fidelity.describe()})",
            "Use --device cpu",
        )


def pack_where_it_pays(encoder: Encoder, module: Any, runtime: TorchRuntime) -> None:
    """Compute texts without their padding from now on, if the encoder can, vectors stay the same and it is faster.

    Timed on two batches as the pipeline makes them, of texts of nearly one length, long and short: what packing saves
    there is little padding, and a mask; what it costs weighs most where texts are short. It has to pay on both.

    Args:
        encoder: may have `pack`.
        module: what the runtime runs.
        runtime: that nobody else uses yet.
    """
    if not hasattr(encoder, "pack"):
        return
    entries = encoder.prepare(encoder.canaries()).items
    mixed, batches = encoder.collate(entries), _even_batches(encoder, entries, runtime.batch_budget("text"))
    reference, padded = runtime.forward(mixed), _seconds(runtime, batches)
    undo = None
    try:
        undo = encoder.pack(module)
        if undo is None:
            return
        faithful = is_interchangeable(measure_fidelity(runtime.forward(mixed), reference), runtime.precision)
        runtime.is_packed = faithful and all(map(operator.lt, _seconds(runtime, batches), padded))
    except Exception:  # whatever a model's own code says to what it was not made for
        runtime.is_packed = False
    if undo is not None and not runtime.is_packed:
        undo()


def _even_batches(encoder: Encoder, entries: Sequence[Any], budget: int) -> list[dict[str, np.ndarray]]:
    """Return batches of the canaries' longest texts and of short ones, as large as the pipeline's."""
    by_length = sorted(entries, key=len)
    short = min(range(1, len(by_length)), key=lambda place: abs(len(by_length[place]) - SHORT_TOKENS))
    batches = []
    for place in (-1, short):
        count = min(MAX_BATCH_ITEMS, max(2, budget // len(by_length[place])))
        batches.append(encoder.collate([by_length[place]] * (count - 1) + [by_length[place - 1]]))
    return batches


def _seconds(runtime: TorchRuntime, batches: Sequence[dict[str, np.ndarray]]) -> list[float]:
    return [best_of(functools.partial(runtime.forward, batch)) for batch in batches]


_NO_MEMORY = (
    "MPS backend out of memory",
    # Where another process has filled the device, its libraries find out before torch's allocator does.
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""What torch says with no exception of its own."""


def _is_out_of_memory(error: RuntimeError) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _NO_MEMORY)


def _new_stream(device: str) -> Any:
    """Return a CUDA stream; None, which is no stream and changes nothing, for other devices."""
    if device != "cuda":
        return None
    import torch

    return torch.cuda.Stream()
