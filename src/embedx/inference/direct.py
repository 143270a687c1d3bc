"""The direct runtime: encoders that compute by themselves, such as word vectors and remote endpoints."""

from __future__ import annotations

import numpy as np

from embedx.core.contracts import DirectFunction, Encoder, Forwarded
from embedx.core.errors import EncoderError
from embedx.core.machine import cpu_name


class DirectRuntime:
    """Calls an encoder's own function; nothing is converted or moved to a device.

    Args:
        function: the arrays of `collate` to vectors.
    """

    name = "direct"
    precision = "fp32"

    def __init__(self, function: DirectFunction) -> None:
        self._function = function
        self.parallel_requests = function.parallel_requests

    @property
    def way(self) -> str:
        """How it computes, for people."""
        return f"{self.name} {self.precision}"

    @property
    def hardware(self) -> str:
        """The CPU, or whatever the function knows of."""
        return cpu_name()

    def forward(self, inputs: dict[str, np.ndarray]) -> np.ndarray | Forwarded:
        """Run one batch; returns (n, dim) float32, or that and the items which failed. Thread-safe as the function."""
        return self._function(**inputs)

    def batch_budget(self, modality: str) -> int:
        """Return the summed cost of the fastest batch, as the function says it."""
        return self._function.batch_cost


def open_direct(encoder: Encoder, runtime: str) -> DirectRuntime:
    """Build an encoder's function.

    Args:
        encoder: its card says `direct`.
        runtime: what was asked for: auto, openvino or torch.

    Raises:
        EncoderError: another runtime was asked for.
    """
    if runtime != "auto":
        raise EncoderError(f"{encoder.card.ref} does not run on {runtime}: it is no torch module", "Use --runtime auto")
    return DirectRuntime(encoder.build())
