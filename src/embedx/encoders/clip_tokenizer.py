"""open_clip's tokenizers without importing it: how it cleans texts and splits words, with vocabularies run in Rust."""

from __future__ import annotations

import html
import string
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from embedx.encoders.tokenization import TextTokenizer

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class ClipTokenizer:
    """Texts to the token ids that open_clip's tokenizer gives them. Thread-safe.

    open_clip's own cannot be imported without torch, which would take most of the time of a search by text.

    Attributes:
        tokenizer: ids of a cleaned text, cut to the model's context.
        clean: how texts are cleaned first: lower, whitespace or canonicalize.
        pattern: the regular expression of a word, where words are then parted by spaces only.
        blanked: an id that open_clip replaces by 0.
        pad_to: fill ids up to this length: the context of a model that reads padding; None is a model that does not.
    """

    tokenizer: TextTokenizer
    clean: str
    pattern: str | None = None
    blanked: int | None = None
    pad_to: int | None = None

    def __call__(self, texts: list[str]) -> tuple[list[list[int]], list[bool]]:
        """Return the ids of each text, and whether it was cut."""
        ids, cut = self.tokenizer([self._cleaned(text) for text in texts])
        return [self._finished(tokens) for tokens in ids], cut

    def _cleaned(self, text: str) -> str:
        text = CLEANERS[self.clean](text)
        return text if self._words is None else " ".join(self._words.findall(text))

    def _finished(self, ids: list[int]) -> list[int]:
        kept = [0 if token == self.blanked else token for token in ids]
        return kept + [self.tokenizer.pad_id] * ((self.pad_to or 0) - len(kept))

    @cached_property
    def _words(self) -> Any:
        # The package `regex`, as open_clip uses: another one knows other letters of Unicode.
        import regex

        return None if self.pattern is None else regex.compile(self.pattern, regex.IGNORECASE)


def _basic(text: str) -> str:
    import ftfy

    return html.unescape(html.unescape(ftfy.fix_text(text)))


def _whitespace(text: str) -> str:
    return " ".join(_basic(text).split())


def _lower(text: str) -> str:
    return _whitespace(text).lower()


def _canonicalize(text: str) -> str:
    bare = _basic(text).strip().replace("_", " ").translate(_NO_PUNCTUATION)
    return " ".join(bare.lower().split())


CLEANERS: dict[str, Callable[[str], str]] = {
    "lower": _lower,
    "whitespace": _whitespace,
    "canonicalize": _canonicalize,
}
"""open_clip's `get_clean_fn`; the last one is SigLIP's (big_vision, prompt_engineering.canonicalize_text)."""
