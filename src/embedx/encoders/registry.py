"""The families of encoders: from a reference or a TOML file to an encoder that is open."""

from __future__ import annotations

import difflib
import importlib
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from embedx.core.contracts import Encoder
from embedx.core.errors import EncoderError, UnknownEncoderError, UsageError
from embedx.core.specs import EncoderSpec

FAMILIES = {
    "minilm": "embedx.encoders.minilm",
    "open_clip": "embedx.encoders.open_clip",
    "remote": "embedx.encoders.remote",
    "sentence_transformers": "embedx.encoders.sentence_transformers",
    "timm": "embedx.encoders.timm",
    "torchvision": "embedx.encoders.torchvision",
    "transformers": "embedx.encoders.transformers",
    "word2vec": "embedx.encoders.word2vec",
}
"""Family -> module with `open_encoder(spec) -> Encoder` and `list_encoders() -> [{ref, family, modality, dim}]`."""

ENTRY_POINTS = "embedx.encoders"
"""Packages add families under this entry point: name = family, value = module."""

_PLAIN = ("minilm",)
"""Families of one encoder: their reference is the family alone."""


def parse_ref(
    ref: str, weights: str | None = None, layer: str | None = None, pooling: str | None = None
) -> EncoderSpec:
    """Read `family:name`, `minilm` or the path of an encoder TOML file.

    Flags override what a file says.

    Raises:
        UnknownEncoderError: no such family; the message suggests the nearest.
        UsageError: the file is missing or wrong.
    """
    if ref.endswith(".toml"):
        spec = _read_toml(Path(ref))
    else:
        family, _, name = ref.partition(":")
        _check_family(family, ref)
        if not name and family not in _PLAIN:
            raise UsageError(f"encoder {ref!r} names no model", f"Write {family}:NAME; see embedx encoders")
        spec = EncoderSpec(family=family, name=name)
    return replace(spec, weights=weights or spec.weights, layer=layer or spec.layer, pooling=pooling or spec.pooling)


def _read_toml(path: Path) -> EncoderSpec:
    try:
        data = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise UsageError(f"encoder file {path} does not exist", "Check the path") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"encoder file {path} cannot be read ({error})", "Mend the file") from None
    spec = EncoderSpec.from_dict(data, str(path))
    _check_family(spec.family, spec.family)
    if spec.weights:
        # Relative to the file, so that a folder of encoder files can be moved with its weights.
        spec = replace(spec, weights=str((path.parent / Path(spec.weights).expanduser()).resolve()))
    return spec


def _check_family(family: str, ref: str) -> None:
    known = list(_family_modules())
    if family in known:
        return
    refs = [entry["ref"] for entry in iterate_listed(("minilm", "torchvision", "timm"))]
    near = difflib.get_close_matches(family, known, 1, 0.6)
    same_name = [
        known_ref
        for known_ref in refs
        if known_ref.partition(":")[2] == ref.partition(":")[2] or known_ref.endswith(f":{ref}")
    ]
    close = difflib.get_close_matches(ref, refs, 1, 0.6)
    hint = near[0] + ref[len(family) :] if near else (same_name or close or [""])[0]
    remedy = f"Did you mean {hint}?" if hint else f"Families: {', '.join(known)}"
    raise UnknownEncoderError(f"unknown encoder {ref!r}", f"{remedy} See embedx encoders")


def _family_modules() -> dict[str, str]:
    plugins = {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}
    # Our own names cannot be replaced: a reference in a store must mean one thing everywhere.
    return {**plugins, **FAMILIES}


def _family(name: str) -> Any:
    modules = _family_modules()
    if name not in modules:
        raise UnknownEncoderError(f"unknown encoder family {name!r}", f"Families: {', '.join(modules)}")
    try:
        module = importlib.import_module(modules[name])
    except Exception as error:
        raise EncoderError(
            f"the encoder family {name} cannot be imported from {modules[name]} ({type(error).__name__}: {error})",
            "Mend or uninstall the package that adds it",
        ) from error
    if missing := [function for function in ("open_encoder", "list_encoders") if not hasattr(module, function)]:
        raise EncoderError(
            f"the encoder family {name} has no {missing[0]} in {modules[name]}", "See docs/plugins.md for its functions"
        )
    return module


def open_encoder(spec: EncoderSpec) -> Encoder:
    """Open an encoder: find its weights and its configuration. The model itself is built later, by a runtime.

    Raises:
        UnknownEncoderError: no such model.
        EncoderError: its weights are missing or do not fit.
    """
    if spec.weights and not Path(spec.weights).expanduser().exists():
        raise EncoderError(f"weights {spec.weights} of {spec.ref} do not exist", "Check --weights")
    opener: Callable[[EncoderSpec], Encoder] = _family(spec.family).open_encoder
    return opener(spec)


def list_layers(spec: EncoderSpec) -> list[str]:
    """Return the names that `layer` may have, outermost ones without a dot; none where a family does not say."""
    lister: Callable[[EncoderSpec], list[str]] = getattr(_family(spec.family), "list_layers", lambda spec: [])
    return lister(spec)


def iterate_listed(families: tuple[str, ...] | None = None) -> Iterator[dict[str, Any]]:
    """Yield {ref, family, modality, dim} of the encoders that the families know by name."""
    for name in families or tuple(_family_modules()):
        yield from _family(name).list_encoders()
