"""How other threads reach the scheduler's: they leave something for it, and wake it.

No wake-up is lost: (1) the thread sets `_asleep`, (2) looks into the boxes once more, (3) sleeps. Whoever leaves
something (a) appends, (b) looks at `_asleep`. If (b) comes before (1), then (a) comes before (2).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from .._pipe import Poller
from .._schedule.records import Task
from ..errors import ClosedClientError


class Mailbox:
    """Base of `Engine`: what any thread may leave for the scheduler's thread."""

    _thread: threading.Thread

    def __init__(self) -> None:
        #: tasks to submit, and events
        self._inbox: deque[Any] = deque()
        #: tasks a handle of which is gone
        self._drops: deque[Task] = deque()
        #: functions to be run in the scheduler's thread
        self._calls: deque[Callable[[], None]] = deque()
        #: the scheduler's thread sleeps, or is about to; `_drowsy`: it will look around soon anyway
        self._asleep = self._drowsy = False
        self._poller = Poller()
        self._closing = threading.Event()

    def post(self, item: Any) -> None:
        """Put something into the inbox: a task, or an event."""
        self._inbox.append(item)
        if self._asleep:
            self._rouse()

    def drop(self, task: Task) -> None:
        """Take note that a handle of a task is gone. Takes no lock: finalizers call it.

        A small result that is not wanted any more is no reason to wake the thread if it looks around soon anyway.
        """
        self._drops.append(task)
        if self._asleep and not (self._drowsy and type(task.outcome) is bytes):
            self._rouse()

    def _take_drops(self) -> list[Task]:
        """Take all handles that were dropped so far. Any thread may do so."""
        taken: list[Task] = []
        drops = self._drops
        while drops:
            try:
                taken.append(drops.popleft())
            except IndexError:  # noqa: PERF203  # another thread was faster
                break
        return taken

    def wake(self) -> None:
        """Let the scheduler's thread look around. Takes no lock."""
        if self._asleep:
            self._rouse()

    def forked(self) -> None:
        """Be dead in a forked process: the pipes belong to the parent, and the thread is not here."""
        self._asleep = False
        self._closing.set()

    def _rouse(self) -> None:
        try:
            self._asleep = False
            self._poller.wake()
        except BaseException:  # Ctrl-C in between: it would sleep on, and nobody would wake it any more
            self._poller.wake()
            raise

    def call(self, function: Callable[[], Any]) -> Any:
        """Run a function in the scheduler's thread; return its result or raise its error.

        Raises:
            ClosedClientError: the engine has ended.
        """
        if threading.current_thread() is self._thread:
            return function()
        box: list[Any] = []
        done = threading.Event()

        def answer() -> None:
            try:
                box.append((True, function()))
            except BaseException as e:  # noqa: BLE001  # raised again where it belongs, in the caller
                box.append((False, e))
            done.set()

        self._calls.append(answer)
        self.wake()
        if self._closing.is_set():
            self._thread.join()  # it answers what came in time
        while self._thread.is_alive() and not done.wait(1.0):
            continue
        if not box:
            raise ClosedClientError("the client is closed")
        ok, result = box[0]
        if not ok:
            raise result
        return result
