"""What a head is asked to be: store, label, place, kind, hold-out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from embedx.core.errors import UsageError
from embedx.core.places import Place

KINDS = ("auto", "logistic")


@dataclass(frozen=True)
class HeadSpec:
    """What one fit makes.

    Attributes:
        store: the store.
        label: the column of labels.
        out: the head's folder or URL.
        labels: a table with ids and labels; None takes the label from the store's carried columns.
        kind: auto or logistic; auto is logistic today.
        test_size: share of the labelled rows held out to measure, 0 to below 1; 0 measures by
            cross-validation alone.
        group: the column whose equal values must stay together in every split.
        seed: of every shuffle.
    """

    store: Place
    label: str
    out: Place
    labels: Path | None = None
    kind: str = "auto"
    test_size: float = 0.2
    group: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(
                f"--kind {self.kind!r} is not one of {', '.join(KINDS)}", f"Pass one of: {', '.join(KINDS)}"
            )
        if not 0 <= self.test_size < 1:
            raise UsageError(
                f"--test-size {self.test_size:g} is not a share of the rows",
                "Pass a number from 0 to below 1, e.g. 0.2",
            )
        if self.seed < 0:
            raise UsageError(f"--seed {self.seed} is negative", "Pass a number of at least 0")
        if self.group == self.label:
            raise UsageError(
                f"--group {self.group!r} is the label itself, so no class could be trained and tested",
                "Pass a column such as the customer, patient or video, or leave --group out",
            )
