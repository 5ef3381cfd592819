"""How long tasks and values live: who wants them, who lets go of them, and what follows.

A task is wanted while it has claims (its submitter's future, twins, fire-and-forget) or a dependent that still has
to run; when neither is left it is forgotten, in whatever state it is, with all that only it has kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from . import events
from .memory import Memory
from .records import State, Task

_UNBEGUN = (State.WAITING, State.READY)


class Lifetime(Memory):
    """The part of `Scheduler` that ends tasks, lets them go, and brings failed ones back."""

    # -- ends

    @staticmethod
    def _primary(task: Task) -> Task:
        return task.twins[0] if task.state is State.TWIN and task.twins else task

    def _queue(self, task: Task) -> None:
        self._move(task, "queue")
        task.missing = 0
        self.assignment.push(task)

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

    def _end_for_others(self, task: Task) -> None:
        """Tell the twins of a task that has ended, and end fire-and-forget's claim on it."""
        self._end_twins(task, task.twins or ())
        if task.kept:
            task.kept = False
            task.claims -= 1
            if not task.claims and not task.dependents:
                if task.options.detached:  # nobody has it, but somebody may wait for its end
                    (self._finished if task.state is State.FINISHED else self._failed).append(task)
                self._forget_all([task])
            elif task.options.detached:
                del self.tasks[task.key]
                task.call = task.function = None
                # After an error too: nobody can ask for a retry.
                self._let_go_of_dependencies(task)

    def _end_twins(self, task: Task, twins: Iterable[Task]) -> None:
        ended = self._finished if task.state is State.FINISHED else self._failed
        for twin in twins:
            twin.outcome = task.outcome
            ended.append(twin)

    # -- letting go

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
            task.outcome = task.call = task.function = None
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

    def _withdrawn(self, event: events.TasksWithdrawn) -> None:
        idle = [task for task in event.tasks if self._primary(task).state in _UNBEGUN and not task.pinned]
        self._cancel(events.TasksCancelled(idle, event.reason))

    def _stop(self, event: events.Stopped) -> None:
        self._stopped = event.reason
        self._cancel_unbegun()

    def _cancel_unbegun(self) -> None:
        assert self._stopped is not None
        idle = [task for task in self.live_tasks() if task.state in _UNBEGUN and not task.pinned]
        self._cancel(events.TasksCancelled(idle, self._stopped, force=True))

    def _failed_by_order(self, event: events.TasksFailed) -> None:
        for task in event.tasks:
            before = task.state
            if before not in (State.WAITING, State.READY, State.PROCESSING):
                continue
            worker = task.worker
            task.worker = None
            self._fail(task, event.outcome)
            if before is State.READY:
                self.assignment.forget(task)
            elif worker is not None:
                self._recalls.setdefault(worker, []).append(task.seq)

    def _all_dropped(self, event: events.AllDropped) -> None:  # noqa: ARG002  (the reason is `handle`'s affair)
        for task in list(self.tasks.values()):
            self._cancelled.append(task)
            for twin in list(task.twins or ()):
                self._cancelled.append(twin)
                self._move(twin, "forget")
                twin.twins = twin.outcome = None
            task.twins, task.claims, task.held, task.kept = None, 0, False, False
        self._tell("dropped", self._cancelled)
        self._forget_all([t for t in self.tasks.values() if not t.dependents])

    # -- keeping, and bringing back

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
