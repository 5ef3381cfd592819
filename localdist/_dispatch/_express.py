"""A thread that submits a task while a worker is idle sends it there itself, before the scheduler hears of it.

That is one change of thread less on the way: 25 of the 100 us of a round trip, where it was measured. The scheduler's
thread must be asleep then; it hears of the task when it wakes, with the worker's reply at last.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

from .._schedule import events
from .._schedule.core import Scheduler
from .._schedule.records import Task
from ._mailbox import Mailbox
from ._pool import ProcessWorker
from ._values import ValueStore


class Listener(Protocol):
    """Who wants to know what became of tasks. Called in the scheduler's thread; must not wait."""

    def ended(self, finished: Sequence[Task], failed: Sequence[Task]) -> None:
        """These tasks have an outcome."""

    def cancelled(self, tasks: Sequence[Task], reason: str) -> None:
        """These tasks are cancelled."""

    def pending(self, tasks: Sequence[Task]) -> None:
        """These tasks had failed and run again."""

    def drop_handles(self, tasks: Sequence[Task]) -> list[Task]:
        """Count a handle less for each; return those that have none left."""

    def closed(self) -> None:
        """The engine has ended: nothing that is submitted from now on will be done."""


class Express(Mailbox):
    """Base of `Engine`: what any thread may do instead of the scheduler's thread."""

    core: Scheduler
    values: ValueStore
    listener: Listener

    def __init__(self) -> None:
        super().__init__()
        #: held by the thread that uses the core, the ledger's orders and the workers' pipes; held by the scheduler's
        #: thread whenever it does not sleep
        self._mutex = threading.RLock()
        #: a worker that had nothing to do when the scheduler's thread went to sleep
        self._idle: ProcessWorker | None = None
        #: the worker and the task that were sent to it so last, until the scheduler's thread wakes
        self._express: tuple[ProcessWorker, Task] | None = None
        #: True when a pipe to a worker was full, until the scheduler's thread watches it
        self._blocked = False

    def submit_one(self, task: Task) -> None:
        """Let a task run. If a worker is idle, this thread sends it there itself, before the core knows of it.

        The caller may hold the listener's lock: nothing here waits for the mutex. Ctrl-C, or what the handler of
        another signal raises, may come at any point here; the core is never touched, so it stays whole.
        """
        if self._idle is not None and self._asleep and not self._inbox and not task.dependencies:
            mutex = self._mutex
            try:
                # Asked for again: it may have been taken, or have died.
                free = mutex.acquire(blocking=False) and self._idle is not None and task.options.lane is None
                if free and self._send_at_once(task, self._idle):
                    return
            finally:
                try:
                    if mutex._is_owned():  # type: ignore[attr-defined]  # the stubs lack it
                        mutex.release()
                finally:  # nothing else survives a Ctrl-C between the two calls above
                    if mutex._is_owned():  # type: ignore[attr-defined]
                        mutex.release()
        self.post(task)

    def _send_at_once(self, task: Task, worker: ProcessWorker) -> bool:
        """Send a task to an idle worker; the scheduler's thread hears of it when it wakes, with the reply at last.

        Returns:
            False: another thread has posted something just now, which comes first; nothing was sent.
        """
        self._idle = None
        task.seq = self.core.take_number()
        news = events.TaskSent(worker.record, task)
        try:
            # First the news, then the deed: a worker's reply never comes before the core knows of the task.
            self._inbox.append(news)
            if self._inbox[0] is not news:
                self._inbox.remove(news)
                return False
            self._express = (worker, task)
            worker.send((task,), self.values)
        except BaseException:
            worker.kill()  # half a message may have gone out; its end is dealt with, and the task is run elsewhere
            raise
        if worker.blocked:
            self._blocked = True
            self.wake()
        return True

    def count_drops(self) -> bool:
        """Tell the listener, in this thread, of all handles that were dropped before; say whether there were any.

        So an equal call that comes after its last future has gone finds nothing to share.
        """
        drops = self._take_drops()
        if drops:
            gone = self.listener.drop_handles(drops)
            if gone:
                self.post(events.TasksReleased(gone))
        return bool(drops)
