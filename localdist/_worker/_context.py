"""Which task runs in this thread, and in which worker: the answer of `get_worker`."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._runner import Runner


class _Current(threading.local):
    """Per thread: set by a worker's slot around each task."""

    runner: Runner | None = None
    key: Any = None


current = _Current()


class WorkerHandle:
    """The worker that runs the current task, as `get_worker` returns it.

    There is one per worker, so attributes that a task sets on it (a connection, a loaded model) are there for the
    next task on the same worker; with several threads per worker they are shared between threads.

    Attributes:
        address: unique address of the worker.
        name: its name, which a replacement takes over.
        id: the same as `address`.
        pid: id of its process.
        local_directory: a folder on disk that is removed when the client closes.
    """

    def __init__(self, address: str, name: Any, pid: int, local_directory: str) -> None:
        self.address = self.id = address
        self.name = name
        self.pid = pid
        self.local_directory = local_directory

    def get_current_task(self) -> Any:
        """Return the key of the task that this thread runs."""
        return current.key

    def __repr__(self) -> str:
        return f"<Worker {self.address!r}, name: {self.name!r}, pid: {self.pid}>"


def get_worker() -> WorkerHandle:
    """Return the worker that runs the task which calls this.

    Raises:
        ValueError: outside a task, or in a thread that a task started itself.
    """
    if current.runner is None:
        raise ValueError("get_worker() was called outside a task: no worker is running this thread")
    return current.runner.handle
