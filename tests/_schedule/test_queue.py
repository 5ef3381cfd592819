"""The order of ready tasks: priority, then age."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from localdist._schedule.queue import ReadyQueue
from localdist._schedule.records import Group, Options, State, Task

GROUP = Group("f")
PRIORITIES = [-1, 0, 0.5, 7]


def ready(seq: int, priority: float = 0) -> Task:
    task = Task(seq, GROUP, None, None, (), Options(priority=priority))
    task.seq, task.state = seq, State.READY
    return task


def seqs(queue: ReadyQueue) -> list[int]:
    found = []
    while (task := queue.pop()) is not None:
        task.state = State.PROCESSING
        found.append(task.seq)
    return found


def test_priority_then_age() -> None:
    """Higher priorities come first, and within one the oldest, whatever the order of coming."""
    queue = ReadyQueue()
    queue.extend([ready(1), ready(4), ready(6)])
    queue.push(ready(7, priority=1))
    queue.push(ready(2))
    queue.extend([ready(3), ready(5)])
    queue.push(ready(0, priority=-0.5))
    assert [task.seq for task in queue.ready()] == [7, 1, 2, 3, 4, 5, 6, 0]
    assert queue.urgency() == (-1, 7)
    assert seqs(queue) == [7, 1, 2, 3, 4, 5, 6, 0]
    assert (len(queue), queue.pop(), queue.urgency()) == (0, None, None)


def test_shells_are_skipped() -> None:
    """A task that is not READY any more is never returned and never counted, wherever it stands."""
    queue = ReadyQueue()
    tasks = [ready(1), ready(3), ready(5), ready(9, priority=2)]
    queue.extend(tasks[:3])
    queue.push(tasks[3])
    queue.push(late := ready(2))
    for task in (tasks[0], tasks[3], late):
        task.state = State.FORGOTTEN
        queue.forget_one()
    assert (len(queue), queue.urgency()) == (2, (0, 3))
    assert seqs(queue) == [3, 5]


def test_empty_queue_holds_on_to_nothing() -> None:
    """When only shells are left they are let go of: each of them keeps a record alive."""
    queue = ReadyQueue()
    tasks = [ready(i, priority=i) for i in range(5)]
    for task in tasks:
        queue.push(task)
    for task in tasks:
        task.state = State.FORGOTTEN
        queue.forget_one()
    assert not queue._levels


def test_many_priorities_cost_nothing_later() -> None:
    """Levels without tasks are given up, so that a priority of its own for each task does not slow the queue down."""
    queue = ReadyQueue()
    queue.push(ready(0, priority=-1e9))
    for seq in range(1, 1000):
        queue.push(ready(seq, priority=seq))
        assert queue.urgency() == (-seq, seq)
        task = queue.pop()
        assert task is not None
        assert task.seq == seq
    assert len(queue._order) < 20
    queue.extend([ready(2000)])
    assert seqs(queue) == [2000, 0]


STEP = st.one_of(
    st.tuples(st.just("extend"), st.sampled_from(PRIORITIES), st.lists(st.integers(0, 10**6), min_size=1, max_size=5)),
    st.tuples(st.sampled_from(["pop", "urgency"])),
    st.tuples(st.just("forget"), st.integers(0, 100)),
)


@given(st.lists(STEP, max_size=60))
def test_like_a_sorted_list(steps: list[tuple]) -> None:
    """In any order of calls the queue does what a list that is sorted anew each time would do."""
    queue, used = ReadyQueue(), set[int]()
    plain: list[Task] = []
    for what, *args in steps:
        plain.sort(key=lambda task: (-task.options.priority, task.seq))
        if what == "extend":
            new = [ready(seq, args[0]) for seq in sorted(set(args[1]) - used)]
            used |= {task.seq for task in new}
            if new:
                queue.extend(new)
                plain += new
        elif what == "pop":
            expected = plain.pop(0) if plain else None
            assert queue.pop() is expected
        elif what == "urgency":
            assert queue.urgency() == ((-plain[0].options.priority, plain[0].seq) if plain else None)
        elif plain:
            plain.pop(args[0] % len(plain)).state = State.FORGOTTEN
            queue.forget_one()
        assert len(queue) == len(plain)
    assert seqs(queue) == [t.seq for t in sorted(plain, key=lambda task: (-task.options.priority, task.seq))]
