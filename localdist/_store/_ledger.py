"""Which segments exist, who may still use them, and hence which may be used again or removed.

Rules of this file: it is pure (no I/O, no clock; `now` in seconds is a parameter and never goes back), it knows
neither tasks nor futures, and it sees the world through messages that arrive in the order in which each process sent
them, but late. What it wants done it gives out as orders, which reach each writer in order, but late too. Therefore:

1. A segment is written again only after its writer was told to recycle it, which happens when the value is
   released and nobody maps it. Whoever sends a descriptor to a process calls `Ledger.mapped` before.
2. While an order to discard a warm segment is on its way the writer may take that segment for a new value. The writer
   ignores such an order, and `Ledger.created` that follows makes the segment known again, as a new value.
3. So a writer obeys orders to discard for warm segments only, and a segment that is to be removed although it never was
   warm is given out as both, to recycle and to discard.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from localdist.errors import InternalError

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from localdist._store._file import Stored

WARM_LIMIT = 256 * 1024 * 1024
"""Bytes kept warm per client: one large array of the benchmark, and little next to any machine's memory."""

WARM_SECONDS = 5.0
"""Seconds after which an unused warm segment is given back: longer than most loops take for one round."""


@dataclass(frozen=True, slots=True)
class WriterOrders:
    """What one writer must do: first `SegmentWriter.recycle` all of `recycle`, then `discard` all of `discard`."""

    recycle: tuple[str, ...]
    discard: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Orders:
    """What must be done about segments; true when there is anything.

    Attributes:
        writers: orders for each writer that has any.
        orphans: segments of dead writers, which the client must unlink.
    """

    writers: Mapping[Hashable, WriterOrders]
    orphans: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.writers or self.orphans)


@dataclass(slots=True)
class _Segment:
    """What is known of one segment.

    It is live (held, or released and still mapped) or warm (`warm_since` is set); else it is forgotten.
    """

    stored: Stored
    writer: Hashable | None  # None: that process is dead; then it is live
    size: int  # bytes that the file has at least: the longest value it ever held
    holders: int = 1  # who wants the value; 0 when released or warm
    mappings: int = 0  # the sum of its counts in `Ledger._maps`; 0 when warm
    warm_since: float | None = None  # set exactly when it is in `Ledger._warm`


@dataclass(slots=True)
class _Pending:
    """Orders not yet taken; dictionaries serve as ordered sets."""

    recycle: dict[str, None] = field(default_factory=dict)
    discard: dict[str, None] = field(default_factory=dict)


class Ledger:
    """All segments of one client. Owned by one thread; every method is O(1) per segment that it concerns."""

    def __init__(self, warm_limit: int = WARM_LIMIT, warm_seconds: float = WARM_SECONDS) -> None:
        """Keep at most `warm_limit` bytes warm, each segment for at most `warm_seconds` seconds without use."""
        self._warm_limit, self._warm_seconds = warm_limit, warm_seconds
        self._segments: dict[str, _Segment] = {}
        self._warm: OrderedDict[str, _Segment] = OrderedDict()  # oldest first
        self._by_digest: dict[bytes, str] = {}  # held values only
        self._written: dict[Hashable, dict[str, None]] = {}  # living writer -> its segments
        self._maps: dict[Hashable, dict[str, int]] = {}  # reader -> segment -> mappings, never 0
        self._pending: dict[Hashable, _Pending] = {}
        self._orphans: dict[str, None] = {}
        self._total_bytes = self._warm_bytes = 0

    def __repr__(self) -> str:
        live = len(self._segments) - len(self._warm)
        return f"<Ledger: {live} live ({self._total_bytes} bytes), {len(self._warm)} warm ({self._warm_bytes} bytes)>"

    def __len__(self) -> int:
        return len(self._segments)

    def __contains__(self, name: object) -> bool:
        """Whether the ledger knows a segment, live or warm."""
        return name in self._segments

    def names(self) -> list[str]:
        """Return all segments that are known, live or warm."""
        return list(self._segments)

    @property
    def total_bytes(self) -> int:
        """Bytes of all values that are held or still mapped."""
        return self._total_bytes

    @property
    def warm_bytes(self) -> int:
        """Bytes of all warm segments."""
        return self._warm_bytes

    def find(self, digest: bytes) -> Stored | None:
        """Return a held value with this content digest, to `retain` instead of storing the same again."""
        name = self._by_digest.get(digest)
        return None if name is None else self._segments[name].stored

    def current(self, name: str) -> Stored | None:
        """Return the wanted value that a segment holds, if any."""
        segment = self._segments.get(name)
        return segment.stored if segment is not None and segment.holders else None

    def created(self, stored: Stored, writer: Hashable, now: float) -> None:  # noqa: ARG002  (all events have a time)
        """Note that a process (any key but None) wrote a value, into a new segment or into one that was warm.

        Raises:
            InternalError: the segment is in use.
        """
        name, size = stored.name, stored.nbytes
        known = self._segments.get(name)
        if known is not None:
            if known.warm_since is None or known.writer != writer:
                raise InternalError(f"{writer!r} wrote into segment {name}, which is in use by {known.writer!r}")
            size = max(size, known.size)
            self._forget(known)
        pending = self._pending.get(writer)
        if pending is not None:
            pending.discard.pop(name, None)  # the writer would ignore it, unless the value is released first
        self._orphans.pop(name, None)
        self._segments[name] = _Segment(stored, writer, size)
        self._written.setdefault(writer, {})[name] = None
        self._total_bytes += stored.nbytes
        if stored.digest is not None:
            self._by_digest[stored.digest] = name

    def retain(self, name: str) -> None:
        """Note that a value, which is still held, has one holder more; `created` brought the first.

        Raises:
            InternalError: the segment is unknown, or its value was released by all.
        """
        segment = self._live(name, "be retained")
        if not segment.holders:
            raise InternalError(f"segment {name} cannot be retained: it was released")
        segment.holders += 1

    def mapped(self, name: str, reader: Hashable) -> None:
        """Note that a process is being sent the descriptor of a live value: one more mapping from now on.

        Raises:
            InternalError: the segment is unknown or warm.
        """
        segment = self._live(name, f"be mapped by {reader!r}")
        segment.mappings += 1
        counts = self._maps.setdefault(reader, {})
        counts[name] = counts.get(name, 0) + 1

    def unmapped(self, name: str, reader: Hashable, now: float) -> bool:
        """Note that a process has one mapping less.

        Returns:
            Whether that mapping was known; it is not when the process is `gone`, since its messages may come late.
        """
        counts = self._maps.get(reader)
        if counts is None or name not in counts:
            return False
        counts[name] -= 1
        if not counts[name]:
            del counts[name]
            if not counts:
                del self._maps[reader]
        self._drop_mappings(name, 1, now)
        return True

    def released(self, name: str, now: float) -> None:
        """Note that a value has one holder less; without any it becomes warm, or is removed, once nobody maps it.

        Raises:
            InternalError: the segment is unknown, or its value was released by all already.
        """
        segment = self._live(name, "be released")
        if not segment.holders:
            raise InternalError(f"segment {name} was released too often")
        segment.holders -= 1
        if segment.holders:
            return
        digest = segment.stored.digest
        if digest is not None and self._by_digest.get(digest) == name:
            del self._by_digest[digest]
        if not segment.mappings:
            self._retire(segment, now)

    def gone(self, process: Hashable, now: float) -> None:
        """Note that a process ended: its mappings are void; what it wrote stays while held or mapped by others.

        To be called after the last message of that process was dealt with. What it wrote without telling, and what
        it was told to discard without doing it, is found by `unlink_strays`.
        """
        for name in self._written.pop(process, {}):
            segment = self._segments[name]
            segment.writer = None
            if segment.warm_since is not None:
                self._forget(segment)
                self._orphans[name] = None
        pending = self._pending.pop(process, None)
        if pending is not None:
            self._orphans.update(pending.discard)
        for name, count in self._maps.pop(process, {}).items():
            self._drop_mappings(name, count, now)

    def next_deadline(self) -> float | None:
        """Return when `expire` is to be called next, or None while nothing is warm."""
        for segment in self._warm.values():
            assert segment.warm_since is not None
            return segment.warm_since + self._warm_seconds
        return None

    def expire(self, now: float) -> None:
        """Discard what has been warm for too long."""
        while (deadline := self.next_deadline()) is not None and deadline <= now:
            self._evict()

    def pressure(self, now: float) -> None:  # noqa: ARG002  (all events have a time)
        """Discard everything warm: somebody needs the memory."""
        while self._warm:
            self._evict()

    def take_orders(self) -> Orders:
        """Return what must be done now, once."""
        orders = Orders(
            {
                writer: WriterOrders(tuple(pending.recycle), tuple(pending.discard))
                for writer, pending in self._pending.items()
                if pending.recycle or pending.discard
            },
            tuple(self._orphans),
        )
        self._pending = {}
        self._orphans = {}
        return orders

    def _live(self, name: str, what: str) -> _Segment:
        """Return a live segment, of which `what` is asked."""
        segment = self._segments.get(name)
        if segment is None or segment.warm_since is not None:
            raise InternalError(f"segment {name} cannot {what}: it is {'unknown' if segment is None else 'warm'}")
        return segment

    def _drop_mappings(self, name: str, count: int, now: float) -> None:
        segment = self._segments[name]
        segment.mappings -= count
        if not segment.mappings and not segment.holders:
            self._retire(segment, now)

    def _retire(self, segment: _Segment, now: float) -> None:
        """Nobody wants or maps a segment any more: make it warm where that is allowed."""
        name = segment.stored.name
        if segment.writer is None:
            self._forget(segment)
            self._orphans[name] = None
            return
        pending = self._pending.setdefault(segment.writer, _Pending())
        pending.recycle[name] = None
        if segment.size > self._warm_limit:
            self._forget(segment)
            pending.discard[name] = None
            return
        while self._warm_bytes + segment.size > self._warm_limit:
            self._evict()
        self._total_bytes -= segment.stored.nbytes
        self._warm_bytes += segment.size
        segment.warm_since = now
        self._warm[name] = segment

    def _evict(self) -> None:
        """Discard the segment that has been warm for longest."""
        name, segment = next(iter(self._warm.items()))
        self._pending.setdefault(segment.writer, _Pending()).discard[name] = None
        self._forget(segment)

    def _forget(self, segment: _Segment) -> None:
        """Strike a segment out of all books but the orders."""
        name = segment.stored.name
        del self._segments[name]
        if segment.warm_since is None:
            self._total_bytes -= segment.stored.nbytes
        else:
            del self._warm[name]
            self._warm_bytes -= segment.size
        if segment.writer is not None and name in (written := self._written.get(segment.writer, {})):
            del written[name]
            if not written:
                del self._written[segment.writer]

    def validate(self) -> None:
        """Check every rule that the books keep; for tests, since it is O(segments).

        Raises:
            InternalError: a rule is broken.
        """
        broken = [rule for rule, holds in {**self._rules_of_segments(), **self._rules_of_books()}.items() if not holds]
        if broken:
            raise InternalError(f"the ledger is broken: {'; '.join(broken)}")

    def _rules_of_segments(self) -> dict[str, bool]:
        """Return what each segment must fulfil, and whether all do."""
        live = [segment for segment in self._segments.values() if segment.warm_since is None]
        warm = [segment for segment in self._segments.values() if segment.warm_since is not None]
        since = [segment.warm_since for segment in self._warm.values()]
        return {
            "a segment is filed under its own name": all(n == s.stored.name for n, s in self._segments.items()),
            "a file is as long as its value": all(s.size >= s.stored.nbytes for s in self._segments.values()),
            "a live segment is held or mapped": all(s.holders > 0 or s.mappings > 0 for s in live),
            "a warm segment is neither held nor mapped": not any(s.holders or s.mappings for s in warm),
            "a warm segment has a living writer": all(s.writer is not None for s in warm),
            "warm segments are listed": {s.stored.name for s in warm} == set(self._warm),
            "the oldest warm segment is first": since == sorted(t for t in since if t is not None),
            "total_bytes is the sum": self._total_bytes == sum(s.stored.nbytes for s in live),
            "warm_bytes is the sum": self._warm_bytes == sum(s.size for s in warm),
            "warm_limit holds": self._warm_bytes <= self._warm_limit,
        }

    def _rules_of_books(self) -> dict[str, bool]:
        """Return what the indexes must fulfil, and whether they do."""
        segments = self._segments
        mappings: dict[str, int] = {}
        for counts in self._maps.values():
            for name, count in counts.items():
                mappings[name] = mappings.get(name, 0) + count
        written = {name: writer for writer, names in self._written.items() for name in names}
        held = {name: s.stored.digest for name, s in segments.items() if s.holders}
        doomed = [name for pending in self._pending.values() for name in pending.discard]
        return {
            "mappings are counted": mappings == {n: s.mappings for n, s in segments.items() if s.mappings},
            "no count is kept at zero": all(count > 0 for counts in self._maps.values() for count in counts.values()),
            "writers are filed": written == {n: s.writer for n, s in segments.items() if s.writer is not None},
            "no empty book is kept": all(self._maps.values()) and all(self._written.values()),
            "a digest leads to a held value": all(held.get(n) == d for d, n in self._by_digest.items()),
            "no known segment is to be discarded": not any(name in segments for name in doomed),
            "no known segment is an orphan": not any(name in segments for name in self._orphans),
        }
