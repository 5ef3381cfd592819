"""What others may implement: how a client reaches a scheduler."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._schedule.records import Task
    from ._serialize import Function

__all__ = ["Transport"]


class Transport(ABC):
    """How a `Client` reaches a scheduler; `Client` knows nothing else of it.

    Verbs that send something return at once and take batches; what becomes of tasks is told to the listener that the
    transport was made with. All methods may be called from any thread.
    """

    #: where the scheduler is, for people and for `repr`
    address: str

    @property
    @abstractmethod
    def status(self) -> str:
        """One of "running", "closing", "closed"."""

    # -- values

    @abstractmethod
    def encode(
        self,
        function: Function,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any] | None,
        inputs: Sequence[Task],
        digests: Any = None,
    ) -> tuple[Any, tuple[Task, ...]]:
        """Make a call ready to travel.

        Args:
            function: description of `func`.
            func: the callable itself.
            args: positional arguments, with slots for the values of `inputs`.
            kwargs: keyword arguments, likewise; None: `args` are those of `localdist._chunk.run_chunk`, which
                makes many calls of `func`.
            inputs: the tasks whose values take the slots' places.
            digests: content digests of buffers in the arguments, where they are known.

        Returns:
            What becomes `Task.call`, and the task's dependencies: perhaps data of the call's own, then `inputs`.

        Raises:
            SerializationError: an argument cannot travel.
            StoreFullError: there is no room for a large one.
        """

    @abstractmethod
    def put(self, value: Any, digest: bytes | None = None) -> Any:
        """Store a value and return what becomes `Task.outcome`. Raises as `encode` does."""

    @abstractmethod
    def is_large(self, value: Any) -> bool:
        """Say whether a value is better put once than sent with each of many calls."""

    @abstractmethod
    def load(self, outcome: Any, key: Any) -> Any:
        """Return the value of a finished task. Raises what rebuilding it raises; OSError when it is gone."""

    @abstractmethod
    def detach(self, outcome: Any) -> Any:
        """Return the outcome of a finished task in a form that `load` takes also when the scheduler has let go of it.

        Raises:
            OSError: it is gone.
        """

    @abstractmethod
    def load_error(self, outcome: Any) -> BaseException:
        """Return the exception of a failed task, with its traceback; a new object each time."""

    @abstractmethod
    def type_of(self, outcome: Any) -> type | None:
        """Return the class of a finished task's value, or None where it is not known without loading much."""

    # -- tasks

    @abstractmethod
    def submit(self, tasks: Sequence[Task]) -> None:
        """Let these tasks run."""

    @abstractmethod
    def submit_one(self, task: Task) -> None:
        """Let this task run."""

    @abstractmethod
    def store(self, tasks: Sequence[Task]) -> None:
        """Enter data (tasks with an `outcome`) that the client has put."""

    @abstractmethod
    def drop(self, task: Task) -> None:
        """Take note that a handle of this task is gone. Takes no lock: finalizers call it."""

    @abstractmethod
    def count_drops(self) -> bool:
        """Tell the listener, in this thread, of all handles that were dropped before; say whether there were any."""

    @abstractmethod
    def cancel(self, tasks: Sequence[Task], reason: str, *, force: bool) -> None:
        """Cancel these tasks and what their owner made depend on them."""

    @abstractmethod
    def withdraw(self, tasks: Sequence[Task], reason: str, *, wait: bool) -> None:
        """Cancel those of these tasks that no worker has been given.

        Args:
            tasks: tasks that were submitted.
            reason: a word for those who ask.
            wait: return when it has taken effect; otherwise it takes no lock: finalizers call it.

        Raises:
            ClosedClientError: the scheduler has ended, and `wait` was asked for.
        """

    @abstractmethod
    def keep(self, tasks: Sequence[Task]) -> None:
        """Let these tasks run although nobody waits for them."""

    @abstractmethod
    def settle(self) -> None:
        """Return when all that was said before, dropped handles included, has taken effect. Not for finalizers.

        Raises:
            ClosedClientError: the scheduler has ended.
        """

    @abstractmethod
    def retry(self, tasks: Sequence[Task]) -> None:
        """Run these failed tasks again."""

    # -- workers

    @abstractmethod
    def workers(self) -> dict[str, dict[str, Any]]:
        """Describe the workers, by address; those that are starting are waited for."""

    @abstractmethod
    def wait_for_workers(self, count: int, timeout: float | None) -> None:
        """Wait until so many workers can take tasks.

        Raises:
            WorkerStartTimeoutError: they cannot, within `timeout` seconds.
            WorkerStartError: they never will.
        """

    @abstractmethod
    def run(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        addresses: Iterable[str],
        wait: bool,
    ) -> dict[str, tuple[bool, Any]] | None:
        """Call a function in each of these workers, outside of the task queue.

        Returns:
            For each address True and the value, or False and the exception; None if `wait` is false.
        """

    @abstractmethod
    def restart(self, timeout: float | None, *, wait: bool) -> None:
        """Replace all workers; every task is forgotten. If `wait`, wait for them, as `wait_for_workers` does."""

    @abstractmethod
    def inspect(self, question: str, *details: Any) -> Any:
        """Answer "processing", "story", "statistics" or "unfinished" (detached tasks) from the scheduler's memory."""

    @abstractmethod
    def close(self) -> None:
        """Leave; what this client alone wanted is dropped."""
