"""The scheduler with fake workers on a virtual clock: what holds in every course of events, and the same ones again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from localdist._schedule import events
from localdist._schedule.assign import STALL, Assignment
from localdist._schedule.core import Scheduler
from localdist.errors import InternalError
from localdist.testing import History, simulate

LATENCY = 5e-4
#: A stall is noticed after `STALL`; the order to give back, the answer and the new dispatch travel; and the worker that
#: was chosen next may have been in a long task as well.
SOON = 2 * (STALL + 3 * LATENCY)

PROGRAM = """
from localdist.testing import simulate
history = simulate(11, workers=3, tasks=80)
print(history.events)
"""


@pytest.mark.parametrize("seed", range(12))
def test_everything_ends_whatever_happens(seed: int) -> None:
    """With deaths, delays, errors, cancellations and releases each wanted task ends, and each value is dropped once."""
    history = simulate(seed, slots=1 + seed % 3)
    assert history.deaths == 5
    assert set(history.outcomes.values()) == {"FINISHED", "ERRED", "FORGOTTEN"}
    assert len(history.outcomes) == 200


@pytest.mark.parametrize(
    "options",
    [
        {"workers": 8, "tasks": 100, "long": 0.1},
        {"workers": 4, "tasks": 60, "long": 0.3, "deaths": 2},
        {"workers": 6, "tasks": 120, "long": 0.2, "slots": 2},
    ],
    ids=str,
)
def test_nothing_is_stuck_behind_long_tasks(options: dict[str, Any]) -> None:
    """While a slot is idle no task that could run waits for more than milliseconds, though others run for a second."""
    histories = [simulate(seed, latency=LATENCY, **options) for seed in range(4)]
    assert sum(history.recalls for history in histories) > 0
    assert max(history.longest_wait for history in histories) < SOON


def test_without_recall_tasks_are_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    """The measure of the test above sees it when nothing is called back."""
    monkeypatch.setattr(Assignment, "stalled", lambda self, now, *, certain: [])
    monkeypatch.setattr(Assignment, "next_deadline", lambda self: None)
    histories = [simulate(seed, workers=8, tasks=100, long=0.1, deaths=0) for seed in range(4)]
    assert max(history.longest_wait for history in histories) > 10 * SOON


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("quota", [1, 7])
def test_workers_with_a_quota(quota: int, seed: int) -> None:
    """Workers that are dismissed after some tasks and replaced run everything, and none begins more than its quota."""
    history = simulate(seed, slots=1 + seed % 3, tasks=100, deaths=3, quota=quota)
    assert history.dismissals > 100 / quota / 2
    assert len(history.outcomes) == 100


def test_broken_quota_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler that does not count what it hands out is found out."""
    real = Assignment._fill

    def generous(self: Assignment, worker: Any, share: int) -> Any:
        batch = real(self, worker, share)
        worker.quota += len(batch) / 2
        return batch

    monkeypatch.setattr(Assignment, "_fill", generous)
    with pytest.raises(InternalError):
        simulate(0, quota=5)


def test_same_seed_same_history() -> None:
    """The same seed gives the same events at the same times; another seed gives others."""

    def run(seed: int) -> History:
        return simulate(seed, tasks=80)

    assert run(3) == run(3)
    assert run(3).events != run(4).events


def test_same_history_in_every_process() -> None:
    """The order depends on no hash: with other seeds of Python's own hashing it is the same."""
    root = Path(__file__).parents[2]
    told = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root)}
        command = [sys.executable, "-c", PROGRAM]
        told.add(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
    assert len(told) == 1


def test_lost_task_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler that loses the tasks of a dead worker is found out."""
    real = Scheduler._left

    def forgetful(self: Scheduler, event: Any) -> None:
        event.worker.outstanding.clear()
        real(self, event)

    monkeypatch.setitem(Scheduler._HANDLERS, events.WorkerLeft, forgetful)
    with pytest.raises(InternalError):
        simulate(0, deaths=20)


def test_kept_value_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler that does not let go of values is found out."""
    monkeypatch.setattr(Scheduler, "_let_go_of_dependencies", lambda self, task, forget=True: [])
    with pytest.raises(InternalError):
        simulate(0)
