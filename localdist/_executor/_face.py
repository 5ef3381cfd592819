"""What the executors share, and the one over the workers of a `Client`."""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

from .._future import Deadline
from .._options import make_options
from .._serialize import qualified_type
from .._state import Entry, Latch
from ..errors import ClosedClientError
from ._calls import PART, Calls, Results, SharedCalls
from ._future import ExecutorFuture

if TYPE_CHECKING:
    from .._client import Client

P = ParamSpec("P")
T = TypeVar("T")


class BaseExecutor(concurrent.futures.Executor):
    """What both executors share. All methods may be called from any thread."""

    _max_workers: int
    _retries: int

    def __init__(self) -> None:
        self._shut_down = False
        self._calls: Calls | None = None

    def _ready(self) -> Calls:
        """Return what makes calls.

        Raises:
            RuntimeError: the executor was shut down.
            BrokenProcessPool: it is broken.
        """
        if self._shut_down or self._calls is None:
            self._refuse()
        return self._calls

    @staticmethod
    def _refuse(cause: BaseException | None = None) -> NoReturn:
        raise RuntimeError("cannot schedule new futures after shutdown") from cause

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except ClosedClientError as e:
            self._refuse(e)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> concurrent.futures.Future[T]:
        """Let a worker call ``fn(*args, **kwargs)`` and return the future of the result at once.

        Function and arguments are pickled now: what is written into them later is not seen. What cannot be pickled
        fails the future. The call is made even if the future is dropped, and is never shared with an equal one.

        Args:
            fn: any callable; lambdas, closures and functions of ``__main__`` included.
            args: its positional arguments. A large array that many calls need is stored once.
            kwargs: its keyword arguments, whatever their names.

        Raises:
            RuntimeError: the executor was shut down.
            BrokenProcessPool: no worker can be started.
        """
        try:
            return ExecutorFuture(self._ready().submit(fn, args, kwargs))
        except ClosedClientError as e:
            self._refuse(e)

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Let workers call `fn` with the elements of the iterables, as the built-in `map` does, several at a time.

        Args:
            fn: any callable.
            iterables: any; the shortest counts. They are read to their ends at once, unless `buffersize` is given.
            timeout: how long all results together may take from this call on, in seconds.
            chunksize: how many calls make one task: some hundreds or thousands, when a call takes microseconds.
            buffersize: how many tasks may have been submitted whose results were not yielded yet. The iterables are
                read no further, so they may be endless, or larger than memory.

        Returns:
            A generator of the results, in order. Closing it cancels what has not begun; so does dropping it once the
            first result was taken. If nothing is ever taken, all calls are made.

        Raises:
            RuntimeError: the executor was shut down. From the generator: it was, and there was more to submit.
            BrokenProcessPool: no worker can be started.
            ValueError, TypeError: `chunksize` or `buffersize` is no int above 0.
            TimeoutError: from the generator: a result was not there in time.
            BaseException: from the generator: what a call raised; results of the calls before it come first.
        """
        chunksize = check_positive("chunksize", chunksize)
        if buffersize is not None:
            buffersize = check_positive("buffersize", buffersize)
        with self._refusing():
            calls = self._ready()
            fn = calls.share(fn)
            results = Results(calls.client)
        if chunksize > 1:
            more = self._submit_chunks(fn, iterables, chunksize)
        else:
            more = self._submit_parts(fn, zip(*iterables, strict=False), PART if buffersize is None else 1)
        return results.stream(more, buffersize, Deadline(timeout), chunked=chunksize > 1)

    def _submit_parts(
        self, fn: Callable[..., Any], elements: Iterator[tuple[Any, ...]], size: int
    ) -> Iterator[list[Entry]]:
        with self._refusing():
            while part := list(itertools.islice(elements, size)):
                yield self._ready().submit_many(fn, part)

    def _submit_chunks(
        self, fn: Callable[..., Any], iterables: tuple[Iterable[Any], ...], size: int
    ) -> Iterator[list[Entry]]:
        retries = self._retries
        source = iter(iterables[0]) if len(iterables) == 1 else zip(*iterables, strict=False)
        with self._refusing():
            while part := tuple(itertools.islice(source, size)):
                columns = (part,) if len(iterables) == 1 else tuple(zip(*part, strict=True))
                yield [self._ready().submit_chunk(fn, columns, retries)]

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, and free everything when the last has ended. May be repeated.

        Args:
            wait: return when that has happened.
            cancel_futures: cancel what has not begun.
        """
        raise NotImplementedError


def check_positive(name: str, value: Any) -> int:
    """Return an argument that is a whole number above 0 (NumPy's are fine) as an int.

    Raises:
        TypeError, ValueError: it is none.
    """
    if not hasattr(type(value), "__index__") or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, not {qualified_type(value)}")
    number = operator.index(value)
    if number < 1:
        raise ValueError(f"{name} must be at least 1, not {number}")
    return number


class ClientExecutor(BaseExecutor):
    """An executor over the workers of a `Client`, which stays open when it is shut down; see `Client.get_executor`."""

    def __init__(
        self,
        client: Client,
        *,
        pure: bool = False,
        workers: Any = None,
        resources: Mapping[str, float] | None = None,
        allow_other_workers: bool = False,
        retries: int = 0,
    ) -> None:
        super().__init__()
        client._check_open()
        options = make_options(client, workers, resources, retries, 0, allow_other_workers)
        self._retries = options.retries
        self._client = client
        self._options = replace(options, allowed_failures=options.retries, detached=not pure)
        self._calls: Calls = (SharedCalls if pure else Calls)(client, self._options)
        settings = client.cluster._engine.settings
        self._max_workers = settings.n_workers * settings.threads_per_worker

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._shut_down = True
        transport, board = self._client._transport, self._client._board
        try:
            entries = self._calls.unfinished()
            if cancel_futures:
                transport.withdraw(entries, "the executor was shut down", wait=True)
        except ClosedClientError:
            return  # everything has ended
        if not wait:
            return
        latch = Latch(len(entries))
        board.watch(entries, latch)
        try:
            latch.wait(None)
        except KeyboardInterrupt:
            board.unwatch(entries, latch)
            transport.withdraw(entries, "interrupted", wait=False)
            raise
