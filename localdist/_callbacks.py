"""The thread that runs what `Future.add_done_callback` was given, one callback after the other."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

_log = logging.getLogger("localdist.callbacks")


class CallbackThread:
    """Runs callbacks in order; the thread exists from the first one on. `put` may be called from any thread."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def put(self, callback: Callable[[], object]) -> None:
        """Let the thread run `callback`; what it raises is logged."""
        with self._lock:
            self._queue.put(callback)
            if self._thread is None or self._closed:
                thread = threading.Thread(target=self._main, name="localdist-callbacks", daemon=True)
                if self._closed:
                    self._queue.put(None)  # one thread for each that comes late, and each ends at once
                else:
                    self._thread = thread
                thread.start()

    def _main(self) -> None:
        while (callback := self._queue.get()) is not None:
            try:
                callback()
            except BaseException:  # noqa: BLE001  # user code; SystemExit too must not end this thread, others wait for it
                _log.exception("a callback of a future failed")
            del callback  # it refers to the future, which must not live until the next one comes

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
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)
