"""The torch side of sentence-transformers models: their modules as one, with tensors in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from embedx.encoders.transformers_modules import load_text_model


def build_pipeline(
    folder: Path, transformer: Path | None, max_tokens: int | None, prompt_tokens: int, dim: int
) -> torch.nn.Module:
    """Build a sentence-transformers folder as one module.

    Args:
        folder: the model.
        transformer: where its transformer lies; None where it begins with a table of static embeddings.
        max_tokens: the longest text that it reads; None is any.
        prompt_tokens: how many tokens at the beginning a pooling that excludes the prompt leaves out.
        dim: how many values of a vector are kept.

    Returns:
        A frozen module in eval mode: (input_ids, attention_mask), both (n, tokens) int64 -> (n, dim) float32.

    Raises:
        EncoderError: weights are missing.
    """
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    # Its bars and remarks would stand between our own lines of progress.
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    model = SentenceTransformer(str(folder), device="cpu", trust_remote_code=False, local_files_only=True)
    first, *rest = list(model.children())
    if transformer is None:
        first = MaskedBag(first.embedding.weight)
    else:
        # The library fills weights that a file lacks with random numbers, where ours is an error.
        first.model = load_text_model(transformer, max_tokens)
    return SentencePipeline(first, rest, prompt_tokens, dim).eval().float().requires_grad_(False)


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
    """The modules of a sentence-transformers model, one after the other, with tensors in and out.

    Args:
        first: reads tokens.
        rest: the other modules.
        prompt_tokens: how many tokens at the beginning a pooling that excludes the prompt leaves out.
        dim: how many values of a vector are kept; they are not normalised again, as in the library.
    """

    def __init__(
        self, first: torch.nn.Module, rest: list[torch.nn.Module], prompt_tokens: int = 0, dim: int | None = None
    ) -> None:
        super().__init__()
        self.first = first
        self.rest = torch.nn.ModuleList(rest)
        self.prompt_tokens = prompt_tokens
        self.dim = dim

    @property
    def backbone(self) -> torch.nn.Module:
        """What may compute in a lower precision: pooling and what follows may not."""
        return self.first

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return (n, dim) float32 vectors of (n, tokens) int64 ids and mask."""
        features = self.first({"input_ids": input_ids, "attention_mask": attention_mask})
        features = {
            name: value.float() if torch.is_tensor(value) and value.is_floating_point() else value
            for name, value in features.items()
        }
        if self.prompt_tokens:
            features["prompt_length"] = self.prompt_tokens
        for module in self.rest:
            features = module(features)
        return features["sentence_embedding"].float()[:, : self.dim]
