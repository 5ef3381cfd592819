"""What a client knows of each key, and who waits for it: the meeting point of its threads and the scheduler's.

An `Entry` is the scheduler's `Task` with the client's half added, so that a task costs one object. The scheduler's
half belongs to the scheduler's thread from the moment it is submitted; the client's half is guarded by `Board.lock`.
"""

from __future__ import annotations

import _thread
import gc
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from ._schedule.records import Group, Options, Task

if TYPE_CHECKING:
    from ._client import Client
    from ._future import Future, StandardFace

PENDING = "pending"
FINISHED = "finished"
ERROR = "error"
CANCELLED = "cancelled"
#: reason and message of a future that was given up
RELEASED = ("released", None)


@contextmanager
def collection_paused() -> Iterator[None]:
    """Pause the cyclic garbage collector while many objects are made that will live.

    Whenever their number has grown by a quarter it would look at all of them again; that was 3 of the 7 us that a task
    of `Client.map` cost (100,000 tasks, CPython 3.11). Of several threads that pause it, those that found it running
    let it run again: at the end it runs, however they overlap.
    """
    running = gc.isenabled()
    try:
        if running:  # else it may have been let run again just now, and nobody would do so after this
            gc.disable()
        yield
    finally:
        if running:
            gc.enable()


class Watcher(Protocol):
    """Somebody who waits for an entry."""

    def done(self, entry: Entry) -> None:
        """The entry has ended. Called once, with the board's lock held; must not wait."""


class Entry(Task):
    """One key as its client sees it. All handles (`Future` objects) of the key share it."""

    __slots__ = ("handles", "note", "status", "watchers")

    def __init__(
        self,
        key: Any,
        group: Group,
        function: Any,
        call: Any,
        dependencies: tuple[Task, ...] = (),
        options: Options | None = None,
    ) -> None:
        Task.__init__(self, key, group, function, call, dependencies, options)
        #: "pending", "finished", "error" or "cancelled"
        self.status = PENDING
        #: how many `Future` objects refer to it; at 0 the client's claim is given up
        self.handles = 1
        #: those who wait for its end: nobody, one (the common case, which costs no list), or several
        self.watchers: Watcher | list[Watcher] | None = None
        #: why it was cancelled, and what was said about it
        self.note: tuple[str, str | None] | None = None

    @property
    def client(self) -> Client:
        """The client that submitted it."""
        owner: Any = self.options.owner
        return owner  # type: ignore[no-any-return]  # the scheduler does not look into its owner


class Board:
    """Turns what the scheduler announces into the status of entries, and wakes those who wait.

    One per engine. `lock` is re-entrant, held for short times only, never while waiting.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        #: clients of the engine
        self.clients: weakref.WeakSet[Client] = weakref.WeakSet()

    # -- the scheduler's thread (see `localdist._dispatch._engine.Listener`)

    def ended(self, finished: Sequence[Any], failed: Sequence[Any]) -> None:
        """Set the status of tasks that have an outcome."""
        with self.lock:
            for entry in finished:
                if entry.status is PENDING:
                    entry.status = FINISHED
                    if entry.watchers is not None:
                        self._tell(entry)
            for entry in failed:
                if entry.status is PENDING:
                    entry.status = ERROR
                    if entry.watchers is not None:
                        self._tell(entry)

    def cancelled(self, tasks: Sequence[Any], reason: str) -> None:
        """Set the status of cancelled tasks."""
        with self.lock:
            for entry in tasks:
                self.cancel_one(entry, reason, None)

    def pending(self, tasks: Sequence[Any]) -> None:
        """Set the status of failed tasks that run again."""
        with self.lock:
            for entry in tasks:
                if entry.status is ERROR:
                    entry.status = PENDING

    def closed(self) -> None:
        """Let the clients of an engine that has ended take nothing more, and cancel what they hold."""
        with self.lock:
            for client in list(self.clients):
                client._end()

    def drop_handles(self, tasks: Sequence[Any]) -> list[Task]:
        """Count a handle less for each; return those that have none left."""
        gone: list[Task] = []
        with self.lock:
            for entry in tasks:
                entry.handles -= 1
                if not entry.handles:
                    entries = entry.options.owner._entries
                    if entries.get(entry.key) is entry:
                        del entries[entry.key]
                    if entry.options.detached and entry.status is PENDING:
                        pass  # it runs on, and somebody may wait for its end
                    # A handle that was released explicitly may still look at it, or be waited for.
                    elif entry.watchers is not None:
                        self.cancel_one(entry, *RELEASED)
                    elif entry.status is not CANCELLED:
                        entry.status, entry.note = CANCELLED, RELEASED
                    gone.append(entry)
        return gone

    # -- any thread

    def cancel_one(self, entry: Entry, reason: str, msg: str | None) -> None:
        """Set one entry to cancelled, with the lock held."""
        if entry.status is not CANCELLED:
            entry.status = CANCELLED
            entry.note = (reason, msg)
            entries = entry.client._entries
            if entries.get(entry.key) is entry:
                del entries[entry.key]
            if entry.watchers is not None:
                self._tell(entry)

    @staticmethod
    def _tell(entry: Entry) -> None:
        watchers, entry.watchers = entry.watchers, None
        if type(watchers) is list:
            for watcher in watchers:
                watcher.done(entry)
        elif watchers is not None:
            watchers.done(entry)  # type: ignore[union-attr]  # not a list

    def watch(self, entries: Iterable[Entry], watcher: Watcher) -> None:
        """Let `watcher` hear of the end of each of these; at once of those that have ended."""
        with self.lock:
            for entry in entries:
                if entry.status is not PENDING:
                    watcher.done(entry)
                elif entry.watchers is None:
                    entry.watchers = watcher
                elif type(entry.watchers) is list:
                    entry.watchers.append(watcher)
                else:
                    entry.watchers = [entry.watchers, watcher]  # type: ignore[list-item]  # not a list

    def unwatch(self, entries: Iterable[Entry], watcher: Watcher) -> None:
        """Let `watcher` hear of these no more."""
        with self.lock:
            for entry in entries:
                if entry.watchers is watcher:
                    entry.watchers = None
                elif type(entry.watchers) is list:
                    entry.watchers = [w for w in entry.watchers if w is not watcher] or None


class Latch:
    """Opens when enough of some entries have ended; one thread waits for it."""

    __slots__ = ("_fail_fast", "_lock", "_missing", "_wanted")

    def __init__(self, count: int, *, wanted: int | None = None, fail_fast: bool = False) -> None:
        """Open when `wanted` (default: all) of `count` entries have ended, or one of them badly if `fail_fast`."""
        self._missing = count if wanted is None else min(wanted, count)
        self._fail_fast = fail_fast
        self._lock = _thread.allocate_lock()
        if self._missing > 0:
            self._lock.acquire()

    def done(self, entry: Entry) -> None:
        """See `Watcher`."""
        if self._missing > 0:
            self._missing -= 1
            if self._fail_fast and entry.status is not FINISHED:
                self._missing = 0
            if not self._missing:
                self._lock.release()

    def wait(self, timeout: float | None) -> bool:
        """Wait up to `timeout` seconds; say whether it is open. Ctrl-C gets through."""
        if timeout is not None:
            opened = self._lock.acquire(timeout=max(0.0, min(timeout, threading.TIMEOUT_MAX)))
        elif sys.platform != "win32":
            opened = self._lock.acquire()
        else:
            # There a lock without a time limit cannot be interrupted.
            while not self._lock.acquire(timeout=0.2):
                continue
            opened = True
        if opened:
            self._lock.release()
        return opened


class StandardCondition:
    """What `concurrent.futures` holds while it looks at one of our futures: what it sees stays the same meanwhile.

    Each future has its own, because that module locks several futures in an order of its own.
    """

    def __init__(self, entry: Entry) -> None:
        self._entry = entry
        self._lock = threading.RLock()
        #: status of the entry when it was locked; None while it is not
        self.status: str | None = None

    def acquire(self) -> bool:
        """Lock it."""
        self._lock.acquire()
        if self.status is None:
            self.status = self._entry.status
        return True

    def release(self) -> None:
        """Unlock it."""
        self.status = None
        self._lock.release()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self.release()


class StandardWaiters(list):  # type: ignore[type-arg]  # a list for concurrent.futures, a watcher for us
    """The waiters that `concurrent.futures.wait` and `as_completed` hang on one of our futures."""

    def __init__(self, future: StandardFace, entry: Entry, board: Board) -> None:
        super().__init__()
        self.condition = StandardCondition(entry)
        self._future = weakref.ref(future)  # who waits has a reference; this list lives in the future
        self._entry = entry
        self._board = board
        self._watching = False

    def append(self, waiter: Any) -> None:
        """Let a waiter hear of the end that it has not seen yet, with `condition` held."""
        with self._board.lock:
            super().append(waiter)
            if self.condition.status is not PENDING:
                return  # it knows
            if self._entry.status is not PENDING:
                self._tell(waiter)
            elif not self._watching:
                self._watching = True
                self._board.watch([self._entry], self)

    def remove(self, waiter: Any) -> None:
        """Undo `append`."""
        with self._board.lock:
            super().remove(waiter)
            if not self and self._watching:
                self._watching = False
                self._board.unwatch([self._entry], self)

    def done(self, entry: Entry) -> None:  # noqa: ARG002  (it is the one it knows)
        """See `Watcher`."""
        self._watching = False
        for waiter in list(self):
            self._tell(waiter)

    def _tell(self, waiter: Any) -> None:
        future, status = self._future(), self._entry.status
        if future is None:
            return
        if status is CANCELLED:
            waiter.add_cancelled(future)
        elif status is ERROR:
            waiter.add_exception(future)
        else:
            waiter.add_result(future)


class Callbacks:
    """A watcher that hands a future to a function, in the client's callback thread."""

    __slots__ = ("_enqueue", "_function", "_future")

    def __init__(
        self, future: Future, function: Callable[[Future], object], enqueue: Callable[[Callable[[], None]], None]
    ) -> None:
        self._future = future
        self._function = function
        self._enqueue = enqueue

    def done(self, entry: Entry) -> None:
        """See `Watcher`."""
        del entry  # the future leads to it
        self._enqueue(self._call)

    def _call(self) -> None:
        self._function(self._future)
