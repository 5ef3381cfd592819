"""What a crash costs in `localdist.Executor`: the call that was running, never another one, never the executor."""

from __future__ import annotations

import concurrent.futures as cf
import contextlib
import functools
import gc
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest

import localdist
from localdist import Executor
from localdist.errors import DeserializationError, KilledWorker, SerializationError
from tests.executor_tasks import (
    CrashOnPickle,
    CrashOnUnpickle,
    crash,
    crash_at,
    crash_first,
    crash_if,
    crash_in_a_thread,
    fail_later,
    make_crash_on_pickle,
    make_crash_on_unpickle,
    make_large_and_crash,
    stubborn,
)
from tests.support import Gate, identity, inc, note, notes, pid, still_running, wait_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and exit codes are POSIX's")

ROOT = str(Path(localdist.__file__).parent.parent)
LONG = 30  # seconds: the longest wait for what takes a fraction of one
MB = 1024 * 1024


DEATHS = {"os._exit": 3, "segfault": -signal.SIGSEGV, "kill": -signal.SIGKILL}
STAGES: dict[str, Callable[[Any, str], Any]] = {
    "unpickling the call": lambda e, how: e.submit(identity, CrashOnUnpickle(how, os.getpid())),
    "running": lambda e, how: e.submit(crash, how),
    "in a thread of the call": lambda e, how: e.submit(crash_in_a_thread, how),
    "pickling the result": lambda e, how: e.submit(make_crash_on_pickle, how),
    "writing a large result": lambda e, how: e.submit(make_large_and_crash, how),
    "a call of map": lambda e, how: Mapped(e.map(crash_if, [how] * 9, [0] * 9, range(9), chunksize=3)),
}


class Mapped:
    """The first result of a map, as a future would show it."""

    def __init__(self, results: Iterator[Any]) -> None:
        self._results = results

    def exception(self, timeout: float) -> BaseException | None:
        try:
            next(self._results)
        except BrokenProcessPool as error:
            return error
        return None


def check_death(error: BaseException | None, how: str) -> None:
    """Check the error's types, and that it tells which process ended, and how."""
    assert isinstance(error, BrokenProcessPool)
    assert isinstance(error, KilledWorker)
    assert error.exitcode == DEATHS[how]
    assert error.pid is not None
    assert not still_running([error.pid], 5)
    assert str(error.pid) in str(error)
    assert ("exited with code 3" if how == "os._exit" else signal.Signals(-DEATHS[how]).name) in str(error)


def check_usable(executor: Any, workers: int = 2) -> None:
    """Check that the executor runs so many calls at once, and not more workers than that."""
    assert not executor._broken
    gate = Gate()
    held = [executor.submit(wait_at, gate.address, i) for i in range(workers)]
    gate.wait_for(workers)
    gate.open()
    gate.close()
    assert [f.result(LONG) for f in held] == list(range(workers))
    assert list(executor.map(inc, range(50), chunksize=5)) == list(range(1, 51))
    assert len(executor._processes) <= workers


def submitting(executor: Any) -> Iterator[Any]:
    """Submit calls until that is refused, or the time is over."""
    deadline = time.monotonic() + LONG
    while time.monotonic() < deadline:
        yield executor.submit(inc, 1)


@pytest.fixture
def executor() -> Iterator[Executor]:
    """Give an executor of two workers which a test may kill."""
    with Executor(max_workers=2) as executor:
        yield executor


# -- the matrix: stage x way to end


@pytest.mark.parametrize("how", DEATHS)
@pytest.mark.parametrize("stage", STAGES)
def test_a_death_costs_the_call(executor: Executor, stage: str, how: str) -> None:
    """The call fails with an error that says who died and how; what is queued around it completes; all goes on."""
    before = [executor.submit(inc, i) for i in range(50)]
    bad = STAGES[stage](executor, how)
    after = [executor.submit(inc, i) for i in range(50)]
    large = executor.submit(np.full, MB, 5)
    check_death(bad.exception(LONG), how)
    assert [f.result(LONG) for f in before + after] == [*range(1, 51)] * 2
    assert (large.result(LONG) == 5).all()
    check_usable(executor)


@pytest.mark.parametrize("how", ["raise", "sys.exit"])
@pytest.mark.parametrize("stage", ["unpickling the call", "pickling the result", "writing a large result"])
def test_an_error_on_the_way_costs_the_call(executor: Executor, stage: str, how: str) -> None:
    """What pickling or unpickling raises in a worker fails the future alone, and the worker lives on."""
    pids = {executor.submit(pid).result(LONG)}
    futures = [executor.submit(inc, i) for i in range(50)]
    bad = STAGES[stage](executor, how)
    futures += [executor.submit(inc, i) for i in range(50)]
    error = bad.exception(LONG)
    if how == "raise" and stage == "unpickling the call":
        assert isinstance(error, DeserializationError)
        assert isinstance(error, BrokenProcessPool)
    elif how == "raise":
        assert isinstance(error, SerializationError)
    else:
        assert isinstance(error, (SystemExit, BrokenProcessPool, SerializationError))
    assert how == "sys.exit" or "on purpose" in str(error)
    assert [f.result(LONG) for f in futures] == [*range(1, 51)] * 2
    assert pids <= set(executor._processes)


def test_a_result_that_cannot_be_rebuilt_here(executor: Executor) -> None:
    """It fails its own future, for all who ask, with an error that is a BrokenProcessPool; others complete."""
    futures = [executor.submit(inc, i) for i in range(20)]
    bad = executor.submit(make_crash_on_unpickle, "raise")
    futures += [executor.submit(inc, i) for i in range(20)]
    for _ in range(2):
        error = bad.exception(LONG)
        assert isinstance(error, DeserializationError)
        assert isinstance(error, BrokenProcessPool)
        with pytest.raises(DeserializationError, match="on purpose"):
            bad.result(LONG)
    assert bad.done()
    assert cf.wait([bad], LONG).done == {bad}
    assert [f.result(LONG) for f in futures] == [*range(1, 21)] * 2
    check_usable(executor)


def test_an_error_while_pickling_the_call(executor: Executor) -> None:
    """It fails the future, not `submit`, with what was raised in its text."""
    bad = executor.submit(identity, CrashOnPickle("raise"))
    error = bad.exception(LONG)
    assert isinstance(error, SerializationError)
    assert "on purpose" in str(error)
    check_usable(executor)


# -- deaths from outside, of workers in any state


def kill(pids: Any) -> None:
    for one in list(pids):
        with contextlib.suppress(ProcessLookupError):  # it has just ended, and was waited for
            os.kill(one, signal.SIGKILL)


def wait_until_noticed(executor: Any, pids: Any) -> None:
    """Wait until the executor has noticed that these workers are dead: no call can be handed to one of them any more."""
    deadline = time.monotonic() + LONG
    while set(executor._processes) & set(pids):
        assert time.monotonic() < deadline


def test_an_idle_worker_that_dies_is_not_missed(executor: Executor) -> None:
    """All idle workers die, at once or one after the other: no future fails, before or after."""
    done = executor.submit(inc, 1)
    check_usable(executor)
    for _ in range(3):
        pids = list(executor._processes)
        kill(pids)
        futures = [executor.submit(inc, i) for i in range(50)]
        errors = [f.exception(LONG) for f in futures]
        # A call may have been handed to a worker that was dead already; then it was running there, as far as is known.
        assert all(error is None or isinstance(error, KilledWorker) for error in errors)
        assert sum(error is not None for error in errors) <= 2
        wait_until_noticed(executor, pids)
        check_usable(executor)
    assert done.result() == 2


def test_an_idle_worker_that_has_died_is_replaced(executor: Executor) -> None:
    """When the death of idle workers has been noticed, no call fails any more."""
    check_usable(executor)
    old = list(executor._processes)
    kill(old)
    wait_until_noticed(executor, old)
    assert [f.result(LONG) for f in [executor.submit(inc, i) for i in range(50)]] == list(range(1, 51))
    check_usable(executor)


@pytest.mark.parametrize("spin", [0.0, 0.01, 0.02, 0.04, 0.06, 0.1])
def test_a_worker_that_dies_while_it_starts(spin: float) -> None:
    """At whatever moment of its start: at most the call it was given fails, and all others complete."""
    with Executor(max_workers=1) as executor:
        futures = [executor.submit(inc, i) for i in range(20)]
        deadline = time.monotonic() + LONG
        while not executor._processes:
            assert time.monotonic() < deadline
        moment = time.monotonic() + spin
        while time.monotonic() < moment:
            continue
        pids = list(executor._processes)
        kill(pids)
        errors = [f.exception(LONG) for f in futures]
        assert all(error is None or isinstance(error, BrokenProcessPool) for error in errors)
        assert sum(error is not None for error in errors) <= 1
        wait_until_noticed(executor, pids)
        check_usable(executor, 1)


def test_a_worker_that_is_killed_in_its_initializer(tmp_path: Path) -> None:
    """It was running no call: another one starts, and no future fails."""
    log = str(tmp_path / "log")
    with Executor(max_workers=1, initializer=crash_first, initargs=(log, "kill", 1)) as executor:
        assert [f.result(LONG) for f in [executor.submit(inc, i) for i in range(20)]] == list(range(1, 21))
        assert len(notes(log)) == 2


@pytest.mark.parametrize("how", DEATHS)
def test_an_initializer_that_always_dies(tmp_path: Path, how: str) -> None:
    """All futures fail with a BrokenProcessPool that tells how the workers ended, and so does what comes later."""
    log = str(tmp_path / "log")
    with Executor(max_workers=2, initializer=crash_first, initargs=(log, how, 1000)) as executor:
        futures = [executor.submit(inc, i) for i in range(20)]
        for future in futures:
            error = future.exception(LONG)
            assert isinstance(error, BrokenProcessPool)
            texts = f"{error} {error.__cause__}"
            assert ("exited with code 3" if how == "os._exit" else signal.Signals(-DEATHS[how]).name) in texts
        with pytest.raises(BrokenProcessPool):
            executor.submit(inc, 1).result(LONG)
    assert len(notes(log)) < 20


def test_an_initializer_that_fails_in_a_replacement(tmp_path: Path) -> None:
    """When only a replacement's initializer fails, what is pending fails with its exception, and nothing hangs."""
    log = str(tmp_path / "log")

    with Executor(max_workers=1, initializer=fail_later, initargs=(log,)) as executor:
        done = executor.submit(np.ones, MB)
        cf.wait([done], LONG)
        bad = executor.submit(os._exit, 3)
        rest: list[Any] = []
        with pytest.raises(BrokenProcessPool) as refused:
            rest.extend(submitting(executor))
        assert "the second one" in f"{refused.value} {refused.value.__cause__!r}"
        assert isinstance(bad.exception(LONG), BrokenProcessPool)
        assert all(isinstance(f.exception(LONG), BrokenProcessPool) for f in rest)
        assert done.result().all()


def test_several_workers_that_die_together() -> None:
    """Four workers killed at one time cost the four calls that they were running; the rest completes."""
    with Executor(max_workers=4) as executor:
        gate = Gate()
        running = [executor.submit(wait_at, gate.address) for _ in range(4)]
        gate.wait_for(4)
        rest = [executor.submit(inc, i) for i in range(100)]
        pids = set(executor._processes)
        kill(pids)
        errors: list[Any] = [f.exception(LONG) for f in running]
        assert {error.pid for error in errors} == pids
        assert [f.result(LONG) for f in rest] == list(range(1, 101))
        gate.close()
        check_usable(executor, 4)


def test_results_outlive_their_workers(executor: Executor) -> None:
    """Finished results, small and large, are there after their workers have died, and are not computed again."""
    small: Any = executor.submit(pid)
    large: Any = executor.submit(np.full, 4 * MB, 3)
    assert cf.wait([small, large], LONG).not_done == set()
    pids = list(executor._processes)
    kill(pids)
    wait_until_noticed(executor, pids)
    check_usable(executor)
    assert small.result() in pids
    assert (large.result() == 3).all()
    assert executor.submit(len, large.result()).result(LONG) == 4 * MB


@pytest.mark.slow
def test_large_results_against_kills() -> None:
    """Workers killed again and again while they write large results: each future has all of its result, or the error."""
    chance = random.Random(7)
    with Executor(max_workers=2) as executor:
        killed = 0
        for round_ in range(4):
            futures: list[Any] = [executor.submit(np.full, 2 * MB, 10 * round_ + i) for i in range(10)]
            next(cf.as_completed(futures, LONG))
            moment = time.monotonic() + chance.uniform(0, 0.03)
            while time.monotonic() < moment:
                continue
            pids = list(executor._processes)
            killed += len(pids)
            kill(pids)
            for i, future in enumerate(futures):
                error = future.exception(LONG)
                if error is None:
                    assert (future.result() == 10 * round_ + i).all()
                else:
                    assert isinstance(error, KilledWorker)
        assert killed
        wait_until_noticed(executor, pids)
        check_usable(executor)


@pytest.mark.slow
def test_deaths_one_after_the_other(executor: Executor) -> None:
    """However often workers die, each death costs one call, and the executor does not give up."""
    futures = [executor.submit(crash if i % 4 == 0 else identity, "os._exit") for i in range(24)]
    for i, future in enumerate(futures):
        if i % 4:
            assert future.result(LONG) == "os._exit"
        else:
            check_death(future.exception(LONG), "os._exit")
    check_usable(executor)


def test_a_death_in_the_middle_of_a_map(executor: Executor) -> None:
    """The chunks before it are yielded, then its error comes; other maps and calls are not touched."""
    other = executor.map(inc, range(100), chunksize=3)
    results = executor.map(crash_if, ["kill"] * 20, [9] * 20, range(20), chunksize=4)
    assert [next(results) for _ in range(8)] == list(range(8))
    with pytest.raises(KilledWorker):
        list(results)
    assert list(other) == list(range(1, 101))
    buffered = executor.map(crash_if, itertools.repeat("kill"), itertools.repeat(5), itertools.count(), buffersize=3)
    assert [next(buffered) for _ in range(5)] == list(range(5))
    with pytest.raises(KilledWorker):
        next(buffered)
    check_usable(executor)


@pytest.mark.parametrize("how", DEATHS)
def test_retries_after_deaths(tmp_path: Path, how: str) -> None:
    """With `retries` the call is made again in another worker, so often and not more often."""
    few, many = str(tmp_path / "few"), str(tmp_path / "many")
    with Executor(max_workers=1, retries=2) as executor:
        assert executor.submit(crash_first, few, how, 2).result(LONG) == 3
        assert len(set(notes(few))) == 3
        check_death(executor.submit(crash_first, many, how, 9).exception(LONG), how)
        assert len(set(notes(many))) == 3
        check_usable(executor, 1)


def test_a_death_and_the_limit_of_calls() -> None:
    """Deaths and `max_tasks_per_child` together: each call is made, or fails for its own death."""
    with Executor(max_workers=2, max_tasks_per_child=2) as executor:
        futures = [executor.submit(crash_if, "kill", 3, i % 5) for i in range(10)]
        for i, future in enumerate(futures):
            if i % 5 == 3:
                check_death(future.exception(LONG), "kill")
            else:
                assert future.result(LONG) == i % 5


# -- callbacks, cancelling, waiting


def test_callbacks_of_a_death(executor: Executor) -> None:
    """The callback of a call whose worker died hears of it, and may submit the next call, which may die as well."""
    seen: list[Any] = []
    done = threading.Event()

    def again(future: Any) -> None:
        seen.append(future.exception())
        if len(seen) < 4:
            executor.submit(crash, "kill").add_done_callback(again)
        else:
            executor.submit(inc, 1).add_done_callback(finish)

    def finish(future: Any) -> None:
        seen.append(future.result())
        done.set()

    executor.submit(crash, "kill").add_done_callback(again)
    assert done.wait(LONG)
    for error in seen[:4]:
        check_death(error, "kill")
    assert seen[4:] == [2]


def test_a_callback_that_kills_workers(executor: Executor) -> None:
    """Killing all workers in a callback costs at most what they are running."""
    futures = [executor.submit(inc, i) for i in range(100)]

    struck: list[int] = []
    done = threading.Event()

    def strike(_: Any) -> None:
        struck.extend(executor._processes)
        kill(struck)
        done.set()

    futures[10].add_done_callback(strike)
    errors = [f.exception(LONG) for f in futures]
    assert all(error is None or isinstance(error, KilledWorker) for error in errors)
    assert sum(error is not None for error in errors) <= 2
    assert done.wait(LONG)
    wait_until_noticed(executor, struck)
    check_usable(executor)


def test_waiting_hears_of_deaths(executor: Executor) -> None:
    """`wait`, `as_completed` and `result` in other threads are woken by a death."""
    gate = Gate()
    bad: Any = executor.submit(crash_at, gate.address, "kill")
    gate.wait_for()
    told: list[Any] = []
    waits: list[Callable[[], Any]] = [
        lambda: told.append(len(cf.wait([bad], LONG, cf.FIRST_EXCEPTION).done)),
        lambda: told.append(len([*cf.as_completed([bad], LONG)])),
        lambda: told.append(isinstance(bad.exception(LONG), KilledWorker)),
    ]
    threads = [threading.Thread(target=wait) for wait in waits]
    for thread in threads:
        thread.start()
    gate.open()
    for thread in threads:
        thread.join(LONG)
    assert told == [1, 1, 1]
    gate.close()


def test_cancelled_calls_stay_cancelled_in_a_death() -> None:
    """What was cancelled behind the call that dies stays so, and what was not runs."""
    gate = Gate()
    with Executor(max_workers=1) as executor:
        bad = executor.submit(crash_at, gate.address, "kill")
        gate.wait_for()
        futures = [executor.submit(inc, i) for i in range(2000)]  # more than are handed over at once
        cancelled = [f.cancel() for f in futures[20:]]
        assert cancelled[-1]
        gate.open()
        check_death(bad.exception(LONG), "kill")
        assert not bad.cancel()
        assert [f.cancelled() for f in futures] == [False] * 20 + cancelled
        assert [f.result(LONG) for f in futures[:20]] == list(range(1, 21))
        assert all(f.cancelled() or f.result(LONG) == i + 1 for i, f in enumerate(futures))
    gate.close()


@pytest.mark.slow
def test_deaths_against_many_threads(executor: Executor) -> None:
    """Threads whose calls die beside threads whose calls do not: each gets what is its own."""
    wrong: list[Any] = []

    def good(number: int) -> None:
        for i in range(100):
            value = executor.submit(inc, number + i).result(LONG)
            if value != number + i + 1:
                wrong.append((number, i, value))

    def bad(number: int) -> None:
        for _ in range(4):
            error = executor.submit(crash, "kill").exception(LONG)
            if not isinstance(error, KilledWorker):
                wrong.append((number, error))

    threads = [threading.Thread(target=bad if i % 3 == 0 else good, args=(1000 * i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    check_usable(executor)


# -- deaths at the end


@pytest.mark.parametrize(
    ("end", "how"),
    [*itertools.product(["wait", "drop"], DEATHS), ("no wait", "kill"), ("cancel", "os._exit"), ("with", "kill")],
)
def test_a_death_at_the_end(end: str, how: str) -> None:
    """While the executor is shut down, left or collected a worker dies: all other calls are made all the same."""
    gate = Gate()
    executor = Executor(max_workers=1)
    bad = executor.submit(crash_at, gate.address, how)
    gate.wait_for()
    rest = [executor.submit(inc, i) for i in range(30)]
    ends: dict[str, Callable[[], Any]] = {
        "wait": executor.shutdown,
        "no wait": functools.partial(executor.shutdown, wait=False),
        "cancel": functools.partial(executor.shutdown, cancel_futures=True),
        "with": functools.partial(executor.__exit__, None, None, None),
        "drop": int,
    }
    closing = threading.Thread(target=ends[end])
    del ends, executor
    closing.start()
    if end == "drop":
        gc.collect()
    gate.open()
    closing.join(LONG)
    assert not closing.is_alive()
    check_death(bad.exception(LONG), how)
    if end == "cancel":
        assert cf.wait(rest, LONG).not_done == set()
        assert all(f.cancelled() or f.result() == i + 1 for i, f in enumerate(rest))
    else:
        assert [f.result(LONG) for f in rest] == list(range(1, 31))
    gate.close()


@pytest.mark.parametrize("end", ["wait", "no wait", "drop"])
def test_deaths_of_all_workers_at_the_end(end: str) -> None:
    """All workers are killed while calls are pending and the executor ends: nothing hangs, only what ran fails."""
    gate = Gate()
    executor = Executor(max_workers=2)
    running = [executor.submit(wait_at, gate.address) for _ in range(2)]
    gate.wait_for(2)
    rest = [executor.submit(inc, i) for i in range(30)]
    pids = list(executor._processes)
    closing = threading.Thread(target=executor.shutdown if end == "wait" else int)
    closing.start()
    if end == "no wait":
        executor.shutdown(wait=False)
    del executor
    kill(pids)
    closing.join(LONG)
    assert not closing.is_alive()
    for future in running:
        check_death(future.exception(LONG), "kill")
    assert [f.result(LONG) for f in rest] == list(range(1, 31))
    gate.close()


# -- kill_workers and terminate_workers

WAYS = ["kill_workers", "terminate_workers"]


def check_ended(executor: Any, futures: list[Any], pids: list[int]) -> list[Any]:
    """Check that all has ended, and in an allowed way; return the errors."""
    assert cf.wait(futures, LONG).not_done == set()
    errors = [f.exception() for f in futures]
    assert all(error is None or isinstance(error, BrokenProcessPool) for error in errors)
    assert not still_running(pids, 5)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            executor.submit(inc, 1)
    executor.shutdown()
    return errors


@pytest.mark.parametrize("way", WAYS)
def test_killing_while_calls_run(way: str) -> None:
    """All unfinished futures fail with BrokenProcessPool, running and pending ones; finished ones keep their results."""
    gate = Gate()
    executor = Executor(max_workers=2)
    done, large = executor.submit(inc, 1), executor.submit(np.full, 2 * MB, 3)
    cf.wait([done, large], LONG)
    running = [executor.submit(wait_at, gate.address) for _ in range(2)]
    gate.wait_for(2)
    pending = [executor.submit(inc, i) for i in range(50)]
    pids = list(executor._processes)
    getattr(executor, way)()
    errors = check_ended(executor, running + pending, pids)
    assert None not in errors
    assert done.result() == 2
    assert (large.result() == 3).all()
    gate.close()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("spin", [0.0, 0.005, 0.02, 0.04, 0.08])
def test_killing_while_workers_start(way: str, spin: float) -> None:
    """At whatever moment of the first start it comes: nothing hangs, nothing is left."""
    executor = Executor(max_workers=2)
    futures = [executor.submit(inc, i) for i in range(20)]
    moment = time.monotonic() + spin
    while time.monotonic() < moment:
        continue
    pids = list(executor._processes)
    getattr(executor, way)()
    check_ended(executor, futures, pids)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("count", [1, 20, 100, 200])
def test_killing_after_some_results(way: str, count: int) -> None:
    """Between results, large and small ones: each future has its own result or the error."""
    executor = Executor(max_workers=2)
    futures: list[Any] = [executor.submit(np.full, 100_000 if i % 10 == 0 else 5, i) for i in range(200)]
    for _ in zip(range(count), cf.as_completed(futures, LONG), strict=False):
        continue
    pids = list(executor._processes)
    getattr(executor, way)()
    errors = check_ended(executor, futures, pids)
    assert errors.count(None) >= count
    assert all((f.result() == i).all() for i, f in enumerate(futures) if errors[i] is None)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("state", ["idle", "after shutdown", "twice", "in a callback", "with", "map"])
def test_killing_in_other_states(way: str, state: str) -> None:
    """Idle, after or during another end, in a callback, within `with`, beside a map: all ends, nothing hangs."""
    gate = Gate()
    executor = Executor(max_workers=1)
    futures = [executor.submit(inc, 1)]
    assert futures[0].result(LONG) == 2
    pids = list(executor._processes)
    end = getattr(executor, way)
    if state == "idle":
        end()
    elif state == "after shutdown":
        futures.append(executor.submit(wait_at, gate.address))
        gate.wait_for()
        executor.shutdown(wait=False)
        end()
    elif state == "twice":
        futures.append(executor.submit(wait_at, gate.address))
        end()
        end()
    elif state == "in a callback":
        futures.append(executor.submit(wait_at, gate.address))
        gate.wait_for()
        futures[1].add_done_callback(lambda _: end())
        futures += [executor.submit(inc, 1) for _ in range(20)]
        gate.open()
    elif state == "with":
        with executor:
            futures.append(executor.submit(wait_at, gate.address))
            gate.wait_for()
            end()
    else:
        results = executor.map(wait_at, [gate.address] * 30)
        gate.wait_for()
        end()
        with pytest.raises(BrokenProcessPool):
            list(results)
    check_ended_later(executor, futures, pids, state)
    gate.close()


def check_ended_later(executor: Any, futures: list[Any], pids: list[int], state: str) -> None:
    if state == "in a callback":  # it runs when its future is done already
        assert cf.wait(futures, LONG).not_done == set()
        assert not still_running(pids, 5)
    check_ended(executor, futures, pids)


@pytest.mark.parametrize("way", WAYS)
def test_killing_wakes_those_who_wait(way: str) -> None:
    """Threads in `shutdown`, `result`, `wait` and a map's generator are woken."""
    gate = Gate()
    executor = Executor(max_workers=1)
    results = executor.map(wait_at, [gate.address] * 3)
    gate.wait_for()
    future = executor.submit(inc, 1)
    told: list[Any] = []

    def in_map() -> None:
        with pytest.raises(BrokenProcessPool):
            next(results)
        told.append("map")

    def shut() -> None:
        executor.shutdown()
        told.append("shutdown")

    waits: list[Callable[[], Any]] = [
        in_map,
        lambda: told.append(type(future.exception(LONG)).__mro__.count(BrokenProcessPool)),
        lambda: told.append(len(cf.wait([future], LONG).done)),
        shut,
    ]
    threads = [threading.Thread(target=wait) for wait in waits]
    for thread in threads:
        thread.start()
    getattr(executor, way)()
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive()
    assert sorted(told, key=str) == [1, 1, "map", "shutdown"]
    gate.close()


def test_killing_by_many_threads() -> None:
    """Several threads kill, terminate, shut down and submit at once: nothing hangs."""
    for _ in range(3):
        executor = Executor(max_workers=2)
        futures = [executor.submit(inc, i) for i in range(300)]
        futures[5].result(LONG)
        pids = list(executor._processes)
        more: list[Any] = []
        start = threading.Barrier(4)

        def submit(executor: Any = executor, more: Any = more, start: Any = start) -> None:
            start.wait()
            with pytest.raises(RuntimeError):
                more.extend(submitting(executor))

        def end(way: Callable[[], Any], start: Any = start) -> None:
            start.wait()
            way()

        threads = [threading.Thread(target=submit)]
        threads += [
            threading.Thread(target=end, args=(way,))
            for way in (executor.kill_workers, executor.terminate_workers, executor.shutdown)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
            assert not thread.is_alive()
        check_ended(executor, futures + more, pids)


def test_killing_ends_what_ignores_signals() -> None:
    """`kill_workers` ends a worker that ignores SIGTERM."""
    gate = Gate()

    executor = Executor(max_workers=1)
    future = executor.submit(stubborn, gate.address)
    gate.wait_for()
    pids = list(executor._processes)
    executor.kill_workers()
    assert check_ended(executor, [future], pids) != [None]
    gate.close()


# -- a KeyboardInterrupt in this process


def test_leaving_with_by_an_interrupt(tmp_path: Path) -> None:
    """KeyboardInterrupt out of a `with` block cancels what is pending and ends the workers at once."""
    gate = Gate()
    log = str(tmp_path / "log")
    futures: list[Any] = []
    pids: list[int] = []

    def use() -> None:
        with Executor(max_workers=1) as executor:
            futures.append(executor.submit(wait_at, gate.address))
            gate.wait_for()
            futures.extend(executor.submit(note, log, i) for i in range(2000))
            pids.extend(executor._processes)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        use()
    assert not still_running(pids, 5)
    assert cf.wait(futures, LONG).not_done == set()
    assert futures[-1].cancelled()
    assert futures[0].cancelled() or isinstance(futures[0].exception(), BrokenProcessPool)
    assert notes(log) == []
    gate.close()


CTRL_C = """
import sys, time
from localdist import Executor

def begin(path, i):
    with open(path, "a") as file:
        file.write(f"{i}\\n")
    time.sleep(60)

how, path = sys.argv[1:]
with Executor(max_workers=2) as executor:
    futures = [executor.submit(begin, path, i) for i in range(6)]
    if how == "result":
        futures[0].result()
    elif how == "map":
        list(executor.map(begin, [path] * 6, range(6, 12)))
    elif how == "buffered map":
        list(executor.map(begin, [path] * 6, range(6, 12), buffersize=2))
    elif how == "shutdown":
        executor.shutdown()
"""


@pytest.fixture
def program() -> Iterator[Callable[..., Any]]:
    """Start a program in a session of its own; end it in any case."""
    started = []

    def start(text: str, *args: str) -> Any:
        process = subprocess.Popen(
            [sys.executable, "-c", text, *args],
            env={**os.environ, "PYTHONPATH": ROOT},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for_lines(path: str, count: int) -> list[str]:
    """Wait until so many calls have begun."""
    deadline = time.monotonic() + LONG
    while len(notes(path)) < count:
        assert time.monotonic() < deadline
    return notes(path)


def wait_until_blocked(process: Any) -> None:
    """Wait until the main thread of a process sleeps: nothing tells from outside that a call waits."""
    deadline = time.monotonic() + LONG
    while psutil.Process(process.pid).status() != psutil.STATUS_SLEEPING:
        assert time.monotonic() < deadline


def children_of(process: Any) -> list[int]:
    return [child.pid for child in psutil.Process(process.pid).children(recursive=True)]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["result", "map", "buffered map", "shutdown", "leave"])
def test_ctrl_c(program: Any, tmp_path: Path, how: str) -> None:
    """In whatever waits within `with`, and in leaving it: one traceback, pending calls never start, nothing is left."""
    log = str(tmp_path / "begun")
    process = program(CTRL_C, how, log)
    begun = wait_for_lines(log, 2)
    wait_until_blocked(process)
    pids = children_of(process)
    assert len(pids) >= 2
    os.killpg(process.pid, signal.SIGINT)
    out, err = (text.decode() for text in process.communicate(timeout=20))
    assert not still_running(pids, seconds=5)
    assert process.returncode == -signal.SIGINT, err
    assert out == ""
    assert err.startswith("Traceback (most recent call last):\n")
    assert err.count("Traceback") == 1, err
    assert err.splitlines()[-1] == "KeyboardInterrupt"
    assert notes(log) == begun


GOING_ON = """
import concurrent.futures, os, sys, time
from localdist import Executor

def hold(path, i):
    with open(path, "a") as file:
        file.write(f"{i}\\n")
    while not os.path.exists(path + ".go"):
        time.sleep(0.005)
    return i

how, path = sys.argv[1:]
executor = Executor(max_workers=1)
futures = [executor.submit(hold, path, i) for i in range(3)]
results = executor.map(hold, [path] * 100, range(10, 110))
try:
    if how == "result":
        futures[0].result()
    elif how == "as_completed":
        list(concurrent.futures.as_completed(futures))
    elif how == "map":
        next(results)
    elif how == "shutdown":
        executor.shutdown()
except KeyboardInterrupt:
    print("interrupted", [f.done() for f in futures], flush=True)
open(path + ".go", "w").close()
if how != "shutdown":
    futures.append(executor.submit(abs, -3))
executor.shutdown()
print([f.result() for f in futures])
print(len(list(results)))
"""


@pytest.mark.parametrize("how", ["result", "as_completed", "map", "shutdown"])
def test_going_on_after_ctrl_c(program: Any, tmp_path: Path, how: str) -> None:
    """A program that catches it goes on: workers ignore the signal; only an interrupted map loses what has not begun."""
    log = str(tmp_path / "begun")
    process = program(GOING_ON, how, log)
    wait_for_lines(log, 1)
    wait_until_blocked(process)
    os.killpg(process.pid, signal.SIGINT)
    out, err = (text.decode() for text in process.communicate(timeout=30))
    assert err == ""
    assert process.returncode == 0
    results = "[0, 1, 2]" if how == "shutdown" else "[0, 1, 2, 3]"
    left = "0" if how == "map" else "100"
    assert out.splitlines() == ["interrupted [False, False, False]", results, left]
    assert how != "map" or len(notes(log)) < 103


AGAIN = """
import sys, time
from localdist import Executor

def begin(path, i):
    with open(path, "a") as file:
        file.write(f"{i}\\n")
    time.sleep(60)

executor = Executor(max_workers=2)
futures = [executor.submit(begin, sys.argv[1], i) for i in range(6)]
if sys.argv[2] == "result":
    futures[0].result()
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["result", "end"])
def test_ctrl_c_without_with(program: Any, tmp_path: Path, how: str) -> None:
    """A program without `with`, which is also waiting at its end, is over after the second Ctrl-C at the latest."""
    log = str(tmp_path / "begun")
    process = program(AGAIN, log, how)
    wait_for_lines(log, 2)
    wait_until_blocked(process)
    pids = children_of(process)
    for _ in range(2):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            continue
    assert process.poll() is not None
    assert not still_running(pids, seconds=5)
    assert len(notes(log)) == 2


DYING = """
import os, signal, sys
from localdist import Executor
from tests.support import note
import time

executor = Executor(max_workers=2)
futures = [executor.submit(time.sleep, 60) for i in range(6)]
while not all(f.running() for f in futures[:2]):
    time.sleep(0.005)
print(*executor._processes, flush=True)
if sys.argv[1] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
os._exit(3)
"""


@pytest.mark.parametrize("how", ["kill", "os._exit"])
def test_death_of_this_process(program: Any, how: str) -> None:
    """When the process that has the executor dies, its workers end soon, in the middle of their calls."""
    process = program(DYING, how)
    out, err = (text.decode() for text in process.communicate(timeout=30))
    assert process.returncode == DEATHS[how], err
    pids = [int(one) for one in out.split()]
    assert len(pids) == 2
    assert not still_running(pids, seconds=5)
