"""Encoders of `open_clip:<name>`: the image tower of a model; with `#text` behind the name, its text tower.

Vectors have length 1, as in open_clip's own examples, so that an inner product is the cosine the model was
trained with. Both towers of one model share a `space`: vectors of the one can be searched with the other.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedx.core.contracts import Encoder, EncoderCard
from embedx.core.digests import fingerprint
from embedx.core.errors import EncoderError, UnknownEncoderError, UsageError
from embedx.core.paths import cached_json, remember_json
from embedx.core.specs import EncoderSpec, PreprocessSpec
from embedx.encoders.cards import KnownCard, open_card
from embedx.encoders.clip_tokenizer import ClipTokenizer
from embedx.encoders.model_folder import folder_state
from embedx.encoders.text import TextEncoder
from embedx.encoders.tokenization import TextTokenizer
from embedx.encoders.vision import ImageEncoder, ImageTransform

if TYPE_CHECKING:
    from embedx.encoders.image_module import Measured
    from embedx.encoders.open_clip_source import Source
    from embedx.encoders.open_clip_towers import State

HUB, FOLDER = "hf-hub:", "local-dir:"
"""open_clip's own prefixes: a repository of the Hugging Face hub, a folder; both with open_clip_config.json."""

MODEL_ARGS = ("force_image_size", "force_context_length", "force_quick_gelu")
"""Arguments of `open_clip.create_model` that are understood."""

TEXT = "#text"
"""Behind a model's name: its text tower."""


def open_encoder(spec: EncoderSpec) -> Encoder:
    """Open one tower of an open_clip model.

    The name is `ARCH/TAG` with a tag of published weights, `ARCH` with `--weights CHECKPOINT`,
    `hf-hub:ORG/REPOSITORY` or `local-dir:FOLDER`; `#text` behind it names the text tower. Preprocessing is that
    of the tag or the configuration file, else open_clip's default, as in `create_model_and_transforms`.

    Raises:
        UnknownEncoderError: open_clip has no such architecture or tag.
        EncoderError: weights, configuration or tokenizer are missing or do not fit.
        UsageError: an option that the tower does not take.
    """
    is_text = spec.name.endswith(TEXT)
    _check_options(spec, is_text)
    name = spec.name.removesuffix(TEXT)
    _check_name(name, spec)
    folder = None
    if name.startswith(FOLDER):
        path = Path(name.removeprefix(FOLDER)).expanduser().absolute()
        folder = folder_state(path)
        # Absolute, so that a worker with another current folder finds it.
        spec = replace(spec, name=f"{FOLDER}{path}{TEXT if is_text else ''}")
    if is_text:
        return _open_text(open_card(spec, ["open_clip_torch", "transformers"], _describe_text, folder))
    return _open_image(open_card(spec, ["open_clip_torch", "timm"], _describe_image, folder))


def list_encoders() -> list[dict[str, Any]]:
    """Return `{ref, family, modality, dim}` of both towers of all published weights."""
    names = _names()
    return [
        {
            "ref": f"open_clip:{name}/{tag}{tower}",
            "family": "open_clip",
            "modality": modality,
            "dim": names["dims"][name],
        }
        for name, tags in names["tags"].items()
        for tag in tags
        for tower, modality in (("", "image"), (TEXT, "text"))
    ]


def _names() -> dict[str, Any]:
    """Return open_clip's architectures with their vectors' length, and the tags of the published weights."""
    key = ["open_clip", version("open_clip_torch")]
    names: dict[str, Any] | None = cached_json("names", key)
    if names is None:
        import open_clip

        dims = {name: open_clip.get_model_config(name)["embed_dim"] for name in open_clip.list_models()}
        names = {"dims": dims, "tags": {name: open_clip.list_pretrained_tags_by_model(name) for name in dims}}
        remember_json("names", key, names)
    return names


def _check_options(spec: EncoderSpec, is_text: bool) -> None:
    if spec.layer or spec.pooling:
        raise UsageError(
            f"{spec.ref} takes no layer or pooling: its vector is the one that the towers were trained to share",
            "Leave the option out; other layers of many image towers are in timm",
        )
    if spec.truncate_dim is not None:
        raise UsageError(f"{spec.ref} was not trained for truncated vectors", "Leave truncate_dim out")
    if is_text and spec.preprocess != PreprocessSpec():
        raise UsageError(f"{spec.ref} reads texts: preprocess is for images", "Leave it out")
    if not is_text and spec.prompt is not None:
        raise UsageError(f"{spec.ref} reads images: a prompt is for texts", f"Use {spec.ref}{TEXT}, or leave it out")
    for argument in spec.model_args:
        if argument not in MODEL_ARGS:
            raise UsageError(f"model_args of {spec.ref}: {argument} is unknown", f"Known: {', '.join(MODEL_ARGS)}")


def _check_name(name: str, spec: EncoderSpec) -> None:
    if name.startswith((HUB, FOLDER)):
        return
    architecture, _, tag = name.partition("/")
    names = _names()
    if architecture not in names["dims"]:
        near = difflib.get_close_matches(architecture, names["dims"], n=3)
        hint = f"Did you mean {' or '.join(near)}?" if near else "`embedx encoders` lists them all"
        raise UnknownEncoderError(
            f"open_clip has no architecture {architecture!r}",
            f"{hint} A configuration of your own is open_clip:{FOLDER}FOLDER with open_clip_config.json",
        )
    tags = names["tags"][architecture]
    published = f"Its weights are {', '.join(tags)}" if tags else "open_clip publishes none: pass --weights CHECKPOINT"
    if tag and _clean_tag(tag) not in tags:
        near = difflib.get_close_matches(_clean_tag(tag), tags, n=2)
        hint = f"Did you mean {' or '.join(near)}? {published}" if near else published
        raise UnknownEncoderError(f"open_clip has no weights {tag!r} of {architecture}", hint)
    if not tag and spec.weights is None:
        raise UsageError(f"{spec.ref} names no weights", f"Write open_clip:{architecture}/TAG. {published}")


def _clean_tag(tag: str) -> str:
    # As open_clip does.
    return tag.lower().replace("-", "_")


class TowerTextEncoder(TextEncoder):
    """A text tower: it tells end and padding of a text from the token ids themselves."""

    def collate(self, entries: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Pad token ids to the longest text of the batch: input_ids (n, tokens) int64."""
        return {"input_ids": super().collate(entries)["input_ids"]}


def _open_image(known: KnownCard) -> ImageEncoder:
    def load() -> Any:
        from embedx.encoders.open_clip_towers import build_image_tower, read_checkpoint

        known.check_weights()
        state = read_checkpoint(known.weights_file)
        return build_image_tower(known.recipe["config"], state, _what(known.weights_file, known.card.ref))

    return ImageEncoder(known.card, load)


def _open_text(known: KnownCard) -> TowerTextEncoder:
    def load() -> Any:
        from embedx.encoders.open_clip_towers import build_text_tower, read_checkpoint

        known.check_weights()
        state = read_checkpoint(known.weights_file)
        return build_text_tower(known.recipe["config"], state, _what(known.weights_file, known.card.ref))

    tokenizer = dict(known.recipe["tokenizer"])
    tokenize = ClipTokenizer(**{**tokenizer, "tokenizer": TextTokenizer(**tokenizer["tokenizer"])})
    return TowerTextEncoder(
        known.card, tokenize, load, prompt=known.card.spec["prompt"] or "", pad_id=known.recipe["pad_id"]
    )


def _what(path: Path, ref: str) -> str:
    return f"{path} for {ref}"


def _describe_image(spec: EncoderSpec) -> KnownCard:
    from embedx.encoders import open_clip_towers as towers
    from embedx.encoders.image_module import measure
    from embedx.encoders.open_clip_source import find_source

    source = find_source(spec.name, spec)
    state = towers.read_checkpoint(source.weights_file)
    module = towers.build_image_tower(source.config, state, _what(source.weights_file, spec.ref))
    transform = _transform(source.preprocess, module.tower.image_size, spec)
    measured = measure(module, transform.crop, spec.ref)
    identity = {
        "architecture": towers.tower_identity(source.config, "vision_cfg"),
        "preprocessing": transform.to_dict(),
        "normalized": True,
        "tensors": measured.digest,
    }
    card = _card(
        spec,
        identity,
        measured,
        modality="image",
        input={"size": [3, *transform.crop]},
        weights_from=str(source.weights_file),
        space=_space(source, state),
        queries={"text": replace(spec, name=spec.name + TEXT, preprocess=PreprocessSpec()).to_dict()},
    )
    return KnownCard(card, source.weights_file, {"config": source.config})


def _describe_text(spec: EncoderSpec) -> KnownCard:
    from embedx.encoders import open_clip_towers as towers
    from embedx.encoders.open_clip_source import find_source
    from embedx.encoders.open_clip_text import describe_tokenizer

    name = spec.name.removesuffix(TEXT)
    source = find_source(name, spec)
    tokenizer, tokenizer_digest = describe_tokenizer(source, spec.ref)
    state = towers.read_checkpoint(source.weights_file)
    module = towers.build_text_tower(source.config, state, _what(source.weights_file, spec.ref))
    measured = towers.measure_text(module, source.context)
    pad_id = towers.harmless_pad(module)
    if pad_id is None:
        tokenizer = replace(tokenizer, pad_to=source.context)
    identity = {
        "architecture": towers.tower_identity(source.config, "text_cfg"),
        "transformer": towers.transformers_config(module),
        "tokenizer": tokenizer_digest,
        "prompt": spec.prompt or "",
        "normalized": True,
        "tensors": measured.digest,
    }
    card = _card(
        spec,
        identity,
        measured,
        modality="text",
        input={"max_tokens": source.context},
        weights_from=str(source.weights_file),
        space=_space(source, state),
        queries={"image": replace(spec, name=name, prompt=None).to_dict()},
    )
    recipe = {"config": source.config, "tokenizer": asdict(tokenizer), "pad_id": pad_id or 0}
    return KnownCard(card, source.weights_file, recipe)


def _card(spec: EncoderSpec, identity: dict[str, Any], measured: Measured, **facts: Any) -> EncoderCard:
    """Return a tower's card: what both towers say alike, and the facts that differ."""
    return EncoderCard(
        ref=spec.ref,
        family=spec.family,
        dim=measured.dim,
        fingerprint=fingerprint(identity),
        identity=identity,
        spec=spec.to_dict(),
        normalized=True,
        flops=measured.flops,
        parameters=measured.parameters,
        **facts,
    )


def _transform(said: dict[str, Any], size: Any, spec: EncoderSpec) -> ImageTransform:
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    config = PreprocessCfg(**merge_preprocess_dict(PreprocessCfg(), said))
    height, width = (size, size) if isinstance(size, int) else size
    if config.resize_mode == "longest" and config.fill_color != 0:
        raise EncoderError(
            f"{spec.ref} fills images up with the colour {config.fill_color}, and embedx with black only",
            "Use another model",
        )
    # open_clip's own rules: `random` is for training, and covering a size that is not square is always bicubic.
    is_bilinear = config.interpolation == "bilinear" and (height == width or config.resize_mode != "shortest")
    return ImageTransform(
        resize=(height, width),
        crop=(height, width),
        interpolation="bilinear" if is_bilinear else "bicubic",
        mean=tuple(config.mean),
        std=tuple(config.std),
        squash=config.resize_mode == "squash",
        longest=config.resize_mode == "longest",
    ).with_overrides(spec.preprocess)


def _space(source: Source, state: State) -> str:
    """Return what the two towers of a model have in common with each other and with no other model."""
    from embedx.encoders.open_clip_towers import tower_identity, towers_digest

    towers = [tower_identity(source.config, part) for part in ("vision_cfg", "text_cfg")]
    return fingerprint([*towers, towers_digest(state)])
