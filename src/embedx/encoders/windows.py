"""Long texts cut into overlapping windows that an encoder reads whole, along the ends of sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from embedx.core.errors import EncoderError
from embedx.encoders.tokenization import TextTokenizer, up_to_a_space

Span = tuple[int, int]
"""(start, stop) in characters of a text."""

OVERLAP = 8
"""A window repeats up to an eighth of the one before it."""

SEARCHED = 4
"""A window's end is looked for in its last quarter."""

SPARE_TOKENS = 2
"""Left free in a window: a word may have a token more at the beginning of a text than within it."""

LEAST_TOKENS = 8
"""A prompt that leaves less room than this leaves none."""

STRETCH = 2**20
"""Characters tokenised at a time: a book of any length takes flat memory."""

INSIDE, CHARACTER, WORD, SENTENCE = range(4)
"""What begins with a token, from the worst place for a cut to the best: nothing, a character, a word, a sentence."""

# Possessive, and not within a run of stops: linear for any text. A blank line ends a sentence, too.
_SENTENCE_END = re.compile(
    r"""(?<![.!?…])[.!?…]++["'”’»)\]]*+(?=\s) | [。！？]++[」』”’）]*+ | \n(?=[^\S\n]*+\n)""", re.VERBOSE
)


def plan_windows(begins: np.ndarray, limit: int) -> list[tuple[int, int]]:
    """Cut a text's tokens into windows.

    Every token lies in a window, none holds more than `limit` tokens, and each begins and ends after the one before.

    Args:
        begins: (n,) int8, what begins with each token: `INSIDE` to `SENTENCE`.
        limit: the most tokens of a window, at least 1.

    Returns:
        (first, stop) of each window, in tokens.
    """
    windows, start = [], 0
    while len(begins) - start > limit:
        latest = start + limit
        earliest = latest - limit // SEARCHED
        places = begins[earliest : latest + 1]
        stop = latest - int(np.argmax(places[::-1]))  # the last one of the best places
        windows.append((start, stop))
        # Without the end itself: two windows that only touch would share nothing.
        overlap = begins[stop - limit // OVERLAP : stop]
        start = stop - len(overlap) + int(np.argmax(overlap)) if len(overlap) else stop
    windows.append((start, len(begins)))
    return windows


def find_begins(text: str, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """Return (n,) int8: what begins with each token of a text.

    Args:
        text: the text.
        starts: (n,) int64, first character of each token, ascending.
        stops: (n,) int64, the character after its last one.
    """
    begins = np.full(len(starts), CHARACTER, dtype=np.int8)
    # Several tokens of one character, such as an emoji's bytes, must not be parted.
    begins[1:][starts[1:] < stops[:-1]] = INSIDE
    is_word = [text[start].isspace() or (start > 0 and text[start - 1].isspace()) for start in starts.tolist()]
    begins[np.array(is_word, dtype=bool) & (begins == CHARACTER)] = WORD
    ends = np.array([match.end() for match in _SENTENCE_END.finditer(text)], dtype=np.int64)
    first = np.searchsorted(starts, ends)
    begins[first[first < len(starts)]] = SENTENCE
    return begins


@dataclass(frozen=True)
class WindowCutter:
    """Cuts texts into windows that an encoder reads whole. Thread-safe.

    Attributes:
        tokenizer: the encoder's; with a limit.
        prompt: words before every window.
    """

    tokenizer: TextTokenizer
    prompt: str = ""

    @cached_property
    def room(self) -> int:
        """Tokens of a window: what the encoder reads less the prompt, the special tokens and two to spare.

        Raises:
            EncoderError: the prompt leaves no room.
        """
        room = (self.tokenizer.max_tokens or 0) - self.tokenizer.count_around(self.prompt) - SPARE_TOKENS
        if room < LEAST_TOKENS:
            raise EncoderError(
                f"the prompt {self.prompt[:40]!r} leaves {max(0, room)} of {self.tokenizer.max_tokens} tokens to texts",
                "Shorten the prompt, or use --long truncate",
            )
        return room

    def __call__(self, texts: list[str]) -> list[list[Span]]:
        """Return the windows of each text, in order; a text that fits is one window, whole."""
        _, are_cut = self._read(texts)
        whole = [[(0, len(text))] for text in texts]
        return [(is_cut and list(self._cut(text))) or uncut for text, is_cut, uncut in zip(texts, are_cut, whole)]

    def _read(self, texts: list[str]) -> tuple[Any, list[bool]]:
        try:
            return self.tokenizer([self.prompt + text for text in texts])
        except Exception:
            # One text that no tokenizer takes: `prepare` says so, by name, and needs it whole.
            if len(texts) == 1:
                return None, [False]
            return None, [is_cut for text in texts for is_cut in self._read([text])[1]]

    def _cut(self, text: str) -> Iterator[Span]:
        start = 0
        while start < len(text):
            is_last = len(text) - start <= STRETCH
            stretch = text[start:] if is_last else up_to_a_space(text[start : start + STRETCH], STRETCH)
            windows = self._windows(stretch)
            # The last window of a stretch has no end of its own yet: the next stretch begins with it.
            whole = windows if is_last or len(windows) < 2 else windows[:-1]
            for first, stop in whole:
                yield from self._fitting(text, start + first, start + stop)
            start += len(stretch) if len(whole) == len(windows) else windows[-1][0]

    def _windows(self, stretch: str) -> list[Span]:
        offsets = self.tokenizer.offsets(stretch)
        starts, stops = offsets[:, 0], offsets[:, 1]
        if not len(starts):
            return []
        planned = plan_windows(find_begins(stretch, starts, stops), self.room)
        return [(int(starts[first]), int(stops[stop - 1])) for first, stop in planned]

    def _fitting(self, text: str, start: int, stop: int) -> Iterator[Span]:
        """Yield a window, or its halves where it has more tokens by itself than it had within its text."""
        if stop - start > 1 and self._read([text[start:stop]])[1][0]:
            middle = (start + stop) // 2
            space = text.find(" ", middle, stop - 1)
            middle = middle if space < 0 else space
            yield from self._fitting(text, start, middle)
            yield from self._fitting(text, middle, stop)
        else:
            yield start, stop
