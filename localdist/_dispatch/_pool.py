"""Worker processes: started by loky, watched, replaced when they die, ended with all they started."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import ChainMap, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from io import BytesIO
from itertools import islice
from multiprocessing import Pipe
from multiprocessing.connection import wait
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import ReferenceType, ref

from .._pipe import FrameReader, PatientWriter, Poller, frame
from .._schedule.records import Task, Worker
from .._serialize import load_error
from .._store._begun import BegunTable
from .._store._segment import Stored
from .._wire import Control
from .._worker._process import Settings, main

if TYPE_CHECKING:
    from .._serialize import Function
    from ._values import ValueStore

#: What a worker is to call first: a pickled (function, args), or these themselves, where they can be pickled only
#: while a process is being started.
Initializer = bytes | tuple[Any, Any] | None
#: What multiprocessing is told of an exit code that somebody else has collected.
_UNKNOWN = 255
#: Functions that a worker keeps; the oldest are forgotten, and sent again when they are needed.
FUNCTIONS_KEPT = 256
#: Bytes that these functions may have together: one that carries a large array is sent again rather than kept.
FUNCTIONS_BYTES = 16 * 2**20

#: Limits of the thread pools inside libraries, read when they are imported. Users' own settings win.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMEXPR_MAX_THREADS",
    "NUMBA_NUM_THREADS",
    "POLARS_MAX_THREADS",
    "LOKY_MAX_CPU_COUNT",
)


def thread_environment(cpus: int, n_workers: int) -> dict[str, str]:
    """Say which environment gives each worker its share of the processors; what the user has set is left alone."""
    share = str(max(1, cpus // max(1, n_workers)))
    return {name: share for name in THREAD_VARIABLES if name not in os.environ}


class _Sentinel:
    """A descriptor that can be read when a process has ended."""

    def __init__(self, process: Any) -> None:
        self._process = process
        self._own: int | None = None
        if hasattr(os, "pidfd_open"):
            # Unlike the end of a pipe it is not kept open by children that a task has forked.
            with contextlib.suppress(OSError):
                self._own = os.pidfd_open(process.pid)
        self._fd = process.sentinel if self._own is None else self._own

    def fileno(self) -> int:
        return self._fd

    def kill(self) -> None:
        """End the process at once."""
        with contextlib.suppress(OSError):
            if self._own is not None:
                signal.pidfd_send_signal(self._own, signal.SIGKILL)
            elif self._process.exitcode is None:  # else the number may belong to another process by now
                os.kill(self._process.pid, getattr(signal, "SIGKILL", signal.SIGTERM))

    def wait(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the end of the process; say whether it has come."""
        return bool(wait([self._fd], timeout))

    def close(self) -> None:
        if self._own is not None:
            os.close(self._own)
            self._own = None


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Let a process begin with Ctrl-C blocked: until it can ignore it, it would die of it, with a traceback."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # its start, which would be part of the first process's, unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _kill(popen: ReferenceType[Any]) -> None:
    """Kill the process behind a Popen object, as `multiprocessing.Process.kill` wants it done."""
    found = popen()
    if found is not None and found.poll() is None:
        os.kill(found.pid, getattr(signal, "SIGKILL", signal.SIGTERM))


def _poll(popen: ReferenceType[Any], flag: int | None = None) -> int | None:
    """Return the exit code behind a Popen object, or None while the process runs, also if two threads ask at once.

    The one that comes second finds no such process, and the code is not noted yet.
    """
    found = popen()
    if found is None:
        return None
    code: int | None = type(found).poll(found) if flag is None else type(found).poll(found, flag)
    # Where the program collects exit codes itself, nobody will ever note it; that is found out once.
    deadline = time.monotonic() + (0.0 if hasattr(found, "unknown") else 0.1)
    while code is None:
        try:
            os.kill(found.pid, 0)
            return None
        except ProcessLookupError:  # noqa: PERF203  (the loop ends with it)
            if time.monotonic() > deadline:
                found.unknown = True
                return None
            time.sleep(0)  # lets the other thread go on
            code = found.returncode
    return code


class _Carrier:
    """Pickles an initializer while its worker is started: locks and queues of multiprocessing travel only then."""

    def __init__(self, initializer: tuple[Any, Any]) -> None:
        self._initializer = initializer
        self.pickled = b""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        from .._pickler import ValuePickler

        class SpawnPickler(ValuePickler):
            # How multiprocessing's own things travel is known to its own pickler only.
            dispatch_table: ClassVar[Any] = ChainMap(ForkingPickler._extra_reducers, ValuePickler.dispatch_table)  # type: ignore[attr-defined]

        with BytesIO() as file:
            SpawnPickler(file, protocol=5).dump(self._initializer)
            self.pickled = file.getvalue()
        return object, ()  # the pickle itself goes another way


class ProcessWorker:
    """One worker process, as the scheduler's thread sees it.

    Args:
        record: the worker as the scheduler's core knows it.
        settings: what the process is told.
        environment: variables to set for it.
        initializer: what to call first of all.
    """

    def __init__(
        self, record: Worker, settings: Settings, environment: dict[str, str], initializer: Initializer = None
    ) -> None:
        from loky.backend.process import LokyProcess

        self.record = record
        #: True once it can take tasks, and once it runs at all
        self.ready = self.up = False
        #: True once it was told to end, since it has run as many tasks as it may
        self.dismissed = False
        #: what it said when it could not start, and the exception behind it
        self.complaint = ""
        self.error: BaseException | None = None
        self.created_at = time.time()
        task_reader, task_writer = Pipe(duplex=False)
        control_reader, control_writer = Pipe(duplex=False)
        reply_reader, reply_writer = Pipe(duplex=False)
        self._begun = BegunTable.create(settings.folders, f"{record.address.rsplit('/', 1)[-1]}.begun", record.slots)
        if self._begun is not None:
            settings = replace(settings, begun=self._begun.path)
        carrier = None if initializer is None or isinstance(initializer, bytes) else _Carrier(initializer)
        theirs = (task_reader, control_reader, reply_writer)
        ours = (task_writer, control_writer, reply_reader)
        self.process: Any = LokyProcess(
            target=main,
            args=(settings, *theirs, carrier),
            name=f"localdist-worker-{record.name}",
            env=environment,
        )
        try:
            with _interrupts_blocked():
                self.process.start()
        except BaseException:
            for connection in (*theirs, *ours):
                connection.close()
            if self._begun is not None:
                self._begun.close()
            raise
        for connection in theirs:
            connection.close()
        self.pid: int = self.process.pid
        # Loky's lacks it, and those who look at our processes expect it.
        self.process._popen.kill = partial(_kill, ref(self.process._popen))
        if sys.platform != "win32":
            self.process._popen.poll = partial(_poll, ref(self.process._popen))
        self.tasks = PatientWriter(task_writer)
        self.control = PatientWriter(control_writer)
        self.writers = (self.tasks, self.control)
        self.replies = FrameReader(reply_reader)
        self.sentinel = _Sentinel(self.process)
        self.exitcode: int | None = None
        #: functions that the worker has, with their size in bytes; the one used last comes last
        self._known: OrderedDict[int, int] = OrderedDict()
        self._known_bytes = 0
        if initializer is not None:
            # Not an argument of the process: those are written at once, and a child that dies early never reads them.
            self.tasks.write(frame(initializer if carrier is None else carrier.pickled))  # type: ignore[arg-type]

    def watch(self, poller: Poller) -> None:
        """Let the poller report this worker's replies, and its end."""
        poller.add((self, False), self.replies.connection)
        if sys.platform != "win32":
            poller.add((self, True), self.sentinel)  # type: ignore[arg-type]  # it has a fileno
        # There, 63 objects can be waited for, and nobody but the worker keeps the other end of its pipe open.

    def send(self, tasks: Sequence[Task], values: ValueStore) -> None:
        """Send tasks, with the functions that the worker does not have yet."""
        functions: list[tuple[int, bytes, bool]] = []
        forget: list[int] = []
        items = []
        known = self._known
        last = None
        for task in tasks:
            function: Function = task.function
            payload = task.call
            number = function.id
            if number != last:
                last = number
                if number in known:
                    known.move_to_end(number)
                else:
                    known[number] = len(function.pickled)
                    self._known_bytes += len(function.pickled)
                    functions.append((number, function.pickled, function.cacheable))
            if task.dependencies:
                # A pair: the pickle, or None, and how many of the inputs are parts of it.
                payload, parts = payload if type(payload) is tuple else (payload, 0)
                items.append((task.seq, task.key, number, payload, parts, self._inputs(task.dependencies, values)))
            else:
                items.append((task.seq, task.key, number, payload, 0, ()))
        while functions and (len(known) > FUNCTIONS_KEPT or self._known_bytes > FUNCTIONS_BYTES):
            oldest, size = known.popitem(last=False)
            self._known_bytes -= size
            forget.append(oldest)
        self.tasks.write(frame(pickle.dumps((functions, forget, items), 5)))

    def _inputs(self, dependencies: Iterable[Task], values: ValueStore) -> tuple[Any, ...]:
        inputs = tuple([d.outcome for d in dependencies])
        for value in inputs:
            if type(value) is Stored:
                values.granted(value, self.record.address)
        return inputs

    @property
    def blocked(self) -> bool:
        """True while something waits until the worker reads."""
        return self.tasks.blocked or self.control.blocked

    def command(self, verb: str, detail: Any = None) -> None:
        """Send a control message."""
        self.control.write(frame(pickle.dumps(tuple(Control(verb, detail)), 5)))

    def close_input(self, poller: Poller) -> None:
        """Let the worker end in order, as soon as it is idle."""
        self.command("stop")
        poller.remove(self.tasks)
        self.tasks.close()

    def kill(self) -> None:
        """End the process at once."""
        self.sentinel.kill()

    def reap(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the end of the process; say whether it has come, and set `exitcode`.

        The exit code stays None where another part of the program has collected it (``os.wait``, an ignored SIGCHLD).
        """
        ended = self.sentinel.wait(timeout)
        self.exitcode = self.process.exitcode
        if ended or self.exitcode is not None:
            # A thread that asks for the children of this process may have been faster, and about to note the code. This
            # waits for a pipe, which children that a task has forked keep open, so the code was asked for first.
            self.process.join(0.1 if self.exitcode is None else 0)
            self.exitcode = self.process.exitcode
            if self.exitcode is None:
                # Nobody will ever know, and multiprocessing would keep the process, and its pipe, until it does.
                self.process._popen.returncode = _UNKNOWN
                self.process.join(0)
            return True
        return False

    def begun(self) -> list[int]:
        """Return the numbers of the tasks that its slots have begun last: when it has died, what killed it."""
        if self._begun is not None:
            return self._begun.begun()
        return list(islice(self.record.outstanding, self.record.slots))

    def complain(self, payload: bytes) -> None:
        """Take note of why it cannot start."""
        self.complaint, dumped = pickle.loads(payload)
        self.error = load_error(dumped)

    def forget(self, poller: Poller) -> None:
        """Close everything that belongs to a process that has ended."""
        if self._begun is not None:
            self._begun.close()
        poller.remove(self.replies.connection)
        poller.remove(self.sentinel)
        for writer in (self.tasks, self.control):
            if not writer.connection.closed:  # of the first, the number may belong to somebody else by now
                poller.remove(writer)
                writer.close()
        self.replies.close()
        self.sentinel.close()
        # Its own sentinel is closed when the process object is collected; loky's objects have no close.


def descendants(pids: Iterable[int]) -> list[Any]:
    """List all processes that these processes have started, directly or not, as psutil objects."""
    import psutil

    found = []
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            found += psutil.Process(pid).children(recursive=True)
    return found


def end_all(processes: Iterable[Any]) -> None:
    """Kill processes (psutil objects) that still run."""
    import psutil

    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()


def startup_complaint(environment: dict[str, str]) -> str:
    """Find out why a worker process ends before it can speak: start one with its standard error in our hands."""
    popen = f"loky.backend.popen_loky_{'win32' if sys.platform == 'win32' else 'posix'}"
    # As loky does it: the path of this process is set when loky has been found without it.
    code = (
        f"import {popen}, sys; sys.path = {[p or os.getcwd() for p in sys.path]!r}; import localdist._worker._process"
    )
    try:
        probe = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as e:
        return f"{sys.executable}: {e}"
    return probe.stderr.strip()
