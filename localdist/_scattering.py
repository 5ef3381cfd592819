"""SUBMIT: data become entries that are finished already; `Client` inherits this."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

from ._future import Duration, Future
from ._inspection import Inspection
from ._key import Unstable, check_key, function_name, random_key, token
from ._schedule.records import Group, Options
from ._serialize import qualified_type
from ._state import FINISHED, Board, Entry


class Scattering(Inspection):
    """Base of `Client`: all that makes futures of data."""

    _board: Board
    _groups: dict[str, Group]
    _options: Options

    def scatter(
        self,
        data: Any,
        workers: Any = None,  # noqa: ARG002  (every worker reaches the store)
        broadcast: bool | int = False,  # noqa: ARG002
        direct: Any = None,  # noqa: ARG002
        hash: bool = True,
        timeout: Duration = None,  # noqa: ARG002
    ) -> Any:
        """Store data and return futures of it, finished already, to use in any number of tasks.

        Args:
            data: a list, tuple, set, frozenset or named tuple gives one future per element in the same kind of
                container; a dict gives a dict whose keys name the data; anything else gives one future.
            workers, broadcast, direct, timeout: accepted for Dask's sake; all workers share one store.
            hash: equal values share a key. False: a random key.

        Raises:
            TypeError: an iterator, generator or queue; or something that cannot be pickled.
            ValueError: a dict's key names other data that is alive.
            StoreFullError: there is no room.
        """
        self._check_open()
        kind = type(data)
        if isinstance(data, (Iterator, queue.Queue)):
            raise TypeError(f"scatter takes data, not {qualified_type(data)}")
        if kind is dict:
            return {key: self._scatter_one(value, key, hashed=hash) for key, value in data.items()}
        if kind in (list, tuple, set, frozenset):
            return kind([self._scatter_one(value, None, hashed=hash) for value in data])
        if kind is range:
            return [self._scatter_one(value, None, hashed=hash) for value in data]
        if isinstance(data, tuple) and hasattr(kind, "_fields"):
            return kind(*[self._scatter_one(value, None, hashed=hash) for value in data])
        return self._scatter_one(data, None, hashed=hash)

    def _scatter_one(self, value: Any, key: Any, *, hashed: bool) -> Future:
        name = function_name(type(value))
        digest: bytes | None = None
        if hashed or key is not None:
            try:
                digest = token(value)
            except Unstable:
                digest = None
        explicit = key is not None
        if explicit:
            check_key(key)
        elif hashed and digest is not None:
            key = f"{name}-{digest.hex()}"
        else:
            key = random_key(name)
        # Of data without a description one cannot tell whether they are the same.
        note = ("data", digest.hex() if digest is not None else random_key(name))
        with self._board.lock:
            known = self._stored(key, note, explicit=explicit)
            if known is not None:
                return known
        outcome = self._transport.put(value)
        group = self._group(name)
        entry = Entry(key, group, None, None, (), self._options)
        entry.outcome = outcome
        entry.status = FINISHED
        entry.note = note
        with self._board.lock:
            self._check_open()
            known = self._stored(key, note, explicit=explicit)  # another thread may have been faster
            if known is not None:
                self._transport.store([entry])
                self._transport.drop(entry)
                return known
            self._entries[key] = entry
            self._transport.store([entry])
        return Future(entry)

    def _group(self, name: str) -> Group:
        """Return the group of tasks that are expected to take equally long."""
        return self._groups.get(name) or self._groups.setdefault(name, Group(name))

    def _stored(self, key: Any, note: tuple[str, str], *, explicit: bool) -> Future | None:
        """Return a future of the data that this key names already, if any; with the board's lock held."""
        entry = self._live_entry(key)
        if entry is None:
            return None
        if explicit and entry.note != note:
            raise ValueError(f"the key {key!r} is in use; release its futures first")
        entry.handles += 1
        return Future(entry)

    def _live_entry(self, key: Any) -> Entry | None:
        """Return the entry that has this key, if a future of it lives. The board's lock must be held."""
        entry = self._entries.get(key)
        if entry is not None and self._transport.count_drops():
            entry = self._entries.get(key)  # its last future may be among those that were dropped just now
        return entry
