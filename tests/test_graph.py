"""Futures inside arguments become slots, and slots become values again."""

from __future__ import annotations

import collections
import pickle
import sys
from typing import Any, NamedTuple

import pytest

from localdist._graph import Slot, bind, extract, fill, futures_in


class FakeFuture:
    def __init__(self, key: str) -> None:
        self.key = key


class Point(NamedTuple):
    x: Any
    y: Any


A, B = FakeFuture("a"), FakeFuture("b")

NESTED = [
    (A, "a"),
    ([A, [B, 1]], ["a", ["b", 1]]),
    ((A, (B,)), ("a", ("b",))),
    ({A, 1}, {"a", 1}),
    ({"k": A, 2: {"deep": [B]}}, {"k": "a", 2: {"deep": ["b"]}}),
    (Point(A, [B]), Point("a", ["b"])),
    (collections.OrderedDict(k=A), {"k": "a"}),
    (collections.defaultdict(list, k=[A]), {"k": ["a"]}),
]


@pytest.mark.parametrize(("value", "expected"), NESTED)
def test_there_and_back(value: Any, expected: Any) -> None:
    """What is extracted is filled in again, in the same places, by `fill` and by pickling alike."""
    (new,), kwargs, futures = extract((value,), {"word": value}, FakeFuture)
    values = [future.key for future in futures]
    assert fill(new, values) == expected
    assert fill(kwargs, values) == {"word": expected}
    pickled = pickle.dumps((new, kwargs))
    bind(values)
    assert pickle.loads(pickled) == (expected, {"word": expected})
    bind(())
    assert type(fill(new, values)) is type(expected)


def test_each_task_is_one_slot() -> None:
    """Two handles of one key, and one handle in two places, are one input."""
    (args, again), kwargs, futures = extract(([A, B], FakeFuture("a")), {"x": B}, FakeFuture)
    assert [f.key for f in futures] == ["a", "b"]
    assert (args[0].index, args[1].index, again.index, kwargs["x"].index) == (0, 1, 0, 1)


def test_what_holds_no_future_is_the_same_object() -> None:
    """Nothing is rebuilt that holds no future, however it is nested."""
    value = {"x": [1, (2, {3})], "y": collections.OrderedDict(a=1)}
    args = (value, 5)
    new, kwargs, futures = extract(args, {}, FakeFuture)
    assert new is args
    assert new[0] is value
    assert (kwargs, futures) == ({}, [])


@pytest.mark.parametrize("value", [frozenset([A]), collections.deque([A]), {A: 1}, object(), "text", b"x", range(3)])
def test_other_places_are_left_alone(value: Any) -> None:
    """Futures in dict keys, frozensets and other objects are not touched."""
    (new,), _, futures = extract((value,), {}, FakeFuture)
    assert new is value
    assert futures == []


def test_containers_that_contain_themselves() -> None:
    """A list within itself is left as it is, and ends the search."""
    loop: list[Any] = [1]
    loop.append(loop)
    (new,), _, futures = extract(([A, loop],), {}, FakeFuture)
    assert futures == [A]
    assert new[1] is loop


def test_futures_are_listed_in_order() -> None:
    """`futures_in` lists every occurrence, in order."""
    assert futures_in([A, {"x": (B, A)}, 5], FakeFuture) == [A, B, A]
    assert futures_in("text", FakeFuture) == []


def test_slots_are_named_by_what_they_stand_for() -> None:
    """For keys a slot counts as the key of its task, and its repr says so."""
    slot = Slot(3, "upstream")
    assert slot.__localdist_token__() == "upstream"
    assert "upstream" in repr(slot)


def test_deep_nesting_is_an_error_not_a_crash() -> None:
    """Nesting beyond Python's limit is a RecursionError."""
    value: list[Any] = [A]
    for _ in range(sys.getrecursionlimit() + 10):
        value = [value]
    with pytest.raises(RecursionError):
        extract((value,), {}, FakeFuture)
