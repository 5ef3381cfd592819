"""What the scheduler remembers of tasks and workers, what the event at hand has caused, and the table of moves."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from ..errors import InvalidTransition
from .assign import Assignment
from .records import State, StoryLine, Task, Worker

#: move -> {state before: state after}
MOVES: dict[str, dict[State, State]] = {
    "wait": {State.NEW: State.WAITING, State.ERRED: State.WAITING},
    "queue": {
        State.NEW: State.READY,
        State.WAITING: State.READY,
        State.PROCESSING: State.READY,
        State.ERRED: State.READY,
    },
    "dispatch": {State.READY: State.PROCESSING},
    "send": {State.NEW: State.PROCESSING},
    "finish": {State.NEW: State.FINISHED, State.PROCESSING: State.FINISHED},
    "fail": {
        State.NEW: State.ERRED,
        State.WAITING: State.ERRED,
        State.READY: State.ERRED,
        State.PROCESSING: State.ERRED,
    },
    "pair": {State.NEW: State.TWIN},
    "forget": {state: State.FORGOTTEN for state in State if state is not State.FORGOTTEN},
}

#: How many keys the story remembers over all, so that its memory is bounded (about 100 bytes each).
STORY_KEYS = 20_000


class Memory:
    """The state of a `Scheduler`, with the two ways to change it that everything else uses: `_move` and `_tell`."""

    def __init__(self, *, allowed_failures: int = 3, story_keys: int = STORY_KEYS) -> None:
        self.allowed_failures = allowed_failures
        #: live tasks by key; twins are reached through the task that runs for them
        self.tasks: dict[Any, Task] = {}
        #: workers that are here, by address
        self.workers: dict[str, Worker] = {}
        self.assignment = Assignment()
        self._seq = 0
        self._event = 0
        self._now = 0.0
        # Event, time, what, keys, where; `story` makes lines of them.
        self._story: deque[tuple[int, float, str, list[Any], str]] = deque()
        self._story_room = self._story_keys = story_keys
        # What the event at hand has caused so far; `handle` turns it into actions.
        self._finished: list[Task] = []
        self._failed: list[Task] = []
        self._cancelled: list[Task] = []
        self._reset: list[Task] = []
        self._dropped: list[Any] = []
        self._recalls: dict[Worker, list[int]] = {}
        self._stalled: list[Worker] = []
        self._dismissed: list[Worker] = []
        #: why nothing begins any more; None: everything does
        self._stopped: str | None = None

    def _move(self, task: Task, move: str) -> None:
        after = MOVES[move].get(task.state)
        if after is None:
            raise self._invalid(task, move)
        task.state = after

    def live_tasks(self) -> list[Task]:
        """List the tasks that a key leads to and those that only these need: data, and what has lost its key; no twins.

        Takes time in proportion to all of them.
        """
        found = dict.fromkeys(self.tasks.values())
        stack = list(found)
        while stack:
            new = [d for d in dict.fromkeys(stack.pop().dependencies) if d not in found]
            found.update(dict.fromkeys(new))
            stack += new
        return list(found)

    def _invalid(self, task: Task, move: str) -> InvalidTransition:
        return InvalidTransition(task.key, task.state.name, move, [str(line) for line in self.story(task.key)])

    def _stranger(self, seq: int, move: str) -> InvalidTransition:
        """Make the error for a worker that speaks of a task which it does not have."""
        for task in self.tasks.values():
            if task.seq == seq:
                return self._invalid(task, move)
        return InvalidTransition(f"number {seq}", "unknown", move)

    def _tell(self, what: str, tasks: Sequence[Task], where: str = "") -> None:
        """Write what happened into the story, and forget the oldest lines beyond its bound."""
        keys = [task.key for task in tasks[-self._story_keys :]]
        if not keys:
            return
        self._story.append((self._event, self._now, what, keys, where))
        self._story_room -= len(keys)
        while self._story_room < 0:
            self._story_room += len(self._story.popleft()[3])

    def story(self, *keys: Any) -> list[StoryLine]:
        """Tell what is remembered of these keys, oldest first."""
        wanted: Iterable[Any] = keys
        return [StoryLine(*line) for line in self._story if any(key in line[3] for key in wanted)]
