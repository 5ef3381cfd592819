"""The scheduler core alone: what a task costs does not depend on how many there are."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from localdist._schedule import events
from localdist._schedule.records import Group, Task
from localdist.bench._core import Fleet, run


def calls(function: Any) -> int:
    """Count the calls that a function makes, its own and those of C functions."""
    count = 0

    def note(_frame: Any, event: str, _what: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(before)
    return count


def life(workers: int, tasks: int) -> tuple[int, int, int]:
    """Return the calls it takes to submit, to run and to release tasks."""
    fleet, group = Fleet(workers), Group("small")
    made = [Task(f"small-{i}", group, None, b"call") for i in range(tasks)]
    submitted = calls(lambda: fleet.submit(made))
    ran = calls(lambda: sum(fleet.run()))
    released = calls(lambda: fleet.handle(events.TasksReleased(made)))
    assert not fleet.core.tasks
    return submitted, ran, released


@pytest.mark.slow
def test_cost_of_a_task_is_constant() -> None:
    """With 1,000 workers, each of 20,000 tasks takes no more calls than each of 10,000, but for a tenth.

    It takes less, since each worker's first messages carry few tasks; with fewer workers it is the same.
    """
    for few, many in zip(life(1_000, 10_000), life(1_000, 20_000), strict=True):
        assert many / 20_000 <= 1.1 * few / 10_000
    for few, many in zip(life(50, 10_000), life(50, 20_000), strict=True):
        assert many / 20_000 == pytest.approx(few / 10_000, rel=0.1)


def test_cost_of_a_task_does_not_grow_with_the_workers() -> None:
    """A task for one of 1,000 idle workers costs what it does for one of 10."""

    def one(workers: int) -> int:
        fleet = Fleet(workers)
        task = Task("x", Group("f"), None, b"call")

        def submit_and_run() -> None:
            fleet.submit([task])
            assert list(fleet.run()) == [1]

        return calls(submit_and_run)

    assert one(1_000) == one(10)


def test_run() -> None:
    """`run` says how long all tasks took and how much memory, and has run all of them."""
    seconds, peak = run(20, 2_000)
    assert seconds > 0
    assert peak >= 0


def test_run_notices_what_was_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks that do not end are an error, not a fast scheduler."""
    monkeypatch.setattr(Fleet, "run", lambda self: iter(()))
    with pytest.raises(RuntimeError, match="0 of 10 tasks"):
        run(2, 10)
