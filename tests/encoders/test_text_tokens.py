"""Texts to ids: the library's own, in bounded work, one broken text costing no other anything."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.conformance.sentence_transformers_cases import say
from tests.conformance.support import TEXTS
from tests.conformance.transformers_cases import word_pieces
from tests.encoders.support import LONG

from embedx.core.contracts import Broken, EncoderCard
from embedx.core.errors import EncoderError
from embedx.core.specs import EncoderSpec
from embedx.encoders.registry import open_encoder
from embedx.encoders.text import TextEncoder
from embedx.encoders.tokenization import library_tokenizer, read_tokenizer


@pytest.mark.parametrize("kind", LONG)
def test_a_long_text_has_the_ids_of_its_beginning(tokenizer, kind):
    backend = tokenizer._tokenizer
    for characters in (300, 1_100, 5_000, 40_000):
        for start in range(3):
            text = "Hello, " * start + LONG[kind] * (characters // len(LONG[kind]) + 1)
            whole = backend.encode(text)
            (ids,), (is_cut,) = tokenizer([text])
            assert ids == whole.ids
            assert is_cut == bool(whole.overflowing)


def test_only_the_beginning_of_a_long_text_is_read(tokenizer):
    assert len(tokenizer._head("some words " * 10_000)) < 5_000


def test_a_text_of_ten_million_characters():
    encoder = open_encoder(EncoderSpec("minilm"))
    prepared = encoder.prepare(["The quick brown fox jumps over the lazy dog. " * 230_000])
    assert prepared.truncated == 1 and len(prepared.items[0]) == 256


def test_cutting_from_the_left_reads_the_end(tokenizer):
    text = "beginning " * 500 + "end"
    from_left = replace(tokenizer, direction="left")
    (ids,), _ = from_left([text])
    assert ids == from_left._tokenizer.encode(text).ids != tokenizer([text])[0][0]


def test_a_broken_text_costs_no_other_anything():
    encoder = open_encoder(EncoderSpec("minilm"))
    missing = Broken("read", "OSError", "gone")
    prepared = encoder.prepare(["one", "half \ud800 a pair", missing, "two"])
    assert prepared.positions.tolist() == [0, 3]
    assert prepared.failures[2] is missing
    assert prepared.failures[1].error == "UnicodeEncodeError"
    assert "surrogates" in prepared.failures[1].message


def test_a_text_without_tokens_fails_alone(shared):
    encoder = open_encoder(EncoderSpec("sentence_transformers", str(shared / "weights" / "potion-base-4m")))
    prepared = encoder.prepare(["", "words"])
    assert prepared.positions.tolist() == [1]
    assert prepared.failures[0].error == "NoTokens"


def test_batches_are_padded_on_the_right():
    encoder = open_encoder(EncoderSpec("minilm"))
    inputs = encoder.collate(encoder.prepare(["one", "one two three"]).items)
    assert list(inputs) == ["input_ids", "attention_mask"]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1] + 5 * [0], [1, 1, 1, 1, 1, 0, 0, 0]]
    assert inputs["input_ids"][0, 3:].tolist() == 5 * [0]
    assert all(array.dtype == np.int64 for array in inputs.values())


@pytest.mark.parametrize(("reads", "width"), [(512, 16), (12, 12), (9, 9), (None, 9)])
def test_batches_are_a_multiple_of_8_tokens_wide_but_never_wider_than_the_encoder_reads(reads, width):
    card = EncoderCard("small", "fake", "text", 2, "f", {}, {}, False, 1.0, 1, {"max_tokens": reads})
    encoder = TextEncoder(card, tokenize=lambda texts: ([], []), load=lambda: None)
    inputs = encoder.collate([np.ones(9, dtype=np.int64), np.ones(2, dtype=np.int64)])
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (2, width)
    assert inputs["attention_mask"].sum(axis=1).tolist() == [9, 2]


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path):
    say(tmp_path / "config.json", model_type="bert")
    with pytest.raises(EncoderError, match="has no tokenizer"):
        library_tokenizer(tmp_path)
    with pytest.raises(EncoderError, match=r"no tokenizer\.json"):
        read_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(EncoderError, match="is no tokenizer"):
        read_tokenizer(tmp_path / "tokenizer.json")


def test_settings_of_a_training_script_change_nothing(tmp_path: Path):
    folder = tmp_path / "model"
    word_pieces().save_pretrained(folder)
    say(folder / "config.json", model_type="bert")
    before = library_tokenizer(folder)
    tokenizer = word_pieces()
    tokenizer.backend_tokenizer.enable_padding(length=99)
    tokenizer.backend_tokenizer.enable_truncation(7)
    tokenizer.save_pretrained(folder)
    after = library_tokenizer(folder)
    assert after.digest == before.digest
    assert after(list(TEXTS)) == before(list(TEXTS))
