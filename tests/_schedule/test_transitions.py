"""Every state with every event: it moves, is left alone, or is refused. Nothing is left out."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest

from localdist._schedule import actions, events
from localdist._schedule.core import Scheduler
from localdist._schedule.memory import MOVES
from localdist._schedule.records import Ending, State, Task, Worker
from localdist.errors import InvalidTransition
from tests._schedule.kit import Bench

S = State
REFUSED = "refused"

#: What an event makes of a task in each state, with one worker, which is busy while the task is READY or WAITING. An
#: idle worker takes what becomes READY, which is PROCESSING then.
TABLE: dict[type, dict[State, State | str]] = {
    events.TasksSubmitted: {
        **dict.fromkeys(S, REFUSED),
        S.NEW: S.PROCESSING,
    },
    events.TaskSent: {
        **dict.fromkeys(S, REFUSED),
        S.NEW: S.PROCESSING,
    },
    events.ValuesStored: {
        **dict.fromkeys(S, REFUSED),
        S.NEW: S.FINISHED,
    },
    events.TasksReported: {
        **dict.fromkeys(S, REFUSED),
        S.PROCESSING: S.FINISHED,
        S.FORGOTTEN: S.FORGOTTEN,
    },
    events.TasksRecalled: {
        **dict.fromkeys(S, REFUSED),
        S.PROCESSING: S.PROCESSING,
        S.FORGOTTEN: S.FORGOTTEN,
    },
    events.TasksReleased: dict.fromkeys(S, S.FORGOTTEN),
    events.TasksCancelled: dict.fromkeys(S, S.FORGOTTEN),
    events.TasksWithdrawn: {**{state: state for state in S}, **dict.fromkeys((S.WAITING, S.READY), S.FORGOTTEN)},
    events.TasksFailed: {**{state: state for state in S}, **dict.fromkeys((S.WAITING, S.READY, S.PROCESSING), S.ERRED)},
    events.Stopped: {**{state: state for state in S}, **dict.fromkeys((S.WAITING, S.READY), S.FORGOTTEN)},
    events.TasksKept: {state: state for state in S},
    events.TasksRetried: {**{state: state for state in S}, S.ERRED: S.PROCESSING},
    events.AllDropped: {**dict.fromkeys(S, S.FORGOTTEN), S.NEW: S.NEW},
    events.WorkerJoined: {**{state: state for state in S}, S.READY: S.PROCESSING},
    events.WorkerLeft: {**{state: state for state in S}, S.PROCESSING: S.READY},
    events.DeadlineReached: {state: state for state in S},
}


def new(b: Bench) -> Task:
    return b.make("x")


def waiting(b: Bench) -> Task:
    return b.run("x", b.run("before"))


def ready(b: Bench) -> Task:
    b.run("before")
    return b.run("x")


def processing(b: Bench) -> Task:
    return b.run("x")


def finished(b: Bench) -> Task:
    task = b.run("x")
    b.report(task)
    return task


def erred(b: Bench) -> Task:
    task = b.run("x")
    b.fail(task)
    return task


def twin(b: Bench) -> Task:
    b.run("x")
    return b.run("x")


def forgotten(b: Bench) -> Task:
    task = b.run("x")
    b.release(task)
    return task


MAKE: dict[State, Callable[[Bench], Task]] = {state: globals()[state.name.lower()] for state in State}


def event_about(kind: type, task: Task, worker: Worker) -> Any:
    if kind is events.TaskSent:
        return events.TaskSent(worker, task)
    if kind is events.TasksReported:
        return events.TasksReported(worker, [(task.seq, Ending.SUCCESS, "value", 0.1)])
    if kind is events.TasksRecalled:
        return events.TasksRecalled(worker, [task.seq], whole=False)
    if kind is events.TasksCancelled:
        return events.TasksCancelled([task], "a test")
    if kind is events.TasksWithdrawn:
        return events.TasksWithdrawn([task], "a test")
    if kind is events.TasksFailed:
        return events.TasksFailed([task], "an order")
    if kind is events.Stopped:
        return events.Stopped("a test")
    if kind is events.AllDropped:
        return events.AllDropped("a test")
    if kind is events.WorkerJoined:
        return events.WorkerJoined(Worker("another", "another", 1))
    if kind is events.WorkerLeft:
        return events.WorkerLeft(worker)
    if kind is events.DeadlineReached:
        return events.DeadlineReached()
    return kind([task])


def test_the_table_is_complete() -> None:
    """A new event or state has to be given its row or column here, and a way to make it."""
    assert set(TABLE) == set(events.Event.__args__)
    assert all(set(row) == set(State) for row in TABLE.values())
    assert set(MAKE) == set(State)
    assert set(Scheduler._HANDLERS) == set(events.Event.__args__)


@pytest.mark.parametrize("state", State, ids=lambda state: state.name)
@pytest.mark.parametrize("kind", TABLE, ids=lambda kind: kind.__name__)
def test_each_state_with_each_event(kind: type, state: State) -> None:
    """Each pair does what the table says, and leaves every invariant whole unless it is refused."""
    b = Bench("a")
    task = MAKE[state](b)
    assert task.state is state
    if kind is events.TaskSent and state is S.NEW:
        task.seq = b.core.take_number()
    if kind is events.ValuesStored and state is S.NEW:
        task.call, task.outcome = None, "value"
    event = event_about(kind, task, b.w[0])
    if TABLE[kind][state] is REFUSED:
        with pytest.raises(InvalidTransition):
            b.core.handle(event, 1.0)
    else:
        b.tell(event, later=1.0)
        assert task.state is TABLE[kind][state]


def test_each_move_is_reachable() -> None:
    """The table of moves names states only, and no move leads out of FORGOTTEN."""
    for moves in MOVES.values():
        assert State.FORGOTTEN not in moves
        assert set(moves) | set(moves.values()) <= set(State)


def test_refusal_carries_the_story_and_pickles() -> None:
    """An InvalidTransition says key, state, event and what happened before, in another process too."""
    b = Bench("a")
    task = b.run("x")
    with pytest.raises(InvalidTransition) as caught:
        b.core.handle(events.TasksSubmitted([task]), 1.0)
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.key, error.start, error.event) == ("x", "PROCESSING", "pair")
    assert [line.split(": ")[1] for line in error.story] == ["submitted", f"dispatched at {b.w[0].address}"]
    assert "submitted" in str(error)


def test_unknown_number_is_refused() -> None:
    """A worker that speaks of a number nobody has is an internal error, not a KeyError."""
    b = Bench("a")
    for event in (
        events.TasksReported(b.w[0], [(99, Ending.SUCCESS, "value", 0.1)]),
        events.TasksRecalled(b.w[0], [99]),
    ):
        with pytest.raises(InvalidTransition, match="99"):
            b.core.handle(event, 1.0)


def test_actions_are_all_known() -> None:
    """Each action that exists is one that these tests look at."""
    assert {cls.__name__ for cls in actions.Action.__args__} == {
        "Announce",
        "AnnounceCancelled",
        "AnnouncePending",
        "Dismiss",
        "Dispatch",
        "Drop",
        "Recall",
    }
