"""SUBMIT: the `Client` builds the parts, owns their lifetime, and forwards to them."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import queue
import threading
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar, Token
from marshal import dumps as marshal_dumps
from types import TracebackType
from typing import Any

from xxhash import xxh3_128_hexdigest

from . import _gather
from ._callbacks import CallbackThread
from ._cluster import LocalCluster
from ._future import Duration, Future, seconds
from ._graph import extract, futures_in
from ._inspection import Inspection
from ._key import ATOMS, Digests, Unstable, call_key, check_key, function_digest, function_name, random_key, token
from ._schedule.records import DEFAULT_OPTIONS, Group, Lane, Options, Task
from ._serialize import Function, FunctionTable, qualified_type
from ._state import CANCELLED, ERROR, FINISHED, PENDING, Board, Entry, collection_paused
from ._wire import INLINE_MAX
from .errors import ClosedClientError, SerializationError

#: Elements of `map` that are handed to the scheduler at a time: the first run while the last are being named.
_MAP_CHUNK = 2_000

_current: ContextVar[Client | None] = ContextVar("localdist-client", default=None)
#: living clients that may become the default, the newest last
_defaults: list[weakref.ref[Client]] = []
_all_clients: weakref.WeakSet[Client] = weakref.WeakSet()


class Client(Inspection):
    """The way to run tasks on local workers.

    ``Client()`` starts worker processes, one per core, and is ready when the first of them is. Close it with
    `close`, or use it as a context manager; the interpreter's end closes it too. All methods may be called from any
    thread.

    Args:
        address: a `LocalCluster` to use; None starts workers of the client's own.
        n_workers: number of workers; default: one per core that this process may use (`loky.cpu_count`), or, with
            `threads_per_worker`, as many as that gives.
        threads_per_worker: how many tasks a worker runs at a time, each in a thread of its own.
        processes: False runs the tasks in threads of this process: nothing is pickled or copied.
        memory_limit: bytes per worker ("4GB", a number, "auto" or None); it is shown, and not yet enforced.
        resources: what each worker has for tasks that ask for `resources=`: name and amount.
        name: is put into `id`.
        set_as_default: whether it becomes the default client.
        timeout: how long the first worker may take to start: seconds or text.
        allowed_failures: how many workers may die running a task before it fails with `KilledWorker`.
        initializer: a callable that every worker calls before its first task, replacements included.
        initargs: its positional arguments.

    Raises:
        WorkerStartError: no worker can start; with what it printed to its standard error.
        TypeError: an unknown keyword.
    """

    def __init__(
        self,
        address: LocalCluster | str | None = None,
        loop: Any = None,  # noqa: ARG002  (Dask's signature)
        timeout: Duration = "30 s",
        set_as_default: bool = True,
        scheduler_file: Any = None,  # noqa: ARG002
        security: Any = None,  # noqa: ARG002
        asynchronous: bool = False,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        self._closed = True  # until it is built
        if asynchronous:
            raise NotImplementedError("Client(asynchronous=True) comes with a later version of localdist")
        _drop_network_options(kwargs)
        limit = seconds(timeout)
        if address is not None:
            if limit is None:
                raise ValueError("timeout=None: connecting needs a limit")
            if kwargs:
                raise ValueError(f"options of workers do not go with an address: {', '.join(kwargs)}")
            self.cluster = _cluster_at(address)
            self._owns_cluster = False
        else:
            self.cluster = LocalCluster(**kwargs, start_timeout=limit)
            self._owns_cluster = True
        self.id = f"Client-{name}-{uuid.uuid4()}" if name else f"Client-{uuid.uuid4()}"
        self._board: Board = self.cluster._board
        self._transport = self.cluster._connect()
        self._drop = self._transport.drop
        self._in_threads = not self.cluster.processes
        self._entries: dict[Any, Entry] = {}
        self._groups: dict[str, Group] = {}
        self._functions = FunctionTable()
        self._options = Options(owner=self)
        self._callbacks = CallbackThread(self.id)
        self._tokens: list[Token[Client | None]] = []
        self._close_lock = threading.Lock()
        self._closed = False
        _all_clients.add(self)
        if set_as_default:
            _defaults.append(weakref.ref(self))
        self._finalizer = weakref.finalize(
            self, _release, self._transport, self._callbacks, self.cluster if self._owns_cluster else None
        )
        self._finalizer.atexit = False  # `_close_all` does it, in order

    # -- lifecycle -----------------------------------------------------------------------------------------------

    @property
    def status(self) -> str:
        """One of "running", "closing", "closed"."""
        return "closed" if self._closed else self._transport.status

    def close(self, timeout: Duration = None) -> None:  # noqa: ARG002  (Dask's signature)
        """End the workers, if they are the client's own; unfinished futures become cancelled. May be repeated.

        A running task may delay it by half a second; then its process is ended, with all that it started.
        """
        with self._close_lock:
            if self._closed:
                return
            self._closed = True
            self._transport.cancel(list(self._entries.values()), "client closed", force=False)
            with self._board.lock:
                for entry in list(self._entries.values()):
                    self._board.cancel_one(entry, "client closed", None)
            self._finalizer()
            _defaults[:] = [ref for ref in _defaults if ref() not in (None, self)]

    def __enter__(self) -> Client:
        self._tokens.append(_current.set(self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            _current.reset(self._tokens.pop())
        finally:
            self.close()

    @contextlib.contextmanager
    def as_current(self) -> Iterator[Client]:
        """Make it the current client of this thread (and asyncio task) within a ``with`` block."""
        token = _current.set(self)
        try:
            yield self
        finally:
            _current.reset(token)

    @classmethod
    def current(cls, allow_global: bool = True) -> Client:
        """Return the client of this context (``with client:``, `as_current`), else the default one.

        Raises:
            ValueError: there is none; or only a default one, and `allow_global` is False.
        """
        client = _current.get()
        if client is not None:
            return client
        if allow_global:
            return default_client()
        raise ValueError("no client is current here: use `with client:` or `client.as_current()`")

    def wait_for_workers(self, n_workers: int, timeout: Duration = None) -> None:
        """Wait until `n_workers` workers can take tasks.

        Raises:
            ValueError: it is not a positive int.
            WorkerStartTimeoutError: they cannot within `timeout`.
            WorkerStartError: they never will.
        """
        if type(n_workers) is not int or n_workers < 1:
            raise ValueError(f"n_workers must be a positive int, not {n_workers!r}")
        self._check_open()
        self._transport.wait_for_workers(n_workers, seconds(timeout))

    def restart(self, timeout: Duration = "30 s", wait_for_workers: bool = True) -> Client:
        """Replace all workers by new ones; every future of every client becomes cancelled, the client stays usable.

        Raises:
            WorkerStartTimeoutError: the new ones did not start within `timeout`.
        """
        self._check_open()
        self._transport.restart(seconds(timeout), wait=wait_for_workers)
        return self

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedClientError(f"{self.id} is closed")

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
        fifo_timeout: Duration = None,  # noqa: ARG002  (order within a priority is the order of submission)
        allow_other_workers: bool = False,
        actor: bool = False,
        actors: bool = False,
        pure: bool = True,
        timeout: Duration = None,
        **kwargs: Any,
    ) -> Future:
        """Run ``func(*args, **kwargs)`` on a worker and return its future at once.

        Futures among the arguments, at any depth of lists, tuples, sets and dict values, are replaced by their
        results, and are waited for. Arguments are pickled now: what is written into them later is not seen.

        Args:
            func: any callable; lambdas, closures and functions of ``__main__`` included.
            args: positional arguments.
            key: explicit name of the task: str, int, float or tuple of those. If a live future has it, that task's
                result is returned, whatever the function.
            workers: name or address of a worker, or a list or set of them: run only there.
            resources: what the task holds while it runs; see ``Client(resources=)``.
            retries: how often it is run again after it raised.
            priority: higher runs earlier; the default is 0.
            fifo_timeout: accepted for Dask's sake.
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
        if self._closed:
            self._check_open()
        if actor or actors or timeout is not None:
            _not_yet(actor or actors)
        if workers is None and resources is None and not retries and not priority and not allow_other_workers:
            options = self._options
        else:
            options = self._make_options(workers, resources, retries, priority, allow_other_workers)
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
        args, kwargs, futures = extract(args, dict(kwargs), Future)
        inputs = [self._own_entry(future) for future in futures]
        digests = Digests()
        if key is None:
            key = self._name_call(prefix or function.name, function.digest, args, kwargs, pure, digests, known)
        with self._board.lock:
            entry = self._entries.get(key)
            if entry is not None:
                entry.handles += 1
                return Future(entry)
        try:
            call, dependencies = self._transport.encode(function, func, args, kwargs, inputs, digests)
        except SerializationError as e:
            raise SerializationError(e.what, e.type_name, key, e.detail) from e.__cause__
        return self._enter(key, function, call, dependencies, options)

    def _enter(
        self, key: Any, function: Function, call: Any, dependencies: tuple[Task, ...], options: Options
    ) -> Future:
        """Return a future of the live task with this key, or of a new one."""
        name = function.name
        group = self._groups.get(name) or self._groups.setdefault(name, Group(name))
        with self._board.lock:
            entry = self._entries.get(key)
            if entry is not None:
                entry.handles += 1
                return Future(entry)
            self._entries[key] = entry = Entry(key, group, function, call, dependencies, options)
            self._transport.submit_one(entry)
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

    def _make_options(
        self, workers: Any, resources: Mapping[str, float] | None, retries: int | None, priority: float, loose: bool
    ) -> Options:
        if not isinstance(loose, bool):
            raise TypeError(f"allow_other_workers must be a bool, not {qualified_type(loose)}")
        if loose and workers is None:
            raise ValueError("allow_other_workers=True goes with workers=")
        lane = None
        if workers is not None or resources:
            names = None
            if workers is not None:
                names = frozenset([workers] if isinstance(workers, (str, int)) else workers)
            lane = Lane(names, not loose, tuple(sorted((resources or {}).items())))
        return Options(priority, retries or 0, lane, self)

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
        fifo_timeout: Duration = None,  # noqa: ARG002
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
        if actor or actors or timeout is not None:
            _not_yet(actor or actors)
        if not iterables:
            raise TypeError("map needs at least one iterable")
        for iterable in iterables:
            if isinstance(iterable, (Iterator, queue.Queue)):
                raise TypeError(
                    f"map takes collections, not {qualified_type(iterable)}: an iterator may never end. Use a list of it"
                )
        if isinstance(workers, tuple):
            raise TypeError("workers= takes a name, an address, or a list or set of them")
        function = self._describe(func)
        options = self._options
        if workers is not None or resources is not None or retries or priority or allow_other_workers:
            options = self._make_options(workers, resources, retries, priority, allow_other_workers)
        elements = zip(*iterables, strict=False)
        chunk = max(1, batch_size) if batch_size else _MAP_CHUNK
        if not kwargs and not isinstance(key, (list, tuple)) and not self._in_threads:
            if all(set(map(type, iterable)) <= ATOMS for iterable in iterables):
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
        group = self._groups.setdefault(function.name, Group(function.name))
        entries, lock, submit = self._entries, self._board.lock, self._transport.submit
        count = itertools.count()
        futures: list[Future] = []
        first: dict[Entry, Future] | None = None
        while part := list(itertools.islice(elements, chunk)):
            new: list[Entry] = []
            with lock:
                for args in part:
                    payload = marshal_dumps(args, 2)
                    if numbered:
                        name = f"{prefix}{next(count)}"
                    else:
                        name = prefix + xxh3_128_hexdigest(digest + payload)  # type: ignore[operator]  # pure: not None
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

    def _share_large(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        if self._in_threads:
            return kwargs
        return {
            word: self._scatter_one(value, None, hashed=False)
            if type(value) not in ATOMS and not futures_in(value, Future) and self._transport.is_large(value)
            else value
            for word, value in kwargs.items()
        }

    # -- data ----------------------------------------------------------------------------------------------------

    def scatter(
        self,
        data: Any,
        workers: Any = None,  # noqa: ARG002  (every worker reaches the store)
        broadcast: bool | int = False,  # noqa: ARG002
        direct: Any = None,  # noqa: ARG002
        hash: bool = True,
        timeout: Duration = None,  # noqa: ARG002
    ) -> Any:
        """Store data and return futures of it, finished already, to use in any number of tasks.

        Args:
            data: a list, tuple, set, frozenset or named tuple gives one future per element in the same kind of
                container; a dict gives a dict whose keys name the data; anything else gives one future.
            workers, broadcast, direct, timeout: accepted for Dask's sake; all workers share one store.
            hash: equal values share a key. False: a random key.

        Raises:
            TypeError: an iterator, generator or queue; or something that cannot be pickled.
            ValueError: a dict's key names other data that is alive.
            StoreFullError: there is no room.
        """
        self._check_open()
        kind = type(data)
        if isinstance(data, (Iterator, queue.Queue)):
            raise TypeError(f"scatter takes data, not {qualified_type(data)}")
        if kind is dict:
            return {key: self._scatter_one(value, key, hashed=hash) for key, value in data.items()}
        if kind in (list, tuple, set, frozenset):
            return kind([self._scatter_one(value, None, hashed=hash) for value in data])
        if kind is range:
            return [self._scatter_one(value, None, hashed=hash) for value in data]
        if isinstance(data, tuple) and hasattr(kind, "_fields"):
            return kind(*[self._scatter_one(value, None, hashed=hash) for value in data])
        return self._scatter_one(data, None, hashed=hash)

    def _scatter_one(self, value: Any, key: Any, *, hashed: bool) -> Future:
        name = function_name(type(value))
        digest: bytes | None = None
        if hashed or key is not None:
            try:
                digest = token(value)
            except Unstable:
                digest = None
        explicit = key is not None
        if explicit:
            check_key(key)
        elif hashed and digest is not None:
            key = f"{name}-{digest.hex()}"
        else:
            key = random_key(name)
        with self._board.lock:
            entry = self._entries.get(key)
            if entry is not None:
                if explicit and entry.note != ("data", repr(digest)):
                    raise ValueError(f"the key {key!r} is in use; release its futures first")
                entry.handles += 1
                return Future(entry)
        outcome = self._transport.put(value)
        group = self._groups.setdefault(name, Group(name))
        with self._board.lock:
            entry = Entry(key, group, None, None, (), self._options)
            entry.outcome = outcome
            entry.status = FINISHED
            entry.note = ("data", repr(digest))
            self._entries[key] = entry
            self._transport.store([entry])
        return Future(entry)

    def gather(self, futures: Any, errors: str = "raise", direct: Any = None) -> Any:  # noqa: ARG002
        """Wait for futures and return their results in the same shape.

        Args:
            futures: a future, or nested lists, tuples, sets, frozensets, dict values and named tuples of them; other
                things in them are passed through. An iterator gives a lazy generator of results.
            errors: "raise": raise the exception of the first future, in order, that has failed; or "skip": leave
                failed and cancelled ones out of lists, and put None in their place elsewhere.
            direct: accepted for Dask's sake.

        Raises:
            CancelledError: one was cancelled.
            ValueError: `errors` is neither; or a future belongs to another client.
            TypeError: a queue.
            BaseException: what a task raised; at once, not after the slow ones.
        """
        return _gather.gather(self, futures, errors)

    # -- control -------------------------------------------------------------------------------------------------

    def cancel(self, futures: Any, force: bool = False, reason: str | None = None, msg: str | None = None) -> None:
        """Cancel futures, and all that depend on them: at once, finished ones too.

        A task that has not begun never begins; one that is running runs on, unseen, and keeps its slot.

        Args:
            futures: a future, or nested lists, tuples, sets and dict values of them.
            force: for everyone who holds these keys, not only for this client.
            reason: a word that `CancelledError` shows.
            msg: a sentence that it shows.
        """
        self._check_open()
        entries = list({self._own_entry(future): None for future in futures_in(futures, Future)})
        with self._board.lock:
            for entry in entries:
                self._board.cancel_one(entry, reason or "unknown", msg)
        if entries:
            self._transport.cancel(entries, reason or "unknown", force=force)

    def retry(self, futures: Any) -> None:
        """Run failed tasks again, with the failed ones they stem from; others are left as they are."""
        self._check_open()
        entries = [self._own_entry(future) for future in futures_in(futures, Future)]
        with self._board.lock:
            failed = [entry for entry in entries if entry.status is ERROR]
            for entry in failed:
                entry.status, entry.error = PENDING, None
        if failed:
            self._transport.retry(failed)

    def run(
        self,
        function: Callable[..., Any],
        /,
        *args: Any,
        workers: Any = None,
        wait: bool = True,
        nanny: bool = False,  # noqa: ARG002  (there is none)
        on_error: str = "raise",
        **kwargs: Any,
    ) -> dict[str, Any] | None:
        """Call a function once in every worker process, now, outside of the task queue.

        Args:
            function: any callable; a parameter named `dask_worker` receives what `get_worker` returns. A coroutine
                function is awaited.
            workers: names or addresses; default all.
            wait: False: start it and return None.
            on_error: "raise" the first error, "return" it as the value, or "ignore" that worker.

        Returns:
            Address of each worker and the value.

        Raises:
            ValueError: another `on_error`.
        """
        self._check_open()
        if on_error not in ("raise", "return", "ignore"):
            raise ValueError(f'on_error must be "raise", "return" or "ignore", not {on_error!r}')
        answers = self._transport.run(function, args, kwargs, self._addresses(workers), wait)
        if answers is None:
            return None
        for ok, value in answers.values():
            if not ok and on_error == "raise":
                raise value
        return {address: value for address, (ok, value) in answers.items() if ok or on_error == "return"}

    def __reduce__(self) -> Any:
        raise TypeError("a Client cannot be pickled: it belongs to its process")


def _not_yet(actor: bool) -> None:
    what = "actors come" if actor else "timeout= comes"
    raise NotImplementedError(f"{what} with a later version of localdist")


#: Options of Dask's client and cluster about networks, servers and logs: nothing here has them.
_NETWORK_OPTIONS = frozenset(
    "heartbeat_interval serializers deserializers extensions direct_to_workers connection_limit dashboard_address "
    "silence_logs worker_dashboard_address host interface protocol scheduler_port local_directory "
    "memory_target_fraction memory_spill_fraction memory_pause_fraction memory_terminate_fraction".split()
)


def _drop_network_options(kwargs: dict[str, Any]) -> None:
    for word in _NETWORK_OPTIONS & kwargs.keys():
        del kwargs[word]


def _cluster_at(address: Any) -> LocalCluster:
    if isinstance(address, LocalCluster):
        if address.status == "closed":
            raise RuntimeError("the cluster is closed")
        return address
    if isinstance(address, str):
        raise NotImplementedError(
            f"cannot connect to {address!r}: reaching another process or a Dask scheduler comes with a later version "
            "of localdist. Client() starts local workers"
        )
    raise TypeError(f"an address is a LocalCluster or a str, not {qualified_type(address)}")


def _release(transport: Any, callbacks: CallbackThread, cluster: LocalCluster | None) -> None:
    """What remains to be done when a client is closed or collected."""
    callbacks.close()
    transport.close()
    if cluster is not None:
        cluster.close()


def default_client(c: Client | None = None) -> Client:
    """Return `c`; or else the current client of this context; or else the newest living default client.

    Raises:
        ValueError: there is none.
    """
    if c is not None:
        return c
    current = _current.get()
    if current is not None:
        return current
    for ref in reversed(_defaults):
        client = ref()
        if client is not None and not client._closed:
            return client
    raise ValueError("no client found: create one with Client()")


def known_entry(key: Any) -> Entry | None:
    """Return the entry for a key that was unpickled, with a handle more, or None: for `Future`'s unpickling."""
    try:
        client = default_client()
    except ValueError:
        return None
    with client._board.lock:
        entry = client._entries.get(key)
        if entry is not None:
            entry.handles += 1
        return entry


def _close_all() -> None:
    for client in list(_all_clients):
        client.close()


atexit.register(_close_all)
os.register_at_fork(after_in_child=lambda: _defaults.clear()) if hasattr(os, "register_at_fork") else None

__all__ = ["CANCELLED", "DEFAULT_OPTIONS", "Client", "default_client"]
