"""Every exception of localdist; this tree is the overview, and the type says whose fault it was.

::

    Exception
    ├── LocaldistError                      root of all below: ``except LocaldistError`` catches them
    │   ├── ClosedClientError               yours: the client was closed (also a RuntimeError)
    │   ├── SerializationError              yours: a value cannot be pickled (also a TypeError and a PicklingError)
    │   ├── DeserializationError            yours: a value cannot be rebuilt (also a RuntimeError)
    │   ├── TaskTimeoutError                the task's: it ran longer than it may (also a TimeoutError)
    │   ├── KilledWorker                    the task's: it took several workers down with it
    │   ├── FutureCancelledError            yours: the future was cancelled (also a CancelledError)
    │   ├── FuturesCancelledError           the same, for several futures
    │   ├── StoreFullError                  the machine's: no room for a large value (also an OSError)
    │   ├── WorkerStartError                the machine's: no worker could start (also a RuntimeError)
    │   ├── WorkerStartTimeoutError         the machine's: too few workers in time (also a TimeoutError)
    │   └── InternalError                   ours: please report it, with the story it carries
    │       └── InvalidTransition
    └── Reschedule                          not an error: a task raises it to be run again later

In an `Executor` KilledWorker, DeserializationError and WorkerStartError come as subclasses that are also a
`concurrent.futures.process.BrokenProcessPool`.

Data sits in attributes, the text is made from them, and every exception survives pickling.
"""

from __future__ import annotations

import signal
from concurrent.futures import CancelledError
from pickle import PicklingError
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "CancelledError",
    "ClosedClientError",
    "DeserializationError",
    "FutureCancelledError",
    "FuturesCancelledError",
    "InternalError",
    "InvalidTransition",
    "KilledWorker",
    "LocaldistError",
    "Reschedule",
    "SerializationError",
    "StoreFullError",
    "TaskTimeoutError",
    "WorkerStartError",
    "WorkerStartTimeoutError",
]


class LocaldistError(Exception):
    """Root of the exceptions that localdist defines."""


class ClosedClientError(LocaldistError, RuntimeError):
    """The client was closed, so it can neither take work nor deliver results."""


class SerializationError(LocaldistError, TypeError, PicklingError):
    """A value cannot be pickled, so it cannot travel between processes.

    Attributes:
        what: which value: ``"argument"``, ``"function"``, ``"result"`` or ``"data"``.
        type_name: qualified name of the type that was being pickled.
        key: key of the task, or None when there is none yet.
        detail: text of the pickler's own error (which is also ``__cause__`` where it is at hand).
    """

    def __init__(self, what: str, type_name: str, key: object = None, detail: str = "") -> None:
        super().__init__(what, type_name, key, detail)
        self.what, self.type_name, self.key, self.detail = what, type_name, key, detail

    def __str__(self) -> str:
        of_task = f" of task {self.key!r}" if self.key is not None else ""
        return (
            f"the {self.what}{of_task} cannot be pickled: type {self.type_name}: {self.detail.rstrip('.')}. "
            "Pass something picklable: open files, sockets, locks and generators must be made inside the task, "
            "and a class can say how it travels with __reduce__"
        )


class DeserializationError(LocaldistError, RuntimeError):
    """A value arrived but cannot be rebuilt; the original error is the ``__cause__``.

    Attributes:
        what: which value: ``"argument"``, ``"function"``, ``"result"`` or ``"exception"``.
        key: key of the task.
        detail: text of the original error.
    """

    def __init__(self, what: str, key: object, detail: str = "") -> None:
        super().__init__(what, key, detail)
        self.what, self.key, self.detail = what, key, detail

    def __str__(self) -> str:
        return f"the {self.what} of task {self.key!r} cannot be unpickled: {self.detail}"


class TaskTimeoutError(LocaldistError, TimeoutError):
    """A task ran longer than its ``timeout`` and was ended, with the process that ran it.

    Attributes:
        key: key of the task.
        timeout: its limit in seconds, counted from the start of its execution.
    """

    def __init__(self, key: object, timeout: float) -> None:
        super().__init__(key, timeout)
        self.key, self.timeout = key, timeout

    def __str__(self) -> str:
        return f"task {self.key!r} ran longer than its timeout of {self.timeout:g} s and was ended"


def describe_exit(exitcode: int | None) -> str:
    """Say in words how a process ended, from `multiprocessing.Process.exitcode` (negative: a signal)."""
    if exitcode is None:
        return "ended in an unknown way"
    if exitcode >= 0:
        return f"exited with code {exitcode}"
    try:
        return f"was killed by signal {signal.Signals(-exitcode).name} ({-exitcode})"
    except ValueError:
        return f"was killed by signal {-exitcode}"


class KilledWorker(LocaldistError):
    """Every worker that ran this task died while running it, more often than is allowed.

    Attributes:
        task: key of the task.
        last_worker: address of the last worker that died.
        allowed_failures: how many deaths were allowed.
        pid: process id of that worker, or None.
        exitcode: its exit code, negative for the number of a signal, or None.
    """

    def __init__(
        self,
        task: object,
        last_worker: str,
        allowed_failures: int,
        pid: int | None = None,
        exitcode: int | None = None,
    ) -> None:
        super().__init__(task, last_worker, allowed_failures, pid, exitcode)
        self.task, self.last_worker, self.allowed_failures = task, last_worker, allowed_failures
        self.pid, self.exitcode = pid, exitcode

    def __str__(self) -> str:
        return (
            f"task {self.task!r} was running on {self.last_worker} (pid {self.pid}) when that process "
            f"{describe_exit(self.exitcode)}; {self.allowed_failures} such deaths are allowed. "
            "A segmentation fault in a C extension, os._exit, or the kernel when memory runs out, end a process so"
        )


class FutureCancelledError(LocaldistError, CancelledError):
    """The result of a cancelled future was asked for.

    Attributes:
        key: key of the future.
        reason: why it was cancelled.
        msg: what the one who cancelled it had to say, or None.
    """

    def __init__(self, key: object, reason: str = "unknown", msg: str | None = None) -> None:
        super().__init__(key, reason, msg)
        self.key, self.reason, self.msg = key, reason, msg

    def __str__(self) -> str:
        text = f"{self.key!r} cancelled for reason: {self.reason}"
        return f"{text}\n{self.msg}" if self.msg else text


class FuturesCancelledError(LocaldistError, CancelledError):
    """Several futures were cancelled; `error_groups` maps each reason to the errors that have it."""

    def __init__(self, errors: Sequence[FutureCancelledError]) -> None:
        super().__init__(tuple(errors))
        groups: dict[str, list[FutureCancelledError]] = {}
        for error in errors:
            groups.setdefault(error.reason, []).append(error)
        self.error_groups: Mapping[str, list[FutureCancelledError]] = groups

    def __str__(self) -> str:
        lines = [f"{sum(map(len, self.error_groups.values()))} future(s) cancelled:"]
        for reason, errors in self.error_groups.items():
            shown = ", ".join(repr(e.key) for e in errors[:5]) + (", ..." if len(errors) > 5 else "")
            lines.append(f"  {reason}: {shown}")
        return "\n".join(lines)


class StoreFullError(LocaldistError, OSError):
    """Neither shared memory nor the disk folder has room for a large value.

    Attributes:
        nbytes: size of the value in bytes.
        folders: the folders that were tried, each with the system's error text.
    """

    def __init__(self, nbytes: int, folders: Mapping[str, str]) -> None:
        super().__init__(nbytes, dict(folders))
        self.nbytes, self.folders = nbytes, dict(folders)

    def __str__(self) -> str:
        tried = "; ".join(f"{folder}: {why}" for folder, why in self.folders.items())
        return f"no room for a value of {self.nbytes} bytes ({tried}). Release futures, or free space there"


class WorkerStartError(LocaldistError, RuntimeError):
    """A worker process ended before it could take work.

    Attributes:
        exitcode: its exit code, negative for the number of a signal, or None.
        stderr: what a worker writes to its standard error when it starts.
    """

    def __init__(self, exitcode: int | None, stderr: str = "") -> None:
        super().__init__(exitcode, stderr)
        self.exitcode, self.stderr = exitcode, stderr

    def __str__(self) -> str:
        text = "a worker process could not start"
        if self.exitcode is not None or not self.stderr:
            text += f": it {describe_exit(self.exitcode)}"
        return f"{text}. It says:\n{self.stderr}" if self.stderr else text


class WorkerStartTimeoutError(LocaldistError, TimeoutError):
    """Fewer workers than asked for were running when the time was over."""

    def __init__(self, available_workers: int, expected_workers: int, timeout: float) -> None:
        super().__init__(available_workers, expected_workers, timeout)
        self.available_workers, self.expected_workers = available_workers, expected_workers
        self.timeout = timeout

    def __str__(self) -> str:
        return f"only {self.available_workers} of {self.expected_workers} workers were running after {self.timeout:g} s"


class InternalError(LocaldistError):
    """A rule of localdist itself was broken. Please report it with the whole text."""


class InvalidTransition(InternalError):
    """The scheduler was asked for a move that its table does not know.

    Attributes:
        key: key of the task.
        start: name of the state it was in.
        event: what happened to it.
        story: what the scheduler remembers of the task, oldest first.
    """

    def __init__(self, key: object, start: str, event: str, story: Sequence[object] = ()) -> None:
        super().__init__(key, start, event, tuple(story))
        self.key, self.start, self.event, self.story = key, start, event, tuple(story)

    def __str__(self) -> str:
        told = "".join(f"\n    {line}" for line in self.story)
        return f"task {self.key!r} in state {self.start} cannot take {self.event}. Its story:{told or ' none'}"


class Reschedule(Exception):
    """Raised inside a task to give the task back: it goes to the queue and runs again, perhaps elsewhere."""
