"""A Dask cluster for one step: worker processes of its own, or a scheduler that is running already."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import dask
from distributed import Client, LocalCluster, WorkerPlugin
from distributed.core import CommClosedError, Status
from tornado.ioloop import PeriodicCallback

from embedx.core.errors import BusyError, EmbedxError
from embedx.core.machine import gpu_names
from embedx.core.memory import ARROW_POOL, PILLOW_BLOCKS
from embedx.core.specs import Resources
from embedx.core.threads import cpu_quota, memory_quota_bytes
from embedx.engine.interrupts import ignore_in_worker, signals_blocked

TASKS_PER_WORKER = 2
"""Two shard tasks overlap in a worker, so that reading and writing of one hide behind the forward pass of the other."""

CORES_PER_WORKER = 8
"""Of a local cluster without GPUs: beyond it one process's Python threads, not its cores, limit decoding."""

KEEP_S = 2.0
"""Seconds between two looks at whether every worker is watched over."""

CONFIG = {
    # A model's conversion may hold the interpreter for minutes; a worker that does not answer then is not dead.
    "distributed.scheduler.worker-ttl": "15 minutes",
    # A task is blamed for its worker's death at once; how often it is tried again is for the window to say.
    "distributed.scheduler.allowed-failures": 0,
    "distributed.comm.timeouts.connect": "30s",
    # Whoever starts slowly again, on a busy machine, is not lost; who is, `_kept` notices.
    "distributed.deploy.lost-worker-timeout": "1 hour",
    # Workers hold vectors, not Dask results: spilling and pausing have nothing to work on and only stall.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 0.95,
    # Of our own workers.
    **{f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in (ARROW_POOL, *PILLOW_BLOCKS.items())},
    # See _Worker; and nobody looks at it.
    "distributed.worker.profile.enabled": False,
}


class _Worker(WorkerPlugin):
    """Prepares a worker process.

    Before Python 3.12, Dask's profiler can freeze it for ever: `sys._current_frames` holds the runtime's lock, garbage
    collection within it gives up the interpreter's, and whoever starts a thread meanwhile holds that one and waits for
    the first (github.com/python/cpython/issues/106883). The more threads, the likelier; fetching starts many.
    """

    name = "embedx"
    idempotent = True

    def setup(self, worker: Any) -> None:
        ignore_in_worker()
        profiler = worker.periodic_callbacks.get("profile")
        if profiler is not None and sys.version_info < (3, 12):
            profiler.stop()


class _OwnWorker(_Worker):
    """Prepares a worker process that ends with the step: at once, for freeing a large model takes a third of a second.

    Nothing is lost: what tasks finish lies on the disk when they say so, and of others nothing may stand.

    Args:
        gpus: what `CUDA_VISIBLE_DEVICES` calls them; the workers take turns, and each sees its own only.
    """

    def __init__(self, gpus: Sequence[str]) -> None:
        self._gpus = gpus

    def setup(self, worker: Any) -> None:
        super().setup(worker)
        if self._gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = self._gpus[int(worker.name) % len(self._gpus)]

    def teardown(self, worker: Any) -> None:
        shutil.rmtree(worker.local_directory, ignore_errors=True)
        with suppress(OSError):
            os.unlink(f"{worker.local_directory}.dirlock")
        os._exit(0)


@dataclass(frozen=True)
class Cluster:
    """A connected cluster.

    Attributes:
        client: the connection.
        workers: processes there are now.
        threads_per_worker: cores that each worker may use.
    """

    client: Client
    workers: int
    threads_per_worker: int

    @property
    def slots(self) -> int:
        """Tasks that run at a time."""
        return self.workers * TASKS_PER_WORKER

    def run_everywhere(self, function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        """Run a call once on every worker, beside its tasks; returns address -> result."""
        return self.client.run(function, *arguments)


@contextmanager
def open_cluster(resources: Resources) -> Iterator[Cluster]:
    """Start local worker processes, or connect to a scheduler.

    Raises:
        BusyError: the scheduler cannot be reached, has no workers, or goes away within the block.
    """
    with dask.config.set(CONFIG):
        if resources.cluster == "local":
            yield from _local(resources)
        else:
            yield from _remote(resources)


@contextmanager
def open_cluster_ahead(resources: Resources, at_once: bool) -> Iterator[Callable[[], Cluster]]:
    """Yield what opens the cluster; it stays open until the block ends.

    Args:
        resources: how to compute.
        at_once: whether local workers start beside what the block does before it asks for them.
    """
    with ExitStack() as stack, ThreadPoolExecutor(1, thread_name_prefix="embedx-start") as starter:

        def open_now() -> Cluster:
            return stack.enter_context(open_cluster(resources))

        if at_once and resources.cluster == "local":
            yield starter.submit(open_now).result
        else:
            yield open_now


def plan_workers(resources: Resources) -> tuple[int, int]:
    """Return (worker processes, cores of each) of a local cluster."""
    cores = resources.threads or cpu_quota()
    workers = resources.workers or len(_gpus(resources)) or max(1, cores // CORES_PER_WORKER)
    return workers, max(1, cores // workers)


def _gpus(resources: Resources) -> tuple[str, ...]:
    return gpu_names() if resources.device in ("auto", "cuda") and resources.runtime != "openvino" else ()


def _local(resources: Resources) -> Iterator[Cluster]:
    workers, threads = plan_workers(resources)
    # That our workers end at once looks like an accident to Dask, which says so when nothing silences it any more.
    logging.getLogger("distributed.batched").setLevel(logging.WARNING)
    with (
        _start(workers) as cluster,
        Client(cluster, set_as_default=False) as client,
        _kept(cluster),
        _connected(client),
    ):
        client.register_plugin(_OwnWorker(_gpus(resources)))
        yield Cluster(client, workers, threads)


@contextmanager
def _kept(cluster: LocalCluster) -> Iterator[None]:
    """Start anew what watches over a worker process (Dask's nanny) if it ended with it.

    It does where the process is killed before it has quite started again. Then nothing would ever start one, and the
    run would wait for ever.
    """

    async def keep() -> None:
        for name, nanny in list(cluster.workers.items()):
            if nanny.status in (Status.closed, Status.failed):
                del cluster.workers[name]
        if len(cluster.workers) < len(cluster.worker_spec):
            cluster.scale(len(cluster.worker_spec))

    keeper = PeriodicCallback(keep, KEEP_S * 1000)
    cluster.loop.add_callback(keeper.start)
    try:
        yield
    finally:
        cluster.loop.add_callback(keeper.stop)


def _start(workers: int, tries: int = 2) -> LocalCluster:
    """Start worker processes; once more if one of them is killed in its first second, which Dask does not outlive."""
    try:
        with signals_blocked():
            return LocalCluster(
                n_workers=workers,
                threads_per_worker=TASKS_PER_WORKER,
                processes=True,
                memory_limit=int(memory_quota_bytes() * 0.9 / workers),
                dashboard_address="127.0.0.1:0",  # without a host it would listen to the whole network
                silence_logs=logging.CRITICAL,
            )
    except (RuntimeError, OSError, TimeoutError) as error:
        if tries > 1:
            return _start(workers, tries - 1)
        raise EmbedxError(
            f"worker processes do not start ({' '.join(str(error).split())[:200]})",
            'Check memory and limits; a script must call embedx under if __name__ == "__main__":',
        ) from error


def _remote(resources: Resources) -> Iterator[Cluster]:
    remedy = "Check --cluster and that the scheduler runs; the same command resumes"
    try:
        client = Client(resources.cluster, timeout="10s", set_as_default=False)
    except (OSError, ValueError) as error:
        raise BusyError(f"scheduler {resources.cluster} cannot be reached ({error})", remedy) from error
    with client, _connected(client):
        try:
            client.wait_for_workers(1, timeout=30)
        except TimeoutError:
            raise BusyError(
                f"scheduler {resources.cluster} has no workers", "Start workers, then run it again"
            ) from None
        client.register_plugin(_Worker())
        described = client.scheduler_info(n_workers=-1)["workers"]
        yield Cluster(client, len(described), resources.threads or 0)


@contextmanager
def _connected(client: Client) -> Iterator[None]:
    """Say a lost connection as such: Dask's calls raise one OSError or another, which might also be a full disk's."""
    try:
        yield
    except OSError as error:
        if isinstance(error, CommClosedError) or client.status != "running":
            raise BusyError(
                "the connection to the scheduler or a worker was lost", "The same command resumes"
            ) from error
        raise
