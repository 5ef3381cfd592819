"""The leak guard: counts threads, processes, descriptors and segments before and after, because a leak shows only then.

One `Snapshot` takes one to two milliseconds, nearly all of it psutil walking the process table, so that every test of a
suite can afford two. Nothing is waited for, collected or looked up by name until the second differs from the first.

What it cannot see: a grandchild whose parent has died (the system gives it to another parent), and on Windows open
handles (the interpreter itself opens and closes them all the time, so a difference says nothing there).
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import stat
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DEFAULT_TIMEOUT = 5.0
"""Seconds: a pool of workers ends in well under one, and a machine under full load is some times slower."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.05
# Seconds between two looks at descriptors and folders, doubled each time. No event tells of their end.

_ONCE_PER_INTERPRETER = ("resource_tracker import main", "multiprocessing.forkserver import main")
# Helpers of multiprocessing and loky: they start at the first use and live as long as the interpreter, by design.

_SEGMENT_PREFIX = "localdist-"
_SHARED_MEMORY = "/dev/shm"


class LeakError(AssertionError):
    """Something was left over; the text names each thing.

    Attributes:
        leaks: the things themselves.
    """

    def __init__(self, leaks: Leaks) -> None:
        super().__init__(leaks)
        self.leaks = leaks

    def __str__(self) -> str:
        return f"left over at the end: {self.leaks}"


@dataclass(frozen=True)
class Leaks:
    """What exists now and did not exist in an earlier `Snapshot`. False when that is nothing.

    Attributes:
        threads: threads that still run.
        processes: children and their descendants.
        descriptors: number of each open descriptor and what it refers to.
        segments: full paths of shared-memory and disk folders.
    """

    threads: tuple[threading.Thread, ...] = ()
    processes: tuple[psutil.Process, ...] = ()
    descriptors: tuple[tuple[int, str], ...] = ()
    segments: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.threads or self.processes or self.descriptors or self.segments)

    def __str__(self) -> str:
        parts = [f"thread {t.name!r}{' (daemon)' if t.daemon else ''}" for t in self.threads]
        parts += [f"process {p.pid} ({_command(p)})" for p in self.processes]
        parts += [f"descriptor {number} -> {target}" for number, target in self.descriptors]
        parts += [f"segment {path}" for path in self.segments]
        return "; ".join(parts) or "nothing"


@dataclass(frozen=True)
class Snapshot:
    """What this process holds at one moment.

    Take one before the code in question, and give it to `find_leaks` after.

    Attributes:
        threads: all threads known to `threading`.
        processes: children of this process, and theirs, at any depth.
        descriptors: open file descriptors, number to target; empty on Windows.
        segments: full paths of this process's folders in shared memory and in the folder for temporary files.
    """

    threads: frozenset[threading.Thread]
    processes: frozenset[psutil.Process]
    descriptors: Mapping[int, str]
    segments: frozenset[str]

    @classmethod
    def take(cls) -> Snapshot:
        """Look at this process now. Any thread may call it.

        Returns:
            The snapshot; it keeps a reference to each thread in it, so do not store it for long.
        """
        return cls(frozenset(threading.enumerate()), _descendants(), _descriptors(), _segments())

    def since(self, before: Snapshot) -> Leaks:
        """Compare with an earlier snapshot, without waiting.

        Everything is compared one by one, not counted: what ends in between makes no room for a leak. A file inside a
        segment folder that was there before is that folder's affair, since released segments stay open for a while.

        Args:
            before: the earlier snapshot, of the same process.

        Returns:
            What is in this snapshot and not in `before`, without the calling thread and without the helper processes
            that `multiprocessing` and loky start once per interpreter.
        """
        processes = [p for p in self.processes - before.processes if not _lives_once_per_interpreter(p)]
        helpers, folders = _descriptors_of_helpers(), tuple(folder + os.sep for folder in before.segments)
        opened = [
            (number, target)
            for number, target in self.descriptors.items() - before.descriptors.items()
            if number not in helpers and not target.startswith(folders)
        ]
        return Leaks(
            threads=tuple(sorted(self.threads - before.threads - {threading.current_thread()}, key=lambda t: t.name)),
            processes=tuple(sorted(processes, key=lambda p: p.pid)),
            descriptors=tuple(sorted(opened)),
            segments=tuple(sorted(self.segments - before.segments)),
        )


def find_leaks(before: Snapshot, timeout: float = DEFAULT_TIMEOUT) -> Leaks:
    """Say what is left over since `before`, after waiting for what is about to end by itself.

    Nothing is ended by force. When there is a difference, garbage is collected once, so that what only a reference
    cycle keeps does not count; then threads are joined, processes waited for, and descriptors and folders looked at
    again until all are gone or the time is over. Children that end meanwhile are reaped.

    Args:
        before: a snapshot that this process took earlier.
        timeout: longest wait in seconds; only spent when something is left.

    Returns:
        What is still there; false when nothing is.
    """
    leaks = Snapshot.take().since(before)
    if not leaks:
        return leaks
    gc.collect()
    deadline = time.monotonic() + timeout
    pause, pauses = _FIRST_PAUSE, threading.Event()
    while leaks := Snapshot.take().since(before):
        if time.monotonic() >= deadline:
            return leaks
        _wait_for_threads(leaks.threads, deadline)
        _wait_for_processes(leaks.processes, deadline)
        if not (leaks.threads or leaks.processes):
            pauses.wait(min(pause, max(0.0, deadline - time.monotonic())))
            pause = min(2 * pause, _LONGEST_PAUSE)
    return leaks


@contextlib.contextmanager
def leak_guard(timeout: float = DEFAULT_TIMEOUT) -> Iterator[Snapshot]:
    """Raise `LeakError` when the body leaves threads, processes, descriptors or segments behind.

    An exception of the body passes through, and nothing is checked then: the first failure is the one to read.

    Args:
        timeout: longest wait in seconds for things that are about to end; only spent when something is left.

    Yields:
        The snapshot taken before the body.

    Raises:
        LeakError: after the body, naming what is left.
    """
    before = Snapshot.take()
    yield before
    if leaks := find_leaks(before, timeout):
        raise LeakError(leaks)


def _wait_for_threads(threads: tuple[threading.Thread, ...], deadline: float) -> None:
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def _wait_for_processes(processes: tuple[psutil.Process, ...], deadline: float) -> None:
    wanted = {process.pid for process in processes}
    for child in multiprocessing.active_children():
        # Its own object has to reap it, or it would look alive to its owner for ever.
        if child.pid in wanted:
            child.join(max(0.0, deadline - time.monotonic()))
    psutil.wait_procs(list(processes), timeout=max(0.0, deadline - time.monotonic()))


def _descendants() -> frozenset[psutil.Process]:
    # A process that was joined only implicitly is a zombie until somebody asks, and this is what asks.
    multiprocessing.active_children()
    return frozenset(psutil.Process().children(recursive=True))


def _command(process: psutil.Process) -> str:
    """Return the command line of a process, or what can be said of one that has none (any more)."""
    try:
        return " ".join(process.cmdline()) or process.name()
    except psutil.ZombieProcess:
        return "ended, but never waited for"
    except psutil.NoSuchProcess:
        return "ended just now"
    except psutil.AccessDenied:
        return "of another user"


def _lives_once_per_interpreter(process: psutil.Process) -> bool:
    command = _command(process)
    return any(mark in command for mark in _ONCE_PER_INTERPRETER)


def _descriptors_of_helpers() -> set[int]:
    """Return this process's ends of the pipes to the helpers that live once per interpreter.

    Their modules offer no public way that would not start them, so private attributes are read, and may be missing.
    """
    found = set()
    for module, holder, attribute in (
        ("multiprocessing.resource_tracker", "_resource_tracker", "_fd"),
        ("loky.backend.resource_tracker", "_resource_tracker", "_fd"),
        ("multiprocessing.forkserver", "_forkserver", "_forkserver_alive_fd"),
    ):
        number = getattr(getattr(sys.modules.get(module), holder, None), attribute, None)
        if isinstance(number, int):
            found.add(number)
    return found


def _descriptors() -> dict[int, str]:
    if sys.platform == "win32":
        return {}
    # Linux has both folders, macOS and the BSDs the second. The listing's own descriptor is closed before its target is
    # asked for, and so drops out.
    folder = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    found = {}
    for name in os.listdir(folder):
        with contextlib.suppress(OSError):
            found[int(name)] = _target(folder, int(name))
    return found


def _target(folder: str, number: int) -> str:
    """Describe what a descriptor refers to; raises OSError when it is not open."""
    with contextlib.suppress(OSError):
        return os.readlink(f"{folder}/{number}")
    status = os.fstat(number)
    kind = "socket" if stat.S_ISSOCK(status.st_mode) else "pipe" if stat.S_ISFIFO(status.st_mode) else "file"
    return f"{kind} (device {status.st_dev}, inode {status.st_ino})"


def _segments() -> frozenset[str]:
    """Return this process's folders, not what is in them: released segments stay there, warm, for a while."""
    found: set[str] = set()
    for folder in {tempfile.gettempdir(), os.environ.get("LOCALDIST_SHARED_FOLDER", _SHARED_MEMORY), _SHARED_MEMORY}:
        with contextlib.suppress(OSError):  # not every system has each of them
            found.update(os.path.join(folder, name) for name in os.listdir(folder) if _is_ours(name))
    return frozenset(found)


def _is_ours(name: str) -> bool:
    """Tell whether a name is that of a folder which this process made: ``localdist-<user>-<pid>-<start>-<hex>``."""
    parts = name.rsplit("-", 3)
    return name.startswith(_SEGMENT_PREFIX) and len(parts) == 4 and parts[1] == str(os.getpid())
