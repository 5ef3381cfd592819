"""What the tests of the core share: a scheduler with workers, told things in few words, checked after each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from localdist._schedule import actions, events
from localdist._schedule.core import Scheduler
from localdist._schedule.records import Ending, Group, Options, Task, Worker
from localdist._schedule.validate import validate


class Bench:
    """A scheduler and the actions that it asked for last."""

    def __init__(self, *workers: Any, slots: int = 1, allowed_failures: int = 3, story_keys: int = 1000) -> None:
        self.core = Scheduler(allowed_failures=allowed_failures, story_keys=story_keys)
        self.now = 0.0
        self.out: list[actions.Action] = []
        self.groups: dict[str, Group] = {}
        self.w: list[Worker] = []
        for name in workers:
            self.join(name, slots)

    def tell(self, event: events.Event, *, later: float = 0.0) -> list[actions.Action]:
        self.now += later
        self.out = self.core.handle(event, self.now)
        validate(self.core)
        return self.out

    def join(self, name: Any, slots: int = 1, *, quota: float = float("inf"), **resources: float) -> Worker:
        worker = Worker(f"address of {name} {len(self.w)}", name, slots, resources, quota)
        self.w.append(worker)
        self.tell(events.WorkerJoined(worker))
        return worker

    def group(self, name: str = "f", seconds: float | None = None) -> Group:
        group = self.groups.setdefault(name, Group(name))
        if seconds is not None:
            group.seconds = seconds
        return group

    def make(self, key: Any, *deps: Task, group: str = "f", **options: Any) -> Task:
        return Task(key, self.group(group), "function", "call", deps, Options(**options) if options else None)

    def detached(self, key: Any, *deps: Task, **options: Any) -> Task:
        """Make and submit a task that leaves the scheduler when it ends."""
        task = self.make(key, *deps, detached=True, **options)
        task.kept, task.claims = True, 2
        self.submit(task)
        return task

    def data(self, value: Any) -> Task:
        task = Task(("data", value), self.group("data"), None, None)
        task.claims, task.outcome = 0, value
        return task

    def submit(self, *tasks: Task) -> Any:
        self.tell(events.TasksSubmitted(tasks))
        return tasks[0] if len(tasks) == 1 else tasks

    def run(self, key: Any, *deps: Task, **more: Any) -> Task:
        """Make and submit one task."""
        task: Task = self.submit(self.make(key, *deps, **more))
        return task

    def report(
        self,
        task: Task,
        outcome: Any = None,
        ending: Ending = Ending.SUCCESS,
        *,
        seconds: float = 1e-5,
        later: float = 0.0,
    ) -> None:
        worker = next(w for w in self.w if task.seq in w.outstanding)
        value = f"value of {task.key}" if outcome is None and ending is Ending.SUCCESS else outcome
        self.tell(events.TasksReported(worker, [(task.seq, ending, value, seconds)]), later=later)

    def fail(self, task: Task, error: Any = "error", **more: Any) -> None:
        self.report(task, error, Ending.ERROR, **more)

    def release(self, *tasks: Task) -> None:
        self.tell(events.TasksReleased(tasks))

    def cancel(self, *tasks: Task, force: bool = False) -> None:
        self.tell(events.TasksCancelled(tasks, "a test", force))

    def withdraw(self, *tasks: Task) -> None:
        self.tell(events.TasksWithdrawn(tasks, "a test"))

    def fail_by_order(self, *tasks: Task) -> None:
        self.tell(events.TasksFailed(tasks, "an order"))

    def stop(self) -> None:
        self.tell(events.Stopped("a stop"))

    def die(self, worker: Worker, **more: Any) -> None:
        self.tell(events.WorkerLeft(worker, 7, -11, **more))

    # -- what was asked for

    def asked(self, kind: type) -> list[Any]:
        return [action for action in self.out if isinstance(action, kind)]

    @property
    def dispatched(self) -> dict[Any, list[Any]]:
        """Worker's name -> keys."""
        found: dict[Any, list[Any]] = {}
        for action in self.asked(actions.Dispatch):
            found.setdefault(action.worker.name, []).extend(task.key for task in action.tasks)
        return found

    @property
    def finished(self) -> list[Any]:
        return keys(task for action in self.asked(actions.Announce) for task in action.finished)

    @property
    def failed(self) -> list[Any]:
        return keys(task for action in self.asked(actions.Announce) for task in action.failed)

    @property
    def cancelled(self) -> list[Any]:
        return keys(task for action in self.asked(actions.AnnounceCancelled) for task in action.tasks)

    @property
    def dropped(self) -> list[Any]:
        return [outcome for action in self.asked(actions.Drop) for outcome in action.outcomes]

    @property
    def recalled(self) -> list[tuple[Any, Any]]:
        return [(action.worker.name, action.seqs) for action in self.asked(actions.Recall)]

    @property
    def dismissed(self) -> list[Any]:
        return [action.worker.name for action in self.asked(actions.Dismiss)]


def keys(tasks: Iterable[Task]) -> list[Any]:
    return [task.key for task in tasks]
