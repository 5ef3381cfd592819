"""The workers as a whole: how many there should be, who is starting, who has died, what was asked of all of them."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from time import monotonic
from typing import TYPE_CHECKING, Any

from .._pipe import Poller
from .._schedule.records import Worker
from .._worker._process import Settings as WorkerSettings
from ..errors import ClosedClientError, InternalError, WorkerStartError, WorkerStartTimeoutError
from ._pool import Initializer, ProcessWorker, descendants, end_all, startup_complaint, thread_environment
from ._threads import ThreadWorker

if TYPE_CHECKING:
    from ._values import ValueStore

#: Workers that die one after the other before they are ready, until nobody is started any more.
START_ATTEMPTS = 3
#: After how many seconds another worker is tried, when the machine had no room for one.
RETRY = 1.0
#: How long a worker may take to end when it was asked to by SIGTERM, in seconds.
TERMINATION = 2.0
#: How long a running task may delay the end of its worker at close, in seconds.
GRACE = 0.5

_SPAWN_HINT = (
    "\nLocks, queues and values of multiprocessing that go into initargs have to be made by "
    'multiprocessing.get_context("spawn"): no worker is forked'
)

_pool_numbers = itertools.count()


@dataclass(frozen=True)
class Settings:
    """What a pool of workers is made from."""

    n_workers: int
    threads_per_worker: int
    processes: bool
    resources: dict[str, float]
    memory_limit: int | None
    allowed_failures: int
    initializer: Initializer = None
    #: how many tasks a worker runs before another takes its place
    max_tasks: float = float("inf")
    #: True, as in the standard library's pool: a worker is started when a task waits and none is free; when one cannot
    #: start, nothing runs any more; and functions of ``__main__`` share in a worker what they set there
    standard: bool = False


class Crew:
    """All workers of one engine. Methods belong to the scheduler's thread where nothing else is said."""

    def __init__(
        self, settings: Settings, values: ValueStore, poller: Poller, post: Callable[[ThreadWorker, Any], None]
    ) -> None:
        self.settings = settings
        self._values = values
        self._poller = poller
        self._post = post
        #: names that a worker should have
        self._names: list[Any] = list(range(settings.n_workers))
        #: how many may be starting at a time: with one per processor, and one left for this process, the first is
        #: ready soonest
        self._start_at_once = 1
        #: workers that were started and have not ended
        self.workers: list[ProcessWorker | ThreadWorker] = []
        self._new_threads: list[ThreadWorker] = []
        self._serials = itertools.count()
        #: where this pool is; its workers' addresses begin with it
        self.address = f"local://{os.getpid()}-{next(_pool_numbers)}"
        self._failed_starts = 0
        #: True when `keep_up` or `take_joined_threads` has something to do
        self.changed = False
        #: True when a worker could be started on demand
        self.can_grow = settings.standard
        #: why no worker can start, once it is known
        self.broken: BaseException | None = None
        self._changed = threading.Condition()
        self._ready = 0
        #: until when no worker is started, because the machine refused the last one
        self._retry_after = 0.0
        self._calls: dict[int, Call] = {}
        self._call_numbers = itertools.count(1)
        self._environment: dict[str, str] = {}
        #: what workers that were terminated had started
        self._descendants: list[Any] = []

    # -- starting

    def start(self) -> None:
        """Start all workers, without waiting for them."""
        if self.settings.processes:
            import loky

            cpus = loky.cpu_count()
            self._start_at_once = max(1, cpus - 1)
            self._environment = thread_environment(cpus, self.settings.n_workers)
        self.keep_up(0)

    def keep_up(self, waiting: int) -> None:
        """Start the workers that are missing; on demand, as many as there are tasks `waiting` for one."""
        self.changed = bool(self._new_threads)
        present = {worker.record.name for worker in self.workers if not worker.dismissed}
        self.can_grow = self.settings.standard and self.broken is None and len(present) < len(self._names)
        if self.broken is not None or len(present) >= len(self._names):
            return
        if monotonic() < self._retry_after:
            return
        coming = self.coming
        # Those that are in their initializer do not keep a processor busy: they may wait for each other there.
        starting = sum(not worker.up for worker in self.workers)
        at_once = self._start_at_once if self.settings.processes else len(self._names)
        wanted = waiting if self.settings.standard else len(self._names)
        for name in self._names:
            if name not in present and starting < at_once and coming < wanted:
                if not self._start_one(name):
                    return
                starting += 1
                coming += 1

    def is_up(self, worker: ProcessWorker | ThreadWorker) -> None:
        """Take note that a worker process runs."""
        worker.up = True
        self.changed = True  # the next one may start

    def _start_one(self, name: Any) -> bool:
        """Start a worker; say whether that was possible."""
        settings = self.settings
        address = f"{self.address}/worker-{next(self._serials)}"
        record = Worker(address, name, settings.threads_per_worker, settings.resources, settings.max_tasks)
        if not settings.processes:
            thread = ThreadWorker(record, self._values.folders.disk, self._post)
            self.workers.append(thread)
            self._new_threads.append(thread)
            self.changed = True
            return True
        told = WorkerSettings(
            address,
            name,
            record.slots,
            self._values.folders,
            shared_globals=settings.standard,
            initializer=settings.initializer is not None,
        )
        try:
            process = ProcessWorker(record, told, self._environment, settings.initializer)
        except Exception as e:  # noqa: BLE001  (loky's helper processes may fail in many ways)
            if self.workers and isinstance(e, OSError):  # too many processes, or open files: those that run have to do
                self._retry_after = monotonic() + RETRY
            else:
                hint = _SPAWN_HINT if isinstance(e, RuntimeError) else ""
                self.fail(WorkerStartError(None, f"{type(e).__name__}: {e}{hint}"))
            return False
        self.workers.append(process)
        process.watch(self._poller)
        if process.tasks.blocked:  # by a long initializer
            self._poller.watch_writeable(process.tasks, process.tasks)
        return True

    def take_joined_threads(self) -> list[ThreadWorker]:
        """Return thread workers that were started since the last call; they are ready at once."""
        new, self._new_threads = self._new_threads, []
        return new

    def processes(self) -> dict[int, Any]:
        """Return the worker processes by their ids."""
        return {w.pid: w.process for w in self.workers if isinstance(w, ProcessWorker) and not w.dismissed}

    @property
    def coming(self) -> int:
        """How many workers were started and cannot take tasks yet."""
        return sum(not worker.ready for worker in self.workers)

    # -- coming and going

    def has(self, worker: ProcessWorker) -> bool:
        """Say whether this worker is known to be alive."""
        return worker in self.workers

    def joined(self, worker: ProcessWorker | ThreadWorker) -> None:
        """Take note that a worker can take tasks."""
        worker.ready = worker.up = True
        self._failed_starts = 0
        self.changed = True  # the next one may start
        with self._changed:
            self._ready += 1
            self._changed.notify_all()

    def left(self, worker: ProcessWorker) -> None:
        """Take note that a worker has ended, and was reaped."""
        self.workers.remove(worker)
        self.changed = True
        worker.forget(self._poller)
        for call in list(self._calls.values()):
            call.lost(worker.record.address)
        if worker.ready:
            with self._changed:
                self._ready -= 1
                self._changed.notify_all()
            return
        self._failed_starts += 1
        if worker.complaint or self._failed_starts >= START_ATTEMPTS:
            error = WorkerStartError(worker.exitcode, worker.complaint or startup_complaint(self._environment))
            error.__cause__ = worker.error
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Start no more workers, because of this."""
        self.broken = error
        with self._changed:
            self._changed.notify_all()

    def replace_all(self) -> list[str]:
        """End all workers and start new ones under the same names; return the addresses of the ended ones."""
        processes = [w for w in self.workers if isinstance(w, ProcessWorker)]
        threads = [w for w in self.workers if isinstance(w, ThreadWorker)]
        self._end(processes, grace=0.0)
        for process in processes:
            process.forget(self._poller)
        for thread in threads:
            thread.close_input()
        addresses = [worker.record.address for worker in self.workers]
        self.workers.clear()
        self._new_threads.clear()
        for call in list(self._calls.values()):
            for address in addresses:
                call.lost(address)
        with self._changed:
            self._ready = 0
        self.broken, self._failed_starts = None, 0
        self.keep_up(0)
        return addresses

    def dismiss(self, worker: ProcessWorker) -> None:
        """Let a worker end, and another take its place."""
        worker.dismissed = True
        worker.close_input(self._poller)
        self.changed = True

    def terminate(self, *, gently: bool) -> None:
        """Kill all worker processes, or ask them to end, as SIGTERM does; what remains is killed by `close`."""
        processes = [w for w in self.workers if isinstance(w, ProcessWorker)]
        self._descendants += descendants(p.pid for p in processes)
        for process in processes:
            (process.process.terminate if gently else process.process.kill)()
        deadline = monotonic() + TERMINATION
        for process in processes:
            process.reap(max(0.0, deadline - monotonic()))

    # -- waiting for workers: any thread

    @property
    def ready(self) -> int:
        """How many workers can take tasks."""
        return self._ready

    def wait_for(self, count: int, timeout: float | None) -> None:
        """Wait until `count` workers can take tasks. Any thread may call this.

        Raises:
            WorkerStartError: no more of them can start.
            WorkerStartTimeoutError: they did not in `timeout` seconds.
        """
        deadline = None if timeout is None else monotonic() + timeout
        with self._changed:
            while self._ready < count:
                if self.broken is not None:
                    raise self.broken
                left = None if deadline is None else deadline - monotonic()
                if left is not None and left <= 0:
                    assert timeout is not None
                    raise WorkerStartTimeoutError(self._ready, count, timeout)
                self._changed.wait(left)

    def wait_complete(self, timeout: float) -> None:
        """Wait while workers are starting, `timeout` seconds at most. Any thread but the scheduler's may call this."""
        deadline = monotonic() + timeout
        with self._changed:
            while self._ready < len(self._names) and self.broken is None and deadline > monotonic():
                self._changed.wait(deadline - monotonic())

    # -- calls outside of the task queue

    def run(self, pickled: bytes, addresses: Iterable[str]) -> Call:
        """Run a pickled (function, args, kwargs) on these workers; the answer comes through the returned object."""
        targets = {w.record.address: w for w in self.workers if isinstance(w, ProcessWorker) and w.ready}
        chosen = [targets[a] for a in addresses if a in targets]
        number = next(self._call_numbers)
        call = Call([w.record.address for w in chosen], lambda: self._calls.pop(number, None))
        self._calls[number] = call
        for worker in chosen:
            worker.command("run", (number, pickled))
        call.check()
        return call

    def ran(self, worker: ProcessWorker | ThreadWorker, number: int, payload: bytes) -> None:
        """Take the answer of one worker."""
        call = self._calls.get(number)
        if call is not None:
            call.answer(worker.record.address, payload)

    # -- the end

    def close(self, grace: float = GRACE) -> None:
        """End all workers and what they started; tasks that still run may take `grace` seconds more."""
        with self._changed:
            if self.broken is None:
                self.broken = ClosedClientError("the client is closed")
            self._changed.notify_all()
        for call in list(self._calls.values()):
            call.abandon()
        processes = [w for w in self.workers if isinstance(w, ProcessWorker)]
        for worker in self.workers:
            if isinstance(worker, ThreadWorker):
                worker.close_input()
        deadline = monotonic() + grace
        for worker in self.workers:
            if isinstance(worker, ThreadWorker):
                worker.join(max(0.0, deadline - monotonic()))
        self._end(processes, grace)
        for process in processes:
            process.forget(self._poller)
        self.workers.clear()
        self.settings = replace(self.settings, initializer=None)  # somebody may wait for the end of its arguments
        with self._changed:
            self._ready = 0

    def _end(self, processes: list[ProcessWorker], grace: float) -> None:
        """End processes, in order within `grace` seconds, by force after that, and all they have started."""
        if not processes:
            return
        started = self._descendants + descendants(p.pid for p in processes)
        for process in processes:
            if process.ready:
                process.close_input(self._poller)
            else:
                process.kill()  # it would complain about the end of its pipe, and nobody cares
        deadline = monotonic() + grace
        for process in processes:
            if not process.reap(max(0.0, deadline - monotonic())):
                started += descendants([process.pid])
                process.kill()
        for process in processes:
            if not process.reap(5.0):
                raise InternalError(f"worker process {process.pid} cannot be ended")
        end_all(started)

    def describe(self) -> dict[str, dict[str, Any]]:
        """Describe the workers that can take tasks, by address."""
        settings = self.settings
        return {
            w.record.address: {
                "type": "Worker",
                "id": w.record.name,
                "name": w.record.name,
                "pid": w.pid,
                "nthreads": w.record.slots,
                "memory_limit": settings.memory_limit,
                "resources": dict(settings.resources),
                "status": "running",
                "local_directory": self._values.folders.disk,
            }
            for w in self.workers
            if w.ready
        }


class Call:
    """The answers of several workers to one call. Any thread may wait for them."""

    def __init__(self, addresses: Iterable[str], on_complete: Callable[[], object]) -> None:
        self._missing = set(addresses)
        self._on_complete = on_complete
        self._done = threading.Event()
        #: address -> pickled (True, value) or (False, dumped error); None: the worker died
        self.answers: dict[str, bytes | None] = dict.fromkeys(addresses)
        self.abandoned = False

    def answer(self, address: str, payload: bytes | None) -> None:
        """Take one answer."""
        if address in self._missing:
            self._missing.discard(address)
            self.answers[address] = payload
            self.check()

    def lost(self, address: str) -> None:
        """Expect no answer from a worker that has died."""
        self.answer(address, None)

    def abandon(self) -> None:
        """Expect no more answers: the client closes."""
        self.abandoned = True
        self._missing.clear()
        self.check()

    def check(self) -> None:
        """Wake the one who waits, if nothing is missing."""
        if not self._missing:
            self._on_complete()
            self._done.set()

    def wait(self) -> None:
        """Wait until every worker has answered or died."""
        self._done.wait()
