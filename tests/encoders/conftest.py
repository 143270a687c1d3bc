"""Real tokenizers of every kind; a cache and a thread of their own for tests that build small models."""

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


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A cache that no other test has filled."""
    monkeypatch.setenv("EMBEDX_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def one_thread():
    """Small models on many threads are slower than on one."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
