"""What each slot of a worker has begun last: a page shared with its client, which can still be read when it has died.

So a worker's death is blamed on what it was running, and on nothing that was merely on its way to it.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from localdist._store._file import map_shared, write_file
from localdist._store._folders import unlink_segment

if TYPE_CHECKING:
    import mmap

    from localdist._store._folders import Folders

_ENTRY = 8  # bytes: one unsigned number for each slot


class BegunTable:
    """Numbers of tasks, one for each slot; 0: none yet. Each slot writes its own, and any process may read."""

    def __init__(self, path: str, mapping: mmap.mmap) -> None:
        self.path = path
        self._mapping = mapping
        #: indexed by slot; writing takes no lock and makes no system call
        self.slots = memoryview(mapping).cast("Q")

    @classmethod
    def create(cls, folders: Folders, name: str, slots: int) -> BegunTable | None:
        """Make the table of a new worker.

        Args:
            folders: of the client.
            name: of the file; unique there.
            slots: how many tasks the worker runs at a time.

        Returns:
            None when there is no room for it: then nobody knows what the worker has begun.
        """
        for folder in folders.all:
            path = os.path.join(folder, name)
            try:
                empty = memoryview(bytes(slots * _ENTRY))
                write_file(path, os.O_CREAT | os.O_EXCL, [empty], ((0, empty.nbytes),))
                return cls.open(path, slots)
            except OSError:
                unlink_segment(path)
        return None

    @classmethod
    def open(cls, path: str, slots: int) -> BegunTable:
        """Map the table that another process has made.

        Raises:
            OSError: it is gone.
        """
        return cls(path, map_shared(path, slots * _ENTRY))

    def begun(self) -> list[int]:
        """Return the numbers of the tasks that the slots have begun last."""
        return [seq for seq in self.slots if seq]

    def close(self) -> None:
        """Unmap it and remove its file. May be repeated."""
        self.slots.release()
        with contextlib.suppress(BufferError):  # a slot is writing into it; the process ends anyway
            self._mapping.close()
        unlink_segment(self.path)
