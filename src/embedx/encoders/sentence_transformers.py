"""sentence-transformers models: the whole module pipeline, tokenised without importing torch."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from embedx.core.contracts import Broken, EncoderCard, Prepared
from embedx.core.digests import fingerprint
from embedx.core.errors import EncoderError, UsageError
from embedx.core.specs import EncoderSpec
from embedx.encoders.weights import WeightsFacts, cached_file_sha256, safetensors_facts

RECIPE = 1
"""Raise when the code below changes vectors; it is part of the fingerprint."""

CANARIES = (
    "The quick brown fox jumps over the lazy dog.",
    "def add(a, b):\n    return a + b",
    "Paris",
    "How do I reset my password? I have tried the link in the e-mail twice and it says that it has expired.",
)

_NOT_IDENTITY = (
    "_name_or_path",
    "transformers_version",
    "torch_dtype",
    "dtype",
    "architectures",
    "use_cache",
)
"""Keys of config.json that do not change vectors."""

_MODULES = ("Transformer", "Pooling", "Normalize", "Dense", "StaticEmbedding", "Dropout", "LayerNorm")


@dataclass(frozen=True)
class Pipeline:
    """A model folder, read.

    Attributes:
        folder: where it lies.
        modules: (type, configuration) in order.
        config: the transformer's configuration; empty for static embeddings.
        max_tokens: tokens that the model reads of a text; None reads all.
        lower_case: whether texts are lower-cased before the tokenizer.
        prompt: what is put before every text.
        facts: the weights.
    """

    folder: Path
    modules: list[tuple[str, dict[str, Any]]]
    config: dict[str, Any]
    max_tokens: int | None
    lower_case: bool
    prompt: str
    facts: WeightsFacts

    @property
    def is_static(self) -> bool:
        """Whether the model is a bag of static token embeddings."""
        return self.modules[0][0] == "StaticEmbedding"

    @property
    def normalized(self) -> bool:
        """Whether the last module makes vectors of length 1."""
        return self.modules[-1][0] == "Normalize"

    @property
    def pad_id(self) -> int:
        """The id of the padding token."""
        pad = self.config.get("pad_token_id")
        return int(pad) if isinstance(pad, int) else 0

    def dim(self) -> int:
        """Length of a vector, from the configurations alone."""
        dim = 0
        for kind, config in self.modules:
            if kind == "StaticEmbedding":
                dim = int(next(iter(self.facts.shapes.values()))[-1])
            elif kind == "Transformer":
                dim = int(self.config.get("hidden_size") or self.config.get("dim") or self.config.get("d_model") or 0)
            elif kind == "Pooling":
                width = int(config.get("word_embedding_dimension") or config.get("embedding_dimension") or dim)
                dim = width * max(1, _pooling_modes(config))
            elif kind == "Dense":
                dim = int(config["out_features"])
        if dim < 1:
            raise EncoderError(f"{self.folder} does not say the length of its vectors", "Check its config.json")
        return dim

    def flops_per_token(self) -> float:
        """Two operations per weight that every token passes: all but the embedding tables."""
        if self.is_static:
            return 2.0 * self.dim()
        inner = sum(
            math.prod(shape)
            for name, shape in self.facts.shapes.items()
            if "embed" not in name.lower() and "pooler" not in name
        )
        return 2.0 * inner

    def identity(self) -> dict[str, Any]:
        """Return everything that changes the vectors."""
        return {
            "recipe": ["sentence_transformers", RECIPE],
            "tensors": self.facts.digest,
            "modules": [[kind, config] for kind, config in self.modules],
            "config": {key: value for key, value in self.config.items() if key not in _NOT_IDENTITY},
            "tokenizer": cached_file_sha256(self.folder / "tokenizer.json"),
            "max_tokens": self.max_tokens,
            "lower_case": self.lower_case,
            "prompt": self.prompt,
        }


class SentenceTransformerEncoder:
    """A text encoder made of a sentence-transformers folder. Open it with `open_folder`."""

    def __init__(self, pipeline: Pipeline, card: EncoderCard) -> None:
        self._pipeline = pipeline
        self._card = card

    @property
    def card(self) -> EncoderCard:
        """What the encoder is."""
        return self._card

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self._pipeline.folder / "tokenizer.json"))
        # The file may carry the settings of a training script: 128 tokens, padded, in MiniLM's.
        tokenizer.no_padding()
        if self._pipeline.max_tokens is None:
            tokenizer.no_truncation()
        else:
            tokenizer.enable_truncation(self._pipeline.max_tokens)
        return tokenizer

    def prepare(self, items: Sequence[str | Broken]) -> Prepared:
        """Tokenise texts; entries are (tokens,) int64 arrays."""
        failures: dict[int, Broken] = {}
        positions, texts = [], []
        for position, item in enumerate(items):
            if isinstance(item, Broken):
                failures[position] = item
            else:
                positions.append(position)
                texts.append(self._pipeline.prompt + (item.lower() if self._pipeline.lower_case else item))
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=not self._pipeline.is_static)
        entries, kept, truncated = [], [], 0
        for position, encoding in zip(positions, encodings):
            ids = encoding.ids
            if not ids:
                failures[position] = Broken("prepare", "NoTokens", "the text has no token that the encoder knows")
                continue
            truncated += bool(encoding.overflowing)
            entries.append(np.array(ids, dtype=np.int64))
            kept.append(position)
        return Prepared(entries, np.array(kept, dtype=np.int64), failures, truncated)

    def cost(self, prepared: Prepared) -> np.ndarray:
        """Return (m,) int64 tokens of each text."""
        return np.array([len(entry) for entry in prepared.items], dtype=np.int64)

    def collate(self, entries: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Pad token ids to the longest text of the batch: input_ids and attention_mask (n, tokens) int64."""
        longest = max(len(entry) for entry in entries)
        ids = np.full((len(entries), longest), self._pipeline.pad_id, dtype=np.int64)
        mask = np.zeros((len(entries), longest), dtype=np.int64)
        for row, entry in enumerate(entries):
            ids[row, : len(entry)] = entry
            mask[row, : len(entry)] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def build(self) -> Any:
        """Return the pipeline as one torch module: (input_ids, attention_mask) -> (n, dim) float32."""
        from embedx.encoders.text_modules import build_pipeline

        return build_pipeline(self._pipeline.folder, self._pipeline.is_static)

    def canaries(self) -> list[Any]:
        """Return a few fixed texts."""
        return list(CANARIES)


def open_encoder(spec: EncoderSpec) -> SentenceTransformerEncoder:
    """Open a model by the path of its folder, or by its name on the Hugging Face hub.

    Raises:
        EncoderError: it is not found, or cannot be fetched.
    """
    given = Path(spec.weights or spec.name).expanduser()
    if given.is_dir():
        return open_folder(given, spec)
    if spec.weights or given.is_absolute() or spec.name.startswith((".", "~")):
        raise EncoderError(
            f"{given} is not a model folder", "Pass a folder with modules.json, as save_pretrained makes it"
        )
    return open_folder(_hub_folder(spec.name), spec)


def open_folder(folder: Path, spec: EncoderSpec, licence: str = "") -> SentenceTransformerEncoder:
    """Open a model folder."""
    if spec.layer or spec.pooling or spec.model_args:
        raise UsageError(
            f"{spec.ref} takes no layer, pooling or model_args: its folder says them", "Leave the option out"
        )
    pipeline = _read_pipeline(folder)
    identity = pipeline.identity()
    card = EncoderCard(
        ref=spec.ref,
        family=spec.family,
        modality="text",
        dim=pipeline.dim(),
        fingerprint=fingerprint(identity),
        identity=identity,
        spec=spec.to_dict(),
        normalized=pipeline.normalized,
        flops=pipeline.flops_per_token(),
        parameters=pipeline.facts.parameters,
        input={"max_tokens": pipeline.max_tokens},
        weights_from=str(folder),
        licence=licence,
    )
    return SentenceTransformerEncoder(pipeline, card)


def _read_pipeline(folder: Path) -> Pipeline:
    if not (folder / "modules.json").is_file():
        raise EncoderError(f"{folder} is no sentence-transformers model (no modules.json)", "Check the path")
    entries = _read_json(folder / "modules.json")
    modules = []
    for entry in entries:
        kind = str(entry["type"]).rpartition(".")[2]
        if kind not in _MODULES:
            raise EncoderError(f"{folder} uses the module {kind}, which embedx does not run", "Use another model")
        path = folder / entry.get("path", "") / "config.json"
        modules.append((kind, {} if kind in ("Transformer", "StaticEmbedding") else _read_json(path, {})))
    if not (folder / "tokenizer.json").is_file():
        raise EncoderError(f"{folder} has no tokenizer.json", "Save the model with a fast tokenizer")
    is_static = modules[0][0] == "StaticEmbedding"
    config = {} if is_static else _read_json(folder / "config.json")
    own = _read_json(folder / "sentence_bert_config.json", {})
    texts = _read_json(folder / "config_sentence_transformers.json", {})
    prompt = (texts.get("prompts") or {}).get(texts.get("default_prompt_name") or "", "")
    return Pipeline(
        folder=folder,
        modules=modules,
        config=config,
        max_tokens=None if is_static else _max_tokens(folder, own, config),
        lower_case=bool(own.get("do_lower_case", False)),
        prompt=prompt,
        facts=safetensors_facts(_weights_files(folder)),
    )


def _max_tokens(folder: Path, own: dict[str, Any], config: dict[str, Any]) -> int:
    if isinstance(own.get("max_seq_length"), int):
        return int(own["max_seq_length"])
    said = _read_json(folder / "tokenizer_config.json", {}).get("model_max_length")
    limits = [
        int(value) for value in (said, config.get("max_position_embeddings")) if isinstance(value, int) and value < 1e9
    ]
    return min(limits, default=512)


def _weights_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*_*/*.safetensors"))
    if not files:
        raise EncoderError(
            f"{folder} has no .safetensors weights",
            "Save the model with safe_serialization=True; pickles are not loaded",
        )
    return files


def _read_json(path: Path, default: Any = None) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        if default is not None:
            return default
        raise EncoderError(f"{path} is missing", "Fetch the model again") from None
    except ValueError as error:
        raise EncoderError(f"{path} is not valid JSON ({error})", "Fetch the model again") from None


def _pooling_modes(config: dict[str, Any]) -> int:
    mode = config.get("pooling_mode")
    if isinstance(mode, str):
        return 1
    if isinstance(mode, (list, tuple)):
        return len(mode)
    return sum(bool(value) for key, value in config.items() if key.startswith("pooling_mode_"))


def _hub_folder(name: str) -> Path:
    """Return the folder of a hub model: from the local cache if it is there, else downloaded."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    repo = name if "/" in name else f"sentence-transformers/{name}"
    wanted = ["*.json", "*.safetensors", "*/*.json", "*/*.safetensors", "*.txt"]
    try:
        return Path(snapshot_download(repo, local_files_only=True, allow_patterns=wanted))
    except (LocalEntryNotFoundError, OSError, ValueError):
        pass
    try:
        return Path(snapshot_download(repo, allow_patterns=wanted))
    except Exception as error:
        # The hub client raises a dozen unrelated types; to the user they all mean this.
        reason = " ".join(str(error).split())[:160]
        raise EncoderError(
            f"{repo} is not in the local Hugging Face cache and cannot be fetched ({type(error).__name__}: {reason})",
            "Check the name and the network, or pass a local model folder as --weights or sentence_transformers:PATH",
        ) from error


def list_encoders() -> list[dict[str, Any]]:
    """Return a few well-known models; any other name or folder works as well."""
    known = [("all-MiniLM-L6-v2", 384), ("all-mpnet-base-v2", 768), ("multi-qa-MiniLM-L6-cos-v1", 384)]
    return [
        {
            "ref": f"sentence_transformers:{name}",
            "family": "sentence_transformers",
            "modality": "text",
            "dim": dim,
        }
        for name, dim in known
    ]
