"""How each row is measured: one function for each measurement, the same for every peer.

Each function returns a `Reading`. Results are compared with what they must be, outside the time taken: a peer that
answers fast and wrong has no figure. Names and meanings of the rows stand in `_rows`.
"""

from __future__ import annotations

import gc
import importlib
import os
import subprocess
import sys
from dataclasses import dataclass, field
from multiprocessing.connection import Listener
from statistics import median
from time import perf_counter
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, cast

import psutil

from localdist.bench._peers import ChunkingPeer, FuturesPeer, Peer
from localdist.bench._rows import COUNTS, EXECUTOR, MEASUREMENTS, Sizes
from localdist.bench._work import (
    add,
    ends,
    ends_and_shared,
    hold,
    inc,
    keep_array,
    new_array,
    shared_memory,
    stamped_array,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["MEASURE", "Bench", "Reading", "WrongResultError", "warm_up"]

_MOST_SAMPLES = 5  # in one round; more would only lengthen the run, as noise comes in spells
_IMPORTS = 2  # processes in one round in which the import is timed, after one that fills the caches


class WrongResultError(Exception):
    """A peer returned something else than the task computes."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a measurement found.

    Attributes:
        samples: for each row its figures, in the row's unit.
        facts: for each row what else was seen, such as whether an array could be written into.
    """

    samples: dict[str, list[float]]
    facts: dict[str, dict[str, object]] = field(default_factory=dict)


@dataclass(slots=True)
class Bench:
    """What a measurement works with: the peer, how much to do, and numbers that no task has had yet."""

    peer: Peer
    sizes: Sizes
    workers: int
    _next: int = 1_000  # above the small integers that Python keeps, so that all tasks cost the same

    def fresh(self, count: int) -> range:
        """Return `count` integers that were not returned before, so that no peer can know a call already."""
        numbers = range(self._next, self._next + count)
        self._next += count
        return numbers

    def futures_peer(self) -> FuturesPeer:
        """Return the peer, for measurements that need futures.

        Raises:
            TypeError: it has none (`Peer.skips` should have said so).
        """
        if not isinstance(self.peer, FuturesPeer):
            raise TypeError(f"{self.peer.name} has no futures")
        return self.peer


def _check(got: object, expected: object) -> None:
    if got != expected:
        raise WrongResultError(f"a task returned {str(got)[:200]} instead of {str(expected)[:200]}")


def _samples(bench: Bench, once: Callable[[], float]) -> list[float]:
    """Call `once`, which returns a figure, until the budget of the sizes is spent."""
    figures: list[float] = []
    began = perf_counter()
    while not figures or (perf_counter() - began < bench.sizes.budget and len(figures) < _MOST_SAMPLES):
        gc.collect()
        figures.append(once())
    return figures


def warm_up(bench: Bench) -> None:
    """Run some small tasks, so that every worker is there and knows the function."""
    numbers = bench.fresh(50 * bench.workers)
    _check(bench.peer.submit_all(inc, [(i,) for i in numbers]), [i + 1 for i in numbers])


def _submit(bench: Bench) -> Reading:
    count = bench.sizes.submit

    def once() -> float:
        numbers = bench.fresh(count)
        calls = [(i,) for i in numbers]
        began = perf_counter()
        results = bench.peer.submit_all(inc, calls)
        seconds = perf_counter() - began
        _check(results, [i + 1 for i in numbers])
        return count / seconds

    return Reading({"submit": _samples(bench, once)}, {"submit": {"tasks": count}})


def _map(bench: Bench) -> Reading:
    count = bench.sizes.map

    def once() -> float:
        numbers = bench.fresh(count)
        began = perf_counter()
        results = bench.peer.map(inc, numbers)
        seconds = perf_counter() - began
        _check(results, [i + 1 for i in numbers])
        return count / seconds

    return Reading({"map": _samples(bench, once)}, {"map": {"tasks": count}})


def _chunks(bench: Bench) -> Reading:
    peer, count, chunksize = bench.peer, bench.sizes.chunks, bench.sizes.chunksize
    if not isinstance(peer, ChunkingPeer):  # `Peer.skips` should have said so
        raise TypeError(f"{peer.name} has no chunks")

    def once() -> float:
        numbers = bench.fresh(count)
        began = perf_counter()
        results = peer.map(inc, numbers, chunksize)
        seconds = perf_counter() - began
        _check(results, [i + 1 for i in numbers])
        return count / seconds

    return Reading({"chunks": _samples(bench, once)}, {"chunks": {"tasks": count, "chunksize": chunksize}})


def _roundtrip(bench: Bench) -> Reading:
    def once() -> float:
        times = []
        for i in bench.fresh(bench.sizes.roundtrip):
            began = perf_counter()
            result = bench.peer.call(inc, i)
            times.append(perf_counter() - began)
            _check(result, i + 1)
        return median(times) * 1e6

    return Reading({"roundtrip": _samples(bench, once)}, {"roundtrip": {"calls": bench.sizes.roundtrip}})


def _result(bench: Bench) -> Reading:
    nbytes = bench.sizes.nbytes
    touched: list[float] = []
    read: list[float] = []
    writeable = False
    warm = bench.sizes.warm_arrays
    # Many at once, as each takes long enough the first time that every worker gets one.
    tags = bench.fresh(4 * bench.workers)
    _check(bench.peer.submit_all(keep_array, [(nbytes, tag) for tag in tags]), list(tags))
    for number, stamp in enumerate(bench.fresh(warm + bench.sizes.arrays)):
        began = perf_counter()
        array = bench.peer.call(stamped_array, nbytes, stamp)
        first = float(array[0])
        writeable = bool(array.flags.writeable)
        if writeable:
            array[-1] += 0.0
        seconds = perf_counter() - began
        largest = float(array.max())
        seconds_read = perf_counter() - began
        _check((first, largest, array.nbytes), (float(stamp), float(max(stamp, nbytes // 8 - 1)), nbytes))
        del array
        if number >= warm:
            touched.append(nbytes / seconds / 1e9)
            read.append(nbytes / seconds_read / 1e9)
    return Reading({"result": touched, "result-read": read}, {"result": {"writeable": writeable, "bytes": nbytes}})


def _argument(bench: Bench) -> Reading:
    nbytes = bench.sizes.nbytes
    figures: list[float] = []
    writeable = False
    warm = bench.sizes.warm_arrays
    for number, stamp in enumerate(bench.fresh(warm + bench.sizes.arrays)):
        # A new object too: joblib knows an array that it has seen by its identity, and would send the old content.
        array = new_array(nbytes)
        array[0] = stamp
        began = perf_counter()
        first, last, tag, writeable = bench.peer.call(ends, array, stamp)
        seconds = perf_counter() - began
        _check((first, last, tag), (float(stamp), float(nbytes // 8 - 1), stamp))
        if number >= warm:
            figures.append(nbytes / seconds / 1e9)
    return Reading({"argument": figures}, {"argument": {"writeable": writeable, "bytes": nbytes}})


def _broadcast(bench: Bench) -> Reading:
    nbytes, count = bench.sizes.nbytes, bench.sizes.broadcast
    small = new_array(8_000)  # the workers import what the tasks need before anything is timed
    bench.peer.submit_all(ends_and_shared, [(small, tag) for tag in bench.fresh(10 * bench.workers)])
    stored: list[float] = []

    def once() -> float:
        array = new_array(nbytes)
        tags = bench.fresh(count)
        array[0] = tags[0]
        before = shared_memory()
        began = perf_counter()
        shared = bench.peer.share(array)
        results = bench.peer.submit_all(ends_and_shared, [(shared, tag) for tag in tags])
        seconds = perf_counter() - began
        if before is not None:
            # What the tasks saw, because a peer may have released everything by now.
            stored.append(max(0, *(seen - before for _, seen in results)) / nbytes)
        expected = [(float(tags[0]), float(nbytes // 8 - 1), tag) for tag in tags]
        _check([(first, last, tag) for (first, last, tag, _), _ in results], expected)
        return count * nbytes / seconds / 1e9

    facts: dict[str, object] = {"tasks": count, "bytes": nbytes}
    samples = {"broadcast": _samples(bench, once)}
    if stored:
        samples["broadcast-stored"] = stored
    return Reading(samples, dict.fromkeys(samples, facts))


def _chain(bench: Bench) -> Reading:
    peer, count = bench.futures_peer(), bench.sizes.chain

    def once() -> float:
        first = bench.fresh(2 * count)[0]  # the chain's values are taken too
        began = perf_counter()
        future = peer.submit(inc, first)
        for _ in range(count - 1):
            future = peer.submit(inc, future)
        results = peer.gather([future])
        seconds = perf_counter() - began
        _check(results, [first + count])
        return count / seconds

    return Reading({"chain": _samples(bench, once)}, {"chain": {"tasks": count}})


def _tree(bench: Bench) -> Reading:
    peer, count = bench.futures_peer(), bench.sizes.tree

    def once() -> float:
        numbers = bench.fresh((count + 1) // 2)
        began = perf_counter()
        level = [peer.submit(inc, i) for i in numbers]
        while len(level) > 1:
            level = [peer.submit(add, left, right) for left, right in zip(level[::2], level[1::2], strict=True)]
        results = peer.gather(level)
        seconds = perf_counter() - began
        _check(results, [sum(numbers) + len(numbers)])
        return count / seconds

    return Reading({"tree": _samples(bench, once)}, {"tree": {"tasks": count}})


def _start(bench: Bench) -> Reading:
    bench.peer.load()
    (number,) = bench.fresh(1)
    began = perf_counter()
    bench.peer.start(bench.workers)
    try:
        result = bench.peer.call(inc, number)
        seconds = perf_counter() - began
    finally:
        bench.peer.close()
    _check(result, number + 1)
    return Reading({"start": [seconds * 1e3]})


def _timed_import(statement: str) -> tuple[float, bool]:
    """Run an import in a new interpreter; return its time in milliseconds and whether it brought NumPy along."""
    program = (
        "import sys, time\nbegan = time.perf_counter()\n"
        f"{statement}\nprint((time.perf_counter() - began) * 1e3, int('numpy' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ImportError(f"{statement!r} failed: {done.stderr.strip()[-500:]}")
    time, numpy = done.stdout.split()
    return float(time), numpy == "1"


def _import(bench: Bench) -> Reading:
    reading = Reading({})
    for row, statement in (("import", f"import {bench.peer.module}"), ("import-use", bench.peer.use)):
        _timed_import(statement)
        timed = [_timed_import(statement) for _ in range(_IMPORTS)]
        reading.samples[row] = [time for time, _ in timed]
        reading.facts[row] = {"numpy_imported": any(numpy for _, numpy in timed)}
    return reading


def _own_memory() -> int:
    """Return the bytes that belong to this process alone."""
    gc.collect()
    return int(psutil.Process().memory_full_info().uss)


def _memory(bench: Bench, label: str) -> Reading:
    peer, count = bench.futures_peer(), COUNTS[label] // bench.sizes.shrink
    authkey = os.urandom(16)
    numbers = bench.fresh(count)
    with Listener(authkey=authkey) as listener:
        holding = [peer.submit(hold, listener.address, authkey, i) for i in bench.fresh(bench.workers)]
        connections = [listener.accept() for _ in holding]
        before = _own_memory()
        futures = [peer.submit(inc, i) for i in numbers]
        pending = _own_memory() - before
        for connection in connections:
            connection.close()
    # Only the first and last result are kept, so that what remains is what the peer keeps.
    results = peer.gather(futures)
    _check((len(results), results[0], results[-1]), (count, numbers[0] + 1, numbers[-1] + 1))
    del results
    finished = _own_memory() - before
    name = f"memory-{label}"
    samples = {f"{name}-pending": [pending / count], f"{name}-finished": [finished / count]}
    return Reading(samples, {row: {"tasks": count} for row in samples})


def _core(bench: Bench, label: str) -> Reading:
    count, workers = COUNTS[label] // bench.sizes.shrink, max(2, 1_000 // bench.sizes.shrink)
    module = importlib.import_module("localdist.bench._core")
    run = cast("Callable[[int, int], tuple[float, int]]", module.run)
    seconds, peak = run(workers, count)
    name = f"core-{label}"
    samples = {f"{name}-time": [seconds / count * 1e6], f"{name}-memory": [peak / count]}
    return Reading(samples, {row: {"tasks": count, "workers": workers} for row in samples})


def _with(label: str, measure: Callable[[Bench, str], Reading]) -> Callable[[Bench], Reading]:
    return lambda bench: measure(bench, label)


def _renamed(measure: Callable[[Bench], Reading]) -> Callable[[Bench], Reading]:
    """Return the measurement with the names of the rows in which localdist takes part with its `Executor`."""

    def renamed(bench: Bench) -> Reading:
        reading = measure(bench)
        return Reading(
            {EXECUTOR + row: samples for row, samples in reading.samples.items()},
            {EXECUTOR + row: facts for row, facts in reading.facts.items()},
        )

    return renamed


_WORK: Final[Mapping[str, Callable[[Bench], Reading]]] = MappingProxyType(
    {
        "submit": _submit,
        "map": _map,
        "chunks": _chunks,
        "roundtrip": _roundtrip,
        "result": _result,
        "argument": _argument,
        "broadcast": _broadcast,
        "chain": _chain,
        "tree": _tree,
        "start": _start,
        "import": _import,
        **{f"memory-{label}": _with(label, _memory) for label in COUNTS},
        **{f"core-{label}": _with(label, _core) for label in COUNTS},
    }
)

MEASURE: Final[Mapping[str, Callable[[Bench], Reading]]] = MappingProxyType(
    {name: _renamed(_WORK[m.work]) if m.executor else _WORK[name] for name, m in MEASUREMENTS.items()}
)
"""The function for each measurement of `_rows.MEASUREMENTS`."""
