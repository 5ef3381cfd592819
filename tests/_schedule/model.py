"""What the scheduler should do, told as plainly as possible: no queues, no counters, everything found by looking."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

PENDING, FINISHED, ERRED, GONE = "pending", "finished", "erred", "gone"


@dataclass(eq=False)
class Handle:
    """What one submission returned; several of one key share a run."""

    task: Any
    owner: object
    run: Run
    claimed: bool = True
    dead: bool = False


@dataclass(eq=False)
class Run:
    """One key's only run."""

    key: Any
    deps: tuple[Run, ...]
    options: Any = None
    status: str = PENDING
    handles: list[Handle] = field(default_factory=list)
    kept: bool = False
    failures: int = 0
    deaths: int = 0
    outcome: Any = None
    #: address of the worker it is at
    at: str | None = None
    data: bool = False

    @property
    def done(self) -> bool:
        """True when it needs its dependencies no more; for a retry they are needed after an error too."""
        return self.status in (FINISHED, GONE) or (self.status == ERRED and self.options.detached)


class Model:
    """Predicts statuses, announcements and dropped values."""

    def __init__(self, allowed_failures: int) -> None:
        self.allowed_failures = allowed_failures
        self.runs: list[Run] = []
        #: worker -> all runs sent there and not reported, in order; also those that are gone
        self.at: dict[str, list[Run]] = {}
        self.slots: dict[str, int] = {}
        #: worker -> how many more it may be given
        self.quota: dict[str, float] = {}
        self.stopped = False
        # What the event at hand has caused.
        self.finished: set[Any] = set()
        self.failed: set[Any] = set()
        self.cancelled: set[Any] = set()
        self.pending: set[Any] = set()
        self.dropped: list[Any] = []

    def begin(self) -> None:
        self.finished, self.failed, self.cancelled, self.pending, self.dropped = set(), set(), set(), set(), []

    # -- looking

    def live(self, key: Any) -> Run | None:
        claimed = (r for r in self.runs if r.key == key and r.status != GONE and not r.data and self.claims(r))
        return next(claimed, None)

    def holders(self, run: Run) -> list[Run]:
        return [r for r in self.runs if run in r.deps and not r.done]

    def claims(self, run: Run) -> int:
        return sum(h.claimed for h in run.handles) + run.kept

    def ready(self) -> list[Run]:
        return [
            r for r in self.runs if r.status == PENDING and r.at is None and all(d.status == FINISHED for d in r.deps)
        ]

    def unbegun(self) -> list[Run]:
        return [r for r in self.runs if r.status == PENDING and r.at is None]

    def taken_over(self, run: Run) -> bool:
        """True when another run has got its key, since nobody claimed it."""
        return any(r.key == run.key and not r.data for r in self.runs[self.runs.index(run) + 1 :])

    def used_up(self) -> set[str]:
        """The workers that are to be dismissed."""
        return {worker for worker, runs in self.at.items() if not runs and not self.quota[worker]}

    # -- what follows from what

    def settle(self) -> None:
        """Forget what nobody wants, until nothing changes."""
        again = True
        while again:
            again = False
            for run in self.runs:
                if run.status != GONE and not self.claims(run) and not self.holders(run):
                    self.forget(run)
                    again = True

    def forget(self, run: Run) -> None:
        if run.status == FINISHED:
            self.dropped.append(run.outcome)
        run.status, run.kept, run.outcome = GONE, False, None
        for handle in run.handles:
            handle.dead, handle.claimed = True, False

    def told(self, run: Run) -> set[Any]:
        """Return who hears of a run's end: nobody, if nobody claims it, unless somebody may wait for it without a claim."""
        detached = run.options is not None and run.options.detached
        return {h.task for h in run.handles if not h.dead} if detached or self.claims(run) else set()

    def fail(self, run: Run, error: Any) -> None:
        run.status, run.outcome, run.at, run.kept = ERRED, error, None, False
        self.failed |= self.told(run)
        for holder in self.holders(run):
            if holder.status == PENDING:
                self.fail(holder, error)

    # -- events

    def submit(
        self, task: Any, options: Any, key: Any, deps: Sequence[Handle] = (), data: Sequence[Any] = ()
    ) -> Handle:
        handle = self.submit_one(task, options, key, deps, data)
        self.settle()
        return handle

    def submit_one(self, task: Any, options: Any, key: Any, deps: Sequence[Handle], data: Sequence[Any]) -> Handle:
        live = self.live(key)
        if live is not None:
            self.dropped += data
            return self.share(task, options.owner, live)
        parts = [Run(("data", value), (), None, FINISHED, outcome=value, data=True) for value in data]
        self.runs += parts
        run = Run(key, (*parts, *(d.run for d in deps)), options, kept=options.detached)
        self.runs.append(run)
        handle = Handle(task, options.owner, run)
        run.handles.append(handle)
        if any(d.dead for d in deps):
            self.cancelled.add(task)
            self.forget(run)
        else:
            for dep in run.deps:
                if dep.status == ERRED:
                    self.fail(run, dep.outcome)
                    break
        return handle

    def share(self, task: Any, owner: object, run: Run) -> Handle:
        handle = Handle(task, owner, run)
        run.handles.append(handle)
        if run.status == FINISHED:
            self.finished.add(task)
        elif run.status == ERRED:
            self.failed.add(task)
        return handle

    def store(self, task: Any, owner: object, key: Any, value: Any) -> Handle:
        live = self.live(key)
        if live is not None:
            self.dropped.append(value)
            return self.share(task, owner, live)
        run = Run(key, (), None, FINISHED, outcome=value)
        self.runs.append(run)
        handle = Handle(task, owner, run)
        run.handles.append(handle)
        return handle

    def dispatch(self, run: Run, worker: str) -> None:
        run.at = worker
        self.at[worker].append(run)
        self.quota[worker] -= 1

    def succeed(self, worker: str, run: Run, value: Any) -> None:
        self.at[worker].remove(run)
        if run.status != PENDING:
            self.dropped.append(value)
        else:
            run.status, run.outcome, run.at, run.kept = FINISHED, value, None, False
            self.finished |= self.told(run)
        self.settle()

    def raise_(self, worker: str, run: Run, error: Any) -> None:
        self.at[worker].remove(run)
        if run.status == PENDING:
            run.failures += 1
            run.at = None
            if run.failures > run.options.retries:
                self.fail(run, error)
        self.settle()

    def reschedule(self, worker: str, run: Run) -> None:
        self.at[worker].remove(run)
        run.at = None

    def give_back(self, worker: str, run: Run) -> None:
        self.reschedule(worker, run)
        self.quota[worker] += 1

    def die(self, worker: str, blamed: Iterable[Run]) -> list[Run]:
        """Return those that fail."""
        for run in self.at.pop(worker):
            run.at = None
            if run.status == PENDING and run in blamed:
                run.deaths += 1
        del self.slots[worker], self.quota[worker]
        killed = [r for r in self.runs if r.status == PENDING and r.deaths > self.allowed(r)]
        for run in killed:
            self.fail(run, "killed")
        self.settle()
        return killed

    def allowed(self, run: Run) -> int:
        if run.data or run.options is None or run.options.allowed_failures is None:
            return self.allowed_failures
        allowed: int = run.options.allowed_failures
        return allowed

    def dismiss(self, worker: str) -> None:
        assert not self.at.pop(worker)
        del self.slots[worker], self.quota[worker]

    def release(self, handle: Handle) -> None:
        handle.claimed = False
        if handle is not handle.run.handles[0]:
            handle.dead = True
        self.settle()

    def cancel(self, handles: Sequence[Handle], *, force: bool) -> None:
        doomed: set[Handle] = set()
        stack = [h for h in handles if not h.dead]
        while stack:
            handle = stack.pop()
            if handle in doomed:
                continue
            doomed.add(handle)
            run = handle.run
            also = list(run.handles) if force else []
            for holder in self.holders(run):
                also += [h for h in holder.handles if force or h.owner == handle.owner]
            stack += [h for h in also if not h.dead]
        for handle in doomed:
            self.cancelled.add(handle.task)
            handle.claimed = False
            if handle is handle.run.handles[0]:
                handle.run.kept = False
            else:
                handle.dead = True
        self.settle()

    def withdraw(self, handles: Sequence[Handle]) -> None:
        self.cancel([h for h in handles if h.run in self.unbegun()], force=False)

    def fail_by_order(self, handles: Sequence[Handle], error: Any) -> None:
        for handle in handles:
            if handle.run.status == PENDING:
                self.fail(handle.run, error)
        self.settle()

    def cancel_unbegun(self) -> None:
        self.cancel([h for run in self.unbegun() for h in run.handles], force=True)

    def keep(self, handle: Handle) -> None:
        if not handle.dead and handle.run.status == PENDING:
            handle.run.kept = True

    def retry(self, handles: Sequence[Handle]) -> None:
        again: set[Run] = set()
        stack = [h.run for h in handles if not h.dead]
        while stack:
            run = stack.pop()
            if run.status == ERRED and run not in again:
                again.add(run)
                stack += run.deps
        for run in again:
            run.status, run.outcome, run.failures, run.deaths = PENDING, None, 0, 0
            self.pending |= {h.task for h in run.handles if not h.dead}

    def drop_all(self) -> None:
        for run in self.runs:
            if run.status != GONE and (run.status == PENDING or run.options is None or not run.options.detached):
                if not self.taken_over(run):
                    self.cancelled |= {h.task for h in run.handles if not h.dead}
                self.forget(run)
