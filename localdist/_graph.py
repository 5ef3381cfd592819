"""GRAPH: futures inside arguments become edges of the graph. Pure.

A future anywhere inside nested lists, tuples, sets, dict values and named tuples is replaced by a `Slot`, and the
values take the place of the slots when the arguments are rebuilt where the task runs: by unpickling (`bind`, and a
slot's own `__reduce__`), or, where nothing is pickled, by `fill`. Futures in other places (dict keys, frozensets,
attributes) stay what they are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ._key import ATOMS

_bound = threading.local()


def bind(values: Sequence[Any]) -> None:
    """Set the values that slots become when they are unpickled next in this thread."""
    _bound.values = values


def _take(index: int) -> Any:
    return _bound.values[index]


class Slot:
    """The place of a future's value inside a task's arguments."""

    __slots__ = ("index", "key")

    def __init__(self, index: int, key: Any) -> None:
        self.index = index
        self.key = key

    def __reduce__(self) -> tuple[Callable[[int], Any], tuple[int]]:
        return _take, (self.index,)

    def __localdist_token__(self) -> Any:
        # Equal inputs give equal keys: what counts is the upstream task, not the place or the handle.
        return self.key

    def __repr__(self) -> str:
        return f"<value of {self.key!r}>"


def extract(
    args: tuple[Any, ...], kwargs: dict[str, Any], future_type: type
) -> tuple[tuple[Any, ...], dict[str, Any], list[Any]]:
    """Replace the futures in a call's arguments by slots.

    Returns:
        Arguments, keyword arguments (the same objects where nothing was replaced), and the distinct futures: slot
        ``i`` stands for the value of the ``i``-th.
    """
    found: dict[Any, Slot] = {}

    def slot(future: Any) -> Slot:
        known = found.get(future.key)
        if known is None:
            known = found[future.key] = Slot(len(found), future.key)
            futures.append(future)
        return known

    futures: list[Any] = []
    new_args = _replace(args, future_type, slot, ())
    new_kwargs = _replace(kwargs, future_type, slot, ()) if kwargs else kwargs
    return new_args, new_kwargs, futures


def fill(value: Any, values: Sequence[Any]) -> Any:
    """Replace slots by values, in the places where `extract` puts them."""
    return _replace(value, Slot, lambda slot: values[slot.index], ())


def _replace(value: Any, kind: type, by: Callable[[Any], Any], path: tuple[int, ...]) -> Any:
    """Replace every instance of `kind` in nested containers; `path` holds the ids of the containers around."""
    cls = type(value)
    if cls in ATOMS:
        return value
    if isinstance(value, kind):
        return by(value)
    if not isinstance(value, (list, tuple, dict)) and cls is not set:
        return value
    if id(value) in path:
        return value  # contains itself: left as it is
    old: Iterable[Any] = value.values() if isinstance(value, dict) else value
    if ATOMS.issuperset(map(type, old)):
        return value
    path = (*path, id(value))
    new = [item if type(item) in ATOMS else _replace(item, kind, by, path) for item in old]
    if all(a is b for a, b in zip(old, new, strict=True)):
        return value
    if isinstance(value, dict):
        return dict(zip(value, new, strict=True))
    if isinstance(value, tuple):
        return cls(*new) if hasattr(cls, "_fields") else (tuple(new))
    return set(new) if cls is set else new


def futures_in(value: Any, future_type: type) -> list[Any]:
    """List the futures in nested containers, in order, duplicates included."""
    listed: list[Any] = []

    def note(future: Any) -> Any:
        listed.append(future)
        return future

    _replace(value, future_type, note, ())
    return listed
