"""Cards kept across processes, so that a start neither builds a model nor reads its weights. Never imports torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from embedx.core.contracts import EncoderCard
from embedx.core.digests import canonical_json, stat_token
from embedx.core.errors import EncoderError
from embedx.core.paths import cached_json, remember_json
from embedx.core.specs import EncoderSpec

RECIPE_VERSION = 2
"""Raised when the way a card is made changes, so that cards remembered by older versions are made again."""


@dataclass(frozen=True)
class KnownCard:
    """A card, and what building the encoder again needs.

    Attributes:
        card: what the encoder is.
        weights_file: the file the weights came from.
        recipe: JSON of the family's own, such as a model's configuration.
        weights_token: size and time of the weights file when the card was made.
    """

    card: EncoderCard
    weights_file: Path
    recipe: dict[str, Any] = field(default_factory=dict)
    weights_token: str = ""

    @property
    def model_key(self) -> str:
        """What encoders share that are the same weights and differ in layer or pooling only."""
        spec = {name: value for name, value in self.card.spec.items() if name not in ("layer", "pooling")}
        return canonical_json([spec, str(self.weights_file), self.weights_token])

    def check_weights(self) -> None:
        """Raise where the weights are not those that the card was made from.

        Raises:
            EncoderError: the file changed, or is gone.
        """
        if _token(self.weights_file) != self.weights_token:
            raise EncoderError(
                f"weights file {self.weights_file} of {self.card.ref} changed after the encoder was opened",
                "Start the command again",
            )


def open_card(
    spec: EncoderSpec, packages: Sequence[str], describe: Callable[[EncoderSpec], KnownCard], beside: Any = None
) -> KnownCard:
    """Return an encoder's remembered card, or describe the encoder once and remember it.

    The card is remembered per spec, versions of the libraries, and the weights file's path, size and mtime:
    the digest over the weights is not recomputed on every start, and torch is not imported.

    Args:
        spec: which encoder.
        packages: installed packages whose versions can change the model's graph, besides torch.
        describe: builds the model to make the card; its spec's weights are an absolute path.
        beside: JSON-able; what else the card depends on, such as the state of a configuration file.

    Raises:
        EncoderError: the weights file does not exist.
    """
    if spec.weights is not None:
        path = Path(spec.weights).expanduser().absolute()
        if not path.is_file():
            raise EncoderError(f"weights file {spec.weights} of {spec.ref} does not exist", "Check --weights")
        spec = replace(spec, weights=str(path))
    key = [RECIPE_VERSION, spec.to_dict(), {name: version(name) for name in ("torch", *packages)}, beside]
    entry = cached_json("cards", key)
    if entry is None or entry["weights_token"] != _token(Path(entry["weights_file"])):
        entry = _to_json(describe(spec))
        remember_json("cards", key, entry)
    return KnownCard(
        EncoderCard.from_dict(entry["card"]), Path(entry["weights_file"]), entry["recipe"], entry["weights_token"]
    )


def _to_json(known: KnownCard) -> dict[str, Any]:
    entry = {
        "card": known.card.to_dict(),
        "weights_file": str(known.weights_file),
        "weights_token": _token(known.weights_file),
        "recipe": known.recipe,
    }
    return json.loads(json.dumps(entry))  # lists for tuples, as when it is remembered


def _token(path: Path) -> str:
    try:
        return stat_token(path)
    except OSError:
        return ""
