"""Folders of models as the Hugging Face libraries save them: found or fetched, and read. Never imports torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from embedx.core.digests import stat_token
from embedx.core.errors import EncoderError
from embedx.core.specs import EncoderSpec

WANTED = ["*.json", "*.safetensors", "*/*.json", "*/*.safetensors", "*.txt", "*.model"]
"""What is fetched of a repository: configurations, tokenizers and safetensors; no pickles and no code."""

COSMETIC = (
    *("_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures", "use_cache", "auto_map"),
    *("id2label", "label2id", "problem_type", "task_specific_params", "finetuning_task", "gradient_checkpointing"),
)
"""Keys of config.json that do not change vectors."""


def find_folder(spec: EncoderSpec, organisation: str = "") -> Path:
    """Return the folder of a model that is named by its path, by `--weights`, or by its name on the hub.

    Args:
        spec: which model; its weights may be a folder, or a file in it.
        organisation: where names without an owner live on the hub.

    Raises:
        EncoderError: there is no such folder, or it is neither in the local cache nor can it be fetched.
    """
    given = Path(spec.weights or spec.name).expanduser()
    if spec.weights and given.is_file():
        given = given.parent
    if given.is_dir():
        return given.absolute()
    if spec.weights or given.is_absolute() or spec.name.startswith((".", "~")):
        raise EncoderError(f"{given} is not a model folder", "Pass a folder as save_pretrained makes it")
    repository = f"{organisation}/{spec.name}" if organisation and "/" not in spec.name else spec.name
    return _fetched(repository, spec.family)


def _fetched(repository: str, family: str) -> Path:
    """Return the folder of a hub model: from the local cache if it is there, else downloaded."""
    from huggingface_hub import snapshot_download

    cached = None
    try:
        cached = Path(snapshot_download(repository, local_files_only=True, allow_patterns=WANTED))
    except (OSError, ValueError):  # LocalEntryNotFoundError is both
        pass
    # Other programs may have fetched a tokenizer alone.
    if cached and any(cached.rglob("*.safetensors")):
        return cached
    try:
        return Path(snapshot_download(repository, allow_patterns=WANTED))
    except Exception as error:
        if cached:
            return cached  # reading it says what is missing
        # The hub client raises a dozen unrelated types; to the user they all mean this.
        reason = " ".join(str(error).split())[:160]
        raise EncoderError(
            f"{repository} is not in the local Hugging Face cache and cannot be fetched "
            f"({type(error).__name__}: {reason})",
            f"Check the name, or fetch https://huggingface.co/{repository} where there is a network "
            f"(hf download {repository} --local-dir FOLDER) and pass it with --weights FOLDER or as {family}:FOLDER",
        ) from error


def folder_state(folder: Path) -> list[Any]:
    """Return JSON that changes when a file of the model is likely to have changed: paths, sizes and times."""
    files = sorted(path for pattern in WANTED for path in folder.glob(pattern))
    return [str(folder), [[path.relative_to(folder).as_posix(), stat_token(path)] for path in files]]


def read_json(path: Path, default: Any = None) -> Any:
    """Return a JSON file's content, or the default where there is none.

    Raises:
        EncoderError: it is not JSON, or is missing and has no default.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if default is not None:
            return default
        raise EncoderError(f"{path} is missing", "Fetch the model again") from None
    except ValueError as error:
        raise EncoderError(f"{path} is not valid JSON ({error})", "Fetch the model again") from None


def weights_files(folder: Path) -> list[Path]:
    """Return the safetensors files that the libraries would load: one, or the parts that an index names.

    Raises:
        EncoderError: there are none, or only pickles; or a part is missing.
    """
    if (whole := folder / "model.safetensors").is_file():
        return [whole]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        pickled = next((path.name for path in sorted(folder.glob("*.bin"))), None)
        raise EncoderError(
            f"{folder} has no model.safetensors" + (f", only the pickle {pickled}" if pickled else ""),
            "Convert it where you trust it: load the model with its library, then save_pretrained(FOLDER)",
        )
    parts = sorted({folder / name for name in read_json(index)["weight_map"].values()})
    for part in parts:
        if not part.is_file():
            raise EncoderError(f"{part} is missing: {index.name} names it", "Fetch the model again")
    return parts


def config_identity(config: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a model's configuration that changes its vectors."""
    return {
        key: value
        for key, value in config.items()
        if key not in COSMETIC and "dropout" not in key and not key.endswith("_pdrop")
    }
