"""A model trained with other words before queries than before documents, searched on the real command line."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conformance.sentence_transformers_cases import minilm_folder, say
from tests.conftest import write_jsonl

DOCUMENTS = ["My card was charged twice.", "The app does not start.", "Where is my parcel?", "I forgot my password."]


def test_a_query_gets_the_prompt_of_queries(embedx, tmp_path):
    from sentence_transformers import SentenceTransformer

    model = minilm_folder(tmp_path)
    say(model / "config_sentence_transformers.json", prompts={"query": "a question: ", "document": "an answer: "})
    write_jsonl(tmp_path / "texts.jsonl", [{"id": str(row), "text": text} for row, text in enumerate(DOCUMENTS)])
    reference = f"sentence_transformers:{model}"
    exact = ("--precision", "fp32", "--store-precision", "full")
    embedx("extract", "texts.jsonl", "--encoder", reference, "--out", "store", *exact)
    embedx("index", "store", "--out", "index")
    hits = embedx.json("search", "index", "--text", "How do I log in again?")["hits"]
    library = SentenceTransformer(str(model), device="cpu")
    scores = library.encode_document(DOCUMENTS) @ library.encode_query("How do I log in again?")
    assert [hit["id"] for hit in hits] == [str(row) for row in np.argsort(-scores)]
    assert [hit["score"] for hit in hits] == pytest.approx(sorted(scores.tolist(), reverse=True), abs=1e-5)
    plain = library.encode_document(DOCUMENTS) @ library.encode_document("How do I log in again?")
    assert np.abs(plain - scores).max() > 0.01, "the prompt makes a difference"
