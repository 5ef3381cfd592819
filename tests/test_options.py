"""What callers may ask for a task or a cluster: what makes no sense is refused where it is either."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from localdist import Client, LocalCluster
from localdist._options import check_resources, make_options
from localdist._schedule.records import Lane
from tests.support import inc

BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"resources": {"D": "x"}}, TypeError, r"resources\['D'\] must be a number, not str"),
    ({"resources": {"D": None}}, TypeError, r"resources\['D'\] must be a number"),
    ({"resources": {"D": -1}}, ValueError, r"resources\['D'\] must not be negative"),
    ({"resources": {"D": math.inf}}, ValueError, r"resources\['D'\] must be finite"),
    ({"resources": {"D": math.nan}}, ValueError, r"resources\['D'\] must be finite"),
    ({"resources": "D"}, TypeError, "resources= takes a dict"),
    ({"resources": ["D"]}, TypeError, "resources= takes a dict"),
    ({"retries": "x"}, TypeError, "retries must be an int, not str"),
    ({"retries": -1}, ValueError, "retries must not be negative"),
    ({"retries": 1.5}, TypeError, "retries must be an int, not float"),
    ({"retries": True}, TypeError, "retries must be an int, not bool"),
    ({"priority": "high"}, TypeError, "priority must be a number, not str"),
    ({"priority": math.nan}, ValueError, "priority must be finite"),
    ({"priority": -math.inf}, ValueError, "priority must be finite"),
    ({"priority": 1j}, TypeError, "priority must be a number"),
    ({"workers": 3.5}, TypeError, "workers= takes a name"),
    ({"workers": [[0]]}, TypeError, "unhashable"),
    ({"workers": 0, "allow_other_workers": "yes"}, TypeError, "allow_other_workers must be a bool"),
    ({"allow_other_workers": True}, ValueError, "goes with workers="),
    ({"fifo_timeout": "soon"}, ValueError, "not a duration"),
]
IDS = [f"{word}={value!r}" for options, _, _ in BAD for word, value in [next(iter(options.items()))]]


@pytest.mark.parametrize(("options", "error", "text"), BAD, ids=IDS)
def test_bad_options_of_tasks(either: Client, options: dict[str, Any], error: type[Exception], text: str) -> None:
    """A bad option is an error from `submit` and from `map` that names it; no task comes of it, the client lives on."""
    before = either.futures
    with pytest.raises(error, match=text):
        either.submit(inc, 1, **options)
    for elements in ([1, 2], [[1], [2]]):
        with pytest.raises(error, match=text):
            either.map(inc, elements, **options)
    assert either.futures == before
    assert either.submit(inc, 1, pure=False, priority=1).result(20) == 2
    assert either.submit(inc, 1, pure=False, workers=[0]).result(20) == 2


@pytest.mark.parametrize("size", [0, -1, 1.5, "x"])
def test_bad_batch_sizes(client: Client, size: Any) -> None:
    """The batch size of `map` is a positive int, or a ValueError."""
    for elements in ([1, 2], [[1], [2]]):
        with pytest.raises(ValueError, match=f"batch_size must be a positive int, not {size!r}"):
            client.map(inc, elements, batch_size=size)
    assert client.gather(client.map(inc, [1, 2], batch_size=1)) == [2, 3]


@pytest.mark.parametrize(
    ("resources", "error"),
    [({"D": "x"}, TypeError), ({"D": -1}, ValueError), ({"D": math.nan}, ValueError), ("D", TypeError), (5, TypeError)],
)
def test_bad_resources_of_clusters(resources: Any, error: type[Exception]) -> None:
    """What workers shall have is checked before any of them is started."""
    for make in (LocalCluster, Client):
        with pytest.raises(error, match="resources"):
            make(n_workers=1, resources=resources)


def test_good_resources() -> None:
    """Any real numbers are amounts, zero included; none given is none."""
    assert check_resources(None) == {}
    assert check_resources({"A": 0, "B": np.float32(1.5), "C": True}) == {"A": 0.0, "B": 1.5, "C": 1.0}
    assert all(type(amount) is float for amount in check_resources({"A": 1, "B": np.int64(2)}).values())


def test_good_options() -> None:
    """Names of workers are one or several; resources are sorted, so that equal wishes share a queue."""
    owner = object()
    plain = make_options(owner, None, None, None, 0, False)
    assert (plain.priority, plain.retries, plain.lane, plain.owner) == (0, 0, None, owner)
    assert make_options(owner, "w", None, 2, -1.5, False).lane == Lane(frozenset(["w"]), True, ())
    for names in ([0, "w"], (0, "w"), {0, "w"}):
        assert make_options(owner, names, None, None, 0, True).lane == Lane(frozenset([0, "w"]), False, ())
    lanes = [make_options(owner, None, r, None, 0, False).lane for r in ({"B": 1, "A": 2}, {"A": 2, "B": 1.0})]
    assert lanes[0] == lanes[1] == Lane(None, True, (("A", 2.0), ("B", 1.0)))
    assert make_options(owner, None, {}, None, 0, False).lane is None
