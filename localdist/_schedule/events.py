"""Everything that can happen to the scheduler; each carries a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .records import Key, ReportLine, Task, Worker


@dataclass(frozen=True, slots=True, eq=False)
class TasksSubmitted:
    """Somebody wants these tasks; each carries one claim of its submitter."""

    tasks: Sequence[Task]


@dataclass(frozen=True, slots=True, eq=False)
class TaskSent:
    """Somebody wants this task, and has sent it to a worker that was idle, under a number from `take_number`."""

    worker: Worker
    task: Task


@dataclass(frozen=True, slots=True, eq=False)
class ValuesStored:
    """These tasks were never calls: their `outcome` is data that a client put in."""

    tasks: Sequence[Task]


@dataclass(frozen=True, slots=True, eq=False)
class TasksReported:
    """A worker ran these tasks."""

    worker: Worker
    lines: Sequence[ReportLine]


@dataclass(frozen=True, slots=True, eq=False)
class TasksRecalled:
    """A worker gives back tasks that it has not begun, in answer to a `Recall`."""

    worker: Worker
    seqs: Sequence[int]
    #: True: the answer to a recall of all that it had not begun
    whole: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class TasksReleased:
    """The submitters of these tasks do not want them any more."""

    tasks: Sequence[Task]


@dataclass(frozen=True, slots=True, eq=False)
class TasksCancelled:
    """These tasks, and what the same owner made depend on them, shall not be.

    `force` cancels them for all who claim them.
    """

    tasks: Sequence[Task]
    reason: str
    force: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class TasksWithdrawn:
    """Those of these tasks that are not at a worker are cancelled, as `TasksCancelled` would; the others run."""

    tasks: Sequence[Task]
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class TasksFailed:
    """Those of these tasks that have not ended fail with this error; what comes of the running ones has no taker.

    They are detached: a retry would find them queued, or running, still.
    """

    tasks: Sequence[Task]
    outcome: object


@dataclass(frozen=True, slots=True, eq=False)
class Stopped:
    """What has not begun shall never begin, now or later: it is cancelled, if need be when its worker gives it back.

    It is cancelled for all who claim it, with whatever depends on it.
    """

    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class TasksKept:
    """These tasks shall run although nobody waits for them (fire and forget)."""

    tasks: Sequence[Task]


@dataclass(frozen=True, slots=True, eq=False)
class TasksRetried:
    """These failed tasks, and the failed ones they stem from, shall run again."""

    tasks: Sequence[Task]


@dataclass(frozen=True, slots=True, eq=False)
class AllDropped:
    """Every task is to be forgotten, claimed or not (restart)."""

    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class WorkerJoined:
    """A worker is ready for work."""

    worker: Worker


@dataclass(frozen=True, slots=True, eq=False)
class WorkerLeft:
    """A worker's process ended; what it was running is blamed, unless it was told to stop."""

    worker: Worker
    pid: int | None = None
    exitcode: int | None = None
    blame: bool = True
    #: seqs it had begun, where that is known; None: the oldest ones it had not reported
    begun: Sequence[int] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class DeadlineReached:
    """Nothing happened until the time that `next_deadline` gave."""


Event = (
    TasksSubmitted
    | TaskSent
    | ValuesStored
    | TasksReported
    | TasksRecalled
    | TasksReleased
    | TasksCancelled
    | TasksWithdrawn
    | TasksFailed
    | Stopped
    | TasksKept
    | TasksRetried
    | AllDropped
    | WorkerJoined
    | WorkerLeft
    | DeadlineReached
)

__all__ = ["Event", "Key", *[cls.__name__ for cls in Event.__args__]]
