"""`Client.map`: one future per element, in order, at once."""

from __future__ import annotations

import queue
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from localdist import Client, Future
from tests.support import (
    Gate,
    add,
    cancelled_everywhere,
    echo,
    eventually,
    identity,
    inc,
    note,
    notes,
    pid,
    settled,
    wait_at,
)


def iter_nothing() -> Iterator[int]:
    yield from ()


INPUTS = {
    "list": [1, 2, 3],
    "tuple": (1, 2, 3),
    "range": range(1, 4),
    "dict": {1: "a", 2: "b", 3: "c"},
    "dict keys": {1: "a", 2: "b", 3: "c"}.keys(),
    "dict values": {"a": 1, "b": 2, "c": 3}.values(),
    "array": np.array([1, 2, 3]),
}


@pytest.mark.parametrize("elements", INPUTS.values(), ids=INPUTS)
def test_sized_collections(client: Client, elements: Any) -> None:
    """Every sized collection gives a list of futures, in the order of its elements."""
    futures = client.map(inc, elements)
    assert type(futures) is list
    assert all(type(future) is Future for future in futures)
    assert client.gather(futures) == [2, 3, 4]


def test_sets_and_text(client: Client) -> None:
    """A set gives its elements, a text its characters."""
    assert set(client.gather(client.map(inc, {1, 2, 3}))) == {2, 3, 4}
    assert client.gather(client.map(str.upper, "abc")) == ["A", "B", "C"]


@pytest.mark.parametrize(
    "elements",
    [iter([1]), (x for x in [1]), zip([1], [2], strict=True), queue.Queue(), map(inc, [1])],
    ids=["iterator", "generator", "zip", "queue", "map"],
)
def test_what_may_never_end_is_refused(client: Client, elements: Any) -> None:
    """An iterator, a generator or a queue is a TypeError, alone or beside a list."""
    with pytest.raises(TypeError, match="map takes collections"):
        client.map(inc, elements)
    with pytest.raises(TypeError, match="map takes collections"):
        client.map(add, [1], elements)


def test_map_of_nothing(client: Client) -> None:
    """No elements give no futures; no iterable at all, or nothing callable, is a TypeError."""
    assert client.map(inc, []) == []
    assert client.map(add, [], [1]) == []
    with pytest.raises(TypeError, match="at least one"):
        client.map(inc)
    with pytest.raises(TypeError, match="callable"):
        client.map(1, [1])  # type: ignore[arg-type]


def test_several_iterables_zip(client: Client) -> None:
    """Several iterables are combined, and the shortest counts."""
    assert client.gather(client.map(add, [1, 2, 3], (10, 20, 30))) == [11, 22, 33]
    assert client.gather(client.map(add, [1, 2, 3], [10, 20])) == [11, 22]


def test_keywords_go_to_every_call(client: Client) -> None:
    """Keyword arguments are given to each call, futures among them as their values."""
    y = client.submit(inc, 9)
    assert client.gather(client.map(add, [1, 2], y=100)) == [101, 102]
    assert client.gather(client.map(add, [1, 2], y=y)) == [11, 12]
    assert client.gather(client.map(echo, [1], w={"deep": [y]})) == [((1,), {"w": {"deep": [10]}})]


def test_elements_may_be_or_hold_futures(client: Client) -> None:
    """Futures among the elements, or nested in them, are replaced by their values."""
    futures = client.map(inc, range(3))
    assert client.gather(client.map(inc, futures)) == [2, 3, 4]
    assert client.gather(client.map(sum, [futures, [futures[0], 10]])) == [6, 11]
    assert client.gather(client.map(add, futures, [1, 1, 1])) == [2, 3, 4]


def test_map_and_submit_name_alike(client: Client, threads: Client) -> None:
    """An element of `map` has the key that the same call has in `submit`, with processes and with threads."""
    upstream = client.submit(inc, 0)
    for element in (10, 1.5, "text", None, True, b"x", (1, 2), [1], "x" * 100_000, np.arange(3), upstream):
        assert client.map(identity, [element])[0].key == client.submit(identity, element).key
        if element is not upstream:
            assert threads.map(identity, [element])[0].key == client.submit(identity, element).key
    assert client.map(add, [1], [2])[0].key == client.submit(add, 1, 2).key
    assert client.map(add, [1], y=2)[0].key == client.submit(add, 1, y=2).key


def test_keys_of_impure_elements(client: Client) -> None:
    """`pure=False` gives one uuid for the call and the index of the element."""
    for elements in ([1, 1], [[1], [1]]):
        keys = [f.key for f in client.map(identity, elements, pure=False)]
        first, second = (re.fullmatch(r"(identity-[0-9a-f-]{36})-(\d)", key) for key in keys)
        assert first
        assert second
        assert first[1] == second[1]
        assert (first[2], second[2]) == ("0", "1")


@pytest.mark.parametrize("element", [7, [7]], ids=["plain", "any"])
def test_equal_elements_share_a_future(client: Client, element: Any) -> None:
    """Equal elements of a pure function are one Future object; of an impure one they are distinct."""
    a, b, c = client.map(identity, [element, element, element])
    assert a is b is c
    a, b = client.map(identity, [element, element], pure=False)
    assert a is not b
    assert a.key != b.key


@pytest.mark.parametrize("element", [7, [7]], ids=["plain", "any"])
def test_elements_that_are_submitted_already(client: Client, element: Any, tmp_path: Any) -> None:
    """An element whose call somebody holds already shares its run, through a future of its own."""
    path = str(tmp_path / "runs")
    held = client.submit(note, path, element)
    new, other = client.map(note, [path] * 2, [element, element])
    assert new is other
    assert new is not held
    assert new.key == held.key
    assert client.gather([held, new]) == [element, element]
    assert len(notes(path)) == 1


def test_key_as_prefix(client: Client) -> None:
    """A text given as key begins the keys."""
    for elements in ([1, 2], [[1], [2]]):
        keys = [f.key for f in client.map(identity, elements, key="mine")]
        assert all(re.fullmatch(r"mine-[0-9a-f]{32}", key) for key in keys)
        assert len(set(keys)) == 2
        impure = [f.key for f in client.map(identity, elements, key="mine", pure=False)]
        assert all(re.fullmatch(r"mine-[0-9a-f-]{36}-\d", key) for key in impure)


def test_keys_as_list(client: Client) -> None:
    """A list or tuple of keys names the elements one by one, and has to be as long as they are."""
    futures = client.map(inc, [1, 2], key=["a", ("b", 1)])
    assert [f.key for f in futures] == ["a", ("b", 1)]
    assert client.gather(futures) == [2, 3]
    for keys in (["a"], ["a", "b", "c"], ()):
        with pytest.raises(ValueError, match="2 elements but"):
            client.map(inc, [1, 2], key=keys)
    with pytest.raises(TypeError, match="a key is"):
        client.map(inc, [1, 2], key=["a", b"b"])


def test_batch_size_changes_nothing(client: Client) -> None:
    """Submitted in slices, keys and results are the same."""
    keys = [f.key for f in client.map(inc, range(25))]
    futures = client.map(inc, range(25), batch_size=4)
    assert [f.key for f in futures] == keys
    assert client.gather(futures) == list(range(1, 26))


def test_options_of_map(client: Client, tmp_path: Any) -> None:
    """The options of `submit` are options of `map`; a tuple of workers is a TypeError."""
    path = str(tmp_path / "runs")
    one = next(iter(client.scheduler_info()["workers"].values()))
    assert set(client.gather(client.map(pid, range(6), workers=[one["name"]], pure=False))) == {one["pid"]}
    with pytest.raises(TypeError, match="list or set"):
        client.map(pid, [1], workers=(one["name"],))
    failing = client.map(fail_noting, [path], retries=3)
    with pytest.raises(ValueError, match="always"):
        client.gather(failing)
    assert len(notes(path)) == 4


def fail_noting(path: str) -> None:
    note(path, "ran")
    raise ValueError("always")


def test_a_bad_element_leaves_no_trace(client: Client) -> None:
    """An element that cannot be pickled is a TypeError from `map`; what was submitted before it is dropped."""
    with pytest.raises(TypeError, match="cannot be pickled"):
        client.map(identity, [[1], iter_nothing()])
    eventually(client, lambda: not [key for key in client.futures if key.startswith("identity-")])


@pytest.mark.slow
def test_a_hundred_thousand_elements_come_and_go(client: Client) -> None:
    """A large `map` gives every result in its place, and dropping the futures forgets every task."""
    futures = client.map(inc, range(100_000))
    assert client.gather(futures) == list(range(1, 100_001))
    del futures
    settled(client)
    eventually(client, lambda: not client.cluster._engine.core.tasks)
    assert not client.futures


def test_dropping_a_map_that_waits(client: Client, gate: Gate, tmp_path: Any) -> None:
    """Dropping futures of work that has not begun forgets it without running it."""
    path = str(tmp_path / "runs")
    blockers = client.map(wait_at, [gate.address] * 2, pure=False)
    gate.wait_for(2)
    futures = client.map(note, [path] * 5_000, range(5_000))
    del futures
    eventually(client, lambda: len(client.cluster._engine.core.tasks) == 2)
    cancelled_everywhere(client)
    gate.open()
    client.gather(blockers)
    assert notes(path) == []


def test_futures_dropped_as_fast_as_they_are_made(client: Client) -> None:
    """Dropping each future while thousands of submissions are under way confuses nobody."""
    for i in range(30_000):
        client.submit(inc, i)
    eventually(client, lambda: not client.cluster._engine.core.tasks)
    assert client.submit(inc, 1).result() == 2
