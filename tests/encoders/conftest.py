"""Real tokenizers of every kind."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.conformance.sentence_transformers_cases import say
from tests.encoders.support import TOKENIZERS

from embedx.encoders.tokenization import TextTokenizer, library_tokenizer


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request, tmp_path_factory) -> TextTokenizer:
    """A tokenizer of a kind of model, which reads 32 tokens."""
    folder = tmp_path_factory.mktemp(request.param)
    TOKENIZERS[request.param]().save_pretrained(folder)
    say(folder / "config.json", model_type=request.param)
    return replace(library_tokenizer(folder), max_tokens=32)
