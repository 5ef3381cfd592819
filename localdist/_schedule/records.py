"""What the scheduler remembers: tasks, workers, groups of like tasks. Slotted records, one line per field.

Only `Scheduler` changes the fields listed as its own. A `Task` is made by whoever submits it (the client makes a
subclass with fields of its own, so that one object serves both sides) and belongs to the scheduler from the
moment it is submitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

# A str, int, float or nested tuple of those; see localdist._key.check_key.
Key = Any


class State(IntEnum):
    """Where a task stands. The moves between states are the table `MOVES` in `core`."""

    NEW = 0  # made, not yet submitted
    WAITING = 1  # some dependency has no value yet
    READY = 2  # in the queue of its lane
    PROCESSING = 3  # handed to a worker: queued there, or running
    FINISHED = 4  # `outcome` is its value
    ERRED = 5  # `outcome` is its error
    TWIN = 6  # another task with the same key runs for both
    FORGOTTEN = 7  # released or cancelled: nobody wants it


class Group:
    """Tasks that are expected to take equally long, since they call the same function."""

    __slots__ = ("name", "seconds")

    def __init__(self, name: str) -> None:
        #: name of the function
        self.name = name
        #: moving average of the time one task takes on a worker, in seconds; None until one has been measured
        self.seconds: float | None = None

    def __repr__(self) -> str:
        return f"<Group {self.name}: {self.seconds} s>"


@dataclass(frozen=True, slots=True)
class Lane:
    """Which workers may run a task, and what it holds while it runs."""

    #: names or addresses of the workers that may run it; None: any
    workers: frozenset[Any] | None = None
    #: False: `workers` is a preference only, used while one of them is there
    strict: bool = True
    #: abstract resources, name and amount, that it holds while it is at a worker
    resources: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Options:
    """What a caller may ask for a task; one object serves all tasks of a call."""

    #: higher runs earlier
    priority: float = 0
    #: how often it is run again after it raised an exception
    retries: int = 0
    #: None: any worker, no resources
    lane: Lane | None = None
    #: who submitted it; cancelling spreads to dependents of the same owner only
    owner: object = None
    #: how many workers may die running it; None: as many as the scheduler allows
    allowed_failures: int | None = None
    #: True: once it has ended it leaves the scheduler, which nobody asks for it; its outcome is its submitter's until
    #: that releases it. Such a task has a key of its own, and no dependents
    detached: bool = False


class Task:
    """One call and all that the scheduler knows about it."""

    __slots__ = (
        "call",
        "claims",
        "cost",
        "deaths",
        "dependencies",
        "dependents",
        "failures",
        "function",
        "group",
        "held",
        "key",
        "kept",
        "missing",
        "options",
        "outcome",
        "pinned",
        "seq",
        "state",
        "twins",
        "worker",
    )

    def __init__(
        self,
        key: Key,
        group: Group,
        function: Any,
        call: Any,
        dependencies: tuple[Task, ...] = (),
        options: Options | None = None,
    ) -> None:
        #: its name; among live tasks that are claimed and are not twins it is unique
        self.key = key
        self.group = group
        #: what a worker is to call; opaque here
        self.function = function
        #: with which arguments; opaque here; None once it is finished or forgotten
        self.call = call
        #: tasks whose values it needs, in the order in which its call refers to them; emptied once it is finished or
        #: forgotten, kept after an error, for a retry. A NEW one with an `outcome` and no claims is data that was
        #: made for this task only
        self.dependencies = dependencies
        self.options = options if options is not None else DEFAULT_OPTIONS
        #: number of its submission: unique, growing; identifies it to the workers; 0 before, and for data of one task
        self.seq = 0
        self.state = State.NEW
        #: tasks that hold on to its value: those that depend on it and are neither finished nor forgotten, in the order
        #: of their submission; None when there is none
        self.dependents: dict[Task, None] | None = None
        #: how many dependencies have no value yet; 0 unless WAITING
        self.missing = 0
        #: how many want it for itself: its submitter (`held`), its twins, fire-and-forget (`kept`)
        self.claims = 1
        #: True while its submitter claims it
        self.held = True
        #: how often it raised an exception, and how often a worker died running it
        self.failures = 0
        self.deaths = 0
        #: True while fire-and-forget claims it, which ends when the task ends
        self.kept = False
        #: True: somebody was told that it is as good as running, so it is neither withdrawn nor stopped any more
        self.pinned = False
        #: what it adds to the load of the worker it is at, in seconds; above 0 there
        self.cost = 0.0
        #: the worker it is at while PROCESSING, else None
        self.worker: Worker | None = None
        #: its value when FINISHED, its error when ERRED, never None then; None before; opaque here
        self.outcome: Any = None
        #: TWIN: a list of the one task that runs for it, whose outcome it shares; otherwise the twins it runs for, or
        #: None
        self.twins: list[Task] | None = None

    def __repr__(self) -> str:
        return f"<Task {self.key!r} #{self.seq} {self.state.name}>"


DEFAULT_OPTIONS = Options()


class Worker:
    """One worker and what was handed to it."""

    __slots__ = (
        "address",
        "free",
        "last_report",
        "load",
        "name",
        "outstanding",
        "quota",
        "recalling",
        "slots",
        "stuck",
    )

    def __init__(
        self,
        address: str,
        name: Any,
        slots: int,
        resources: dict[str, float] | None = None,
        quota: float = float("inf"),
    ) -> None:
        #: unique among all workers that ever were
        self.address = address
        #: what callers may write in `workers=`; a replacement has the name of the one it replaces
        self.name = name
        #: how many tasks it runs at a time
        self.slots = slots
        #: how many more tasks it may be given; it is dismissed when it has used up and reported them all
        self.quota = quota
        #: amount of each resource that no task holds
        self.free: dict[str, float] = dict(resources or {})
        #: tasks it has and has not reported, by `seq`, in the order of sending, which is the order of starting:
        #: the ones that have begun are among the first `slots`. PROCESSING here, or else FORGOTTEN, TWIN or ERRED (by
        #: order): what comes of those has no taker
        self.outstanding: dict[int, Task] = {}
        #: estimate of the work in `outstanding`, in seconds of one slot
        self.load = 0.0
        #: when it last reported something, or was last handed work while it had none
        self.last_report = 0.0
        #: True between the recall of all it has not begun and the answer
        self.recalling = False
        #: True from such an answer to the next report: its slots are busy for long, it gets nothing in advance
        self.stuck = False

    def __repr__(self) -> str:
        return f"<Worker {self.address} outstanding={len(self.outstanding)}>"


# One line of a worker's report: the task's seq, what came of it, its value or error, and its duration in seconds.
ReportLine = tuple[int, "Ending", Any, float]


class Ending(IntEnum):
    """What came of one run of a task."""

    SUCCESS = 0
    ERROR = 1
    RESCHEDULED = 2  # the task asked to be run again


@dataclass(frozen=True, slots=True)
class StoryLine:
    """One thing that happened to some tasks: the answer to `Scheduler.story` is a list of these."""

    #: number of the event that caused it
    event: int
    #: time of that event, in the seconds of the clock that the caller of `handle` uses
    time: float
    what: str
    keys: Sequence[Key]
    where: str = ""

    def __str__(self) -> str:
        at = f" at {self.where}" if self.where else ""
        return f"[{self.time:.6f}] event {self.event}: {self.what}{at}"
