"""Texts to token ids: the tokenizer that the library would use, run in Rust without the library, in bounded work."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from embedx.core.digests import canonical_json
from embedx.core.errors import EncoderError

CHARACTERS_PER_TOKEN = 16
"""Characters of a long text first tried per token that the model reads; English has about 4.5 a token."""


@dataclass(frozen=True)
class TextTokenizer:
    """Texts to the token ids that a model reads. Thread-safe.

    Attributes:
        state: JSON of the `tokenizers` library, without padding and truncation.
        max_tokens: how many tokens the model reads of a text, special ones included; None reads all.
        special_tokens: whether the tokens around a text are added.
        direction: right or left: the end that is cut off.
        pad_id: the token that fills shorter texts up.
        special_ids: ids of the special tokens.
    """

    state: str
    max_tokens: int | None
    special_tokens: bool = True
    direction: str = "right"
    pad_id: int = 0
    special_ids: tuple[int, ...] = ()

    @cached_property
    def digest(self) -> str:
        """The sha256 of everything that changes the ids."""
        what = [json.loads(self.state), self.max_tokens, self.special_tokens, self.direction]
        return sha256(canonical_json(what).encode()).hexdigest()

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self.state)
        if self.max_tokens is not None:
            tokenizer.enable_truncation(self.max_tokens, direction=self.direction)
        return tokenizer

    @cached_property
    def _whole(self) -> Any:
        from tokenizers import Tokenizer

        return Tokenizer.from_str(self.state)

    def offsets(self, text: str) -> np.ndarray:
        """Return (n, 2) int64: (start, stop) in characters of the tokens of a whole text, without special ones."""
        encoding = self._whole.encode(text, add_special_tokens=False)
        offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        return offsets[offsets[:, 1] > offsets[:, 0]]

    def count_around(self, prompt: str) -> int:
        """Return how many tokens besides its own a text has: the special ones and those of a prompt before it."""
        special = self._whole.num_special_tokens_to_add(False) if self.special_tokens else 0
        return int(special) + len(self._whole.encode(prompt, add_special_tokens=False).ids)

    def __call__(self, texts: list[str]) -> tuple[list[list[int]], list[bool]]:
        """Return the ids of each text, and whether it was cut."""
        heads = [self._head(text) for text in texts]
        encodings = self._tokenizer.encode_batch_fast(heads, add_special_tokens=self.special_tokens)
        return [encoding.ids for encoding in encodings], [bool(encoding.overflowing) for encoding in encodings]

    def _head(self, text: str) -> str:
        """Return the beginning of a text that gives the same ids as all of it.

        Tokenizers look no further than a word or so beyond a token, but no bound holds for all of them. So the
        beginning grows until twice as many characters change none of the tokens that the model reads.
        """
        if self.max_tokens is None or self.direction != "right":
            return text
        size, known = CHARACTERS_PER_TOKEN * self.max_tokens, None
        while 2 * size < len(text):
            head = up_to_a_space(text, size)
            encoding = self._tokenizer.encode(head, add_special_tokens=self.special_tokens)
            if encoding.overflowing and encoding.ids == known:
                return head
            known = encoding.ids if encoding.overflowing else None
            size *= 2
        return text


_WORDS = re.compile(r".*\S(?=\s)", re.DOTALL)


def up_to_a_space(text: str, size: int) -> str:
    """Return the first characters, about `size`, so that no word is cut where the second half of them has a space."""
    words = _WORDS.match(text, size // 2, size)
    return text[: words.end() if words else size]


def read_tokenizer(path: Path) -> TextTokenizer:
    """Read a tokenizer.json for texts without special tokens, as sentence-transformers does for static embeddings.

    Raises:
        EncoderError: the file is missing or damaged.
    """
    from tokenizers import Tokenizer

    if not path.is_file():
        raise EncoderError(f"{path.parent} has no tokenizer.json", "Save the model with a fast tokenizer")
    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as error:  # the bindings raise bare Exceptions
        raise EncoderError(f"{path} is no tokenizer ({error})", "Fetch the model again") from error
    truncation = backend.truncation
    return TextTokenizer(_bare_state(backend), truncation["max_length"] if truncation else None, special_tokens=False)


def library_tokenizer(folder: Path, lower_case: bool = False) -> TextTokenizer:
    """Return the tokenizer that transformers makes of a model folder; imports it, and with it torch.

    Its `max_tokens` is what the tokenizer's configuration says, None where that says nothing. transformers builds
    many tokenizers from their vocabulary and tokenizer_config.json and not from tokenizer.json alone, so only the
    library itself knows the result.

    Args:
        folder: the model.
        lower_case: lower-case texts first, as sentence-transformers' `do_lower_case` does.

    Raises:
        EncoderError: there is none, it would run foreign code, or it does not run in Rust.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library raises anything, from KeyError to ImportError
        reason = " ".join(str(error).split())[:200]
        raise EncoderError(
            f"{folder} has no tokenizer that transformers can load without foreign code ({reason})",
            "Save the model with a fast tokenizer (tokenizer.json)",
        ) from error
    names = {"tokenizer.json", *tokenizer.vocab_files_names.values()}
    if not any((folder / name).is_file() for name in names):
        # transformers makes a tokenizer of five tokens then, and says nothing.
        raise EncoderError(f"{folder} has no tokenizer (no tokenizer.json)", "Save the model with its tokenizer")
    if not getattr(tokenizer, "is_fast", False):
        raise EncoderError(
            f"the tokenizer of {folder} ({type(tokenizer).__name__}) runs in Python only",
            "Save the model with a fast tokenizer (tokenizer.json)",
        )
    backend = tokenizer.backend_tokenizer
    if any(backend.encode("a").type_ids):
        raise EncoderError(f"the tokenizer of {folder} numbers a text's segments", "Use another model")
    if lower_case:
        _lower_case(backend)
    limit = tokenizer.model_max_length
    return TextTokenizer(
        state=_bare_state(backend),
        max_tokens=int(limit) if limit and limit < 1e9 else None,
        direction=tokenizer.truncation_side,
        pad_id=tokenizer.pad_token_id or 0,
        special_ids=tuple(tokenizer.all_special_ids),
    )


def _bare_state(backend: Any) -> str:
    """Serialise without the settings of a training script: 128 tokens, padded, in MiniLM's."""
    backend.no_padding()
    backend.no_truncation()
    return str(backend.to_str())


def _lower_case(backend: Any) -> None:
    from tokenizers.normalizers import Lowercase, Sequence

    own: Any = backend.normalizer
    is_sequence = isinstance(own, Sequence)
    steps = list(own) if is_sequence else [own] if own else []
    if not any(isinstance(step, Lowercase) for step in steps):
        backend.normalizer = Sequence([Lowercase(), *steps])
