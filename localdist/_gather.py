"""RESULT: many results at once, in the shape in which their futures were given."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ._future import Future
from ._serialize import qualified_type
from ._state import FINISHED, PENDING, Entry, Latch
from .errors import ClosedClientError

if TYPE_CHECKING:
    from ._client import Client

_SKIPPED = object()


def gather(client: Client, futures: Any, errors: str) -> Any:
    """See `Client.gather`."""
    client._check_open()
    if isinstance(futures, queue.Queue):
        raise TypeError(f"gather takes futures, not {qualified_type(futures)}")
    if isinstance(futures, Iterator):
        return (gather(client, future, errors) for future in futures)
    handles = _handles(futures)
    for handle in handles:
        client._own_entry(handle)
    if errors not in ("raise", "skip"):
        raise ValueError(f'errors must be "raise" or "skip", not {errors!r}')
    wait_for(client, handles, fail_fast=errors == "raise")
    if errors == "raise":
        for handle in handles:
            if handle._bound().status not in (FINISHED, PENDING):
                handle.result()
        if handles is futures:
            return [handle.result() for handle in handles]
        return _rebuild(futures, Future.result)
    return _rebuild(futures, _result_or_skip, top=True)


def wait_for(client: Client, handles: list[Future], *, fail_fast: bool) -> None:
    """Wait until all futures have ended, or one has failed if `fail_fast`; Ctrl-C cancels those that are pending."""
    entries: list[Entry] = [h._entry for h in handles if h._entry is not None and h._entry.status is PENDING]
    if not entries:
        return
    if fail_fast and any(h._entry is not None and h._entry.status not in (PENDING, FINISHED) for h in handles):
        return
    latch = Latch(len(entries), fail_fast=fail_fast)
    client._board.watch(entries, latch)
    try:
        latch.wait(None)
    except KeyboardInterrupt:
        if client.status == "running":
            client.cancel([h for h in handles if not h.done()], reason="interrupted")
        raise
    finally:
        left = [entry for entry in entries if entry.status is PENDING]
        if left:
            client._board.unwatch(left, latch)
    if client.status == "closed" and left:
        raise ClosedClientError("the client was closed")


def _handles(futures: Any) -> list[Future]:
    if type(futures) is list and all(type(f) is Future for f in futures):
        return futures
    handles: list[Future] = []

    def note(handle: Future) -> None:
        handles.append(handle)

    _rebuild(futures, note)
    return handles


def _result_or_skip(future: Future) -> Any:
    if future._bound().status is not FINISHED:
        return _SKIPPED
    return future.result()


def _rebuild(value: Any, result: Callable[[Future], Any], *, top: bool = False) -> Any:
    """Replace futures by results in nested containers; `top`: a list leaves out what was skipped."""
    if isinstance(value, Future):
        found = result(value)
        return found if found is not _SKIPPED else None
    kind = type(value)
    if kind is list and top:
        results = [result(v) if isinstance(v, Future) else _rebuild(v, result) for v in value]
        return [r for r in results if r is not _SKIPPED]
    if kind in (list, tuple, set, frozenset):
        return kind([_rebuild(v, result) for v in value])
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        return kind(*[_rebuild(v, result) for v in value])
    if isinstance(value, dict):
        return {k: _rebuild(v, result) for k, v in value.items()}
    if isinstance(value, list):
        return [_rebuild(v, result) for v in value]
    return value
