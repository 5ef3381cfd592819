"""RESULT: a handle on a task's result; also a `concurrent.futures.Future`."""

from __future__ import annotations

import concurrent.futures
import datetime
import re
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ._registry import known_entry
from ._state import CANCELLED, ERROR, FINISHED, PENDING, RELEASED, Callbacks, Entry, Latch, StandardWaiters
from .errors import ClosedClientError, FutureCancelledError

if TYPE_CHECKING:
    from ._client import Client

Duration = float | int | str | datetime.timedelta | None

_UNITS = {
    "us": 1e-6,
    "microsecond": 1e-6,
    "ms": 1e-3,
    "millisecond": 1e-3,
    "s": 1.0,
    "sec": 1.0,
    "second": 1.0,
    "m": 60.0,
    "min": 60.0,
    "minute": 60.0,
    "h": 3600.0,
    "hr": 3600.0,
    "hour": 3600.0,
    "d": 86400.0,
    "day": 86400.0,
}


def seconds(duration: Duration) -> float | None:
    """Turn a duration as users write it into seconds; None stays None.

    Args:
        duration: a number of seconds, a `datetime.timedelta`, or text such as "100ms", "1.5 s", "10 minutes".

    Raises:
        ValueError: the text is no duration.
        TypeError: it is none of these.
    """
    if duration is None or isinstance(duration, (int, float)):
        return duration
    if isinstance(duration, datetime.timedelta):
        return duration.total_seconds()
    if not isinstance(duration, str):
        raise TypeError(f"a duration is a number of seconds, a text or a timedelta, not {type(duration).__name__}")
    match = re.fullmatch(r"\s*([+-]?[\d.]+(?:e[+-]?\d+)?)?\s*([a-z]*)\s*", duration.lower())
    unit = match and match[2]
    factor = _UNITS.get(unit or "s") or _UNITS.get((unit or "").removesuffix("s"))
    if match is None or factor is None or not (match[1] or unit):
        raise ValueError(f"not a duration: {duration!r} (write for example '100ms', '1.5 s', '10 minutes')")
    return float(match[1] or 1) * factor


class StandardFace(concurrent.futures.Future[Any]):
    """What `concurrent.futures` looks at in a future that belongs to an entry."""

    __slots__ = ("_entry", "_waiters_list")

    _entry: Entry | None

    def __init__(self, entry: Entry | None) -> None:
        # The standard one makes a lock and a list for each; here those who wait bring their own.
        self._entry = entry
        self._waiters_list: StandardWaiters | None = None

    def _bound(self) -> Entry:
        if self._entry is None:
            raise RuntimeError(
                "this Future is not bound to a client: it was pickled or copied where no client was. "
                "Return it to the process of its client, or pass it as a task's argument to get its value"
            )
        return self._entry

    @property
    def _condition(self) -> Any:  # type: ignore[override]
        return self._waiters.condition

    @property
    def _waiters(self) -> StandardWaiters:  # type: ignore[override]
        entry = self._bound()
        with entry.client._board.lock:
            if self._waiters_list is None:
                self._waiters_list = StandardWaiters(self, entry, entry.client._board)
            return self._waiters_list


class Future(StandardFace):
    """The result of a task, which may not exist yet.

    Made by `Client.submit`, `map` and `scatter`, never by users. While a Future object lives, the task is kept
    runnable and its result is kept; when the last one for a key is gone the result is dropped, and a task that has
    not begun never begins. Two handles of one key are unequal objects that share state and result.

    It is a `concurrent.futures.Future` too: that module's `wait` and `as_completed`, and `asyncio.wrap_future`, take
    it. Where both interfaces have a method, Dask's meaning counts: `cancel` returns None, and `exception` returns
    None for a cancelled future. All methods may be called from any thread.
    """

    __slots__ = ("_foreign_key", "_released")

    #: its key, where it is bound to no client
    _foreign_key: Any
    _released: bool
    #: outcome, exception and remote traceback, once somebody has asked for them; not in the entry, which the scheduler
    #: holds: an exception that is raised refers to frames, and so to futures
    _failure: tuple[Any, BaseException, TracebackType | None] | None = None

    def __init__(self, entry: Entry | None) -> None:
        # Not through the base: this is the hot path.
        self._entry = entry
        self._waiters_list: StandardWaiters | None = None
        self._released = False

    # -- what it is

    @property
    def key(self) -> Any:
        """Name of the task: equal for equal calls of pure functions."""
        return self._foreign_key if self._entry is None else self._entry.key

    @property
    def client(self) -> Client:
        """The client that it belongs to."""
        return self._bound().client

    @property
    def executor(self) -> Client:
        """The same as `client`."""
        return self._bound().client

    @property
    def status(self) -> str | None:
        """One of "pending", "finished", "error", "cancelled"; None when it is not bound to a client. Never blocks."""
        return None if self._entry is None else self._entry.status

    @property
    def type(self) -> type | None:
        """Class of the result, once it is finished; None before, on errors, or if it is not known here."""
        entry = self._bound()
        outcome = entry.outcome  # another thread may cancel it, which takes the outcome away
        if entry.status is not FINISHED or outcome is None:
            return None
        return entry.client._transport.type_of(outcome)

    def done(self) -> bool:
        """Say whether the task has finished, failed or was cancelled. Never blocks."""
        return self._bound().status is not PENDING

    def cancelled(self) -> bool:
        """Say whether it was cancelled. Never blocks."""
        return self._bound().status is CANCELLED

    def running(self) -> bool:
        """Return False: whether a pending task has begun is known to its worker only."""
        return False

    def __repr__(self) -> str:
        entry = self._entry
        if entry is None:
            return f"<Future: not bound to a client, key: {self._foreign_key}>"
        kind = self.type if entry.status is FINISHED else None
        shown = f" type: {kind.__name__}," if kind is not None else ""
        return f"<Future: status: {entry.status},{shown} key: {entry.key}>"

    __str__ = __repr__

    def __bool__(self) -> bool:
        return True

    # -- waiting

    def _wait(self, timeout: Duration) -> Entry:
        """Wait for the end of the task; Ctrl-C cancels it (nobody waits for it any more)."""
        entry = self._bound()
        if entry.status is PENDING:
            client = entry.client
            if client._closed:
                raise ClosedClientError("the client of this future is closed")
            latch = Latch(1)
            board = client._board
            board.watch((entry,), latch)
            try:
                if not latch.wait(seconds(timeout)):
                    board.unwatch((entry,), latch)
                    raise concurrent.futures.TimeoutError(
                        f"{entry.key!r} has not finished within {seconds(timeout):g} s"
                    )
            except KeyboardInterrupt:
                client.cancel(self, reason="interrupted")
                raise
        return entry

    def result(self, timeout: Duration = None) -> Any:
        """Wait for the task and return its value: a fresh copy, which the caller may change (with threads: the object).

        Ctrl-C cancels the future.

        Args:
            timeout: how long to wait: seconds, or text like "500ms"; None: as long as it takes.

        Raises:
            TimeoutError: it has not ended in time; it runs on, and `result` may be called again.
            CancelledError: it was cancelled.
            BaseException: what the task raised, with the traceback of the user's code in the worker.
        """
        entry = self._wait(timeout)
        if entry.status is FINISHED:
            return self._load(entry)
        # A new object each time, held by nobody else: once raised it refers to the frames above, and so to futures.
        failure = self._load_failure(entry)
        if failure is None:
            return self.result(timeout)
        try:
            raise failure[1]
        finally:
            # The traceback refers to this frame: without this, error and frame keep each other alive.
            del failure

    @staticmethod
    def _load(entry: Entry) -> Any:
        try:
            return entry.client._transport.load(entry.outcome, entry.key)
        except Exception:
            if entry.status is CANCELLED:  # in this very moment, by another thread, which took the outcome away
                raise _cancelled_error(entry) from None
            raise

    @staticmethod
    def _load_failure(entry: Entry) -> tuple[Any, BaseException, TracebackType | None] | None:
        """Return the outcome of an entry that has failed or was cancelled, its exception and remote traceback.

        None: it is being run again.
        """
        with entry.client._board.lock:
            outcome = entry.outcome
            if entry.status is CANCELLED:
                return None, _cancelled_error(entry), None
            if entry.status is not ERROR or outcome is None:
                return None
        error = entry.client._transport.load_error(outcome)
        return outcome, error, error.__traceback__

    def _known_failure(self, timeout: Duration) -> tuple[Any, BaseException, TracebackType | None] | None:
        """Wait, and return what `_load_failure` does of a failed task, with always the same exception object."""
        while True:
            entry = self._wait(timeout)
            status = entry.status  # once: another thread may retry it at any time
            if status is PENDING:
                continue
            if status is not ERROR:
                return None
            known = self._failure
            if known is None or known[0] is not entry.outcome:
                loaded = self._load_failure(entry)
                with entry.client._board.lock:
                    if self._failure is known:  # else another thread was faster
                        self._failure = loaded
                    known = self._failure
            if known is not None:
                return known

    def exception(self, timeout: Duration = None) -> BaseException | None:
        """Wait for the task and return the exception it raised; None if it has finished or was cancelled.

        Raises:
            TimeoutError: it has not ended within `timeout`.
        """
        failure = self._known_failure(timeout)
        return None if failure is None else failure[1]

    def traceback(self, timeout: Duration = None) -> TracebackType | None:
        """Wait for the task and return the traceback of its exception: the user's frames; None if there is none.

        Raises:
            TimeoutError: it has not ended within `timeout`.
        """
        failure = self._known_failure(timeout)
        return None if failure is None else failure[2]

    def add_done_callback(self, fn: Callable[[Any], object]) -> None:
        """Call ``fn(future)`` with this object when the task ends, or soon if it has.

        Callbacks run one after the other in a thread of their own, for one future in the order of registration.
        They may call `result`. What they raise is logged.
        """
        entry = self._bound()
        client = entry.client
        client._callbacks.start()
        client._board.watch((entry,), Callbacks(self, fn, client._callbacks.put))

    # -- control

    def cancel(self, reason: str | None = None, msg: str | None = None) -> None:  # type: ignore[override]
        """Cancel the task; see `Client.cancel`."""
        self.client.cancel(self, reason=reason, msg=msg)

    def retry(self) -> None:
        """Run a failed task again; see `Client.retry`."""
        self.client.retry(self)

    def release(self) -> None:
        """Give up this handle; afterwards it counts as cancelled unless another handle lives. May be repeated."""
        entry = self._bound()
        client = entry.client
        with client._board.lock:
            if self._released:
                return
            self._released = True
            if entry.handles == 1:
                client._board.cancel_one(entry, *RELEASED)
            client._transport.drop(entry)
            client._transport.count_drops()  # at once: the key may be used anew

    def __del__(self) -> None:
        # May run in any thread, within any other code: it only appends to a queue.
        entry = self._entry
        if entry is not None and not self._released:
            entry.client._drop(entry)

    def __reduce__(self) -> tuple[Callable[[Any], Future], tuple[Any]]:
        return _rebind, (self.key,)

    def __localdist_token__(self) -> Any:
        return self.key

    # -- what `concurrent.futures` and asyncio look at

    @property
    def _state(self) -> str:  # type: ignore[override]
        status = self._waiters.condition.status or self._bound().status
        if status is PENDING:
            return "PENDING"
        return "CANCELLED_AND_NOTIFIED" if status is CANCELLED else "FINISHED"

    @property
    def _exception(self) -> BaseException | None:  # type: ignore[override]
        return self.exception()

    @property
    def _result(self) -> Any:  # type: ignore[override]
        return self.result() if self._bound().status is FINISHED else None


def _cancelled_error(entry: Entry) -> FutureCancelledError:
    reason, msg = entry.note or ("unknown", None)
    return FutureCancelledError(entry.key, reason, msg)


def _rebind(key: Any) -> Future:
    """Rebuild a pickled future: bound to the client of this process that knows the key, or else unbound."""
    future = Future(known_entry(key))
    if future._entry is None:
        future._foreign_key = key
    return future


class Deadline:
    """A time limit that several waits share."""

    def __init__(self, timeout: Duration) -> None:
        self.timeout = timeout
        limit = seconds(timeout)
        self._end = None if limit is None else time.monotonic() + limit

    def left(self) -> float | None:
        """Return the seconds that are left, at least 0; None: no limit."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())
