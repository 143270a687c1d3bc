"""Windows of long texts: they cover every token, none is longer than the encoder reads, each goes on from the last."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.encoders.support import LONG

from embedx.core.errors import EncoderError
from embedx.core.specs import EncoderSpec
from embedx.encoders import windows as module
from embedx.encoders.registry import open_encoder
from embedx.encoders.windows import CHARACTER, SENTENCE, WORD, WindowCutter, find_begins, plan_windows


@given(
    begins=st.lists(st.integers(0, 3), max_size=400).map(lambda values: np.array(values, dtype=np.int8)),
    limit=st.integers(1, 64),
)
def test_planned_windows_cover_every_token_none_is_too_long_each_advances(begins, limit):
    windows = plan_windows(begins, limit)
    assert windows[0][0] == 0 and windows[-1][1] == len(begins)
    assert all(stop - start <= limit for start, stop in windows)
    for (start, stop), (next_start, next_stop) in itertools.pairwise(windows):
        assert start < next_start <= stop < next_stop
        assert stop - next_start <= limit // 8


def test_windows_end_and_begin_at_sentences_then_at_words():
    begins = np.full(100, CHARACTER, dtype=np.int8)
    begins[[3, 28, 31, 45, 59]] = WORD
    begins[[29, 57]] = SENTENCE
    # The last sentence end of the last quarter, else the last word; then the first best place in the last eighth.
    assert plan_windows(begins, 32)[:3] == [(0, 29), (28, 57), (53, 85)]


def test_what_begins_with_a_token():
    text = 'He came. "Go!" she\n\nNo. 5 e.g. that 東京。京都 a'
    starts = np.array([i for i, c in enumerate(text) if not c.isspace()])
    begins = find_begins(text, starts, starts + 1)
    found = {text[s : s + 4] for s, b in zip(starts.tolist(), begins) if b == SENTENCE}
    assert found == {'"Go!', "she\n", "No. ", "5 e.", "that", "京都 a"}
    assert [text[s] for s, b in zip(starts.tolist(), begins) if b == WORD][:2] == ["c", "e"]


def check(cutter: WindowCutter, text: str) -> list[tuple[int, int]]:
    """Every token of the text lies in a window; each window is read whole, and ends after the one before."""
    (spans,) = cutter([text])
    _, are_cut = cutter.tokenizer([cutter.prompt + text[start:stop] for start, stop in spans])
    assert not any(cut and stop - start > 1 for cut, (start, stop) in zip(are_cut, spans))
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in itertools.pairwise(spans))
    covered = np.zeros(len(text), dtype=bool)
    for start, stop in spans:
        assert start < stop or len(text) == 0
        covered[start:stop] = True
    for start, stop in cutter.tokenizer.offsets(text):
        assert covered[start:stop].all()
    return spans


@pytest.mark.parametrize("kind", LONG)
def test_windows_of_real_tokenizers_are_read_whole(tokenizer, kind):
    for characters in (40, 300, 5_000):
        for start in range(3):
            text = "Hello, " * start + LONG[kind] * (characters // len(LONG[kind]) + 1)
            check(WindowCutter(tokenizer, "query: "), text)
            check(WindowCutter(tokenizer), text)


MINILM = open_encoder(EncoderSpec("minilm")).windows
SMALL = WindowCutter(replace(MINILM.tokenizer, max_tokens=20))


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60).map(lambda text: text * 5))
def test_windows_of_any_text_are_read_whole(text):
    check(SMALL, text)


PIECES = st.sampled_from(
    [*LONG.values(), "A sentence. ", "Another one, longer than the first! ", "\n\n", "x" * 40, "🙂👩‍🚀 "]
)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(PIECES, st.integers(1, 300)), min_size=1, max_size=6))
def test_windows_of_chapters_are_read_whole(parts):
    check(MINILM, "".join(piece * repeats for piece, repeats in parts))


def test_windows_of_a_book_longer_than_a_stretch():
    words = "the keeper of that lighthouse fed his parrots before every storm, and wrote it down in a book. ".split(" ")
    rng = random.Random(1)
    book = " ".join(rng.choice(words) for _ in range(230_000))
    assert len(book) > module.STRETCH
    assert len(check(MINILM, book)) > 900


@pytest.mark.parametrize("stretch", [50, 300, 5_000])
def test_a_book_is_cut_in_stretches(monkeypatch, stretch):
    book = " ".join(LONG.values()) * 30
    monkeypatch.setattr(module, "STRETCH", stretch)
    assert len(check(SMALL, book)) > 100
    check(SMALL, " " * 1000 + "word " * 30 + " " * 1000 + "end")


def test_a_text_that_fits_is_one_window_whole():
    assert MINILM(["", " short ", "half \ud800"]) == [[(0, 0)], [(0, 7)], [(0, 6)]]


def test_a_prompt_without_room_for_texts():
    with pytest.raises(EncoderError, match="leaves 0 of 20 tokens"):
        WindowCutter(SMALL.tokenizer, "many words " * 20)(["a long text " * 20])


def test_nothing_in_a_text_makes_the_search_for_sentences_slow():
    for text in ("." * 300_000, "\n" * 300_000, ".)))))" * 50_000, "\n \t" * 100_000):
        find_begins(text, np.arange(len(text)), np.arange(1, len(text) + 1))
