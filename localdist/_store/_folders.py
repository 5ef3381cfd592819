"""The private folders of one client, one in shared memory and one on disk, in which all its segments lie.

Removing the two folders removes everything that the store of a client ever wrote, whoever wrote it; that is what a
worker does when its client was killed.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container

SHARED_FOLDER_VARIABLE = "LOCALDIST_SHARED_FOLDER"
"""Environment variable: where the shared folder is made instead of ``/dev/shm``; empty means nowhere."""

_DEFAULT_SHARED = "/dev/shm"
_REMOVAL_ROUNDS = 20  # a worker may be writing while the folder is removed; each round takes what it wrote meanwhile


@dataclass(frozen=True)
class Folders:
    """Where one client and its workers put segments; picklable.

    Attributes:
        shared: private folder in memory (tmpfs), or None where the machine has none.
        disk: private folder on disk; the only one when `shared` is None.
    """

    shared: str | None
    disk: str

    @property
    def all(self) -> tuple[str, ...]:
        """Both folders, the preferred one first."""
        return (self.disk,) if self.shared is None else (self.shared, self.disk)


def make_folder(base: str | None = None) -> Folders:
    """Create the private folders (mode 0700) of a new client.

    Args:
        base: existing folder in which the disk folder is made; the system's temporary folder by default.

    Returns:
        The new folders. `Folders.shared` is None when no tmpfs can be written. When nothing but the tmpfs can be
        written (a container with a read-only file system), `Folders.disk` lies there.

    Raises:
        OSError: no folder at all can be made, or the environment variable `LOCALDIST_SHARED_FOLDER` names a
            folder that cannot be used; the text names the folder.
    """
    import tempfile

    name = f"localdist-{_user()}-{os.getpid()}-{time.time_ns() // 1_000_000:x}-{os.urandom(4).hex()}"
    shared = _make_shared(name)
    try:
        disk = os.path.join(os.path.abspath(base or tempfile.gettempdir()), name)
        os.mkdir(disk, 0o700)
    except OSError:
        if shared is None or base is not None:
            _remove(shared)
            raise
        return Folders(None, shared)
    return Folders(shared, disk)


def remove_folders(folders: Folders) -> bool:
    """Remove the folders with all segments in them; any process may call it, any number of times.

    Processes that still map a segment keep their view of it (POSIX), or keep its file from being removed (Windows):
    then call again after they ended.

    Returns:
        Whether nothing is left.
    """
    left = [folder for folder in folders.all if not _remove(folder)]
    return not left


def unlink_segment(name: str) -> bool:
    """Remove the file of a segment; harmless when it is gone already.

    Returns:
        Whether the file is gone. False (Windows) means that a process still has it open: try again later.
    """
    try:
        os.unlink(name)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def unlink_strays(folders: Folders, prefix: str, known: Container[str]) -> list[str]:
    """Remove what a dead process wrote and never announced.

    Call it after the last message of that process was read, for else a value that is still wanted is lost.

    Args:
        folders: the folders of the client.
        prefix: the prefix that the process gave to its `SegmentWriter`.
        known: names of segments to keep, such as the `Ledger`.

    Returns:
        The paths that were removed.
    """
    removed = []
    for folder in folders.all:
        with contextlib.suppress(FileNotFoundError):
            for file in os.listdir(folder):
                path = os.path.join(folder, file)
                if file.rpartition("-")[0] == prefix and path not in known and unlink_segment(path):
                    removed.append(path)
    return removed


def _user() -> str:
    """Return the user's id, or where there is none (Windows) a name that is safe in a path."""
    if sys.platform != "win32":
        return str(os.getuid())
    return re.sub(r"\W", "", os.environ.get("USERNAME", "")) or "user"


def _make_shared(name: str) -> str | None:
    """Create the folder in shared memory, or return None where there is none to write to."""
    chosen = os.environ.get(SHARED_FOLDER_VARIABLE)
    if chosen == "" or (chosen is None and not _is_tmpfs(_DEFAULT_SHARED)):
        return None
    path = os.path.join(os.path.abspath(chosen or _DEFAULT_SHARED), name)
    try:
        os.mkdir(path, 0o700)
    except OSError as error:
        if chosen is not None:
            raise OSError(error.errno, f"{SHARED_FOLDER_VARIABLE} cannot be used: {error.strerror}", chosen) from error
        return None
    return path


def _is_tmpfs(folder: str) -> bool:
    """Whether a folder is the root of a tmpfs; a plain folder on disk that is called ``/dev/shm`` brings nothing."""
    if sys.platform != "linux":
        return False
    wanted = os.path.realpath(folder)
    kind = ""
    with contextlib.suppress(OSError), open("/proc/self/mounts", encoding="utf-8", errors="replace") as mounts:
        for line in mounts:
            _, place, of_type, *_ = line.split(" ")
            if place == wanted:
                kind = of_type  # the last one mounted at a place is the one seen
    return kind == "tmpfs"


def _remove(folder: str | None) -> bool:
    """Remove one flat folder; whether it is gone."""
    if folder is None:
        return True
    for _ in range(_REMOVAL_ROUNDS):
        try:
            for file in os.listdir(folder):
                unlink_segment(os.path.join(folder, file))
            os.rmdir(folder)
        except FileNotFoundError:
            return True
        except OSError:
            continue
        return True
    return False
