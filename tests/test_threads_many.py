"""One client, many threads at once: nothing is lost, mixed up or left over."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from localdist import CancelledError, Client, as_completed, fire_and_forget, wait
from tests.support import add, div, eventually, identity, inc

THREADS = 8


@pytest.fixture(params=["client", "threads"])
def either(request: pytest.FixtureRequest, client: Client, threads: Client) -> Client:
    """Give a client with processes, and one with threads."""
    return client if request.param == "client" else threads


def together(work: Callable[[int], Any]) -> None:
    """Call `work` with its number in many threads at once, and raise the first error of any of them."""
    errors: list[BaseException] = []
    start = threading.Barrier(THREADS)

    def run(number: int) -> None:
        start.wait()
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001  # raised again by the test's thread
            errors.append(error)

    running = [threading.Thread(target=run, args=(i,)) for i in range(THREADS)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if errors:
        raise errors[0]


def test_submitting_and_gathering(either: Client) -> None:
    """Every thread gets its own results, whether calls are shared between threads or not."""

    def work(number: int) -> None:
        for i in range(10):
            own = [either.submit(add, number, j, pure=False) for j in range(20)]
            shared = [either.submit(inc, i * 20 + j) for j in range(20)]
            mapped = either.map(inc, range(50))
            assert either.gather(own) == [number + j for j in range(20)]
            assert either.gather(shared) == [i * 20 + j + 1 for j in range(20)]
            assert either.gather(mapped) == list(range(1, 51))

    together(work)


def test_everything_at_once(either: Client) -> None:
    """Submitting, cancelling, releasing, waiting, retrying and forgetting at once leaves every future ended."""
    pool: list[Any] = []

    def work(number: int) -> None:
        chance = random.Random(number)
        for _ in range(60):
            future = either.submit(inc, chance.randrange(30))
            dependent = either.submit(add, future, chance.randrange(3))
            pool.append(dependent)
            action = chance.randrange(8)
            try:
                if action == 0:
                    future.cancel()
                elif action == 1:
                    future.release()
                elif action == 2:
                    assert future.result() > 0
                elif action == 3:
                    wait([future, dependent])
                elif action == 4:
                    fire_and_forget(dependent)
                elif action == 5:
                    either.cancel(pool[chance.randrange(len(pool))])
                elif action == 6:
                    bad = either.submit(div, chance.randrange(5), 0)
                    assert isinstance(bad.exception(), (ZeroDivisionError, type(None)))
                    bad.retry()
                else:
                    either.gather(either.map(inc, range(20)), errors="skip")
            except CancelledError:
                continue

    together(work)
    assert {f.status for f in as_completed(pool)} <= {"finished", "cancelled"}
    assert either.gather(either.map(inc, range(100), pure=False)) == list(range(1, 101))
    keys = {future.key for future in pool}
    pool.clear()
    eventually(either, lambda: not keys & either.futures.keys())
    eventually(either, lambda: not keys & either.cluster._engine.core.tasks.keys())


def test_equal_large_calls(either: Client) -> None:
    """Threads that submit or scatter the same large data at once share them, and all is freed in the end."""

    def live() -> int:
        return int(either._transport.inspect("statistics")["total_bytes"])

    eventually(either, lambda: live() == 0)
    array = np.arange(100_000)

    def work(number: int) -> None:
        for i in range(5):
            call = either.submit(np.sum, array + i)
            data = either.scatter(array + i)
            named = either.scatter({"array": array})["array"]
            assert call.result() == (array + i).sum()
            assert np.array_equal(data.result(), array + i)
            assert either.submit(identity, data).result()[0] == i
            assert either.submit(np.sum, named).result() == array.sum()

    together(work)
    eventually(either, lambda: live() == 0)
    eventually(either, lambda: "array" not in either.futures)


def test_one_future_waited_for_by_many(either: Client) -> None:
    """All threads that wait for one future get its value."""
    futures = [either.submit(sum, range(1000)) for _ in range(5)]
    together(lambda number: [f.result() for f in futures] == [499500] * 5 or pytest.fail("wrong result"))


def test_sharing_and_dropping(either: Client) -> None:
    """Submitting a call whose last future is dropped at the same moment always gives its result."""

    def work(number: int) -> None:
        for i in range(300):
            assert either.submit(inc, i % 3).result() == i % 3 + 1

    together(work)


def test_cancelling_against_submitting(either: Client) -> None:
    """One call cancelled and submitted by many threads at once ends for each of them."""

    def work(number: int) -> None:
        for _ in range(100):
            future = either.submit(inc, 7)
            if number % 2:
                future.cancel()
                assert future.cancelled()
            else:
                try:
                    assert future.result() == 8
                except CancelledError:
                    assert future.cancelled()

    together(work)
    assert either.submit(inc, 7).result() == 8
