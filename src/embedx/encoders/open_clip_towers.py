"""The torch side of open_clip's encoders: one tower of a model, with its own weights only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import open_clip
import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.model import (
    CLIPTextCfg,
    CLIPVisionCfg,
    _build_text_tower,
    _build_vision_tower,
    convert_to_custom_text_state_dict,
    resize_pos_embed,
    resize_text_pos_embed,
)
from open_clip.transformer import TextTransformer, text_global_pool
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from embedx.core.digests import tensors_digest
from embedx.core.errors import EncoderError
from embedx.encoders.checkpoints import fit_state_dict, read_state_dict
from embedx.encoders.image_module import Measured, measured
from embedx.encoders.model_folder import config_identity

State = dict[str, torch.Tensor]

IMAGE, TEXT = "visual.", "text."
"""How the names of a tower's tensors begin."""

_TRAINING_ONLY = ("patch_dropout", "timm_drop", "timm_drop_path", "timm_model_pretrained", "hf_model_pretrained")
_NAMES = ("hf_model_name", "hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs")
_NOT_THE_GRAPH = (*_TRAINING_ONLY, *_NAMES, "output_tokens")


def tower_identity(config: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Return what a model's configuration says of one tower's graph.

    Without what is open_clip's default, what only training uses, and names, which differ between machines.

    Args:
        config: a model's configuration, as in open_clip's model_configs.
        part: `vision_cfg` or `text_cfg`.
    """
    own = asdict(_tower_config(config, part))
    defaults = asdict(_KINDS[part][0]())
    said = {name: value for name, value in own.items() if value != defaults[name] and name not in _NOT_THE_GRAPH}
    return {"embed_dim": config["embed_dim"], "quick_gelu": bool(config.get("quick_gelu", False)), part: said}


def _tower_config(config: Mapping[str, Any], part: str) -> Any:
    # Nothing is fetched while a tower is built: its weights come from the checkpoint. Of CoCa's two outputs
    # the vector is the first, and the only one without `output_tokens`.
    kind, fetched = _KINDS[part]
    try:
        return kind(**{**config[part], fetched: False, "output_tokens": False})
    except TypeError as error:
        raise EncoderError(
            f"{part} of the model says what open_clip {open_clip.__version__} does not know ({error})",
            "Upgrade open_clip_torch, or mend open_clip_config.json",
        ) from error


_KINDS: dict[str, tuple[type, str]] = {
    "vision_cfg": (CLIPVisionCfg, "timm_model_pretrained"),
    "text_cfg": (CLIPTextCfg, "hf_model_pretrained"),
}
"""Parts of a configuration: their class, and the field that would fetch other weights."""


def read_checkpoint(path: Path) -> State:
    """Read the weights of both towers, named as in open_clip's `CustomTextCLIP`, in float32.

    Raises:
        EncoderError: the file is no checkpoint, needs code to run, or holds no two towers.
    """
    state = convert_to_custom_text_state_dict(read_state_dict(path))
    if not all(any(name.startswith(tower) for name in state) for tower in (IMAGE, TEXT)):
        raise EncoderError(
            f"{path} holds no open_clip model: no tensor of {IMAGE}* or of {TEXT}*, but e.g. {next(iter(state))}",
            "Pass a checkpoint of open_clip's training, or its open_clip_model.safetensors",
        )
    return {name: tensor.float() for name, tensor in state.items() if name.startswith((IMAGE, TEXT))}


def towers_digest(state: State) -> str:
    """Return the sha256 over the tensors of both towers, as `read_checkpoint` gives them."""
    used = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    return tensors_digest((name, tensor.numpy()) for name, tensor in used.items())


def build_image_tower(config: Mapping[str, Any], state: State, what: str) -> nn.Module:
    """Build the image tower.

    Args:
        config: the model's configuration.
        state: weights, from `read_checkpoint`.
        what: what to call file and model in messages, `FILE for REF`.

    Returns:
        A frozen module in eval mode: normalised (n, 3, height, width) float32 -> (n, dim) of length 1. Its
        `tower.image_size` is the size of its images.

    Raises:
        EncoderError: the weights do not fit.
    """
    settings = _tower_config(config, "vision_cfg")
    tower = _built(_build_vision_tower, config, settings, what)
    state = dict(state)
    resize_pos_embed(state, SimpleNamespace(visual=tower))
    _fit(tower, state, IMAGE, what)
    if settings.timm_model_name:
        # timm builds its models in their published size; as in open_clip, the weights are resized after loading.
        _resize_timm(tower, settings.image_size)
    return UnitVectors(tower).eval().requires_grad_(False)


def _resize_timm(tower: Any, size: Any) -> None:
    patches = getattr(tower.trunk, "patch_embed", None)
    if getattr(patches, "img_size", None) not in (None, tuple(tower.image_size)):
        tower.set_input_size(size)


def build_text_tower(config: Mapping[str, Any], state: State, what: str) -> nn.Module:
    """Build the text tower.

    Args:
        config: the model's configuration.
        state: weights, from `read_checkpoint`.
        what: what to call file and model in messages, `FILE for REF`.

    Returns:
        A frozen module in eval mode: input_ids (n, tokens) int64 -> (n, dim) of length 1.

    Raises:
        EncoderError: the weights do not fit, or the configuration of a transformers model is not here.
    """
    settings = _tower_config(config, "text_cfg")
    tower = _built(_build_text_tower, config, settings, what)
    state = dict(state)
    resize_text_pos_embed(state, SimpleNamespace(text=tower))
    _fit(tower, state, TEXT, what)
    return UnitVectors(CausalTower(tower) if is_causal(tower) else tower).eval().requires_grad_(False)


def _built(build: Callable[..., Any], config: Mapping[str, Any], settings: Any, what: str) -> Any:
    try:
        return build(config["embed_dim"], settings, config.get("quick_gelu", False))
    except OSError as error:  # transformers, whose configurations are not part of open_clip
        raise EncoderError(
            f"the configuration of {settings.hf_model_name}, which {what} builds on, is not on this machine",
            f"Fetch it where there is a network: hf download {settings.hf_model_name} config.json",
        ) from error
    except (TypeError, ValueError, AssertionError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise EncoderError(f"open_clip cannot build {what}: {reason}", "Check its configuration") from error


def _fit(tower: nn.Module, state: State, prefix: str, what: str) -> None:
    own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    # A buffer that transformers saved until its version 4.31.
    fit_state_dict(tower, own, ["transformer.embeddings.position_ids"], what)


def is_causal(tower: nn.Module) -> bool:
    """Whether tokens after the end-of-text token cannot change a text's vector, so that they need no computing."""
    return (
        isinstance(tower, TextTransformer)
        and tower.attn_mask is not None
        and tower.cls_emb is None  # CoCa's class token stands after the padding, at a fixed position
        and tower.pool_type in ("argmax", "eos")
    )


def harmless_pad(module: nn.Module) -> int | None:
    """Return the token whose repetition behind a text changes nothing; None where the tower reads its padding.

    Args:
        module: from `build_text_tower`.
    """
    tower = module.tower
    if isinstance(tower, CausalTower):
        return 0  # never the end-of-text token, which is the highest (argmax) or named (eos)
    return tower.config.pad_token_id if isinstance(tower, HFTextEncoder) else None


def transformers_config(module: nn.Module) -> dict[str, Any]:
    """Return what changes the vectors of the configuration of a text tower made by transformers; else nothing."""
    tower = module.tower
    return config_identity(tower.config.to_diff_dict()) if isinstance(tower, HFTextEncoder) else {}


def measure_text(module: nn.Module, context: int) -> Measured:
    """Return the facts of a text tower; operations are those of one token in a text of full length."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        output = module(torch.ones(1, context, dtype=torch.int64))
    return measured(module, output, counter.get_total_flops() / context)


class UnitVectors(nn.Module):
    """A tower whose vectors have length 1: `encode_image` and `encode_text` with `normalize=True`."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return (n, dim); the argument is the tower's, images or token ids."""
        return functional.normalize(self.tower(input_ids).float(), dim=-1)


class CausalTower(nn.Module):
    """A causal text tower on texts shorter than its context.

    open_clip always computes all 77 positions. With a causal mask a token sees only what stands before it, and
    the vector is taken at the end-of-text token: what stands after it has no effect.
    """

    def __init__(self, tower: TextTransformer) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return (n, dim) of (n, tokens) int64 ids; `TextTransformer.forward` with a mask cut to the tokens."""
        tower, length = self.tower, input_ids.shape[1]
        hidden = tower.token_embedding(input_ids) + tower.positional_embedding[:length]
        hidden = tower.ln_final(tower.transformer(hidden, attn_mask=tower.attn_mask[:length, :length]))
        pooled = text_global_pool(hidden, input_ids, tower.pool_type, eos_token_id=tower.eos_id)
        if tower.text_projection is None:
            return pooled
        if isinstance(tower.text_projection, nn.Linear):
            return tower.text_projection(pooled)
        return pooled @ tower.text_projection
