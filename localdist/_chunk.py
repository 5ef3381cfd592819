"""Many calls of one function in one task, for `Executor.map` with chunks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ._serialize import dump_error


class FailedChunk:
    """What a chunk returns when a call has failed: what came before it is not lost.

    Attributes:
        results: of the calls before.
        error: what `load_error` takes, or the exception itself where it did not leave the process.
    """

    __slots__ = ("error", "results")

    def __init__(self, results: list[Any], error: Any) -> None:
        self.results = results
        self.error = error

    def __reduce__(self) -> tuple[type[FailedChunk], tuple[list[Any], bytes]]:
        error = self.error
        return FailedChunk, (self.results, error if isinstance(error, bytes) else dump_error(error, None))


def run_chunk(
    function: Callable[..., Any],
    retries: int,
    before: tuple[Any, ...],
    keywords: dict[str, Any],
    *columns: tuple[Any, ...],
) -> list[Any] | FailedChunk:
    """Call a function with the elements of equally long columns, one after the other.

    Args:
        function: what to call.
        retries: how often a call is made again after it raised.
        before: the first arguments of each call.
        keywords: keyword arguments of each call.
        columns: one for each further argument.

    Returns:
        The results, in order; after an error those before it, with the error.
    """
    if before or keywords:
        function = partial(function, *before, **keywords)
    results: list[Any] = []
    failures = 0
    while True:
        done = len(results)
        rest = [column[done:] for column in columns] if done or failures else columns
        try:
            results.extend(map(function, *rest))  # what was there before an exception stays
            if len(results) < len(columns[0]):
                raise StopIteration(f"raised by the call of {function!r}")  # and `extend` took it for the end
        except BaseException as error:  # noqa: BLE001  (SystemExit and KeyboardInterrupt too are the call's own)
            failures = failures + 1 if len(results) == done else 1
            if failures > retries:
                return FailedChunk(results, error)
        else:
            return results
