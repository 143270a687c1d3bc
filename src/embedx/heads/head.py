"""A head: opened from its folder, it turns vectors into labels and probabilities."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from embedx.core.contracts import EncoderCard
from embedx.core.errors import FingerprintMismatchError, StoreError, UsageError
from embedx.core.places import Place, parse_place
from embedx.heads.artefact import load_estimator
from embedx.heads.card import HeadCard, read_card
from embedx.heads.objects import estimator_name
from embedx.store.files import File, Files, LocalFiles, open_files


@dataclass(frozen=True)
class Head:
    """A fitted estimator and the encoder it belongs to. Open it with `open_head`.

    Attributes:
        path: where it lies.
        card: what it says of itself.
        estimator: the scikit-learn pipeline: raw vectors to classes.
    """

    path: Place
    card: HeadCard
    estimator: Any

    @property
    def classes(self) -> list[str]:
        """The classes, in the order of `predict_proba`'s columns."""
        return self.card.classes

    def predict(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Name the most probable class of each vector.

        Args:
            vectors: (n, dim) float32, as the store holds them.

        Returns:
            labels (n,) object array of str and their probabilities (n,) float32.

        Raises:
            UsageError: another shape, or values that are not finite.
        """
        return self.choose(self.predict_proba(vectors))

    def choose(self, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the most probable class of each row of (n, len(classes)), and its probability, as `predict` does."""
        columns = probabilities.argmax(axis=1)
        names = np.array(self.classes, dtype=object)
        return names[columns], probabilities[np.arange(len(columns)), columns]

    def predict_proba(self, vectors: np.ndarray) -> np.ndarray:
        """Return the probability of each class, (n, len(classes)) float32.

        Raises:
            UsageError: another shape, or values that are not finite.
        """
        vectors = np.asarray(vectors, dtype=np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != self.card.dim:
            shape = "x".join(map(str, vectors.shape))
            raise UsageError(
                f"{self.path} takes vectors of shape (n, {self.card.dim}), not {shape}",
                f"Embed with {self.card.encoder['ref']}, one vector a row",
            )
        if not np.isfinite(vectors).all():
            row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
            raise UsageError(f"vector {row} has values that are not finite", "Leave the vector out")
        if not len(vectors):
            return np.empty((0, len(self.classes)), dtype=np.float32)
        return np.asarray(self.estimator.predict_proba(vectors), dtype=np.float32)

    def check_encoder(self, encoder: EncoderCard, where: str) -> None:
        """Refuse vectors of another encoder, even of the same length.

        Args:
            encoder: what the vectors come from.
            where: whose vectors they are, for the message.

        Raises:
            FingerprintMismatchError: it is not the encoder this head was fitted on.
        """
        mine = self.card.encoder
        if encoder.fingerprint != mine["fingerprint"]:
            raise FingerprintMismatchError(
                f"{self.path} was fitted on vectors of {mine['ref']} (fingerprint {mine['fingerprint'][:12]}), "
                f"{where} holds vectors of {encoder.ref} (fingerprint {encoder.fingerprint[:12]})",
                "Use a store of the same encoder and weights, or fit a head on this one",
            )


def open_head(path: str | Place) -> Head:
    """Open a head, after checking that its file is the one its card describes.

    Args:
        path: its folder or URL.

    Raises:
        StoreError: there is no head, it is damaged, or it holds what no head holds.
    """
    place = parse_place(path)
    card_file = File(open_files(place), "card.json")
    if not card_file.exists():
        if open_files(place).exists():
            raise StoreError(f"{place} is not an embedx head", "Pass the folder given as --out to embedx fit-head")
        raise StoreError(
            f"{place} does not exist", f"Create it with: embedx fit-head STORE --label COLUMN --out {place}"
        )
    card, data = _read(card_file)
    estimator = load_estimator(data, f"{place}/head.skops")
    _check_estimator(estimator, card, place)
    return Head(place, card, estimator)


def _read(card_file: File) -> tuple[HeadCard, bytes]:
    files = card_file.files
    for _ in range(2):
        card = read_card(card_file)
        sha256 = str(card.files["head.skops"].get("sha256"))
        try:
            data = _read_estimator(files, sha256)
        except OSError as error:
            problem = f"{files.place}/head.skops cannot be read ({error.strerror})"
            continue
        # A head may be replaced between the two reads: the second time both are of the new one.
        if hashlib.sha256(data).hexdigest() == sha256:
            return card, data
        problem = f"{files.place}/head.skops is not the file that {card_file} describes (sha256 differs)"
    raise StoreError(f"{problem}; it was not loaded", "Restore it from a copy, or fit the head again")


def _read_estimator(files: Files, sha256: str) -> bytes:
    """Read the estimator under either of its names: a head may have been copied from or to an object store."""
    names = ("head.skops", estimator_name(sha256))
    first, second = names if isinstance(files, LocalFiles) else names[::-1]
    try:
        return files.read(first)
    except FileNotFoundError as error:
        try:
            return files.read(second)
        except FileNotFoundError:
            raise error from None


def _check_estimator(estimator: Any, card: HeadCard, place: Place) -> None:
    """The card names the probabilities' columns, so it must agree with the estimator."""
    try:
        classes = [str(label) for label in estimator.classes_]
        dim = int(estimator.named_steps["classify"].n_features_in_)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{place}/head.skops holds no fitted classifier ({error})", "Fit the head again with embedx fit-head"
        ) from error
    if classes != card.classes or dim != card.dim:
        raise StoreError(
            f"{place}/card.json and head.skops disagree on classes or dim", "Restore the head, or fit it again"
        )
