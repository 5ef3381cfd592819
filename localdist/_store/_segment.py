"""Writing values into segments (files in shared memory or on disk); `SegmentReader` maps them, in any process.

What was measured decides how it is done (200 MB, one machine, GB/s). Writing a fresh file: ``write`` 3.0,
``posix_fallocate`` and a mapping 2.0, the same with MAP_POPULATE 1.6. Rewriting an old file: through the mapping kept
open 20, ``write`` 7, through a new mapping with MAP_POPULATE 6 to 9, without 3.6. So a fresh file is written with
``write``, which also reserves the space (an overfull tmpfs answers with ENOSPC there, with SIGBUS in a mapping), and
a file is mapped by its writer when it is first used again, which pays from the second time on.

Reading: a mapping costs 7 us whatever the size, then 17 us per 256 KiB read and 100 us per 256 KiB written to, since
pages are copied; up to 256 KiB a plain copy is as fast, holds no mapping and frees the segment at once.
"""

from __future__ import annotations

import bisect
import errno
import os
import threading
import warnings
from dataclasses import dataclass, field
from pickle import PickleBuffer
from typing import TYPE_CHECKING

from localdist._store._file import FD_FREE, Stored, check_room, fill, lay_out, map_shared, whole_pages, write_file
from localdist._store._folders import Folders, make_folder, remove_folders, unlink_segment, unlink_strays
from localdist._store._reader import SegmentReader
from localdist.errors import StoreFullError

if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable, Iterable, Sequence

__all__ = [
    "Folders",
    "SegmentReader",
    "SegmentWriter",
    "Stored",
    "make_folder",
    "remove_folders",
    "unlink_segment",
    "unlink_strays",
    "warn_once",
]

_MAPPED_MAX = 1024 if FD_FREE else 64  # mappings that one writer keeps; each may cost a file descriptor
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM})
_warned: list[str] = []  # what `warn_once` said in this process
_warned_lock = threading.Lock()


def warn_once(text: str) -> None:
    """Issue a RuntimeWarning, once per process: what a `SegmentWriter` does by default when it falls to disk."""
    with _warned_lock:
        if _warned:
            return
        _warned.append(text)
    warnings.warn(text, RuntimeWarning, stacklevel=2)


@dataclass(slots=True, order=True)
class _Segment:
    """A file of this writer; ordered by size, then age, so that the same few files are used again and stay mapped."""

    capacity: int  # bytes, whole pages, all of them backed by memory or disk
    serial: int
    name: str = field(compare=False)
    folder: str = field(compare=False)
    mapping: mmap.mmap | None = field(default=None, compare=False)  # of the whole capacity; never exported


class SegmentWriter:
    """Writes values into segments, new ones or warm ones; for one process, any of its threads.

    A segment belongs to its writer. It is in use from `write` until `recycle`, then warm (kept for a value of
    like size) until it is written again, or until `discard`. Values stay readable when their writer is closed or dead.
    """

    def __init__(
        self,
        folders: Folders,
        prefix: str,
        shared_limit: int | None = None,
        on_spill: Callable[[str], None] = warn_once,
    ) -> None:
        """Write into `folders`, in files whose names start with `prefix` (unique among the writers there).

        Args:
            folders: the client's folders.
            prefix: text without path separators.
            shared_limit: bytes of shared memory that this writer may hold, warm ones included; None for no limit.
            on_spill: called with a text for the user the first time that shared memory has no room for a value.
        """
        self._folders, self._prefix = folders, prefix
        self._shared_limit, self._on_spill = shared_limit, on_spill
        self._lock = threading.Lock()  # guards all below; never held during I/O
        self._used: dict[str, _Segment] = {}
        self._warm: dict[str, _Segment] = {}
        self._by_size: list[_Segment] = []  # the warm ones, sorted
        self._warm_bytes = self._shared_bytes = 0  # the second: capacity in shared memory, of used and warm ones
        self._mapped = self._serial = 0
        self._doomed: set[str] = set()  # files that could not be unlinked yet (Windows: somebody has them open)
        self._spilled = self._closed = False

    def __repr__(self) -> str:
        return (
            f"<SegmentWriter {self._prefix}: {len(self._used)} used, {len(self._warm)} warm, {self._warm_bytes} bytes>"
        )

    @property
    def warm_bytes(self) -> int:
        """Bytes kept in warm segments."""
        return self._warm_bytes

    def write(
        self, parts: Sequence[bytes | memoryview | PickleBuffer], digest: bytes | None = None, type_name: str = ""
    ) -> Stored:
        """Store a value; its bytes are copied, so the caller may change them afterwards.

        Args:
            parts: the pickle stream, then its out-of-band buffers, each contiguous.
            digest: digest of the content, passed on.
            type_name: qualified name of the type, passed on.

        Raises:
            StoreFullError: neither folder takes the value; nothing is left of it.
        """
        views = [PickleBuffer(part).raw() for part in parts]
        layout, nbytes = lay_out(views)
        segment = self._take_warm(whole_pages(nbytes))
        if segment is not None and not self._rewrite(segment, views, layout):
            segment = None
        if segment is None:
            segment = self._write_fresh(views, layout, nbytes)
        with self._lock:
            self._used[segment.name] = segment
        return Stored(segment.name, nbytes, layout, digest, type_name)

    def recycle(self, name: str) -> bool:
        """Keep a segment warm, since its value is not wanted any more and nobody maps it.

        A segment on disk, while there is shared memory, is removed instead: rewriting it would bring nothing.

        Returns:
            Whether the segment was in use here.
        """
        with self._lock:
            segment = self._used.pop(name, None)
            if segment is None:
                return False
            keep = not self._closed and segment.folder == self._folders.all[0] and segment.capacity > 0
            if keep:
                self._warm[name] = segment
                bisect.insort(self._by_size, segment)
                self._warm_bytes += segment.capacity
        if not keep:
            self._remove([segment])
        return True

    def discard(self, name: str) -> bool:
        """Remove a warm segment; unknown names are ignored, and so are those that are in use.

        A segment in use may have been taken just before the order to discard it arrived, and its new value must live.
        So a value that never was announced, or is not worth keeping warm, takes `recycle` and then `discard`.

        Returns:
            Whether it was removed.
        """
        with self._lock:
            segment = self._warm.get(name)
            if segment is not None:
                self._forget_warm(segment)
        if segment is None:
            return False
        self._remove([segment])
        return True

    def drop_warm(self) -> bool:
        """Remove all warm segments; whether there were any."""
        with self._lock:
            dropped = list(self._warm.values())
            self._warm.clear()
            self._by_size.clear()
            self._warm_bytes = 0
        self._remove(dropped)
        return bool(dropped)

    def close(self) -> None:
        """Remove the warm segments and unmap the others, whose values stay; may be called repeatedly."""
        with self._lock:
            self._closed = True
            mappings = [segment.mapping for segment in self._used.values() if segment.mapping is not None]
            for segment in self._used.values():
                segment.mapping = None
        for mapping in mappings:
            mapping.close()
        self.drop_warm()

    def _take_warm(self, need: int) -> _Segment | None:
        """Take the smallest warm segment of at least `need` bytes that wastes at most a quarter."""
        with self._lock:
            at = bisect.bisect_left(self._by_size, _Segment(need, 0, "", ""))
            if at == len(self._by_size) or self._by_size[at].capacity > need + need // 4:
                return None
            segment = self._by_size[at]
            self._forget_warm(segment)
            return segment

    def _forget_warm(self, segment: _Segment) -> None:
        """Take a segment off the warm ones. The caller holds the lock."""
        assert self._lock.locked()
        del self._warm[segment.name]
        del self._by_size[bisect.bisect_left(self._by_size, segment)]
        self._warm_bytes -= segment.capacity

    def _rewrite(self, segment: _Segment, views: list[memoryview], layout: tuple[tuple[int, int], ...]) -> bool:
        """Write into a segment that is ours alone; False, and it is removed, when its file is damaged or gone."""
        try:
            os.stat(segment.name)  # a cleaner of temporary files may have been here; the mapping would not tell
            mapping = self._mapping_of(segment)
            if mapping is None:
                write_file(segment.name, 0, views, layout)
            else:
                fill(mapping, views, layout)
        except BaseException as error:
            self._remove([segment])
            if isinstance(error, OSError):
                return False
            raise
        return True

    def _mapping_of(self, segment: _Segment) -> mmap.mmap | None:
        """Return the mapping kept for a segment, made now if need be; None where writing must do.

        Only shared memory is rewritten through a mapping: a file system on disk may copy on write, hence
        run out of space (SIGBUS) even for pages that the file has already.
        """
        if segment.mapping is None and segment.folder == self._folders.shared:
            with self._lock:
                if self._mapped >= _MAPPED_MAX or self._closed:
                    return None
                self._mapped += 1
            try:
                segment.mapping = map_shared(segment.name, segment.capacity)
            except BaseException as error:
                with self._lock:
                    self._mapped -= 1
                if not isinstance(error, OSError):
                    raise
        return segment.mapping

    def _write_fresh(self, views: list[memoryview], layout: tuple[tuple[int, int], ...], nbytes: int) -> _Segment:
        """Write a new file in the first folder that has room."""
        errors: dict[str, str] = {}
        for folder in self._folders.all:
            if errors:
                self._report_spill(nbytes, errors)
            while True:
                try:
                    return self._create(folder, views, layout, whole_pages(nbytes))
                except OSError as error:  # noqa: PERF203  (each round has its own outcome)
                    errors[folder] = error.strerror or str(error)
                    if error.errno not in _FULL or not self.drop_warm():
                        break
        raise StoreFullError(nbytes, errors)

    def _report_spill(self, nbytes: int, errors: dict[str, str]) -> None:
        """Say, once, that a value goes to disk; before it is written, since a warning may be an error."""
        with self._lock:
            if self._spilled:
                return
            self._spilled = True
        tried = "; ".join(f"{os.path.dirname(folder)}: {why}" for folder, why in errors.items())
        self._on_spill(
            f"shared memory has no room for a value of {nbytes} bytes ({tried}). Such values go to a folder on disk, "
            "which is slower; give more shared memory (docker run --shm-size) or release futures"
        )

    def _create(
        self, folder: str, views: list[memoryview], layout: tuple[tuple[int, int], ...], capacity: int
    ) -> _Segment:
        """Write a new file of `capacity` bytes into `folder`, or leave nothing there and raise OSError."""
        in_shared = folder == self._folders.shared
        check_room(folder, capacity)
        with self._lock:
            if in_shared and self._shared_limit is not None and self._shared_bytes + capacity > self._shared_limit:
                raise OSError(errno.ENOSPC, f"the limit of {self._shared_limit} bytes is reached")
            self._serial += 1
            self._shared_bytes += capacity if in_shared else 0
            segment = _Segment(capacity, self._serial, os.path.join(folder, f"{self._prefix}-{self._serial}"), folder)
        try:
            write_file(segment.name, os.O_CREAT | os.O_EXCL, views, layout, capacity)
        except BaseException:
            self._remove([segment])
            raise
        return segment

    def _remove(self, segments: Iterable[_Segment]) -> None:
        """Unmap and unlink segments that nobody else can reach any more, and try again those that failed before."""
        names: list[str] = []
        unmapped = shared_bytes = 0
        for segment in segments:
            names.append(segment.name)
            shared_bytes += segment.capacity if segment.folder == self._folders.shared else 0
            if segment.mapping is not None:
                segment.mapping.close()
                segment.mapping = None
                unmapped += 1
        with self._lock:
            self._mapped -= unmapped
            self._shared_bytes -= shared_bytes
            names.extend(self._doomed)
            self._doomed.clear()
        failed = [name for name in names if not unlink_segment(name)]
        if failed:
            with self._lock:
                self._doomed.update(failed)
