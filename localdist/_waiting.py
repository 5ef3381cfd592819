"""RESULT: waiting for several futures: `wait`, `as_completed`, `progress`; and `fire_and_forget`, `futures_of`."""

from __future__ import annotations

import concurrent.futures
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED
from concurrent.futures._base import DoneAndNotDoneFutures
from typing import Any, TextIO

from ._future import Deadline, Duration, Future, _cancelled_error, seconds
from ._graph import futures_in
from ._serialize import qualified_type
from ._state import CANCELLED, ERROR, PENDING, Board, Entry, Latch
from .errors import FuturesCancelledError

#: Not the builtin on Python 3.10.
TimeoutError = concurrent.futures.TimeoutError


def futures_of(o: Any, client: Any = None) -> list[Future]:
    """List the futures in nested tuples, lists, sets and dict values, in order.

    Args:
        o: anything.
        client: if given, cancelled futures are an error.

    Raises:
        FuturesCancelledError: a future is cancelled and `client` was given.
    """
    futures: list[Future] = futures_in(o, Future)
    if client is not None:
        _refuse_cancelled(futures)
    return futures


def _refuse_cancelled(futures: Iterable[Future]) -> None:
    cancelled = [_cancelled_error(f._bound()) for f in futures if f._bound().status is CANCELLED]
    if cancelled:
        raise FuturesCancelledError(cancelled)


def fire_and_forget(obj: Any) -> None:
    """Let tasks run although nobody keeps their futures; results are dropped when they are there, errors too.

    Args:
        obj: a future, or nested lists, tuples, sets and dict values of futures; anything else is ignored.
    """
    futures: list[Future] = futures_in(obj, Future)
    for future in futures:
        entry = future._bound()
        entry.client._transport.keep([entry])


def wait(fs: Any, timeout: Duration = None, return_when: str = ALL_COMPLETED) -> DoneAndNotDoneFutures[Any]:
    """Wait until futures have ended, well or badly.

    Args:
        fs: a future, or nested lists, tuples, sets and dict values of futures; other things are ignored.
        timeout: seconds or text.
        return_when: "ALL_COMPLETED" or "FIRST_COMPLETED".

    Returns:
        A named tuple of two sets, `done` and `not_done`.

    Raises:
        TimeoutError: not enough of them have ended in time; there is no partial answer.
        FuturesCancelledError: one of those that have ended was cancelled.
        TypeError: the second argument is a future: `fs` must be a list then.
        NotImplementedError: `return_when` is "FIRST_EXCEPTION".
    """
    if isinstance(timeout, (Future, list, tuple, set, dict)):
        raise TypeError("wait takes one collection of futures: write wait([x, y]), not wait(x, y)")
    if return_when not in (ALL_COMPLETED, FIRST_COMPLETED):
        raise NotImplementedError(f'return_when must be "ALL_COMPLETED" or "FIRST_COMPLETED", not {return_when!r}')
    futures = list(dict.fromkeys(futures_of(fs)))
    entries = list(dict.fromkeys(f._bound() for f in futures))
    pending = [entry for entry in entries if entry.status is PENDING]
    if pending and (return_when == ALL_COMPLETED or len(pending) == len(entries)):
        _wait_for(futures, pending, timeout, None if return_when == ALL_COMPLETED else 1)
    done: set[concurrent.futures.Future[Any]] = {f for f in futures if f._bound().status is not PENDING}
    _refuse_cancelled(futures)
    not_done: set[concurrent.futures.Future[Any]] = {f for f in futures if f not in done}
    return DoneAndNotDoneFutures(done, not_done)


def _wait_for(futures: list[Future], pending: list[Entry], timeout: Duration, wanted: int | None) -> None:
    deadline = Deadline(timeout)
    boards = list({entry.client._board: None for entry in pending})
    try:
        if len(boards) > 1 and wanted is not None:
            opened = _first_of(futures, deadline)
        else:
            shares = [[entry for entry in pending if entry.client._board is board] for board in boards]
            opened = all(_opens(board, share, wanted, deadline) for board, share in zip(boards, shares, strict=True))
    except KeyboardInterrupt:
        for future in futures:
            if not future.done() and future.client.status == "running":
                future.cancel(reason="interrupted")
        raise
    if not opened:
        left = sum(entry.status is PENDING for entry in pending)
        raise TimeoutError(f"{left} of {len(futures)} futures have not ended within {seconds(timeout):g} s")


def _opens(board: Board, entries: list[Entry], wanted: int | None, deadline: Deadline) -> bool:
    """Wait until `wanted` (default: all) entries of one board have ended; say whether they have, in time."""
    latch = Latch(len(entries), wanted=wanted)
    board.watch(entries, latch)
    try:
        return latch.wait(deadline.left())
    finally:
        board.unwatch(entries, latch)


def _first_of(futures: list[Future], deadline: Deadline) -> bool:
    """Wait for any of some futures, whoever's they are; say whether one has ended in time."""
    try:
        next(as_completed(futures, timeout=deadline.left()))
    except TimeoutError:
        return False
    return True


class as_completed:  # noqa: N801  (the field's own name)
    """Iterate over futures in the order in which they end; failed and cancelled ones too.

    Futures may be added while it runs, from any thread; a future given twice is yielded twice.

    Args:
        futures: any iterable of futures; None: none yet.
        loop: accepted for Dask's sake.
        with_results: yield ``(future, result)``. A failed future raises its exception at its step, and iteration may
            go on after it; of a cancelled one the result is a CancelledError, not raised.
        raise_errors: False: instead of raising, the result is the triple (class, exception, traceback).
        timeout: limit in seconds or text, counted from now.

    Raises:
        TypeError: something is not a future.
        TimeoutError: (from an iteration step) nothing has ended in time.
    """

    def __init__(
        self,
        futures: Iterable[Any] | None = None,
        loop: Any = None,  # noqa: ARG002
        with_results: bool = False,
        raise_errors: bool = True,
        *,
        timeout: Duration = None,
    ) -> None:
        self._with_results = with_results
        self._raise_errors = raise_errors
        self._deadline = Deadline(timeout)
        self._changed = threading.Condition()
        #: futures that have not ended, by entry; as often as they were given
        self._waiting: dict[Entry, list[Future]] = {}
        self._ready: deque[Future] = deque()
        if isinstance(futures, Future):
            raise TypeError("as_completed takes a collection of futures: write as_completed([future])")
        if futures is not None:
            self.update(futures)

    def update(self, futures: Iterable[Any]) -> None:
        """Add futures. Any thread may call it."""
        futures = list(futures)
        for future in futures:
            if not isinstance(future, Future):
                raise TypeError(f"as_completed takes futures, not {qualified_type(future)}")
        new: list[Entry] = []
        with self._changed:
            for future in futures:
                entry = future._bound()
                if entry in self._waiting:
                    self._waiting[entry].append(future)
                elif entry.status is not PENDING:
                    self._ready.append(future)
                else:
                    self._waiting[entry] = [future]
                    new.append(entry)
            self._changed.notify_all()
        for board in {entry.client._board: None for entry in new}:
            board.watch([e for e in new if e.client._board is board], self)

    def add(self, future: Any) -> None:
        """Add one future. Any thread may call it."""
        self.update([future])

    def done(self, entry: Entry) -> None:
        """See `localdist._state.Watcher`; not for users."""
        with self._changed:
            self._ready.extend(self._waiting.pop(entry, ()))
            self._changed.notify_all()

    def count(self) -> int:
        """Return how many futures are still to be yielded."""
        with self._changed:
            return len(self._ready) + sum(map(len, self._waiting.values()))

    def is_empty(self) -> bool:
        """Say whether nothing is left to yield."""
        return not self.count()

    def has_ready(self) -> bool:
        """Say whether the next step would not wait."""
        return bool(self._ready)

    def clear(self) -> None:
        """Forget all futures."""
        with self._changed:
            waiting = list(self._waiting)
            self._waiting.clear()
            self._ready.clear()
        for entry in waiting:
            with entry.client._board.lock, self._changed:
                if entry not in self._waiting:  # else it was added again meanwhile
                    entry.client._board.unwatch([entry], self)

    def __repr__(self) -> str:
        return f"<as_completed: waiting={sum(map(len, self._waiting.values()))} done={len(self._ready)}>"

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return self._result(self._take(), raise_errors=self._raise_errors)

    def next(self) -> Any:
        """Return what the next step of the iteration yields."""
        return self.__next__()

    def _take(self) -> Future:
        """Wait for the next future; Ctrl-C cancels those that are waited for."""
        try:
            with self._changed:
                while not self._ready:
                    if not self._waiting:
                        raise StopIteration
                    if not self._changed.wait(self._deadline.left()) and not self._ready:
                        raise TimeoutError(f"no further future has ended within {seconds(self._deadline.timeout):g} s")
                return self._ready.popleft()
        except KeyboardInterrupt:
            self._interrupted()
            raise

    def _interrupted(self) -> None:
        with self._changed:
            futures = [future for waiting in self._waiting.values() for future in waiting]
        for future in futures:
            if future.client.status == "running":
                future.cancel(reason="interrupted")

    def _result(self, future: Future, *, raise_errors: bool) -> Any:
        if not self._with_results:
            return future
        status = future._bound().status
        if status is CANCELLED:
            return future, _cancelled_error(future._bound())
        if status is ERROR and not raise_errors:
            error = future.exception()
            return future, (type(error), error, future.traceback())
        return future, future.result()

    def batches(self) -> Iterator[list[Any]]:
        """Yield lists: at least one future, and all others that have ended by then.

        With results, only the first of a list raises its error; later failed ones have the triple as their result.
        """
        while True:
            try:
                batch = self.next_batch()
            except StopIteration:
                return
            yield batch

    def next_batch(self, block: bool = True) -> list[Any]:
        """Return one list as `batches` yields it; with ``block=False`` perhaps an empty one.

        Raises:
            StopIteration: nothing is left.
        """
        if not block and not self._ready:
            if not self._waiting:
                raise StopIteration
            return []
        first = self._take()
        with self._changed:
            more = list(self._ready)
            self._ready.clear()
        return [
            self._result(first, raise_errors=self._raise_errors),
            *[self._result(future, raise_errors=False) for future in more],
        ]


def progress(
    *futures: Any,
    notebook: bool | None = None,  # noqa: ARG001  (text works there as well)
    multi: bool = True,  # noqa: ARG001
    complete: bool = True,  # noqa: ARG001
    group_by: str = "prefix",
    file: TextIO | None = None,
) -> None:
    """Draw a bar of how many futures have ended, until all have.

    Args:
        futures: futures, or nested collections of them.
        notebook, multi, complete: accepted for Dask's sake.
        group_by: "prefix" or "spans".
        file: where to draw; default: standard output.

    Raises:
        ValueError: another `group_by`.
    """
    if group_by not in ("prefix", "spans") and not callable(group_by):
        raise ValueError(f'group_by must be "prefix" or "spans", not {group_by!r}')
    out = file if file is not None else sys.stdout
    all_futures = futures_of(futures)
    total = len(all_futures)
    start = time.monotonic()
    ended = 0
    seq = as_completed(all_futures)
    _draw(out, 0, total, start)
    drawn = start
    for batch in seq.batches():
        ended += len(batch)
        if time.monotonic() - drawn >= 0.05 or ended == total:  # a screen shows no more
            drawn = time.monotonic()
            _draw(out, ended, total, start)
    counts = Counter(f.status for f in all_futures)
    failed = counts[ERROR] + counts[CANCELLED]
    out.write(f" {failed} failed or cancelled\n" if failed else "\n")
    out.flush()


def _draw(out: TextIO, ended: int, total: int, start: float) -> None:
    width = 40
    share = ended / total if total else 1.0
    bar = "#" * int(width * share)
    out.write(f"\r[{bar:<{width}}] | {share:4.0%} completed | {time.monotonic() - start:6.1f} s")
    out.flush()
