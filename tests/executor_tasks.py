"""What the calls of the executor's tests run: apart from the tests, so that each new worker imports no more than this."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from typing import Any

from tests.support import note, notes, wait_at

the_global: Any = None


def note_global(value: Any) -> None:
    global the_global
    the_global = value


def read_global(_: Any = None) -> Any:
    return the_global


def note_pid(path: str) -> None:
    note(path, os.getpid())


remembered: list[int] = []


def remember(number: int, pause: float) -> None:
    if pause:
        time.sleep(pause)
    remembered.append(number)


def forget() -> list[int]:
    numbers = remembered[:]
    remembered.clear()
    return numbers


class Coded(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def refuse(path: str) -> None:
    note(path, os.getpid())
    raise Coded(12)


def fail_first(path: str, failures: int) -> int:
    """Raise as often as said, counting the lines of a file, and then return the number of this call."""
    note(path, "run")
    count = len(notes(path))
    if count <= failures:
        raise ValueError(f"run {count}")
    return count


def crash_first(path: str, how: str, crashes: int) -> int:
    """Crash as often as said, and then return the number of this call."""
    note(path, os.getpid())
    count = len(notes(path))
    if count <= crashes:
        crash(how)
    return count


def crash(how: str) -> None:
    """End this process in one of several ways, or raise."""
    if how == "raise":
        raise ValueError("on purpose")
    if how == "sys.exit":
        sys.exit(3)
    if how == "os._exit":
        os._exit(3)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    assert how == "segfault"
    import faulthandler

    faulthandler.disable()  # its report would only be noise
    ctypes.string_at(0)


class CrashOnUnpickle:
    """Crashes the process that unpickles it, unless that is the one named."""

    def __init__(self, how: str, spared: int) -> None:
        self.how, self.spared = how, spared

    def __reduce__(self) -> Any:
        return rebuild, (self.how, self.spared)


def rebuild(how: str, spared: int) -> str:
    if os.getpid() != spared:
        crash(how)
    return "rebuilt"


class CrashOnPickle:
    """Crashes the process that pickles it."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __reduce__(self) -> Any:
        crash(self.how)
        return str, ()


def make_crash_on_pickle(how: str) -> Any:
    return CrashOnPickle(how)


def make_large_and_crash(how: str) -> Any:
    """Return several large arrays, and something that crashes when these are being written already."""
    import numpy as np

    return [*[np.ones(4 << 20) for _ in range(3)], CrashOnPickle(how)]


def make_crash_on_unpickle(how: str) -> Any:
    return CrashOnUnpickle(how, os.getpid())


def crash_in_a_thread(how: str) -> None:
    thread = threading.Thread(target=crash, args=(how,))
    thread.start()
    thread.join()


def crash_at(address: Any, how: str) -> None:
    wait_at(address)
    crash(how)


def crash_if(how: str, bad: int, x: int) -> int:
    if x == bad:
        crash(how)
    return x


def fail_later(path: str) -> None:
    """Raise at every call but the first."""
    note(path, "x")
    if len(notes(path)) > 1:
        raise ValueError("the second one")


def stubborn(address: Any) -> None:
    """Ignore SIGTERM, and wait at the gate."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    wait_at(address)
