"""SUBMIT: a call, or many calls, become entries; `Client` inherits this."""

from __future__ import annotations

import itertools
import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from marshal import dumps as marshal_dumps
from typing import Any

from xxhash import xxh3_128_hexdigest

from ._future import Duration, Future, seconds
from ._graph import extract, futures_in
from ._key import ATOMS, Digests, Unstable, call_key, check_key, function_digest, random_key, token
from ._options import make_options
from ._scattering import Scattering
from ._schedule.records import Group, Options, Task
from ._serialize import Function, FunctionTable, qualified_type
from ._state import CANCELLED, Entry, collection_paused
from ._wire import INLINE_MAX
from .errors import SerializationError

#: Elements of `map` that are handed to the scheduler at a time: the first run while the last are being named.
_MAP_CHUNK = 2_000


@contextmanager
def forgetting(entries: dict[Any, Entry], new: list[Entry]) -> Iterator[None]:
    """Forget new entries when Ctrl-C comes: an equal call must not wait for a task that may never have left."""
    try:
        yield
    except BaseException:
        for entry in new:
            entries.pop(entry.key, None)
            entry.client._drop(entry)
        raise


class Submission(Scattering):
    """Base of `Client`: all that makes futures of calls."""

    _in_threads: bool
    _functions: FunctionTable

    # -- submitting ----------------------------------------------------------------------------------------------

    def submit(
        self,
        func: Callable[..., Any],
        /,
        *args: Any,
        key: Any = None,
        workers: Any = None,
        resources: Mapping[str, float] | None = None,
        retries: int | None = None,
        priority: float = 0,
        fifo_timeout: Duration = None,
        allow_other_workers: bool = False,
        actor: bool = False,
        actors: bool = False,
        pure: bool = True,
        timeout: Duration = None,
        **kwargs: Any,
    ) -> Future:
        """Run ``func(*args, **kwargs)`` on a worker and return its future at once.

        Futures among the arguments, at any depth of lists, tuples, sets and dict values, are replaced by their
        results, and are waited for. Arguments are pickled now: what is written into them later is not seen. (With
        ``processes=False`` they are handed over as they are.) A large array that many tasks need is stored once if it
        is an argument; a global or closure variable of `func` travels with `func`.

        Args:
            func: any callable; lambdas, closures and functions of ``__main__`` included.
            args: positional arguments.
            key: explicit name of the task: str, int, float or tuple of those. If a live future has it, that task's
                result is returned, whatever the function.
            workers: name (0, 1, ... unless you know better) or address of a worker, or a list or set of them: run
                only there. While there is none of them, the task waits; see `Client.scheduler_info`.
            resources: what the task holds while it runs, such as ``{"GPU": 1}``; see ``Client(resources=)``. While no
                worker has as much, the task waits.
            retries: how often it is run again after it raised.
            priority: higher runs earlier; the default is 0.
            fifo_timeout: accepted for Dask's sake: within a priority, tasks run in the order of submission.
            allow_other_workers: makes `workers` a preference.
            actor: comes with a later version.
            actors: the same.
            pure: equal calls have equal keys, and run once while a future of one of them lives. False: run it anyway.
            timeout: comes with a later version.
            kwargs: keyword arguments for `func`.

        Raises:
            TypeError: `func` is not callable, the key has a wrong type, or an argument cannot be pickled.
            ValueError: `allow_other_workers` without `workers`.
            ClosedClientError: the client is closed.
        """
        if actor or actors or timeout is not None or fifo_timeout is not None:
            seconds(fifo_timeout)
            _not_yet(actor or actors, timeout)
        if workers is None and resources is None and not retries and not priority and not allow_other_workers:
            options = self._options
        else:
            options = make_options(self, workers, resources, retries, priority, allow_other_workers)
        function = self._describe(func)
        if key is not None:
            check_key(key)
        elif pure and function.digest is not None and not kwargs:
            # The hot path: plain arguments are named and pickled in one step.
            for value in args:
                if type(value) not in ATOMS:
                    break
            else:
                payload = marshal_dumps(args, 2)
                if len(payload) <= INLINE_MAX and not self._in_threads:
                    # As `call_key` does it.
                    key = f"{function.name}-{xxh3_128_hexdigest(function.digest + payload)}"
                    return self._enter(key, function, payload, (), options)
        return self._submit(func, function, args, kwargs, key, pure, options)

    def _submit(
        self,
        func: Callable[..., Any],
        function: Function,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        key: Any,
        pure: bool,
        options: Options,
        known: Mapping[str, bytes] | None = None,
        prefix: str | None = None,
    ) -> Future:
        """Submit any call: with futures, large or odd arguments."""
        self._check_open()
        args, kwargs, futures = extract(args, dict(kwargs), Future)
        inputs = [self._own_entry(future) for future in futures]
        digests = Digests()
        if key is None:
            key = self._name_call(prefix or function.name, function.digest, args, kwargs, pure, digests, known)
        with self._board.lock:
            entry = self._live_entry(key)
            if entry is not None:
                entry.handles += 1
                return Future(entry)
        if any(entry.status is CANCELLED for entry in inputs):
            return self._lost(key, function, options)
        try:
            call, dependencies = self._transport.encode(function, func, args, kwargs, inputs, digests)
        except SerializationError as e:
            raise SerializationError(e.what, e.type_name, key, e.detail) from e.__cause__
        return self._enter(key, function, call, dependencies, options)

    def _lost(self, key: Any, function: Function, options: Options) -> Future:
        """Return a future that is cancelled, because what it would depend on is."""
        entry = Entry(key, Group(function.name), function, None, (), options)
        entry.status, entry.note = CANCELLED, ("lost dependencies", None)
        return Future(entry)

    def _enter(
        self, key: Any, function: Function, call: Any, dependencies: tuple[Task, ...], options: Options
    ) -> Future:
        """Return a future of the live task with this key, or of a new one."""
        name = function.name
        group = self._group(name)
        with self._board.lock:
            if self._closed:
                self._check_open()
            entry = self._live_entry(key)
            if entry is not None:
                entry.handles += 1
                if dependencies:
                    # Another thread was faster. Data that was stored for this call go as those of its twin.
                    twin = Entry(key, group, function, call, dependencies, options)
                    self._transport.submit_one(twin)
                    self._transport.drop(twin)
                return Future(entry)
            self._entries[key] = entry = Entry(key, group, function, call, dependencies, options)
            try:
                self._transport.submit_one(entry)
            except BaseException:  # as in `forgetting`, which costs more than one task should
                del self._entries[key]
                self._transport.drop(entry)
                raise
        return Future(entry)

    def _describe(self, func: Callable[..., Any]) -> Function:
        if not callable(func):
            raise TypeError(f"the first argument must be callable, not {qualified_type(func)}")
        if not self._in_threads:
            return self._functions.describe(func)
        try:
            digest: bytes | None = function_digest(func)
        except Unstable:
            digest = None
        return Function(func, digest, b"", cacheable=True, by_reference=True)

    @staticmethod
    def _name_call(
        name: str,
        digest: bytes | None,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        pure: bool,
        digests: Digests,
        known: Mapping[str, bytes] | None,
    ) -> str:
        if pure and digest is not None:
            try:
                return call_key(name, digest, args, kwargs, digests, known)
            except Unstable:
                pass  # it gets a name of its own, and is never shared
        return random_key(name)

    def _own_entry(self, future: Future) -> Entry:
        entry = future._bound()
        if entry.client is not self:
            raise ValueError(f"{future!r} belongs to another client ({entry.client.id})")
        return entry

    def map(
        self,
        func: Callable[..., Any],
        /,
        *iterables: Any,
        key: Any = None,
        workers: Any = None,
        retries: int | None = None,
        resources: Mapping[str, float] | None = None,
        priority: float = 0,
        allow_other_workers: bool = False,
        fifo_timeout: Duration = None,
        actor: bool = False,
        actors: bool = False,
        pure: bool = True,
        batch_size: int | None = None,
        timeout: Duration = None,
        **kwargs: Any,
    ) -> list[Future]:
        """Run `func` on each element and return a list of futures, in the order of the elements, at once.

        Args:
            func: any callable.
            iterables: one or several sized collections, combined like `zip`; elements may be, or contain, futures.
            key: a text to begin the keys with, or a list of explicit keys, one per element.
            batch_size: how many elements are submitted at a time.
            kwargs: given to every call unchanged.
            workers, retries, resources, priority, allow_other_workers, fifo_timeout, actor, actors, pure, timeout: as
                in `submit`.

        Returns:
            A future for each element. Equal elements of a pure function share one Future object.

        Raises:
            TypeError: `func` is not callable; an iterator or generator was given, whose end is not known.
            ValueError: as many keys as elements are needed.
        """
        self._check_open()
        _not_yet(actor or actors, timeout)
        if not iterables:
            raise TypeError("map needs at least one iterable")
        for iterable in iterables:
            if isinstance(iterable, (Iterator, queue.Queue)):
                raise TypeError(
                    f"map takes collections, not {qualified_type(iterable)}, which may never end: give it a list"
                )
        if isinstance(workers, tuple):
            raise TypeError("workers= takes a name, an address, or a list or set of them")
        function = self._describe(func)
        options = self._options
        if workers is not None or resources is not None or retries or priority or allow_other_workers:
            options = make_options(self, workers, resources, retries, priority, allow_other_workers)
        elements = zip(*iterables, strict=False)
        if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
            raise ValueError(f"batch_size must be a positive int, not {batch_size!r}")
        seconds(fifo_timeout)
        chunk = batch_size or _MAP_CHUNK
        plain = not kwargs and not isinstance(key, (list, tuple)) and not self._in_threads
        if plain and all(set(map(type, iterable)) <= ATOMS for iterable in iterables):
            with collection_paused():
                return self._map_plain(func, function, elements, key, pure, options, chunk)
        return self._map_any(func, function, list(elements), kwargs, key, pure, options)

    def _map_plain(
        self,
        func: Callable[..., Any],
        function: Function,
        elements: Iterator[tuple[Any, ...]],
        key: str | None,
        pure: bool,
        options: Options,
        chunk: int,
    ) -> list[Future]:
        """The hot path of `map`: plain elements, nothing to wait for."""
        digest = function.digest
        prefix = f"{function.name if key is None else key}-"
        numbered = not pure or digest is None
        if numbered:
            prefix = f"{random_key(prefix[:-1])}-"
        group = self._group(function.name)
        entries, lock, submit = self._entries, self._board.lock, self._transport.submit
        count = itertools.count()
        futures: list[Future] = []
        first: dict[Entry, Future] | None = None
        while part := list(itertools.islice(elements, chunk)):
            new: list[Entry] = []
            with lock, forgetting(entries, new):
                self._check_open()
                for args in part:
                    payload = marshal_dumps(args, 2)
                    if numbered:
                        name = f"{prefix}{next(count)}"
                    else:
                        name = prefix + xxh3_128_hexdigest(digest + payload)  # type: ignore[operator]  # pure: not None
                    entry = entries.get(name)
                    if entry is not None and self._transport.count_drops():
                        entry = entries.get(name)
                    if entry is None:
                        if len(payload) > INLINE_MAX:
                            call, data = self._transport.encode(function, func, args, {}, ())
                            entry = Entry(name, group, function, call, data, options)
                        else:
                            entry = Entry(name, group, function, payload, (), options)
                        entries[name] = entry
                        new.append(entry)
                        future = Future(entry)
                        if first is not None:
                            first[entry] = future
                    else:
                        if first is None:
                            first = {f._entry: f for f in futures}  # type: ignore[misc]  # all are bound
                        known = first.get(entry)
                        if known is None:
                            entry.handles += 1
                            known = first[entry] = Future(entry)
                        future = known
                    futures.append(future)
                if new:
                    submit(new)
        return futures

    def _map_any(
        self,
        func: Callable[..., Any],
        function: Function,
        elements: list[tuple[Any, ...]],
        kwargs: dict[str, Any],
        key: Any,
        pure: bool,
        options: Options,
    ) -> list[Future]:
        """`map` with any elements, keyword arguments or explicit keys."""
        keys: Sequence[Any] | None = None
        if isinstance(key, (list, tuple)):
            keys = key
            if len(keys) != len(elements):
                raise ValueError(f"map has {len(elements)} elements but {len(keys)} keys")
            for one in keys:
                check_key(one)
        prefix = str(key) if key is not None and keys is None else function.name
        run = random_key(prefix)
        # Keyword arguments are the same for all elements: they are described, and stored if large, once.
        known = self._describe_kwargs(kwargs) if pure else {}
        shared = self._share_large(kwargs)
        futures: list[Future] = []
        first: dict[Any, Future] = {}
        for index, args in enumerate(elements):
            name = keys[index] if keys is not None else None
            if name is None and (not pure or function.digest is None or known is None):
                name = f"{run}-{index}"
            future = self._submit(func, function, args, shared, name, pure, options, known, prefix)
            futures.append(first.setdefault(future.key, future))
        return futures

    def _describe_kwargs(self, kwargs: Mapping[str, Any]) -> dict[str, bytes] | None:
        try:
            return {word: token(extract((value,), {}, Future)[0][0]) for word, value in kwargs.items()}
        except Unstable:
            return None

    def _share_large(self, kwargs: dict[Any, Any]) -> dict[Any, Any]:
        if self._in_threads:
            return kwargs
        return {
            word: self._scatter_one(value, None, hashed=False)
            if type(value) not in ATOMS and not futures_in(value, Future) and self._transport.is_large(value)
            else value
            for word, value in kwargs.items()
        }


def _not_yet(actor: bool, timeout: Duration) -> None:
    if actor or timeout is not None:
        what = "actors come" if actor else "timeout= comes"
        raise NotImplementedError(f"{what} with a later version of localdist")
