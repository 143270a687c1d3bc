"""Small open_clip models as folders, which the real command line opens as `open_clip:local-dir:FOLDER`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SMALL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
"""A CLIP whose towers take milliseconds."""


def save_model(folder: Path, config: dict[str, Any] = SMALL, seed: int = 0, preprocess: dict | None = None) -> Any:
    """Save a seeded random model as a folder of open_clip; returns the library's model of it, in eval mode."""
    import open_clip
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess or {}}))
    torch.manual_seed(seed)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False).eval()
    save_weights(model.state_dict(), folder)
    return model


def save_weights(state: dict[str, Any], folder: Path, name: str = "open_clip_model.safetensors") -> Path:
    from safetensors.torch import save_file

    save_file({key: tensor.clone().contiguous() for key, tensor in state.items()}, folder / name)
    return folder / name
