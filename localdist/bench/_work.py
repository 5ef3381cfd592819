"""The functions that the benchmark runs in workers: at module level, so that every peer can pickle them."""

from __future__ import annotations

from functools import lru_cache
from multiprocessing.connection import Client
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

__all__ = [
    "add",
    "ends",
    "ends_and_shared",
    "hold",
    "inc",
    "keep_array",
    "new_array",
    "shared_memory",
    "stamped_array",
]


def inc(x: int) -> int:
    """Return `x` + 1: the smallest task there is."""
    return x + 1


def add(x: int, y: int) -> int:
    """Return `x` + `y`: the inner node of a tree."""
    return x + y


def hold(address: Any, authkey: bytes, number: int) -> None:  # noqa: ARG001  (see below)
    """Keep the worker busy until the listener at `address` (see `multiprocessing.connection`) closes the connection.

    `number` only makes calls differ, for peers that run equal calls once.
    """
    with Client(address, authkey=authkey) as connection:
        try:
            connection.recv_bytes()
        except EOFError:
            return


def new_array(nbytes: int) -> NDArray[float64]:
    """Return an array of `nbytes` bytes (a multiple of 8): 0.0, 1.0, 2.0, ..."""
    import numpy as np  # the benchmark runs without NumPy too: the rows that need it are then left out

    return np.arange(nbytes // 8, dtype=np.float64)


_kept_array = lru_cache(maxsize=1)(new_array)


def stamped_array(nbytes: int, stamp: int) -> NDArray[float64]:
    """Return an array that the worker keeps from call to call, with `stamp` in its first element.

    It is kept so that only its transport is measured; the stamp makes each content, and each call, differ from others.
    """
    array = _kept_array(nbytes)
    array[0] = stamp
    return array


def keep_array(nbytes: int, tag: int) -> int:
    """Make the array that `stamped_array` will return in this worker, and return `tag`."""
    _kept_array(nbytes)
    return tag


def ends(array: NDArray[float64], tag: int) -> tuple[float, float, int, bool]:
    """Return the first and last element of `array`, `tag`, and whether the task could write into the array."""
    return float(array[0]), float(array[-1]), tag, bool(array.flags.writeable)


def shared_memory() -> int | None:
    """Return the bytes of shared memory in use on this machine, or None where the system does not tell."""
    shared: int | None = getattr(psutil.virtual_memory(), "shared", None)
    return shared


def ends_and_shared(array: NDArray[float64], tag: int) -> tuple[tuple[float, float, int, bool], int]:
    """Return what `ends` returns, and the shared memory in use while this task has the array (0 where unknown)."""
    return ends(array, tag), shared_memory() or 0
