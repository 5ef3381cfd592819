"""The client's side of the store: what it writes and maps itself, and the ledger of everybody's segments.

The scheduler's thread and the client's own threads meet here, so the ledger is used under a lock; no lock is held
while bytes are moved, and none is taken by finalizers.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pickle import PickleBuffer
from time import monotonic
from typing import Any

import xxhash

from .._serialize import unpack
from .._store._ledger import Ledger, WriterOrders
from .._store._segment import (
    Folders,
    SegmentReader,
    SegmentWriter,
    Stored,
    remove_folders,
    unlink_segment,
    unlink_strays,
)

_log = logging.getLogger("localdist.store")

#: The client among the writers and readers of the ledger.
CLIENT = "client"


class ValueStore:
    """Large values of one client and its workers.

    Args:
        folders: where the segments lie; removed by `close`.
        wake: called, from any thread, when something was unmapped and `settle` should be called soon.
    """

    def __init__(self, folders: Folders, wake: Callable[[], None]) -> None:
        self.folders = folders
        self._wake = wake
        self._lock = threading.Lock()
        self._ledger = Ledger()
        self._writer = SegmentWriter(folders, CLIENT, on_spill=self.warn_once)
        self._reader = SegmentReader(self._note_unmapped)
        self._unmapped: deque[str] = deque()
        #: True when `settle` has something to do at once
        self.unsettled = False
        #: when `settle` is due although nothing happens; None: never
        self.deadline: float | None = None
        self._warned = False

    # -- the client's threads ------------------------------------------------------------------------------------

    def keep(self, parts: Sequence[bytes | PickleBuffer], digest: bytes | None, type_name: str = "") -> Stored:
        """Store a value of the client; content that is there already is shared.

        Args:
            parts: pickle stream and its buffers; or one raw buffer.
            digest: of the content, or None: it is computed here.

        Raises:
            StoreFullError: there is no room.
        """
        if digest is None:
            hasher = xxhash.xxh3_128()
            for part in parts:
                view = PickleBuffer(part).raw()
                hasher.update(view.nbytes.to_bytes(8, "little"))
                hasher.update(view)
            digest = hasher.digest()
        with self._lock:
            found = self._ledger.find(digest)
            if found is not None:
                self._ledger.retain(found.name)
                return found
        stored = self._writer.write(parts, digest, type_name)
        with self._lock:
            self._ledger.created(stored, CLIENT, monotonic())
        return stored

    def load(self, stored: Stored) -> Any:
        """Rebuild a value in this process, on a private mapping.

        Raises:
            OSError: the segment is gone.
        """
        return unpack(*self.open(stored))

    def open(self, stored: Stored) -> tuple[memoryview, list[memoryview]]:
        """Return pickle stream and buffers of a value, on a private mapping that outlives the segment's file.

        Raises:
            OSError: the segment is gone.
        """
        with self._lock:
            if self._ledger.current(stored.name) is not stored:
                # It was released meanwhile, and the file may hold another value by now.
                raise FileNotFoundError(f"the value in {stored.name} was released")
            self._ledger.mapped(stored.name, CLIENT)
        views = self._reader.open(stored)  # also when it fails, the end of the mapping is noted
        return views[0], views[1:]

    def release(self, stored: Iterable[Stored]) -> None:
        """Take note that these values have one holder less."""
        now = monotonic()
        with self._lock:
            for value in stored:
                self._ledger.released(value.name, now)
        self.unsettled = True
        self._wake()

    def warn_once(self, text: str) -> None:
        """Warn that values go to disk; one warning for the client and all its workers."""
        with self._lock:
            warned, self._warned = self._warned, True
        if not warned:
            warnings.warn(text, RuntimeWarning, stacklevel=2)

    # -- the scheduler's thread ----------------------------------------------------------------------------------

    def warn_for_worker(self, text: str) -> None:
        """Warn on behalf of a worker; where warnings are errors, nobody here could take one, so it is logged."""
        try:
            self.warn_once(text)
        except RuntimeWarning:
            _log.warning(text)

    def created(self, stored: Stored, writer: str) -> None:
        """Take note of a value that a worker wrote."""
        with self._lock:
            self._ledger.created(stored, writer, monotonic())

    def granted(self, stored: Stored, reader: str) -> None:
        """Take note that a worker is sent this value, and may map it."""
        with self._lock:
            self._ledger.mapped(stored.name, reader)

    def unmapped(self, names: Iterable[str], reader: str) -> None:
        """Take note that a worker does not map these any more, one name for each time it was granted."""
        now = monotonic()
        with self._lock:
            for name in names:
                self._ledger.unmapped(name, reader, now)
        self.unsettled = True

    def gone(self, process: str) -> None:
        """Take note that a worker has ended, after all it sent was read."""
        with self._lock:
            self._ledger.gone(process, monotonic())
            known = set(self._ledger.names())
        self.unsettled = True
        unlink_strays(self.folders, process.rsplit("/", 1)[-1], known)

    def settle(self, now: float) -> Mapping[Any, WriterOrders]:
        """Reuse or remove what nobody wants or maps any more; return what the workers are to do about theirs."""
        self.unsettled = False
        with self._lock:
            while self._unmapped:
                self._ledger.unmapped(self._unmapped.popleft(), CLIENT, now)
            self._ledger.expire(now)
            orders = self._ledger.take_orders()
            self.deadline = self._ledger.next_deadline()
        if not orders:
            return {}
        for name in orders.orphans:
            unlink_segment(name)
        writers = dict(orders.writers)
        own = writers.pop(CLIENT, None)
        if own is not None:
            for name in own.recycle:
                self._writer.recycle(name)
            for name in own.discard:
                self._writer.discard(name)
        return writers

    def statistics(self) -> dict[str, int]:
        """Say how many bytes values take, and how many are kept warm for reuse."""
        with self._lock:
            return {"total_bytes": self._ledger.total_bytes, "warm_bytes": self._ledger.warm_bytes}

    def _note_unmapped(self, name: str) -> None:
        self._unmapped.append(name)
        self.unsettled = True
        self._wake()

    def close(self) -> None:
        """Remove all segments and their folders; views of values that the client still has stay valid."""
        self._writer.close()
        remove_folders(self.folders)
