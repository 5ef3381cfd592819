"""RESULT: the future of an `Executor`: the standard library's rules where `localdist.Future` keeps Dask's."""

from __future__ import annotations

import concurrent.futures
import logging
from collections.abc import Callable
from typing import Any, NoReturn

from .._future import StandardFace
from .._schedule.records import State
from .._state import CANCELLED, FINISHED, PENDING, Entry, Latch, StandardWaiters
from ..errors import ClosedClientError, DeserializationError
from ._broken import as_broken

#: Where the standard library's futures complain, too.
_log = logging.getLogger("concurrent.futures")


def await_end(entry: Entry, timeout: float | None) -> None:
    """Wait for the end of a call.

    Raises:
        TimeoutError: it has not come within `timeout` seconds.
    """
    latch = Latch(1)
    board = entry.client._board
    board.watch((entry,), latch)
    try:
        if latch.wait(timeout):
            return
    except BaseException:
        board.unwatch((entry,), latch)
        raise
    board.unwatch((entry,), latch)
    if entry.status is PENDING:
        raise concurrent.futures.TimeoutError(f"{entry.key!r} has not ended within {timeout:g} s")


def load_outcome(entry: Entry) -> tuple[Any, BaseException | None, bool]:
    """Return value and exception of a call that has ended and was not cancelled; one of them is None.

    The third tells whether asking again would give the same: False when the value is there, but could not be loaded.
    """
    transport = entry.client._transport
    if entry.status is not FINISHED:
        return None, as_broken(transport.load_error(entry.outcome)), True
    while True:
        outcome = entry.outcome
        try:
            return transport.load(outcome, entry.key), None, True
        except KeyboardInterrupt:
            raise
        except OSError as e:
            if entry.outcome is not outcome:
                continue  # it was detached from the store just now
            return None, e, False
        except Exception as e:  # noqa: BLE001  (whatever it is, it belongs to who asked for the result)
            return None, as_broken(e), False
        except BaseException as e:  # noqa: BLE001  (SystemExit of the value's own code shall not end the program)
            error = DeserializationError("result", entry.key, f"{type(e).__name__}: {e}")
            error.__cause__ = e
            return None, as_broken(error), False


def take_value(entry: Entry) -> Any:
    """Return the value of a call that has ended, or raise what it raised."""
    if entry.status is CANCELLED:
        raise concurrent.futures.CancelledError
    value, error, _ = load_outcome(entry)
    if error is None:
        return value
    try:
        raise error
    finally:
        del error  # its traceback refers to this frame


def give_up(entry: Entry) -> None:
    """Take note that nobody will ask for the result of a call any more. Takes no lock: finalizers call it."""
    client = entry.client
    if entry.status is not PENDING and entry.options.detached:  # nobody else has it
        client._entries.pop(entry.key, None)
        if type(entry.outcome) is bytes:  # there is nothing to release
            return
    client._drop(entry)


class ExecutorFuture(StandardFace):
    """The result of a call that an `Executor` was given; made by `Executor.submit`, never by users.

    It behaves as the standard library says: `running` is True once the call was handed to a worker; `cancel` answers
    True when the call will never begin; what has ended stays as it is, also after the executor was shut down. The call
    is made even if its future is dropped. All methods may be called from any thread.
    """

    __slots__ = ("_known",)

    _entry: Entry
    #: value and exception, once somebody has asked for them
    _known: tuple[Any, BaseException | None] | None
    #: functions to be called at its end, in order, until they are
    _callbacks: list[Callable[[Any], object]] | None = None
    #: True while a thread is cancelling it, which will call them
    _cancelling = False

    def __init__(self, entry: Entry) -> None:
        # Not through the base: this is the hot path.
        self._entry = entry
        self._waiters_list: StandardWaiters | None = None
        self._known = None

    # -- state

    def running(self) -> bool:
        """Say whether the call was handed to a worker and has not ended. Never blocks for long."""
        entry = self._entry
        if entry.status is PENDING and entry.state is State.NEW:
            try:
                entry.client._transport.settle()  # it may have been sent without the scheduler's knowledge
            except ClosedClientError:
                return False
        return entry.status is PENDING and self._handed_over()

    def _handed_over(self) -> bool:
        entry = self._entry
        if not entry.pinned and entry.state is State.PROCESSING:
            entry.pinned = True  # it will not be pending again, even if its worker gives it back
        return entry.pinned

    def done(self) -> bool:
        """Say whether the call has ended or was cancelled. Never blocks."""
        return self._entry.status is not PENDING

    def cancelled(self) -> bool:
        """Say whether it was cancelled. Never blocks."""
        return self._entry.status is CANCELLED

    def cancel(self) -> bool:
        """Cancel the call unless a worker has been given it, or it has ended.

        Returns:
            Whether it is cancelled, so that it will never begin.
        """
        entry = self._entry
        if entry.status is PENDING and not entry.pinned:
            try:
                self._cancelling = True
                entry.client._transport.withdraw((entry,), "cancelled", wait=True)
            except ClosedClientError:
                pass  # then it has ended by now
            except BaseException:  # Ctrl-C: somebody has to call back, if it was cancelled all the same
                self._cancelling = False
                if entry.status is CANCELLED:
                    entry.client._callbacks.put(self._call_back)
                raise
            self._cancelling = False
            if entry.status is CANCELLED:
                self._call_back()
            else:
                entry.pinned = True
        return entry.status is CANCELLED

    def __repr__(self) -> str:
        entry = self._entry
        status = entry.status
        shown = {PENDING: "pending", CANCELLED: "cancelled"}.get(status, "finished")
        if status is PENDING and self._handed_over():
            shown = "running"
        elif shown == "finished":
            kind = None
            if self._known is not None:
                kind = type(self._known[0] if self._known[1] is None else self._known[1])
            elif status is FINISHED:
                kind = entry.client._transport.type_of(entry.outcome)
            else:
                kind = type(as_broken(entry.client._transport.load_error(entry.outcome)))
            if kind is not None:
                shown += f" {'returned' if status is FINISHED else 'raised'} {kind.__name__}"
        return f"<Future at {id(self):#x} state={shown} key={entry.key}>"

    # -- results

    def _learn(self, timeout: float | None) -> tuple[Any, BaseException | None]:
        entry = self._entry
        if entry.status is PENDING:
            await_end(entry, timeout)
        if entry.status is CANCELLED:
            raise concurrent.futures.CancelledError
        value, error, final = load_outcome(entry)
        if not final:
            return value, error
        with entry.client._board.lock:
            if self._known is None:  # else another thread was faster
                self._known = (value, error)
            return self._known

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the call and return its value: the same object each time.

        Args:
            timeout: how long to wait, in seconds; None: as long as it takes.

        Raises:
            TimeoutError: it has not ended in time.
            CancelledError: it was cancelled.
            BrokenProcessPool: the worker that ran it has died (then it is a `KilledWorker`, too), its result cannot be
                unpickled, no worker can start, or `Executor.kill_workers` was called.
            BaseException: what the call raised.
        """
        known = self._known
        if known is None:
            known = self._learn(timeout)
        error = known[1]
        if error is None:
            return known[0]
        try:
            raise error
        finally:
            del self, known, error  # the traceback refers to this frame

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the call and return the exception that `result` would raise, or None.

        Raises:
            TimeoutError: it has not ended within `timeout` seconds.
            CancelledError: it was cancelled.
        """
        known = self._known
        return (known if known is not None else self._learn(timeout))[1]

    # -- callbacks

    def add_done_callback(self, fn: Callable[[Any], object]) -> None:
        """Call ``fn(future)`` when the call has ended or was cancelled; at once, in this thread, if it is so already.

        Otherwise the functions are called in the order in which they were added, in a thread of the executor, or in
        the one that calls `cancel`. What they raise is logged.
        """
        client = self._entry.client
        client._callbacks.start()
        with client._board.lock:
            if self._entry.status is PENDING or self._callbacks is not None:
                if self._callbacks is None:
                    client._board.watch((self._entry,), _Caller(self))
                    self._callbacks = []
                self._callbacks.append(fn)
                return
        self._call(fn)

    def _call_back(self) -> None:
        while True:
            with self._entry.client._board.lock:
                if not self._callbacks:
                    self._callbacks = None
                    return
                fn = self._callbacks.pop(0)
            try:
                self._call(fn)
            except BaseException:  # SystemExit, for example, is not to cost the others theirs
                self._entry.client._callbacks.put(self._call_back)
                raise

    def _call(self, fn: Callable[[Any], object]) -> None:
        try:
            fn(self)
        except Exception:  # noqa: BLE001  (user code)
            _log.exception("exception calling callback for %r", self)

    # -- what only an executor may do

    def set_running_or_notify_cancel(self) -> bool:
        """Return False if it is cancelled; otherwise refuse, because the executor itself says when a call begins.

        Raises:
            RuntimeError: it is not cancelled.
        """
        if self.cancelled():
            return False
        raise RuntimeError(f"{self!r}: its executor says when the call begins")

    def set_result(self, result: Any) -> NoReturn:
        """Refuse: the result of the call comes from its worker.

        Raises:
            InvalidStateError: always.
        """
        raise concurrent.futures.InvalidStateError(f"{self!r}: its result comes from a worker, not {result!r:.80}")

    def set_exception(self, exception: BaseException | None) -> NoReturn:
        """Refuse: what comes of the call is decided by its worker.

        Raises:
            InvalidStateError: always.
        """
        raise concurrent.futures.InvalidStateError(f"{self!r}: its outcome comes from a worker, not {exception!r:.80}")

    def __reduce__(self) -> NoReturn:
        raise TypeError("a future of an Executor cannot be pickled: pass its result, or use a Client and its futures")

    def __del__(self) -> None:
        # May run in any thread, within any other code.
        give_up(self._entry)

    # -- what `concurrent.futures` and asyncio look at

    @property
    def _state(self) -> str:  # type: ignore[override]
        status = self._waiters.condition.status or self._entry.status
        if status is PENDING:
            return "RUNNING" if self._handed_over() else "PENDING"
        return "CANCELLED_AND_NOTIFIED" if status is CANCELLED else "FINISHED"

    @property
    def _exception(self) -> BaseException | None:  # type: ignore[override]
        return self.exception() if self.done() and not self.cancelled() else None

    @property
    def _result(self) -> Any:  # type: ignore[override]
        return self.result() if self.done() and self.exception() is None else None


class _Caller:
    """A watcher that lets the callbacks of a future be called, in the client's callback thread or by who cancels it."""

    __slots__ = ("_future",)

    def __init__(self, future: ExecutorFuture) -> None:
        self._future = future

    def done(self, entry: Entry) -> None:
        """See `Watcher`."""
        if not (self._future._cancelling and entry.status is CANCELLED):
            entry.client._callbacks.put(self._future._call_back)
