"""Frames over one-way pipes between two processes: raw descriptors on POSIX, message connections elsewhere.

A frame is a length (`localdist._wire.LENGTH`) and as many bytes. Several frames may be written at once, and are read
at once; that is where the speed of many small replies comes from.
"""

from __future__ import annotations

import os
import select
import sys
import threading
from collections import deque
from multiprocessing.connection import Connection, wait
from typing import Any

from ._wire import LENGTH

#: True: read and write the descriptors themselves. False: the connection's own messages (Windows).
RAW = sys.platform != "win32"
#: How much to read at a time, in bytes: the default size of a pipe's buffer on Linux.
_CHUNK = 64 * 1024


def frame(body: bytes) -> bytes:
    """Put the length before a frame's body."""
    return LENGTH.pack(len(body)) + body


class FrameReader:
    """Reads frames from the reading end of a pipe. For one thread at a time."""

    def __init__(self, connection: Connection, *, raw: bool = RAW) -> None:
        self.connection = connection
        self._fd = connection.fileno()
        self._raw = raw
        #: the beginning of a frame that is not complete, and how many bytes it needs at least
        self._parts: list[bytes] = []
        self._missing = 0

    def fileno(self) -> int:
        return self._fd

    def read(self) -> list[bytes] | None:
        """Wait for data and return the frames that are complete, perhaps none; None at the end of the pipe.

        It waits at most once, and so never after `ready`: who writes may die, or stop, in the middle of a frame.
        """
        try:
            data = os.read(self._fd, _CHUNK) if self._raw else self.connection.recv_bytes()
        except (EOFError, OSError):  # the second: in the middle of a message
            return None
        if not data:
            return None
        if self._parts:
            # Joined once, when there is enough: the cost stays linear in the size of a frame.
            self._parts.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return []
            data = b"".join(self._parts)
            self._parts = []
        frames = []
        start, end = 0, len(data)
        while end - start >= 4:
            stop = start + 4 + LENGTH.unpack_from(data, start)[0]
            if stop > end:
                break
            frames.append(data[start + 4 : stop])
            start = stop
        if start < end:
            self._parts = [data[start:]]
            self._missing = stop - end if end - start >= 4 else 4 - (end - start)
        return frames

    def ready(self) -> bool:
        """Say whether `read` would return at once."""
        return self.connection.poll(0)

    def close(self) -> None:
        self.connection.close()


class FrameWriter:
    """Writes to a pipe and waits until the other end has room. Thread-safe."""

    def __init__(self, connection: Connection, *, raw: bool = RAW) -> None:
        self.connection = connection
        self._fd = connection.fileno()
        self._raw = raw
        self._lock = threading.Lock()

    def write(self, data: bytes) -> None:
        """Write whole frames.

        Raises:
            OSError: nobody reads the other end any more.
        """
        with self._lock:
            if not self._raw:
                self.connection.send_bytes(data)
                return
            written = os.write(self._fd, data)
            while written < len(data):
                written += os.write(self._fd, memoryview(data)[written:])

    def close(self) -> None:
        self.connection.close()


class PatientWriter:
    """Writes to a pipe without ever waiting: what does not fit is kept, and `flush` tries again.

    The scheduler's thread must not wait for a worker that itself waits for the scheduler to read its replies.
    Where pipes cannot be written without waiting, a thread does the waiting. For one thread.
    """

    def __init__(self, connection: Connection, *, raw: bool = RAW) -> None:
        self.connection = connection
        self._fd = connection.fileno()
        #: None (without `raw` only): nothing will follow
        self._pending: deque[bytes | memoryview | None] = deque()
        self._thread: threading.Thread | None = None
        self._more = threading.Semaphore(0)
        if raw:
            os.set_blocking(self._fd, False)
        else:
            self._thread = threading.Thread(target=self._send_all, name="localdist-sender", daemon=True)
            self._thread.start()

    def fileno(self) -> int:
        return self._fd

    @property
    def blocked(self) -> bool:
        """True while `flush` should be called as soon as the pipe can be written."""
        return bool(self._pending) and self._thread is None

    def write(self, data: bytes) -> None:
        """Write whole frames, now or later. A reader that is gone is no error: its end is noticed elsewhere."""
        if self._pending or self._thread is not None:
            self._pending.append(data)
            if self._thread is not None:
                self._more.release()
            return
        try:
            written = os.write(self._fd, data)
        except BlockingIOError:
            written = 0
        except OSError:
            return
        if written < len(data):
            self._pending.append(memoryview(data)[written:])

    def flush(self) -> None:
        """Write as much as fits."""
        pending = self._pending
        try:
            while pending:
                data = pending[0]
                assert data is not None
                written = os.write(self._fd, data)
                if written == len(data):
                    pending.popleft()
                else:
                    pending[0] = memoryview(data)[written:]
        except BlockingIOError:
            return
        except OSError:
            pending.clear()

    def _send_all(self) -> None:
        while True:
            self._more.acquire()
            data = self._pending.popleft()
            if data is None:
                return
            try:
                self.connection.send_bytes(data)
            except OSError:
                return

    def close(self) -> None:
        """Close the pipe, after what was written (unless its reader does not read). Take it off its poller before."""
        if self._thread is not None:
            self._pending.append(None)
            self._more.release()
            self._thread.join(1)
        else:
            self._pending.clear()  # the number of the descriptor will belong to somebody else
        self.connection.close()


class Poller:
    """Waits for pipes to become readable, or writeable. For one thread, except `wake`."""

    def __init__(self, *, raw: bool = RAW) -> None:
        self._raw = raw
        self._readers: dict[int, tuple[Any, Connection]] = {}
        self._writers: dict[int, Any] = {}
        self._poll = select.poll() if raw else None
        receiver, sender = _pipe()
        self._receiver, self._sender = receiver, sender
        if raw:
            os.set_blocking(receiver.fileno(), False)
            os.set_blocking(sender.fileno(), False)
        self.add(None, receiver)

    def add(self, token: Any, connection: Connection) -> None:
        """Report `token` when the connection (or any object with `fileno`) can be read."""
        fd = connection.fileno()
        self._readers[fd] = (token, connection)
        if self._poll is not None:
            self._poll.register(fd, select.POLLIN)

    def remove(self, connection: Any) -> None:
        """Watch the connection no longer."""
        fd = connection.fileno()
        known = self._readers.pop(fd, None) or self._writers.pop(fd, None)
        if known is not None and self._poll is not None:
            self._poll.unregister(fd)

    def watch_writeable(self, token: Any, writer: PatientWriter) -> None:
        """Report `token` once, when the writer can be flushed."""
        fd = writer.fileno()
        if self._poll is not None and fd not in self._writers:
            self._writers[fd] = token
            self._poll.register(fd, select.POLLOUT)

    def wake(self) -> None:
        """Let `wait` return, now or when it is called next. Any thread may call this."""
        try:
            if self._raw:
                os.write(self._sender.fileno(), b"!")
            else:
                self._sender.send_bytes(b"!")
        except OSError:
            return  # full of wake-ups already, or closed

    def wait(self, timeout: float | None) -> tuple[list[Any], list[Any]]:
        """Wait up to `timeout` seconds (None: for ever).

        Returns:
            The tokens of the readable ones, and of the writeable ones.
        """
        readable: list[Any] = []
        writeable: list[Any] = []
        if self._poll is None:
            # Windows tells connections, which it reads from, from handles of processes, which are plain numbers.
            watched = [c if hasattr(c, "recv_bytes") else fd for fd, (_, c) in self._readers.items()]
            ready_fds = [c if isinstance(c, int) else c.fileno() for c in wait(watched, timeout)]
        else:
            ready_fds = [fd for fd, _ in self._poll.poll(None if timeout is None else timeout * 1000)]
            if self._writers:
                for fd in self._writers.keys() & set(ready_fds):
                    writeable.append(self._writers.pop(fd))
                    self._poll.unregister(fd)
                    ready_fds.remove(fd)
        for fd in ready_fds:
            token, _ = self._readers[fd]
            if token is None:
                self._drain()
            else:
                readable.append(token)
        return readable, writeable

    def _drain(self) -> None:
        if self._raw:
            try:
                os.read(self._receiver.fileno(), 4096)
            except BlockingIOError:
                return
        else:
            while self._receiver.poll(0):
                self._receiver.recv_bytes()

    def close(self) -> None:
        self._receiver.close()
        self._sender.close()


def _pipe() -> tuple[Connection, Connection]:
    from multiprocessing import Pipe

    return Pipe(duplex=False)
