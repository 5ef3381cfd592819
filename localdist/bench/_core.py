"""The scheduler core alone, with simulated workers and a virtual clock: what a task costs it, in time and memory."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from time import perf_counter

import psutil

from .._schedule import actions, events
from .._schedule.core import Scheduler
from .._schedule.records import Ending, Group, ReportLine, Task, Worker
from .._state import collection_paused

#: Tasks that are submitted, and released, together: as many as `Client.map` hands over at a time, or nearly so.
BATCH = 5_000
#: How long a task takes a worker, in seconds of virtual time: a small one, some twenty of which travel together.
DURATION = 1e-4
#: How often memory is looked at during a run; the pauses for it are not counted.
_LOOKS = 20


class Fleet:
    """Simulated workers that finish each batch of tasks after its time, and report it in one piece."""

    def __init__(self, count: int) -> None:
        self.core = Scheduler()
        self.now = 0.0
        self._number = 0
        #: what is under way: when it is done, a number that makes it unique, the worker, and its tasks
        self._under_way: list[tuple[float, int, Worker, Sequence[Task]]] = []
        #: until when each worker is busy
        self._busy: dict[Worker, float] = {}
        for number in range(count):
            worker = Worker(f"worker-{number}", number, 1)
            self._busy[worker] = 0.0
            self.handle(events.WorkerJoined(worker))

    def handle(self, event: events.Event) -> None:
        """Give the scheduler an event and let the workers begin what it hands out."""
        for action in self.core.handle(event, self.now):
            if isinstance(action, actions.Dispatch):
                worker = action.worker
                done = max(self._busy[worker], self.now) + DURATION * len(action.tasks)
                self._busy[worker] = done
                self._number += 1
                heappush(self._under_way, (done, self._number, worker, action.tasks))

    def submit(self, tasks: Sequence[Task]) -> None:
        """Hand over new tasks."""
        self.handle(events.TasksSubmitted(tasks))

    def run(self) -> Iterator[int]:
        """Run everything that was submitted; yield after each report how many tasks it held."""
        success = Ending.SUCCESS
        while self._under_way:
            self.now, _, worker, tasks = heappop(self._under_way)
            lines: list[ReportLine] = [(task.seq, success, b"value", DURATION) for task in tasks]
            self.handle(events.TasksReported(worker, lines))
            yield len(lines)


def _used() -> int:
    """Return the bytes that belong to this process alone."""
    return int(psutil.Process().memory_full_info().uss)


def run(workers: int, tasks: int) -> tuple[float, int]:
    """Submit tasks, run them all, release them all.

    Args:
        workers: how many are simulated.
        tasks: how many are pending at the same time, before the first one is run.

    Returns:
        Seconds that this took the scheduler and its caller, and by how many bytes this process had grown at the peak.

    Raises:
        RuntimeError: a task did not end, or was not forgotten.
    """
    fleet = Fleet(workers)
    group = Group("small")
    gc.collect()
    before = peak = _used()
    seconds, began = 0.0, perf_counter()
    made: list[Task] = []
    with collection_paused():  # as `Client.map` does
        for start in range(0, tasks, BATCH):
            batch = [Task(f"small-{i}", group, None, b"call") for i in range(start, min(start + BATCH, tasks))]
            made += batch
            fleet.submit(batch)
    seconds += perf_counter() - began
    peak = max(peak, _used())
    finished = seen = 0
    began = perf_counter()
    for count in fleet.run():
        finished += count
        if finished - seen >= tasks // _LOOKS:
            seen = finished
            seconds += perf_counter() - began
            peak = max(peak, _used())
            began = perf_counter()
    while made:
        fleet.handle(events.TasksReleased(made[-BATCH:]))
        del made[-BATCH:]
    seconds += perf_counter() - began
    if finished != tasks or fleet.core.tasks:
        raise RuntimeError(f"{finished} of {tasks} tasks ended, {len(fleet.core.tasks)} are left")
    return seconds, peak - before
