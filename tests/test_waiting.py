"""`wait`, `as_completed`, `fire_and_forget`, `futures_of` and `progress`."""

from __future__ import annotations

import concurrent.futures
import io
import threading
from typing import Any

import pytest

from localdist import (
    CancelledError,
    Client,
    TimeoutError,
    as_completed,
    fire_and_forget,
    futures_of,
    progress,
    wait,
)
from localdist.errors import FuturesCancelledError
from tests.support import Gate, div, eventually, inc, note, note_and_fail, notes, settled, wait_at

# -- wait


def test_wait_for_all(client: Client) -> None:
    """It returns the same objects in two sets, failed ones among the done, and accepts nested collections."""
    good, bad, other = client.submit(inc, 1), client.submit(div, 1, 0), client.submit(inc, 2)
    result = wait([good, {"x": (bad,)}, {other}, 5, "text"])
    assert isinstance(result, concurrent.futures._base.DoneAndNotDoneFutures)
    assert result.done == {good, bad, other}
    assert result.not_done == set()
    assert wait(good) == ({good}, set())


def test_wait_for_nothing(client: Client) -> None:
    """Without futures there is nothing to wait for."""
    assert wait([]) == (set(), set())
    assert wait([1]) == (set(), set())


def test_wait_for_the_first(client: Client, gate: Gate) -> None:
    """FIRST_COMPLETED returns when one is done, and says which are not."""
    slow, quick = client.submit(wait_at, gate.address), client.submit(inc, 1)
    assert wait([slow, quick], return_when="FIRST_COMPLETED") == ({quick}, {slow})
    gate.wait_for()
    threading.Timer(0.0, gate.open).start()
    assert wait([slow], return_when="FIRST_COMPLETED") == ({slow}, set())


@pytest.mark.parametrize("timeout", [0, "1ms"])
def test_wait_is_all_or_nothing(client: Client, gate: Gate, timeout: Any) -> None:
    """When not all have ended in time it is a TimeoutError, whatever has ended."""
    slow, quick = client.submit(wait_at, gate.address), client.submit(inc, 1)
    quick.result()
    with pytest.raises(TimeoutError, match="1 of 2 futures"):
        wait([slow, quick], timeout=timeout)
    with pytest.raises(TimeoutError):
        wait(slow, timeout=timeout, return_when="FIRST_COMPLETED")
    gate.wait_for()
    gate.open()
    assert wait([slow, quick], timeout="20 s").not_done == set()


def test_wait_refuses_what_it_cannot_do(client: Client) -> None:
    """Two futures instead of a list are a TypeError with a hint; FIRST_EXCEPTION is not implemented."""
    x, y = client.map(inc, [1, 2])
    with pytest.raises(TypeError, match=r"wait\(\[x, y\]\)"):
        wait(x, y)  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError, match="FIRST_COMPLETED"):
        wait([x, y], return_when="FIRST_EXCEPTION")


def test_wait_and_cancelled_futures(client: Client) -> None:
    """A cancelled future among those that are done is a CancelledError, which groups them by reason."""
    good, one, two, three = (client.submit(inc, i, pure=False) for i in range(4))
    one.cancel(reason="first")
    two.cancel(reason="second")
    three.cancel(reason="first")
    with pytest.raises(CancelledError) as info:
        wait([good, one, two, three])
    assert isinstance(info.value, FuturesCancelledError)
    keys = {reason: {error.key for error in errors} for reason, errors in info.value.error_groups.items()}
    assert keys == {"first": {one.key, three.key}, "second": {two.key}}


def test_wait_on_several_clients(client: Client, threads: Client, gate: Gate) -> None:
    """Futures of several clients can be waited for together."""
    here, there = client.map(inc, range(20)), threads.map(inc, range(20))
    assert wait([*here, *there]).done == {*here, *there}
    slow = client.submit(wait_at, gate.address), threads.submit(wait_at, gate.address)
    gate.wait_for(2)
    with pytest.raises(TimeoutError):
        wait(slow, timeout="1ms")
    with pytest.raises(TimeoutError):
        wait(slow, timeout="1ms", return_when="FIRST_COMPLETED")
    gate.open()
    assert wait(slow, return_when="FIRST_COMPLETED").done
    assert wait(slow).not_done == set()


# -- as_completed


def test_as_completed_yields_in_the_order_of_completion(client: Client, gate: Gate) -> None:
    """The futures themselves are yielded, in the order in which they end, failed and cancelled ones too."""
    slow = client.submit(wait_at, gate.address)
    gate.wait_for()
    bad, gone = client.submit(div, 1, 0), client.submit(inc, 5, pure=False)
    gone.cancel()
    seq = as_completed([slow, bad, gone])
    assert {next(seq), next(seq)} == {bad, gone}
    gate.open()
    assert next(seq) is slow
    with pytest.raises(StopIteration):
        next(seq)


def test_as_completed_takes_any_iterable(client: Client) -> None:
    """A generator will do, the same future twice is yielded twice, and nothing at all ends at once."""
    futures = client.map(inc, range(10))
    assert {f.result() for f in as_completed(f for f in futures)} == set(range(1, 11))
    assert [f.result() for f in as_completed([futures[0]] * 3)] == [1, 1, 1]
    assert list(as_completed([])) == list(as_completed()) == []


def test_as_completed_takes_futures_only(client: Client) -> None:
    """Anything else, and a bare future, is a TypeError."""
    future = client.submit(inc, 1)
    with pytest.raises(TypeError, match="takes futures, not int"):
        as_completed([future, 1])
    with pytest.raises(TypeError, match="collection of futures"):
        as_completed(future)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="takes futures"):
        as_completed([]).add("text")


def test_with_results(client: Client) -> None:
    """Pairs of future and result; a failed one raises at its step and the rest follow; a cancelled one does not."""
    good, bad, gone = client.submit(inc, 1), client.submit(div, 1, 0), client.submit(inc, 5, pure=False)
    gone.cancel()
    wait([good, bad])
    seq = as_completed([bad, good, gone], with_results=True)
    with pytest.raises(ZeroDivisionError):
        next(seq)
    assert next(seq) == (good, 2)
    future, error = next(seq)
    assert future is gone
    assert isinstance(error, CancelledError)
    assert list(seq) == []


def test_errors_as_results(client: Client) -> None:
    """With `raise_errors=False` the result of a failed one is class, exception and traceback."""
    bad = client.submit(div, 1, 0)
    ((future, (kind, error, remote)),) = as_completed([bad], with_results=True, raise_errors=False)
    assert future is bad
    assert kind is ZeroDivisionError
    assert isinstance(error, ZeroDivisionError)
    assert remote is bad.traceback()


def test_adding_while_iterating(client: Client) -> None:
    """Futures added during the iteration, and after its end, are yielded as well."""
    seq = as_completed([client.submit(inc, 0)])
    results = []
    for future in seq:
        results.append(future.result())
        if len(results) < 5:
            seq.add(client.submit(inc, future))
    assert results == [1, 2, 3, 4, 5]
    seq.update(client.map(inc, [10, 20]))
    assert {f.result() for f in seq} == {11, 21}


def test_adding_from_other_threads(client: Client, gate: Gate) -> None:
    """A future that another thread adds wakes the one that iterates."""
    slow = client.submit(wait_at, gate.address)
    gate.wait_for()
    seq = as_completed([slow])
    future = client.submit(inc, 1)
    adding = threading.Timer(0.0, seq.add, [future])
    adding.start()
    assert next(seq) is future
    gate.open()
    assert next(seq) is slow
    adding.join()


def test_batches(client: Client) -> None:
    """Lists of at least one, and all that are ready; only the first of a list raises its error."""
    futures = client.map(inc, range(20))
    assert sorted(f.result() for batch in as_completed(futures).batches() for f in batch) == list(range(1, 21))
    good, bad = client.submit(inc, 1), client.submit(div, 1, 0)
    wait([good, bad])
    (batch,) = as_completed([good, bad], with_results=True).batches()
    assert batch[0] == (good, 2)
    assert batch[1][0] is bad
    assert batch[1][1][0] is ZeroDivisionError
    with pytest.raises(ZeroDivisionError):
        next(as_completed([bad, good], with_results=True).batches())


def test_next_batch(client: Client, gate: Gate) -> None:
    """`block=False` may give an empty list; at the end it is StopIteration."""
    slow, quick = client.submit(wait_at, gate.address), client.submit(inc, 1)
    gate.wait_for()
    quick.result()
    seq = as_completed([slow, quick])
    assert seq.next_batch() == [quick]
    assert seq.next_batch(block=False) == []
    gate.open()
    assert seq.next_batch() == [slow]
    for block in (True, False):
        with pytest.raises(StopIteration):
            seq.next_batch(block=block)


def test_counting(client: Client, gate: Gate) -> None:
    """`count`, `is_empty`, `has_ready`, `clear` and `repr` say what is left."""
    slow, quick = client.submit(wait_at, gate.address), client.submit(inc, 1)
    gate.wait_for()
    quick.result()
    seq = as_completed([slow, quick])
    assert (seq.count(), seq.is_empty(), seq.has_ready()) == (2, False, True)
    assert repr(seq) == "<as_completed: waiting=1 done=1>"
    assert seq.next() is quick
    assert (seq.count(), seq.is_empty(), seq.has_ready()) == (1, False, False)
    seq.clear()
    assert (seq.count(), seq.is_empty(), seq.has_ready()) == (0, True, False)
    assert list(seq) == []
    gate.open()
    slow.result()
    assert list(seq) == []


def test_time_limit_of_as_completed(client: Client, gate: Gate) -> None:
    """The limit counts from the construction; what is ready is delivered even after it."""
    slow, quick = client.submit(wait_at, gate.address), client.submit(inc, 1)
    gate.wait_for()
    quick.result()
    seq = as_completed([slow, quick], timeout=0)
    assert next(seq) is quick
    with pytest.raises(TimeoutError):
        next(seq)
    gate.open()
    slow.result()
    assert next(seq) is slow


# -- fire_and_forget


def test_fire_and_forget_runs_without_futures(client: Client, gate: Gate, tmp_path: Any) -> None:
    """A task that is kept so runs, with all it needs, although every future is dropped; then it is forgotten."""
    path = str(tmp_path / "runs")
    blockers = client.map(wait_at, [gate.address] * 2, pure=False)
    gate.wait_for(2)
    first = client.submit(note, path, "first")
    last = client.submit(note, path, [first])
    failing = client.submit(note_and_fail, path)
    fire_and_forget({"a": [last, failing]})
    keys = {first.key, last.key, failing.key}
    del first, last, failing
    settled(client)
    gate.open()
    client.gather(blockers)
    eventually(client, lambda: len(notes(path)) == 3)
    assert set(notes(path)) == {"first", "['first']", "ran"}
    eventually(client, lambda: not keys & client.cluster._engine.core.tasks.keys())


def test_fire_and_forget_ignores_other_things(client: Client) -> None:
    """What is no future is ignored; a future that has ended is left as it is."""
    fire_and_forget(5)
    fire_and_forget([])
    future = client.submit(inc, 1)
    future.result()
    fire_and_forget(future)
    assert future.result() == 2


# -- futures_of, progress


def test_futures_of(client: Client) -> None:
    """It lists the futures in nested collections, in order, and refuses cancelled ones when a client is given."""
    a, b, c = client.map(inc, range(3))
    assert futures_of([a, {"x": (b, 5)}, [[c]], a]) == [a, b, c, a]
    assert futures_of("nothing") == []
    assert futures_of([a], client=client) == [a]
    c.cancel()
    with pytest.raises(FuturesCancelledError):
        futures_of([a, c], client=client)
    assert futures_of([a, c]) == [a, c]


def test_progress(client: Client, capsys: Any) -> None:
    """It draws a bar until all have ended, and returns None; failures are counted, not raised."""
    futures = client.map(inc, range(10))
    assert progress(futures) is None  # type: ignore[func-returns-value]
    drawn = capsys.readouterr().out
    assert f"[{'#' * 40}]" in drawn
    assert "100% completed" in drawn
    assert drawn.endswith(" s\n")
    out = io.StringIO()
    progress(client.submit(div, 1, 0), client.submit(inc, 1), file=out)
    assert "1 failed or cancelled" in out.getvalue()
    with pytest.raises(ValueError, match="group_by"):
        progress(futures, group_by="color")
