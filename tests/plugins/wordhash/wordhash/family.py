"""The family `wordhash`: every word has a fixed random vector; a text is their mean."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from embedx.core.contracts import Broken, EncoderCard, Prepared
from embedx.core.digests import fingerprint, tensors_digest
from embedx.core.errors import UnknownEncoderError, UsageError
from embedx.core.specs import EncoderSpec

SIZES = {"small": 64, "large": 256}
BUCKETS = 4096


class WordHash:
    """An encoder of texts by hashed words."""

    def __init__(self, spec: EncoderSpec) -> None:
        self.table = np.random.default_rng(7).standard_normal((BUCKETS, SIZES[spec.name]), dtype=np.float32)
        identity = {
            "architecture": "mean of hashed words",
            "tensors": tensors_digest([("table", self.table)]),
            "words": "lower case, crc32, version 1",
        }
        self.card = EncoderCard(
            ref=spec.ref,
            family=spec.family,
            modality="text",
            dim=SIZES[spec.name],
            fingerprint=fingerprint(identity),
            identity=identity,
            spec=spec.to_dict(),
            normalized=True,
            flops=2.0 * SIZES[spec.name],
            parameters=self.table.size,
            weights_from="a seed",
            licence="Apache-2.0",
        )

    def prepare(self, items: Sequence[str | Broken]) -> Prepared:
        """Turn texts into word numbers; an item that cannot be used becomes a failure that says why."""
        entries, positions, failures = [], [], {}
        for position, item in enumerate(items):
            if isinstance(item, Broken):
                failures[position] = item
                continue
            words = [zlib.crc32(word.encode(errors="replace")) % BUCKETS for word in re.findall(r"\w+", item.lower())]
            if words:
                entries.append(np.array(words, dtype=np.int64))
                positions.append(position)
            else:
                failures[position] = Broken("prepare", "NoWords", "the text has no word")
        return Prepared(entries, np.array(positions, dtype=np.int64), failures)

    def cost(self, prepared: Prepared) -> np.ndarray:
        """Return the words of each text: texts of like length share a batch."""
        return np.array([len(words) for words in prepared.items], dtype=np.int64)

    def collate(self, entries: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Pad word numbers to the longest text; the mask says which of them are real."""
        longest = max(len(words) for words in entries)
        ids = np.zeros((len(entries), longest), dtype=np.int64)
        mask = np.zeros((len(entries), longest), dtype=np.float32)
        for row, words in enumerate(entries):
            ids[row, : len(words)] = words
            mask[row, : len(words)] = 1
        return {"ids": ids, "mask": mask}

    def build(self) -> Any:
        """Return the torch module; its arguments are the arrays of `collate`, in their order."""
        import torch

        class Mean(torch.nn.Module):
            def __init__(self, table: np.ndarray) -> None:
                super().__init__()
                self.table = torch.nn.Parameter(torch.from_numpy(table), requires_grad=False)

            def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
                weights = mask.unsqueeze(-1)
                return (self.table[ids] * weights).sum(1) / weights.sum(1)

        return Mean(self.table).eval()

    def canaries(self) -> list[str]:
        """Return a few texts that never change."""
        return ["one word", "The quick brown fox jumps over the lazy dog.", "naïve café, 3.5 °C"]


def open_encoder(spec: EncoderSpec) -> WordHash:
    """Open an encoder by its spec; whatever is wrong with it is said here, with what to do."""
    if spec.name not in SIZES:
        raise UnknownEncoderError(f"unknown encoder {spec.ref!r}", f"Write wordhash:{' or wordhash:'.join(SIZES)}")
    if spec.weights or spec.layer or spec.pooling or spec.prompt or spec.truncate_dim or spec.model_args:
        raise UsageError(f"{spec.ref} takes no options", "Leave them out")
    return WordHash(spec)


def list_encoders() -> list[dict[str, Any]]:
    """Return what `embedx encoders` lists."""
    return [
        {"ref": f"wordhash:{name}", "family": "wordhash", "modality": "text", "dim": dim} for name, dim in SIZES.items()
    ]
