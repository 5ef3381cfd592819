"""Each broken invariant is found and named."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from localdist._schedule.records import Lane, State, Task
from localdist._schedule.validate import validate
from localdist.errors import InternalError
from tests._schedule.kit import Bench


def scene() -> tuple[Bench, dict[str, Task]]:
    """Return a scheduler with a task in each state."""
    b = Bench("a", "b")
    tasks = {"finished": b.run("finished")}
    b.report(tasks["finished"])
    tasks["erred"] = b.run("erred", tasks["finished"])
    b.fail(tasks["erred"])
    tasks["processing"], tasks["behind"] = b.submit(b.make("processing", b.data("d")), b.make("behind"))
    tasks["twin"] = b.run("processing")
    tasks["waiting"] = b.run("waiting", tasks["processing"], tasks["finished"])
    tasks["ready"] = b.run("ready", group="unknown")
    tasks["lane"] = b.run("lane", lane=Lane(frozenset(["nobody"])))
    assert tasks["ready"].state is State.READY
    return b, tasks


def change(task: str, field: str, value: object) -> Callable[[Bench, dict[str, Task]], None]:
    return lambda b, tasks: setattr(tasks[task], field, value)


def file_wrongly(b: Bench, tasks: dict[str, Task]) -> None:
    b.core.tasks["wrong"] = b.core.tasks.pop("ready")


def lose_worker(b: Bench, tasks: dict[str, Task]) -> None:
    worker = tasks["processing"].worker
    assert worker is not None
    del b.core.workers[worker.address]


def lose_outstanding(b: Bench, tasks: dict[str, Task]) -> None:
    worker = tasks["processing"].worker
    assert worker is not None
    del worker.outstanding[tasks["processing"].seq]


def queue_twice(b: Bench, tasks: dict[str, Task]) -> None:
    b.core.assignment.push(tasks["ready"])


def miscount_queue(b: Bench, tasks: dict[str, Task]) -> None:
    b.core.assignment.common.queue._size += 1


def lend_too_much(b: Bench, tasks: dict[str, Task]) -> None:
    b.w[0].free["GPU"] = -1


def forget_edge(b: Bench, tasks: dict[str, Task]) -> None:
    assert tasks["processing"].dependents is not None
    del tasks["processing"].dependents[tasks["waiting"]]


def lie_about_load(b: Bench, tasks: dict[str, Task]) -> None:
    b.w[0].load += 1


def hide_from_hungry(b: Bench, tasks: dict[str, Task]) -> None:
    b.join("takes what is ready")
    del b.core.assignment.hungry[b.join("idle")]


def serve_wrong_lane(b: Bench, tasks: dict[str, Task]) -> None:
    (lane,) = b.core.assignment.lanes.values()
    lane.workers[b.w[0]] = None


BREAKS = [
    ("filed under 'wrong'", file_wrongly),
    ("no number", change("ready", "seq", 0)),
    ("have the number", change("ready", "seq", 1)),
    ("is known, but FORGOTTEN", change("ready", "state", State.FORGOTTEN)),
    ("2 claims", change("finished", "claims", 2)),
    ("claims, not one each", change("finished", "held", False)),
    ("claims, not one each", change("processing", "twins", None)),
    ("beyond its end", change("finished", "kept", True)),
    ("outcome None", change("finished", "outcome", None)),
    ("outcome 'early'", change("ready", "outcome", "early")),
    ("still has its call", change("finished", "call", "call")),
    ("1 failures, 0 retries", change("ready", "failures", 1)),
    ("9 deaths", change("ready", "deaths", 9)),
    ("is at None", change("processing", "worker", None)),
    ("which is not here", lose_worker),
    ("is unknown to", lose_outstanding),
    ("missing is 0", change("waiting", "missing", 0)),
    ("is not among the dependents", forget_edge),
    ("is not among the dependencies", change("waiting", "dependencies", ())),
    ("empty set of dependents", change("ready", "dependents", {})),
    ("has the outcome 'else'", change("twin", "outcome", "else")),
    ("which is no twin", change("twin", "state", State.WAITING)),
    ("load is", lie_about_load),
    ("costs 0", change("processing", "cost", 0.0)),
    ("more than there is", lend_too_much),
    ("is not hungry", hide_from_hungry),
    ("queued too often", queue_twice),
    ("counts", miscount_queue),
    ("serves", serve_wrong_lane),
]


@pytest.mark.parametrize(("says", "damage"), BREAKS, ids=[f"{i}-{says[:20]}" for i, (says, _) in enumerate(BREAKS)])
def test_damage_is_found(says: str, damage: Callable[[Bench, dict[str, Task]], None]) -> None:
    """Each kind of damage is reported as an InternalError whose text says what is broken."""
    b, tasks = scene()
    damage(b, tasks)
    with pytest.raises(InternalError, match="broken invariants") as caught:
        validate(b.core)
    assert says in str(caught.value)


def test_unfit_states_of_dependencies() -> None:
    """A task that runs, or waits, must have inputs that are there, or are missing."""
    b, tasks = scene()
    tasks["finished"].state = State.READY
    with pytest.raises(InternalError, match="queued too often, or not at all"):
        validate(b.core)


def test_everything_broken_is_listed() -> None:
    """One error names all that is broken, not only the first thing."""
    b, tasks = scene()
    tasks["ready"].deaths = 9
    b.w[0].load += 1
    with pytest.raises(InternalError) as caught:
        validate(b.core)
    assert "9 deaths" in str(caught.value)
    assert "load is" in str(caught.value)
