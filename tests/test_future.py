"""`Future`: what it shows, how it is waited for, what its handles share, and the standard library's view of it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import copy
import datetime
import gc
import logging
import pickle
import sys
import threading
import traceback
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest

from localdist import CancelledError, Client, Future, TimeoutError
from localdist._future import seconds
from localdist.errors import FutureCancelledError
from tests.support import Gate, div, eventually, inc, note, notes, settled, wait_at

# -- what it shows


def test_repr_follows_the_status(client: Client, gate: Gate) -> None:
    """It shows status, the type's short name once it is known, and the key; `str` is the same."""
    future = client.submit(wait_at, gate.address, 1, key="shown")
    assert repr(future) == "<Future: status: pending, key: shown>"
    gate.wait_for()
    gate.open()
    future.result()
    assert repr(future) == str(future) == "<Future: status: finished, type: int, key: shown>"
    failed = client.submit(div, 1, 0, key="failed")
    failed.exception()
    assert repr(failed) == "<Future: status: error, key: failed>"
    failed.cancel()
    assert repr(failed) == "<Future: status: cancelled, key: failed>"
    frame = client.submit(pd.DataFrame, {"a": [1]}, key="frame")
    frame.result()
    assert repr(frame) == "<Future: status: finished, type: DataFrame, key: frame>"


class Custom:
    pass


@pytest.mark.parametrize(
    "value", [1, None, "a", [1], Custom(), np.zeros(3), np.zeros(100_000), b"x" * 100_000, pd.Series([1.5])], ids=repr
)
def test_type_is_the_class_of_the_result(client: Client, value: Any) -> None:
    """Once finished it is the class of the result, small or large; before, and on errors, None."""
    future = client.submit(copy.copy, value, pure=False)
    future.result()
    assert future.type is type(value)


def test_type_before_and_without_a_result(client: Client, gate: Gate) -> None:
    """While a task runs, when it failed, and after its future was cancelled, the type is None."""
    future = client.submit(wait_at, gate.address)
    assert future.type is None
    gate.wait_for()
    gate.open()
    future.result()
    assert future.type is type(None)
    future.cancel()
    assert future.type is None
    failed = client.submit(div, 1, 0)
    failed.exception()
    assert failed.type is None


def test_status_words(client: Client, gate: Gate) -> None:
    """pending, finished, error and cancelled are what `status`, `done`, `cancelled` and `running` say."""
    future = client.submit(wait_at, gate.address)
    assert (future.status, future.done(), future.cancelled(), future.running()) == ("pending", False, False, False)
    gate.wait_for()
    gate.open()
    future.result()
    assert (future.status, future.done(), future.cancelled()) == ("finished", True, False)
    failed = client.submit(div, 1, 0)
    failed.exception()
    assert (failed.status, failed.done(), failed.cancelled()) == ("error", True, False)
    failed.cancel()
    assert (failed.status, failed.done(), failed.cancelled()) == ("cancelled", True, True)


def test_identity(client: Client) -> None:
    """Handles are compared by identity, can be in sets, are true, and are no iterables."""
    a, b = client.submit(inc, 1), client.submit(inc, 1)
    assert a != b
    assert len({a, b}) == 2
    assert bool(a)
    assert a.client is a.executor is client
    with pytest.raises(TypeError):
        iter(a)  # type: ignore[call-overload]


# -- waiting


def test_result_may_be_asked_again(client: Client) -> None:
    """Every `result` is a fresh copy, which the caller may change."""
    future = client.submit(list, (1, 2))
    first = future.result()
    first.append(3)
    assert future.result() == [1, 2]
    assert future.result() is not future.result()


@pytest.mark.parametrize("timeout", [0, 0.001, "1ms", datetime.timedelta(milliseconds=1)])
@pytest.mark.parametrize("method", ["result", "exception", "traceback"])
def test_time_limits(client: Client, gate: Gate, method: str, timeout: Any) -> None:
    """What has not ended in time is a TimeoutError; the task runs on, and can be asked again."""
    future = client.submit(wait_at, gate.address, 3)
    with pytest.raises(TimeoutError, match="has not finished within"):
        getattr(future, method)(timeout)
    with pytest.raises(concurrent.futures.TimeoutError):
        getattr(future, method)(timeout=timeout)
    gate.wait_for()
    gate.open()
    assert future.result(timeout="30 s") == 3
    assert future.result(timeout=0) == 3, "what is there is there"


@pytest.mark.parametrize(
    ("duration", "expected"),
    [
        (None, None),
        (2, 2),
        (0.5, 0.5),
        ("100ms", 0.1),
        ("1s", 1),
        ("1.5 s", 1.5),
        ("10 minutes", 600),
        ("2 hours", 7200),
        ("1 day", 86400),
        ("3 us", 3e-6),
        ("5", 5),
        ("1e-3 s", 1e-3),
        ("minute", 60),
        (" 2 Sec ", 2),
        (datetime.timedelta(minutes=1), 60),
    ],
)
def test_durations(duration: Any, expected: float | None) -> None:
    """Durations are numbers of seconds, texts with a unit, or timedeltas."""
    assert seconds(duration) == (expected if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("duration", "error"), [("soon", ValueError), ("1 fortnight", ValueError), ("", ValueError), ([1], TypeError)]
)
def test_no_durations(duration: Any, error: type[Exception]) -> None:
    """Anything else is an error that says so."""
    with pytest.raises(error, match="duration"):
        seconds(duration)


# -- failing


def test_exception_and_traceback(client: Client) -> None:
    """They are None after success; after a failure the same objects every time, whatever `result` did."""
    good, bad = client.submit(inc, 1), client.submit(div, 1, 0)
    assert good.exception() is None
    assert good.traceback() is None
    error, remote = bad.exception(), bad.traceback()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            bad.result()
    assert bad.exception() is error
    assert bad.traceback() is remote
    assert isinstance(error, ZeroDivisionError)
    assert [frame.name for frame in traceback.extract_tb(remote)] == ["div"]
    assert [frame.name for frame in traceback.extract_tb(error.__traceback__)] == ["div"]


def test_raising_again_does_not_add_up(client: Client) -> None:
    """Each `result` raises with the remote frames and its own, not with those of earlier ones."""
    future = client.submit(div, 1, 0)
    depths = []
    for _ in range(3):
        with pytest.raises(ZeroDivisionError) as info:
            future.result()
        depths.append(len(traceback.extract_tb(info.value.__traceback__)))
    assert len(set(depths)) == 1


@pytest.mark.parametrize("kind", ["processes", "threads"])
def test_failed_futures_are_dropped_with_the_frame_that_held_them(client: Client, threads: Client, kind: str) -> None:
    """A caught error keeps nothing alive: neither the futures of the frame that caught it, nor their tasks."""
    client = client if kind == "processes" else threads

    def catch() -> tuple[weakref.ref[Future], Any]:
        future = client.submit(div, 1, 0, pure=False)
        with contextlib.suppress(ZeroDivisionError):
            future.result()
        with contextlib.suppress(ZeroDivisionError):
            client.gather([future])
        assert future.exception() is not None
        return weakref.ref(future), future.key

    gc.disable()
    try:
        ref, key = catch()
        assert ref() is None
    finally:
        gc.enable()
    eventually(client, lambda: key not in client.futures)


def test_failed_futures_whose_exception_was_kept_are_collected(client: Client) -> None:
    """Raising what `exception` returned makes a cycle, which the garbage collector can end."""

    def catch() -> tuple[weakref.ref[Future], Any]:
        future = client.submit(div, 1, 0, pure=False)
        try:
            raise future.exception()  # type: ignore[misc]
        except ZeroDivisionError:
            return weakref.ref(future), future.key

    ref, key = catch()
    gc.collect()
    assert ref() is None
    eventually(client, lambda: key not in client.futures)


class Awkward(Exception):
    """Takes other arguments than it keeps."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code


def raise_awkward() -> None:
    raise Awkward(5, "text")


def test_exceptions_that_pickle_badly(client: Client, threads: Client) -> None:
    """An exception whose class takes other arguments than it keeps fails its own future, readably."""
    with pytest.raises(Exception, match="5: text"):
        client.submit(raise_awkward).result()
    with pytest.raises(Awkward, match="5: text") as info:
        threads.submit(raise_awkward).result()
    assert info.value.code == 5


# -- cancelling, releasing


def test_cancelled_futures(client: Client, gate: Gate) -> None:
    """`cancel` returns None; `result` raises with the reason given; `exception` and `traceback` are None."""
    future = client.submit(wait_at, gate.address)
    assert future.cancel(reason="enough", msg="we have all we need") is None  # type: ignore[func-returns-value]
    assert future.cancelled()
    with pytest.raises(CancelledError, match=r"(?s)enough.*all we need") as info:
        future.result()
    assert isinstance(info.value, FutureCancelledError)
    assert (info.value.key, info.value.reason, info.value.msg) == (future.key, "enough", "we have all we need")
    assert future.exception() is None
    assert future.traceback() is None
    future.cancel()
    with pytest.raises(CancelledError, match="enough"):
        future.result()


def test_cancelling_wakes_those_who_wait(client: Client, gate: Gate) -> None:
    """A thread that is blocked in `result` gets a CancelledError when another one cancels."""
    future = client.submit(wait_at, gate.address)
    gate.wait_for()
    errors: list[BaseException] = []
    waiting = threading.Barrier(2)

    def wait() -> None:
        waiting.wait()
        try:
            future.result()
        except CancelledError as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    waiting.wait()
    future.cancel()
    thread.join()
    assert len(errors) == 1


def test_releasing_the_last_handle(client: Client) -> None:
    """It counts as cancelled, its key is free at once, and doing it twice is fine."""
    future = client.submit(inc, 1, pure=False)
    future.result()
    settled(client)
    future.release()
    future.release()
    assert future.status == "cancelled"
    assert future.key not in client.futures
    with pytest.raises(CancelledError, match="released"):
        future.result()


def test_releasing_one_of_two_handles(client: Client) -> None:
    """While another handle lives both are usable."""
    first, second = client.submit(inc, 5), client.submit(inc, 5)
    first.release()
    settled(client)
    assert second.result() == 6
    assert first.result() == 6
    second.release()
    settled(client)
    assert first.status == second.status == "cancelled"


def test_releasing_wakes_those_who_wait(calling: Client, gate: Gate) -> None:
    """Whoever waits for a future whose last handles are released hears that it is cancelled."""
    first = calling.submit(wait_at, gate.address)
    second = calling.submit(wait_at, gate.address)
    gate.wait_for()
    heard = threading.Event()
    first.add_done_callback(lambda future: heard.set())
    with calling._board.lock:  # so that the first handle is not counted as gone when the second is released
        del second
        first.release()
    assert heard.wait(20)
    assert first.status == "cancelled"


def test_dropping_a_handle_frees_the_value(client: Client) -> None:
    """`del` of the last handle removes the key and the stored value, without a garbage collection."""
    future = client.submit(np.zeros, 300_000)
    future.result()
    key, ref = future.key, weakref.ref(future)
    gc.disable()
    try:
        del future
        assert ref() is None
        eventually(client, lambda: key not in client.futures)
        eventually(client, lambda: key not in client.cluster._engine.core.tasks)
    finally:
        gc.enable()


def test_nothing_holds_arguments_and_results(threads: Client) -> None:
    """Where nothing is copied, arguments and results live as long as their futures, and no longer."""
    argument, results = Custom(), []

    def work(value: Custom) -> Custom:
        results.append(weakref.ref(value))
        return Custom()

    future = threads.submit(work, argument, pure=False)
    result = weakref.ref(future.result())
    seen = weakref.ref(argument)
    gc.disable()
    try:
        del argument
        eventually(threads, lambda: seen() is None and results[0]() is None)
        assert result() is not None
        del future
        eventually(threads, lambda: result() is None)
        argument = Custom()
        seen = weakref.ref(argument)
        future = threads.submit(div, argument, 0, pure=False)
        assert isinstance(future.exception(), TypeError)
        del argument, future
        eventually(threads, lambda: seen() is None)
    finally:
        gc.enable()


def test_retry_of_a_future(client: Client, tmp_path: Any) -> None:
    """`retry` runs a failed task again; its exception is the new one."""
    path = str(tmp_path / "runs")
    future = client.submit(fail_by_count, path)
    with pytest.raises(ValueError, match="run 1"):
        future.result()
    first = future.exception()
    future.retry()
    with pytest.raises(ValueError, match="run 2"):
        future.result()
    assert future.exception() is not first
    assert str(future.exception()) == "run 2"


def fail_by_count(path: str) -> None:
    note(path, "run")
    raise ValueError(f"run {len(notes(path))}")


# -- callbacks


@pytest.fixture
def calling() -> Any:
    """Give a client of the test's own: the first callback starts a thread."""
    with Client(processes=False, n_workers=1, threads_per_worker=1) as client:
        yield client


def test_callbacks_get_this_very_object(calling: Client) -> None:
    """A callback is called with the object it was added to, for success, failure and cancelling, done or not."""
    good, bad, gone = calling.submit(inc, 1), calling.submit(div, 1, 0), calling.submit(inc, 2)
    gone.cancel()
    for _ in range(2):  # the second time all are done
        got: list[Any] = []
        called = threading.Semaphore(0)

        def keep(future: Any, got: list[Any] = got, called: threading.Semaphore = called) -> None:
            got.append(future)
            called.release()

        for future in (good, bad, gone):
            future.add_done_callback(keep)
        for _ in range(3):
            assert called.acquire(timeout=20)
        assert set(map(id, got)) == {id(good), id(bad), id(gone)}


def test_callbacks_keep_their_order_and_their_thread(calling: Client, gate: Gate) -> None:
    """Callbacks of one future run in the order of registration, in one thread, and may ask for the result."""
    future = calling.submit(wait_at, gate.address, "value")
    seen: list[Any] = []
    done = threading.Event()
    for i in range(5):
        future.add_done_callback(lambda f, i=i: seen.append((i, threading.current_thread(), f.result())))  # type: ignore[misc]
    future.add_done_callback(lambda f: done.set())
    gate.wait_for()
    gate.open()
    assert done.wait(20)
    assert [(i, value) for i, _, value in seen] == [(i, "value") for i in range(5)]
    (thread,) = {thread for _, thread, _ in seen}
    assert thread is not threading.current_thread()


@pytest.mark.parametrize("error", [ValueError("bad callback"), SystemExit("bad callback")], ids=["error", "exit"])
def test_callbacks_that_raise_are_logged(calling: Client, caplog: Any, error: BaseException) -> None:
    """What a callback raises is logged, and the next ones are called all the same."""

    def fail(_future: Any) -> None:
        raise error

    future = calling.submit(inc, 1)
    called = threading.Event()
    with caplog.at_level(logging.ERROR, logger="localdist"):
        future.add_done_callback(fail)
        future.add_done_callback(lambda f: called.set())
        assert called.wait(20)
    assert "bad callback" in caplog.text


def test_callbacks_hold_futures_only_until_they_ran(calling: Client) -> None:
    """A future is kept by its callback, and let go when that has run."""
    called = threading.Event()
    calling.submit(inc, 1, pure=False).add_done_callback(lambda f: called.set())
    assert called.wait(20), "the callback kept the future, and so the task"
    eventually(calling, lambda: not calling.futures)


def test_callbacks_after_close() -> None:
    """A callback added when the client is closed is called as well."""
    client = Client(processes=False, n_workers=1)
    future = client.submit(inc, 1)
    first = threading.Event()
    future.add_done_callback(lambda f: first.set())
    client.close()
    assert first.wait(20)
    got: list[Any] = []
    called = threading.Event()

    def keep(future: Any) -> None:
        got.append(future.status)
        called.set()

    future.add_done_callback(keep)
    assert called.wait(20)
    assert got == ["cancelled"]


# -- the standard library


def test_standard_wait(client: Client, gate: Gate) -> None:
    """`concurrent.futures.wait` takes futures in every state, with each of its conditions."""
    pending, good, bad = client.submit(wait_at, gate.address), client.submit(inc, 1), client.submit(div, 1, 0)
    assert isinstance(pending, concurrent.futures.Future)
    gate.wait_for()
    done, not_done = concurrent.futures.wait([good, bad])
    assert (done, not_done) == ({good, bad}, set())
    both = [pending, good]
    assert concurrent.futures.wait(both, timeout=0) == ({good}, {pending})
    assert concurrent.futures.wait(both, return_when=concurrent.futures.FIRST_COMPLETED).done == {good}
    first = concurrent.futures.wait([pending, bad], return_when=concurrent.futures.FIRST_EXCEPTION)
    assert first == ({bad}, {pending})
    threading.Timer(0.05, gate.open).start()
    assert concurrent.futures.wait(both, timeout=20) == ({pending, good}, set())
    assert pending.status == "finished"


@pytest.mark.parametrize("end", ["success", "failure", "cancel"])
def test_standard_wait_hears_of_every_end(client: Client, gate: Gate, end: str) -> None:
    """A waiting `concurrent.futures.wait` wakes up however the task ends."""
    future = client.submit(wait_at, gate.address)
    gate.wait_for()
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(concurrent.futures.wait([future], timeout=20)))
    thread.start()
    eventually(client, lambda: future._entry is not None and future._entry.watchers is not None)
    if end == "cancel":
        future.cancel()
    elif end == "failure":
        gate._arrived.pop().close()
    else:
        gate.open()
    thread.join()
    assert results == [({future}, set())]


def test_standard_as_completed(client: Client) -> None:
    """`concurrent.futures.as_completed` yields each once, whether it had ended before or not."""
    futures = client.map(inc, range(50))
    futures[0].result()
    ended: Iterator[Any] = concurrent.futures.as_completed(futures, timeout=20)  # type: ignore[arg-type]
    assert sorted(future.result() for future in ended) == list(range(1, 51))


def test_standard_wait_on_two_clients_in_opposite_order(client: Client, threads: Client) -> None:
    """Two threads that wait for futures of the same two clients, in opposite order, do not wait for each other."""
    # The standard library locks futures in the order of their addresses.
    ours, theirs = [], []
    for number in range(30):
        ours.append(client.submit(inc, number))
        theirs.append(threads.submit(inc, number))
    ours.sort(key=id)
    theirs.sort(key=id)
    pairs = [(ours[0], theirs[-1]), (theirs[0], ours[-1])]
    assert all(id(first) < id(second) for first, second in pairs)
    concurrent.futures.wait([*ours, *theirs])
    begin = threading.Barrier(2)
    rounds = []

    def wait_often(pair: tuple[Future, Future]) -> None:
        begin.wait()
        for _ in range(300):
            more = {client.submit(inc, 1, pure=False), threads.submit(inc, 1, pure=False), *pair}
            rounds.append(concurrent.futures.wait(more, timeout=20).done == more)
            for _ in range(10):
                concurrent.futures.wait(pair)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        waiting = [threading.Thread(target=wait_often, args=(pair,), daemon=True) for pair in pairs]
        for thread in waiting:
            thread.start()
        for thread in waiting:
            thread.join(40)
            assert not thread.is_alive()
    finally:
        sys.setswitchinterval(interval)
    assert rounds == [True] * 600


class Counter:
    """What `concurrent.futures` hangs on a future, reduced to what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def add_result(self, _future: Any) -> None:
        self.told.append("result")

    def add_exception(self, _future: Any) -> None:
        self.told.append("exception")

    def add_cancelled(self, _future: Any) -> None:
        self.told.append("cancelled")


@pytest.mark.parametrize("moment", ["before the look", "between", "after", "twice after"])
@pytest.mark.parametrize("end", ["result", "exception", "cancelled"])
def test_a_standard_waiter_is_told_once(client: Client, gate: Gate, moment: str, end: str) -> None:
    """Whenever a future ends that the standard library looks at and then waits for, it is told once: there or later."""
    future = client.submit(wait_at, gate.address, pure=False)
    gate.wait_for()

    def finish() -> None:
        if end == "cancelled":
            future.cancel()
        elif end == "result":
            gate.open()
        else:
            gate._arrived.pop().close()
        eventually(client, future.done)

    counters = [Counter() for _ in range(2 if moment == "twice after" else 1)]
    if moment == "before the look":
        finish()
    with future._condition:
        seen = future._state
        if moment == "between":
            finish()
        assert future._state == seen, "what is seen stays the same while it is locked"
        for counter in counters:
            future._waiters.append(counter)
    assert (seen == "PENDING") == (moment != "before the look")
    if "after" in moment:
        finish()
    for counter in counters:
        assert counter.told == ([end] if seen == "PENDING" else [])
        with future._condition:
            future._waiters.remove(counter)
    assert future._entry is not None
    assert future._entry.watchers is None


def test_standard_wait_counts_right_while_futures_end(either: Client) -> None:
    """Futures that end while `concurrent.futures.wait` begins to wait are neither missed nor counted twice."""
    for _ in range(300):
        futures = set(either.map(inc, range(4), pure=False))
        assert concurrent.futures.wait(futures, timeout=20) == (futures, set())


def test_standard_waiting_keeps_nothing(client: Client, gate: Gate) -> None:
    """After the standard library has waited for a future, dropping it still frees it at once."""
    future = client.submit(wait_at, gate.address)
    gate.wait_for()
    concurrent.futures.wait([future], timeout=0)
    ref = weakref.ref(future)
    gc.disable()
    try:
        del future
        assert ref() is None
    finally:
        gc.enable()


def test_wrap_future(calling: Client) -> None:
    """`asyncio.wrap_future` makes it awaitable: values, errors and cancelling get through."""

    async def main() -> None:
        assert await asyncio.wrap_future(calling.submit(inc, 1)) == 2
        wrapped = [asyncio.wrap_future(future) for future in calling.map(inc, range(20))]
        assert await asyncio.gather(*wrapped) == list(range(1, 21))
        with pytest.raises(ZeroDivisionError):
            await asyncio.wrap_future(calling.submit(div, 1, 0))
        gone = calling.submit(inc, 1, pure=False)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wrap_future(gone)

    asyncio.run(main())


def test_cancelling_a_wrapped_future(calling: Client, gate: Gate) -> None:
    """Cancelling what `wrap_future` returned cancels the task's future."""
    future = calling.submit(wait_at, gate.address)

    async def main() -> None:
        wrapped = asyncio.wrap_future(future)
        wrapped.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wrapped

    asyncio.run(main())
    assert future.cancelled()


def test_what_the_standard_library_reads(client: Client) -> None:
    """`_state`, `_exception` and `_result` are what `concurrent.futures` (3.14: `_get_snapshot`) expects."""
    good, bad = client.submit(inc, 1), client.submit(div, 1, 0)
    concurrent.futures.wait([good, bad])
    assert (good._state, good._exception, good._result) == ("FINISHED", None, 2)
    assert (bad._state, bad._result) == ("FINISHED", None)
    assert isinstance(bad._exception, ZeroDivisionError)
    good.cancel()
    assert good._state == "CANCELLED_AND_NOTIFIED"


# -- pickling


def test_pickled_futures_are_handles(client: Client) -> None:
    """A pickled or copied future is another handle of the same key, in the process of its client."""
    future = client.submit(inc, 1, key="pickled")
    for other in (pickle.loads(pickle.dumps(future)), copy.copy(future), copy.deepcopy([future])[0]):
        assert type(other) is Future
        assert other is not future
        assert (other.key, other.client, other.result()) == (future.key, client, 2)
    del other
    settled(client)
    assert client.refcount[future.key] == 1


def test_pickled_futures_of_any_client(client: Client, threads: Client) -> None:
    """It is found again although another client is the default, or current."""
    future = client.submit(inc, 1, key="only here")
    with threads.as_current():
        assert pickle.loads(pickle.dumps(future)).client is client
    hidden = Client(processes=False, n_workers=1, set_as_default=False)
    future = hidden.submit(inc, 1, key="only there")
    assert pickle.loads(pickle.dumps(future)).client is hidden
    hidden.close()


def test_futures_without_a_client(client: Client) -> None:
    """A future that no client here knows has a key and the status None; using it is a RuntimeError that says why."""
    pickled = pickle.dumps(client.submit(inc, 1, key="forgotten", pure=False))
    settled(client)
    lost = pickle.loads(pickled)
    assert (lost.key, lost.status) == ("forgotten", None)
    assert "not bound" in repr(lost)
    for use in (lost.result, lost.exception, lost.done, lost.cancel, lost.release, lambda: client.submit(inc, lost)):
        with pytest.raises(RuntimeError, match="not bound to a client"):
            use()
    assert pickle.loads(pickle.dumps(lost)).key == "forgotten"


# -- many at once


def test_exception_beside_retry(either: Client) -> None:
    """While another thread retries a task that always fails, `exception` and `traceback` are never None."""
    future = either.submit(div, 1, 0)
    answers: set[Any] = set()
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            answers.add(type(future.exception(20)))
            answers.add(future.traceback(20) is None)

    asking = [threading.Thread(target=ask) for _ in range(2)]
    for thread in asking:
        thread.start()
    for _ in range(100):
        either.retry(future)
        answers.add(type(future.exception(20)))
    stop.set()
    for thread in asking:
        thread.join()
    assert answers == {ZeroDivisionError, False}


def test_a_result_whose_memory_was_used_again(client: Client) -> None:
    """What `result` has begun to load when the last handle goes is an error once other data lie there, not these data."""
    future = client.submit(np.full, 50_000, 1, pure=False)
    assert future.result()[0] == 1
    assert future._entry is not None
    outcome = future._entry.outcome
    future.release()

    def lies_there() -> bool:
        other = client.submit(np.full, 50_000, 2, pure=False)
        assert other.result()[0] == 2
        assert other._entry is not None
        return bool(other._entry.outcome.name == outcome.name)

    eventually(client, lies_there)
    with pytest.raises(FileNotFoundError, match="was released"):
        client._transport.load(outcome, "key")


def test_results_against_reuse(client: Client) -> None:
    """`result` racing with `release` gives the task's own value or an error, never what its memory holds next."""
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            client.submit(np.full, 50_000, -1, pure=False).result()

    writing = threading.Thread(target=write)
    writing.start()
    try:
        for number in range(100):
            future = client.submit(np.full, 50_000, number, pure=False)
            future.exception()
            outcomes: list[Any] = []

            def ask(future: Future = future, number: int = number, outcomes: list[Any] = outcomes) -> None:
                try:
                    while True:
                        outcomes.append(bool((future.result() == number).all()))
                except CancelledError:
                    return

            thread = threading.Thread(target=ask)
            thread.start()
            future.release()
            thread.join()
            assert set(outcomes) <= {True}
    finally:
        stop.set()
        writing.join()


def test_results_against_cancelling(client: Client) -> None:
    """`result` racing with `cancel` gives the value or a CancelledError, never anything else."""
    for size in (10, 20_000):
        for _ in range(50):
            future = client.submit(np.full, size, 7, pure=False)
            future.exception()
            outcomes: list[Any] = []

            def ask(future: Future = future, outcomes: list[Any] = outcomes) -> None:
                try:
                    while True:
                        outcomes.append(bool((future.result() == 7).all()))
                        repr(future)
                except CancelledError:
                    outcomes.append("cancelled")

            thread = threading.Thread(target=ask)
            thread.start()
            future.cancel()
            thread.join()
            assert outcomes[-1] == "cancelled"
            assert set(outcomes[:-1]) <= {True}
