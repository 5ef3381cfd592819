"""The format of what travels between the scheduler's process and a worker process.

Three one-way pipes per worker. The *task* and *control* pipes carry frames of a length and a pickled message (one
of the classes below, as a plain tuple); the *reply* pipe carries frames of `REPLY` and a payload, which is left
alone until somebody asks for the value.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Any, NamedTuple

#: Length of the frame that follows, in bytes.
LENGTH = struct.Struct("<I")
#: Payload length in bytes, `ReplyKind`, seq of the task, seconds that it took.
REPLY = struct.Struct("<IBQd")
#: The longest pickle that travels inside a frame, in bytes; longer ones go through the store. As long as a pipe's
#: buffer on Linux, so that one frame never needs the reader more than twice.
INLINE_MAX = 64 * 1024


class ReplyKind(IntEnum):
    """What a frame on the reply pipe means."""

    INLINE = 0  # the task succeeded; payload: its pickled value
    STORED = 1  # the task succeeded; payload: pickled descriptor of its value in the store
    ERROR = 2  # the task raised; payload: see `localdist._serialize.dump_error`
    RESCHEDULED = 3  # the task asked to be run again
    RECALLED = 4  # payload: pickled (seqs given back, whether all that had not begun were asked for)
    UNMAPPED = 5  # payload: pickled list of segments, one entry for each mapping that is gone
    READY = 6  # the worker can take tasks
    FAILED_TO_START = 7  # payload: text; nothing follows
    RAN = 8  # seq: number of the call; payload: pickled (True, value) or (False, dumped error)
    WARNING = 9  # payload: text for the user
    UP = 10  # the worker runs, and is about to call its initializer


class Item(NamedTuple):
    """One task as it is sent to a worker, as a plain tuple."""

    seq: int
    key: Any
    #: id of its function; once it has arrived, the function
    function: Any
    #: pickled arguments; None: they are the first of `inputs`
    payload: bytes | None
    #: how many of `inputs` belong to the pickle of the arguments: the pickle itself if it is long, then its buffers
    parts: int
    #: values it needs: bytes (a pickle) or a descriptor of the store
    inputs: tuple[Any, ...]


class Batch(NamedTuple):
    """A message on the task pipe, as a plain tuple."""

    #: functions that the worker does not have yet: id, pickle, whether it may keep the loaded object between calls
    functions: list[tuple[int, bytes, bool]]
    #: ids of functions it may throw away
    forget: list[int]
    items: list[Item]


class Control(NamedTuple):
    """A message on the control pipe."""

    verb: str
    #: cancel: a list of seqs; tidy: segments to (reuse, remove); run: (number, pickled call)
    detail: Any = None


class Local:
    """A value that stays in this process: what stands for a pickle where workers are threads."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value
