"""Sums that all processes of a run share: a locked file on a disk, an object replaced by `If-Match` elsewhere."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable

from embedx.core.errors import EmbedxError
from embedx.core.meter import Counter, FileCounter, current_meter
from embedx.store.files import File, LocalFiles
from embedx.store.objects import ObjectFiles

MOST_TRIES = 200
"""Each means that another process has counted in between."""


def open_counter(file: File) -> Counter:
    """Return the counter in a file."""
    if isinstance(file.files, LocalFiles):
        return FileCounter(file.files.root / file.name)
    return ObjectCounter(file)


def share_meter(file: File) -> None:
    """Let this command's meter count where the run's workers do."""
    counter = open_counter(file)
    if isinstance(counter, ObjectCounter):
        counter.begin()
    current_meter().move_to(counter)


class ObjectCounter:
    """Sums in an object.

    Args:
        file: the object, in the run's record.
    """

    def __init__(self, file: File) -> None:
        assert isinstance(file.files, ObjectFiles)
        self._files = file.files
        self._name = file.name
        self._run = str(file).split("/")[-2]

    def begin(self) -> None:
        """Make the object; without it nothing is counted, so that no worker counts for a run that is over."""
        self._files.create(self._name, b"{}")

    def change(self, step: Callable[[dict[str, int]], None]) -> dict[str, int]:
        """See `core.meter.Counter`."""
        for _ in range(MOST_TRIES):
            try:
                found = self._files.read_version(self._name)
            except FileNotFoundError:
                raise EmbedxError(f"the run of {self._run} is over", "Run the same command again") from None
            sums = dict(json.loads(found.data))
            before = dict(sums)
            step(sums)
            if sums == before or self._files.replace(self._name, json.dumps(sums).encode(), found.mark):
                return sums
            time.sleep(random.uniform(0.0, 0.05))
        raise EmbedxError(f"{self._files.place}/{self._name} is changed too often", "Use fewer workers")
