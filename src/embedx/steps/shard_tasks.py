"""The tasks of an extraction on the cluster: each reads rows once and embeds them for every store that needs them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from embedx.core.errors import BusyError
from embedx.core.reports import Progress
from embedx.engine.cluster import Cluster
from embedx.engine.interrupts import Interrupts
from embedx.engine.window import Outcome, Task, Window
from embedx.steps.extract_shard import extract_shards
from embedx.steps.flight import Extraction, failure_of
from embedx.steps.poison import find_poison
from embedx.steps.rewrite_shard import rewrite_shard
from embedx.steps.shard_job import Part
from embedx.store import runs
from embedx.store.shards import Receipt


def run_tasks(extraction: Extraction, cluster: Cluster, state: Progress, interrupts: Interrupts) -> None:
    """Run all tasks; then, one at a time and alone, those that killed or hung their workers.

    Receipts are gathered in the runs' publications. A store whose task fails gets the error, and no further tasks; the
    others go on.
    """
    tasks = _Tasks(extraction)
    tally = _Tally(extraction, state, interrupts, tasks)
    for outcome in Window(cluster.client, cluster.slots, tally.should_stop).iterate(tasks):
        tally.accept(outcome)
    alone = Window(cluster.client, 1, tally.should_stop)
    for part in tally.suspects:
        if extraction.runs[part.store].error is not None:
            continue
        state.note = f"looking for the item of {part.name} that kills or hangs workers"
        extraction.progress(state)
        rows = extraction.runs[part.store].publication.plan.shard_rows[part.shard]
        task = Task(f"extract-{part.name}-rest", extract_shards, ((part,),))
        try:
            # Of several stores that a killed task was for, some may have their file.
            quarantined = () if part.path.exists() else tuple(find_poison(alone, part, rows))
        except BusyError:
            raise
        except Exception as error:  # of the encoder, in a probe
            tally.accept(Outcome(task, error=error), alone=True)
            continue
        if tally.should_stop():
            break
        for outcome in alone.iterate([replace(task, arguments=((part,), quarantined))]):
            tally.accept(outcome, alone=True)


class _Tasks(Iterator[Task]):
    """The tasks still to be begun: those that came back to be done store by store, then what is planned.

    Unlike a generator it may have tasks again after it had none.
    """

    def __init__(self, extraction: Extraction) -> None:
        self._extraction = extraction
        self._returned: deque[Part] = deque()
        self._planned = self._iterate()

    def __next__(self) -> Task:
        while self._returned:
            part = self._returned.popleft()
            if self._extraction.runs[part.store].error is None:
                return Task(f"extract-{part.name}-apart", extract_shards, ((part,),))
        return next(self._planned)

    def do_apart(self, parts: Sequence[Part]) -> None:
        """Do again what a task of several stores could not, store by store."""
        self._returned.extend(parts)

    def _iterate(self) -> Iterator[Task]:
        for store, run in enumerate(self._extraction.runs):
            for shard, rewrite in run.publication.plan.new_rewrites:
                part = Part(self._extraction.jobs[store], shard, store)
                if run.error is None:
                    yield Task(f"rewrite-{part.name}", rewrite_shard, (part, rewrite.path, rewrite.group))
        for shared in self._extraction.shards:
            if parts := self._extraction.parts(shared):
                yield Task(f"extract-{parts[0].name}", extract_shards, (parts,))


@dataclass
class _Tally:
    """What came of the tasks so far."""

    extraction: Extraction
    state: Progress
    interrupts: Interrupts
    tasks: _Tasks
    suspects: list[Part] = field(default_factory=list)

    def should_stop(self) -> bool:
        going = any(run.error is None for run in self.extraction.runs if run.has_tasks)
        return bool(self.interrupts.signal_number) or not going

    def accept(self, outcome: Outcome | None, alone: bool = False) -> None:
        if self.interrupts.signal_number:
            self.state.note = "stopping: waiting for the shards in work"
        if outcome is not None and outcome.error is None:
            self._keep(outcome)
        elif outcome is not None:
            self._judge(outcome, alone)
        self.extraction.progress(self.state)

    def _keep(self, outcome: Outcome) -> None:
        embeds = outcome.task.function is extract_shards
        receipts: list[Receipt] = outcome.result if embeds else [outcome.result]
        for part, receipt in zip(_parts(outcome.task), receipts):
            publication = self.extraction.runs[part.store].publication
            publication.receipts.append(receipt)
            runs.note_receipt(publication.plan.layout, receipt)
            if embeds:
                self.state.done += receipt.items
                self.state.failed += receipt.failed

    def _judge(self, outcome: Outcome, alone: bool) -> None:
        """A task of several stores is no store's failure yet: each of them tries by itself."""
        parts = _parts(outcome.task)
        if outcome.is_suspect and not alone and outcome.task.function is extract_shards:
            self.suspects.extend(parts)
        elif len(parts) > 1:
            self.tasks.do_apart(parts)
        else:
            error = failure_of(outcome)
            error.__cause__ = error.__cause__ or outcome.error
            run = self.extraction.runs[parts[0].store]
            run.error = run.error or error


def _parts(task: Task) -> tuple[Part, ...]:
    first = task.arguments[0]
    return (first,) if isinstance(first, Part) else first
