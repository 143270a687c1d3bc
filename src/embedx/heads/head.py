"""A head: opened from its folder, it turns vectors into labels and probabilities."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedx.core.contracts import EncoderCard
from embedx.core.errors import FingerprintMismatchError, StoreError, UsageError
from embedx.heads.artefact import load_estimator
from embedx.heads.card import HeadCard, read_card
from embedx.heads.folder import HeadFiles


@dataclass(frozen=True)
class Head:
    """A fitted estimator and the encoder it belongs to. Open it with `open_head`.

    Attributes:
        path: its folder.
        card: what it says of itself.
        estimator: the scikit-learn pipeline: raw vectors to classes.
    """

    path: Path
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


def open_head(path: str | Path) -> Head:
    """Open a head, after checking that its file is the one its card describes.

    Raises:
        StoreError: there is no head, it is damaged, or it holds what no head holds.
    """
    files = HeadFiles(Path(path))
    if not files.folder.is_dir():
        raise StoreError(
            f"{files.folder} does not exist",
            f"Create it with: embedx fit-head STORE --label COLUMN --out {files.folder}",
        )
    if not files.card.is_file():
        raise StoreError(f"{files.folder} is not an embedx head", "Pass the folder given as --out to embedx fit-head")
    card, data = _read(files)
    estimator = load_estimator(data, str(files.estimator))
    _check_estimator(estimator, card, files)
    return Head(files.folder, card, estimator)


def _read(files: HeadFiles) -> tuple[HeadCard, bytes]:
    for attempt in (1, 2):
        card = read_card(files.card)
        try:
            data = files.estimator.read_bytes()
        except OSError as error:
            raise StoreError(
                f"{files.estimator} cannot be read ({error.strerror})", "Fit the head again with embedx fit-head"
            ) from error
        # A head may be replaced between the two reads: the second time both are of the new one.
        if hashlib.sha256(data).hexdigest() == card.files["head.skops"].get("sha256"):
            return card, data
        if attempt == 2:
            break
    raise StoreError(
        f"{files.estimator} is not the file that {files.card} describes (sha256 differs); it was not loaded",
        "Restore it from a copy, or fit the head again",
    )


def _check_estimator(estimator: Any, card: HeadCard, files: HeadFiles) -> None:
    """The card names the probabilities' columns, so it must agree with the estimator."""
    try:
        classes = [str(label) for label in estimator.classes_]
        dim = int(estimator.named_steps["classify"].n_features_in_)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{files.estimator} holds no fitted classifier ({error})", "Fit the head again with embedx fit-head"
        ) from error
    if classes != card.classes or dim != card.dim:
        raise StoreError(
            f"{files.card} and {files.estimator.name} disagree on classes or dim", "Restore the head, or fit it again"
        )
