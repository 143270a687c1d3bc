"""Several layers or poolings of one model as one encoder: a forward pass that yields all their vectors, side by side.

An encoder takes part if it has `forward_key`, a hashable value that encoders of one model share (the same weights and
preprocessing; another layer or pooling), and `build_with(others)`, which returns a module like `build`'s that yields
(n, dim + their dims). Never imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from embedx.core.contracts import Encoder, EncoderCard, Prepared
from embedx.core.digests import fingerprint
from embedx.core.errors import EncoderError
from embedx.core.paths import cached_json, remember_json

TOLERANCE = 1e-4
"""How far a joined vector may be from its encoder's own, relative to its length: float32's noise is below it."""


def forward_of(encoder: Encoder) -> Any:
    """Return a key that encoders share which one forward pass can serve; None where it serves only this one.

    Only what its class says itself: an encoder that wraps another, and passes on its attributes, may be another model.
    """
    value = encoder.forward_key if hasattr(type(encoder), "forward_key") else None  # type: ignore[attr-defined]
    return (type(encoder), value) if value is not None else None


class JoinedEncoder:
    """Encoders of one forward pass as one encoder, whose vectors are theirs side by side. Make it with `join_encoders`.

    Args:
        encoders: with equal `forward_key`.
    """

    def __init__(self, encoders: Sequence[Encoder]) -> None:
        self._encoders = list(encoders)
        cards = [encoder.card for encoder in encoders]
        first = cards[0]
        identity = {"joined": [card.fingerprint for card in cards]}
        self.card = EncoderCard(
            ref=f"{first.ref} ({len(cards)} outputs)",
            family=first.family,
            modality=first.modality,
            dim=sum(card.dim for card in cards),
            fingerprint=fingerprint(identity),
            identity=identity,
            spec={},
            normalized=False,
            flops=max(card.flops for card in cards),
            parameters=max(card.parameters for card in cards),
            input=first.input,
        )
        if resizing := getattr(encoders[0], "resizing", None):
            resizing.forbid()
        self.prepare = encoders[0].prepare
        self.cost = encoders[0].cost
        self.collate = encoders[0].collate
        self.canaries = encoders[0].canaries
        self.windows = getattr(encoders[0], "windows", None)

    @property
    def preparation(self) -> Any:
        """What encoders share which prepare items alike."""
        return getattr(self._encoders[0], "preparation", None)

    def build(self) -> Any:
        """Return the module, compared with each encoder's own when it is built for the first time on this machine.

        Raises:
            EncoderError: it is not the same function as theirs, or cannot be built.
        """
        try:
            module = self._encoders[0].build_with(self._encoders[1:])  # type: ignore[attr-defined]
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise EncoderError(f"{self.card.ref} cannot share a forward pass ({error})", "They run apart") from error
        key = ["joined", 1, self.card.fingerprint]
        if cached_json("joined", key) is None:
            self._compare(module)
            remember_json("joined", key, True)
        return module

    def _compare(self, module: Any) -> None:
        import torch

        prepared: Prepared = self.prepare(self.canaries())
        inputs = {name: torch.from_numpy(array) for name, array in self.collate(prepared.items).items()}
        with torch.no_grad():
            ours = module(**inputs).numpy()
            theirs = np.concatenate([encoder.build()(**inputs).numpy() for encoder in self._encoders], axis=1)
        if ours.shape != theirs.shape or not np.allclose(ours, theirs, rtol=0, atol=TOLERANCE * np.abs(theirs).max()):
            raise EncoderError(f"{self.card.ref} computes other vectors in one forward pass", "They run apart")


def join_encoders(encoders: Sequence[Encoder]) -> Encoder:
    """Return encoders of equal `forward_key` as one."""
    return JoinedEncoder(encoders)
