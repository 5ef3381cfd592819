"""Everything the scheduler can ask for; each carries a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .records import Task, Worker


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Send these tasks to the worker, in this order; their dependencies are FINISHED."""

    worker: Worker
    tasks: Sequence[Task]


@dataclass(frozen=True, slots=True)
class Recall:
    """Ask the worker to give back what it has not begun: these tasks, or (None) all of them.

    Its answer is one `TasksRecalled`, which may be empty.
    """

    worker: Worker
    seqs: Sequence[int] | None = None


@dataclass(frozen=True, slots=True)
class Dismiss:
    """Let this worker end: it has used up its quota and has nothing to do. The scheduler has forgotten it."""

    worker: Worker


@dataclass(frozen=True, slots=True)
class Announce:
    """These tasks have ended: tell those who wait for them. Twins are among them."""

    finished: Sequence[Task]
    failed: Sequence[Task]


@dataclass(frozen=True, slots=True)
class AnnounceCancelled:
    """These tasks are cancelled: tell those who wait for them."""

    tasks: Sequence[Task]
    reason: str


@dataclass(frozen=True, slots=True)
class AnnouncePending:
    """These tasks, which had failed, are about to run again."""

    tasks: Sequence[Task]


@dataclass(frozen=True, slots=True)
class Drop:
    """Nobody needs these values any more."""

    outcomes: Sequence[Any]


Action = Dispatch | Recall | Dismiss | Announce | AnnounceCancelled | AnnouncePending | Drop
