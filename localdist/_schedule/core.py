r"""SCHEDULE: the state machine that decides which task runs where and when.

Rules of this file:

* `Scheduler.handle` is the single door. It takes an event and the time, and returns actions. Nothing here waits,
  reads a clock or performs anything.
* Every change of a task's state is one of `memory.MOVES`; a pair that is missing there is an `InvalidTransition`,
  which carries the task's story.
* Cost per task is constant: no loop here runs over all workers or all tasks because of one task.
* What a worker may have in advance is decided in `assign`; how tasks come, run and are reported in this file;
  how they end and are let go in `lifetime`; what is remembered of them in `memory`.

How a task lives::

    NEW -> WAITING -> READY -> PROCESSING -> FINISHED -> FORGOTTEN
               \________\________/   \-----> ERRED ----/
                    (gives back, retry)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from ..errors import KilledWorker
from . import actions, events
from .lifetime import Lifetime
from .records import Ending, State, Task, Worker


class Scheduler(Lifetime):
    """Decides which task runs where and when.

    Args:
        allowed_failures: how many workers may die running a task before it fails with `KilledWorker`.
        story_keys: how many keys the story remembers.

    Not thread-safe: one thread owns it.
    """

    # -- the door ------------------------------------------------------------------------------------------------

    def handle(self, event: events.Event, now: float) -> list[actions.Action]:
        """Take what happened at time `now` (seconds of any monotonic clock); return what is to be done, in order."""
        self._event += 1
        self._now = now
        self._HANDLERS[type(event)](self, event)
        if self._stopped is not None:
            if self.assignment.waiting:
                self._cancel_unbegun()
            self._stalled += self.assignment.recall_all()
        out: list[actions.Action] = []
        if self._dropped:
            out.append(actions.Drop(self._dropped))
            self._dropped = []
        if self._recalls:
            out += [actions.Recall(worker, seqs) for worker, seqs in self._recalls.items()]
            self._recalls = {}
        if self.assignment.loaded:
            self._stalled += self.assignment.stalled(now, certain=type(event) is events.DeadlineReached)
        if self._stalled:
            out += [actions.Recall(worker) for worker in self._stalled]
            self._stalled = []
        if self._dismissed:
            out += [actions.Dismiss(worker) for worker in self._dismissed]
            self._dismissed = []
        if self.assignment.waiting:
            for worker, tasks in self.assignment.assign(now):
                self._tell("dispatched", tasks, worker.address)
                out.append(actions.Dispatch(worker, tasks))
        # Announcements last: the workers start while the client's threads are woken.
        if self._reset:
            out.append(actions.AnnouncePending(self._reset))
            self._reset = []
        if self._finished or self._failed:
            out.append(actions.Announce(self._finished, self._failed))
            self._finished, self._failed = [], []
        if self._cancelled:
            reason = getattr(event, "reason", self._stopped) or "lost dependencies"
            out.append(actions.AnnounceCancelled(self._cancelled, reason))
            self._cancelled = []
        return out

    def next_deadline(self) -> float | None:
        """Say when `handle(DeadlineReached())` is due if nothing happens before; None: never."""
        return self.assignment.next_deadline()

    # -- tasks come ----------------------------------------------------------------------------------------------

    def _submitted(self, event: events.TasksSubmitted) -> None:
        known = self.tasks
        ready = State.READY
        # A run of tasks that can be queued together: same options, nothing to wait for.
        run: list[Task] = []
        options = None
        seq = self._seq
        for task in event.tasks:
            seq += 1
            task.seq = seq
            key = task.key
            if key in known and known[key].claims:
                self._pair(known[key], task)
                continue
            known[key] = task
            if task.dependencies:
                self._link(task)
            elif task.state is not State.NEW:
                raise self._invalid(task, "submit")
            else:
                # The hot path: `queue` for many tasks at once. The start state was checked just now.
                task.state = ready
                if task.options is not options:
                    if run:
                        self.assignment.extend(run)
                    run, options = [], task.options
                run.append(task)
        self._seq = seq
        if run:
            self.assignment.extend(run)
        self._tell("submitted", event.tasks)

    def take_number(self) -> int:
        """Return the next number of a task that is sent before it is submitted (`events.TaskSent`)."""
        self._seq += 1
        return self._seq

    def _sent(self, event: events.TaskSent) -> None:
        task, worker = event.task, event.worker
        if worker.address not in self.workers:
            # It has died meanwhile. The task was lost with it, and nobody is to blame.
            self._submitted(events.TasksSubmitted((task,)))
            return
        if task.key in self.tasks and self.tasks[task.key].claims:
            # What the worker makes of it has no taker; the other one's outcome serves for both.
            self._pair(self.tasks[task.key], task)
        else:
            self.tasks[task.key] = task
            self._move(task, "send")
        self.assignment.sent(worker, task, self._now)
        if task.state is State.TWIN:
            task.worker = None
        self._tell("sent at once", (task,), worker.address)

    def _stored(self, event: events.ValuesStored) -> None:
        for task in event.tasks:
            self._seq += 1
            task.seq = self._seq
            twin = self.tasks.get(task.key)
            if twin is not None and twin.claims:
                outcome, task.outcome = task.outcome, None
                self._dropped.append(outcome)
                self._pair(twin, task)
            else:
                self.tasks[task.key] = task
                self._move(task, "finish")
        self._tell("stored", event.tasks)

    def _pair(self, primary: Task, twin: Task) -> None:
        """Let `primary`, which has the same key, run for `twin` too.

        One that nobody claims any more, and only a dependent still needs, is no such task: it loses its key.
        """
        self._move(twin, "pair")
        twin.twins = [primary]
        self._dropped += [d.outcome for d in dict.fromkeys(twin.dependencies) if d.state is State.NEW]
        twin.call, twin.dependencies = None, ()
        primary.claims += 1
        if primary.twins is None:
            primary.twins = []
        primary.twins.append(twin)
        if primary.state is State.FINISHED or primary.state is State.ERRED:
            self._end_twins(primary, [twin])

    def _link(self, task: Task) -> None:
        """Enter a new task into the graph: its dependencies become edges."""
        # Their order is what the call refers to, so duplicates (handles of one task) stay.
        task.dependencies = tuple([self._primary(d) for d in task.dependencies])
        resolved = dict.fromkeys(task.dependencies)
        failed: Task | None = None
        lost = False
        missing = 0
        for dependency in resolved:
            if dependency.state is State.NEW:
                self._adopt(dependency)
            if dependency.dependents is None:
                dependency.dependents = {}
            dependency.dependents[task] = None
            if dependency.state is State.ERRED:
                failed = failed or dependency
            elif dependency.state is State.FORGOTTEN:
                lost = True
            elif dependency.state is not State.FINISHED:
                missing += 1
        if lost:
            self._cancelled.append(task)
            self._forget_all([task])
            return
        task.missing = missing
        if failed is not None:
            self._fail(task, failed.outcome)
        elif missing:
            self._move(task, "wait")
        else:
            self._queue(task)

    def _adopt(self, data: Task) -> None:
        """Take data that was made for one task only: nobody claims it, and no key leads to it."""
        if data.outcome is None or data.claims:
            raise self._invalid(data, "be depended on")
        data.held = False
        self._move(data, "finish")

    # -- workers report ------------------------------------------------------------------------------------------

    def _reported(self, event: events.TasksReported) -> None:
        worker = event.worker
        if worker.address not in self.workers:
            # It was dismissed, and its tasks with it, while this was on its way.
            self._dropped += [outcome for _, _, outcome, _ in event.lines]
            return
        outstanding = worker.outstanding
        done = self._finished
        processing, finished, success = State.PROCESSING, State.FINISHED, Ending.SUCCESS
        for seq, ending, outcome, seconds in event.lines:
            try:
                task = outstanding.pop(seq)
            except KeyError:
                raise self._stranger(seq, "report") from None
            group = task.group
            measured = group.seconds
            worker.load -= task.cost
            group.seconds = seconds if measured is None else measured + 0.2 * (seconds - measured)
            if task.options.lane is not None:
                self.assignment.give_back(worker, task)
            if task.state is not processing:
                # It was forgotten while it ran: its result has no taker.
                self._dropped.append(outcome)
            elif ending is success:
                # The hot path: `finish`, whose start state was checked just now.
                task.state = finished
                task.worker = task.call = task.function = None
                task.outcome = outcome
                if task.dependencies:
                    self._let_go_of_dependencies(task)
                if task.dependents:
                    self._unblock_dependents(task)
                if task.twins or task.kept:
                    self._end_for_others(task)
                if task.claims:
                    done.append(task)
            elif ending is Ending.ERROR:
                self._raised(task, outcome)
            else:
                task.worker = None
                self._queue(task)
        self.assignment.reported(worker, self._now, len(event.lines))
        if worker.quota <= 0 and not outstanding:
            self._dismiss(worker)

    def _dismiss(self, worker: Worker) -> None:
        del self.workers[worker.address]
        self.assignment.left(worker)
        self._recalls.pop(worker, None)
        self._dismissed.append(worker)

    def _raised(self, task: Task, outcome: Any) -> None:
        task.worker = None
        task.failures += 1
        if task.failures <= task.options.retries:
            self._dropped.append(outcome)
            self._queue(task)
            self._tell(f"raised, retry {task.failures} of {task.options.retries}", (task,))
        else:
            self._fail(task, outcome)

    def _unblock_dependents(self, task: Task) -> None:
        for dependent in task.dependents or ():
            if dependent.state is State.WAITING:
                dependent.missing -= 1
                if not dependent.missing:
                    self._queue(dependent)

    # -- workers come and go -------------------------------------------------------------------------------------

    def _joined(self, event: events.WorkerJoined) -> None:
        self.workers[event.worker.address] = event.worker
        self.assignment.joined(event.worker)

    def _left(self, event: events.WorkerLeft) -> None:
        worker = event.worker
        if self.workers.pop(worker.address, None) is None:
            return
        self.assignment.left(worker)
        self._recalls.pop(worker, None)
        outstanding = list(worker.outstanding.values())
        worker.outstanding.clear()
        begun = set(event.begun) if event.begun is not None else {t.seq for t in outstanding[: worker.slots]}
        for task in outstanding:
            if task.state is not State.PROCESSING:
                continue
            task.worker = None
            if event.blame and task.seq in begun:
                task.deaths += 1
                allowed = task.options.allowed_failures
                if allowed is None:
                    allowed = self.allowed_failures
                if task.deaths > allowed:
                    self._fail(task, KilledWorker(task.key, worker.address, allowed, event.pid, event.exitcode))
                    continue
            self._queue(task)
        self._tell(f"worker left (exit code {event.exitcode})", outstanding, worker.address)

    def _recalled(self, event: events.TasksRecalled) -> None:
        worker = event.worker
        if worker.address not in self.workers:
            return
        back = []
        for seq in event.seqs:
            task = worker.outstanding.pop(seq, None)
            if task is None:
                raise self._stranger(seq, "give back")
            worker.load -= task.cost
            worker.quota += 1
            if task.options.lane is not None:
                self.assignment.give_back(worker, task)
            if task.state is State.PROCESSING:
                task.worker = None
                self._queue(task)
                back.append(task)
        self._tell("given back", back, worker.address)
        self.assignment.recalled(worker, whole=event.whole)

    def _deadline(self, event: events.DeadlineReached) -> None:
        """Nothing to do: `handle` looks for stalled workers after every event."""

    _HANDLERS: ClassVar[dict[type, Callable[[Any, Any], None]]] = {
        events.TasksSubmitted: _submitted,
        events.TaskSent: _sent,
        events.ValuesStored: _stored,
        events.TasksReported: _reported,
        events.TasksRecalled: _recalled,
        events.TasksReleased: Lifetime._released,
        events.TasksCancelled: Lifetime._cancel,
        events.TasksWithdrawn: Lifetime._withdrawn,
        events.TasksFailed: Lifetime._failed_by_order,
        events.Stopped: Lifetime._stop,
        events.TasksKept: Lifetime._kept,
        events.TasksRetried: Lifetime._retried,
        events.AllDropped: Lifetime._all_dropped,
        events.WorkerJoined: _joined,
        events.WorkerLeft: _left,
        events.DeadlineReached: _deadline,
    }
