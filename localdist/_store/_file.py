"""One segment file: its descriptor, its layout, and the ways to write, read and map it."""

from __future__ import annotations

import errno
import mmap
import os
import sys
from dataclasses import dataclass

ALIGNMENT = 64
"""Bytes at whose multiples parts start: a cache line, and what vector instructions like best."""

FD_FREE = sys.version_info >= (3, 13) or sys.platform == "win32"
"""Whether a mapping does without a file descriptor of its own."""

BINARY: int = getattr(os, "O_BINARY", 0)
"""Flag for `os.open`: without it Windows translates line ends."""

_COPY_STEP = 16 * 1024 * 1024  # bytes (about 1 ms) copied into a mapping before other threads may have the GIL


@dataclass(frozen=True, slots=True)
class Stored:
    """Where the bytes of one value lie; small, and all that travels between processes.

    Attributes:
        name: absolute path of the segment.
        nbytes: bytes from the start of the segment to the end of the last part.
        parts: (offset, length) in bytes; part 0 is the pickle stream, the others are its out-of-band buffers.
        digest: digest of the content, or None where it was not computed.
        type_name: qualified name of the value's type, for `repr`.
    """

    name: str
    nbytes: int
    parts: tuple[tuple[int, int], ...]
    digest: bytes | None = None
    type_name: str = ""

    def __reduce__(self) -> tuple[type[Stored], tuple[object, ...]]:
        return Stored, (self.name, self.nbytes, self.parts, self.digest, self.type_name)


def whole_pages(nbytes: int) -> int:
    """Round a number of bytes up to whole pages."""
    return -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE


def lay_out(views: list[memoryview]) -> tuple[tuple[tuple[int, int], ...], int]:
    """Return where each part goes, and the end of the last.

    Gaps are shorter than `ALIGNMENT`, so no page lies within a gap and each page of the file gets written.
    """
    layout = []
    end = 0
    for view in views:
        offset = -(-end // ALIGNMENT) * ALIGNMENT if view.nbytes else end
        end = offset + view.nbytes
        layout.append((offset, view.nbytes))
    return tuple(layout), end


def check_room(folder: str, nbytes: int) -> None:
    """Raise ENOSPC when a value plainly does not fit, rather than fill the folder to the brim under others' feet."""
    if sys.platform == "win32":
        return
    found = os.statvfs(folder)
    if found.f_blocks and found.f_bavail * found.f_frsize < nbytes:  # a tmpfs without limit has no blocks
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), folder)


def write_file(
    name: str, flags: int, views: list[memoryview], layout: tuple[tuple[int, int], ...], size: int | None = None
) -> None:
    """Write the parts into a file, opened with additional `flags`, and extend it to `size` bytes."""
    fd = os.open(name, os.O_RDWR | BINARY | flags, 0o600)
    try:
        position = 0
        for view, (offset, length) in zip(views, layout, strict=True):
            if offset != position:
                os.lseek(fd, offset, os.SEEK_SET)
            done = 0
            while done < length:
                done += os.write(fd, view[done:])
            position = offset + length
        if size is not None:
            os.ftruncate(fd, size)
    finally:
        os.close(fd)


def fill(mapping: mmap.mmap, views: list[memoryview], layout: tuple[tuple[int, int], ...]) -> None:
    """Copy the parts into a mapping whose pages all exist."""
    with memoryview(mapping) as target:
        for view, (offset, length) in zip(views, layout, strict=True):
            for start in range(0, length, _COPY_STEP):
                stop = min(start + _COPY_STEP, length)
                target[offset + start : offset + stop] = view[start:stop]


def map_shared(name: str, size: int) -> mmap.mmap:
    """Map a segment for writing, with its pages at hand where the system can do that."""
    fd = os.open(name, os.O_RDWR | BINARY)
    try:
        if sys.platform == "win32":
            return mmap.mmap(fd, size)
        flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
        if sys.version_info >= (3, 13):
            return mmap.mmap(fd, size, flags=flags, trackfd=False)
        return mmap.mmap(fd, size, flags=flags)
    finally:
        os.close(fd)


def read(fd: int, stored: Stored) -> bytearray:
    """Read a segment into memory."""
    buffer = bytearray(stored.nbytes)
    with open(fd, "rb", buffering=0, closefd=False) as file, memoryview(buffer) as view:
        done = 0
        while done < stored.nbytes:
            got = file.readinto(view[done:])
            if not got:
                raise OSError(errno.EIO, "the segment of a stored value ended early", stored.name)
            done += got
    return buffer
