"""The thread that runs callbacks."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from localdist._callbacks import CallbackThread


@pytest.fixture
def callbacks() -> Any:
    callbacks = CallbackThread("test")
    callbacks.start()
    yield callbacks
    callbacks.close()


def test_callbacks_run_in_order_in_one_thread(callbacks: CallbackThread) -> None:
    """They run one after the other, in a thread of their own, however often it is started."""
    seen: list[tuple[int, int]] = []
    done = threading.Event()
    callbacks.start()
    for i in range(100):
        callbacks.put(lambda i=i: seen.append((i, threading.get_ident())))  # type: ignore[misc]
    callbacks.put(done.set)
    assert done.wait(20)
    assert [i for i, _ in seen] == list(range(100))
    assert len({ident for _, ident in seen} - {threading.get_ident()}) == 1


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(), KeyboardInterrupt()])
def test_errors_end_nothing(callbacks: CallbackThread, caplog: Any, error: BaseException) -> None:
    """Whatever a callback raises is logged, and the next one runs."""

    def fail() -> None:
        raise error

    done = threading.Event()
    callbacks.put(fail)
    callbacks.put(done.set)
    assert done.wait(20)
    assert type(error).__name__ in caplog.text


def test_closing_runs_what_is_queued(callbacks: CallbackThread) -> None:
    """`close` returns when all that was queued has run, and may be repeated."""
    seen: list[int] = []
    for i in range(10):
        callbacks.put(lambda i=i: seen.append(i))  # type: ignore[misc]
    callbacks.close()
    assert seen == list(range(10))
    callbacks.close()


def test_without_a_thread_closing_runs_them() -> None:
    """At the end of the interpreter no thread may be started: then what is queued runs in the one that closes."""
    callbacks = CallbackThread("test")
    assert callbacks._thread is None
    seen: list[int] = []
    callbacks.put(lambda: seen.append(threading.get_ident()))
    callbacks.put(lambda: 1 // 0)
    callbacks.put(lambda: seen.append(threading.get_ident()))
    callbacks.close()
    assert seen == [threading.get_ident()] * 2


def test_closing_within_a_callback(callbacks: CallbackThread) -> None:
    """A callback may close the thread it runs in."""
    done = threading.Event()

    def close() -> None:
        callbacks.close()
        done.set()

    callbacks.put(close)
    assert done.wait(20)


def test_late_callbacks_run_too(callbacks: CallbackThread) -> None:
    """After `close` each callback still runs, and leaves no thread behind."""
    for close_first in (False, True):
        callbacks.close()
        called = threading.Semaphore(0)
        for _ in range(5):
            callbacks.put(called.release)
        for _ in range(5):
            assert called.acquire(timeout=20)
        assert callbacks._thread is not None, close_first
        assert not callbacks._thread.is_alive(), close_first
