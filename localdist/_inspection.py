"""The questions that a `Client` answers about itself, its workers and its tasks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ._cluster import format_bytes
from ._future import Future
from ._graph import futures_in

if TYPE_CHECKING:
    from ._cluster import LocalCluster
    from ._state import Entry
    from .abc import Transport


class Inspection:
    """Base of `Client`: all that only looks."""

    id: str
    cluster: LocalCluster
    _transport: Transport
    _entries: dict[Any, Entry]
    _closed: bool

    def _check_open(self) -> None:
        raise NotImplementedError

    @property
    def futures(self) -> dict[Any, str]:
        """Every key that this client holds, with its status."""
        return {key: entry.status for key, entry in list(self._entries.items())}

    @property
    def refcount(self) -> dict[Any, int]:
        """Every key that this client holds, with the number of its `Future` objects."""
        return {key: entry.handles for key, entry in list(self._entries.items())}

    @property
    def address(self) -> str:
        """Where the scheduler is."""
        return self._transport.address

    @property
    def dashboard_link(self) -> str:
        """Empty: there is no dashboard."""
        return ""

    def _addresses(self, workers: Any) -> list[str]:
        """Turn names or addresses of workers into addresses; None: all."""
        known = self._transport.workers()
        if workers is None:
            return list(known)
        wanted = {workers} if isinstance(workers, (str, int)) else set(workers)
        return [address for address, one in known.items() if address in wanted or one["name"] in wanted]

    def nthreads(self, workers: Iterable[str] | None = None) -> dict[str, int]:
        """Return how many tasks each worker runs at a time, by address."""
        self._check_open()
        known = self._transport.workers()
        return {address: known[address]["nthreads"] for address in self._addresses(workers)}

    ncores = nthreads

    def scheduler_info(self, n_workers: int = -1) -> dict[str, Any]:
        """Describe the scheduler and its workers.

        Args:
            n_workers: how many workers to list; -1: all.

        Returns:
            A dict with "type", "id", "address", "started" and "workers": address -> name, nthreads, memory_limit,
            resources, status, pid.
        """
        self._check_open()
        known = list(self._transport.workers().items())
        return {
            "type": "Scheduler",
            "id": self.cluster.name,
            "address": self.address,
            "started": self.cluster._engine.started,
            "workers": dict(known if n_workers < 0 else known[:n_workers]),
        }

    def processing(self, workers: Any = None) -> dict[str, tuple[Any, ...]]:
        """Return the keys that each worker has been given and has not finished, by address."""
        self._check_open()
        all_of_them = self._transport.inspect("processing")
        return {address: all_of_them.get(address, ()) for address in self._addresses(workers)}

    def story(self, *keys_or_futures: Any) -> list[str]:
        """Tell what the scheduler remembers of these keys, oldest first. The memory is bounded."""
        self._check_open()
        keys = [k.key if isinstance(k, Future) else k for k in keys_or_futures]
        return [str(line) for line in self._transport.inspect("story", *keys)]

    def who_has(self, futures: Any = None) -> dict[Any, tuple[str, ...]]:
        """Return where the results are, by key: in the store, which all workers reach; () while there is none."""
        self._check_open()
        keys = list(self._entries) if futures is None else [f.key for f in futures_in(futures, Future)]
        everywhere, status = tuple(self._transport.workers()), self.futures
        return {k: everywhere if status.get(k) == "finished" else () for k in keys}

    def __repr__(self) -> str:
        if self._closed:
            return "<Client: No scheduler connected>"
        settings = self.cluster._engine.settings
        limit = settings.memory_limit
        memory = f", memory={format_bytes(limit * settings.n_workers)}" if limit else ""
        threads = settings.n_workers * settings.threads_per_worker
        return f"<Client: {self.address!r} processes={settings.n_workers} threads={threads}{memory}>"

    __str__ = __repr__

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(repr(self))}</pre>"
