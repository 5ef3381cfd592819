"""The slots of a worker: threads that take tasks, run them, and report each as soon as it has ended.

A report is written before the next task begins, so what a worker has finished is never lost with it. What it was
running when it died is told by the table in which each slot notes the task that it begins.

Leader and followers: whichever slot is idle reads the task channel itself, so that a task crosses no thread on its
way in; what it reads beyond its own need goes into `queue`, from which the others, and recalls, are served.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Sequence
from time import perf_counter
from types import CoroutineType
from typing import Any, Protocol

from .._wire import Item, ReplyKind
from ..errors import Reschedule
from ._codec import Codec
from ._context import WorkerHandle, current

#: Cancelled tasks that are remembered: those that had begun when the word came are never asked for again.
_CANCELLED_KEPT = 10_000


class Channel(Protocol):
    """How a worker is reached; one implementation for processes, one for threads."""

    def receive(self, *, block: bool) -> list[Item] | None:
        """Return the items of the next batch ([] when there is none and `block` is False); None: no more will come."""

    def reply(self, kind: ReplyKind, seq: int, seconds: float, payload: Any) -> None:
        """Send one reply. Thread-safe."""


class Runner:
    """Runs the tasks of one worker, each of its slots in a thread.

    `begun` has a place for each slot, where the number of the task that it begins is written.
    """

    def __init__(
        self, channel: Channel, codec: Codec, handle: WorkerHandle, begun: list[int] | memoryview[int]
    ) -> None:
        self.channel = channel
        self.codec = codec
        self.handle = handle
        self.begun = begun
        self.slots = len(begun)
        #: items that have arrived and have not begun, oldest first
        self.queue: deque[Item] = deque()
        #: seqs that must not begin
        self._cancelled: dict[int, None] = {}
        self._reading = threading.Lock()
        self._ended = False

    def run(self) -> None:
        """Run tasks in this thread, and in `slots` - 1 further ones, until the channel ends."""
        others = [
            threading.Thread(target=self._slot, args=(i,), name=f"localdist-slot-{self.handle.name}-{i}", daemon=True)
            for i in range(1, self.slots)
        ]
        for thread in others:
            thread.start()
        self._slot(0)
        for thread in others:
            thread.join()

    def cancel(self, seqs: Sequence[int]) -> None:
        """Never begin these items; they are given back when their turn comes. Any thread may call this."""
        self._cancelled.update(dict.fromkeys(seqs))
        while len(self._cancelled) > _CANCELLED_KEPT:
            with contextlib.suppress(StopIteration, RuntimeError, KeyError):  # a slot takes from it meanwhile
                del self._cancelled[next(iter(self._cancelled))]

    def recall(self) -> list[int]:
        """Take back all items that have not begun. Any thread may call this."""
        # A slot that holds the lock is idle, so there is nothing to take back then.
        if self._reading.acquire(blocking=False):
            try:
                while not self._ended and (items := self.channel.receive(block=False)):
                    self.queue.extend(items)
            finally:
                self._reading.release()
        taken: list[int] = []
        while True:
            try:
                item = self.queue.pop()
            except IndexError:  # the other slots may take from it meanwhile
                return taken
            self._give_back(item)
            taken.append(item.seq)

    def _give_back(self, item: Item) -> None:
        self._cancelled.pop(item.seq, None)
        self.codec.give_back(item)

    def _next(self) -> Item | None:
        while True:
            try:
                return self.queue.popleft()
            except IndexError:
                pass
            with self._reading:
                if self.queue:
                    continue
                if self._ended:
                    return None
                items = self.channel.receive(block=True)
                if items is None:
                    self._ended = True
                    return None
                if items:
                    self.queue.extend(items[1:])
                    return items[0]

    def _slot(self, number: int) -> None:
        current.runner = self
        begun = self.begun
        run_one = self.run_one
        cancelled = self._cancelled
        while (item := self._next()) is not None:
            if cancelled and item.seq in cancelled:
                self._give_back(item)
                self.channel.reply(ReplyKind.RECALLED, 0, 0.0, ([item.seq], False))
            else:
                begun[number] = item.seq
                run_one(item)
            del item  # its arguments shall not live until the next task comes

    def run_one(self, item: Item) -> None:
        """Run one task and report what came of it. Nothing that a task raises gets out of here."""
        current.key = key = item.key
        start = perf_counter()
        try:
            kind, payload = self._attempt(item)
        except Reschedule:
            kind, payload = ReplyKind.RESCHEDULED, None
        except BaseException as error:  # noqa: BLE001  (SystemExit and KeyboardInterrupt too are the task's own)
            kind, payload = ReplyKind.ERROR, self.codec.encode_error(key, error)
        current.key = None
        self.channel.reply(kind, item.seq, perf_counter() - start, payload)
        del payload, item  # an exception that stays in this process refers to this frame

    def _attempt(self, item: Item) -> tuple[ReplyKind, Any]:
        """Run one task; its function, arguments and result live no longer than this call."""
        function, args, kwargs = self.codec.decode(item)
        result = function(*args, **kwargs)
        if type(result) is CoroutineType:
            result.close()
            raise NotImplementedError(
                f"task {item.key!r} returned a coroutine: async functions come with a later version of localdist. "
                "Call asyncio.run inside the task"
            )
        return self.codec.encode(item.key, result)

    def call(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bool, Any]:
        """Call a function in this worker, outside of its slots; return True and its value, or False and its error."""
        current.runner = self
        try:
            if "dask_worker" in _parameters(function):
                kwargs = {**kwargs, "dask_worker": self.handle}
            return True, _complete(function(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001  (it belongs to the caller, whatever it is)
            return False, error
        finally:
            current.runner = None


def _parameters(function: Any) -> Any:
    import inspect

    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return ()


def _complete(result: Any) -> Any:
    """Await a coroutine that `Client.run` was given."""
    import inspect

    if inspect.iscoroutine(result):
        import asyncio

        return asyncio.run(result)
    return result
