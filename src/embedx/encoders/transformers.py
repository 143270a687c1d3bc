"""Encoders of `transformers:<name or folder>`: text and vision models of the Hugging Face transformers library."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from embedx.core.contracts import Encoder
from embedx.core.errors import EncoderError, UsageError
from embedx.core.specs import EncoderSpec
from embedx.encoders.cards import KnownCard
from embedx.encoders.model_folder import config_identity, find_folder, folder_state, read_json, weights_files
from embedx.encoders.text import open_text_encoder, text_card
from embedx.encoders.vision import ImageFeatures, canonical_pooling, open_image_encoder
from embedx.encoders.weights import safetensors_facts

RECIPE = 1
"""Raise when the code below changes vectors; it is part of the fingerprint."""

POOLINGS = ("cls", "mean", "max", "last")
"""How the token vectors of a text become one; `last` is the last real token, for models that read left to right."""

DECODER_MAX_TOKENS = 512
"""Tokens that a decoder reads of a text unless model_args say more: their configurations promise up to millions."""

PACKAGES = ("transformers", "tokenizers")


def open_encoder(spec: EncoderSpec) -> Encoder:
    """Open a model by the path of its folder, or by its name on the Hugging Face hub.

    A folder with an image processor is an image encoder, any other one a text encoder. Texts: the mean over the
    tokens, of decoders the last token. Images: the class token of ViT and DINO, the features that CLIP and SigLIP
    compare with texts, else what the library calls `pooler_output`.

    Raises:
        EncoderError: the model is not found, is of a kind that embedx does not run, or needs foreign code.
        UsageError: a layer, pooling or model_args that the model does not have.
    """
    folder = find_folder(spec)
    if spec.truncate_dim is not None:
        raise UsageError(
            f"{spec.ref} takes no truncate_dim: its vectors were not trained to be cut",
            "Leave it out, or use a sentence_transformers model that was",
        )
    processors = ("preprocessor_config.json", "processor_config.json")
    if any((folder / name).is_file() for name in processors):
        return _open_images(spec, folder)
    if spec.preprocess != EncoderSpec("").preprocess:
        raise UsageError(f"{spec.ref} reads texts: preprocess has no effect", "Leave it out")
    return open_text_encoder(
        spec, folder, PACKAGES, lambda given: _describe_text(given, folder), _load_text, _load_texts_together
    )


def list_encoders() -> list[dict[str, Any]]:
    """Return a few well-known models; any other name or folder works as well."""
    known = [
        ("bert-base-uncased", "text", 768),
        ("FacebookAI/roberta-base", "text", 768),
        ("FacebookAI/xlm-roberta-base", "text", 768),
        ("openai-community/gpt2", "text", 768),
        ("google-t5/t5-base", "text", 768),
        ("facebook/dinov2-base", "image", 768),
        ("google/vit-base-patch16-224-in21k", "image", 768),
        ("google/siglip-base-patch16-224", "image", 768),
        ("openai/clip-vit-base-patch32", "image", 512),
    ]
    return [
        {"ref": f"transformers:{name}", "family": "transformers", "modality": modality, "dim": dim}
        for name, modality, dim in known
    ]


def parse_layers(layer: str | None, ref: str) -> tuple[int, ...]:
    """Read `-2` or `-1,-2,-3,-4`: hidden states to average, counted from the end; none is the last, normalised one.

    Raises:
        UsageError: anything else.
    """
    if layer is None:
        return ()
    if not re.fullmatch(r"-[1-9]\d*(\s*,\s*-[1-9]\d*)*", layer):
        raise UsageError(
            f"--layer {layer!r} of {ref} is no hidden state", "Pass -1 (the last one) to -n, or several: -1,-2,-3,-4"
        )
    return tuple(sorted({int(part) for part in layer.split(",")}, reverse=True))


def _check_layers(layers: tuple[int, ...], n_layers: int, ref: str) -> None:
    if layers and -min(layers) > n_layers:
        raise UsageError(f"--layer {min(layers)}: {ref} has {n_layers} layers", f"Pass -1 to -{n_layers}")


def _describe_text(spec: EncoderSpec, folder: Path) -> KnownCard:
    from embedx.encoders.tokenization import library_tokenizer
    from embedx.encoders.transformers_modules import has_lone_encoder, is_decoder, load_config

    config = load_config(folder)
    if config.sub_configs:
        raise EncoderError(f"{folder} is a model of several modalities ({config.model_type})", "Use its text model")
    layers = parse_layers(spec.layer, spec.ref)
    _check_layers(layers, config.num_hidden_layers, spec.ref)
    pooling = spec.pooling or ("last" if is_decoder(config) else "mean")
    if pooling not in POOLINGS:
        raise UsageError(f"--pooling {pooling!r} of {spec.ref} is unknown", f"Pass one of: {', '.join(POOLINGS)}")
    tokenizer = library_tokenizer(folder)
    tokenizer = replace(
        tokenizer,
        max_tokens=_max_tokens(spec, config, tokenizer.max_tokens),
        pad_id=tokenizer.pad_id if config.pad_token_id is None else config.pad_token_id,
    )
    files = weights_files(folder)
    facts = safetensors_facts(files, ("decoder.", "lm_head.") if has_lone_encoder(config) else ())
    identity = {
        "recipe": ["transformers", RECIPE],
        "tensors": facts.digest,
        "config": config_identity(read_json(folder / "config.json")),
        "layer": list(layers or (-1,)),  # a text model's last hidden state has passed its final normalisation
        "pooling": pooling,
        "tokenizer": tokenizer.digest,
        "max_tokens": tokenizer.max_tokens,
    }
    card = text_card(
        spec,
        identity,
        spec.prompt or "",
        dim=config.hidden_size,
        normalized=False,
        flops=facts.flops_per_token(),
        parameters=facts.parameters,
        input={"max_tokens": tokenizer.max_tokens},
        weights_from=str(folder),
    )
    recipe = {"tokenizer": asdict(tokenizer), "layers": list(layers)}
    return KnownCard(card, files[0], recipe)


def _max_tokens(spec: EncoderSpec, config: Any, of_tokenizer: int | None) -> int:
    from embedx.encoders.transformers_modules import is_decoder, position_limit

    unknown = sorted(set(spec.model_args) - {"max_tokens"})
    if unknown:
        raise UsageError(f"{spec.ref} takes no model_args {', '.join(unknown)}", "Known: max_tokens")
    known = [limit for limit in (of_tokenizer, position_limit(config)) if limit is not None]
    asked = spec.model_args.get("max_tokens")
    if asked is None:
        usual = [DECODER_MAX_TOKENS] if is_decoder(config) or not known else []
        return min(known + usual)
    if not isinstance(asked, int) or asked < 1 or asked > min(known, default=asked):
        most = f" to {min(known)}" if known else " on"
        raise UsageError(f"max_tokens = {asked!r} of {spec.ref} is not possible", f"Pass a number from 1{most}")
    return asked


def _load_text(known: KnownCard) -> Any:
    from embedx.encoders.transformers_modules import TextVectors, load_text_model

    identity = known.card.identity
    model = load_text_model(Path(known.card.weights_from), identity["max_tokens"])
    return TextVectors(model, known.recipe["layers"], identity["pooling"])


def _load_texts_together(known: Sequence[KnownCard]) -> Any:
    from embedx.encoders.transformers_modules import SeveralTextVectors, load_text_model

    first = known[0].card
    model = load_text_model(Path(first.weights_from), first.identity["max_tokens"])
    return SeveralTextVectors(model, [(one.recipe["layers"], one.card.identity["pooling"]) for one in known])


def _open_images(spec: EncoderSpec, folder: Path) -> Encoder:
    for name in ("prompt", "model_args"):
        if getattr(spec, name):
            raise UsageError(f"{spec.ref} reads images: {name} has no effect", "Leave it out")
    weights = str(weights_files(folder)[0])
    return open_image_encoder(
        replace(spec, weights=weights), PACKAGES, load_features, load_together, folder_state(folder)
    )


def load_together(specs: Sequence[EncoderSpec]) -> Any:
    """Build one image model for several layers and poolings; yields their vectors side by side. Imports torch."""
    from embedx.encoders.transformers_images import VectorOf, load_image_modules, load_transform

    folder = Path(str(specs[0].weights)).parent
    size = load_transform(folder).with_overrides(specs[0].preprocess).crop
    wanted = [VectorOf(parse_layers(spec.layer, spec.ref), canonical_pooling(spec.pooling)) for spec in specs]
    return load_image_modules(folder, wanted, size, specs[0].ref)


def load_features(spec: EncoderSpec) -> ImageFeatures:
    """Build an image model with its weights. Imports torch."""
    from embedx.encoders.transformers_images import load_image_module, load_transform

    weights = Path(str(spec.weights))
    folder = weights.parent
    raw = read_json(folder / "config.json")
    layers = parse_layers(spec.layer, spec.ref)
    transform = load_transform(folder).with_overrides(spec.preprocess)
    module, pooling = load_image_module(folder, layers, canonical_pooling(spec.pooling), transform.crop, spec.ref)
    return ImageFeatures(
        module=module,
        transform=transform,
        architecture=f"transformers:{raw.get('model_type')}",
        model_args={"config": config_identity(raw)},
        layer=spec.layer or "last",
        pooling=pooling,
        weights_file=weights,
    )
