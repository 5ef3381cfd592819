"""cloudpickle, and what it lacks: caches and descriptors of `functools` that are defined in ``__main__``.

In its own module because cloudpickle is imported when it is first needed.
"""

from __future__ import annotations

import functools
import weakref
from collections import ChainMap
from typing import TYPE_CHECKING, Any, ClassVar

from cloudpickle import Pickler

if TYPE_CHECKING:
    from collections.abc import Callable


def _make_cached(function: Callable[..., Any], maxsize: int | None, typed: bool, attributes: dict[str, Any]) -> Any:
    cached = functools.lru_cache(maxsize, typed)(function)
    cached.__dict__.update(attributes)
    return cached


def _reduce_cached(cached: Any) -> Any:
    """Let a cached function travel without what it has cached."""
    from ._key import reference

    if reference(cached) is not None:
        return cached.__reduce__()
    attributes = {
        name: value for name, value in cached.__dict__.items() if name not in ("__wrapped__", "cache_parameters")
    }
    parameters = cached.cache_parameters()
    return _make_cached, (cached.__wrapped__, parameters["maxsize"], parameters["typed"], attributes)


def _make_cached_property(function: Callable[..., Any], name: str | None) -> Any:
    made: Any = functools.cached_property(function)
    made.attrname = name
    return made


def _reduce_cached_property(descriptor: Any) -> Any:
    return _make_cached_property, (descriptor.func, descriptor.attrname)  # not the lock that it has up to 3.11


def _reduce_weak_keys(mapping: Any) -> Any:
    return weakref.WeakKeyDictionary, (dict(mapping),)


class ValuePickler(Pickler):  # type: ignore[misc]  # cloudpickle has no type hints
    """Pickles by value what belongs to ``__main__``, lambdas and closures."""

    dispatch_table: ClassVar[Any] = ChainMap(
        {
            type(functools.lru_cache(_reduce_weak_keys)): _reduce_cached,
            functools.cached_property: _reduce_cached_property,
            weakref.WeakKeyDictionary: _reduce_weak_keys,
        },
        Pickler.dispatch_table,
    )
