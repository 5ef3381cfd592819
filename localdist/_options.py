"""What callers may ask for a task, checked where they ask: the scheduler's thread takes it as it is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

from ._schedule.records import Lane, Options
from ._serialize import qualified_type


def check_resources(resources: Any) -> dict[str, float]:
    """Return resources as a dict of names and amounts; None is none.

    Raises:
        TypeError: it is no mapping, or an amount is no number.
        ValueError: an amount is negative or not finite.
    """
    if resources is None:
        return {}
    if not isinstance(resources, Mapping):
        raise TypeError(f'resources= takes a dict such as {{"GPU": 1}}, not {qualified_type(resources)}')
    for name, amount in resources.items():
        _check_number(f"resources[{name!r}]", amount)
        if amount < 0:
            raise ValueError(f"resources[{name!r}] must not be negative: {amount!r}")
    return {name: float(amount) for name, amount in resources.items()}


def check_retries(retries: Any) -> None:
    """Refuse what is no number of retries.

    Raises:
        TypeError: it is no int.
        ValueError: it is negative.
    """
    if not isinstance(retries, int) or isinstance(retries, bool):
        raise TypeError(f"retries must be an int, not {qualified_type(retries)}")
    if retries < 0:
        raise ValueError(f"retries must not be negative: {retries}")


def _check_number(what: str, value: Any) -> None:
    if not isinstance(value, Real):
        raise TypeError(f"{what} must be a number, not {qualified_type(value)}")
    if not math.isfinite(value):
        raise ValueError(f"{what} must be finite, not {value!r}")


def _names(workers: Any) -> frozenset[Any] | None:
    if workers is None:
        return None
    if isinstance(workers, (str, int)):
        return frozenset([workers])
    if not isinstance(workers, Iterable):
        raise TypeError(f"workers= takes a name, an address, or a list or set of them, not {qualified_type(workers)}")
    return frozenset(workers)


def make_options(
    owner: object, workers: Any, resources: Any, retries: Any, priority: Any, allow_other_workers: Any
) -> Options:
    """Check what `Client.submit` was asked for and return it in the scheduler's form.

    Raises:
        TypeError: something has the wrong type.
        ValueError: a number makes no sense, or `allow_other_workers` comes without `workers`.
    """
    if not isinstance(allow_other_workers, bool):
        raise TypeError(f"allow_other_workers must be a bool, not {qualified_type(allow_other_workers)}")
    if allow_other_workers and workers is None:
        raise ValueError("allow_other_workers=True goes with workers=")
    if retries is not None:
        check_retries(retries)
    _check_number("priority", priority)
    lane = None
    if workers is not None or resources:
        amounts = check_resources(resources)
        lane = Lane(_names(workers), not allow_other_workers, tuple(sorted(amounts.items())))
    return Options(priority, retries or 0, lane, owner)
