"""Torch modules of the text encoders. The only text file that imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def build_pipeline(folder: Path, is_static: bool) -> torch.nn.Module:
    """Build a sentence-transformers folder as one module.

    Args:
        folder: the model.
        is_static: whether it begins with a table of static embeddings.

    Returns:
        A frozen module in eval mode: (input_ids, attention_mask), both (n, tokens) int64 -> (n, dim) float32.
    """
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    # Its bars and remarks would stand between our own lines of progress.
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    model = SentenceTransformer(str(folder), device="cpu", trust_remote_code=False, local_files_only=True)
    first, *rest = list(model.children())
    head: torch.nn.Module = MaskedBag(first.embedding.weight) if is_static else first
    return SentencePipeline(head, rest).eval().float().requires_grad_(False)


class MaskedBag(torch.nn.Module):
    """Static token embeddings, averaged over the real tokens: the library's EmbeddingBag on padded input."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table = torch.nn.Embedding.from_pretrained(table.detach().clone())

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        """Add `sentence_embedding` (n, dim) to the features."""
        mask = features["attention_mask"].unsqueeze(-1).to(self.table.weight.dtype)
        total = (self.table(features["input_ids"]) * mask).sum(1)
        return {**features, "sentence_embedding": total / mask.sum(1)}


class SentencePipeline(torch.nn.Module):
    """The modules of a sentence-transformers model, one after the other, with tensors in and out."""

    def __init__(self, first: torch.nn.Module, rest: list[torch.nn.Module]) -> None:
        super().__init__()
        self.first = first
        self.rest = torch.nn.ModuleList(rest)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return (n, dim) float32 vectors of (n, tokens) int64 ids and mask."""
        features = self.first({"input_ids": input_ids, "attention_mask": attention_mask})
        for module in self.rest:
            features = module(features)
        return features["sentence_embedding"].float()
