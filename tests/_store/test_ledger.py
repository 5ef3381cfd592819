"""Tests of localdist._store._ledger."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from localdist._store._file import Stored
from localdist._store._ledger import Ledger, Orders, WriterOrders
from localdist.errors import InternalError

LIMIT, SECONDS = 1000, 5.0  # of the ledgers here: warm bytes, and how long


def value(name: str, nbytes: int = 100, digest: bytes | None = None) -> Stored:
    """Return a descriptor."""
    return Stored(name, nbytes, ((0, nbytes),), digest)


def warmed(*names: str, nbytes: int = 100) -> Ledger:
    """Return a ledger in which segments of writer "w" became warm at times 0, 1, 2, ..., with all orders taken."""
    ledger = Ledger(LIMIT, SECONDS)
    for now, name in enumerate(names):
        ledger.created(value(name, nbytes), "w", now)
        ledger.released(name, now)
    ledger.take_orders()
    return ledger


def orders(recycle: tuple[str, ...] = (), discard: tuple[str, ...] = ()) -> Orders:
    """Return orders for writer "w" alone."""
    return Orders({"w": WriterOrders(recycle, discard)}, ())


def test_released_value_becomes_warm() -> None:
    """A value nobody maps becomes warm when it is released, which its writer is told once."""
    ledger = Ledger(LIMIT, SECONDS)
    ledger.created(value("a"), "w", 0)
    assert (ledger.total_bytes, ledger.warm_bytes, len(ledger)) == (100, 0, 1)
    assert not ledger.take_orders()
    ledger.released("a", 1)
    assert (ledger.total_bytes, ledger.warm_bytes, "a" in ledger) == (0, 100, True)
    assert ledger.take_orders() == orders(recycle=("a",))
    assert not ledger.take_orders()
    ledger.validate()


def test_mapped_value_waits() -> None:
    """A released value that is mapped is left alone until the last mapping of the last reader ended."""
    ledger = Ledger(LIMIT, SECONDS)
    ledger.created(value("a"), "w", 0)
    for reader in ("r", "r", "s"):
        ledger.mapped("a", reader)
    ledger.released("a", 1)
    for reader in ("r", "s"):
        assert ledger.unmapped("a", reader, 2)
        assert not ledger.take_orders()
    assert ledger.total_bytes == 100
    assert ledger.unmapped("a", "r", 3)
    assert ledger.take_orders() == orders(recycle=("a",))
    assert ledger.next_deadline() == 3 + SECONDS
    ledger.validate()


def test_unmapping_a_wanted_value_changes_nothing() -> None:
    """While a value is wanted its mappings may come and go."""
    ledger = Ledger(LIMIT, SECONDS)
    ledger.created(value("a"), "w", 0)
    ledger.mapped("a", "r")
    assert ledger.unmapped("a", "r", 1)
    assert not ledger.take_orders()
    assert ledger.total_bytes == 100


def test_unknown_mappings_are_not_counted() -> None:
    """A report of a mapping that is not known, such as a late one of a dead process, changes nothing and is told."""
    ledger = Ledger(LIMIT, SECONDS)
    ledger.created(value("a"), "w", 0)
    ledger.mapped("a", "r")
    ledger.gone("r", 1)
    assert not ledger.unmapped("a", "r", 2)
    assert not ledger.unmapped("a", "s", 2)
    assert not ledger.unmapped("unknown", "r", 2)
    ledger.validate()


def test_oldest_warm_segments_make_room() -> None:
    """When warm bytes would pass the limit, the segments that are warm for longest are discarded."""
    ledger = warmed("a", "b", "c", nbytes=300)
    ledger.created(value("d", 500), "w", 3)
    ledger.released("d", 4)
    assert ledger.take_orders() == orders(recycle=("d",), discard=("a", "b"))
    assert ledger.warm_bytes == 800
    ledger.validate()


def test_too_large_for_warm() -> None:
    """A value larger than the limit is discarded at once, and what is warm stays."""
    ledger = warmed("a")
    ledger.created(value("b", LIMIT + 1), "w", 1)
    ledger.released("b", 2)
    assert ledger.take_orders() == orders(recycle=("b",), discard=("b",))
    assert "b" not in ledger
    assert ledger.warm_bytes == 100
    ledger.created(value("c", LIMIT), "w", 3)
    ledger.released("c", 3)
    assert ledger.warm_bytes == LIMIT


def test_warm_segment_written_again() -> None:
    """A warm segment that its writer took is a new value; the length of its file stays counted."""
    ledger = warmed("a", "b")
    ledger.created(value("a", 60), "w", 2)
    assert (ledger.total_bytes, ledger.warm_bytes) == (60, 100)
    assert ledger.next_deadline() == 1 + SECONDS
    ledger.released("a", 3)
    assert (ledger.total_bytes, ledger.warm_bytes) == (0, 200)
    ledger.validate()


def test_segment_taken_while_its_discard_is_pending() -> None:
    """An order to discard is withdrawn when it turns out that the writer has taken the segment."""
    ledger = warmed("a")
    ledger.pressure(1)
    assert "a" not in ledger
    ledger.created(value("a"), "w", 2)
    assert not ledger.take_orders()
    ledger.released("a", 3)
    assert ledger.take_orders() == orders(recycle=("a",))
    ledger.validate()


def test_expiry() -> None:
    """Warm segments are discarded when their time is over, the oldest first, not before."""
    ledger = warmed("a", "b")
    assert ledger.next_deadline() == SECONDS
    ledger.expire(SECONDS - 0.001)
    assert not ledger.take_orders()
    ledger.expire(SECONDS)
    assert ledger.take_orders() == orders(discard=("a",))
    assert ledger.next_deadline() == 1 + SECONDS
    ledger.expire(100)
    assert ledger.take_orders() == orders(discard=("b",))
    assert ledger.next_deadline() is None
    ledger.validate()


def test_pressure() -> None:
    """Under pressure everything warm is discarded, and nothing else."""
    ledger = warmed("a", "b")
    ledger.created(value("c"), "w", 2)
    ledger.pressure(2)
    assert ledger.take_orders() == orders(discard=("a", "b"))
    assert (ledger.total_bytes, ledger.warm_bytes) == (100, 0)


def test_dead_writer() -> None:
    """What a dead process wrote stays while wanted and is then the client's to unlink, its warm ones at once."""
    ledger = warmed("a", "b")
    ledger.created(value("c"), "w", 2)
    ledger.expire(SECONDS)
    ledger.gone("w", 6)
    assert ledger.take_orders() == Orders({}, ("b", "a"))
    assert (len(ledger), ledger.total_bytes, ledger.warm_bytes) == (1, 100, 0)
    ledger.mapped("c", "r")
    ledger.released("c", 7)
    assert not ledger.take_orders()
    ledger.unmapped("c", "r", 8)
    assert ledger.take_orders() == Orders({}, ("c",))
    assert len(ledger) == 0
    ledger.validate()


def test_dead_reader() -> None:
    """The mappings of a dead process are void, all of them."""
    ledger = Ledger(LIMIT, SECONDS)
    for name in ("a", "b"):
        ledger.created(value(name), "w", 0)
        ledger.mapped(name, "r")
        ledger.mapped(name, "r")
    ledger.released("a", 1)
    ledger.gone("r", 2)
    assert ledger.take_orders() == orders(recycle=("a",))
    ledger.released("b", 3)
    assert ledger.take_orders() == orders(recycle=("b",))
    ledger.validate()


def test_equal_content_is_found_while_wanted() -> None:
    """A value is found by its digest from its creation to its release, not when it is only mapped or warm."""
    ledger = Ledger(LIMIT, SECONDS)
    stored = value("a", digest=b"same")
    assert ledger.find(b"same") is None
    ledger.created(stored, "w", 0)
    assert ledger.find(b"same") is stored
    ledger.mapped("a", "r")
    ledger.released("a", 1)
    assert ledger.find(b"same") is None
    ledger.unmapped("a", "r", 2)
    assert ledger.find(b"same") is None


def test_current_value() -> None:
    """A segment's value is known while somebody wants it, and never another one than was asked for."""
    ledger = Ledger(LIMIT, SECONDS)
    first, second = value("a"), value("a")
    assert ledger.current("a") is None
    ledger.created(first, "w", 0)
    ledger.retain("a")
    ledger.released("a", 1)
    assert ledger.current("a") is first
    ledger.mapped("a", "r")
    ledger.released("a", 2)
    assert "a" in ledger
    assert ledger.current("a") is None, "it is mapped, but nobody wants it"
    ledger.unmapped("a", "r", 3)
    assert ledger.current("a") is None, "it is warm"
    ledger.created(second, "w", 4)
    assert ledger.current("a") is second
    ledger.validate()


def test_retained_value_stays() -> None:
    """A value with several holders is released when the last of them releases it."""
    ledger = Ledger(LIMIT, SECONDS)
    ledger.created(value("a", digest=b"same"), "w", 0)
    ledger.retain("a")
    ledger.retain("a")
    for now in (1, 2):
        ledger.released("a", now)
        assert not ledger.take_orders()
        assert ledger.find(b"same") is not None
    ledger.released("a", 3)
    assert ledger.find(b"same") is None
    assert ledger.take_orders() == orders(recycle=("a",))
    ledger.validate()


def test_names() -> None:
    """The ledger lists what it knows, live and warm, and forgets what was discarded."""
    ledger = warmed("a", "b")
    ledger.created(value("c"), "w", 2)
    ledger.expire(SECONDS)
    assert sorted(ledger.names()) == ["b", "c"]
    assert [name in ledger for name in "abc"] == [False, True, True]


def test_equal_content_stored_twice() -> None:
    """Of two values with one digest the newer is found, and the end of the older does not hide it."""
    ledger = Ledger(LIMIT, SECONDS)
    ledger.created(value("a", digest=b"same"), "w", 0)
    newer = value("b", digest=b"same")
    ledger.created(newer, "v", 0)
    ledger.released("a", 1)
    assert ledger.find(b"same") is newer
    ledger.validate()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda ledger: ledger.released("x", 9), "x cannot be released: it is unknown"),
        (lambda ledger: ledger.released("warm", 9), "warm cannot be released: it is warm"),
        (lambda ledger: ledger.released("leaving", 9), "leaving was released too often"),
        (lambda ledger: ledger.retain("x"), "x cannot be retained: it is unknown"),
        (lambda ledger: ledger.retain("warm"), "warm cannot be retained: it is warm"),
        (lambda ledger: ledger.retain("leaving"), "leaving cannot be retained: it was released"),
        (lambda ledger: ledger.mapped("x", "r"), "x cannot be mapped by 'r': it is unknown"),
        (lambda ledger: ledger.mapped("warm", "r"), "warm cannot be mapped by 'r': it is warm"),
        (lambda ledger: ledger.created(value("live"), "w", 9), "'w' wrote into segment live, which is in use by 'w'"),
        (lambda ledger: ledger.created(value("warm"), "v", 9), "'v' wrote into segment warm, which is in use by 'w'"),
    ],
)
def test_broken_rules(call: object, text: str) -> None:
    """What cannot happen is an error that names the segment, and changes nothing."""
    ledger = warmed("warm")
    ledger.created(value("live"), "w", 1)
    ledger.created(value("leaving"), "w", 1)
    ledger.mapped("leaving", "r")
    ledger.released("leaving", 2)
    before = repr(ledger)
    assert callable(call)
    with pytest.raises(InternalError, match=text):
        call(ledger)
    assert repr(ledger) == before == "<Ledger: 2 live (200 bytes), 1 warm (100 bytes)>"
    ledger.validate()


def test_validate_finds_damage() -> None:
    """The check of the rules reports books that do not agree."""
    ledger = warmed("a")
    ledger._warm_bytes += 1
    with pytest.raises(InternalError, match=r"warm_bytes is the sum$"):
        ledger.validate()


def test_many_segments_leave_nothing() -> None:
    """100,000 values that came and went, of several writers and readers, leave nothing in any book."""
    ledger = Ledger(LIMIT, SECONDS)
    names = [f"s{index}" for index in range(100_000)]
    for index, name in enumerate(names):
        ledger.created(value(name, digest=name.encode()), index % 7, 0)
        ledger.mapped(name, index % 5)
    for name in reversed(names):
        ledger.released(name, 1)
    for index, name in enumerate(names):
        assert ledger.unmapped(name, index % 5, 2)
    ledger.expire(100)
    taken = ledger.take_orders()
    assert sum(len(todo.recycle) for todo in taken.writers.values()) == len(names)
    assert sum(len(todo.discard) for todo in taken.writers.values()) == len(names)
    ledger.validate()
    books = ("_segments", "_warm", "_by_digest", "_written", "_maps", "_pending", "_orphans")
    assert not any(getattr(ledger, book) for book in books)


class Model:
    """The ledger once more, without any index: lists that are searched, and sums taken anew."""

    @dataclass
    class Entry:
        """One segment."""

        stored: Stored
        writer: str | None
        size: int
        holders: int = 1
        since: float | None = None
        readers: list[str] = field(default_factory=list)

    def __init__(self) -> None:
        self.entries: list[Model.Entry] = []
        self.recycle: set[tuple[str, str]] = set()
        self.discard: set[tuple[str, str]] = set()
        self.orphans: set[str] = set()

    def entry(self, name: str) -> Entry:
        (found,) = [entry for entry in self.entries if entry.stored.name == name]
        return found

    def created(self, stored: Stored, writer: str) -> None:
        old = [entry for entry in self.entries if entry.stored.name == stored.name]
        self.entries = [entry for entry in self.entries if entry not in old]
        self.entries.append(Model.Entry(stored, writer, max([stored.nbytes, *(entry.size for entry in old)])))
        self.discard.discard((writer, stored.name))

    def warm(self) -> list[Entry]:
        return sorted((e for e in self.entries if e.since is not None), key=lambda e: e.since or 0)

    def drop(self, entry: Entry) -> None:
        self.entries.remove(entry)
        if entry.writer is None:
            self.orphans.add(entry.stored.name)
        else:
            self.discard.add((entry.writer, entry.stored.name))

    def settle(self, now: float) -> None:
        """Retire what nobody wants or maps."""
        for entry in [e for e in self.entries if e.since is None and not e.holders and not e.readers]:
            if entry.writer is None:
                self.drop(entry)
                continue
            self.recycle.add((entry.writer, entry.stored.name))
            if entry.size > LIMIT:
                self.drop(entry)
                continue
            while sum(e.size for e in self.warm()) + entry.size > LIMIT:
                self.drop(self.warm()[0])
            entry.since = now

    def gone(self, process: str, now: float) -> None:
        for entry in list(self.entries):
            if entry.writer == process:
                entry.writer = None
                if entry.since is not None:
                    self.drop(entry)
            entry.readers = [reader for reader in entry.readers if reader != process]
        self.orphans |= {name for writer, name in self.discard if writer == process}
        self.discard = {order for order in self.discard if order[0] != process}
        self.recycle = {order for order in self.recycle if order[0] != process}
        self.settle(now)


@dataclass
class Process:
    """A process as it really is, which the ledger learns late."""

    name: str
    used: set[str] = field(default_factory=set)
    warm: set[str] = field(default_factory=set)
    maps: list[tuple[str, int]] = field(default_factory=list)  # segment, and the content seen when it was mapped
    outbox: deque[tuple[str, Stored]] = field(default_factory=deque)  # for the ledger
    inbox: deque[WriterOrders] = field(default_factory=deque)  # from the ledger


class Machine(RuleBasedStateMachine):
    """Processes whose messages are late, the ledger, and the model; no file may change or go that somebody uses."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.serial = 0
        self.ledger, self.model = Ledger(LIMIT, SECONDS), Model()
        self.files: dict[str, int] = {}  # name -> content: the number of the value written last
        self.contents: dict[str, int] = {}  # wanted value -> content it must have
        self.processes = [Process(f"p{index}") for index in range(3)]

    def pick(self, data: st.DataObject) -> Process:
        return data.draw(st.sampled_from(self.processes))

    @rule(data=st.data(), nbytes=st.sampled_from([1, 100, 300, 500, LIMIT, LIMIT + 1]), again=st.booleans())
    def write(self, data: st.DataObject, nbytes: int, again: bool) -> None:
        process = self.pick(data)
        self.serial += 1
        name = min(process.warm) if again and process.warm else f"{process.name}-{self.serial}"
        process.warm.discard(name)
        process.used.add(name)
        self.files[name] = self.serial
        digest = data.draw(st.sampled_from([None, b"d1", b"d2"]))
        process.outbox.append(("created", value(name, nbytes, digest)))

    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        process = self.pick(data)
        if process.outbox:
            self.deliver_one(process)

    def deliver_one(self, process: Process) -> None:
        kind, stored = process.outbox.popleft()
        if kind == "created":
            self.contents[stored.name] = self.files[stored.name]
            self.ledger.created(stored, process.name, self.now)
            self.model.created(stored, process.name)
        else:
            assert self.ledger.unmapped(stored.name, process.name, self.now)
            self.model.entry(stored.name).readers.remove(process.name)
            self.model.settle(self.now)

    @precondition(lambda self: self.contents)
    @rule(data=st.data())
    def map(self, data: st.DataObject) -> None:
        process, name = self.pick(data), data.draw(st.sampled_from(sorted(self.contents)))
        self.ledger.mapped(name, process.name)
        self.model.entry(name).readers.append(process.name)
        process.maps.append((name, self.files[name]))

    @rule(data=st.data())
    def unmap(self, data: st.DataObject) -> None:
        process = self.pick(data)
        if process.maps:
            name, _ = process.maps.pop(data.draw(st.integers(0, len(process.maps) - 1)))
            process.outbox.append(("unmapped", value(name)))

    @precondition(lambda self: self.contents)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.release_one(data.draw(st.sampled_from(sorted(self.contents))))

    def release_one(self, name: str) -> None:
        entry = self.model.entry(name)
        entry.holders -= 1
        if not entry.holders:
            del self.contents[name]
        self.ledger.released(name, self.now)
        self.model.settle(self.now)

    @precondition(lambda self: self.contents)
    @rule(data=st.data())
    def retain(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.contents)))
        self.ledger.retain(name)
        self.model.entry(name).holders += 1

    @rule()
    def order(self) -> None:
        taken = self.ledger.take_orders()
        assert all(todo.recycle or todo.discard for todo in taken.writers.values())
        assert self.model.recycle == {(w, name) for w, todo in taken.writers.items() for name in todo.recycle}
        assert self.model.discard == {(w, name) for w, todo in taken.writers.items() for name in todo.discard}
        assert self.model.orphans == set(taken.orphans)
        assert len(taken.orphans) == len(set(taken.orphans))
        self.model.recycle, self.model.discard, self.model.orphans = set(), set(), set()
        for process in self.processes:
            if process.name in taken.writers:
                process.inbox.append(taken.writers[process.name])
        for name in taken.orphans:
            self.files.pop(name, None)

    @rule(data=st.data())
    def obey(self, data: st.DataObject) -> None:
        process = self.pick(data)
        if process.inbox:
            self.obey_one(process)

    def obey_one(self, process: Process) -> None:
        """Do what `SegmentWriter` does."""
        todo = process.inbox.popleft()
        for name in todo.recycle:
            process.used.remove(name)
            process.warm.add(name)
        for name in set(todo.discard) & process.warm:
            process.warm.remove(name)
            del self.files[name]

    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        process = self.pick(data)
        while process.outbox:
            self.deliver_one(process)
        self.ledger.gone(process.name, self.now)
        self.model.gone(process.name, self.now)
        self.serial += 1
        self.processes[self.processes.index(process)] = Process(f"p{self.serial + 10}")
        for name in [n for n in self.files if n.startswith(f"{process.name}-") and n not in self.ledger]:
            del self.files[name]  # what `unlink_strays` does

    @rule(seconds=st.sampled_from([0.5, 2.0, SECONDS]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.ledger.expire(self.now)
        for entry in self.model.warm():
            if entry.since is not None and entry.since + SECONDS <= self.now:
                self.model.drop(entry)

    @rule()
    def press(self) -> None:
        self.ledger.pressure(self.now)
        for entry in self.model.warm():
            self.model.drop(entry)

    @invariant()
    def books_agree(self) -> None:
        self.ledger.validate()
        warm = self.model.warm()
        assert self.ledger.warm_bytes == sum(entry.size for entry in warm)
        live = [entry for entry in self.model.entries if entry.since is None]
        assert self.ledger.total_bytes == sum(entry.stored.nbytes for entry in live)
        assert len(self.ledger) == len(self.model.entries)
        deadlines = [entry.since + SECONDS for entry in warm if entry.since is not None]
        assert self.ledger.next_deadline() == (deadlines[0] if deadlines else None)
        for digest in (b"d1", b"d2"):
            found = self.ledger.find(digest)
            if found is not None:
                assert found.digest == digest
                assert found.name in self.contents

    @invariant()
    def nothing_in_use_changes(self) -> None:
        for name, content in self.contents.items():
            assert self.files[name] == content
        for process in self.processes:
            for name, content in process.maps:
                assert self.files[name] == content

    def teardown(self) -> None:
        """When all is released, unmapped, reported, ordered and obeyed, no file is left."""
        for process in self.processes:
            while process.outbox:
                self.deliver_one(process)
            while process.maps:
                process.outbox.append(("unmapped", value(process.maps.pop()[0])))
        while self.contents:
            self.release_one(min(self.contents))
        for process in self.processes:
            while process.outbox:
                self.deliver_one(process)
        self.pass_time(SECONDS)
        self.order()
        for process in self.processes:
            while process.inbox:
                self.obey_one(process)
            assert not process.used
            assert not process.warm
        assert not self.files
        assert len(self.ledger) == 0


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
