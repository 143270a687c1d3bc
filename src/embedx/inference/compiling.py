"""torch.compile where it pays: tried when a run has lasted a minute, kept if it is faster and as faithful."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from embedx.core.paths import cached_json, remember_json
from embedx.inference.clock import race
from embedx.inference.gates import is_interchangeable, measure_fidelity

COMPILE_AFTER_S = 60.0
"""A run shorter than this is over before a compiler has earned its half a minute."""

FASTER = 1.05
"""By how many times it must be faster to be kept."""


class CompiledWhenItPays:
    """A module that is compiled while it is in use; until then, and for other shapes, it runs as it is.

    Images are compiled for batches of one size, the largest that came until then: the last batch of a window is not
    worth a compilation of its own. Texts are compiled once for all shapes. Thread-safe: while one thread compiles, the
    others run the module as it is.

    Args:
        module: named tensors -> (n, dim) tensor.
        key: what the outcome hangs on besides torch's version and the shape: encoder, precision, device.
        precision: of the gate that compiled vectors must keep against the module's own.
        any_shape: whether to compile for all shapes.
        after_s: seconds from the first batch on until it is tried.
    """

    def __init__(
        self, module: Any, key: list[Any], precision: str, any_shape: bool, after_s: float = COMPILE_AFTER_S
    ) -> None:
        self._module = module
        self._key = key
        self._precision = precision
        self._any_shape = any_shape
        self._after_s = after_s
        self._trying = threading.Lock()
        self._started: float | None = None
        self._largest = 0
        self._size = 0
        self._decided = False
        self._compiled: Any = None

    @property
    def is_compiled(self) -> bool:
        """Whether full batches run compiled now."""
        return self._compiled is not None

    def __call__(self, **inputs: Any) -> Any:
        """Run one batch."""
        size = len(next(iter(inputs.values())))
        if not self._decided:
            self._largest = max(self._largest, size)
            if self._any_shape or size == self._largest:
                self._try_in_time(inputs)
        compiled = self._compiled
        if compiled is not None and (self._any_shape or size == self._size):
            try:
                return compiled(**inputs)
            except Exception as error:
                # A shape of its own may be compiled anew, and compilers raise anything.
                if _is_out_of_memory(error):
                    raise
                self._compiled = None
        return self._module(**inputs)

    def _try_in_time(self, inputs: dict[str, Any]) -> None:
        self._started = self._started or time.monotonic()
        if time.monotonic() - self._started < self._after_s or not self._trying.acquire(blocking=False):
            return
        try:
            if not self._decided:
                # Not the largest so far: that may grow while this one is compiled.
                self._size = len(next(iter(inputs.values())))
                self._compiled = self._tried(inputs)
                self._decided = True
        finally:
            self._trying.release()

    def _tried(self, inputs: dict[str, Any]) -> Any | None:
        """Return the compiled module, or None where it does not pay; that is remembered, but not that it failed."""
        import torch

        shapes = {name: [] if self._any_shape else list(tensor.shape) for name, tensor in inputs.items()}
        key = [*self._key, str(torch.__version__), shapes]
        if (known := cached_json("compiled", key)) and not known["kept"]:
            return None
        try:
            compiled = torch.compile(self._module, dynamic=self._any_shape)
            ours, theirs = (functools.partial(_vectors, call, inputs) for call in (compiled, self._module))
            faithful = is_interchangeable(measure_fidelity(ours(), theirs()), self._precision)
            seconds, eager = race(ours, theirs)
        except Exception:  # compilers raise anything, one need not even be installed, and memory may be short today
            return None
        kept = bool(faithful and eager > FASTER * seconds)
        remember_json("compiled", key, {"kept": kept, "faithful": faithful, "s": seconds, "eager_s": eager})
        return compiled if kept else None


def _is_out_of_memory(error: Exception) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError)


def _vectors(call: Callable[..., Any], inputs: dict[str, Any]) -> np.ndarray:
    return call(**inputs).float().cpu().numpy()
