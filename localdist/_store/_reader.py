"""Opening stored values in any process: a private copy-on-write mapping of each, whose end is reported.

When has a mapping ended? When the mapping object dies by its reference count no view of it is left. But when it is
garbage together with views (a list of views in a traceback that refers to itself), the collector works like this:

1. it calls ``__del__`` of everything that is garbage, the mapping's maybe first, while the views still work;
2. a ``__del__`` called later may use a view, or rescue it by making it reachable again;
3. it takes apart what nobody rescued.

To report the mapping at 1 would let its segment be overwritten under a view that is still in use. So ``__del__``
reports only what can be closed, which an existing view prevents, and puts the rest on a list that is gone through after
each collection.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import mmap
import os
import sys
import weakref
from collections import deque
from typing import TYPE_CHECKING

from localdist._store._file import BINARY, FD_FREE, read

if sys.platform != "win32":
    import resource

if TYPE_CHECKING:
    from collections.abc import Callable

    from localdist._store._file import Stored

COPY_MAX = 256 * 1024
"""Bytes up to which a value is read into memory rather than mapped (measurements: `localdist._store._segment`)."""

_garbage: deque[PrivateMapping] = deque()  # were garbage while views existed; closed as soon as these are gone


_living: weakref.WeakSet[PrivateMapping] = weakref.WeakSet()  # those that will report their end


def _keep_for_child() -> None:
    """Never report the mappings that a child is about to share: pages that it has not got it reads from the file."""
    for mapping in list(_living):
        with contextlib.suppress(AttributeError):
            del mapping.report


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_keep_for_child)


class PrivateMapping(mmap.mmap):
    """A copy-on-write mapping that reports its end, from any thread and without taking a lock."""

    __slots__ = ("name", "report")
    name: str
    report: Callable[[str], None]  # not set when mapping failed

    def __del__(self) -> None:
        if not self.finish():
            _garbage.append(self)
            if _finish_garbage not in gc.callbacks:
                gc.callbacks.append(_finish_garbage)

    def finish(self) -> bool:
        """Close and report the mapping, unless a view of it exists; whether it is closed."""
        try:
            self.close()
        except BufferError:
            return False
        if hasattr(self, "report"):
            self.report(self.name)
        return True


def _finish_garbage(phase: str, _info: dict[str, int]) -> None:
    """Close, after a collection, the mappings whose views it took apart."""
    if phase == "stop":
        for _ in range(len(_garbage)):
            with contextlib.suppress(IndexError):  # another thread took the last one
                mapping = _garbage.popleft()
                if not mapping.finish():
                    _garbage.append(mapping)


class SegmentReader:
    """Opens the values that any process stored; for one process, any of its threads."""

    def __init__(self, on_unmapped: Callable[[str], None]) -> None:
        """Report each mapping that ended.

        Args:
            on_unmapped: called with the segment's name exactly once for each `open`. It is called from any
                thread, at any point of its code (garbage collection), so it must take no lock: `deque.append` is right.
        """
        self._on_unmapped = on_unmapped
        self._held: deque[None] = deque()  # one for each mapping; a counter that needs no lock
        self._mapping_limit = mapping_limit()

    @property
    def mapped(self) -> int:
        """Number of mappings that are open."""
        return len(self._held)

    def open(self, stored: Stored) -> list[memoryview]:
        """Return the parts of a value, writeable and private: nobody else ever sees what is written to them.

        The segment is mapped copy-on-write, and unmapped when the last object is gone that uses any of the parts,
        such as a NumPy array built on it. Small values, and all when the process is short of mappings, are copied,
        and so reported as unmapped before this returns.

        Raises:
            OSError: the segment vanished or is damaged, or the system refuses to open it. It counts as unmapped.
        """
        try:
            buffer = self._load(stored)
        except BaseException:
            self._on_unmapped(stored.name)
            raise
        if isinstance(buffer, PrivateMapping):
            self._held.append(None)
            buffer.name = stored.name
            buffer.report = self._report
            _living.add(buffer)
        else:
            self._on_unmapped(stored.name)
        whole = memoryview(buffer)
        return [whole[offset : offset + length] for offset, length in stored.parts]

    def _report(self, name: str) -> None:
        self._held.pop()
        self._on_unmapped(name)

    def _load(self, stored: Stored) -> bytearray | PrivateMapping:
        """Map or copy a segment."""
        if stored.nbytes == 0:
            return bytearray()
        try:
            fd = os.open(stored.name, os.O_RDONLY | BINARY)
        except FileNotFoundError as error:
            text = "the segment of a stored value has vanished (was its client closed, or its folder cleaned?)"
            raise FileNotFoundError(errno.ENOENT, text, stored.name) from error
        try:
            if os.fstat(fd).st_size < stored.nbytes:
                raise OSError(errno.EIO, "the segment of a stored value is shorter than the value", stored.name)
            if stored.nbytes > COPY_MAX and len(self._held) < self._mapping_limit:
                with contextlib.suppress(OSError):  # out of mappings or descriptors; reading needs neither
                    return _map(fd, stored.nbytes)
            return read(fd, stored)
        finally:
            os.close(fd)


def mapping_limit() -> float:
    """Return how many mappings a reader may hold: half of the descriptors, where each mapping holds one."""
    if sys.platform != "win32" and not FD_FREE:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY:
            return soft // 2
    return float("inf")


def _map(fd: int, size: int) -> PrivateMapping:
    if sys.version_info >= (3, 13) and sys.platform != "win32":
        return PrivateMapping(fd, size, access=mmap.ACCESS_COPY, trackfd=False)
    return PrivateMapping(fd, size, access=mmap.ACCESS_COPY)
