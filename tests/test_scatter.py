"""`Client.scatter`: data in the store, for any number of tasks."""

from __future__ import annotations

import collections
import queue
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from localdist import Client, Future
from tests.support import Gate, add, inc, wait_at


def iter_nothing() -> Iterator[int]:
    yield from ()


class Point(NamedTuple):
    x: Any
    y: Any


class Undescribed:
    def __init__(self, value: int) -> None:
        self.value = value

    def __localdist_token__(self) -> Any:
        return object()


class Dict(dict):
    pass


@pytest.mark.parametrize("data", [[1, 2, 3], (1, 2), {1, 2}, frozenset({1, 2}), Point(1, [2])])
def test_containers_are_scattered_by_element(client: Client, data: Any) -> None:
    """A list, tuple, set, frozenset or named tuple gives the same container of futures, one per element."""
    futures = client.scatter(data)
    assert type(futures) is type(data)
    assert all(type(future) is Future and future.status == "finished" for future in futures)
    assert client.gather(futures) == data


def test_ranges_and_dicts(client: Client) -> None:
    """A range gives a list of futures; a dict a dict with its keys, which name the data."""
    assert client.gather(client.scatter(range(3))) == [0, 1, 2]
    futures = client.scatter({"alpha": 1, ("b", 2): [2]})
    assert {key: future.key for key, future in futures.items()} == {"alpha": "alpha", ("b", 2): ("b", 2)}
    assert client.gather(futures) == {"alpha": 1, ("b", 2): [2]}


@pytest.mark.parametrize(
    "data",
    ["text", None, 5, b"bytes", collections.deque([1]), Dict(a=1), collections.OrderedDict(a=1), np.arange(4)],
    ids=lambda data: type(data).__name__,
)
def test_anything_else_is_one_value(client: Client, data: Any) -> None:
    """Text, None, numbers, arrays, other containers and subclasses are one value each."""
    future = client.scatter(data)
    assert type(future) is Future
    assert future.status == "finished"
    assert future.type is type(data)
    result = future.result()
    assert type(result) is type(data)
    assert np.all(result == data)


@pytest.mark.parametrize("data", [iter([1]), (x for x in [1]), queue.Queue()], ids=["iterator", "generator", "queue"])
def test_what_is_not_data_is_refused(client: Client, data: Any) -> None:
    """An iterator, a generator or a queue is a TypeError."""
    with pytest.raises(TypeError, match="scatter takes data"):
        client.scatter(data)


def test_data_that_cannot_be_pickled(client: Client) -> None:
    """It is a TypeError from `scatter` which names the type."""
    with pytest.raises(TypeError, match="generator"):
        client.scatter([iter_nothing()])


def test_empty_containers(client: Client) -> None:
    """They come back empty."""
    assert client.scatter([]) == []
    assert client.scatter({}) == {}
    assert client.scatter(()) == ()


def test_keys_carry_the_type(client: Client) -> None:
    """The key is the type's name and 32 hex digits; equal values share it, unless `hash=False`."""
    first, second = client.scatter([5, 5])
    assert re.fullmatch(r"int-[0-9a-f]{32}", first.key)
    assert first.key == second.key
    assert first is not second
    assert client.scatter(np.arange(3)).key == client.scatter(np.arange(3)).key
    assert client.scatter(5.0).key != first.key
    one, two = client.scatter([7, 7], hash=False)
    assert one.key != two.key
    assert one.key.startswith("int-")


def test_frames(client: Client) -> None:
    """A data frame comes back equal, with its type known before it is loaded."""
    frame = pd.DataFrame({"a": np.arange(10_000), "b": list("xy") * 5_000})
    future = client.scatter(frame)
    assert future.type is pd.DataFrame
    pd.testing.assert_frame_equal(future.result(), frame)
    assert client.submit(len, future).result() == 10_000


def test_scattered_values_are_arguments(client: Client) -> None:
    """They can be given to any number of tasks, nested or not, and to `map`."""
    x, y = client.scatter([1, 2])
    assert client.submit(add, x, y).result() == 3
    assert client.submit(sum, [x, y, x]).result() == 4
    assert client.gather(client.map(inc, [x, y])) == [2, 3]


def test_same_key_with_the_same_value(client: Client) -> None:
    """Scattering an equal value under a key that is alive gives another handle of it."""
    first = client.scatter({"same": [1, 2]})["same"]
    second = client.scatter({"same": [1, 2]})["same"]
    assert first is not second
    assert second.result() == [1, 2]


def test_same_key_with_another_value(client: Client) -> None:
    """Another value under a key that is alive is a ValueError, for data and for tasks; once it is free it works."""
    held = client.scatter({"params": 1})["params"]
    with pytest.raises(ValueError, match="'params' is in use"):
        client.scatter({"params": 2})
    assert held.result() == 1
    task = client.submit(inc, 1, key="a task")
    with pytest.raises(ValueError, match="'a task' is in use"):
        client.scatter({"a task": 2})
    del held, task
    assert client.gather(client.scatter({"params": 2, "a task": 3})) == {"params": 2, "a task": 3}


@pytest.mark.parametrize("how", ["release", "del"])
@pytest.mark.parametrize("size", [1, 50_000], ids=["small", "large"])
def test_a_released_key_names_other_data(either: Client, how: str, size: int) -> None:
    """After `release` a key names the data that are scattered under it next, as argument and as result, at once."""
    for number in range(40):
        data = either.scatter({"x": np.full(size, number)})["x"]
        assert either.submit(np.sum, data).result() == size * number
        assert (data.result() == number).all()
        if how == "release":
            data.release()
        del data


def test_values_that_cannot_be_described(client: Client) -> None:
    """Of such values nobody can say that they are equal: each gets its own key, and none may share an explicit one."""
    one, two = client.scatter([lambda: object(), np.random.default_rng(0)])
    assert one.key != two.key
    held = client.scatter({"odd": Undescribed(1)})
    with pytest.raises(ValueError, match="in use"):
        client.scatter({"odd": Undescribed(2)})
    assert held["odd"].result().value == 1


def test_wrong_keys(client: Client) -> None:
    """A dict's key that cannot be a task's key is a TypeError."""
    with pytest.raises(TypeError, match="a key is"):
        client.scatter({b"bytes": 1})


def test_broadcast_and_workers_are_accepted(client: Client) -> None:
    """All workers share one store, so where data should go makes no difference."""
    assert client.scatter(1, broadcast=True).result() == 1
    assert client.gather(client.scatter([1], workers=[0], direct=True, timeout="5 s")) == [1]


def test_data_are_taken_at_scatter(client: Client) -> None:
    """What is written into the data afterwards is not seen by anyone."""
    data, array = [1], np.zeros(50_000)
    futures = client.scatter([data, array])
    data.append(2)
    array[:] = 1
    assert futures[0].result() == [1]
    assert client.submit(np.sum, futures[1]).result() == 0


def test_cancelled_data_are_gone(client: Client) -> None:
    """Cancelled data cannot be had any more, and can be scattered again."""
    future = client.scatter({"gone": 1})["gone"]
    future.cancel()
    assert future.status == "cancelled"
    assert client.scatter({"gone": 2})["gone"].result() == 2


def test_dependents_keep_data(client: Client, gate: Gate) -> None:
    """Data whose future is dropped stay for the tasks that need them."""
    data = client.scatter(np.ones(200_000))
    task = client.submit(wait_at, gate.address, data)
    gate.wait_for()
    later = client.submit(np.sum, data)
    del data
    gate.open()
    assert later.result() == 200_000
    assert task.result().sum() == 200_000
