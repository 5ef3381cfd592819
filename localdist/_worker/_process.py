"""The main function of a worker process: its pipes, its service thread, its end."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import multiprocessing.util
import os
import pickle
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from .._pipe import FrameReader, FrameWriter
from .._serialize import dump_error, pack_whole, unpack
from .._store._begun import BegunTable
from .._store._segment import Folders, SegmentReader, SegmentWriter, remove_folders
from .._wire import REPLY, Control, Item, ReplyKind
from ._codec import LoadedFunction, ProcessCodec
from ._context import WorkerHandle
from ._globals import SharedGlobals
from ._runner import Runner

#: How long a worker that cannot start may take to send what it has put into queues, in seconds.
FLUSH = 1.0
#: Bytes of the reply's header that the frame's length counts.
_HEADER = REPLY.size - 4


@dataclass(frozen=True)
class Settings:
    """What a worker process is told when it starts."""

    address: str
    name: Any
    slots: int
    folders: Folders
    #: path of the table of what its slots have begun, if there is one
    begun: str | None = None
    #: whether functions that travel by value share the globals that they set
    shared_globals: bool = False
    #: whether the first frame on the task pipe is a pickled (function, args) to call first of all
    initializer: bool = False


class PipeChannel:
    """The worker's side of the task pipe and the reply pipe."""

    def __init__(
        self,
        tasks: FrameReader,
        replies: FrameWriter,
        writer: SegmentWriter,
        on_orphaned: Callable[[], NoReturn],
        shared: SharedGlobals | None,
    ) -> None:
        self._tasks = tasks
        self._replies = replies
        #: ends the process, since nobody is left to report to
        self._on_orphaned = on_orphaned
        self._segments = writer
        self._shared = shared
        self._functions: dict[int, LoadedFunction] = {}
        #: segments whose mapping is gone since the last reply; appended to by finalizers
        self.unmapped: deque[str] = deque()

    def receive(self, *, block: bool) -> list[Item] | None:
        if self.unmapped:
            self._report_unmapped()
        items: list[Item] = []
        while not items and (block or self._tasks.ready()):
            frames = self._tasks.read()
            if frames is None:
                return None
            for body in frames:
                items += self._unpack(body)
        return items

    def _unpack(self, body: bytes) -> list[Item]:
        new, forget, lines = pickle.loads(body)  # see `Batch`
        functions = self._functions
        for number, pickled, keep in new:
            functions[number] = LoadedFunction(pickled, keep, self._shared)
        # Resolved now: an id may be forgotten by a later message while its tasks still wait.
        items = [
            Item(seq, key, functions[number], payload, parts, inputs)
            for seq, key, number, payload, parts, inputs in lines
        ]
        for number in forget:
            del functions[number]
        return items

    def tidy(self, recycle: list[str], discard: list[str]) -> None:
        """Take back segments of this worker that nobody maps any more."""
        for name in recycle:
            self._segments.recycle(name)
        for name in discard:
            self._segments.discard(name)

    def reply(self, kind: ReplyKind, seq: int, seconds: float, payload: Any) -> None:
        if payload is None:
            payload = b""
        elif type(payload) is not bytes:
            payload = pickle.dumps(payload, 5)
        data = REPLY.pack(_HEADER + len(payload), kind, seq, seconds) + payload
        if self.unmapped:
            # In front of it: when the reply arrives, what the task had mapped is known to be free.
            data = self._take_unmapped() + data
        self._write(data)

    def _write(self, data: bytes) -> None:
        try:
            self._replies.write(data)
        except OSError:
            self._on_orphaned()

    def _take_unmapped(self) -> bytes:
        names = []
        while self.unmapped:
            names.append(self.unmapped.popleft())
        payload = pickle.dumps(names, 5)
        return REPLY.pack(_HEADER + len(payload), ReplyKind.UNMAPPED, 0, 0.0) + payload

    def _report_unmapped(self) -> None:
        self._write(self._take_unmapped())


class Service:
    """The thread that answers the control pipe while tasks run."""

    def __init__(
        self, control: FrameReader, channel: PipeChannel, runner: Runner, on_orphaned: Callable[[], NoReturn]
    ) -> None:
        self._control = control
        self._channel = channel
        self._runner = runner
        self._on_orphaned = on_orphaned

    def serve(self) -> None:
        """Carry out control messages until the client is gone."""
        while True:
            frames = self._control.read()
            if frames is None:
                break
            for body in frames:
                message = Control(*pickle.loads(body))
                if message.verb == "recall":
                    self._channel.reply(ReplyKind.RECALLED, 0, 0.0, (self._runner.recall(), True))
                elif message.verb == "cancel":
                    self._runner.cancel(message.detail)
                elif message.verb == "tidy":
                    self._channel.tidy(*message.detail)
                elif message.verb == "run":
                    threading.Thread(target=self._call, args=message.detail, daemon=True).start()
                elif message.verb == "stop":
                    return  # the task pipe ends too; the main thread finishes in order
        self._on_orphaned()

    def _call(self, number: int, pickled: bytes) -> None:
        """Run a function outside of the task queue, for `Client.run`."""
        try:
            function, args, kwargs = unpack(pickled)
            ok, value = self._runner.call(function, args, kwargs)
            stream = pack_whole((ok, value if ok else dump_error(value, None)))
        except BaseException as error:  # noqa: BLE001  (what cannot be rebuilt or pickled is the caller's affair)
            stream = pack_whole((False, dump_error(error, None)))
        self._channel.reply(ReplyKind.RAN, number, 0.0, stream)


def main(
    settings: Settings,
    tasks: Connection,
    control: Connection,
    replies: Connection,
    carrier: object,  # noqa: ARG001  (it had to be pickled together with the others)
) -> None:
    """Run a worker until its client closes the task pipe."""
    _ignore_interrupts()
    out = FrameWriter(replies)
    reader = FrameReader(tasks)

    def leave() -> NoReturn:
        """The client has died without a word: nothing that runs here is wanted any more."""
        remove_folders(settings.folders)
        os._exit(1)

    try:
        prefix = settings.address.rsplit("/", 1)[-1]
        writer = SegmentWriter(
            settings.folders, prefix, on_spill=lambda text: channel.reply(ReplyKind.WARNING, 0, 0.0, text.encode())
        )
        shared = SharedGlobals() if settings.shared_globals else None
        channel = PipeChannel(reader, out, writer, leave, shared)
        codec = ProcessCodec(writer, SegmentReader(channel.unmapped.append), channel.unmapped.append, shared)
        handle = WorkerHandle(settings.address, settings.name, os.getpid(), settings.folders.disk)
        begun = (
            [0] * settings.slots if settings.begun is None else BegunTable.open(settings.begun, settings.slots).slots
        )
        runner = Runner(channel, codec, handle, begun)
        # From here on the end of the client is noticed, even while the initializer runs.
        service = Service(FrameReader(control), channel, runner, leave)
        thread = threading.Thread(target=service.serve, name="localdist-service", daemon=True)
        thread.start()
        if settings.initializer:
            channel.reply(ReplyKind.UP, 0, 0.0, None)
            _initialize(reader, shared)
    except BaseException as error:  # noqa: BLE001  (whatever it is, the client has to hear of it)
        payload = pickle.dumps((traceback.format_exc(), dump_error(error, None)), 5)
        with contextlib.suppress(OSError):
            out.write(REPLY.pack(_HEADER + len(payload), ReplyKind.FAILED_TO_START, 0, 0.0) + payload)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # it may be closed, or anything that the initializer put there
                stream.flush()
        # What was put into queues of multiprocessing is still on its way.
        flush = threading.Thread(target=multiprocessing.util._run_finalizers, daemon=True)  # type: ignore[attr-defined]
        flush.start()
        flush.join(FLUSH)
        os._exit(1)  # threads that the initializer has started must not delay it
    channel.reply(ReplyKind.READY, 0, 0.0, None)
    runner.run()
    thread.join()  # if this is the client's death, and not an order to stop, the folders are removed first


def _ignore_interrupts() -> None:
    """Leave the terminal's Ctrl-C to the client (ruling 23); it was blocked while this process started."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What a task starts by `multiprocessing` is started as anywhere else. loky leaves its own way as the default, which
    # neither `multiprocessing.Process` nor children made by "spawn" understand.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def _initialize(reader: FrameReader, shared: SharedGlobals | None) -> None:
    while not (frames := reader.read()):
        if frames is None:
            raise EOFError("the client is gone")
    function, args = unpack(frames[0])
    try:
        if shared is None:
            function(*args)
        else:
            shared.initialize(function, args)
    except BaseException:
        # As the standard library's pool does it: whoever collects the logs of workers finds it there.
        logging.getLogger("concurrent.futures").critical("Exception in initializer:", exc_info=True)
        raise
