"""`LocalCluster`: the workers of one or several clients, for programs that make the two apart."""

from __future__ import annotations

import itertools
import math
import re
import weakref
from types import TracebackType
from typing import TYPE_CHECKING, Any

from . import _registry
from ._dispatch._crew import Settings
from ._dispatch._engine import Engine
from ._dispatch._pool import Initializer
from ._future import Duration, seconds
from ._options import check_resources
from ._serialize import blame, pack_whole, qualified_type
from ._state import Board
from ._transport._inprocess import InProcess, InThreads
from .errors import SerializationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from typing_extensions import Self

    from ._client import Client
    from .abc import Transport

_numbers = itertools.count()
_SIZES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_SIZES |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def layout(
    cores: int, n_workers: int | None, threads_per_worker: int | None, processes: bool = True
) -> tuple[int, int]:
    """Say how many workers, and threads in each, use `cores` cores when the caller has left it open.

    The rule is Dask's: up to four cores a process for each; beyond that the smallest divisor of the number of cores
    that is at least its square root gives the processes, the rest threads.
    """
    if n_workers is None and threads_per_worker is None:
        if not processes:
            return 1, cores
        if cores <= 4:
            return cores, 1
        workers = next(d for d in range(math.isqrt(cores - 1) + 1, cores + 1) if cores % d == 0)
        return workers, cores // workers
    if n_workers is not None:
        return n_workers, threads_per_worker or max(1, math.ceil(cores / max(1, n_workers)))
    assert threads_per_worker is not None
    return max(1, cores // threads_per_worker), threads_per_worker


def parse_bytes(size: Any) -> int:
    """Turn a size as users write it ("4GB", "500 MiB", a number of bytes) into bytes.

    Raises:
        ValueError: it is none.
    """
    if isinstance(size, (int, float)) and not isinstance(size, bool):
        return int(size)
    match = re.fullmatch(r"\s*([\d.]+(?:e[+-]?\d+)?)\s*([a-z]*)\s*", str(size).lower())
    if match is None or (match[2] or "b") not in _SIZES:
        raise ValueError(f"not a size: {size!r} (write for example '4GB' or '500 MiB')")
    return int(float(match[1]) * _SIZES[match[2] or "b"])


def _memory_limit(limit: Any, n_workers: int) -> int | None:
    if limit is None or limit == 0:
        return None
    if limit == "auto":
        import psutil

        return int(psutil.virtual_memory().total / max(1, n_workers))
    return parse_bytes(limit)


def pack_initializer(initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> Initializer:
    """Return what workers are to call first, in the form in which it travels.

    Raises:
        SerializationError: it cannot be pickled.
    """
    if initializer is None:
        return None
    call = (initializer, tuple(initargs))
    try:
        pickled = pack_whole(call)
    except RuntimeError:  # so multiprocessing refuses its locks and queues, unless a process is being started
        return call
    except Exception as e:
        raise SerializationError("initializer", blame(call), None, f"{type(e).__name__}: {e}") from e
    return call if b"multiprocessing" in pickled else pickled


class LocalCluster:
    """Worker processes on this machine, used through `Client(cluster)`.

    Args:
        n_workers, threads_per_worker, processes, memory_limit, resources, initializer, initargs, allowed_failures:
            as in `Client`.
        name: shown by `repr`.
        start_timeout: how long the first worker may take to start, in seconds or text.
        dashboard_address, silence_logs: accepted for Dask's sake, like other options about networks.

    Raises:
        WorkerStartError: no worker can start.
        TypeError: an unknown keyword.
        ValueError: a number that makes no sense.
    """

    def __init__(
        self,
        n_workers: int | None = None,
        threads_per_worker: int | None = None,
        processes: bool | None = None,
        memory_limit: Any = "auto",
        resources: Mapping[str, float] | None = None,
        *,
        name: str | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        allowed_failures: int = 3,
        start_timeout: Duration = "30 s",
        dashboard_address: Any = None,  # noqa: ARG002
        silence_logs: Any = None,  # noqa: ARG002
    ) -> None:
        import loky

        for word, number in (("n_workers", n_workers), ("threads_per_worker", threads_per_worker)):
            if number is not None and (not isinstance(number, int) or number < 1):
                raise ValueError(f"{word} must be a positive int, not {number!r}")
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be callable, not {qualified_type(initializer)}")
        self.processes = processes if processes is not None else True
        workers, threads = layout(loky.cpu_count(), n_workers, threads_per_worker, self.processes)
        self.name = name if name is not None else str(next(_numbers))
        self._board = Board()
        settings = Settings(
            n_workers=workers,
            threads_per_worker=threads,
            processes=self.processes,
            resources=check_resources(resources),
            memory_limit=_memory_limit(memory_limit, workers),
            allowed_failures=allowed_failures,
            initializer=pack_initializer(initializer, initargs),
        )
        if initializer is not None and not self.processes:
            initializer(*initargs)
        self._start(settings)
        try:
            self._engine.wait_ready(seconds(start_timeout))
        except BaseException:
            self._engine.close()
            raise

    def _start(self, settings: Settings) -> None:
        self._engine = Engine(settings, self._board)
        # The interpreter's end is seen to by the engine: `finalize` might act after multiprocessing waits for children.
        self._finalizer = weakref.finalize(
            self, self._engine.end_when_done if settings.standard else self._engine.close
        )
        self._finalizer.atexit = False

    def _forked(self) -> None:
        self._finalizer.detach()
        self._engine.forked()

    def _connect(self) -> Transport:
        self._engine.clients += 1
        return self._reach()

    def _reach(self) -> Transport:
        return (InProcess if self.processes else InThreads)(self._engine, owns=False)

    @property
    def status(self) -> str:
        """One of "running", "closing", "closed"."""
        return "closed" if self._engine.closed else self._engine.status

    @property
    def scheduler_address(self) -> str:
        """Where it is, for people."""
        return self._engine.crew.address

    @property
    def workers(self) -> dict[Any, dict[str, Any]]:
        """The workers that can take tasks, by name."""
        if self._engine.closed:
            return {}
        described = self._reach().workers()
        return {one["name"]: {"address": address, **one} for address, one in described.items()}

    @property
    def dashboard_link(self) -> str:
        """Empty: there is no dashboard."""
        return ""

    def get_client(self) -> Client:
        """Return a new client of this cluster."""
        assert _registry.client_type is not None
        return _registry.client_type(self)

    def close(self, timeout: Duration = None) -> None:  # noqa: ARG002
        """End the workers; unfinished futures of all clients become cancelled. May be repeated."""
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        settings = self._engine.settings
        memory = format_bytes((settings.memory_limit or 0) * settings.n_workers)
        threads = settings.n_workers * settings.threads_per_worker
        shown = f"workers={settings.n_workers}, threads={threads}, memory={memory}"
        if self.status == "closed":
            shown = "closed"
        return f"LocalCluster({self.name}, {self.scheduler_address!r}, {shown})"


def format_bytes(size: float) -> str:
    """Write a number of bytes for people: 23.54 GiB."""
    for unit, factor in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("kiB", 2**10)):
        if size >= factor:
            return f"{size / factor:.2f} {unit}"
    return f"{int(size)} B"
