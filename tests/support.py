"""What several test modules use: plain task functions, a gate that holds tasks up, waiting without sleeping."""

from __future__ import annotations

import os
import threading
import time
from multiprocessing.connection import Client as Connect
from multiprocessing.connection import Connection, Listener
from typing import TYPE_CHECKING, Any

import psutil

from localdist import get_worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from localdist import Client


def inc(x: Any) -> Any:
    return x + 1


def add(x: Any, y: Any) -> Any:
    return x + y


def div(x: float, y: float) -> float:
    return x / y


def echo(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def identity(x: Any) -> Any:
    return x


def pid(_x: Any = None) -> int:
    return os.getpid()


def worker_name(_x: Any = None) -> Any:
    return get_worker().name


def note(path: str, text: Any) -> Any:
    """Append a line to a file: how tests see that, how often and in which order tasks ran."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(f"{text}\n")
    return text


def note_and_fail(path: str) -> None:
    note(path, "ran")
    raise ValueError("it failed")


def notes(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().split()
    except FileNotFoundError:
        return []


def wait_at(address: Any, value: Any = None) -> Any:
    """A task that says it has begun and waits until the gate with this address opens; returns `value`."""
    with Connect(address) as connection:
        connection.recv_bytes()
    return value


class Gate:
    """Holds up tasks that call `wait_at(gate.address)`; they end with an error when the gate is closed for good."""

    def __init__(self) -> None:
        self._listener = Listener(backlog=64)
        self.address = self._listener.address
        self._arrived: list[Connection] = []
        self._lock = threading.Lock()  # a test may open the gate in a thread of its own, and end before that does

    def wait_for(self, count: int = 1) -> None:
        """Wait until `count` further tasks have begun and stand at the gate."""
        for _ in range(count):
            self._arrived.append(self._listener.accept())

    def open(self) -> None:
        """Let the tasks that have been waited for go on."""
        with self._lock:
            while self._arrived:
                connection = self._arrived.pop(0)
                connection.send_bytes(b"go")
                connection.close()

    def close(self) -> None:
        with self._lock:
            for connection in self._arrived:
                connection.close()
            self._listener.close()


def eventually(client: Client, condition: Callable[[], Any], seconds: float = 20.0) -> None:
    """Wait until a condition holds; each look costs a round through the scheduler's thread, which is the event."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not become true in time"
        settled(client)


def settled(client: Client) -> None:
    """Return when the scheduler has dealt with all that was said to it before, such as dropped handles."""
    client._transport.settle()


def still_running(pids: Iterable[int], seconds: float) -> list[int]:
    """Wait up to some seconds for the end of any processes; return those that still run.

    One that has ended and was not waited for by its parent (who may be the system's first process) has ended.
    """
    deadline = time.monotonic() + seconds
    left = list(pids)
    while left := [pid for pid in left if _is_running(pid)]:
        if time.monotonic() > deadline:
            break
    return left


def _is_running(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def cancelled_everywhere(client: Client) -> None:
    """Return when every worker has heard of all that was cancelled or dropped before."""
    settled(client)
    client.run(pid)  # on the same channel, behind it
