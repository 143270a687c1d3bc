"""torch.compile where it pays: tried when a run has lasted a minute, kept if it is faster and as faithful."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from embedx.core.paths import cached_json, remember_json
from embedx.inference.clock import best_of
from embedx.inference.gates import measure_fidelity, passes_gate

COMPILE_AFTER_S = 60.0
"""A run shorter than this is over before a compiler has earned its half a minute."""

FASTER = 1.05
"""By how many times it must be faster to be kept."""


class CompiledWhenItPays:
    """A module that is compiled while it is in use; until then, and for other shapes, it runs as it is.

    Images are compiled for batches of the size that comes most, the full one; the last batch of a window is not
    worth a compilation of its own. Texts are compiled once for all shapes. Thread-safe: while one thread compiles, the
    others run the module as it is.

    Args:
        module: named tensors -> (n, dim) tensor.
        key: what the outcome hangs on besides torch's version and the shape: encoder, precision, device.
        full: items of a full batch; 0 compiles for every shape at once.
        precision: of the gate that compiled vectors must keep against the module's own.
        after_s: seconds from the first batch on until it is tried.
    """

    def __init__(
        self, module: Any, key: list[Any], full: int, precision: str, after_s: float = COMPILE_AFTER_S
    ) -> None:
        self._module = module
        self._key = key
        self._full = full
        self._precision = precision
        self._after_s = after_s
        self._trying = threading.Lock()
        self._started: float | None = None
        self._decided = False
        self._compiled: Any = None

    @property
    def is_compiled(self) -> bool:
        """Whether full batches run compiled now."""
        return self._compiled is not None

    def __call__(self, **inputs: Any) -> Any:
        """Run one batch."""
        if not self._full or len(next(iter(inputs.values()))) == self._full:
            if not self._decided:
                self._try_in_time(inputs)
            if self._compiled is not None:
                return self._compiled(**inputs)
        return self._module(**inputs)

    def _try_in_time(self, inputs: dict[str, Any]) -> None:
        self._started = self._started or time.monotonic()
        if time.monotonic() - self._started < self._after_s or not self._trying.acquire(blocking=False):
            return
        try:
            if not self._decided:
                self._compiled = self._tried(inputs)
                self._decided = True
        finally:
            self._trying.release()

    def _tried(self, inputs: dict[str, Any]) -> Any | None:
        """Return the compiled module, or None where it does not pay; a refusal is remembered."""
        import torch

        shapes = {name: list(tensor.shape) if self._full else [] for name, tensor in inputs.items()}
        key = [*self._key, str(torch.__version__), shapes]
        if (known := cached_json("compiled", key)) and not known["kept"]:
            return None
        found: dict[str, Any]
        try:
            compiled = torch.compile(self._module, dynamic=not self._full)
            ours, theirs = (functools.partial(_vectors, call, inputs) for call in (compiled, self._module))
            faithful = passes_gate(measure_fidelity(ours(), theirs()), self._precision)
            seconds, eager = best_of(ours), best_of(theirs)
            found = {"kept": bool(faithful and eager > FASTER * seconds), "s": seconds, "eager_s": eager}
        except torch.OutOfMemoryError:
            return None  # on another day it may fit
        except Exception as error:  # compilers raise anything, and one need not even be installed
            found = {"kept": False, "why": f"{type(error).__name__}: {str(error)[:500]}"}
        remember_json("compiled", key, found)
        return compiled if found["kept"] else None


def _vectors(call: Callable[..., Any], inputs: dict[str, Any]) -> np.ndarray:
    return call(**inputs).float().cpu().numpy()
