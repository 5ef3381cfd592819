"""SUBMIT: what an `Executor` is given becomes entries, none of which is ever shared; and `map`'s stream of results."""

from __future__ import annotations

import functools
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from marshal import dumps as marshal_dumps
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

from .._chunk import FailedChunk
from .._future import Deadline, Future
from .._graph import extract
from .._key import ATOMS
from .._schedule.records import Group, Options, Task
from .._serialize import Function
from .._state import CANCELLED, ERROR, PENDING, Entry, collection_paused
from .._wire import INLINE_MAX
from ..errors import ClosedClientError, FutureCancelledError
from ._future import await_end, give_up, take_value

if TYPE_CHECKING:
    from .._client import Client

T = TypeVar("T")
#: What stands for an argument that is still to come, in partials of Python 3.14; they are left as they are.
_PLACEHOLDER = type(getattr(functools, "Placeholder", Ellipsis))
#: Partials within partials that are taken apart.
_NESTING = 100

#: Calls of `map` that are handed to the scheduler at a time: the first run while the last are being pickled.
PART = 2_000


def _comes_apart(fn: Any) -> TypeGuard[partial[Any]]:
    return type(fn) is partial and _PLACEHOLDER not in map(type, fn.args)


def unwrap(fn: Callable[..., Any]) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """Take a partial apart, so that a large array in it travels as an argument does.

    Returns:
        What is called in the end, its first arguments and its keyword arguments.
    """
    before: tuple[Any, ...] = ()
    keywords: dict[str, Any] = {}
    inner: Any = fn
    for _ in range(_NESTING):  # one may contain itself
        if not _comes_apart(inner):
            break
        inner, before, keywords = inner.func, inner.args + before, {**inner.keywords, **keywords}
    return inner, before, keywords


class Calls:
    """Makes entries of calls, and submits them.

    What cannot be pickled fails its own entry, which is then returned like any other. All methods may be called from
    any thread; they raise ClosedClientError when the client is closed.

    Args:
        client: whose engine runs them.
        options: what holds for each; ``detached``.
    """

    def __init__(self, client: Client, options: Options) -> None:
        self.client = client
        self.options = options
        self._numbers = itertools.count()
        self._tag = f"-{os.urandom(4).hex()}-"

    def submit(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Entry:
        """Submit one call."""
        fn, before, keywords = unwrap(fn)
        if before or keywords:
            args, kwargs = before + args, {**keywords, **kwargs}
        try:
            function = self.client._describe(fn)
            first = self._prepare(function)
        except Exception as e:  # noqa: BLE001  (pickling runs the values' own code; its errors are the call's)
            return self._failed(fn, e)
        return self._submit(function, fn, first + args, kwargs)

    def _prepare(self, function: Function) -> tuple[Any, ...]:
        """Return what has to stand before the arguments of each call of a function."""
        if function.large is None:
            return ()
        return (self.client._scatter_one(function.large, None, hashed=False),)

    def _submit(
        self, function: Function, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Entry:
        client = self.client
        try:
            call, dependencies = self._encode(function, fn, args, kwargs)
        except Exception as e:  # noqa: BLE001  (as in `submit`)
            return self._failed(fn, e)
        entry = self._new(function.name, client._group(function.name), function, call, dependencies)
        with client._board.lock:
            if client._closed:
                client._check_open()
            client._entries[entry.key] = entry
            try:
                client._transport.submit_one(entry)
            except BaseException:  # Ctrl-C: nobody will ever have this entry
                give_up(entry)
                raise
        return entry

    def submit_many(self, fn: Callable[..., Any], part: list[tuple[Any, ...]]) -> list[Entry]:
        """Submit a call for each tuple of arguments."""
        client = self.client
        fn, before, keywords = unwrap(fn)
        try:
            function = client._describe(fn)
            first = self._prepare(function) + before
        except Exception as e:  # noqa: BLE001  (as in `submit`)
            return [self._failed(fn, e) for _ in part]
        if first or keywords or client._in_threads or not set(map(type, itertools.chain.from_iterable(part))) <= ATOMS:
            return [self._submit(function, fn, first + args, keywords) for args in part]
        name, group = function.name, client._group(function.name)
        entries: list[Entry] = []
        with collection_paused():
            for args in part:
                payload = marshal_dumps(args, 2)
                if len(payload) > INLINE_MAX:
                    break
                entries.append(self._new(name, group, function, payload, ()))
            self._enter(entries)
        return entries + [self._submit(function, fn, args, {}) for args in part[len(entries) :]]

    def submit_chunk(self, fn: Callable[..., Any], columns: tuple[tuple[Any, ...], ...], retries: int) -> Entry:
        """Submit one call of `run_chunk`: many calls, given by the columns of their arguments."""
        client = self.client
        fn, before, keywords = unwrap(fn)
        try:
            function = client._describe(fn)
            args, _, futures = extract((*self._prepare(function), retries, before, keywords), {}, Future)
            inputs = [client._own_entry(future) for future in futures]
            call, dependencies = client._transport.encode(function, fn, (*args, *columns), None, inputs)
        except Exception as e:  # noqa: BLE001  (as in `submit`)
            return self._failed(fn, e)
        group = client._group(f"{function.name} x {len(columns[0])}")  # chunks of another length take another time
        entry = self._new(function.name, group, function, call, dependencies)
        self._enter([entry])
        return entry

    def share(self, fn: Callable[..., T]) -> Callable[..., T]:
        """Store what is large in a partial once for all of its calls; return what to call instead."""
        if not _comes_apart(fn):
            return fn
        args = self.client._share_large(dict(enumerate(fn.args)))
        return partial(fn.func, *args.values(), **self.client._share_large(fn.keywords))

    def _encode(
        self, function: Function, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Any, tuple[Task, ...]]:
        client = self.client
        if not kwargs and not client._in_threads:
            for value in args:
                if type(value) not in ATOMS:
                    break
            else:
                payload = marshal_dumps(args, 2)
                if len(payload) <= INLINE_MAX:
                    return payload, ()
        args, kwargs, futures = extract(args, dict(kwargs), Future)
        inputs = [client._own_entry(future) for future in futures]
        for entry in inputs:
            if entry.status is CANCELLED:
                raise FutureCancelledError(entry.key, "lost dependencies")
        return client._transport.encode(function, fn, args, kwargs, inputs)

    def _new(self, name: str, group: Group, function: Function, call: Any, dependencies: tuple[Task, ...]) -> Entry:
        key = f"{name}{self._tag}{next(self._numbers)}"
        entry = Entry(key, group, function, call, dependencies, self.options)
        # It runs although its future may be dropped.
        entry.kept = True
        entry.claims = 2
        return entry

    def _enter(self, new: list[Entry]) -> None:
        client = self.client
        with client._board.lock:
            client._check_open()
            for entry in new:
                client._entries[entry.key] = entry
            client._transport.submit(new)

    def unfinished(self) -> list[Entry]:
        """List the calls that have not ended.

        Raises:
            ClosedClientError: the client is closed.
        """
        found: list[Entry] = self.client._transport.inspect("unfinished", self.options)
        return found

    def _failed(self, fn: Callable[..., Any], error: BaseException) -> Entry:
        name = getattr(fn, "__name__", type(fn).__name__)
        entry = Entry(f"{name}{self._tag}{next(self._numbers)}", Group(name), None, None, (), self.options)
        entry.status, entry.outcome = ERROR, error
        return entry


class SharedCalls(Calls):
    """Makes entries that equal calls share, as `Client.submit` does."""

    def __init__(self, client: Client, options: Options) -> None:
        super().__init__(client, options)
        #: futures of what has not ended, as far as is known: they keep the calls running
        self._pending: list[Future] = []
        self._most = PART

    def unfinished(self) -> list[Entry]:
        """List the calls that have not ended."""
        self._pending = [future for future in self._pending if not future.done()]
        return [future._bound() for future in self._pending]

    def submit(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Entry:
        """Submit one call, or find the equal one."""
        client = self.client
        try:
            function = client._describe(fn)
            future = client._submit(fn, function, args, kwargs, None, True, self.options)
        except ClosedClientError:
            raise
        except Exception as e:  # noqa: BLE001  (as in `Calls.submit`)
            return self._failed(fn, e)
        entry = future._bound()
        with client._board.lock:
            entry.handles += 1
        self._pending.append(future)
        if len(self._pending) > self._most:
            self._most = max(PART, 2 * len(self.unfinished()))
        return entry

    def submit_many(self, fn: Callable[..., Any], part: list[tuple[Any, ...]]) -> list[Entry]:
        """Submit, or find, a call for each tuple of arguments."""
        return [self.submit(fn, args, {}) for args in part]


class Results:
    """Entries of one `map` whose results were not yielded, in order. When it is dropped they run on, unseen."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._entries: deque[Entry] = deque()

    def __del__(self) -> None:
        for entry in self._entries:
            give_up(entry)

    def stream(
        self, more: Iterator[list[Entry]], ahead: int | None, deadline: Deadline, *, chunked: bool
    ) -> Iterator[Any]:
        """Submit what is to be submitted now, and return the generator of all results in order.

        Args:
            more: submits entries, some at a time, whenever it is asked for the next.
            ahead: how many entries may be submitted and not yielded; None: all that there are, now.
            deadline: when the last result must be there.
            chunked: entries have many results each.
        """
        try:
            for new in itertools.islice(more, ahead):
                self._entries += new
        except BaseException:  # what the iterables raised, for example
            self._withdraw()
            raise
        return self._yield_all(more if ahead is not None else None, deadline, chunked=chunked)

    def _yield_all(self, more: Iterator[list[Entry]] | None, deadline: Deadline, *, chunked: bool) -> Iterator[Any]:
        entries = self._entries
        try:
            while entries:
                if entries[0].status is PENDING:
                    await_end(entries[0], deadline.left())
                entry = entries.popleft()
                if more is not None:
                    entries += next(more, ())
                # What is yielded is referred to by nothing here: the caller may be short of memory.
                if chunked:
                    values, error = self._take_chunk(entry)
                    del entry
                    values.reverse()
                    yield from map(list.pop, itertools.repeat(values, len(values)))
                    if error is not None:
                        raise error
                else:
                    yield self._take(entry)
        finally:
            error = None  # its traceback refers to this frame
            self._withdraw()

    def _withdraw(self) -> None:
        if self._entries:
            self._client._transport.withdraw(list(self._entries), "its results are not wanted", wait=False)
            while self._entries:
                give_up(self._entries.popleft())

    @staticmethod
    def _take(entry: Entry) -> Any:
        try:
            return take_value(entry)
        finally:
            give_up(entry)

    def _take_chunk(self, entry: Entry) -> tuple[list[Any], BaseException | None]:
        result = self._take(entry)
        if type(result) is not FailedChunk:
            return result, None
        return result.results, self._client._transport.load_error(result.error)
