"""One adapter for each executor, so that the same measurement runs on all of them.

An adapter uses its peer the way that peer's documentation recommends for this kind of work, with its defaults
otherwise. Modules of peers are imported in `load`, never at import of this module: most users have few of them.
"""

from __future__ import annotations

import logging
import os
import sys
from abc import ABC, abstractmethod
from importlib import import_module, metadata
from importlib.util import find_spec
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = ["PEERS", "ChunkingPeer", "FuturesPeer", "Peer", "adapter"]

_NO_DEPENDENCIES = "takes no futures as arguments"
_NO_CHUNKS = "has no chunks of a given size"
# A peer that pickles arrays needs half a minute for fifty of 200 MB; fewer show the rate, and there is no warm state.
_COPIES = MappingProxyType({"broadcast": 5, "arrays": 3, "warm_arrays": 1})


class Peer(ABC):
    """An executor on this machine. Create, `load`, `start`, use from one thread, `close`.

    Attributes:
        name: how the table and `--peers` call it.
        module: the module that must exist, which is also what `import` measures.
        use: the statement that imports what a user needs.
        distribution: whose version is reported; None: it comes with Python.
        limits: sizes (see `_rows.Sizes`) beyond which this peer would take too long; its rate shows with fewer tasks.
        skips: measurements that do not fit, each with the reason.
        slow_start: True when starting takes seconds, so that it is timed once.
    """

    name: ClassVar[str]
    module: ClassVar[str]
    use: ClassVar[str]
    distribution: ClassVar[str | None] = None
    limits: ClassVar[Mapping[str, int]] = {}
    skips: ClassVar[Mapping[str, str]] = {}
    slow_start: ClassVar[bool] = False

    @classmethod
    def installed(cls) -> bool:
        """Say whether this peer can be imported, without importing it."""
        try:
            return find_spec(cls.module) is not None
        except ModuleNotFoundError:  # the package around a dotted name is missing
            return False

    @classmethod
    def version(cls) -> str:
        """Return the peer's version, or Python's when it is a part of Python."""
        if cls.distribution is None:
            return "Python " + sys.version.split()[0]
        try:
            return metadata.version(cls.distribution)
        except metadata.PackageNotFoundError:
            return "source"

    @abstractmethod
    def load(self) -> None:
        """Import the peer."""

    @abstractmethod
    def start(self, workers: int) -> None:
        """Start `workers` worker processes that run one task at a time each."""

    @abstractmethod
    def close(self) -> None:
        """End the workers."""

    @abstractmethod
    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run one task and return its result."""

    @abstractmethod
    def submit_all(self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Run one task for each tuple of arguments, submitted one by one where the peer can, and return all results."""

    @abstractmethod
    def map(self, function: Callable[..., Any], values: Iterable[Any]) -> list[Any]:
        """Run one task for each value with what the peer offers for many, and return all results."""

    def share(self, value: Any) -> Any:
        """Return what to pass to many tasks instead of `value`, where the peer has something for that."""
        return value


class FuturesPeer(Peer):
    """A peer that returns something at once which stands for the result."""

    @abstractmethod
    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        """Start one task and return its future; futures among `args` are fine unless `skips` names `chain`."""

    @abstractmethod
    def gather(self, futures: Sequence[Any]) -> list[Any]:
        """Wait for all `futures` and return their results."""

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.gather([self.submit(function, *args)])[0]

    def submit_all(self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        return self.gather([self.submit(function, *args) for args in calls])


class ChunkingPeer(FuturesPeer):
    """A pool: it can send many calls to a worker at once, and takes no futures as arguments."""

    skips: ClassVar[Mapping[str, str]] = {"chain": _NO_DEPENDENCIES, "tree": _NO_DEPENDENCIES}

    @abstractmethod
    def map(self, function: Callable[..., Any], values: Iterable[Any], chunksize: int = 1) -> list[Any]:
        """Run one call for each value, `chunksize` of them in one task, and return all results."""


class Localdist(FuturesPeer):
    """This project. Arguments of the tasks are all different, so that pure calls share nothing."""

    name = "localdist"
    module = "localdist"
    use = "from localdist import Client"
    distribution = "localdist"

    @classmethod
    def installed(cls) -> bool:
        return True  # this module is a part of it

    def load(self) -> None:
        self._new = import_module("localdist").Client

    def start(self, workers: int) -> None:
        self._client = self._new(n_workers=workers, threads_per_worker=1)

    def close(self) -> None:
        self._client.close()

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        return self._client.submit(function, *args)

    def gather(self, futures: Sequence[Any]) -> list[Any]:
        results: list[Any] = self._client.gather(futures)
        return results

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return self._client.submit(function, *args).result()

    def map(self, function: Callable[..., Any], values: Iterable[Any]) -> list[Any]:
        return self.gather(self._client.map(function, values))


class _ExecutorPeer(ChunkingPeer):
    """A `concurrent.futures.Executor`, made by `load` as `_new`."""

    _new: Callable[..., Any]
    _executor: Any

    def start(self, workers: int) -> None:
        self._executor = self._new(workers)

    def close(self) -> None:
        self._executor.shutdown(wait=True)

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        return self._executor.submit(function, *args)

    def gather(self, futures: Sequence[Any]) -> list[Any]:
        return [future.result() for future in futures]

    def map(self, function: Callable[..., Any], values: Iterable[Any], chunksize: int = 1) -> list[Any]:
        return list(self._executor.map(function, values, chunksize=chunksize))


class LocaldistExecutor(_ExecutorPeer):
    """This project's drop-in for the standard library's pool: stands for localdist in the rows `executor-...`."""

    name = "localdist"
    module = "localdist"
    use = "from localdist import Executor"
    distribution = "localdist"

    def load(self) -> None:
        self._new = import_module("localdist").Executor


class Stdlib(_ExecutorPeer):
    """The standard library's `ProcessPoolExecutor`, with the platform's default way of starting processes."""

    name = "stdlib"
    module = "concurrent.futures"
    use = "from concurrent.futures import ProcessPoolExecutor"
    limits: ClassVar[Mapping[str, int]] = {**_COPIES, "map": 20_000}

    def load(self) -> None:
        self._new = import_module("concurrent.futures").ProcessPoolExecutor


class Loky(_ExecutorPeer):
    """loky's reusable executor: what its users get, and what localdist's workers are made of."""

    name = "loky"
    module = "loky"
    use = "from loky import get_reusable_executor"
    distribution = "loky"
    limits: ClassVar[Mapping[str, int]] = {**_COPIES, "map": 20_000}

    def load(self) -> None:
        self._new = import_module("loky").get_reusable_executor

    def start(self, workers: int) -> None:
        self._executor = self._new(max_workers=workers)


class MultiprocessingPool(ChunkingPeer):
    """`multiprocessing.Pool`, with the platform's default way of starting processes."""

    name = "mp.Pool"
    module = "multiprocessing.pool"
    use = "from multiprocessing import Pool; import multiprocessing.pool"
    limits: ClassVar[Mapping[str, int]] = _COPIES

    def load(self) -> None:
        self._new = import_module("multiprocessing.pool").Pool

    def start(self, workers: int) -> None:
        self._pool = self._new(workers)

    def close(self) -> None:
        self._pool.close()
        self._pool.join()

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        return self._pool.apply_async(function, args)

    def gather(self, futures: Sequence[Any]) -> list[Any]:
        return [future.get() for future in futures]

    def map(self, function: Callable[..., Any], values: Iterable[Any], chunksize: int = 1) -> list[Any]:
        results: list[Any] = self._pool.map(function, values, chunksize=chunksize)
        return results


class Joblib(Peer):
    """`joblib.Parallel` with its default backend, kept open; it has no futures, so it joins where none are needed."""

    name = "joblib"
    module = "joblib"
    use = "from joblib import Parallel, delayed"
    distribution = "joblib"
    limits: ClassVar[Mapping[str, int]] = {"map": 20_000, "roundtrip": 200, "arrays": 3, "warm_arrays": 3}
    skips: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("submit", "chain", "tree", "memory-10k", "memory-100k", "memory-1m"), "has no futures"),
        "executor-chunks": "sizes its batches itself",
    }

    def load(self) -> None:
        self._joblib = import_module("joblib")

    def start(self, workers: int) -> None:
        self._parallel = self._joblib.Parallel(n_jobs=workers).__enter__()

    def close(self) -> None:
        self._parallel.__exit__(None, None, None)
        import_module("joblib.externals.loky").get_reusable_executor().shutdown(wait=True)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.submit_all(function, [args])[0]

    def submit_all(self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        results: list[Any] = self._parallel(self._joblib.delayed(function)(*args) for args in calls)
        return results

    def map(self, function: Callable[..., Any], values: Iterable[Any]) -> list[Any]:
        return self.submit_all(function, [(value,) for value in values])


class DaskDistributed(FuturesPeer):
    """dask.distributed on a `LocalCluster` without dashboard; arguments differ, so pure calls share nothing."""

    name = "dask"
    module = "distributed"
    use = "from distributed import Client, LocalCluster"
    distribution = "distributed"
    limits: ClassVar[Mapping[str, int]] = {
        "submit": 1_000,
        "map": 1_000,
        "roundtrip": 200,
        "chain": 100,
        "tree": 511,
    }
    skips: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("memory-100k", "memory-1m"), "takes minutes"),
        "executor-chunks": _NO_CHUNKS,
    }

    def load(self) -> None:
        self._distributed = import_module("distributed")

    def start(self, workers: int) -> None:
        self._cluster = self._distributed.LocalCluster(
            n_workers=workers, threads_per_worker=1, dashboard_address=None, silence_logs=logging.ERROR
        )
        self._client = self._distributed.Client(self._cluster)

    def close(self) -> None:
        self._client.close()
        self._cluster.close()

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        return self._client.submit(function, *args)

    def gather(self, futures: Sequence[Any]) -> list[Any]:
        results: list[Any] = self._client.gather(futures)
        return results

    def map(self, function: Callable[..., Any], values: Iterable[Any]) -> list[Any]:
        return self.gather(self._client.map(function, values))

    def share(self, value: Any) -> Any:
        return self._client.scatter(value)


class Ray(FuturesPeer):
    """ray, on this machine alone, without dashboard."""

    name = "ray"
    module = "ray"
    use = "import ray"
    distribution = "ray"
    limits: ClassVar[Mapping[str, int]] = {"map": 5_000}
    skips: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("memory-100k", "memory-1m"), "takes minutes"),
        "executor-chunks": _NO_CHUNKS,
    }
    slow_start = True

    def load(self) -> None:
        # A benchmark sends nothing to anybody, and these two only spare messages about it.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        self._ray = import_module("ray")
        self._remote: dict[Callable[..., Any], Any] = {}

    def start(self, workers: int) -> None:
        self._ray.init(
            address="local", num_cpus=workers, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False
        )

    def close(self) -> None:
        self._ray.shutdown()

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        if function not in self._remote:
            self._remote[function] = self._ray.remote(function)
        return self._remote[function].remote(*args)

    def gather(self, futures: Sequence[Any]) -> list[Any]:
        results: list[Any] = self._ray.get(list(futures))
        return results

    def map(self, function: Callable[..., Any], values: Iterable[Any]) -> list[Any]:
        return self.submit_all(function, [(value,) for value in values])

    def share(self, value: Any) -> Any:
        return self._ray.put(value)


_ALL: tuple[type[Peer], ...] = (Localdist, Stdlib, MultiprocessingPool, Loky, Joblib, DaskDistributed, Ray)

PEERS: Final[Mapping[str, type[Peer]]] = MappingProxyType({peer.name: peer for peer in _ALL})
"""All peers by name, localdist first."""


def adapter(name: str, *, executor: bool) -> type[Peer]:
    """Return the adapter of the peer `name`; with `executor`, localdist's is the one for its `Executor`."""
    return LocaldistExecutor if executor and name == LocaldistExecutor.name else PEERS[name]
