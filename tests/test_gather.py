"""`Client.gather`: many results in the shape in which their futures were given."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from localdist import CancelledError, Client, ClosedClientError, LocalCluster
from tests.support import Gate, div, identity, inc, wait_at


class Pair(NamedTuple):
    left: Any
    right: Any


def test_shapes(client: Client) -> None:
    """What comes back has the shape of what was given, at any depth; what is no future passes through."""
    a, b = client.map(inc, [0, 1])
    for given, expected in [
        (a, 1),
        ([a, b], [1, 2]),
        ((a, b), (1, 2)),
        ({a, b}, {1, 2}),
        (frozenset([a]), frozenset([1])),
        ({"x": a, "y": [b, {"z": (a,)}]}, {"x": 1, "y": [2, {"z": (1,)}]}),
        (Pair(a, [b]), Pair(1, [2])),
        ([a, 5, "text", None, [b]], [1, 5, "text", None, [2]]),
        ([a, a, [a]], [1, 1, [1]]),
        ([], []),
        ({}, {}),
        ((), ()),
        (7, 7),
        (None, None),
    ]:
        result = client.gather(given)
        assert result == expected
        assert type(result) is type(expected)


def test_keys_are_not_futures(client: Client) -> None:
    """The key of a future in the same list stays text."""
    a = client.submit(inc, 0)
    assert client.gather([a, a.key]) == [1, a.key]


def test_many_results(client: Client) -> None:
    """A list of thousands of futures gives their results in order."""
    assert client.gather(client.map(inc, range(5_000))) == list(range(1, 5_001))


def test_iterators_are_lazy(client: Client) -> None:
    """An iterator or generator gives a generator of results; a queue is a TypeError."""
    results = client.gather(iter(client.map(inc, range(3))))
    assert isinstance(results, Iterator)
    assert list(results) == [1, 2, 3]
    assert list(client.gather(f for f in client.map(inc, range(3)))) == [1, 2, 3]
    with pytest.raises(TypeError, match="gather takes futures"):
        client.gather(queue.Queue())


def test_first_failure_in_order_is_raised(client: Client) -> None:
    """Of several failures the first in the order of the input is raised."""
    futures = [client.submit(inc, 0), client.submit(div, 1, 0), client.submit(int, "no number")]
    for future in futures:
        future.exception()
    with pytest.raises(ZeroDivisionError):
        client.gather(futures)
    with pytest.raises(ValueError, match="no number"):
        client.gather({"x": futures[0], "y": (futures[2], futures[1])})


def test_failures_are_raised_at_once(client: Client, gate: Gate) -> None:
    """A failure does not wait for tasks that still run."""
    slow = client.submit(wait_at, gate.address, pure=False)
    gate.wait_for()
    with pytest.raises(ZeroDivisionError):
        client.gather([slow, client.submit(div, 1, 0)])
    assert slow.status == "pending"
    gate.open()


def test_cancelled_futures_are_raised(client: Client) -> None:
    """A cancelled future is a CancelledError."""
    gone = client.submit(inc, 1, pure=False)
    gone.cancel()
    with pytest.raises(CancelledError):
        client.gather([client.submit(inc, 0), gone])


def test_skipping(client: Client) -> None:
    """`errors="skip"` leaves failed and cancelled ones out of a list, and puts None in their place elsewhere."""
    good, bad, gone = client.submit(inc, 0), client.submit(div, 1, 0), client.submit(inc, 5, pure=False)
    gone.cancel()
    assert client.gather([bad, good, gone, good], errors="skip") == [1, 1]
    assert client.gather((bad, good), errors="skip") == (None, 1)
    assert client.gather({"x": bad, "y": good}, errors="skip") == {"x": None, "y": 1}
    assert client.gather({good, bad}, errors="skip") == {1, None}
    assert client.gather(bad, errors="skip") is None
    assert client.gather([good, [bad, good]], errors="skip") == [1, [None, 1]]
    assert client.gather([bad], errors="skip") == []


def test_skipping_waits_for_all(client: Client, gate: Gate) -> None:
    """`errors="skip"` waits for what still runs."""
    slow = client.submit(wait_at, gate.address, "slow")
    gate.wait_for()
    bad = client.submit(div, 1, 0)
    assert bad.exception() is not None
    gate.open()
    assert client.gather([bad, slow], errors="skip") == ["slow"]


def test_other_ways_to_treat_errors(client: Client) -> None:
    """Anything but "raise" and "skip" is a ValueError."""
    with pytest.raises(ValueError, match="errors must be"):
        client.gather([client.submit(inc, 1)], errors="ignore")


def test_futures_of_other_clients(client: Client, threads: Client) -> None:
    """A future of another client is a ValueError, alone or among others, and so it is as an argument."""
    foreign = threads.submit(inc, 1)
    for given in (foreign, [foreign], {"x": [client.submit(inc, 1), foreign]}):
        with pytest.raises(ValueError, match="another client"):
            client.gather(given)
    with pytest.raises(ValueError, match="another client"):
        client.submit(identity, [foreign])
    with pytest.raises(ValueError, match="another client"):
        client.cancel([foreign])
    with pytest.raises(ValueError, match="another client"):
        client.retry(foreign)


def test_gather_on_a_client_that_is_closed_meanwhile(gate: Gate) -> None:
    """Closing wakes a thread that gathers, with an error."""
    errors: list[BaseException] = []
    with LocalCluster(processes=False, n_workers=1, threads_per_worker=1) as cluster:
        client = Client(cluster)
        future = client.submit(wait_at, gate.address)
        gate.wait_for()

        def wait() -> None:
            try:
                client.gather([future])
            except (CancelledError, ClosedClientError) as error:
                errors.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        client.close()
        thread.join()
        gate.open()
    assert len(errors) == 1
