"""Word vectors against gensim: a small fastText model, whose sub-words give every text a vector."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from embedx.core.specs import EncoderSpec
from embedx.encoders.word2vec import split_words
from tests.conformance.support import TEXTS, Case, Made


def fasttext(folder: Path) -> Made:
    from gensim.models.fasttext import FastText, load_facebook_vectors, save_facebook_model

    sentences = [split_words(text) for text in TEXTS] * 4
    model = FastText(sentences, vector_size=32, min_count=1, bucket=2000, min_n=1, epochs=2, seed=1, workers=1)
    path = folder / "model.bin"
    save_facebook_model(model, str(path))
    vectors = load_facebook_vectors(str(path))

    def recipe(texts: list[str]) -> np.ndarray:
        return np.stack([vectors.get_mean_vector(split_words(text), pre_normalize=False) for text in texts])

    return Made(EncoderSpec("word2vec", str(path)), recipe)


CASES = [Case("word2vec:fastText", fasttext, modality="text")]
"""No real vectors are at hand; that the formats are read right is tested in tests/encoders."""
