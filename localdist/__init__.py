"""Run Python functions on all cores of one machine, with futures.

The route of a task, and the module where each stage is::

    submit    -> key    -> graph    -> schedule    -> dispatch    -> worker    -> store    -> result
    _client      _key      _graph      _schedule      _dispatch      _worker      _store      _future

The names below are loaded when they are first used, so that ``import localdist`` costs nothing, and a worker process
loads only what it needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "CancelledError": "errors",
    "Client": "_client",
    "ClosedClientError": "errors",
    "Executor": "_executor._pool",
    "Future": "_future",
    "KilledWorker": "errors",
    "LocalCluster": "_client",
    "LocaldistError": "errors",
    "Reschedule": "errors",
    "TaskTimeoutError": "errors",
    "TimeoutError": "_waiting",
    "as_completed": "_waiting",
    "default_client": "_registry",
    "fire_and_forget": "_waiting",
    "futures_of": "_waiting",
    "get_worker": "_worker._context",
    "progress": "_waiting",
    "wait": "_waiting",
}

__all__ = [
    "CancelledError",
    "Client",
    "ClosedClientError",
    "Executor",
    "Future",
    "KilledWorker",
    "LocalCluster",
    "LocaldistError",
    "Reschedule",
    "TaskTimeoutError",
    "TimeoutError",
    "as_completed",
    "default_client",
    "fire_and_forget",
    "futures_of",
    "get_worker",
    "progress",
    "wait",
]

if TYPE_CHECKING:
    from ._client import Client, LocalCluster
    from ._executor._pool import Executor
    from ._future import Future
    from ._registry import default_client
    from ._waiting import TimeoutError, as_completed, fire_and_forget, futures_of, progress, wait
    from ._worker._context import get_worker
    from .errors import (
        CancelledError,
        ClosedClientError,
        KilledWorker,
        LocaldistError,
        Reschedule,
        TaskTimeoutError,
    )


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
