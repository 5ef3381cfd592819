"""The one thread that owns the scheduler's core: it feeds it events, and performs the actions that come back.

Other threads `post` to its inbox: tasks to submit, handles that were dropped, events. It sleeps in a poller until a
worker replies, somebody posts, or a deadline of the core or of the store is reached.
"""

from __future__ import annotations

import atexit
import pickle
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from struct import Struct
from time import monotonic
from typing import Any

from .._schedule import actions, events
from .._schedule.core import Scheduler
from .._schedule.records import Ending, ReportLine, State, Task
from .._store._segment import Stored, make_folder
from .._wire import REPLY, ReplyKind
from ..errors import InternalError, WorkerStartError
from ._crew import Crew, Settings
from ._endings import Endings
from ._express import Listener
from ._pool import ProcessWorker
from ._threads import ThreadWorker
from ._values import ValueStore

_HEAD = Struct(REPLY.format.replace("I", "", 1))  # the length is taken off by the reader
_HEAD_SIZE = _HEAD.size
#: After it has done something the thread sleeps this long at most, in seconds, and then for as long as nothing happens.
LINGER = 0.01
#: Dropped handles that may wait while workers report.
_DROPS_KEPT = 1_000
#: Engines whose thread runs; each adds itself, so that none is missed whatever interrupts the thread that made it.
_running: set[Engine] = set()


class Engine(Endings):
    """Runs tasks on workers for all clients of this pool. Its public methods may be called from any thread."""

    def __init__(self, settings: Settings, listener: Listener) -> None:
        super().__init__()
        self.settings = settings
        self.listener = listener
        self.status = "running"
        #: seconds since the epoch
        self.started = time.time()
        self.core = Scheduler(allowed_failures=settings.allowed_failures)
        #: called in the scheduler's thread when no task is left, just before the workers end
        self.at_end: Callable[[], object] = _nothing
        #: clients that there have been; two could submit the same key
        self.clients = 0
        #: what workers said that was read before its turn; None: the end of the pipe
        self._read_ahead: dict[ProcessWorker, list[bytes] | None] = {}
        #: True: sleep for `LINGER` at most, because something has just happened
        self._lingering = False
        self.values = ValueStore(make_folder(), self.wake)
        self.crew = Crew(settings, self.values, self._poller, self._post_thread_reply)
        self._handles: dict[str, ProcessWorker | ThreadWorker] = {}
        self._lines: dict[ProcessWorker | ThreadWorker, list[ReportLine]] = {}
        self._thread = threading.Thread(target=self._main, name="localdist-scheduler", daemon=True)
        try:
            self._thread.start()
        except BaseException:  # Ctrl-C while it starts: nobody will ever have this object
            self._closing.set()
            raise

    # -- any thread ----------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Return when everything that was posted before has been dealt with.

        Raises:
            ClosedClientError: the engine has ended.
        """
        self.call(self._drain_drops)

    def wait_ready(self, timeout: float | None) -> None:
        """Wait until one worker can take tasks.

        Raises:
            WorkerStartError: none can start.
            TimeoutError: none did in time.
        """
        self.crew.wait_for(1, timeout)

    # -- the scheduler's thread ----------------------------------------------------------------------------------

    def _main(self) -> None:
        _running.add(self)
        try:
            if not self._closing.is_set():
                self.crew.start()
                self._crew_changes()
            while not self._closing.is_set() and not self._done:
                self._turn()
            self._mutex.acquire()  # for good: nobody sends anything any more
            self.status = "closing"
        except BaseException as e:  # noqa: BLE001  # our own mistake: nobody may wait for ever because of it
            self._collapse(e)
        finally:
            self._finish()

    def _turn(self) -> None:
        """Sleep until there is something to do, and do it."""
        deadline = self._next_deadline()
        timeout = None if deadline is None else max(0.0, deadline - monotonic())
        if self._lingering and (timeout is None or timeout > LINGER):
            timeout = LINGER
            self._drowsy = True
        self._idle = self._find_idle()
        self._asleep = True
        if (
            self._inbox
            or self._calls
            or (self._drops and not self._drowsy)
            or self._closing.is_set()
            or self.values.unsettled
        ):
            timeout = 0.0
        readable, writeable = self._poller.wait(timeout)
        self._asleep = self._drowsy = False
        with self._mutex:
            self._idle = None
            self._lingering = bool(readable or self._inbox or self._drops)
            self._work(readable, writeable, deadline)

    def _find_idle(self) -> ProcessWorker | None:
        record = self.core.assignment.idle_worker() if self.clients == 1 else None
        worker = self._handles[record.address] if record is not None else None
        return worker if isinstance(worker, ProcessWorker) else None

    def _work(self, readable: list[Any], writeable: list[Any], deadline: float | None) -> None:
        if self._express is not None:
            (worker, task), self._express = self._express, None
            if (worker, False) in readable:
                self._announce_express(worker, task)
        # The inbox comes first: it may hold the news of a task whose reply is there already. Dropping can wait: a
        # thread that was just given its result wants to run.
        if self._inbox:
            self._drain()
        if self._drops and (not readable or len(self._drops) > _DROPS_KEPT):
            self._drain_drops()
        for writer in writeable:
            self._flush(writer)
        gone = [worker for worker, ended in readable if ended or not self._read(worker)]
        if gone:
            self._workers_ended(gone)
        while self._calls:
            if self._inbox:  # a call sees all that was posted before it
                self._drain()
            self._calls.popleft()()
        if self._blocked:
            self._watch_blocked()
        if deadline is not None and monotonic() >= deadline:
            self.handle(events.DeadlineReached())
            self.values.unsettled = True
        if self.values.unsettled:
            self._settle(monotonic())
        crew = self.crew
        if crew.changed or crew.broken is not None or (crew.can_grow and self.core.assignment.waiting):
            self._crew_changes()

    def _next_deadline(self) -> float | None:
        core, values = self.core.next_deadline(), self.values.deadline
        if core is None or values is None:
            return values if core is None else core
        return min(core, values)

    def handle(self, event: events.Event) -> None:
        """Give the core an event and perform what it asks for."""
        for action in self.core.handle(event, monotonic()):
            if isinstance(action, actions.Dispatch):
                worker = self._handles[action.worker.address]
                worker.send(action.tasks, self.values)
                if worker.blocked:
                    self._blocked = True
            elif isinstance(action, actions.Announce):
                self.listener.ended(action.finished, action.failed)
            elif isinstance(action, actions.Drop):
                stored = [o for o in action.outcomes if type(o) is Stored]
                if stored:
                    self.values.release(stored)
            elif isinstance(action, actions.Recall):
                worker = self._handles[action.worker.address]
                worker.command("recall" if action.seqs is None else "cancel", action.seqs)
                if worker.blocked:
                    self._blocked = True
            elif isinstance(action, actions.AnnounceCancelled):
                self.listener.cancelled(action.tasks, action.reason)
            elif isinstance(action, actions.Dismiss):
                self.crew.dismiss(self._handles.pop(action.worker.address))  # type: ignore[arg-type]  # a process
            else:
                self.listener.pending(action.tasks)

    def _watch_blocked(self) -> None:
        """Watch the pipes to workers that are full."""
        self._blocked = False
        for worker in self._handles.values():
            for writer in worker.writers:
                if writer.blocked:
                    self._poller.watch_writeable(writer, writer)

    def _flush(self, writer: Any) -> None:
        writer.flush()
        if writer.blocked:
            self._poller.watch_writeable(writer, writer)

    # -- what other threads posted

    def _drain(self) -> None:
        """Deal with the inbox, in order, as few batches as the order allows."""
        inbox = self._inbox
        submitted: list[Task] = []
        for _ in range(len(inbox)):
            item = inbox.popleft()
            if isinstance(item, Task):
                submitted.append(item)
                continue
            if submitted:
                self.handle(events.TasksSubmitted(submitted))
                submitted = []
            if type(item) is _ThreadReply:
                self._lines.setdefault(item.worker, [])
                self._take(item.worker, item.reply, self._lines[item.worker])
            else:
                self.handle(item)
        if submitted:
            self.handle(events.TasksSubmitted(submitted))
        self._report_lines()

    def _drain_drops(self) -> None:
        """Deal with dropped handles.

        None is dropped before it was submitted: what is taken here was dropped before, so it was in the inbox before.
        """
        drops = self._take_drops()
        if self._inbox:
            self._drain()
        self._released(drops)

    def _released(self, handles: list[Task]) -> None:
        gone = self.listener.drop_handles(handles)
        if gone:
            self.handle(events.TasksReleased(gone))

    # -- what workers say

    def _read(self, worker: ProcessWorker) -> bool:
        """Read a worker's replies; False when there will be no more."""
        frames = self._read_ahead.pop(worker) if worker in self._read_ahead else worker.replies.read()
        if frames is None:
            return False
        lines: list[ReportLine] = []
        success, inline = Ending.SUCCESS, int(ReplyKind.INLINE)
        for body in frames:
            kind, seq, seconds = _HEAD.unpack_from(body)
            if kind == inline:
                lines.append((seq, success, body[_HEAD_SIZE:], seconds))
            else:
                self._take(worker, (ReplyKind(kind), seq, seconds, body[_HEAD_SIZE:]), lines)
        if lines:
            self.handle(events.TasksReported(worker.record, lines))
        return True

    def _announce_express(self, worker: ProcessWorker, task: Task) -> None:
        """Give a task that was sent at once its result, before the core hears of either: somebody waits for it."""
        frames = self._read_ahead[worker] = worker.replies.read()
        if frames and task.state is State.NEW:
            kind, seq, _ = _HEAD.unpack_from(frames[0])
            if kind == ReplyKind.INLINE and seq == task.seq:
                task.outcome = frames[0][_HEAD_SIZE:]
                self.listener.ended((task,), ())

    def _take(
        self,
        worker: ProcessWorker | ThreadWorker,
        reply: tuple[ReplyKind, int, float, Any],
        lines: list[ReportLine],
    ) -> None:
        """Deal with one reply; what tasks have come to is added to `lines`, to be handled together."""
        kind, seq, seconds, payload = reply
        if kind is ReplyKind.INLINE:
            lines.append((seq, Ending.SUCCESS, payload, seconds))
        elif kind is ReplyKind.STORED:
            stored = pickle.loads(payload)
            self.values.created(stored, worker.record.address)
            lines.append((seq, Ending.SUCCESS, stored, seconds))
        elif kind is ReplyKind.ERROR:
            lines.append((seq, Ending.ERROR, payload, seconds))
        elif kind is ReplyKind.RESCHEDULED:
            lines.append((seq, Ending.RESCHEDULED, None, seconds))
        elif kind is ReplyKind.UNMAPPED:
            self.values.unmapped(pickle.loads(payload), worker.record.address)
        elif kind is ReplyKind.RECALLED:
            self._recalled(worker, payload, lines)
        elif kind is ReplyKind.RAN:
            self.crew.ran(worker, seq, payload)
        elif kind is ReplyKind.WARNING:
            self.values.warn_for_worker(payload.decode())
        elif kind is ReplyKind.READY:
            self._joined(worker)
        elif kind is ReplyKind.UP:
            self.crew.is_up(worker)
        else:
            worker.complain(payload)  # type: ignore[union-attr]  # only processes say this

    def _recalled(self, worker: ProcessWorker | ThreadWorker, payload: Any, lines: list[ReportLine]) -> None:
        seqs, whole = pickle.loads(payload) if isinstance(payload, bytes) else payload
        if lines:  # what came before it on the same pipe
            self.handle(events.TasksReported(worker.record, list(lines)))
            lines.clear()
        self.handle(events.TasksRecalled(worker.record, seqs, whole))

    def _post_thread_reply(self, worker: ThreadWorker, reply: tuple[ReplyKind, int, float, Any]) -> None:
        self.post(_ThreadReply(worker, reply))

    def _report_lines(self) -> None:
        while self._lines:
            worker, lines = self._lines.popitem()
            if lines:
                self.handle(events.TasksReported(worker.record, lines))

    # -- workers come and go

    def _joined(self, worker: ProcessWorker | ThreadWorker) -> None:
        self._handles[worker.record.address] = worker
        self.crew.joined(worker)
        self.handle(events.WorkerJoined(worker.record))

    def _crew_changes(self) -> None:
        for worker in self.crew.take_joined_threads():
            self._joined(worker)
        self.crew.keep_up(self.core.assignment.ready_count())
        error = self.crew.broken
        if error is None:
            return
        if self.settings.standard:
            self.handle(events.TasksFailed(list(self.core.tasks.values()), error))
        elif not self._handles and self.core.assignment.ready_count():
            # Those that wait depend on those that are ready. What has finished stays usable.
            unfinished = [t for t in self.core.tasks.values() if t.state in (State.READY, State.WAITING)]
            self.handle(events.TasksCancelled(unfinished, f"no worker can start: {error}", force=True))

    def _workers_ended(self, workers: list[ProcessWorker]) -> None:
        """Take note of the end of processes, after everything they wrote."""
        for worker in workers:
            if self.crew.has(worker):  # else this is the second sign of its end
                self._worker_ended(worker)

    def _worker_ended(self, worker: ProcessWorker) -> None:
        while worker.replies.ready() and self._read(worker):
            continue
        if not worker.reap(1.0):
            worker.kill()
            worker.reap(5.0)
        begun = [] if self._closing.is_set() else worker.begun()
        self.crew.left(worker)
        if self._handles.pop(worker.record.address, None) is not None:
            self.handle(events.WorkerLeft(worker.record, worker.pid, worker.exitcode, begun=begun))
        self.values.gone(worker.record.address)

    def restart(self) -> None:
        """Replace all workers and forget all tasks. In the scheduler's thread."""
        self.handle(events.AllDropped("scheduler-restart"))
        for worker in list(self._handles.values()):
            del self._handles[worker.record.address]
            self.handle(events.WorkerLeft(worker.record, blame=False))
        for address in self.crew.replace_all():
            self.values.gone(address)

    def _settle(self, now: float) -> None:
        for address, orders in self.values.settle(now).items():
            worker = self._handles.get(address)
            if worker is not None:
                worker.command("tidy", (list(orders.recycle), list(orders.discard)))
                if worker.blocked:
                    self._blocked = True
        if self._blocked:
            self._watch_blocked()

    # -- the end

    def _finish(self) -> None:
        self.status = "closed"
        self._closing.set()
        with ExitStack() as steps:  # the last one is taken first; each is taken, whatever the others raise
            steps.callback(self._ended.set)
            steps.callback(_running.discard, self)
            steps.callback(self._poller.close)
            steps.callback(self._answer_the_rest)
            steps.callback(self.values.close)
            steps.callback(self._forget_workers)
            steps.callback(self.crew.close, self._grace)
            steps.callback(self.at_end)
            steps.callback(self.handle_quietly, events.AllDropped("client closed"))
            steps.callback(self.listener.closed)

    def _forget_workers(self) -> None:
        """Somebody may keep a client that is closed; it shall not keep descriptors of processes, or large arguments."""
        self.settings = self.crew.settings
        self._idle = self._express = None
        self._read_ahead.clear()
        self._handles.clear()

    def _answer_the_rest(self) -> None:
        while self._inbox:
            item = self._inbox.popleft()
            if isinstance(item, Task):
                self.listener.cancelled([item], "client closed")
        while self._calls:
            self._calls.popleft()()

    def handle_quietly(self, event: events.Event) -> None:
        """Give the core a last event, although it may be the core that has failed."""
        try:
            self.handle(event)
        except Exception:  # noqa: BLE001  (our own mistake; nobody may wait for ever because of it)
            traceback.print_exc()
            self.listener.cancelled(list(self.core.tasks.values()), "internal error")

    def _collapse(self, error: BaseException) -> None:
        """Report an error of localdist itself; the futures are cancelled by `_finish`."""
        print(f"localdist: internal error, please report it (at {time.ctime()}):", file=sys.stderr)
        traceback.print_exception(type(error), error, error.__traceback__)
        self.crew.fail(InternalError(str(error)) if not isinstance(error, WorkerStartError) else error)


def _nothing() -> None:
    """Do nothing."""


class _ThreadReply:
    """A reply of a thread worker on its way through the inbox."""

    __slots__ = ("reply", "worker")

    def __init__(self, worker: ThreadWorker, reply: tuple[ReplyKind, int, float, Any]) -> None:
        self.worker = worker
        self.reply = reply


def _close_all() -> None:
    for engine in list(_running):
        engine.close()


# Registered after multiprocessing was imported, hence called before it waits for its children.
atexit.register(_close_all)
