"""`Client(processes=False)`: the same interface, in threads of this process, nothing copied."""

from __future__ import annotations

import collections
import os
import threading
import traceback
from typing import Any

import pytest

from localdist import Client, as_completed, get_worker, wait
from tests.support import Gate, add, div, echo, eventually, identity, inc, note, notes, wait_at


def test_one_worker_with_all_cores_by_default() -> None:
    """Without numbers there is one worker with a thread for each core."""
    import loky

    with Client(processes=False) as client:
        assert list(client.nthreads().values()) == [loky.cpu_count()]


def test_tasks_run_in_this_process(threads: Client) -> None:
    """A task runs here, in another thread."""
    number, ident = threads.submit(lambda: (os.getpid(), threading.get_ident())).result()
    assert number == os.getpid()
    assert ident != threading.get_ident()


def test_nothing_is_copied(threads: Client) -> None:
    """Arguments, results and scattered data are the caller's own objects."""
    argument = [1]
    future = threads.submit(identity, argument)
    assert future.result() is argument
    assert future.result() is future.result()
    assert future.type is list
    data = {"x": object()}
    assert threads.scatter([data])[0].result() is data
    assert threads.submit(identity, threads.scatter([data], hash=False)[0]).result() is data
    assert threads.map(identity, [argument], pure=False)[0].result() is argument


def test_nothing_has_to_be_picklable(threads: Client) -> None:
    """Locks, generators, open files and local functions are arguments and results like others."""
    lock = threading.Lock()
    assert threads.submit(lambda x: x, lock).result() is lock
    assert list(threads.submit(lambda: (i for i in range(3))).result()) == [0, 1, 2]
    assert threads.submit(identity, lock).key != threads.submit(identity, lock).key, "it cannot be named, so not shared"


def test_the_rest_is_the_same(threads: Client, tmp_path: Any) -> None:
    """Sharing, dependencies, nesting, map, errors and waiting work as with processes."""
    path = str(tmp_path / "runs")
    assert threads.gather([threads.submit(note, path, "x"), threads.submit(note, path, "x")]) == ["x", "x"]
    assert notes(path) == ["x"]
    x = threads.submit(inc, 0)
    args, kwargs = threads.submit(echo, [x, (x, {"k": x})], w={x}).result()
    assert (args, kwargs) == (([1, (1, {"k": 1})],), {"w": {1}})
    assert threads.gather(threads.map(add, range(100), range(100))) == [2 * i for i in range(100)]
    assert {f.result() for f in as_completed(threads.map(inc, range(10)))} == set(range(1, 11))
    bad = threads.submit(div, x, 0)
    dependent = threads.submit(inc, bad)
    assert wait([bad, dependent]).done == {bad, dependent}
    with pytest.raises(ZeroDivisionError):
        dependent.result()
    assert [f.name for f in traceback.extract_tb(bad.traceback())] == ["div"]


def test_futures_elsewhere_stay_usable_futures(threads: Client) -> None:
    """A future inside another object arrives as itself."""
    x = threads.submit(inc, 0)
    (seen,) = threads.submit(identity, collections.deque([x])).result()
    assert seen is x


def test_exit_is_the_tasks_own(threads: Client) -> None:
    """SystemExit ends neither the thread nor the client."""
    with pytest.raises(SystemExit):
        threads.submit(exit_now).result()
    assert threads.gather(threads.map(inc, range(10))) == list(range(1, 11))


def exit_now() -> None:
    raise SystemExit(3)


def test_get_worker_in_threads(threads: Client) -> None:
    """Each worker is an object of its own, with its name, and knows the key that runs."""
    future = threads.submit(lambda: (get_worker().name, get_worker().get_current_task()), workers=[1], pure=False)
    assert future.result() == (1, future.key)


def test_run_in_threads(threads: Client) -> None:
    """`run` calls once for each worker; errors are raised."""
    assert set(threads.run(lambda dask_worker: dask_worker.name).values()) == {0, 1}  # type: ignore[union-attr]
    assert threads.run(inc, 1, wait=False) is None
    with pytest.raises(ZeroDivisionError):
        threads.run(div, 1, 0)


def test_long_tasks_hold_up_nobody(gate: Gate) -> None:
    """Quick tasks that stand behind a long one are run by the other worker."""
    with Client(processes=False, n_workers=2, threads_per_worker=1) as client:
        blocker = client.submit(wait_at, gate.address)
        gate.wait_for()
        assert client.gather(client.map(inc, range(500))) == list(range(1, 501))
        gate.open()
        blocker.result()


def test_closing_with_a_task_that_runs(gate: Gate) -> None:
    """`close` gives a running task half a second and returns; its thread ends when the task does."""
    client = Client(processes=False, n_workers=1, threads_per_worker=2)
    future = client.submit(wait_at, gate.address)
    gate.wait_for()
    client.close()
    assert future.status == "cancelled"
    gate.open()


def test_dropped_values_are_let_go(threads: Client) -> None:
    """With its last future a value is forgotten, and so is the task."""
    future = threads.submit(inc, 1, key="dropped")
    future.result()
    del future
    eventually(threads, lambda: "dropped" not in threads.cluster._engine.core.tasks)
    assert "dropped" not in threads.futures
