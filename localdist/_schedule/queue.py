"""Tasks that are ready to run, in the order they should run: by priority, then by age."""

from __future__ import annotations

from bisect import insort
from collections import deque
from heapq import heappop, heappush

from .records import State, Task

#: Priorities that an empty queue remembers, so that the usual ones are not set up again for each task.
_LEVELS_KEPT = 8


class _Level:
    """Tasks of one priority, oldest first.

    Nearly all tasks become ready in the order of their submission and wait in `fresh`, which costs a constant time
    each. Those that come late (they waited for others, or were given back) are merged in through a heap.
    """

    __slots__ = ("fresh", "late")

    def __init__(self) -> None:
        self.fresh: deque[Task] = deque()
        self.late: list[tuple[int, Task]] = []

    def peek(self) -> Task | None:
        """Return the next task without taking it; shells before it are thrown away."""
        fresh, late = self.fresh, self.late
        while fresh and fresh[0].state is not State.READY:
            fresh.popleft()
        while late and late[0][1].state is not State.READY:
            heappop(late)
        if late and (not fresh or late[0][0] < fresh[0].seq):
            return late[0][1]
        return fresh[0] if fresh else None

    def pop(self) -> Task | None:
        """Take the next task, which may be a shell."""
        if self.late and (not self.fresh or self.late[0][0] < self.fresh[0].seq):
            return heappop(self.late)[1]
        return self.fresh.popleft() if self.fresh else None


class ReadyQueue:
    """A priority queue of READY tasks.

    A task that stops being READY while it is queued stays here as a shell which `pop` skips; whoever moves it says
    so by `forget_one`, so that the length counts only real ones.
    """

    __slots__ = ("_levels", "_order", "_size")

    def __init__(self) -> None:
        self._levels: dict[float, _Level] = {}
        #: negated priorities of the levels, ascending: the first is the most urgent
        self._order: list[float] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def _level(self, priority: float) -> _Level:
        level = self._levels.get(priority)
        if level is None:
            level = self._levels[priority] = _Level()
            insort(self._order, -priority)
        return level

    def extend(self, tasks: list[Task]) -> None:
        """Add tasks of one priority, in ascending order of `seq`."""
        level = self._level(tasks[0].options.priority)
        if level.fresh and level.fresh[-1].seq > tasks[0].seq:
            for task in tasks:
                heappush(level.late, (task.seq, task))
        else:
            level.fresh.extend(tasks)
        self._size += len(tasks)

    def push(self, task: Task) -> None:
        """Add one task, which takes the place that its age gives it."""
        self.extend([task])

    def pop(self) -> Task | None:
        """Take the next task, or None when there is none."""
        if not self._size:
            return None
        index = 0
        while True:
            level = self._levels[-self._order[index]]
            while (task := level.pop()) is not None:
                if task.state is State.READY:
                    self._size -= 1
                    if not level.fresh and len(self._order) > _LEVELS_KEPT:
                        self._pass(index)
                    return task
            index = self._pass(index)

    def urgency(self) -> tuple[float, int] | None:
        """Say how urgent the next task is (smaller is sooner), or None when there is none."""
        if not self._size:
            return None
        index = 0
        while True:
            priority = self._order[index]
            task = self._levels[-priority].peek()
            if task is not None:
                return (priority, task.seq)
            index = self._pass(index)

    def _pass(self, index: int) -> int:
        """Return the index of the level behind this one, which is removed if it is empty and there are many."""
        level = self._levels[-self._order[index]]
        if level.fresh or level.late or len(self._order) <= _LEVELS_KEPT:
            return index + 1
        del self._levels[-self._order.pop(index)]
        return index

    def ready(self) -> list[Task]:
        """List the queued tasks, in the order in which `pop` would return them."""
        found = []
        for priority in self._order:
            level = self._levels[-priority]
            queued = [*level.fresh, *(task for _, task in level.late)]
            found += sorted((task for task in queued if task.state is State.READY), key=lambda task: task.seq)
        return found

    def forget_one(self) -> None:
        """Count one queued task less: it is not READY any more."""
        self._size -= 1
        if not self._size:
            # Only shells are left, and each keeps a record alive.
            self._clear()

    def _clear(self) -> None:
        self._levels.clear()
        self._order.clear()
