"""Who gets how much: batches measured in time, recall of what is stuck, lanes, resources, shares."""

from __future__ import annotations

from typing import Any

from localdist._schedule import events
from localdist._schedule.assign import STALL, TARGET
from localdist._schedule.records import Ending, Lane, State, Task
from tests._schedule.kit import Bench, keys


def some(b: Bench, count: int, prefix: str = "t", **more: Any) -> list[Task]:
    tasks = [b.make(f"{prefix}{i}", **more) for i in range(count)]
    b.submit(*tasks)
    return tasks


def counts(b: Bench) -> dict[object, int]:
    return {name: len(sent) for name, sent in b.dispatched.items()}


# -- batches


def test_unknown_durations_travel_alone() -> None:
    """Before a function has been measured each slot gets one of its tasks, and nothing waits behind it."""
    b = Bench("a", "b", slots=2)
    some(b, 10)
    assert counts(b) == {"a": 2, "b": 2}


def test_batches_are_measured_in_time() -> None:
    """A worker gets as many tasks as fill the target by their measured duration; long ones travel alone."""
    b = Bench("a")
    b.group("short", seconds=TARGET / 10)
    b.group("long", seconds=TARGET * 10)
    tasks = some(b, 100, group="short")
    assert counts(b)["a"] in (9, 10)  # rounding decides about the last one
    b.release(*tasks)
    c = Bench("a")
    c.group("long", seconds=TARGET * 10)
    some(c, 3, group="long")
    assert counts(c) == {"a": 1}


def test_refill_comes_before_the_worker_runs_dry() -> None:
    """A worker whose load has fallen below the low mark gets more, though it is still busy."""
    b = Bench("a")
    b.group("short", seconds=TARGET / 10)
    tasks = some(b, 100, group="short")
    sent = []
    for task in tasks[:8]:
        b.report(task, seconds=TARGET / 10)
        sent.append(counts(b).get("a", 0))
    assert sent[:3] == [0] * 3
    assert sum(sent) > 3


def test_durations_are_measured() -> None:
    """A group's duration is the first one measured, then a moving average."""
    b = Bench("a")
    x, y = some(b, 2)
    b.report(x, seconds=1.0)
    assert x.group.seconds == 1.0
    b.report(y, seconds=2.0)
    assert 1.0 < (y.group.seconds or 0) < 2.0


def test_even_shares() -> None:
    """A few tiny tasks for several idle workers run on all of them, in the common lane and in others."""
    b = Bench("a", "b", "c")
    b.group("tiny", seconds=1e-5)
    some(b, 9, group="tiny")
    assert counts(b) == {"a": 3, "b": 3, "c": 3}
    c = Bench("a", "b", "c")
    c.group("tiny", seconds=1e-5)
    some(c, 4, group="tiny", lane=Lane(frozenset(["a", "b"])))
    assert counts(c) == {"a": 2, "b": 2}


def test_idle_slots_come_before_busy_workers() -> None:
    """A task goes to an idle worker rather than to one that has room for more in advance."""
    b = Bench("a", "b")
    b.group("tiny", seconds=1e-5)
    x = b.run("x", group="tiny")
    busy = x.worker
    y = b.run("y", group="tiny")
    assert y.worker is not busy


def test_no_slot_stays_idle_however_shares_come_out() -> None:
    """When those who were offered a share cannot take it, idle slots of others take it at once."""
    b = Bench("a")
    b.group("tiny", seconds=1e-5)
    b.run("x", group="tiny")
    b.join("wide", 4)
    some(b, 5, group="unknown")
    assert counts(b) == {"wide": 4}


def test_priorities() -> None:
    """Higher priorities are handed out first, equal ones in the order of submission."""
    b = Bench()
    for key, priority in (("m", 0), ("n", -1), ("o", 1), ("p", 5), ("q", 0)):
        b.run(key, priority=priority)
    b.group(seconds=1e-5)
    b.join("a")
    assert b.dispatched == {"a": ["p", "o", "m", "q", "n"]}


# -- stall and recall


def stalled() -> tuple[Bench, list[Task]]:
    """Return a bench where worker a has one task running and some behind it, and b is busy too."""
    b = Bench("a")
    b.group("tiny", seconds=1e-5)
    tasks = some(b, 5, group="tiny")
    b.join("b")
    b.run("other")
    assert keys(b.w[0].outstanding.values()) == keys(tasks)
    return b, tasks


def test_silent_worker_is_called_back_though_nobody_has_room() -> None:
    """Without a worker that has room a silent one is called back at the deadline, once; what comes back waits."""
    b, tasks = stalled()
    due = b.core.next_deadline()
    assert due is not None
    b.tell(events.DeadlineReached(), later=(due - b.now) / 2)
    assert b.recalled == []
    b.tell(events.DeadlineReached(), later=due - b.now)
    assert b.recalled == [("a", None)]
    assert b.core.next_deadline() is None
    b.tell(events.DeadlineReached(), later=10 * STALL)
    assert b.recalled == []
    b.tell(events.TasksRecalled(b.w[0], [t.seq for t in tasks[1:]]))
    assert ({t.state for t in tasks[1:]}, b.dispatched) == ({State.READY}, {})
    b.tell(events.DeadlineReached(), later=10 * STALL)
    assert b.recalled == []
    b.report(tasks[0])
    assert b.dispatched == {"a": ["t1", "t2", "t3", "t4"]}


def test_silence_is_certain_only_at_a_deadline() -> None:
    """At any other event replies may be unread: nobody is called back for nothing, and the deadline stays due."""
    b, _ = stalled()
    due = b.core.next_deadline()
    b.now += 10 * STALL
    b.run("another", lane=Lane(frozenset(["nobody"])))
    assert (b.recalled, b.core.next_deadline()) == ([], due)
    b.tell(events.DeadlineReached())
    assert b.recalled == [("a", None)]


def test_stall_is_recalled_when_another_has_room() -> None:
    """A worker that is silent for longer than its tasks should take gives back what it has not begun, once."""
    b, tasks = stalled()
    other = next(iter(b.w[1].outstanding.values()))
    b.report(other)
    due = b.core.next_deadline()
    assert due is not None
    b.tell(events.DeadlineReached(), later=(due - b.now) / 2)
    assert b.recalled == []
    b.tell(events.DeadlineReached(), later=due - b.now)
    assert b.recalled == [("a", None)]
    assert b.core.next_deadline() is None
    b.tell(events.DeadlineReached(), later=STALL)
    assert b.recalled == []
    b.tell(events.TasksRecalled(b.w[0], [t.seq for t in reversed(tasks[1:])]))
    assert b.dispatched == {"b": ["t1", "t2", "t3", "t4"]}
    assert b.w[0].stuck


def test_stuck_worker_gets_nothing_in_advance() -> None:
    """After a recall a worker gets nothing more until it has reported, however little its load seems to be."""
    b, tasks = stalled()
    b.report(next(iter(b.w[1].outstanding.values())))
    b.tell(events.DeadlineReached(), later=2 * STALL)
    b.tell(events.TasksRecalled(b.w[0], [t.seq for t in tasks[1:]]))
    some(b, 500, "more", group="tiny")
    assert set(b.dispatched) == {"b"}
    b.report(tasks[0])
    assert set(b.dispatched) == {"a"}


def test_recall_may_come_back_empty() -> None:
    """A worker that had begun everything answers with nothing, and that is that."""
    b, tasks = stalled()
    b.report(next(iter(b.w[1].outstanding.values())))
    b.tell(events.DeadlineReached(), later=2 * STALL)
    for task in tasks:
        b.report(task)
    b.tell(events.TasksRecalled(b.w[0], []))
    assert not b.w[0].recalling
    assert b.run("next").state is State.PROCESSING


def test_given_back_tasks_keep_their_place() -> None:
    """What is given back runs before what was submitted later."""
    b = Bench("a")
    first, _ = some(b, 2)
    b.tell(events.TasksRecalled(b.w[0], [first.seq], whole=False))
    assert b.dispatched == {"a": ["t0"]}


# -- quotas


def test_worker_is_dismissed_when_its_quota_is_used_up() -> None:
    """A worker gets as many tasks as it has quota, and is dismissed with the report of the last one, not earlier."""
    b = Bench()
    b.group(seconds=1e-5)
    worker = b.join("a", quota=3)
    tasks = some(b, 5)
    assert (counts(b), worker.quota) == ({"a": 3}, 0)
    for task in tasks[:2]:
        b.report(task)
        assert (b.dismissed, b.dispatched) == ([], {})
    b.report(tasks[2])
    assert (b.dismissed, b.core.workers, b.finished) == (["a"], {}, ["t2"])
    b.join("b")
    assert b.dispatched == {"b": ["t3", "t4"]}
    b.die(worker)
    assert b.out == []


def test_idle_worker_with_quota_is_not_dismissed() -> None:
    """A worker that has nothing to do stays while it may still be given something."""
    b = Bench()
    b.join("a", quota=2)
    b.report(b.run("x"))
    assert b.dismissed == []
    b.report(b.run("y"))
    assert b.dismissed == ["a"]


def test_what_is_given_back_returns_quota() -> None:
    """Tasks that a worker gives back, wanted or not, were not run: it may be given as many others."""
    b = Bench()
    b.group(seconds=1e-5)
    worker = b.join("a", quota=4)
    tasks = some(b, 4)
    b.release(tasks[1])
    b.tell(events.TasksRecalled(worker, [tasks[1].seq], whole=False))
    assert worker.quota == 1
    b.tell(events.TasksRecalled(worker, [t.seq for t in tasks[2:]]))
    assert (worker.quota, b.dispatched) == (3, {})
    b.report(tasks[0])
    assert (worker.quota, b.dispatched, b.dismissed) == (1, {"a": ["t2", "t3"]}, [])
    b.report(tasks[2])
    b.report(tasks[3])
    b.report(b.run("last"))
    assert b.dismissed == ["a"]


def test_every_run_counts() -> None:
    """A retry, a run that asks for another, and one whose value has no taker use quota as well."""
    b = Bench()
    worker = b.join("a", quota=4)
    x = b.run("x", retries=1)
    b.fail(x)
    b.report(x, None, Ending.RESCHEDULED)
    b.report(x)
    assert (worker.quota, b.dismissed) == (1, [])
    y = b.run("y")
    b.release(y)
    assert b.dismissed == []
    b.report(y)
    assert (b.dismissed, b.dropped) == (["a"], ["value of y"])


def test_quota_holds_in_lanes_and_for_what_is_sent() -> None:
    """Tasks of a lane, and one that a client sent itself, count too; slots stay idle without quota."""
    b = Bench()
    b.join("a", 4, quota=2)
    lane = Lane(frozenset(["a"]))
    sent = b.make("sent")
    sent.seq = b.core.take_number()
    b.tell(events.TaskSent(b.w[0], sent))
    named, common = b.run("named", lane=lane), b.run("common")
    late = b.run("late", lane=lane)
    assert [t.state for t in (named, common, late)] == [State.PROCESSING, State.READY, State.READY]
    b.report(sent)
    b.report(named)
    assert b.dismissed == ["a"]
    b.join("a")
    assert b.dispatched == {"a": ["common"]}


def test_words_on_their_way_when_it_was_dismissed() -> None:
    """A worker that was being called back when it was dismissed answers, and its end is noticed: nothing happens."""
    b = Bench()
    b.group(seconds=1e-5)
    worker = b.join("a", quota=2)
    tasks = some(b, 2)
    b.tell(events.DeadlineReached(), later=2 * STALL)
    assert b.recalled == [("a", None)]
    for task in tasks:
        b.report(task)
    assert b.dismissed == ["a"]
    b.tell(events.TasksRecalled(worker, []))
    b.die(worker)
    assert (b.out, b.core.workers) == ([], {})


# -- lanes


def test_named_workers() -> None:
    """`workers` are names or addresses; a task for workers that are not there waits for them."""
    b = Bench("a", "b")
    x = b.run("x", lane=Lane(frozenset(["b"])))
    y = b.run("y", lane=Lane(frozenset([b.w[0].address])))
    z = b.run("z", lane=Lane(frozenset(["c"])))
    assert (x.worker, y.worker, z.state) == (b.w[1], b.w[0], State.READY)
    b.join("c")
    assert b.dispatched == {"c": ["z"]}


def test_preference_counts_while_one_of_them_is_there() -> None:
    """With strict=False tasks wait for a preferred worker that is there, and go anywhere when there is none."""
    b = Bench("a", "b")
    lane = Lane(frozenset(["b"]), strict=False)
    x, y = b.run("x", lane=lane), b.run("y", lane=lane)
    assert (x.worker, y.state) == (b.w[1], State.READY)
    b.die(b.w[1])
    assert {t.worker for t in (x, y)} == {b.w[0], None}
    c = b.join("b")
    assert len(c.outstanding) == 1


def test_last_task_of_a_lane_that_does_not_fit_finds_the_next_worker() -> None:
    """Two long tasks for two named idle workers run on both at once."""
    b = Bench("a", "b")
    b.group("long", seconds=10 * TARGET)
    tasks = some(b, 2, group="long", lane=Lane(frozenset(["a", "b"])))
    assert {t.worker for t in tasks} == set(b.w)


def test_lane_and_common_tasks_fill_all_slots() -> None:
    """A worker with two slots takes a task of its lane and a common one, however urgent either is."""
    b = Bench()
    b.run("common")
    b.run("named", lane=Lane(frozenset(["a"])))
    b.join("a", 2)
    assert sorted(b.dispatched["a"]) == ["common", "named"]


def test_lanes_obey_priorities() -> None:
    """Among the tasks that a worker may run the most urgent goes first, whichever lane it is in."""
    b = Bench()
    lane = Lane(frozenset(["a"]))
    tasks = {
        "low": b.run("low", lane=lane, priority=-1, group="1"),
        "common": b.run("common", group="2"),
        "high": b.run("high", lane=lane, priority=3, group="3"),
    }
    b.join("a")
    for key in ("high", "common", "low"):
        assert b.dispatched == {"a": [key]}
        b.report(tasks[key])


def test_resources_are_held_and_returned() -> None:
    """A task holds its resources from the moment it is sent until it is reported, given back or its worker is gone."""
    b = Bench()
    worker = b.join("a", 4, GPU=1)
    lane = Lane(resources=(("GPU", 1),))
    x, y = b.run("x", lane=lane), b.run("y", lane=lane)
    free = b.run("free")
    assert (x.state, y.state, free.state) == (State.PROCESSING, State.READY, State.PROCESSING)
    b.report(x)
    assert y.state is State.PROCESSING
    b.tell(events.TasksRecalled(worker, [y.seq], whole=False))
    assert y.state is State.PROCESSING
    b.fail(y)
    assert worker.free == {"GPU": 1}


def test_resources_that_nobody_has() -> None:
    """A demand that no worker can meet waits for ever; a demand of nothing is met by everyone."""
    b = Bench("a")
    assert b.run("x", lane=Lane(resources=(("GPU", 1),))).state is State.READY
    nothing = b.run("y", lane=Lane(resources=(("GPU", 0),)))
    assert nothing.state is State.PROCESSING
    b.report(nothing)
    b.join("b", 1, GPU=2)
    assert b.dispatched == {"b": ["x"]}


def test_fractions_of_resources() -> None:
    """Three tasks with 0.1 of a GPU each fit into 0.3 of one, though 0.3 - 0.1 - 0.1 < 0.1 in floats."""
    b = Bench()
    b.join("a", 20, GPU=0.3)
    some(b, 12, lane=Lane(resources=(("GPU", 0.1),)))
    assert counts(b) == {"a": 3}


def test_lanes_of_the_past_cost_nothing() -> None:
    """A lane is forgotten when its last task was sent, or cancelled."""
    b = Bench("a")
    for number in range(20):
        b.release(b.run(number, lane=Lane(frozenset([number]))))
    sent = [b.run(("a", number), lane=Lane(frozenset(["a"]), resources=())) for number in range(3)]
    for task in sent:
        b.report(task)
    assert b.core.assignment.lanes == {}


def test_nothing_waits_behind_what_was_never_measured() -> None:
    """However much a worker may have in advance by now: a new function may take hours."""
    b = Bench("a", "b")
    b.core.assignment.target = 20 * TARGET
    b.group("tiny", seconds=1e-5)
    b.run("new", group="new")
    some(b, 4, group="tiny")
    assert sorted(len(w.outstanding) for w in b.w) == [1, 4]


def test_a_worker_that_takes_longer_than_thought_gets_nothing_in_advance() -> None:
    """It is given work again when it reports."""
    b = Bench("a")
    b.group("tiny", seconds=1e-5)
    first = b.run("first", group="tiny")
    b.tell(events.DeadlineReached(), later=STALL)
    later = b.run("later", group="tiny")
    assert keys(b.w[0].outstanding.values()) == ["first"]
    b.report(first)
    assert keys(b.w[0].outstanding.values()) == [later.key]
