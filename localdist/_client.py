"""SUBMIT: the `Client` builds the parts, owns their lifetime, and forwards to them."""

from __future__ import annotations

import atexit
import contextlib
import threading
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextvars import Token
from types import TracebackType
from typing import TYPE_CHECKING, Any

from . import _gather, _registry
from ._callbacks import CallbackThread
from ._cluster import LocalCluster as LocalCluster
from ._executor._face import ClientExecutor
from ._future import Duration, Future, seconds
from ._graph import futures_in
from ._registry import default_client
from ._schedule.records import Group, Options, Task
from ._serialize import FunctionTable, qualified_type
from ._state import ERROR, FINISHED, PENDING, Board, Entry
from ._submission import Submission
from .errors import ClosedClientError

if TYPE_CHECKING:
    from typing_extensions import Self


class Client(Submission):
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
            _refuse_unknown(kwargs)
            self.cluster = LocalCluster(**kwargs, start_timeout=limit)
            self._owns_cluster = True
        self.id = f"Client-{name}-{uuid.uuid4()}" if name else f"Client-{uuid.uuid4()}"
        self._board: Board = self.cluster._board
        self._transport = self.cluster._connect()
        self._drop: Callable[[Task], None] = self._transport.drop
        self._in_threads = not self.cluster.processes
        self._entries: dict[Any, Entry] = {}
        self._groups: dict[str, Group] = {}
        self._functions = FunctionTable()
        self._options = Options(owner=self)
        self._callbacks = CallbackThread(self.id)
        self._tokens: list[Token[Client | None]] = []
        self._close_lock = threading.Lock()
        self._closed = False
        self._board.clients.add(self)
        _registry.clients.add(self)
        if set_as_default:
            _registry.defaults.append(weakref.ref(self))
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
            ending = self._finalizer.detach()  # not called: at the interpreter's end `finalize` refuses that
            if ending is None:
                return
            with self._board.lock:
                self._transport.cancel(self._end(), "client closed", force=False)
            _, release, parts, _ = ending
            release(*parts)
            _registry.defaults[:] = [ref for ref in _registry.defaults if ref() not in (None, self)]

    def _forked(self) -> None:
        """Be closed in a process that was forked from this client's: it has the memory, but none of the threads."""
        self._closed = True
        self._drop = _ignore
        self._finalizer.detach()
        self._board.lock = threading.RLock()  # a thread that is not here may have held it
        self.cluster._forked()

    def _end(self) -> list[Entry]:
        """Take nothing more, cancel all futures, and return their entries; with the board's lock held."""
        self._closed = True
        self._drop = _ignore
        cancelled = []
        for entry in list(self._entries.values()):
            if entry.options.detached and entry.status is not PENDING:
                self._detach(entry)
            else:
                self._board.cancel_one(entry, "client closed", None)
                cancelled.append(entry)
        return cancelled

    def _detach(self, entry: Entry) -> None:
        """Let the outcome of an executor's call, which has ended, be there also after the end of the store."""
        if entry.status is FINISHED:
            try:
                entry.outcome = self._transport.detach(entry.outcome)
            except OSError as e:
                entry.status, entry.outcome = ERROR, e

    def __enter__(self) -> Self:
        self._tokens.append(_registry.current.set(self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            _registry.current.reset(self._tokens.pop())
        finally:
            self.close()

    @contextlib.contextmanager
    def as_current(self) -> Iterator[Client]:
        """Make it the current client of this thread (and asyncio task) within a ``with`` block."""
        token = _registry.current.set(self)
        try:
            yield self
        finally:
            _registry.current.reset(token)

    @classmethod
    def current(cls, allow_global: bool = True) -> Client:
        """Return the client of this context (``with client:``, `as_current`), else the default one.

        Raises:
            ValueError: there is none; or only a default one, and `allow_global` is False.
        """
        client = _registry.current.get()
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

    # -- results -------------------------------------------------------------------------------------------------

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
                entry.status = PENDING
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

    def get_executor(
        self,
        *,
        pure: bool = False,
        workers: Any = None,
        resources: Mapping[str, float] | None = None,
        allow_other_workers: bool = False,
        retries: int = 0,
    ) -> ClientExecutor:
        """Return a `concurrent.futures.Executor` that runs calls on this client's workers.

        It keeps the rules of `localdist.Executor`, and so of the standard library; shutting it down leaves the client
        open. Futures of this client may be arguments. What a call leaves in global variables of the script is not seen
        by the next one, as with all tasks of a client.

        Args:
            pure: True: equal calls share one execution, and cancelling one cancels it for all.
            workers, resources, allow_other_workers: as in `submit`, for all calls.
            retries: how often a call is made again after it raised, and again as often after its worker died.

        Raises:
            ClosedClientError: the client is closed.
            TypeError: another keyword.
        """
        return ClientExecutor(
            self,
            pure=pure,
            workers=workers,
            resources=resources,
            allow_other_workers=allow_other_workers,
            retries=retries,
        )

    def __reduce__(self) -> Any:
        raise TypeError("a Client cannot be pickled: it belongs to its process")


#: Options of Dask's client and cluster about networks, servers and logs: nothing here has them.
_NETWORK_OPTIONS = frozenset(
    "heartbeat_interval serializers deserializers extensions direct_to_workers connection_limit dashboard_address "
    "silence_logs worker_dashboard_address host interface protocol scheduler_port local_directory "
    "memory_target_fraction memory_spill_fraction memory_pause_fraction memory_terminate_fraction".split()
)


def _drop_network_options(kwargs: dict[str, Any]) -> None:
    for word in _NETWORK_OPTIONS & kwargs.keys():
        del kwargs[word]


def _refuse_unknown(kwargs: dict[str, Any]) -> None:
    import inspect

    known = [word for word in inspect.signature(LocalCluster).parameters if word != "start_timeout"]
    for word in kwargs:
        if word not in known:
            import difflib

            close = difflib.get_close_matches(word, [*known, "name", "timeout", "set_as_default"], 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise TypeError(f"Client() got an unexpected keyword argument {word!r}{hint}")


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
    try:
        callbacks.close()
    finally:  # Ctrl-C may come while a callback is waited for
        transport.close()
        if cluster is not None:
            cluster.close()


def _ignore(_task: Task) -> None:
    """Take note of a dropped handle after the end."""


def _close_all() -> None:
    for client in list(_registry.clients):
        client.close()


_registry.client_type = Client
atexit.register(_close_all)
