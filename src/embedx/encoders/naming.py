"""Several encoders of one run: which ones, and the name of each one's store."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from embedx.core.errors import UsageError
from embedx.core.specs import EncoderSpec
from embedx.encoders.registry import parse_ref

MOST_NAMED = 100
"""Characters of a name, well below what file systems take."""

MOST_ENCODERS = 64

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"

_GIVEN = re.compile(rf"({_NAME})=(.+)", re.DOTALL)


def name_encoders(
    encoders: Sequence[str | EncoderSpec],
    weights: str | None = None,
    layers: Sequence[str] = (),
    poolings: Sequence[str] = (),
) -> dict[str, EncoderSpec]:
    """Name the encoders of a run that has several: different ones, or layers and poolings of one.

    Args:
        encoders: `family:name`, `minilm`, encoder TOML files, each perhaps with `NAME=` before it; or specs.
        weights: of the one encoder.
        layers: of the one encoder.
        poolings: of the one encoder; each of them of each layer.

    Returns:
        name of the store -> the encoder: the name that was given, that of the TOML file, or the reference; then layer
        and pooling, where these were given. What is neither a letter, a digit, `.` nor `_` becomes `-`.

    Raises:
        UsageError: two stores would have one name, or options do not say which encoder they are of.
    """
    if not encoders:
        raise UsageError("no encoder given", "Name one, e.g. minilm; see embedx encoders")
    if len(encoders) > 1 and (weights or layers or poolings):
        given = "--weights" if weights else "--layer" if layers else "--pooling"
        raise UsageError(
            f"{given} belongs to one encoder, and there are {len(encoders)}",
            "Describe each encoder in a TOML file; see docs/several-encoders.md",
        )
    if len(encoders) * max(1, len(layers)) * max(1, len(poolings)) > MOST_ENCODERS:
        raise UsageError(f"more than {MOST_ENCODERS} encoders", "Extract with them in several runs")
    named: dict[str, EncoderSpec] = {}
    variants: list[tuple[str | None, str | None]] = [
        (layer or None, pooling or None) for layer in layers or [""] for pooling in poolings or [""]
    ]
    for encoder in encoders:
        for layer, pooling in variants:
            name, spec = _named(encoder, weights, layer, pooling)
            if name.casefold() in map(str.casefold, named):
                raise UsageError(f"two encoders would have the store {name!r}", f"Name them: --encoder NAME={spec.ref}")
            named[name] = spec
    return named


def _named(
    encoder: str | EncoderSpec, weights: str | None, layer: str | None, pooling: str | None
) -> tuple[str, EncoderSpec]:
    if isinstance(encoder, EncoderSpec):
        parts = [_name(encoder.ref, encoder), encoder.layer, encoder.pooling]
        return _slug(parts), encoder
    given, ref = split_name(encoder)
    spec = parse_ref(ref, weights, layer, pooling)
    return _slug([given or _name(ref, spec), layer, pooling]), spec


def check_name(name: str) -> None:
    """Raise a UsageError unless a store of several can have this name."""
    if not re.fullmatch(_NAME, name) or len(name) > MOST_NAMED:
        raise UsageError(f"{name!r} is no name of a store", "Use letters, digits, '.', '_' and '-'")


def split_name(ref: str) -> tuple[str, str]:
    """Split `NAME=REF`; the name is empty where there is none."""
    found = _GIVEN.fullmatch(ref)
    return (found[1], found[2]) if found else ("", ref)


def _name(ref: str, spec: EncoderSpec) -> str:
    if ref.endswith(".toml"):
        return Path(ref).stem
    # Of a local folder its own name: the same from every current folder.
    folder = Path(spec.name).expanduser()
    return f"{spec.family}-{folder.resolve().name}" if spec.name and folder.is_dir() else ref


def _slug(parts: Sequence[str | None]) -> str:
    text = "-".join(part for part in parts if part)
    slug = re.sub(r"[^\w.]+", "-", text, flags=re.ASCII).strip("-.")
    if not slug:
        raise UsageError(f"{text!r} makes no name of a store", "Name it: --encoder NAME=REF")
    return slug[:MOST_NAMED]
