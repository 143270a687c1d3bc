"""What text encoders share: tokenised texts, padded into batches; prompts; canaries. Never imports torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from embedx.core.batches import TOKENS_STEP, round_up
from embedx.core.contracts import Broken, EncoderCard, Prepared
from embedx.core.digests import fingerprint
from embedx.core.specs import EncoderSpec
from embedx.encoders.cards import KnownCard, open_card
from embedx.encoders.model_folder import folder_state
from embedx.encoders.tokenization import TextTokenizer
from embedx.encoders.windows import Span, WindowCutter

CANARIES = (
    "The quick brown fox jumps over the lazy dog.",
    "def add(a, b):\n    return a + b",
    "Paris",
    "How do I reset my password? I have tried the link in the e-mail twice and it says that it has expired.",
    " ".join(f"{number} more words make this text longer than any window of attention." for number in range(20)),
)
"""The last one, of some 250 tokens, pads the others by more than a model with local attention sees at a time."""

Tokenize = Callable[[list[str]], tuple[list[list[int]], list[bool]]]
"""Texts -> the token ids that the model reads of each, and whether a text had more of them. Thread-safe."""

CutWindows = Callable[[list[str]], list[list[Span]]]
"""Texts -> the windows of each that the model reads whole. Thread-safe."""


@dataclass(frozen=True)
class TextSharing:
    """How several layers and poolings of one model share a forward pass.

    Attributes:
        known: the encoder's card and recipe.
        load: cards of one model -> the torch module, (input_ids, attention_mask) -> their vectors side by side.
    """

    known: KnownCard
    load: Callable[[Sequence[KnownCard]], Any]


class TextEncoder:
    """An encoder of texts; the module that it builds takes padded ids and their mask.

    Args:
        card: what the encoder is.
        tokenize: texts to token ids, in the library's own way.
        load: returns the torch module, (input_ids, attention_mask) -> (n, dim) float32; called by `build`.
        prompt: words put before every text.
        pad_id: the token that fills shorter texts up, on the right.
        windows: cuts long texts; None where that is not possible.
        sharing: how it shares a forward pass with other layers and poolings of its model; None is not at all.
    """

    def __init__(
        self,
        card: EncoderCard,
        tokenize: Tokenize,
        load: Callable[[], Any],
        prompt: str = "",
        pad_id: int = 0,
        windows: CutWindows | None = None,
        sharing: TextSharing | None = None,
    ) -> None:
        self._card = card
        self._tokenize = tokenize
        self._load = load
        self._prompt = prompt
        self._pad_id = pad_id
        self.windows = windows
        self._sharing = sharing

    @property
    def card(self) -> EncoderCard:
        """What the encoder is."""
        return self._card

    @property
    def preparation(self) -> tuple[str, str, str] | None:
        """What encoders share which tokenise and cut texts alike; None where the tokenizer does not say."""
        digest = getattr(self._tokenize, "digest", None)
        return ("text", digest, self._prompt) if digest else None

    def prepare(self, items: Sequence[str | Broken]) -> Prepared:
        """Tokenise texts; entries are (tokens,) int64 arrays."""
        failures = {position: item for position, item in enumerate(items) if isinstance(item, Broken)}
        texts = {position: self._prompt + item for position, item in enumerate(items) if not isinstance(item, Broken)}
        entries, kept, truncated = [], [], 0
        for position, tokens in zip(texts, self._tokenize_each(list(texts.values()))):
            if isinstance(tokens, Broken):
                failures[position] = tokens
                continue
            ids, is_truncated = tokens
            truncated += is_truncated
            entries.append(np.array(ids, dtype=np.int64))
            kept.append(position)
        return Prepared(entries, np.array(kept, dtype=np.int64), failures, truncated)

    def _tokenize_each(self, texts: list[str]) -> list[tuple[list[int], bool] | Broken]:
        try:
            results = list(zip(*self._tokenize(texts), strict=True))
        except Exception as error:
            # One text that no tokenizer takes, such as half a surrogate pair, must not cost the others anything.
            if len(texts) == 1:
                return [Broken.from_exception("prepare", _unicode_error(texts[0]) or error)]
            return [result for text in texts for result in self._tokenize_each([text])]
        empty = Broken("prepare", "NoTokens", "the text has no token that the encoder knows")
        return [(ids, is_truncated) if ids else empty for ids, is_truncated in results]

    def cost(self, prepared: Prepared) -> np.ndarray:
        """Return (m,) int64 tokens of each text."""
        return np.array([len(entry) for entry in prepared.items], dtype=np.int64)

    def collate(self, entries: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Pad token ids to the batch's longest text or up to 7 more: input_ids, attention_mask (n, tokens) int64."""
        lengths = np.fromiter(map(len, entries), dtype=np.int64, count=len(entries))
        longest = int(lengths.max())
        # Where the encoder says how much it reads; beyond that it may have no positions.
        width = max(longest, min(round_up(longest, TOKENS_STEP), self.card.input.get("max_tokens") or longest))
        ids = np.full((len(entries), width), self._pad_id, dtype=np.int64)
        is_token = np.arange(width) < lengths[:, None]
        ids[is_token] = np.concatenate(entries)
        return {"input_ids": ids, "attention_mask": is_token.astype(np.int64)}

    def build(self) -> Any:
        """Return the torch module, (input_ids, attention_mask) -> (n, dim) float32."""
        return self._load()

    @property
    def forward_key(self) -> str | None:
        """What encoders share which one forward pass can serve."""
        return self._sharing.known.model_key if self._sharing else None

    def build_with(self, others: Sequence[TextEncoder]) -> Any:
        """Return the torch module of this encoder and others of its model: their vectors side by side."""
        sharing = [encoder._sharing for encoder in (self, *others)]
        known = [one.known for one in sharing if one is not None]
        known[0].check_weights()
        assert self._sharing is not None
        return self._sharing.load(known)

    def pack(self, module: Any) -> Callable[[], None] | None:
        """Let a module that was built here compute texts packed; returns what undoes it, or None. See `pack_module`."""
        from embedx.encoders.packing import pack_module

        return pack_module(module)

    def canaries(self) -> list[Any]:
        """Return a few fixed texts."""
        return list(CANARIES)


def _unicode_error(text: str) -> UnicodeError | None:
    """Return what is wrong with a text that is no Unicode; the bindings' own message speaks of types."""
    try:
        text.encode()
    except UnicodeError as error:
        return error
    return None


def text_card(spec: EncoderSpec, model: dict[str, Any], prompt: str, **facts: Any) -> EncoderCard:
    """Return the card of a text encoder; with another prompt it is another encoder of the same space.

    Args:
        spec: which encoder.
        model: its identity but for the prompt.
        prompt: words put before every text.
        facts: the other fields of the card.
    """
    identity = {**model, "prompt": prompt}
    return EncoderCard(
        ref=spec.ref,
        family=spec.family,
        modality="text",
        fingerprint=fingerprint(identity),
        identity=identity,
        spec=spec.to_dict(),
        space=fingerprint(model),
        **facts,
    )


def open_text_encoder(
    spec: EncoderSpec,
    folder: Path,
    packages: Sequence[str],
    describe: Callable[[EncoderSpec], KnownCard],
    load: Callable[[KnownCard], Any],
    load_together: Callable[[Sequence[KnownCard]], Any] | None = None,
) -> TextEncoder:
    """Open an encoder of a model folder by its remembered card, or describe it once.

    Args:
        spec: which encoder.
        folder: the model.
        packages: installed packages whose versions can change the model's graph or tokens.
        describe: makes the card; its recipe has a `TextTokenizer`, as a dict, as `tokenizer`.
        load: the torch module, (input_ids, attention_mask) -> (n, dim) float32.
        load_together: that of several cards of one model, their vectors side by side; None where there is none.
    """
    absolute = replace(spec, weights=str(folder)) if spec.weights else spec
    if spec.name and Path(spec.name).expanduser().is_dir() and not spec.weights:
        absolute = replace(spec, name=str(folder))  # so that a worker with another current folder finds it
    # The folder's state stands for its weights file.
    known = open_card(replace(absolute, weights=None), packages, lambda _: describe(absolute), folder_state(folder))
    tokenizer = TextTokenizer(**known.recipe["tokenizer"])

    def reload() -> Any:
        known.check_weights()
        return load(known)

    prompt = known.card.identity["prompt"]
    windows = WindowCutter(tokenizer, prompt) if tokenizer.max_tokens else None
    sharing = TextSharing(known, load_together) if load_together else None
    return TextEncoder(known.card, tokenizer, reload, prompt, tokenizer.pad_id, windows, sharing)
