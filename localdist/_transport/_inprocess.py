"""The scheduler is a thread of this process: tasks are handed over as they are, values through the store."""

from __future__ import annotations

import builtins
import copy
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from marshal import dumps as marshal_dumps
from typing import TYPE_CHECKING, Any

from .._chunk import run_chunk
from .._key import ATOMS
from .._schedule import events
from .._schedule.records import DEFAULT_OPTIONS, Group, Task
from .._serialize import blame, load_error, pack, pack_whole, qualified_type, unpack
from .._store._segment import Stored
from .._wire import INLINE_MAX, Local
from ..abc import Transport
from ..errors import ClosedClientError, DeserializationError, KilledWorker, SerializationError

if TYPE_CHECKING:
    from .._dispatch._engine import Engine
    from .._serialize import Function

#: How long a question about the workers waits for those that are starting, in seconds.
_START_LIMIT = 10.0
#: The group of data that is part of a call; never measured, since data does not run.
_DATA = Group("data")


class InProcess(Transport):
    """Reaches an engine in this process, whose workers are processes.

    Args:
        engine: runs the tasks.
        owns: whether closing this transport ends the engine.
    """

    def __init__(self, engine: Engine, *, owns: bool) -> None:
        self._engine = engine
        self._owns = owns
        self.drop = engine.drop  # type: ignore[method-assign]  # the hot paths: one call less
        self.submit_one = engine.submit_one  # type: ignore[method-assign]
        self.address = engine.crew.address

    @property
    def status(self) -> str:
        return "closed" if self._engine.closed else self._engine.status

    # -- values

    def encode(
        self,
        function: Function,  # noqa: ARG002  (it travels beside the call)
        func: Callable[..., Any],  # noqa: ARG002
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any] | None,
        inputs: Sequence[Task],
        digests: Any = None,
    ) -> tuple[Any, tuple[Task, ...]]:
        if kwargs is not None and not kwargs and not inputs and all(type(a) in ATOMS for a in args):
            payload = marshal_dumps(args, 2)
            if len(payload) <= INLINE_MAX:
                return payload, ()
        try:
            stream, buffers = pack((args, kwargs if kwargs is None else dict(kwargs)))
        except Exception as e:
            raise SerializationError("argument", blame((args, kwargs)), None, f"{type(e).__name__}: {e}") from e
        if not buffers and len(stream) <= INLINE_MAX:
            return stream, tuple(inputs)
        # Each large part is stored by itself, so that equal ones are stored once, whatever they travel with.
        keep = self._engine.values.keep
        stored: list[Stored] = []
        inline: bytes | None = stream
        try:
            if len(stream) > INLINE_MAX:
                stored.append(keep([stream], None))
                inline = None
            for buffer in buffers:  # one by one: what was stored before an error is released
                stored.append(keep([buffer], digests.find(buffer) if digests is not None else None))  # noqa: PERF401
        except BaseException:
            self._engine.values.release(stored)
            raise
        data = [self._data(part) for part in stored]
        return (inline, len(data)), (*data, *inputs)

    @staticmethod
    def _data(stored: Stored) -> Task:
        """Make a task of data that belongs to one call: nobody claims it, no key leads to it."""
        task = Task(("data", stored.name), _DATA, None, None, (), DEFAULT_OPTIONS)
        task.claims = 0
        task.outcome = stored
        return task

    def put(self, value: Any, digest: bytes | None = None) -> Any:
        try:
            stream, buffers = pack(value)
        except Exception as e:
            raise SerializationError("data", blame(value), None, f"{type(e).__name__}: {e}") from e
        if not buffers and len(stream) <= INLINE_MAX:
            return stream
        return self._engine.values.keep([stream, *buffers], digest, qualified_type(value))

    def is_large(self, value: Any) -> bool:
        try:
            stream, buffers = pack(value)
        except Exception:  # noqa: BLE001  (sending it will tell what is wrong with it)
            return False
        return bool(buffers) or len(stream) > INLINE_MAX

    def load(self, outcome: Any, key: Any) -> Any:
        try:
            if type(outcome) is Stored:
                return self._engine.values.load(outcome)
            return unpack(*outcome) if type(outcome) is tuple else unpack(outcome)
        except OSError:
            raise
        except Exception as e:
            raise DeserializationError("result", key, f"{type(e).__name__}: {e}") from e

    def detach(self, outcome: Any) -> Any:
        if type(outcome) is not Stored:
            return outcome
        opened = self._engine.values.open(outcome)
        self._engine.values.release((outcome,))
        return opened

    def load_error(self, outcome: Any) -> BaseException:
        return copy_error(outcome) if isinstance(outcome, BaseException) else load_error(outcome)

    def type_of(self, outcome: Any) -> type | None:
        if type(outcome) is not Stored:
            try:
                return type(self.load(outcome, None))
            except Exception:  # noqa: BLE001  (the value's own code may raise anything; `result` will tell)
                return None
        module, _, name = outcome.type_name.rpartition(".")
        found: Any = sys.modules.get(module) if module else builtins
        for part in name.split("."):
            found = getattr(found, part, None)
        return found if isinstance(found, type) else None

    # -- tasks

    def submit(self, tasks: Sequence[Task]) -> None:
        self._engine.post(events.TasksSubmitted(tasks))

    def submit_one(self, task: Task) -> None:
        self._engine.submit_one(task)

    def store(self, tasks: Sequence[Task]) -> None:
        self._engine.post(events.ValuesStored(tasks))

    def drop(self, task: Task) -> None:
        self._engine.drop(task)

    def cancel(self, tasks: Sequence[Task], reason: str, *, force: bool) -> None:
        self._engine.post(events.TasksCancelled(tasks, reason, force))

    def withdraw(self, tasks: Sequence[Task], reason: str, *, wait: bool) -> None:
        self._engine.withdraw(tasks, reason, wait=wait)

    def keep(self, tasks: Sequence[Task]) -> None:
        self._engine.post(events.TasksKept(tasks))

    def count_drops(self) -> bool:
        return self._engine.count_drops()

    def settle(self) -> None:
        self._engine.settle()

    def retry(self, tasks: Sequence[Task]) -> None:
        self._engine.post(events.TasksRetried(tasks))

    # -- workers

    def workers(self) -> dict[str, dict[str, Any]]:
        self._engine.crew.wait_complete(_START_LIMIT)
        described: dict[str, dict[str, Any]] = self._engine.call(self._engine.crew.describe)
        return described

    def wait_for_workers(self, count: int, timeout: float | None) -> None:
        self._engine.crew.wait_for(count, timeout)

    def run(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        addresses: Iterable[str],
        wait: bool,
    ) -> dict[str, tuple[bool, Any]] | None:
        try:
            pickled = pack_whole((func, args, kwargs))
        except Exception as e:
            what = blame((func, args, kwargs))
            raise SerializationError("argument", what, None, f"{type(e).__name__}: {e}") from e
        call = self._engine.call(lambda: self._engine.crew.run(pickled, list(addresses)))
        if not wait:
            return None
        call.wait()
        if call.abandoned:
            raise ClosedClientError("the client was closed while its workers ran a function")
        answers: dict[str, tuple[bool, Any]] = {}
        for address, payload in call.answers.items():
            if payload is None:
                answers[address] = (False, KilledWorker(f"run({func!r})", address, 0))
                continue
            ok, value = unpack(payload)
            answers[address] = (ok, value if ok else load_error(value))
        return answers

    def restart(self, timeout: float | None, *, wait: bool) -> None:
        self._engine.call(self._engine.restart)
        if wait:
            self._engine.crew.wait_for(self._engine.settings.n_workers, timeout)

    def inspect(self, question: str, *details: Any) -> Any:
        engine = self._engine
        if question == "processing":
            return engine.call(
                lambda: {a: tuple(t.key for t in w.outstanding.values()) for a, w in engine.core.workers.items()}
            )
        if question == "unfinished":
            return engine.unfinished(*details)
        if question == "story":
            return engine.call(lambda: engine.core.story(*details))
        return engine.values.statistics()

    def close(self) -> None:
        if self._owns:
            self._engine.close()


def copy_error(error: BaseException) -> BaseException:
    """Return another object that is the same exception: who raises one adds its own frames to it."""
    try:
        other = copy.copy(error)
    except Exception:  # noqa: BLE001  # its class takes other arguments than it keeps, or anything else
        other = error
    if type(other) is not type(error) or other is error:
        other = type(error).__new__(type(error), *error.args)
        other.__dict__.update(error.__dict__)
    other.__cause__, other.__context__ = error.__cause__, error.__context__
    other.__suppress_context__ = error.__suppress_context__
    return other.with_traceback(error.__traceback__)


class InThreads(InProcess):
    """Reaches an engine whose workers are threads of this process: nothing is pickled, nothing is copied."""

    def encode(
        self,
        function: Function,  # noqa: ARG002  (only processes need the description)
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any] | None,
        inputs: Sequence[Task],
        digests: Any = None,  # noqa: ARG002
    ) -> tuple[Any, tuple[Task, ...]]:
        call = (run_chunk, (func, *args), {}) if kwargs is None else (func, args, dict(kwargs))
        return call, tuple(inputs)

    def put(self, value: Any, digest: bytes | None = None) -> Any:  # noqa: ARG002
        return Local(value)

    def load(self, outcome: Any, key: Any) -> Any:  # noqa: ARG002
        return outcome.value

    def detach(self, outcome: Any) -> Any:
        return outcome

    def type_of(self, outcome: Any) -> type | None:
        return type(outcome.value)

    def run(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        addresses: Iterable[str],
        wait: bool,
    ) -> dict[str, tuple[bool, Any]] | None:
        workers = self._engine.call(lambda: {w.record.address: w for w in self._engine.crew.workers})
        chosen = [workers[a] for a in addresses if a in workers]
        answers: dict[str, tuple[bool, Any]] = {}

        def call_all() -> None:
            for worker in chosen:
                answers[worker.record.address] = worker.runner.call(func, args, kwargs)

        thread = threading.Thread(target=call_all, name="localdist-run", daemon=True)
        thread.start()
        if not wait:
            return None
        thread.join()
        return answers
