"""The ways in which an engine ends: at once, when its work is done, or by force."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from typing import Any

from .._schedule import events
from .._schedule.records import State, Task
from ._crew import GRACE, Crew
from ._express import Express


class Endings(Express):
    """Base of `Engine`: what ends it. All may be called from any thread."""

    crew: Crew

    def __init__(self) -> None:
        super().__init__()
        self._ended = threading.Event()
        #: True: end when no task is left
        self._ends_when_done = False
        #: how long tasks may still run at the end, in seconds
        self._grace = GRACE

    def handle(self, event: events.Event) -> None:
        """Give the core an event and perform what it asks for. In the scheduler's thread."""
        raise NotImplementedError

    @property
    def closed(self) -> bool:
        """Whether it has ended, or is about to."""
        return self._closing.is_set()

    @property
    def _done(self) -> bool:
        if not self._ends_when_done or self._inbox:
            return False
        return all(task.state is State.FINISHED or task.state is State.ERRED for task in self.core.tasks.values())

    def close(self, *, wait: bool = True, grace: float = GRACE) -> None:
        """End the workers and the thread; everything unfinished is cancelled. Idempotent.

        Args:
            wait: return when it has ended.
            grace: how long tasks may still run, in seconds.
        """
        if not self._closing.is_set():
            self._grace = grace
            self._closing.set()
            self.wake()
        if wait:
            self.wait_end()

    def end_when_done(self, *, cancel: bool = False) -> None:
        """End when all that was submitted has ended. Returns at once, and takes no lock: finalizers call it.

        Args:
            cancel: what has not begun is cancelled; if nothing has, one task is left for each worker that is starting.
        """

        def begin() -> None:
            if cancel:
                self._stop("the executor was shut down")
            self._ends_when_done = True

        if not self._ended.is_set():
            self._calls.append(begin)
            self.wake()

    def _stop(self, reason: str) -> None:
        self.crew.keep_up(self.core.assignment.ready_count())
        coming = self.crew.coming
        if coming and not any(worker.outstanding for worker in self.core.workers.values()):
            # Each of these workers was started for one of these.
            ready = [task for task in self.core.tasks.values() if task.state is State.READY]
            self.handle(events.TasksWithdrawn(ready[coming:], reason))
        else:
            self.handle(events.Stopped(reason))

    def abort(self, error: BaseException, *, gently: bool) -> None:
        """End the workers now, whatever they do; every unfinished task fails with `error`.

        Args:
            error: what the tasks fail with.
            gently: ask the workers by SIGTERM first.

        Raises:
            ClosedClientError: it has ended already.
        """

        def begin() -> None:
            self.handle(events.TasksFailed(list(self.core.tasks.values()), error))
            self.crew.terminate(gently=gently)
            self._grace = 0.0
            self._closing.set()

        self.call(begin)
        self.wait_end()

    def wait_end(self) -> None:
        """Wait until it has ended. Ctrl-C gets through."""
        if threading.current_thread() is self._thread:
            return
        if sys.platform == "win32":  # where a wait without a limit cannot be interrupted
            while not self._ended.wait(0.2):
                continue
        else:
            self._ended.wait()
        self._thread.join()

    def forked(self) -> None:
        """Be dead in a forked process: the thread that would say so is not here."""
        super().forked()
        self._ended = threading.Event()  # that of the parent may be locked
        self._ended.set()

    # -- looking

    def processes(self) -> dict[int, Any]:
        """Return the worker processes by their ids, those for what was submitted before included.

        Raises:
            ClosedClientError: it has ended.
        """

        def find() -> dict[int, Any]:
            self.crew.keep_up(self.core.assignment.ready_count())
            return self.crew.processes()

        found: dict[int, Any] = self.call(find)
        return found

    def withdraw(self, tasks: Sequence[Task], reason: str, *, wait: bool) -> None:
        """Cancel those of these tasks that no worker has been given.

        Args:
            tasks: any that were submitted.
            reason: for those who ask.
            wait: return when it is done; otherwise it takes no lock, and finalizers may call it.

        Raises:
            ClosedClientError: it has ended, and `wait` was asked for.
        """
        event = events.TasksWithdrawn(tasks, reason)
        if not wait or threading.current_thread() is self._thread:
            self.post(event)
            return

        self.call(lambda: self.handle(event))

    def unfinished(self, options: object) -> list[Task]:
        """List the detached tasks with these `Options` that have not ended.

        Raises:
            ClosedClientError: it has ended.
        """
        found: list[Task] = self.call(lambda: [t for t in self.core.tasks.values() if t.options is options])
        return found
