"""Opening what an extraction needs: store, encoder and corpus, and whether they fit each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from embedx.core.contracts import Encoder, EncoderCard
from embedx.core.errors import FingerprintMismatchError, UsageError
from embedx.core.long_texts import LongTexts
from embedx.core.specs import EncoderSpec, ExtractSpec
from embedx.corpora.listing import Corpus, open_corpus
from embedx.corpora.sources import Source
from embedx.encoders.registry import open_encoder
from embedx.store import runs
from embedx.store.layout import StoreLayout
from embedx.store.reader import StoreCard, read_store_card


@dataclass(frozen=True)
class Opened:
    """What an extraction to one store needs.

    Attributes:
        spec: what to compute.
        store_card: of a store that there is already.
        card: the encoder's.
        corpus: understood; the same one for all stores of a run.
    """

    spec: ExtractSpec
    store_card: StoreCard | None
    card: EncoderCard
    corpus: Corpus


def open_all(specs: Sequence[ExtractSpec], sources: tuple[Source, ...] | None = None) -> list[Opened]:
    """Open what can be wrong before anything is written: stores, encoders, corpus.

    Args:
        specs: what to compute, for each store; alike but for the encoder and the store.
        sources: of these very specs, where they have been opened already: opening them again would list them twice.
    """
    if len(specs) > 1:
        _check_folder(specs[0].out.parent)
    encoders = [open_encoder(spec.encoder) for spec in specs]
    _check_encoders(specs, [encoder.card for encoder in encoders])
    opened: list[Opened] = []
    for spec, encoder in zip(specs, encoders):
        one = _open(spec, encoder, sources)
        sources = one.corpus.sources
        if opened and one.corpus.columns != opened[0].corpus.columns:
            theirs, ours = (_names(other.corpus) for other in (opened[0], one))
            raise UsageError(
                f"{opened[0].spec.out} carries the columns {theirs}, {spec.out} carries {ours}",
                "Name --columns that suit all stores, or extract to these two apart",
            )
        opened.append(replace(one, corpus=opened[0].corpus) if opened else one)
    return opened


def _names(corpus: Corpus) -> str:
    return ", ".join(column.name for column in corpus.columns.carried) or "none"


def _check_folder(folder: Path) -> None:
    """Refuse a folder for several stores that is a store itself."""
    if StoreLayout(folder).meta.is_dir():
        raise UsageError(
            f"{folder} is a store, and several encoders need a folder of stores", "Name another folder as --out"
        )


def _check_encoders(specs: Sequence[ExtractSpec], cards: Sequence[EncoderCard]) -> None:
    """Refuse encoders of which two are one, or which embed different kinds of items."""
    names: dict[str, str] = {}
    for spec, card in zip(specs, cards):
        if card.modality != cards[0].modality:
            raise UsageError(
                f"{cards[0].ref} embeds {cards[0].modality}s, {card.ref} embeds {card.modality}s",
                "Encoders of one run read the same items: extract with these two apart",
            )
        if (other := names.setdefault(card.fingerprint, spec.out.name)) != spec.out.name:
            raise UsageError(f"{other} and {spec.out.name} are the same encoder", "Leave one of them out")


def _open(spec: ExtractSpec, encoder: Encoder, sources: tuple[Source, ...] | None) -> Opened:
    runs.check_out(spec.out)
    store_card, card = _known_card(spec.out), encoder.card
    if store_card is not None:
        _check_store(spec, store_card, card)
    if spec.long is not None:
        _check_long(spec.long, encoder)
    if card.direct and spec.precision == "bf16":
        raise UsageError(f"{card.ref} computes in float32 by itself, not in bf16", "Leave out --precision")
    frozen = store_card.columns if store_card else None
    corpus = open_corpus(spec.corpus, frozen, card.modality, sources)
    if corpus.kind != card.modality:
        raise UsageError(
            f"{card.ref} embeds {card.modality}s, but {corpus.sources[0].path} holds {corpus.kind}s",
            _remedy(card, corpus.kind),
        )
    if store_card is not None and store_card.content_column != corpus.columns.content_column:
        raise UsageError(
            f"{spec.out} carries the text as {store_card.content_column!r}, not as {corpus.columns.content_column!r}",
            "Use the same --text-column, or extract to another --out",
        )
    if spec.mirror and corpus.positional:
        raise UsageError(
            f"--mirror needs stable ids, but those of {corpus.positional[0]} are row numbers", "Name an --id-column"
        )
    return Opened(spec, store_card, card, corpus)


def _remedy(card: EncoderCard, kind: str) -> str:
    if kind in card.queries:
        return f"Its other tower embeds {kind}s: --encoder {EncoderSpec.from_dict(card.queries[kind]).ref}"
    return "Choose an encoder for it; see embedx encoders"


def _check_long(long: LongTexts, encoder: Encoder) -> None:
    card = encoder.card
    if card.modality != "text":
        raise UsageError(f"--long is about texts, {card.ref} embeds {card.modality}s", "Leave out --long")
    if long.chunks and getattr(encoder, "windows", None) is None:
        raise UsageError(
            f"{card.ref} cannot cut texts into windows",
            "Leave out --long: it reads texts whole, or does not say where it cuts them",
        )


def _known_card(root: Path) -> StoreCard | None:
    """Return the card that binds this run: of a store with a version, or with a run that can be resumed."""
    layout = StoreLayout(root)
    if not layout.delta_log.is_dir() and not runs.read_history(layout).interrupted:
        return None
    return read_store_card(root)


def _check_store(spec: ExtractSpec, store_card: StoreCard, card: EncoderCard) -> None:
    theirs = store_card.encoder
    if theirs.fingerprint != card.fingerprint:
        raise FingerprintMismatchError(
            f"{spec.out} holds vectors of {theirs.ref} ({theirs.fingerprint[:12]}), "
            f"not of {card.ref} ({card.fingerprint[:12]})",
            "Extract to another --out, or use the store's encoder",
        )
    if spec.precision not in ("auto", store_card.precision):
        raise FingerprintMismatchError(
            f"{spec.out} was created with precision {store_card.precision}, not {spec.precision}",
            "Leave out --precision, or extract to another --out",
        )
    if spec.long not in (None, store_card.long):
        raise FingerprintMismatchError(
            f"{spec.out} was created with {store_card.long.flags}, not {spec.long.flags}",
            "Leave out --long and --chunk-pool, or extract to another --out",
        )
    if spec.full_bits and not store_card.full_bits:
        raise FingerprintMismatchError(
            f"{spec.out} keeps 10 mantissa bits, not all",
            "Leave out --store-precision, or extract to another --out",
        )
