"""Where an open_clip model comes from: its registry, the Hugging Face hub or a folder. Imports open_clip."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
from open_clip.factory import _find_checkpoint_in_dir
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH

from embedx.core.errors import EncoderError, UsageError
from embedx.core.specs import EncoderSpec
from embedx.encoders.checkpoints import fetch_from_hub, fetch_once, find_in_hub_cache
from embedx.encoders.open_clip import FOLDER, HUB

CONFIG_FILE = "open_clip_config.json"


@dataclass(frozen=True)
class Source:
    """Configuration and weights of a model.

    Attributes:
        config: as in open_clip's model_configs.
        preprocess: what is said of the images' preprocessing; the rest is open_clip's default.
        weights_file: the weights of both towers.
        tokenizer: folder or repository of the tokenizer; None is open_clip's own.
    """

    config: dict[str, Any]
    preprocess: dict[str, Any]
    weights_file: Path
    tokenizer: str | None

    @property
    def context(self) -> int:
        """How many tokens the text tower reads."""
        return int(self.config["text_cfg"].get("context_length") or DEFAULT_CONTEXT_LENGTH)


def find_source(name: str, spec: EncoderSpec) -> Source:
    """Find a model.

    Args:
        name: the spec's name without its tower.
        spec: says weights and model_args.

    Raises:
        EncoderError: configuration or weights are not on this machine and cannot be fetched.
        UsageError: the weights were trained with another activation than the architecture has.
    """
    if name.startswith(FOLDER):
        return _in_folder(Path(name.removeprefix(FOLDER)).expanduser(), spec)
    if name.startswith(HUB):
        return _on_hub(name.removeprefix(HUB), spec)
    architecture, _, tag = name.partition("/")
    config = with_model_args(open_clip.get_model_config(architecture), spec.model_args)
    published = open_clip.get_pretrained_cfg(architecture, tag) if tag else {}
    if published.get("quick_gelu") and not config.get("quick_gelu"):
        raise UsageError(
            f"the weights {tag!r} of {architecture} were trained with QuickGELU, which {architecture} has not",
            f"Use open_clip:{architecture}-quickgelu/{tag}",
        )
    path = Path(spec.weights) if spec.weights else _published_file(published, spec)
    return Source(config, published, path, config["text_cfg"].get("hf_tokenizer_name"))


def with_model_args(config: Mapping[str, Any], model_args: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with the arguments that `open_clip.create_model` would put into it."""
    changed: dict[str, Any] = deepcopy(dict(config))
    if "force_image_size" in model_args:
        changed["vision_cfg"]["image_size"] = model_args["force_image_size"]
    if "force_context_length" in model_args:
        changed["text_cfg"]["context_length"] = model_args["force_context_length"]
    if model_args.get("force_quick_gelu"):
        changed["quick_gelu"] = True
    return changed


def _published_file(published: Mapping[str, Any], spec: EncoderSpec) -> Path:
    """Find published weights where open_clip keeps them, or download them."""
    url, hub = published.get("url", ""), published.get("hf_hub", "")
    repo, filename = os.path.split(hub)
    names = _hub_names(filename or "open_clip_pytorch_model.bin")
    if hub and (found := find_in_hub_cache(repo, names)):
        return found
    # OpenAI's own files are TorchScript, which is code; those on the hub are not.
    cached = Path("~/.cache/clip").expanduser() / os.path.basename(url)
    if url and "openaipublic" not in url and (cached.is_file() or not hub):
        return fetch_once(url, cached, spec.ref)
    return fetch_from_hub(repo, names, spec.ref)


def _hub_names(filename: str) -> list[str]:
    safe = str(Path(filename).with_suffix(".safetensors"))
    if filename == "open_clip_pytorch_model.bin":
        safe = "open_clip_model.safetensors"
    return list(dict.fromkeys((safe, filename)))


def _on_hub(repo: str, spec: EncoderSpec) -> Source:
    try:
        said = _read_config(fetch_from_hub(repo, [CONFIG_FILE], spec.ref))
        names = _hub_names("open_clip_pytorch_model.bin")
        path = Path(spec.weights) if spec.weights else fetch_from_hub(repo, names, spec.ref)
    except EncoderError as error:
        raise EncoderError(
            error.message,
            f"Run `hf download {repo} --local-dir FOLDER` where there is a network, and use open_clip:{FOLDER}FOLDER",
        ) from error
    config = with_model_args(said["model_cfg"], spec.model_args)
    return Source(config, said.get("preprocess_cfg") or {}, path, config["text_cfg"].get("hf_tokenizer_name"))


def _in_folder(folder: Path, spec: EncoderSpec) -> Source:
    said = _read_config(folder / CONFIG_FILE)
    path = spec.weights or _find_checkpoint_in_dir(folder)
    if path is None:
        raise EncoderError(
            f"{folder} holds no weights", "Put open_clip_model.safetensors in it, or pass --weights FILE"
        )
    config = with_model_args(said["model_cfg"], spec.model_args)
    tokenizer = str(folder) if config["text_cfg"].get("hf_tokenizer_name") else None
    return Source(config, said.get("preprocess_cfg") or {}, Path(path), tokenizer)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in said["model_cfg"]]
    except FileNotFoundError:
        raise EncoderError(f"{path} is missing", "Pass a folder as open_clip's save or the hub has it") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EncoderError(f"{path} is no configuration of open_clip ({error})", "Fetch it again") from error
    if missing:
        raise EncoderError(f"{path} says no {', '.join(missing)} in model_cfg", "Fetch it again")
    return said
