"""The thread that runs what `Future.add_done_callback` was given, one callback after the other."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

_log = logging.getLogger("localdist.callbacks")


class CallbackThread:
    """Runs callbacks in order. All methods may be called from any thread."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def start(self) -> None:
        """Let the thread exist: to be called before `put`, in the thread of whoever has something to put.

        When the interpreter ends, some versions of Python refuse to start one; `close` runs the callbacks then.
        """
        with self._lock:
            if self._thread is None and not self._closed:
                thread = self._make()
                if thread is not None:
                    self._thread = thread

    def put(self, callback: Callable[[], object]) -> None:
        """Let the thread run `callback`; what it raises is logged."""
        with self._lock:
            self._queue.put(callback)
            if self._closed:
                self._queue.put(None)  # one thread for each that comes late, and each ends at once
                self._make()

    def _make(self) -> threading.Thread | None:
        thread = threading.Thread(target=self._main, name="localdist-callbacks", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return None
        return thread

    def _main(self) -> None:
        while (callback := self._queue.get()) is not None:
            self._run(callback)
            del callback  # it refers to the future, which must not live until the next one comes

    @staticmethod
    def _run(callback: Callable[[], object]) -> None:
        try:
            callback()
        except BaseException:  # noqa: BLE001  # user code; SystemExit too must not end this thread, others wait for it
            _log.exception("a callback of a future failed")

    def finish(self) -> None:
        """Let the thread end when it has run what is queued."""
        with self._lock:
            if not self._closed and self._thread is not None:
                self._queue.put(None)
            self._closed = True

    def close(self, timeout: float | None = 5.0) -> None:
        """Run what is queued and end the thread; wait for that, `timeout` seconds at most."""
        self.finish()
        thread = self._thread
        if thread is not None:
            if thread is not threading.current_thread():
                thread.join(timeout)
            return
        with contextlib.suppress(Empty):  # there never was a thread
            while True:
                callback = self._queue.get_nowait()
                if callback is not None:
                    self._run(callback)
