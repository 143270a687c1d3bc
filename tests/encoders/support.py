"""What tests of encoders share: tokenizers of every kind, awkward long texts, an encoder run on its runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.conformance.support import TEXTS
from tests.conformance.transformers_cases import as_llama, as_roberta, as_t5, as_xlm_roberta, word_pieces

from embedx.core.contracts import Encoder
from embedx.inference.pipeline import Embedded, Embedder
from embedx.inference.runtimes import Execution, open_runtime

TOKENIZERS = {
    "bert": word_pieces,
    "roberta": as_roberta,
    "llama": as_llama,
    "t5": as_t5,
    "xlm-roberta": as_xlm_roberta,
}

LONG = {
    "prose": " ".join(TEXTS[:9]) + " ",
    "no spaces": "東京は日本の首都です。",
    "one word": "abcdefghij",
    "only spaces": " \n\t",
    "spaces in runs": "a          b\n\n\n\n\n",
    "special tokens": "<mask> </s> <s>[SEP] [MASK] ",
    "accents": "e\u0301\u0327 ﬁ \u200b ",
}


def embed(encoder: Encoder, items: Sequence[Any]) -> Embedded:
    """Embed items in fp32, on the runtime that the encoder gets by itself."""
    embedder = Embedder(encoder, open_runtime(encoder, Execution("fp32")).runtime, 2)
    try:
        return embedder.embed(len(items), lambda start, stop: items[start:stop])
    finally:
        embedder.close()
