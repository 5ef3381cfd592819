"""Workers that are threads of the client's process (`processes=False`): the same protocol, nothing is copied."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, ClassVar

from .._schedule.records import Task, Worker
from .._wire import Item, ReplyKind
from .._worker._codec import ThreadCodec
from .._worker._context import WorkerHandle
from .._worker._runner import Runner


class ThreadWorker:
    """One worker whose slots are threads here; it is the worker's channel and the scheduler's handle at once."""

    #: it has no pipes that could be full
    writers: ClassVar[tuple[Any, ...]] = ()
    blocked: ClassVar[bool] = False
    dismissed: ClassVar[bool] = False

    def __init__(
        self, record: Worker, folder: str, post: Callable[[ThreadWorker, tuple[ReplyKind, int, float, Any]], None]
    ) -> None:
        self.record = record
        self.pid = os.getpid()
        self.ready = self.up = True
        self._post = post
        self._arrived: SimpleQueue[list[Item] | None] = SimpleQueue()
        handle = WorkerHandle(record.address, record.name, self.pid, folder)
        self.runner = Runner(self, ThreadCodec(), handle, [0] * record.slots)
        self._thread = threading.Thread(target=self.runner.run, name=f"localdist-slot-{record.name}-0", daemon=True)
        self._thread.start()

    # -- as the runner's channel

    def receive(self, *, block: bool) -> list[Item] | None:
        """See `localdist._worker._runner.Channel`."""
        if not block and self._arrived.empty():
            return []
        return self._arrived.get()

    def reply(self, kind: ReplyKind, seq: int, seconds: float, payload: Any) -> None:
        """See `localdist._worker._runner.Channel`."""
        self._post(self, (kind, seq, seconds, payload))

    # -- as the scheduler's handle

    def send(self, tasks: Sequence[Task], _values: Any) -> None:
        """Hand over tasks."""
        self._arrived.put(
            [Item(task.seq, task.key, 0, task.call, 0, tuple([d.outcome for d in task.dependencies])) for task in tasks]
        )

    def command(self, verb: str, detail: Any = None) -> None:
        """Do what a control message asks for."""
        if verb == "recall":
            self.reply(ReplyKind.RECALLED, 0, 0.0, (self.runner.recall(), True))
        elif verb == "cancel":
            self.runner.cancel(detail)

    def close_input(self) -> None:
        """Let the threads end as soon as they are idle."""
        self._arrived.put(None)

    def join(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the threads; say whether they have ended."""
        self._thread.join(timeout)
        return not self._thread.is_alive()
