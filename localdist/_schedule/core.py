r"""SCHEDULE: the state machine that decides which task runs where and when.

Rules of this file:

* `Scheduler.handle` is the single door. It takes an event and the time, and returns actions. Nothing here waits,
  reads a clock or performs anything.
* Every change of a task's state goes through `MOVES`; a pair that is missing there is an `InvalidTransition`, which
  carries the task's story.
* Cost per task is constant: no loop here runs over all workers or all tasks because of one task.
* What a worker may have in advance is decided in `assign`; what happens to a task in this file; the lifetime of
  values in `_lifetime`.

How a task lives::

    NEW -> WAITING -> READY -> PROCESSING -> FINISHED -> FORGOTTEN
               \________\________/   \-----> ERRED ----/
                    (gives back, retry)

A task is wanted while it has claims (its submitter's future, twins, fire-and-forget) or a dependent that still has
to run; when neither is left it is forgotten, in whatever state it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

from ..errors import InvalidTransition, KilledWorker
from . import actions, events
from .assign import Assignment
from .records import Ending, State, StoryLine, Task, Worker

#: move -> {state before: state after}
MOVES: dict[str, dict[State, State]] = {
    "wait": {State.NEW: State.WAITING, State.ERRED: State.WAITING},
    "queue": {
        State.NEW: State.READY,
        State.WAITING: State.READY,
        State.PROCESSING: State.READY,
        State.ERRED: State.READY,
    },
    "dispatch": {State.READY: State.PROCESSING},
    "send": {State.NEW: State.PROCESSING},
    "finish": {State.NEW: State.FINISHED, State.PROCESSING: State.FINISHED},
    "fail": {State.NEW: State.ERRED, State.WAITING: State.ERRED, State.PROCESSING: State.ERRED},
    "pair": {State.NEW: State.TWIN},
    "forget": {state: State.FORGOTTEN for state in State if state is not State.FORGOTTEN},
}

#: How many keys the story remembers over all, so that its memory is bounded (about 100 bytes each).
STORY_KEYS = 20_000


class Scheduler:
    """Decides which task runs where and when.

    Args:
        allowed_failures: how many workers may die running a task before it fails with `KilledWorker`.
        story_keys: how many keys the story remembers.

    Not thread-safe: one thread owns it.
    """

    def __init__(self, *, allowed_failures: int = 3, story_keys: int = STORY_KEYS) -> None:
        self.allowed_failures = allowed_failures
        #: live tasks by key; twins are reached through the task that runs for them
        self.tasks: dict[Any, Task] = {}
        #: workers that are here, by address
        self.workers: dict[str, Worker] = {}
        self.assignment = Assignment()
        self._seq = 0
        self._event = 0
        self._now = 0.0
        # Event, time, what, keys, where; `story` makes lines of them.
        self._story: deque[tuple[int, float, str, list[Any], str]] = deque()
        self._story_room = self._story_keys = story_keys
        # What the event at hand has caused so far; `handle` turns it into actions.
        self._finished: list[Task] = []
        self._failed: list[Task] = []
        self._cancelled: list[Task] = []
        self._reset: list[Task] = []
        self._dropped: list[Any] = []
        self._recalls: dict[Worker, list[int]] = {}

    # -- the door ------------------------------------------------------------------------------------------------

    def handle(self, event: events.Event, now: float) -> list[actions.Action]:
        """Take what happened at time `now` (seconds of any monotonic clock); return what is to be done, in order."""
        self._event += 1
        self._now = now
        self._HANDLERS[type(event)](self, event)
        out: list[actions.Action] = []
        if self._dropped:
            out.append(actions.Drop(self._dropped))
            self._dropped = []
        if self._recalls:
            out += [actions.Recall(worker, seqs) for worker, seqs in self._recalls.items()]
            self._recalls = {}
        if self.assignment.loaded:
            out += [actions.Recall(worker) for worker in self.assignment.stalled(now)]
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
            reason = (
                event.reason if isinstance(event, events.TasksCancelled | events.AllDropped) else "lost dependencies"
            )
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
            if key in known:
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
        if task.key in self.tasks:
            # What the worker makes of it has no taker; the other one's outcome serves for both.
            self._pair(self.tasks[task.key], task)
        else:
            self.tasks[task.key] = task
            self._move(task, "send")
        self.assignment.sent(worker, task, self._now)
        self._tell("sent at once", (task,), worker.address)

    def _stored(self, event: events.ValuesStored) -> None:
        for task in event.tasks:
            self._seq += 1
            task.seq = self._seq
            twin = self.tasks.get(task.key)
            if twin is not None:
                outcome, task.outcome = task.outcome, None
                self._dropped.append(outcome)
                self._pair(twin, task)
            else:
                self.tasks[task.key] = task
                self._move(task, "finish")
        self._tell("stored", event.tasks)

    def _pair(self, primary: Task, twin: Task) -> None:
        """Let `primary`, which has the same key, run for `twin` too."""
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

    @staticmethod
    def _primary(task: Task) -> Task:
        return task.twins[0] if task.state is State.TWIN and task.twins else task

    def _queue(self, task: Task) -> None:
        self._move(task, "queue")
        task.missing = 0
        self.assignment.push(task)

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
                task.worker = task.call = None
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
        self.assignment.reported(worker, self._now)

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

    def _end_for_others(self, task: Task) -> None:
        """Tell the twins of a task that has ended, and end fire-and-forget's claim on it."""
        self._end_twins(task, task.twins or ())
        if task.kept:
            task.kept = False
            task.claims -= 1
            if not task.claims and not task.dependents:
                self._forget_all([task])

    def _end_twins(self, task: Task, twins: Iterable[Task]) -> None:
        ended = self._finished if task.state is State.FINISHED else self._failed
        for twin in twins:
            twin.outcome = task.outcome
            ended.append(twin)

    def _fail(self, task: Task, outcome: Any) -> None:
        """Let a task and all that depend on it end in the same error."""
        stack = [task]
        failed = []
        while stack:
            task = stack.pop()
            self._move(task, "fail")
            task.missing = 0
            task.outcome = outcome
            failed.append(task)
            stack += [d for d in task.dependents or () if d.state is State.WAITING]
        for task in failed:
            # Its dependencies stay needed: `retry` runs it from them.
            if task.twins or task.kept:
                self._end_for_others(task)
            if task.claims:
                self._failed.append(task)
        self._tell("failed", failed)

    # -- tasks go ------------------------------------------------------------------------------------------------

    def _released(self, event: events.TasksReleased) -> None:
        forgettable: list[Task] = []
        for task in event.tasks:
            if task.state is State.TWIN:
                self._part(task)
                continue
            if task.held:  # else it was cancelled before
                task.held = False
                task.claims -= 1
                if not task.claims and not task.dependents:
                    forgettable.append(task)
        self._forget_all(forgettable)
        self._tell("released", event.tasks)

    def _part(self, twin: Task) -> None:
        """Take away the claim of a twin, which is forgotten itself."""
        assert twin.twins is not None
        primary = twin.twins[0]
        self._move(twin, "forget")
        twin.twins = twin.outcome = None
        if primary.twins is not None:
            primary.twins.remove(twin)
        primary.claims -= 1
        if not primary.claims and not primary.dependents and primary.state is not State.FORGOTTEN:
            self._forget_all([primary])

    def _forget_all(self, stack: list[Task]) -> None:
        """Forget tasks that nobody wants, and whatever they alone kept."""
        while stack:
            task = stack.pop()
            before = task.state
            if before is State.FORGOTTEN:
                continue
            self._move(task, "forget")
            if self.tasks.get(task.key) is task:
                del self.tasks[task.key]
            if before is State.READY:
                self.assignment.forget(task)
            elif before is State.PROCESSING:
                assert task.worker is not None
                self._recalls.setdefault(task.worker, []).append(task.seq)
                task.worker = None
            elif task.outcome is not None:
                self._dropped.append(task.outcome)
            task.outcome = task.call = None
            task.dependents = None
            stack += self._let_go_of_dependencies(task, forget=False)

    def _let_go_of_dependencies(self, task: Task, *, forget: bool = True) -> list[Task]:
        """Stop needing the dependencies; forget, or return, those that nobody needs now."""
        unneeded = []
        for dependency in task.dependencies:
            holders = dependency.dependents
            if holders is not None and task in holders:
                del holders[task]
                if not holders:
                    dependency.dependents = None
                    if not dependency.claims:
                        unneeded.append(dependency)
        task.dependencies = ()
        if unneeded and forget:
            self._forget_all(unneeded)
        return unneeded

    def _cancel(self, event: events.TasksCancelled) -> None:
        doomed: dict[Task, None] = {}
        stack = list(event.tasks)
        while stack:
            task = stack.pop()
            if task in doomed or task.state is State.FORGOTTEN:
                continue
            doomed[task] = None
            primary = self._primary(task)
            if event.force:
                stack += (primary, *(primary.twins or ()))
            owner = task.options.owner
            for dependent in primary.dependents or ():
                same = (dependent, *(dependent.twins or ()))
                stack += [t for t in same if event.force or t.options.owner is owner]
        self._cancelled += doomed
        self._tell("cancelled", list(doomed))
        for task in doomed:
            if task.state is State.TWIN:
                self._part(task)
            else:
                task.claims -= task.held + task.kept
                task.held = task.kept = False
        self._forget_all([t for t in doomed if not t.claims and not t.dependents])

    def _kept(self, event: events.TasksKept) -> None:
        for handle in event.tasks:
            task = self._primary(handle)
            if not task.kept and task.state in (State.WAITING, State.READY, State.PROCESSING):
                task.kept = True
                task.claims += 1
        self._tell("kept by fire-and-forget", event.tasks)

    def _retried(self, event: events.TasksRetried) -> None:
        again: dict[Task, None] = {}
        stack = [self._primary(task) for task in event.tasks]
        while stack:
            task = stack.pop()
            if task.state is State.ERRED and task not in again:
                again[task] = None
                stack += task.dependencies
        for task in again:
            task.failures = task.deaths = 0
            for handle in (task, *(task.twins or ())):
                handle.outcome = None
                self._reset.append(handle)
            task.missing = sum(d.state is not State.FINISHED for d in set(task.dependencies))
        for task in again:
            if task.missing:
                self._move(task, "wait")
            else:
                self._queue(task)
        self._tell("retried", list(again))

    def _all_dropped(self, event: events.AllDropped) -> None:
        for task in list(self.tasks.values()):
            self._cancelled.append(task)
            for twin in list(task.twins or ()):
                self._cancelled.append(twin)
                self._move(twin, "forget")
                twin.twins = twin.outcome = None
            task.twins, task.claims, task.held, task.kept = None, 0, False, False
        self._tell("dropped", self._cancelled)
        self._forget_all([t for t in self.tasks.values() if not t.dependents])

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
                if task.deaths > self.allowed_failures:
                    self._fail(
                        task,
                        KilledWorker(task.key, worker.address, self.allowed_failures, event.pid, event.exitcode),
                    )
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
            if task.options.lane is not None:
                self.assignment.give_back(worker, task)
            if task.state is State.PROCESSING:
                task.worker = None
                self._queue(task)
                back.append(task)
        self._tell("given back", back, worker.address)
        self.assignment.recalled(worker, whole=event.whole)

    def _deadline(self, event: events.DeadlineReached) -> None:  # noqa: ARG002  (it says only that time has passed)
        """Nothing to do: `handle` looks for stalled workers after every event."""

    # -- moves, story, invariants --------------------------------------------------------------------------------

    def _move(self, task: Task, move: str) -> None:
        after = MOVES[move].get(task.state)
        if after is None:
            raise self._invalid(task, move)
        task.state = after

    def _invalid(self, task: Task, move: str) -> InvalidTransition:
        return InvalidTransition(task.key, task.state.name, move, [str(line) for line in self.story(task.key)])

    def _stranger(self, seq: int, move: str) -> InvalidTransition:
        """Make the error for a worker that speaks of a task which it does not have."""
        for task in self.tasks.values():
            if task.seq == seq:
                return self._invalid(task, move)
        return InvalidTransition(f"number {seq}", "unknown", move)

    def _tell(self, what: str, tasks: Sequence[Task], where: str = "") -> None:
        """Write what happened into the story, and forget the oldest lines beyond its bound."""
        keys = [task.key for task in tasks[-self._story_keys :]]
        if not keys:
            return
        self._story.append((self._event, self._now, what, keys, where))
        self._story_room -= len(keys)
        while self._story_room < 0:
            self._story_room += len(self._story.popleft()[3])

    def story(self, *keys: Any) -> list[StoryLine]:
        """Tell what is remembered of these keys, oldest first."""
        wanted: Iterable[Any] = keys
        return [StoryLine(*line) for line in self._story if any(key in line[3] for key in wanted)]

    _HANDLERS: ClassVar[dict[type, Callable[[Any, Any], None]]] = {
        events.TasksSubmitted: _submitted,
        events.TaskSent: _sent,
        events.ValuesStored: _stored,
        events.TasksReported: _reported,
        events.TasksRecalled: _recalled,
        events.TasksReleased: _released,
        events.TasksCancelled: _cancel,
        events.TasksKept: _kept,
        events.TasksRetried: _retried,
        events.AllDropped: _all_dropped,
        events.WorkerJoined: _joined,
        events.WorkerLeft: _left,
        events.DeadlineReached: _deadline,
    }
