"""`embedx encoders`: list what is known by name, or show one encoder and its layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from embedx.cli import output

SHOWN_LAYERS = 16
"""Layers that the summary names; --json has them all."""

EXAMPLES = """Examples

embedx encoders | grep resnet

embedx encoders show minilm

embedx encoders show torchvision:resnet50 --weights resnet50.pth

embedx encoders show timm:vit_tiny_patch16_224 --weights vit.safetensors --layer blocks.6 --json
"""


def register(app: typer.Typer) -> None:
    """Attach the command."""
    app.command("encoders", epilog=EXAMPLES)(encoders)


def encoders(
    action: Annotated[str | None, typer.Argument(metavar="[show]", help="show: describe one encoder.")] = None,
    ref: Annotated[str | None, typer.Argument(metavar="[REF]", help="family:name, or an encoder file.")] = None,
    weights: Annotated[str | None, typer.Option("--weights", help="Local weights of the encoder to show.")] = None,
    layer: Annotated[str | None, typer.Option("--layer", help="Show it with this layer's output as vector.")] = None,
    pooling: Annotated[str | None, typer.Option("--pooling", help="Show it with this pooling.")] = None,
    as_json: output.AsJson = False,
) -> None:
    """List the encoders that are known by name, or show one: its size, work, weights and layers."""
    from embedx.core.errors import UsageError
    from embedx.encoders.registry import iterate_listed, list_layers, open_encoder, parse_ref

    if action is None:
        listed = list(iterate_listed())
        lines = (f"{entry['ref']:<60} {entry['modality']:<6} {entry['dim'] or ''}" for entry in listed)
        output.show_report({"encoders": listed}, as_json, lines)
        return
    if action != "show" or ref is None:
        raise UsageError(
            f"embedx encoders {action} {ref or ''}".rstrip() + " is no command", "embedx encoders show REF"
        )
    spec = parse_ref(ref, weights, layer, pooling)
    card = open_encoder(spec).card.to_dict()
    shown = {key: value for key, value in card.items() if key != "spec"} | {"layers": list_layers(spec)}
    output.show_report({"encoder": shown}, as_json, _describe(shown))


def _describe(shown: dict[str, Any]) -> Iterator[str]:
    unit = "token" if shown["modality"] == "text" else "image"
    facts = {
        "encoder": shown["ref"],
        "modality": shown["modality"],
        "dim": f"{shown['dim']}{', of length 1' if shown['normalized'] else ''}",
        "layer": _cut(shown["identity"]),
        # A remote encoder's size is unknown, and its work a guess that only cuts shards.
        "parameters": f"{shown['parameters'] / 1e6:,.1f} million" if shown["parameters"] else "",
        "work": f"{shown['flops'] / 1e9:,.3g} GFLOPs per {unit}" if shown["parameters"] else "",
        "input": _input(shown["input"]),
        "licence": shown["licence"] or "unknown",
        "weights": shown["weights_from"],
        "fingerprint": shown["fingerprint"],
        "space": shown["space"],
        "layers": _layers(shown["layers"]),
    }
    for name, text in facts.items():
        if text:
            yield f"{name:<12} {text}"


def _cut(identity: dict[str, Any]) -> str:
    layer, pooling = str(identity.get("layer", "")), str(identity.get("pooling", ""))
    return layer if pooling in ("", "none") else f"{layer}, pooled: {pooling}"


def _input(described: dict[str, Any]) -> str:
    if size := described.get("size"):
        return " x ".join(map(str, size)) + " pixels"
    tokens = described.get("max_tokens")
    return f"up to {tokens} tokens" if tokens else "texts of any length"


def _layers(names: list[str]) -> str:
    outermost = [name for name in names if "." not in name]
    shown = ", ".join(outermost[:SHOWN_LAYERS])
    left = len(names) - len(outermost[:SHOWN_LAYERS])
    return f"{shown}; {left:,} more in --json" if left else shown
