"""`Executor`: a pool of its own, behind the face of `concurrent.futures`."""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .._client import Client
from .._cluster import LocalCluster, pack_initializer
from .._dispatch._crew import Settings
from .._future import Duration
from .._kept import KeptFunctions
from .._options import check_retries
from .._schedule.records import Options
from .._serialize import qualified_type
from .._state import Board
from ..errors import ClosedClientError
from ._broken import AbortedError, as_broken
from ._calls import Calls
from ._face import BaseExecutor, check_positive

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext

#: More processes than this Windows cannot wait for.
MOST_ON_WINDOWS = 61


class Executor(BaseExecutor):
    """A drop-in for `concurrent.futures.ProcessPoolExecutor`: faster, and not broken by the death of a worker.

    Workers are started when they are needed, the first by the first call; none is ever forked, and scripts need no
    ``if __name__ == "__main__"``. Large arrays travel through shared memory. A worker that dies fails the call that it
    ran, and nothing else. Leaving a ``with`` block waits for all calls, unless Ctrl-C is the reason: that cancels what
    has not begun and ends the workers at once.

    Args:
        max_workers: how many processes there may be; default: one per core that this process may use
            (`loky.cpu_count`). On Windows at most 61.
        mp_context: accepted for the standard library's sake; workers are started by loky, whatever it says.
        initializer: a callable that every worker calls before its first task, replacements included. Locks and queues
            of `multiprocessing` in `initargs` have to come from its "spawn" context.
        initargs: its positional arguments.
        max_tasks_per_child: how many calls a worker makes (a chunk of `map` counts as one) before a new one takes its
            place; None: no limit.
        retries: how often a call is made again after it raised, and again as often after its worker died.

    Raises:
        ValueError, TypeError: an argument makes no sense.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: BaseContext | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
        retries: int = 0,
    ) -> None:
        super().__init__()
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be a callable, not {qualified_type(initializer)}")
        if max_tasks_per_child is not None:
            max_tasks_per_child = check_positive("max_tasks_per_child", max_tasks_per_child)
        check_retries(retries)
        self._max_workers = count_workers(max_workers, sys.platform)
        self._mp_context = mp_context or multiprocessing.get_context("spawn")
        self._retries = retries
        self._settings = Settings(
            n_workers=self._max_workers,
            threads_per_worker=1,
            processes=True,
            resources={},
            memory_limit=None,
            allowed_failures=0,
            initializer=pack_initializer(initializer, initargs),
            max_tasks=float("inf") if max_tasks_per_child is None else max_tasks_per_child,
            standard=True,
        )
        self._lock = threading.Lock()
        self._client: PoolClient | None = None

    def _ready(self) -> Calls:
        calls, client = self._calls, self._client
        if calls is None or client is None or self._shut_down or client.engine.crew.broken is not None:
            calls = self._open()
        return calls

    def _open(self) -> Calls:
        """Make the pool if there is none, or say why there cannot be one."""
        with self._lock:
            if self._shut_down:
                self._refuse()
            if self._calls is None:
                self._client = client = PoolClient(self._settings)
                options = Options(retries=self._retries, owner=client, allowed_failures=self._retries, detached=True)
                self._calls = Calls(client, options)
                # When nobody can submit any more, what was submitted is still done.
                weakref.finalize(self, client.engine.end_when_done).atexit = False
            calls = self._calls
        broken = self._broken
        if broken is not None:
            raise as_broken(broken)
        return calls

    @property
    def _processes(self) -> dict[int, Any]:
        """The worker processes by their ids: other libraries look at them."""
        if self._client is None:
            return {}
        engine = self._client.engine
        try:
            return engine.processes()
        except ClosedClientError:
            return {}

    @property
    def _broken(self) -> BaseException | None:
        """Why no call can be made, or None: other libraries look at it."""
        broken = None if self._client is None else self._client.engine.crew.broken
        return None if isinstance(broken, ClosedClientError) else broken

    def _close_door(self) -> PoolClient | None:
        """Take no more calls."""
        with self._lock:
            self._shut_down = True
            self._settings = replace(self._settings, initializer=None)  # its arguments may be large, or be waited for
            return self._client

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        client = self._close_door()
        if client is None:
            return
        client.shut_down(wait=wait, cancel=cancel_futures)

    def terminate_workers(self) -> None:
        """Ask all workers to end (SIGTERM), and kill those that have not after two seconds; shut down.

        Unfinished futures fail with a `BrokenProcessPool`.
        """
        self._force("terminate_workers", gently=True)

    def kill_workers(self) -> None:
        """Kill all workers and what they have started; shut down.

        Unfinished futures fail with a `BrokenProcessPool`.
        """
        self._force("kill_workers", gently=False)

    def _force(self, what: str, *, gently: bool) -> None:
        client = self._close_door()
        if client is not None:
            with contextlib.suppress(ClosedClientError):  # it has ended already
                client.abort(AbortedError(f"the executor's workers were ended by {what}()"), gently=gently)

    def _abandon(self) -> None:
        """Cancel all calls and end the workers now."""
        client = self._close_door()
        if client is not None:
            client.engine.close(grace=0.0)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        try:
            if not interrupted:
                self.shutdown(wait=True)
        except KeyboardInterrupt:
            interrupted = True
            raise
        finally:
            if interrupted:
                self._abandon()

    def __repr__(self) -> str:
        state = "shut down" if self._shut_down else "broken" if self._broken else "open"
        running = 0 if self._client is None else len(self._client.engine.crew.workers)
        return f"<Executor: {self._max_workers} workers at most, {running} running, {state}>"


def count_workers(max_workers: int | None, platform: str) -> int:
    """Return how many worker processes there may be, on a system that `sys.platform` calls so.

    Raises:
        TypeError, ValueError: it is no number above 0.
    """
    if max_workers is None:
        import loky

        max_workers = loky.cpu_count()
        return min(max_workers, MOST_ON_WINDOWS) if platform == "win32" else max_workers
    try:
        max_workers = check_positive("max_workers", max_workers)
    except ValueError:
        raise ValueError("max_workers must be greater than 0") from None  # in the standard library's words
    if platform == "win32" and max_workers > MOST_ON_WINDOWS:
        text = f"max_workers is {max_workers}: on Windows {MOST_ON_WINDOWS} worker processes are started at most"
        warnings.warn(text, RuntimeWarning, stacklevel=3)
        return MOST_ON_WINDOWS
    return max_workers


class _Pool(LocalCluster):
    """Workers that are started on demand."""

    def __init__(self, settings: Settings) -> None:
        self.processes = True
        self.name = "executor"
        self._board = Board()
        self._start(settings)


class PoolClient(Client):
    """The client of an `Executor`: its end waits for what was submitted, and what has ended is not cancelled by it."""

    def __init__(self, settings: Settings) -> None:
        pool = _Pool(settings)
        self.engine = pool._engine
        super().__init__(pool, set_as_default=False)
        self._finalizer.detach()
        self._functions = KeptFunctions()
        # The engine, not this object, knows when the last callback has come.
        self.engine.at_end = self._callbacks.finish

    def shut_down(self, *, wait: bool, cancel: bool) -> None:
        """End when everything submitted before has ended; see `Executor.shutdown`."""
        with self._board.lock:
            self._closed = True
        self.engine.end_when_done(cancel=cancel)
        if wait:
            self.engine.wait_end()
            self._callbacks.close(None)

    def abort(self, error: BaseException, *, gently: bool) -> None:
        """End now; see `Executor.kill_workers`."""
        with self._board.lock:
            self._closed = True
        self.engine.abort(error, gently=gently)
        self._callbacks.close(None)

    def close(self, timeout: Duration = None) -> None:  # noqa: ARG002  (the interpreter's end calls it)
        # After a Ctrl-C that ended the program nobody waits for the rest; in a session, it may be any earlier one.
        if getattr(sys, "last_type", None) is KeyboardInterrupt and not hasattr(sys, "ps1"):
            self.engine.close(grace=0.0)
        self.shut_down(wait=True, cancel=False)
