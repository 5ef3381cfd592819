"""`localdist.Executor`: the contract of `concurrent.futures.ProcessPoolExecutor`, and what is promised beyond it."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures as cf
import functools
import gc
import itertools
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import textwrap
import threading
import time
import traceback
import weakref
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from localdist import Client, Executor
from localdist.errors import SerializationError
from tests.executor_tasks import (
    Coded,
    crash_first,
    fail_first,
    forget,
    note_global,
    note_pid,
    read_global,
    refuse,
    remember,
)
from tests.support import Gate, add, div, echo, identity, inc, note, note_and_fail, notes, pid, still_running, wait_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parent.parent
LONG = 30  # seconds: the longest wait for what takes a fraction of one
MB = 1024 * 1024
MANY = 2000  # so many calls of a quick kind that not all of them are handed to a worker at once


def warm(executor: Any, workers: int) -> None:
    """Let all workers, and whatever else is made at first use, start, so that no test seems to leave them behind."""
    gate = Gate()
    array = np.ones(MB)
    futures = [executor.submit(wait_at, gate.address, array) for _ in range(workers)]
    called = threading.Semaphore(0)
    for future in futures:
        future.add_done_callback(lambda _: called.release())
    gate.wait_for(workers)
    gate.open()
    gate.close()
    for future in futures:
        assert future.result(LONG).nbytes == array.nbytes
        assert called.acquire(timeout=LONG)


@pytest.fixture(scope="module")
def executor() -> Iterator[Executor]:
    """Give an executor of two workers that the tests of this module share; they leave nothing running in it."""
    with Executor(max_workers=2) as executor:
        warm(executor, 2)
        yield executor


@pytest.fixture(scope="module")
def single() -> Iterator[Executor]:
    """Give an executor of one worker: what runs there holds up all behind it."""
    with Executor(max_workers=1) as executor:
        warm(executor, 1)
        yield executor


def run(*arguments: str, text: str = "", expected: int = 0) -> subprocess.CompletedProcess[str]:
    """Run an interpreter on a script, which has to end in the way expected; return what it said."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(text), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])},
        timeout=50,
        check=False,
    )
    assert done.returncode == expected, done.stderr
    assert expected or done.stderr == ""
    return done


def submitting(executor: Any) -> Iterator[Any]:
    """Submit calls until that is refused, or the time is over."""
    deadline = time.monotonic() + LONG
    while time.monotonic() < deadline:
        yield executor.submit(inc, 1)


def numbers(path: str) -> list[int]:
    return [int(line) for line in notes(path)]


def lock(*_: Any) -> Any:
    return threading.Lock()


class Fragile(Exception):
    """Can be pickled, and not be rebuilt."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")


def raise_fragile() -> None:
    raise Fragile(7, "too warm")


def fail_with(error: BaseException) -> None:
    raise error


def fail_at(bad: int, x: int) -> int:
    if x == bad:
        raise ValueError(f"no {x}")
    return x


# -- submit


def test_it_is_an_executor(executor: Executor) -> None:
    """It is a real `concurrent.futures.Executor`, and its futures are real futures."""
    assert isinstance(executor, cf.Executor)
    future = executor.submit(inc, 1)
    assert isinstance(future, cf.Future)
    assert future.result(LONG) == 2
    assert future.done()
    assert not future.running()
    assert not future.cancelled()
    assert future.exception(LONG) is None


def test_arguments_arrive(executor: Executor) -> None:
    """Positional and keyword arguments arrive as they were given, whatever the keywords are called."""
    future = executor.submit(echo, 1, [2, "3"], a=4, b=None)
    assert future.result(LONG) == ((1, [2, "3"]), {"a": 4, "b": None})
    names = "self fn func args kwargs key pure retries timeout priority workers resources chunksize allow_other_workers"
    keywords: dict[str, Any] = {name: name for name in names.split()}
    assert executor.submit(echo, **keywords).result(LONG) == ((), keywords)


def test_any_callable_runs(executor: Executor) -> None:
    """Lambdas, closures, partials, bound methods, classes and builtins can be submitted."""
    amount = 1

    class Local:
        def method(self, x: int) -> int:
            return x + amount

    calls: list[Callable[[int], int]] = [
        inc,
        lambda x: x + 1,
        lambda x: x + amount,
        functools.partial(add, 1),
        Local().method,
        (1).__add__,
        functools.partial(lambda x, y: x + y, y=1),
    ]
    assert [executor.submit(call, 10).result(LONG) for call in calls] == [11] * len(calls)
    assert executor.submit(dict, a=1).result(LONG) == {"a": 1}
    assert type(executor.submit(Local).result(LONG)) is Local


def test_it_runs_in_worker_processes(executor: Executor) -> None:
    """Calls run in the processes that `_processes` names, never in this one."""
    pids = {executor.submit(pid).result(LONG) for _ in range(10)}
    assert os.getpid() not in pids
    assert pids <= set(executor._processes)
    assert executor._max_workers == 2
    assert not executor._broken


def test_processes_are_like_those_of_multiprocessing() -> None:
    """What `_processes` holds can be asked and ended as other libraries do with a `multiprocessing.Process`."""
    with Executor(max_workers=1) as executor:
        for end in ("kill", "terminate"):
            worker = executor.submit(pid).result(LONG)
            process = executor._processes[worker]
            assert process.is_alive()
            assert process.pid == worker
            assert process.exitcode is None
            getattr(process, end)()
            process.join(LONG)
            assert not process.is_alive()
            deadline = time.monotonic() + LONG
            while worker in executor._processes:
                assert time.monotonic() < deadline


def test_calls_start_in_order(single: Executor, tmp_path: Path) -> None:
    """With one worker calls run in the order in which they were submitted."""
    log = str(tmp_path / "log")
    cf.wait([single.submit(note, log, i) for i in range(200)], LONG)
    assert numbers(log) == list(range(200))


@pytest.mark.slow
def test_calls_start_in_order_whatever_they_take(single: Executor) -> None:
    """That holds when some of many quick calls take longer: what was handed over and taken back keeps its place."""
    for round_ in range(12):
        pause = (0.003, 0.005, 0.008)[round_ % 3]
        cf.wait([single.submit(remember, i, pause if i % 200 == 199 else 0) for i in range(3000)], LONG)
        assert single.submit(forget).result(LONG) == list(range(3000))


def test_calls_are_never_shared(executor: Executor, tmp_path: Path) -> None:
    """Equal calls run each for itself, at the same time or one after the other, large arguments included."""
    log = str(tmp_path / "log")
    array = np.ones(MB)

    def record(path: str, data: Any) -> int:
        note(path, "ran")
        return len(data)

    both = [executor.submit(record, log, array) for _ in range(5)]
    assert [f.result(LONG) for f in both] == [MB] * 5
    assert executor.submit(record, log, array).result(LONG) == MB
    assert list(executor.map(record, [log] * 4, [array] * 4)) == [MB] * 4
    assert len(notes(log)) == 10


def test_workers_start_on_demand(gate: Gate) -> None:
    """None starts before the first submit, an idle one is used before another starts, and never more than allowed."""
    with Executor(max_workers=2) as executor:
        assert not executor._processes
        pids = set()
        for _ in range(5):
            pids.add(executor.submit(pid).result(LONG))
            assert len(executor._processes) == 1
        assert len(pids) == 1
        held = [executor.submit(wait_at, gate.address) for _ in range(2)]
        gate.wait_for(2)
        more = [executor.submit(pid) for _ in range(10)]
        gate.open()
        pids |= {f.result(LONG) for f in more}
        assert cf.wait(held, LONG).not_done == set()
        assert set(executor._processes) >= pids
        assert len(executor._processes) == 2


def test_what_is_not_callable_fails_its_future(executor: Executor) -> None:
    """As in the standard library the future fails with a TypeError, and `submit` itself needs a function."""
    assert isinstance(executor.submit(3).exception(LONG), TypeError)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        executor.submit()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        executor.submit(fn=inc)  # type: ignore[call-arg]


# -- how calls fail


@pytest.mark.parametrize(
    "error",
    [ValueError("x", 1), Coded(5), SystemExit(3), KeyboardInterrupt("k"), StopIteration(4), cf.CancelledError()],
)
def test_any_exception_is_the_future_s_own(executor: Executor, error: BaseException) -> None:
    """What a call raises arrives with its type, arguments and attributes, and ends no worker."""
    before = set(executor._processes)
    future = executor.submit(fail_with, error)
    caught = future.exception(LONG)
    assert type(caught) is type(error)
    assert caught.args == error.args
    assert getattr(caught, "code", None) == getattr(error, "code", None)
    assert future.exception() is caught
    with pytest.raises(type(error)) as raised:
        future.result(LONG)
    assert raised.value is caught
    assert not future.cancelled()
    assert set(executor._processes) == before


def test_tracebacks_show_the_worker_s_lines(executor: Executor) -> None:
    """The printed traceback names the functions that were running in the worker."""
    error = executor.submit(fail_at, 3, 3).exception(LONG)
    assert error is not None
    text = "".join(traceback.format_exception(error))
    assert "in fail_at" in text
    assert 'raise ValueError(f"no {x}")' in text


def test_causes_arrive(executor: Executor) -> None:
    """An exception raised from another one still has it as its cause."""

    def chained() -> None:
        try:
            div(1, 0)
        except ZeroDivisionError as error:
            raise Coded(2) from error

    error = executor.submit(chained).exception(LONG)
    assert isinstance(error, Coded)
    assert isinstance(error.__cause__, ZeroDivisionError)


def test_an_exception_that_cannot_be_rebuilt(executor: Executor) -> None:
    """It costs its own future, with an exception that tells what it was; the executor goes on."""
    error = executor.submit(raise_fragile).exception(LONG)
    assert isinstance(error, Exception)
    assert "too warm" in "".join(traceback.format_exception(error))
    assert executor.submit(inc, 1).result(LONG) == 2


def test_a_returned_exception_is_a_result(executor: Executor) -> None:
    """Only what is raised makes a future fail."""
    assert type(executor.submit(identity, ValueError(1)).result(LONG)) is ValueError


# -- pickling


UNPICKLABLE: dict[str, Callable[[Any], Any]] = {
    "argument": lambda e: e.submit(identity, threading.Lock()),
    "keyword": lambda e: e.submit(echo, a=(i for i in range(3))),
    "inside": lambda e: e.submit(identity, {"a": [threading.Lock()]}),
    "function": lambda e: e.submit(functools.partial(identity, threading.Lock())),
    "result": lambda e: e.submit(lock),
    "result inside": lambda e: e.submit(lambda: [np.ones(MB), threading.Lock()]),
    "executor": lambda e: e.submit(identity, e),
    "future": lambda e: e.submit(identity, e.submit(inc, 1)),
}


@pytest.mark.parametrize("make", UNPICKLABLE.values(), ids=UNPICKLABLE)
def test_what_cannot_be_pickled_fails_its_future(executor: Executor, make: Callable[[Any], Any]) -> None:
    """`submit` returns a future that fails with an error that is a TypeError and a PicklingError; others complete."""
    others = [executor.submit(inc, i) for i in range(10)]
    future = make(executor)
    others += [executor.submit(inc, i) for i in range(10)]
    error = future.exception(LONG)
    assert isinstance(error, SerializationError)
    assert isinstance(error, TypeError)
    assert isinstance(error, pickle.PicklingError)
    assert not future.cancel()
    assert [f.result(LONG) for f in others] == [*range(1, 11)] * 2


def test_pickling_happens_at_submit(single: Executor, gate: Gate) -> None:
    """The pickling of arguments is over when `submit` returns, in the thread that called it."""
    seen: list[int] = []

    class Witness:
        def __reduce__(self) -> Any:
            seen.append(threading.get_ident())
            return int, ()

    held = single.submit(wait_at, gate.address)
    gate.wait_for()
    future = single.submit(identity, Witness())
    assert seen
    assert set(seen) == {threading.get_ident()}
    count = len(seen)
    gate.open()
    assert future.result(LONG) == 0
    assert held.result(LONG) is None
    assert len(seen) == count


@pytest.mark.parametrize("how", ["submit", "map", "map in chunks"])
def test_later_changes_are_not_seen(single: Executor, gate: Gate, how: str) -> None:
    """A list, a large array or a keyword changed after `submit` or `map` arrives as it was."""
    held = single.submit(wait_at, gate.address)
    gate.wait_for()
    small, large = [1, 2], np.zeros(2 * MB)
    if how == "submit":
        results = iter([single.submit(identity, small), single.submit(identity, x=large)])
        values: Iterator[Any] = (f.result(LONG) for f in results)
    else:
        values = single.map(identity, [small, large], chunksize=2 if how == "map in chunks" else 1)
    small.append(3)
    large[:] = 5
    gate.open()
    first, second = values
    assert first == [1, 2]
    assert not second.any()
    assert held.result(LONG) is None


def test_workers_change_only_their_own(executor: Executor) -> None:
    """What a call does to its arguments is not seen here, at any size."""

    def overwrite(data: Any) -> Any:
        data[:] = 7
        return data[0]

    for size in (10, 4 * MB):
        array = np.zeros(size)
        assert [f.result(LONG) for f in [executor.submit(overwrite, array) for _ in range(3)]] == [7] * 3
        assert not array.any()


def test_results_are_private(executor: Executor) -> None:
    """A future gives the same object each time, another future gives another one, and arrays can be written to."""
    for size in (10, 4 * MB):
        one, other = (executor.submit(np.zeros, size) for _ in range(2))
        assert one.result(LONG) is one.result()
        assert one.result() is not other.result(LONG)
        one.result()[:] = 9
        assert one.result().all()
        assert not other.result().any()
        third = executor.submit(identity, one.result())
        one.result()[:] = 8
        assert (third.result(LONG) == 9).all()


def test_arguments_are_let_go(executor: Executor) -> None:
    """When the result is there nothing keeps an argument, a function or a dropped future alive, here."""

    class Thing:
        pass

    def local(x: Any) -> int:
        return 1

    thing = Thing()
    future = executor.submit(local, thing)
    assert future.result(LONG) == 1
    seen = weakref.ref(thing), weakref.ref(future)
    del thing, future
    gc.collect()
    assert [ref() for ref in seen] == [None, None]


def test_results_of_map_are_let_go(executor: Executor) -> None:
    """The generator keeps no result that it has yielded."""
    for value in executor.map(collections.Counter[str], [["a"]] * 10):
        ref = weakref.ref(value)
        del value
        assert ref() is None


# -- futures: states, cancelling, callbacks


def test_running_and_done(single: Executor, gate: Gate) -> None:
    """A future is running while its call runs, and neither before nor after."""
    future = single.submit(wait_at, gate.address, 5)
    gate.wait_for()
    last = [single.submit(inc, i) for i in range(MANY)][-1]
    assert (future.running(), future.done(), future.cancelled()) == (True, False, False)
    assert (last.running(), last.done(), last.cancelled()) == (False, False, False)
    assert "running" in repr(future)
    assert "pending" in repr(last)
    gate.open()
    assert last.result(LONG) == MANY
    assert (future.running(), future.done(), future.cancelled()) == (False, True, False)
    assert future.result() == 5


def test_what_runs_is_past_cancelling(single: Executor, gate: Gate) -> None:
    """A future that was seen running never becomes pending again, nor cancelled, however many were queued with it."""
    for _ in range(10):  # so that both are known as quick, and many may be handed over at once
        held = single.submit(wait_at, gate.address)
        gate.wait_for()
        gate.open()
        held.result(LONG)
    assert list(single.map(inc, range(300)))[-1] == 300
    for _ in range(3):
        held = single.submit(wait_at, gate.address)
        gate.wait_for()
        queued = [single.submit(inc, i) for i in range(60)]
        seen = [f for f in queued if f.running()]
        deadline = time.monotonic() + 0.1
        while time.monotonic() < deadline:
            assert all(f.running() for f in seen)
            seen += [f for f in queued if f.running() and f not in seen]
        assert not any(f.cancel() for f in seen)
        gate.open()
        assert [f.result(LONG) for f in seen] == [queued.index(f) + 1 for f in seen]
        cf.wait([held, *queued], LONG)


def test_a_long_call_holds_up_no_quick_ones(executor: Executor, gate: Gate) -> None:
    """Calls queued behind a long one are run by the other worker, also when its kind was known to be quick."""
    for _ in range(10):
        held = executor.submit(wait_at, gate.address)
        gate.wait_for()
        gate.open()
        held.result(LONG)
    for count in (1, 10, 200):
        held = executor.submit(wait_at, gate.address, "held")
        gate.wait_for()
        assert [f.result(LONG) for f in [executor.submit(inc, i) for i in range(count)]] == list(range(1, count + 1))
        assert list(executor.map(inc, range(count))) == list(range(1, count + 1))
        assert not held.done()
        gate.open()
        assert held.result(LONG) == "held"


def test_cancel_before_the_start(single: Executor, gate: Gate, tmp_path: Path) -> None:
    """`cancel` is true only for calls that never start, and those cancelled stay so; a running one goes on."""
    log = str(tmp_path / "log")
    running = single.submit(wait_at, gate.address, "ran")
    gate.wait_for()
    queued = [single.submit(note, log, i) for i in range(MANY)]
    assert not running.cancel()
    answers = [f.cancel() for f in queued]
    assert answers[-1]
    assert [f.cancelled() for f in queued] == answers
    assert [f.cancel() for f in queued] == answers
    gate.open()
    assert single.submit(inc, 1).result(LONG) == 2
    assert numbers(log) == [i for i, cancelled in enumerate(answers) if not cancelled]
    assert [f.cancelled() for f in queued] == answers
    assert running.result(LONG) == "ran"
    assert not running.cancel()


def test_a_cancelled_future(single: Executor, gate: Gate) -> None:
    """It is done, and `result` and `exception` raise CancelledError at once."""
    held = single.submit(wait_at, gate.address)
    gate.wait_for()
    future = [single.submit(inc, i) for i in range(MANY)][-1]
    assert future.cancel()
    assert (future.running(), future.done(), future.cancelled()) == (False, True, True)
    for ask in (future.result, future.exception):
        with pytest.raises(cf.CancelledError):
            ask()
    gate.open()
    assert held.result(LONG) is None
    with pytest.raises(cf.CancelledError):
        future.result()


def test_cancel_after_the_end(executor: Executor) -> None:
    """A finished or failed future cannot be cancelled."""
    good, bad = executor.submit(inc, 1), executor.submit(div, 1, 0)
    cf.wait([good, bad], LONG)
    assert not good.cancel()
    assert not bad.cancel()
    assert good.result() == 2
    assert isinstance(bad.exception(), ZeroDivisionError)


def test_cancelling_against_running(executor: Executor, tmp_path: Path) -> None:
    """However cancelling falls into the running of many calls: cancelled ones never ran, the others have results."""
    log = str(tmp_path / "log")
    chance = random.Random(1)
    futures = [executor.submit(note, log, i) for i in range(2000)]
    order = [*range(2000)]
    chance.shuffle(order)
    cancelled = {i for i in order if futures[i].cancel()}
    assert cf.wait(futures, LONG).not_done == set()
    assert {i for i, f in enumerate(futures) if f.cancelled()} == cancelled
    assert [f.result() for i, f in enumerate(futures) if i not in cancelled] == sorted(set(range(2000)) - cancelled)
    assert sorted(numbers(log)) == sorted(set(range(2000)) - cancelled)


@pytest.mark.parametrize("method", ["result", "exception"])
def test_time_limits(single: Executor, gate: Gate, method: str) -> None:
    """`result` and `exception` raise TimeoutError in time, and the call goes on; a finished one answers at once."""
    future = single.submit(wait_at, gate.address, 1)
    gate.wait_for()
    for timeout in (0, 0.01):
        with pytest.raises(cf.TimeoutError):
            getattr(future, method)(timeout=timeout)
    gate.open()
    assert future.result(LONG) == 1
    assert getattr(future, method)(0) == (1 if method == "result" else None)


def test_users_cannot_set_outcomes(single: Executor, gate: Gate) -> None:
    """`set_result` and `set_exception` raise InvalidStateError in each state, and change nothing."""
    running = single.submit(wait_at, gate.address, 1)
    gate.wait_for()
    pending, cancelled = [single.submit(inc, i) for i in range(MANY)][-2:]
    assert cancelled.cancel()

    def meddle(future: Any) -> None:
        with pytest.raises(cf.InvalidStateError):
            future.set_result(100)
        with pytest.raises(cf.InvalidStateError):
            future.set_exception(ValueError())

    for future in (running, pending, cancelled):
        meddle(future)
    gate.open()
    assert (running.result(LONG), pending.result(LONG)) == (1, MANY - 1)
    for future in (running, pending, cancelled):
        meddle(future)
    assert (running.result(), pending.result(), cancelled.cancelled()) == (1, MANY - 1, True)
    with pytest.raises((RuntimeError, cf.InvalidStateError)):
        running.set_running_or_notify_cancel()
    assert running.result() == 1


def collect_end(futures: list[Any]) -> tuple[list[Any], threading.Semaphore]:
    """Note each callback's argument."""
    called: list[Any] = []
    calls = threading.Semaphore(0)

    def callback(future: Any) -> None:
        called.append((future, future.done()))
        calls.release()

    for future in futures:
        future.add_done_callback(callback)
    return called, calls


def test_callbacks(single: Executor, gate: Gate) -> None:
    """Each is called once with its future, when that has finished, failed or been cancelled."""
    held = single.submit(wait_at, gate.address)
    gate.wait_for()
    futures = [single.submit(inc, i) for i in range(20)] + [single.submit(div, 1, 0)]
    futures += [single.submit(inc, i) for i in range(MANY)]
    called, calls = collect_end(futures)
    assert futures[-1].cancel()
    assert futures[-1] in [f for f, _ in called]  # a cancelled future's are called by `cancel`
    gate.open()
    for _ in futures:
        assert calls.acquire(timeout=LONG)
    assert held.result(LONG) is None
    assert not calls.acquire(blocking=False)
    assert all(done for _, done in called)
    assert {id(f) for f, _ in called} == {id(f) for f in futures}


def test_late_callbacks(executor: Executor) -> None:
    """A callback added to a future that is done is called at once, by the thread that adds it."""
    future = executor.submit(inc, 1)
    future.result(LONG)
    seen: list[Any] = []
    future.add_done_callback(lambda f: seen.append((f, threading.get_ident())))
    assert seen == [(future, threading.get_ident())]


def test_callbacks_keep_their_order(single: Executor, gate: Gate) -> None:
    """The callbacks of one future are called in the order in which they were added."""
    future = single.submit(wait_at, gate.address)
    gate.wait_for()
    seen: list[int] = []
    done = threading.Event()
    for i in range(10):
        future.add_done_callback(lambda _, i=i: seen.append(i))  # type: ignore[misc]
    future.add_done_callback(lambda _: done.set())
    gate.open()
    assert done.wait(LONG)
    assert seen == list(range(10))


def test_callbacks_that_raise_are_logged(single: Executor, gate: Gate, caplog: Any) -> None:
    """An exception in a callback is logged by the standard library's logger, and the next callback is called."""
    future = single.submit(wait_at, gate.address, 1)
    gate.wait_for()
    done = threading.Event()
    future.add_done_callback(lambda _: div(1, 0))
    future.add_done_callback(lambda _: done.set())
    gate.open()
    assert done.wait(LONG)
    assert "ZeroDivisionError" in caplog.text
    assert "concurrent.futures" in {record.name for record in caplog.records}
    assert future.result() == 1
    assert single.submit(inc, 1).result(LONG) == 2


def test_callbacks_may_use_the_executor(executor: Executor) -> None:
    """A callback may submit, cancel and ask for results that are there."""
    ended: list[Any] = []
    all_done = threading.Event()

    def go_on(future: Any) -> None:
        ended.append(future.result())
        if len(ended) == 20:
            all_done.set()
        else:
            executor.submit(inc, future.result()).add_done_callback(go_on)

    executor.submit(inc, 0).add_done_callback(go_on)
    assert all_done.wait(LONG)
    assert ended == list(range(1, 21))


# -- waiting with the standard library


def test_standard_wait(single: Executor, gate: Gate) -> None:
    """`concurrent.futures.wait` knows first, first exception, all and a time limit, beside other executors' futures."""
    held = single.submit(wait_at, gate.address)
    gate.wait_for()
    with cf.ThreadPoolExecutor(1) as threads:
        foreign = threads.submit(inc, 1)
        done, not_done = cf.wait([held, foreign], LONG, cf.FIRST_COMPLETED)
        assert (done, not_done) == ({foreign}, {held})
    assert cf.wait([held], 0.01) == (set(), {held})
    bad = single.submit(div, 1, 0)
    rest = [single.submit(inc, i) for i in range(MANY)]
    assert rest[-1].cancel()
    assert cf.wait([rest[-1]], LONG).done == {rest[-1]}
    assert cf.wait([held, rest[-1]], LONG, cf.FIRST_COMPLETED).done == {rest[-1]}
    gate.open()
    assert bad in cf.wait([bad, *rest[:-1]], LONG, cf.FIRST_EXCEPTION).done
    assert cf.wait([held, bad, *rest], LONG, cf.ALL_COMPLETED).not_done == set()


def test_standard_wait_hears_of_cancelling(single: Executor, gate: Gate) -> None:
    """A thread in `wait` or `result` is woken when the future is cancelled."""
    held = single.submit(wait_at, gate.address)
    gate.wait_for()
    future = [single.submit(inc, i) for i in range(MANY)][-1]
    told: list[Any] = []

    def ask() -> None:
        try:
            future.result(LONG)
        except cf.CancelledError:
            told.append("cancelled")

    waiting = [
        threading.Thread(target=ask),
        threading.Thread(target=lambda: told.append(len(cf.wait([future], LONG).done))),
    ]
    for thread in waiting:
        thread.start()
    assert future.cancel()
    for thread in waiting:
        thread.join(LONG)
    assert sorted(told, key=str) == [1, "cancelled"]
    gate.open()
    assert held.result(LONG) is None


def test_standard_as_completed(executor: Executor, gate: Gate) -> None:
    """`as_completed` yields each future once, as it ends, and raises TimeoutError when the time is over."""
    futures: list[Any] = [executor.submit(inc, i) for i in range(100)]
    assert sorted(f.result() for f in cf.as_completed(futures, LONG)) == list(range(1, 101))
    held: Any = executor.submit(wait_at, gate.address, 7)
    gate.wait_for()
    quick: Any = executor.submit(inc, 1)
    order = cf.as_completed([held, quick, quick], timeout=LONG)
    assert next(order) is quick
    with pytest.raises(cf.TimeoutError):
        list(cf.as_completed([held], timeout=0.01))
    gate.open()
    assert next(order) is held
    assert list(order) == []


# -- map


def test_map_gives_results_in_order(executor: Executor) -> None:
    """Results come in the order of the inputs, whatever the size of the chunks."""
    for chunksize in (1, 2, 7, 100, 1000):
        assert list(executor.map(inc, range(100), chunksize=chunksize)) == list(range(1, 101))


def test_map_takes_any_iterables(executor: Executor) -> None:
    """Generators, sets, several iterables of different length, none, and empty ones."""
    assert list(executor.map(inc, (i for i in range(5)))) == [1, 2, 3, 4, 5]
    assert list(executor.map(add, range(3), itertools.count(10))) == [10, 12, 14]
    assert list(executor.map(add, [1, 2, 3], [1, 2], chunksize=2)) == [2, 4]
    assert sorted(executor.map(inc, {1, 2})) == [2, 3]
    assert list(executor.map(inc, [])) == []
    assert list(executor.map(inc, [], chunksize=5)) == []
    assert list(executor.map(inc)) == []
    assert list(executor.map(lambda *args: args, "ab", [1, 2], iter("cd"), chunksize=3)) == [
        ("a", 1, "c"),
        ("b", 2, "d"),
    ]


def test_map_starts_at_the_call(executor: Executor, tmp_path: Path) -> None:
    """The input is read and the calls begin when `map` is called, before the first result is asked for."""
    read: list[int] = []
    log = str(tmp_path / "log")

    def values() -> Iterator[int]:
        for i in range(50):
            read.append(i)
            yield i

    results = executor.map(note, itertools.repeat(log), values())
    assert read == list(range(50))
    assert iter(results) is results
    assert list(results) == list(range(50))
    assert sorted(numbers(log)) == list(range(50))
    with pytest.raises(StopIteration):
        next(results)


def test_a_map_that_nobody_reads_is_run(tmp_path: Path) -> None:
    """As in the standard library, all calls of a map whose results nobody asks for are made."""
    log = str(tmp_path / "log")
    with Executor(max_workers=1) as executor:
        executor.map(note, [log] * 30, range(30))
        executor.map(note, [log] * 30, range(30, 60), chunksize=4)
    assert sorted(numbers(log)) == list(range(60))


def test_input_that_raises(executor: Executor) -> None:
    """An exception of the input comes out of the call, or with a buffer out of the generator when it is reached."""

    def values() -> Iterator[int]:
        yield from range(5)
        raise Coded(4)

    for chunksize in (1, 2):
        with pytest.raises(Coded):
            executor.map(inc, values(), chunksize=chunksize)
    results = executor.map(inc, values(), buffersize=2)
    got: list[int] = []
    with pytest.raises(Coded):
        got.extend(results)  # keeps what came before the error
    assert got == list(range(1, len(got) + 1))
    assert len(got) >= 3
    with pytest.raises(TypeError):
        executor.map(inc, 5)  # type: ignore[arg-type]


@pytest.mark.parametrize("chunksize", [1, 3])
@pytest.mark.parametrize("buffersize", [1, 2, 10])
def test_buffersize_bounds_what_is_read(executor: Executor, buffersize: int, chunksize: int) -> None:
    """An endless input is read by this thread, and so many chunks ahead of what was yielded."""
    read: list[int] = []
    readers = set()

    def endless() -> Iterator[int]:
        for i in itertools.count():
            read.append(i)
            readers.add(threading.get_ident())
            yield i

    results = executor.map(inc, endless(), chunksize=chunksize, buffersize=buffersize)
    assert len(read) == buffersize * chunksize
    for count, value in enumerate(itertools.islice(results, 40), 1):
        assert value == count
        chunks = -(-count // chunksize)  # those of which something was yielded
        assert (chunks - 1 + buffersize) * chunksize <= len(read) <= (chunks + buffersize) * chunksize
    assert readers == {threading.get_ident()}
    results.close()  # type: ignore[attr-defined]
    assert len(read) <= (-(-40 // chunksize) + buffersize) * chunksize


def test_a_buffer_larger_than_the_input(executor: Executor) -> None:
    """A buffer that is never full changes nothing, and neither does one smaller than the input."""
    for buffersize in (1, 5, 10, 11, 1000):
        for chunksize in (1, 3, 20):
            results = executor.map(inc, range(10), buffersize=buffersize, chunksize=chunksize)
            assert list(results) == list(range(1, 11))
    assert list(executor.map(inc, [], buffersize=3)) == []
    assert list(executor.map(inc, buffersize=3)) == []


def test_buffered_calls_run_ahead(executor: Executor, tmp_path: Path) -> None:
    """The calls in the buffer run without being asked for: a buffer is work ahead, not laziness."""
    log = str(tmp_path / "log")
    results = executor.map(note, itertools.repeat(log), itertools.count(), buffersize=4)
    deadline = time.monotonic() + LONG
    while len(notes(log)) < 4:
        assert time.monotonic() < deadline
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("buffersize", [None, 2, 20])
@pytest.mark.parametrize("chunksize", [1, 4, 7, 100])
def test_a_call_of_a_map_that_raises(executor: Executor, chunksize: int, buffersize: int | None) -> None:
    """All results before it are yielded, those of its own chunk too; then its error comes, and nothing after it."""
    results = executor.map(fail_at, [6] * 20, range(20), chunksize=chunksize, buffersize=buffersize)
    assert [next(results) for _ in range(6)] == list(range(6))
    with pytest.raises(ValueError, match="no 6"):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_an_unpicklable_item_of_a_map(executor: Executor) -> None:
    """It fails where it stands, not at the call."""
    items: list[Any] = [1, 2, threading.Lock(), 4]
    results = executor.map(identity, items)
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(SerializationError):
        next(results)


@pytest.mark.parametrize("chunksize", [1, 2])
def test_an_unpicklable_result_of_a_map(executor: Executor, chunksize: int) -> None:
    """It costs itself: the results before it are yielded."""

    def some_lock(x: int) -> Any:
        return threading.Lock() if x == 3 else x

    results = executor.map(some_lock, range(6), chunksize=chunksize)
    assert [next(results) for _ in range(3 if chunksize == 1 else 2)] == [0, 1, 2][: 3 if chunksize == 1 else 2]
    with pytest.raises(SerializationError):
        list(results)


def test_the_time_of_a_map_counts_from_the_call(single: Executor, gate: Gate, tmp_path: Path) -> None:
    """After `timeout` seconds from the call TimeoutError comes out of the generator, and what has not begun never does."""
    log = str(tmp_path / "log")

    def first_waits(address: Any, path: str, i: int) -> int:
        wait_at(address) if i == 1 else note(path, i)
        return i

    results = single.map(first_waits, itertools.repeat(gate.address), itertools.repeat(log), range(MANY), timeout=0.2)
    gate.wait_for()
    assert next(results) == 0
    with pytest.raises(cf.TimeoutError):
        next(results)
    with pytest.raises(StopIteration):
        next(results)
    gate.open()
    assert single.submit(inc, 1).result(LONG) == 2
    assert len(notes(log)) < MANY - 1
    assert list(single.map(inc, range(10), timeout=LONG, chunksize=3)) == list(range(1, 11))


@pytest.mark.parametrize("way", ["close", "drop", "error"])
@pytest.mark.parametrize("buffersize", [None, 1500])
def test_ending_a_map_early_cancels_the_rest(
    single: Executor, gate: Gate, tmp_path: Path, way: str, buffersize: int | None
) -> None:
    """Closing or dropping a generator of which something was read cancels what has not begun."""
    log = str(tmp_path / "log")

    def work(address: Any, path: str, i: int) -> int:
        if i:
            wait_at(address) if i == 1 else note(path, i)
        if way == "error" and i == 1:
            raise ValueError("one")
        return i

    results = single.map(work, [gate.address] * MANY, [log] * MANY, range(MANY), buffersize=buffersize)
    assert next(results) == 0
    gate.wait_for()
    if way == "close":
        results.close()  # type: ignore[attr-defined]
        with pytest.raises(StopIteration):
            next(results)
    elif way == "error":
        gate.open()
        with pytest.raises(ValueError, match="one"):
            next(results)
    del results
    gc.collect()
    gate.open()
    assert single.submit(inc, 1).result(LONG) == 2
    assert way == "error" or len(notes(log)) < MANY - 2


def test_a_map_outlives_its_executor() -> None:
    """Results of a map may be read after the `with` block, and after its executor was dropped."""
    with Executor(max_workers=1) as executor:
        small, large = executor.map(inc, range(20)), executor.map(np.full, [MB] * 3, range(3), chunksize=2)
    assert list(small) == list(range(1, 21))
    assert [int(array[-1]) for array in large] == [0, 1, 2]
    executor = Executor(max_workers=1)
    results = executor.map(inc, range(100), buffersize=5)
    del executor
    first = [next(results) for _ in range(3)]
    assert first == [1, 2, 3]
    results.close()  # type: ignore[attr-defined]


# -- argument validation


@pytest.mark.parametrize(
    ("keywords", "error"),
    [
        ({"max_workers": 0}, ValueError),
        ({"max_workers": -1}, ValueError),
        ({"max_workers": "2"}, TypeError),
        ({"initializer": 5}, TypeError),
        ({"max_tasks_per_child": 0}, ValueError),
        ({"max_tasks_per_child": -3}, ValueError),
        ({"max_tasks_per_child": 1.5}, TypeError),
        ({"max_tasks_per_child": "1"}, TypeError),
        ({"retries": -1}, ValueError),
        ({"retries": "1"}, TypeError),
        ({"retries": None}, TypeError),
        ({"processes": 2}, TypeError),
    ],
)
def test_bad_options(keywords: dict[str, Any], error: type[Exception]) -> None:
    """Options that mean nothing are refused at construction, by name."""
    with pytest.raises(error, match=next(iter(keywords))):
        Executor(**keywords)


@pytest.mark.parametrize(
    ("keywords", "error"),
    [
        ({"chunksize": 0}, ValueError),
        ({"chunksize": -1}, ValueError),
        ({"chunksize": "2"}, TypeError),
        ({"buffersize": 0}, ValueError),
        ({"buffersize": -1}, ValueError),
        ({"buffersize": 2.5}, TypeError),
        ({"buffersize": "2"}, TypeError),
        ({"priority": 2}, TypeError),
    ],
)
def test_bad_options_of_map(executor: Executor, keywords: dict[str, Any], error: type[Exception]) -> None:
    """They are refused at the call, before any input is read."""
    values = iter(range(5))
    with pytest.raises(error, match=next(iter(keywords))):
        executor.map(inc, values, **keywords)
    assert next(values) == 0


def test_positional_options() -> None:
    """The first four options may be given by position, as in the standard library; the others may not."""
    context = multiprocessing.get_context("spawn")
    with Executor(1, context, note_global, (5,)) as executor:
        assert executor.submit(read_global).result(LONG) == 5
    with pytest.raises(TypeError):
        Executor(1, context, None, (), 5)  # type: ignore[call-arg]


@pytest.mark.parametrize("method", [None, *multiprocessing.get_all_start_methods()])
def test_any_context_is_accepted(method: str | None) -> None:
    """A context of `multiprocessing` is taken; lambdas and closures work with each of them."""
    context = multiprocessing.get_context(method) if method else None
    with Executor(max_workers=1, mp_context=context) as executor:
        assert executor.submit(lambda: 3).result(LONG) == 3


def test_the_default_size() -> None:
    """Without a number there are as many workers as this process may use cores, none of them started yet."""
    with Executor() as executor:
        assert 1 <= executor._max_workers <= (os.cpu_count() or 1)
        assert not executor._processes


@pytest.mark.skipif(sys.platform != "win32", reason="only Windows has a limit")
def test_more_workers_than_windows_can_wait_for() -> None:
    """A number above what the system allows is clamped, not refused."""
    with Executor(max_workers=100) as executor:
        assert executor._max_workers <= 61


# -- initializer, max_tasks_per_child, retries


def test_initializer_runs_once_in_each_worker(gate: Gate, tmp_path: Path) -> None:
    """It is called with `initargs` in every worker, before its first call, and never again."""
    log = str(tmp_path / "log")
    with Executor(max_workers=2, initializer=note_pid, initargs=(log,)) as executor:
        held = [executor.submit(wait_at, gate.address) for _ in range(2)]
        gate.wait_for(2)
        gate.open()
        pids = {f.result(LONG) for f in [executor.submit(pid) for _ in range(50)]}
        assert cf.wait(held, LONG).not_done == set()
        assert sorted(numbers(log)) == sorted(executor._processes)
        assert pids <= set(executor._processes)


def test_calls_see_what_the_initializer_set() -> None:
    """A global of a module, set by the initializer, is there for each call; a closure may be an initializer too."""
    with Executor(max_workers=1, initializer=note_global, initargs=([1, 2],)) as executor:
        assert list(executor.map(read_global, range(3), chunksize=2)) == [[1, 2]] * 3
    value = 9
    with Executor(max_workers=1, initializer=lambda: note_global(value)) as executor:
        assert executor.submit(read_global).result(LONG) == 9
    assert read_global() is None


def test_initializer_runs_in_replacements(tmp_path: Path) -> None:
    """A worker that replaces a dead or a retired one is initialised like the first."""
    log = str(tmp_path / "log")
    with Executor(max_workers=1, initializer=note_pid, initargs=(log,)) as executor:
        pids = [executor.submit(pid).result(LONG)]
        assert isinstance(executor.submit(os._exit, 3).exception(LONG), BrokenProcessPool)
        pids.append(executor.submit(pid).result(LONG))
        assert numbers(log) == pids
        assert len(set(pids)) == 2
    log = str(tmp_path / "other")
    with Executor(max_workers=1, initializer=note_pid, initargs=(log,), max_tasks_per_child=2) as executor:
        pids = [f.result(LONG) for f in [executor.submit(pid) for _ in range(6)]]
        assert numbers(log)[:3] == pids[::2] == pids[1::2]
        assert len(set(pids)) == 3


def test_a_failing_initializer(tmp_path: Path) -> None:
    """All futures fail with a BrokenProcessPool caused by the initializer's exception, and so does `submit` then."""
    log = str(tmp_path / "log")
    with Executor(max_workers=2, initializer=refuse, initargs=(log,)) as executor:
        futures: list[Any] = []
        with pytest.raises(BrokenProcessPool) as refused:
            futures.extend(submitting(executor))
        assert futures
        assert isinstance(refused.value.__cause__, Coded)
        for future in futures:
            error = future.exception(LONG)
            assert isinstance(error, BrokenProcessPool)
            assert isinstance(error.__cause__, Coded)
            assert error.__cause__.code == 12
            assert future.done()
            assert not future.cancelled()
        with pytest.raises(BrokenProcessPool):
            executor.map(inc, [1])
        assert executor._broken


def test_a_failing_initializer_among_threads(tmp_path: Path) -> None:
    """Those who wait in other threads, and callbacks, hear of it too; shutdown does not hang."""
    executor = Executor(max_workers=1, initializer=refuse, initargs=(str(tmp_path / "log"),))
    future = executor.submit(inc, 1)
    told: list[Any] = []
    waiting = threading.Thread(target=lambda: told.append(cf.wait([future], LONG).not_done))
    waiting.start()
    called, calls = collect_end([future])
    assert calls.acquire(timeout=LONG)
    waiting.join(LONG)
    assert told == [set()]
    assert called == [(future, True)]
    executor.shutdown()
    with pytest.raises(RuntimeError):
        executor.submit(inc, 1)


def test_an_initializer_that_cannot_be_pickled() -> None:
    """It breaks the executor with the reason, at the latest when the first result is asked for; nothing hangs."""

    def use() -> None:
        with Executor(max_workers=1, initializer=functools.partial(identity, threading.Lock())) as executor:
            executor.submit(inc, 1).result(LONG)

    with pytest.raises((BrokenProcessPool, TypeError)):
        use()


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "limit"), [(2, 1), (1, 3)])
def test_max_tasks_per_child(workers: int, limit: int) -> None:
    """No worker makes more calls than allowed, a chunk counting as one, and all are made."""
    with Executor(max_workers=workers, max_tasks_per_child=limit) as executor:
        pids = [f.result(LONG) for f in [executor.submit(pid) for _ in range(7)]]
        assert max(collections.Counter(pids).values()) <= limit
        assert len(set(pids)) >= 7 / limit
        chunks = list(executor.map(pid, range(8), chunksize=4))
        assert len(set(chunks[:4])) == len(set(chunks[4:])) == 1
        assert set(chunks).isdisjoint(pids) or limit > 1
        assert len(executor._processes) <= workers


@pytest.mark.parametrize("wait", [True, False])
def test_retiring_workers_and_shutdown(wait: bool) -> None:
    """Calls that are queued at shutdown are made by as many new workers as that takes."""
    executor = Executor(max_workers=2, max_tasks_per_child=1)
    futures = [executor.submit(inc, i) for i in range(5)]
    executor.shutdown(wait=wait)
    assert [f.result(LONG) for f in futures] == list(range(1, 6))


def test_idle_workers_may_retire() -> None:
    """A worker that made its last call while nothing was queued hinders nobody who comes later."""
    with Executor(max_workers=1, max_tasks_per_child=1) as executor:
        pids = [executor.submit(pid).result(LONG) for _ in range(3)]
        assert len(set(pids)) == 3
        assert isinstance(executor.submit(div, 1, 0).exception(LONG), ZeroDivisionError)
        assert isinstance(executor.submit(os._exit, 1).exception(LONG), BrokenProcessPool)
        assert executor.submit(inc, 1).result(LONG) == 2


@pytest.mark.parametrize("dies", [False, True])
def test_retries(tmp_path: Path, dies: bool) -> None:
    """A call that raises or loses its worker is made again as often as asked for, and then its outcome counts."""
    few, many = str(tmp_path / "few"), str(tmp_path / "many")
    with Executor(max_workers=1, retries=2) as executor:
        call = (
            functools.partial(crash_first, how="kill", crashes=2) if dies else functools.partial(fail_first, failures=2)
        )
        assert executor.submit(call, few).result(LONG) == 3
        hopeless = functools.partial(call, **{"crashes" if dies else "failures": 5})
        error = executor.submit(hopeless, many).exception(LONG)
        assert isinstance(error, BrokenProcessPool if dies else ValueError)
        assert len(notes(many)) == 3
        assert executor.submit(inc, 1).result(LONG) == 2


def test_nothing_is_retried_unasked(executor: Executor, tmp_path: Path) -> None:
    """A call may have effects: without `retries` it is made once, whatever comes of it."""
    log = str(tmp_path / "log")
    assert isinstance(executor.submit(note_and_fail, log).exception(LONG), ValueError)
    assert notes(log) == ["ran"]


def test_retries_of_a_map(tmp_path: Path) -> None:
    """They hold for the calls of `map`."""
    log = str(tmp_path / "log")
    with Executor(max_workers=1, retries=3) as executor:
        assert list(executor.map(fail_first, [log], [2])) == [3]


# -- shutdown


def test_shutdown_waits_for_all() -> None:
    """When `shutdown` returns every call was made, running and queued ones, and the workers have ended."""
    executor = Executor(max_workers=2)
    futures = [executor.submit(time.sleep, 0.01) for _ in range(40)]
    children = list(executor._processes)
    executor.shutdown()
    assert all(f.done() and not f.cancelled() and f.exception() is None for f in futures)
    assert not still_running(children, 5)


def test_shutdown_without_waiting(gate: Gate) -> None:
    """It returns at once, and what was submitted is still run."""
    executor = Executor(max_workers=1)
    running = executor.submit(wait_at, gate.address, 1)
    gate.wait_for()
    futures = [executor.submit(inc, i) for i in range(50)]
    executor.shutdown(wait=False)
    assert not running.done()
    assert not any(f.done() for f in futures)
    gate.open()
    assert running.result(LONG) == 1
    assert [f.result(LONG) for f in futures] == list(range(1, 51))


@pytest.mark.parametrize("wait", [True, False])
def test_shutdown_that_cancels(gate: Gate, tmp_path: Path, wait: bool) -> None:
    """Queued calls are cancelled and never run; the running one ends by itself."""
    log = str(tmp_path / "log")
    executor = Executor(max_workers=1)
    running = executor.submit(wait_at, gate.address, 1)
    gate.wait_for()
    queued = [executor.submit(note, log, i) for i in range(MANY)]
    last = threading.Event()
    queued[-1].add_done_callback(lambda _: last.set())
    closing = threading.Thread(target=executor.shutdown, args=(wait,), kwargs={"cancel_futures": True})
    closing.start()
    assert last.wait(LONG)
    assert not running.done()
    gate.open()
    closing.join(LONG)
    assert not closing.is_alive()
    assert running.result(LONG) == 1
    assert cf.wait(queued, LONG).not_done == set()
    assert queued[-1].cancelled()
    assert numbers(log) == [i for i, f in enumerate(queued) if not f.cancelled()]


def test_nothing_can_be_submitted_after_shutdown() -> None:
    """`submit` and `map` raise RuntimeError, however often and in whatever way it was shut down."""
    for use in (False, True):
        executor = Executor(max_workers=1)
        if use:
            assert executor.submit(inc, 1).result(LONG) == 2
        for wait in (False, True, False):
            executor.shutdown(wait=wait, cancel_futures=wait)
            with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
                executor.submit(inc, 1)
            with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
                executor.map(inc, [1])


def test_outcomes_stay_after_shutdown() -> None:
    """Results that nobody asked for before, large ones too, errors and cancellations are there after shutdown."""
    executor = Executor(max_workers=1)
    small, large = executor.submit(inc, 1), executor.submit(np.full, 4 * MB, 3)
    failed = executor.submit(div, 1, 0)
    blocker = executor.submit(time.sleep, 0.1)
    cancelled = [executor.submit(inc, i) for i in range(MANY)][-1]
    assert cancelled.cancel()
    executor.shutdown()
    del executor
    gc.collect()
    assert cancelled.cancelled()
    assert small.result() == 2
    large.result()[0] = 7
    assert large.result()[0] == 7
    assert large.result()[-1] == 3
    assert isinstance(failed.exception(), ZeroDivisionError)
    assert blocker.exception() is None
    with pytest.raises(cf.CancelledError):
        cancelled.result()


def test_with_waits_and_gives_itself() -> None:
    """`with` gives the executor, and waits at its end, also when its body raises."""
    executor = Executor(max_workers=1)
    futures: list[Any] = []

    def use() -> None:
        with executor as same:
            assert same is executor
            futures.extend(executor.submit(time.sleep, 0.01) for _ in range(10))
            raise Coded(1)

    with pytest.raises(Coded):
        use()
    assert all(f.done() and f.exception() is None for f in futures)
    with pytest.raises(RuntimeError):
        executor.submit(inc, 1)


def test_an_executor_that_was_never_used() -> None:
    """It can be shut down, left, dropped, killed: nothing was started."""
    for end in ("shutdown", "with", "drop", "kill_workers", "terminate_workers"):
        executor = Executor(max_workers=3)
        if end == "with":
            with executor:
                pass
        elif end != "drop":
            getattr(executor, end)()
        assert not executor._processes
        del executor


def test_shutdown_in_a_callback(gate: Gate) -> None:
    """A callback may shut the executor down without waiting; what was submitted is still run."""
    executor = Executor(max_workers=1)
    first = executor.submit(wait_at, gate.address)
    gate.wait_for()
    shut = threading.Event()

    def callback(_: Any) -> None:
        executor.shutdown(wait=False)
        shut.set()

    first.add_done_callback(callback)
    rest = [executor.submit(inc, i) for i in range(20)]
    gate.open()
    assert [f.result(LONG) for f in rest] == list(range(1, 21))
    assert shut.wait(LONG)


def test_shutdown_by_many_threads(gate: Gate) -> None:
    """Several threads may wait in `shutdown` at once."""
    executor = Executor(max_workers=1)
    running = executor.submit(wait_at, gate.address)
    gate.wait_for()
    rest = [executor.submit(inc, i) for i in range(10)]
    threads = [threading.Thread(target=executor.shutdown) for _ in range(5)]
    for thread in threads:
        thread.start()
    gate.open()
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive()
    assert all(f.done() for f in [running, *rest])


def test_submitting_against_shutdown() -> None:
    """However `submit` and `shutdown` meet: it raises RuntimeError, or gives a future that ends."""
    for round_ in range(4):
        executor = Executor(max_workers=1)
        futures: list[Any] = []
        refused: list[Any] = []
        begun = threading.Barrier(4)

        def work(executor: Any = executor, futures: Any = futures, refused: Any = refused, begun: Any = begun) -> None:
            begun.wait()
            with pytest.raises(RuntimeError) as caught:
                futures.extend(submitting(executor))
            refused.append(str(caught.value))

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        executor.submit(inc, 1).result(LONG)
        begun.wait()
        executor.shutdown(wait=bool(round_ % 2))
        for thread in threads:
            thread.join(LONG)
        assert refused == ["cannot schedule new futures after shutdown"] * 3
        assert all(f.result(LONG) == 2 for f in futures)


# -- without shutdown


def test_a_dropped_executor_ends(gate: Gate) -> None:
    """An executor that nobody refers to any more runs what was submitted, and then its workers end."""
    executor = Executor(max_workers=2)
    running = executor.submit(wait_at, gate.address, 1)
    gate.wait_for()
    futures = [executor.submit(inc, i) for i in range(50)]
    children, seen = list(executor._processes), weakref.ref(executor)
    del executor
    gc.collect()
    assert seen() is None
    gate.open()
    assert running.result(LONG) == 1
    assert [f.result(LONG) for f in futures] == list(range(1, 51))
    assert not still_running(children, 5)


def test_a_dropped_idle_executor_ends() -> None:
    """The same for one that has nothing to do, and for one in a reference cycle."""
    executor = Executor(max_workers=1)
    worker = executor.submit(pid).result(LONG)
    del executor
    gc.collect()
    assert not still_running([worker], 5)
    executor = Executor(max_workers=1)
    executor.cycle = executor  # type: ignore[attr-defined]
    worker = executor.submit(pid).result(LONG)
    del executor
    gc.collect()
    assert not still_running([worker], 5)


def test_futures_do_not_keep_their_executor() -> None:
    """Whoever keeps finished futures keeps no workers."""
    executor = Executor(max_workers=1)
    future, large = executor.submit(pid), executor.submit(np.ones, MB)
    worker = future.result(LONG)
    cf.wait([large], LONG)
    del executor
    gc.collect()
    assert not still_running([worker], 5)
    assert large.result().all()


EXIT = """
    import os, sys, threading
    from localdist import Executor

    def note(path, i):
        with open(path, "a") as file:
            file.write(f"{i}\\n")
        return i

    def chain(future):
        note(path, 20)

    way, path = sys.argv[1:]
    executor = Executor(max_workers=2)
    if way == "map":
        executor.map(note, [path] * 20, range(20))
    elif way == "chunks":
        executor.map(note, [path] * 20, range(20), chunksize=3)
    else:
        futures = [executor.submit(note, path, i) for i in range(20)]
    if way == "drop":
        del executor, futures
    elif way == "shutdown":
        executor.shutdown(wait=False)
    elif way == "sys.exit":
        sys.exit()
    elif way == "thread":
        threading.Thread(target=executor.shutdown).start()
    elif way == "daemon thread":
        threading.Thread(target=executor.shutdown, daemon=True).start()
    elif way == "cycle":
        executor.own = executor
        futures.append(futures)
        del executor, futures
    elif way == "callback":
        futures[-1].add_done_callback(chain)
    elif way == "error":
        raise SystemExit("it failed")
"""


@pytest.mark.parametrize(
    "way",
    [
        "nothing",
        "map",
        "chunks",
        "drop",
        "shutdown",
        "sys.exit",
        "thread",
        "daemon thread",
        "cycle",
        "callback",
        "error",
    ],
)
def test_the_end_of_the_interpreter(tmp_path: Path, way: str) -> None:
    """A script that ends with calls pending, in whatever way, makes them all, and ends well and silently."""
    log = str(tmp_path / "log")
    done = run(way, log, text=EXIT, expected=1 if way == "error" else 0)
    assert sorted(numbers(log)) == list(range(21 if way == "callback" else 20))
    assert done.stdout == ""
    assert done.stderr == ("it failed\n" if way == "error" else "")


LATE = """
    import sys, threading
    from localdist import Executor

    def submit_late():
        threading.main_thread().join()
        try:
            print(executor.submit(abs, -1).result(20))
        except RuntimeError as error:
            print(error)

    executor = Executor(max_workers=1)
    if sys.argv[1] == "used":
        executor.submit(abs, -1).result()
    threading.Thread(target=submit_late).start()
"""


@pytest.mark.parametrize("before", ["used", "unused"])
def test_submitting_at_the_end_of_the_interpreter(before: str) -> None:
    """A thread that submits when the main thread has ended gets a result or a RuntimeError; nothing hangs."""
    said = run(before, text=LATE).stdout.strip()
    assert said == "1" or "cannot schedule new futures" in said


# -- asyncio


def test_run_in_executor(executor: Executor) -> None:
    """`loop.run_in_executor` gives results and errors, one by one and many at once."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(executor, add, 1, 2) == 3
        assert await asyncio.gather(*[loop.run_in_executor(executor, inc, i) for i in range(200)]) == list(
            range(1, 201)
        )
        assert (await loop.run_in_executor(executor, lambda: np.ones(MB))).all()
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(executor, div, 1, 0)
        assert (await asyncio.wrap_future(executor.submit(inc, 5))) == 6

    asyncio.run(main())


@pytest.mark.parametrize("how", ["cancel", "timeout"])
def test_cancelling_in_asyncio(single: Executor, gate: Gate, tmp_path: Path, how: str) -> None:
    """Cancelling the asyncio future, or a time limit on it, cancels a call that has not begun."""
    log = str(tmp_path / "log")

    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        held = loop.run_in_executor(single, wait_at, gate.address, 1)
        gate.wait_for()
        futures = [single.submit(note, log, i) for i in range(MANY)]
        wrapped = [asyncio.wrap_future(future) for future in futures]
        if how == "cancel":
            assert wrapped[-1].cancel()
            with pytest.raises(asyncio.CancelledError):
                await wrapped[-1]
            await asyncio.sleep(0)  # one round of the loop, in which it tells the call's own future
        else:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(wrapped[-1], 0.01)
        assert futures[-1].cancelled()
        assert futures[-2].cancel()
        with pytest.raises(asyncio.CancelledError):
            await wrapped[-2]
        gate.open()
        assert await held == 1
        return list(await asyncio.gather(*wrapped[:-2]))

    assert asyncio.run(main()) == list(range(MANY - 2))
    assert sorted(numbers(log)) == list(range(MANY - 2))


def test_a_loop_that_ends_first(single: Executor, gate: Gate) -> None:
    """A call whose event loop is closed before it ends disturbs nobody."""

    async def main() -> Any:
        return asyncio.get_running_loop().run_in_executor(single, wait_at, gate.address)

    future = asyncio.run(main())
    gate.wait_for()
    gate.open()
    assert single.submit(inc, 1).result(LONG) == 2
    assert not future.done()


# -- nesting and threads


def sum_within(executor_type: Any, depth: int) -> int:
    with executor_type(max_workers=1) as inner:
        if depth == 0:
            return sum(inner.map(inc, range(10), chunksize=3))
        result: int = inner.submit(sum_within, executor_type, depth - 1).result(LONG)
        return result + 1


def test_nested_executors(single: Executor) -> None:
    """A call may have an executor of its own, whose calls may have one too."""
    assert single.submit(sum_within, Executor, 1).result(LONG) == 56


def test_two_executors_at_once(executor: Executor, single: Executor, gate: Gate) -> None:
    """Executors share nothing: one that is held up, or shut down, holds up no other."""
    held = single.submit(wait_at, gate.address)
    gate.wait_for()
    assert list(executor.map(inc, range(20))) == list(range(1, 21))
    with Executor(max_workers=1) as third:
        worker = third.submit(pid).result(LONG)
        assert worker not in {*executor._processes, *single._processes}
    assert executor.submit(inc, 1).result(LONG) == 2
    gate.open()
    assert held.result(LONG) is None


def test_many_threads(executor: Executor) -> None:
    """Threads that submit, map, cancel and wait at once each get what is theirs."""
    errors: list[BaseException] = []
    start = threading.Barrier(8)

    def work(number: int) -> None:
        chance = random.Random(number)
        start.wait()
        for _ in range(15):
            futures = [executor.submit(add, number, i) for i in range(20)]
            mapped = executor.map(add, itertools.repeat(number), range(30), chunksize=chance.choice([1, 4]))
            buffered = executor.map(add, itertools.repeat(number), itertools.count(), buffersize=3)
            cancelled = {i for i in chance.sample(range(20), 3) if futures[i].cancel()}
            assert list(mapped) == [number + i for i in range(30)]
            assert list(itertools.islice(buffered, 5)) == [number + i for i in range(5)]
            assert cf.wait(futures, LONG).not_done == set()
            for i, future in enumerate(futures):
                assert future.cancelled() == (i in cancelled)
                assert i in cancelled or future.result() == number + i

    def run_and_note(number: int) -> None:
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001  # raised again below
            errors.append(error)

    threads = [threading.Thread(target=run_and_note, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_many_waiters(executor: Executor) -> None:
    """All threads that ask one future get the same object."""
    for _ in range(20):
        future = executor.submit(list, range(5))
        got: list[Any] = []
        threads = [threading.Thread(target=lambda f=future, g=got: g.append(f.result(LONG))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 8
        assert all(value is future.result() for value in got)


def test_executors_made_by_threads() -> None:
    """Executors may be made, used and ended in many threads at the same time."""
    got: list[Any] = []

    def work(number: int) -> None:
        with Executor(max_workers=1) as own:
            got.append([number, *own.map(add, [number] * 3, range(3))])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [[i, i, i + 1, i + 2] for i in range(4)]


# -- freshness of code: each in a script of its own, without a guard

CLOSURE = """
    from localdist import Executor

    def make():
        x, many = 1, [1]
        def get(): return x, many
        def rebind(value):
            nonlocal x
            x = value
        return get, rebind, many

    def default(x=1): return x
    def code(): return 1
    def other(): return 2

    get, rebind, many = make()
    with Executor(max_workers=1) as executor:
        print(executor.submit(get).result())
        rebind(2)
        print(executor.submit(get).result(), *executor.map(lambda _: get(), range(1)))
        many.append(2)
        print(executor.submit(get).result())
        print(executor.submit(default).result())
        default.__defaults__ = (2,)
        print(executor.submit(default).result())
        print(executor.submit(code).result())
        code.__code__ = other.__code__
        print(executor.submit(code).result())
        code.mark = 3
        print(executor.submit(lambda: code.mark).result())
        code.mark = 4
        print(executor.submit(lambda: code.mark).result())
"""


def test_closures_are_fresh() -> None:
    """A rebound or changed closure variable, changed defaults, code and attributes are seen by the next submit."""
    assert run(text=CLOSURE).stdout.split("\n") == [
        "(1, [1])",
        "(2, [1]) (2, [1])",
        "(2, [1, 2])",
        *"121234",
        "",
    ]


MAIN = """
    import functools
    from localdist import Executor

    factor = 1
    table = {"a": 1}

    def helper(x): return x * factor
    def times(x): return helper(x)
    def look(): return table["a"]

    class Thing:
        scale = 1
        def get(self): return self.scale * factor

    thing, held = Thing(), functools.partial(times, 10)
    get = thing.get

    def show(executor):
        calls = [executor.submit(f) for f in (held, look, thing.get, get, lambda: Thing().get(), lambda: factor)]
        print(*[f.result() for f in calls], *executor.map(times, [1, 2], chunksize=2))

    with Executor(max_workers=1) as executor:
        show(executor)
        factor = 2
        show(executor)
        table["a"] = 5
        show(executor)
        def helper(x): return x * factor + 1
        show(executor)
        Thing.scale = 3
        show(executor)
        Thing.get = lambda self: 0
        show(executor)
        def times(x): return -x
        show(executor)
        del helper
        print(type(executor.submit(held).exception()).__name__)
"""


def test_functions_of_main_are_fresh() -> None:
    """Changed globals, helpers and classes of `__main__` are seen by the next submit and map."""
    assert run(text=MAIN).stdout.splitlines() == [
        "10 1 1 1 1 1 1 2",
        "20 1 2 2 2 2 2 4",
        "20 5 2 2 2 2 2 4",
        "21 5 2 2 2 2 3 5",
        "21 5 6 6 6 2 3 5",
        "21 5 0 6 0 2 3 5",
        "21 5 0 6 0 2 -1 -2",
        "NameError",
    ]


RELOAD = """
    import importlib, os, sys
    from localdist import Executor

    folder, *steps = sys.argv[1:]
    path = os.path.join(folder, "edited.py")
    sys.path.insert(0, folder)
    sys.dont_write_bytecode = True

    def write(text):
        with open(path, "w") as file:
            file.write(text)
        importlib.invalidate_caches()

    write(steps[0])
    import edited
    with Executor(max_workers=1) as executor:
        print(executor.submit(edited.f, 1).result())
        for text in steps[1:]:
            write(text)
            importlib.reload(edited)
            futures = [executor.submit(edited.f, 1), executor.submit(lambda: edited.f(1))]
            print(*[f.result() for f in futures], *executor.map(edited.f, [1]))
"""


@pytest.mark.parametrize(
    "steps",
    [
        ["def f(x): return x", "def f(x): return x + 1", "def f(x): return x + 22"],
        ["def g(x): return x\ndef f(x): return g(x)", "def g(x): return x + 1\ndef f(x): return g(x)"],
        ["factor = 1\ndef f(x): return x * factor", "factor = 2\ndef f(x): return x * factor  # longer"],
        [
            "class C:\n    def __init__(self, x): self.x = x\ndef f(x): return C(x).x",
            "class C:\n    def __init__(self, x): self.x = 2 * x\ndef f(x): return C(x).x",
        ],
    ],
    ids=["function", "helper", "constant", "class"],
)
def test_reloaded_modules_are_fresh(tmp_path: Path, steps: list[str]) -> None:
    """A module that was edited and reloaded here is the one whose code runs in workers from then on."""
    expected = {"x + 1": ["1", "2 2 2", "23 23 23"]}.get(steps[1][-5:], ["1", "2 2 2"])
    assert run(str(tmp_path), *steps, text=RELOAD).stdout.splitlines() == expected


INITIALIZED = """
    import sys
    from localdist import Executor

    if sys.argv[1] == "assigned":
        data = None

    def prepare(value):
        global data
        data = value

    def work(i):
        return data[i]

    with Executor(max_workers=2, initializer=prepare, initargs=([5, 6, 7],)) as executor:
        print(*executor.map(work, range(3)), executor.submit(work, 1).result(), executor.submit(lambda: data).result())
"""


@pytest.mark.parametrize("before", ["absent", "assigned"])
def test_globals_that_an_initializer_of_main_sets(before: str) -> None:
    """Functions of `__main__` see the globals of `__main__` that its initializer has set in the worker."""
    assert run(before, text=INITIALIZED).stdout == "5 6 7 6 [5, 6, 7]\n"


# -- over a client


@pytest.fixture(scope="module")
def client(client: Client) -> Client:
    """Let the client's thread for callbacks start before a test seems to leave it behind."""
    called = threading.Event()
    client.submit(inc, -1).add_done_callback(lambda _: called.set())
    assert called.wait(LONG)
    return client


def test_get_executor(client: Client) -> None:
    """It is an executor with the same rules over the client's own workers."""
    workers = {one["pid"] for one in client.scheduler_info()["workers"].values()}
    with client.get_executor() as executor:
        assert isinstance(executor, cf.Executor)
        future = executor.submit(pid)
        assert isinstance(future, cf.Future)
        assert future.result(LONG) in workers
        assert future.result() is future.result()
        assert list(executor.map(add, range(5), itertools.count(), chunksize=2)) == [0, 2, 4, 6, 8]
        assert list(itertools.islice(executor.map(inc, itertools.count(), buffersize=2), 4)) == [1, 2, 3, 4]
        assert isinstance(executor.submit(div, 1, 0).exception(LONG), ZeroDivisionError)
        assert isinstance(executor.submit(identity, threading.Lock()).exception(LONG), SerializationError)
        assert asyncio.run(in_loop(executor)) == 2
    assert client.submit(inc, 1).result(LONG) == 2


async def in_loop(executor: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(executor, inc, 1)


def test_get_executor_shares_no_calls(client: Client, tmp_path: Path) -> None:
    """Unless `pure` is asked for, equal calls run each for itself."""
    log = str(tmp_path / "log")
    with client.get_executor() as executor:
        futures = [executor.submit(note, log, "x") for _ in range(5)]
        cf.wait(futures, LONG)
    assert len(notes(log)) == 5


@pytest.mark.parametrize("cancel", [True, False])
def test_shutdown_leaves_the_client_open(client: Client, gate: Gate, cancel: bool) -> None:
    """Shutdown waits for its own futures or cancels them; the client, and other executors of it, go on."""
    other = client.get_executor()
    executor = client.get_executor()
    held = [executor.submit(wait_at, gate.address, i) for i in range(2)]
    gate.wait_for(2)
    queued, beside = [executor.submit(inc, i) for i in range(MANY)], other.submit(inc, 10)
    executor.shutdown(wait=False, cancel_futures=cancel)
    assert queued[-1].cancelled() == cancel
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(inc, 1)
    gate.open()
    executor.shutdown()
    assert [f.result(LONG) for f in held] == [0, 1]
    assert all(f.cancelled() or f.result(LONG) == i + 1 for i, f in enumerate(queued))
    assert cancel or not any(f.cancelled() for f in queued)
    assert beside.result(LONG) == 11
    assert other.submit(inc, 1).result(LONG) == 2
    other.shutdown()
    assert client.status == "running"
    assert client.submit(inc, 20).result(LONG) == 21


def test_options_of_get_executor(client: Client, tmp_path: Path) -> None:
    """It takes the options of `submit` that hold for every call, and no others."""
    names = [one["name"] for one in client.scheduler_info()["workers"].values()]
    pids = {one["pid"]: one["name"] for one in client.scheduler_info()["workers"].values()}
    log = str(tmp_path / "log")
    with client.get_executor(retries=2, workers=[names[0]]) as executor:
        assert executor.submit(fail_first, log, 2).result(LONG) == 3
        assert {pids[executor.submit(pid).result(LONG)] for _ in range(5)} == {names[0]}
    for keywords in ({"priority": 1}, {"max_workers": 2}, {"key": "x"}):
        with pytest.raises(TypeError, match=next(iter(keywords))):
            client.get_executor(**keywords)  # type: ignore[call-overload, arg-type, unused-ignore]


def test_a_death_under_get_executor() -> None:
    """It costs the call, with an error that is a BrokenProcessPool, without a rerun; others complete."""
    with Client(n_workers=1, threads_per_worker=1) as client, client.get_executor() as executor:
        futures = [executor.submit(inc, i) for i in range(20)]
        bad = executor.submit(os._exit, 5)
        futures += [executor.submit(inc, i) for i in range(20)]
        error = bad.exception(LONG)
        assert isinstance(error, BrokenProcessPool)
        assert [f.result(LONG) for f in futures] == [*range(1, 21)] * 2


def test_get_executor_of_a_closed_client() -> None:
    """Submitting after the client was closed is a RuntimeError."""
    with Client(n_workers=1, threads_per_worker=1) as client:
        executor = client.get_executor()
        assert executor.submit(inc, 1).result(LONG) == 2
    with pytest.raises(RuntimeError):
        executor.submit(inc, 1)
    executor.shutdown()
