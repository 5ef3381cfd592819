"""The slots of a worker: who reads the channel, what is given back, what lives how long."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from queue import SimpleQueue

import pytest

from localdist._wire import Item, Local, ReplyKind
from localdist._worker._codec import ThreadCodec
from localdist._worker._context import WorkerHandle, current, get_worker
from localdist._worker._runner import Runner
from localdist.errors import Reschedule

LONG = 20  # seconds; only waited for when something is wrong


class MemoryChannel:
    """A channel in memory that can tell who reads it."""

    def __init__(self):
        self.arrived: SimpleQueue = SimpleQueue()
        self.replies: SimpleQueue = SimpleQueue()
        self.readers = 0
        self.most_readers = 0
        self.reading = threading.Event()

    def send(self, *items):
        self.reading.clear()
        self.arrived.put(list(items))

    def receive(self, *, block):
        if not block and self.arrived.empty():
            return []
        self.readers += 1
        self.most_readers = max(self.most_readers, self.readers)
        if self.arrived.empty():
            self.reading.set()
        items = self.arrived.get()
        self.readers -= 1
        return items

    def reply(self, kind, seq, seconds, payload):
        self.replies.put((kind, seq, seconds, payload))

    def next_reply(self):
        kind, seq, _, payload = self.replies.get(timeout=LONG)
        return kind, seq, payload.value if isinstance(payload, Local) else payload


class Running:
    """A runner in a thread."""

    def __init__(self, slots):
        self.channel = MemoryChannel()
        self.handle = WorkerHandle("address", "name", 1, "folder")
        self.runner = Runner(self.channel, ThreadCodec(), self.handle, [0] * slots)
        self.thread = threading.Thread(target=self.runner.run)
        self.thread.start()

    def send(self, *calls):
        """Send calls of (seq, function, *args)."""
        payloads: list = [(seq, (function, args, {})) for seq, function, *args in calls]
        self.channel.send(*[Item(seq, f"key-{seq}", 0, payload, 0, ()) for seq, payload in payloads])

    def end(self):
        self.channel.arrived.put(None)
        self.thread.join(LONG)
        assert not self.thread.is_alive()


@pytest.fixture(params=[1, 3])
def running(request):
    running = Running(request.param)
    yield running
    running.end()


@pytest.fixture
def single():
    running = Running(1)
    yield running
    running.end()


class Stop:
    """A task that waits until it is told to go on."""

    def __init__(self):
        self.begun = threading.Event()
        self.go = threading.Event()

    def __call__(self):
        self.begun.set()
        assert self.go.wait(LONG)


def test_runs_in_order_and_reports_each(single):
    """One slot runs items in the order of their arrival and reports each with its seq and value."""
    single.send((1, abs, -1), (2, abs, -2))
    single.send((3, abs, -3))
    assert [single.channel.next_reply() for _ in range(3)] == [(ReplyKind.INLINE, i, i) for i in (1, 2, 3)]


def test_a_report_is_sent_before_the_next_task_begins(single):
    """What has finished is never lost with the worker: its report is out when the next task starts."""
    stop = Stop()
    single.send((1, abs, -1), (2, stop))
    assert stop.begun.wait(LONG)
    assert single.channel.replies.qsize() == 1
    stop.go.set()


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_nothing_that_a_task_raises_gets_out(running, error):
    """Any exception is an ERROR reply, and the slot goes on."""

    def fail():
        raise error("x")

    running.send((1, fail), (2, abs, -2))
    replies = {running.channel.next_reply()[:2] for _ in range(2)}
    assert replies == {(ReplyKind.ERROR, 1), (ReplyKind.INLINE, 2)}


def test_reschedule_is_no_error(running):
    """A task that raises Reschedule is reported as such, without a payload."""

    def again():
        raise Reschedule

    running.send((1, again))
    assert running.channel.next_reply() == (ReplyKind.RESCHEDULED, 1, None)


def test_recall_takes_back_what_has_not_begun(single):
    """All items that have not begun come back, the newest first, those nobody has read included; they never run."""
    stop = Stop()
    ran: list[int] = []
    single.send((1, stop), (2, ran.append, 2), (3, ran.append, 3))
    assert stop.begun.wait(LONG)
    single.send((4, ran.append, 4))
    assert single.runner.recall() == [4, 3, 2]
    assert single.runner.recall() == []
    stop.go.set()
    single.send((5, ran.append, 5))
    assert [single.channel.next_reply()[1] for _ in range(2)] == [1, 5]
    assert ran == [5]


def test_recall_of_an_idle_worker_does_not_wait(running):
    """A slot that waits for work holds the channel; a recall then has nothing to take, and returns at once."""
    assert running.channel.reading.wait(LONG)
    assert running.runner.recall() == []


def test_cancelled_items_are_given_back_in_their_turn(single):
    """A cancelled item does not run; when its turn comes it is reported as given back; others are not touched."""
    stop = Stop()
    ran: list[int] = []
    single.send((1, stop), (2, ran.append, 2), (3, ran.append, 3))
    assert stop.begun.wait(LONG)
    single.runner.cancel([2])
    stop.go.set()
    assert [single.channel.next_reply() for _ in range(3)] == [
        (ReplyKind.INLINE, 1, None),
        (ReplyKind.RECALLED, 0, ([2], False)),
        (ReplyKind.INLINE, 3, None),
    ]
    assert ran == [3]


def test_cancelling_what_runs_changes_nothing(single):
    """An item that has begun ends, and is reported, as if nothing had been said."""
    stop = Stop()
    single.send((1, stop))
    assert stop.begun.wait(LONG)
    single.runner.cancel([1])
    stop.go.set()
    assert single.channel.next_reply() == (ReplyKind.INLINE, 1, None)


def test_slots_run_at_the_same_time():
    """Three slots run three items of one message at once, and a fourth when one of them is free."""
    running = Running(3)
    stops = [Stop() for _ in range(4)]
    running.send(*enumerate(stops))
    for stop in stops[:3]:
        assert stop.begun.wait(LONG)
    assert not stops[3].begun.is_set()
    stops[1].go.set()
    assert running.channel.next_reply()[1] == 1
    assert stops[3].begun.wait(LONG)
    for stop in stops:
        stop.go.set()
    running.end()


def test_followers_take_what_the_leader_has_read():
    """All items of a message begin at once if there are slots, though one slot has read them, time and again."""
    running = Running(3)
    for _ in range(30):
        stops = [Stop() for _ in range(3)]
        running.send(*enumerate(stops))
        for stop in stops:
            assert stop.begun.wait(LONG)
        for stop in stops:
            stop.go.set()
        for _ in stops:
            running.channel.next_reply()
    running.end()


def test_leader_and_followers():
    """However many slots there are, one at a time reads the channel; whoever is free follows, so nothing waits."""
    running = Running(4)
    for i in range(500):
        running.send((2 * i, abs, -i), (2 * i + 1, abs, -i))
    seqs = [running.channel.next_reply()[1] for _ in range(1000)]
    assert sorted(seqs) == list(range(1000))
    assert running.channel.most_readers == 1
    stop = Stop()
    running.send((1001, stop))
    assert stop.begun.wait(LONG)
    running.send((1002, abs, -7))  # the slot that has read the first one is busy: another one has taken its place
    assert running.channel.next_reply()[1] == 1002
    stop.go.set()
    running.end()


def test_recalls_race_with_slots():
    """Whatever the interleaving, each item is either run or given back, never both, never neither."""
    running = Running(3)
    given_back: list[int] = []
    for i in range(300):
        running.send(*[(10 * i + j, abs, -1) for j in range(10)])
        given_back += running.runner.recall()
    ran = [running.channel.next_reply()[1] for _ in range(3000 - len(given_back))]
    assert sorted(ran + given_back) == list(range(3000))
    running.end()
    assert running.channel.replies.empty()


def test_all_slots_end_with_the_channel():
    """When the channel ends the slots finish what they run, and what has arrived, and end."""
    running = Running(2)
    stop = Stop()
    running.send((1, stop), (2, abs, -2), (3, abs, -3))
    assert stop.begun.wait(LONG)
    running.channel.arrived.put(None)
    stop.go.set()
    running.thread.join(LONG)
    assert not running.thread.is_alive()
    assert running.channel.replies.qsize() == 3


def test_few_cancelled_items_are_remembered(single):
    """Of cancelled items that never come, as those that had begun do not, the oldest are forgotten: there is a bound."""
    stop = Stop()
    single.send((0, stop), (100_001, abs, -1), (100_002, abs, -2))
    assert stop.begun.wait(LONG)
    for start in range(1, 100_001, 1000):
        single.runner.cancel(range(start, start + 1000))
        assert len(single.runner._cancelled) <= 10_000
    single.runner.cancel([100_001])
    stop.go.set()
    assert single.channel.next_reply()[:2] == (ReplyKind.INLINE, 0)
    assert single.channel.next_reply()[2] == ([100_001], False)
    assert single.channel.next_reply() == (ReplyKind.INLINE, 100_002, 2)
    assert 100_001 not in single.runner._cancelled


class Thing:
    """Something that can be referred to weakly."""


@pytest.mark.parametrize("ending", ["value", "error"])
def test_nothing_of_a_task_lives_until_the_next_one_comes(single, ending):
    """While a slot waits for work it holds neither arguments nor the result nor the function of what it ran last."""
    thing = Thing()

    def use(thing):
        if ending == "error":
            raise ValueError
        return [thing]

    refs: list[weakref.ref] = [weakref.ref(thing), weakref.ref(use)]
    single.send((1, use, thing))
    single.channel.replies.get(timeout=LONG)
    del thing, use
    deadline = time.monotonic() + LONG
    while any(ref() is not None for ref in refs):  # the slot may be on its way
        gc.collect()
        assert time.monotonic() < deadline


def test_the_current_task_is_known_inside_and_only_there(running):
    """`get_worker` returns the worker's handle in a task, whose key it knows; elsewhere it is an error."""
    with pytest.raises(ValueError, match="outside a task"):
        get_worker()
    running.send((7, lambda: (get_worker(), get_worker().get_current_task())))
    assert running.channel.next_reply() == (ReplyKind.INLINE, 7, (running.handle, "key-7"))
    assert current.key is None


def test_calls_outside_of_the_queue(running):
    """`call` runs a function beside the slots; it gets the worker if it asks for it, and its error is returned."""
    assert running.runner.call(lambda x: x + 1, (1,), {}) == (True, 2)
    assert running.runner.call(lambda dask_worker: dask_worker, (), {}) == (True, running.handle)

    async def coroutine():
        return "awaited"

    assert running.runner.call(coroutine, (), {}) == (True, "awaited")

    def fail(error):
        raise error

    for error in (ValueError("x"), SystemExit(3)):
        assert running.runner.call(fail, (error,), {}) == (False, error)
    assert current.runner is None
