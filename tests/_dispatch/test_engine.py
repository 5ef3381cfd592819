"""The scheduler's thread: it hears of everything, waits for nobody, and its end is everybody's end."""

from __future__ import annotations

import gc
import marshal
import os
import signal
import sys
import threading
import time

import psutil
import pytest

import localdist
from localdist import Client, Future
from localdist._schedule.records import Group
from localdist._state import Entry
from localdist.errors import ClosedClientError, InternalError
from tests.support import eventually, inc, still_running

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")


@pytest.fixture
def own():
    """A client of the test's own, since its workers are stopped or its engine broken."""
    with Client(n_workers=2, threads_per_worker=1) as c:
        c.wait_for_workers(2)
        yield c


def engine_of(client):
    return client.cluster._engine


def in_threads(count, function):
    """Call a function in several threads at once; raise what one of them raised."""
    errors: list[BaseException] = []

    def call(number):
        try:
            function(number)
        except BaseException as e:  # noqa: BLE001  (it is raised again below)
            errors.append(e)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


# -- other threads


def test_no_wake_up_is_lost(client):
    """Whoever leaves something while the thread is about to fall asleep is heard: eight threads, thousands of times."""
    engine = engine_of(client)

    def ask(number):
        for i in range(1500):
            assert engine.call(lambda i=i: (number, i)) == (number, i)

    in_threads(8, ask)


def test_posted_tasks_are_heard_by_a_sleeping_thread(client):
    """Tasks that come one by one while everything sleeps are each run at once, without anything else happening."""
    for i in range(1000):
        assert client.submit(inc, i, pure=False).result(20) == i + 1


def test_call_runs_in_the_schedulers_thread(client):
    """`call` returns the value or raises the error; from the thread itself it runs at once."""
    engine = engine_of(client)
    assert engine.call(threading.current_thread) is engine._thread
    assert engine.call(lambda: engine.call(threading.current_thread)) is engine._thread
    for error in (KeyError("x"), SystemExit(1)):

        def fail(error=error):
            raise error

        with pytest.raises(type(error)):
            engine.call(fail)
    assert client.submit(inc, 1, pure=False).result(20) == 2


def test_call_after_close():
    """`call` on an engine that has ended raises ClosedClientError, at once."""
    client = Client(n_workers=1, threads_per_worker=1)
    engine = engine_of(client)
    client.close()
    for _ in range(20):
        with pytest.raises(ClosedClientError):
            engine.call(list)
    engine.close()
    assert engine.closed


def test_calls_while_it_closes():
    """Calls that race with `close` are answered or refused; none waits for ever."""
    for _ in range(15):
        client = Client(processes=False, n_workers=1, threads_per_worker=1)
        engine = engine_of(client)
        go = threading.Barrier(4)

        def use(number, client=client, engine=engine, go=go):
            go.wait()
            if number == 0:
                client.close()
                return
            try:
                while True:
                    assert engine.call(lambda: 7) == 7
            except ClosedClientError:
                pass

        in_threads(4, use)


# -- Ctrl-C in the midst of it


def wait_until_it_sleeps(engine, *, idle=False):
    """Wait until the scheduler's thread sleeps for as long as nothing happens."""
    deadline = time.monotonic() + 20
    while not (engine._asleep and not engine._drowsy and (engine._idle is not None or not idle)):
        assert time.monotonic() < deadline


def interrupted_once(function, *, after=False):
    """Return a function that raises KeyboardInterrupt instead of, or after, its first call."""
    pending = [True]

    def call(*args, **kwargs):
        if pending and not after:
            pending.clear()
            raise KeyboardInterrupt
        result = function(*args, **kwargs)
        if pending:
            pending.clear()
            raise KeyboardInterrupt
        return result

    return call


class Mutex:
    """A lock one of whose methods is interrupted once."""

    def __init__(self, lock, **methods):
        self.acquire, self.release, self._is_owned = lock.acquire, lock.release, lock._is_owned
        self.__dict__.update(methods)

    def __enter__(self):
        return self.acquire()

    def __exit__(self, *exc_info):
        self.release()


def test_ctrl_c_while_waking_the_thread(own, monkeypatch):
    """When Ctrl-C comes before the wake-up is written, the thread is woken all the same."""
    engine = engine_of(own)
    done = threading.Event()
    wait_until_it_sleeps(engine)
    monkeypatch.setattr(engine._poller, "wake", interrupted_once(engine._poller.wake))
    engine._calls.append(done.set)
    with pytest.raises(KeyboardInterrupt):
        engine.wake()
    assert done.wait(20)
    wait_until_it_sleeps(engine)
    monkeypatch.setattr(engine._poller, "wake", interrupted_once(engine._poller.wake))
    with pytest.raises(KeyboardInterrupt):
        own.submit(inc, 1, workers=[0])
    assert own.submit(inc, 1, workers=[0]).result(20) == 2


@pytest.mark.parametrize("where", ["acquire", "release", "before release"])
def test_ctrl_c_around_the_mutex(own, monkeypatch, where):
    """Wherever it comes while a thread sends a task itself, the mutex is free afterwards, and an equal call runs."""
    engine = engine_of(own)
    lock = engine._mutex
    wait_until_it_sleeps(engine, idle=True)
    if where == "acquire":
        broken = Mutex(lock, acquire=interrupted_once(lock.acquire, after=True))
    elif where == "release":
        broken = Mutex(lock, release=interrupted_once(lock.release))
    else:
        broken = Mutex(lock, _is_owned=interrupted_once(lock._is_owned))
    monkeypatch.setattr(engine, "_mutex", broken)
    try:
        with pytest.raises(KeyboardInterrupt):
            own.submit(inc, 1)
        assert not lock._is_owned()
    finally:
        if lock._is_owned():
            lock.release()
    assert own.futures == {}
    assert own.submit(inc, 1).result(20) == 2
    assert own.submit(inc, 2).result(20) == 3


@posix
@pytest.mark.parametrize("sent", [0, 0.5, 1], ids=["nothing", "half", "everything"])
def test_ctrl_c_while_a_task_is_sent(monkeypatch, sent):
    """A worker that may have got half a message is ended, and what was to be sent runs elsewhere."""
    with Client(n_workers=1, threads_per_worker=1) as own:
        engine = engine_of(own)
        (worker,) = engine.crew.workers
        wait_until_it_sleeps(engine, idle=True)

        def write(data):
            monkeypatch.undo()  # once: it may still be sent another task before its end is noticed
            os.write(worker.tasks.fileno(), data[: int(len(data) * sent)])
            raise KeyboardInterrupt

        monkeypatch.setattr(worker.tasks, "write", write)
        # What `submit` makes of a call, but as if another thread held a future of it, too.
        entry = Entry("mine", Group("inc"), own._describe(inc), marshal.dumps((1,), 2), (), own._options)
        own._entries["mine"] = entry
        future = Future(entry)
        with pytest.raises(KeyboardInterrupt):
            engine.submit_one(entry)
        assert not still_running([worker.pid], 20)
        assert future.result(20) == 2
        assert own.submit(inc, 1).result(20) == 2


@posix
def test_an_equal_call_runs_after_an_interrupted_one(own, monkeypatch):
    """Of a call that was interrupted while it was sent nothing is left: an equal one runs."""
    engine = engine_of(own)
    for number in range(2):
        wait_until_it_sleeps(engine, idle=True)
        pipe = engine._idle.tasks
        monkeypatch.setattr(pipe, "write", interrupted_once(pipe.write))
        with pytest.raises(KeyboardInterrupt):
            own.submit(inc, number)
        assert own.futures == {}
        assert own.submit(inc, number).result(20) == number + 1


# -- workers that do not read or stop in the middle


@posix
def test_a_worker_that_does_not_read(own):
    """Megabytes for a worker that reads nothing do not stop the scheduler's thread: others work, it answers."""
    engine = engine_of(own)
    own.gather(own.map(len, [b"x"] * 50, pure=False))  # now it knows that these are short, and sends many at a time
    workers = {one["name"]: one["pid"] for one in own.scheduler_info()["workers"].values()}
    os.kill(workers[0], signal.SIGSTOP)
    try:
        blocks = [os.urandom(60_000) for _ in range(200)]
        stuck = own.map(len, blocks, workers=[0], pure=False)
        eventually(own, lambda: any(w.tasks.blocked for w in list(engine.crew.workers)))
        assert own.gather(own.map(inc, range(500), workers=[1], pure=False)) == list(range(1, 501))
        assert sum(map(len, own.processing().values())) > 0
        assert not any(future.done() for future in stuck)
    finally:
        os.kill(workers[0], signal.SIGCONT)
    assert own.gather(stuck) == [60_000] * 200


def much_to_say():
    """Make an exception of twenty megabytes."""
    error = ValueError("see my data")
    error.data = [os.urandom(1000) for _ in range(20_000)]  # type: ignore[attr-defined]  # a user's own
    return error


@posix
def test_a_worker_that_stops_in_the_middle_of_a_reply(own, tmp_path):
    """A reply of megabytes, half of which has come when the worker is stopped, does not stop the scheduler's thread."""
    path = str(tmp_path / "pid")

    def raise_much():
        with open(path, "w") as file:
            file.write(str(os.getpid()))
        raise much_to_say()  # errors travel inline

    engine = engine_of(own)
    future = own.submit(raise_much)

    def half_here():
        return any(w.replies._missing > 100_000 for w in list(engine.crew.workers))

    eventually(own, half_here)
    stopped = int((tmp_path / "pid").read_text())
    os.kill(stopped, signal.SIGSTOP)
    try:
        other = own.submit(inc, 1, workers=[w.record.name for w in engine.crew.workers if w.pid != stopped])
        assert other.result(20) == 2
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert len(future.exception(20).data) == 20_000


@posix
def test_a_worker_that_dies_in_the_middle_of_a_reply(own):
    """Half a reply is no reply: the task runs again."""
    engine = engine_of(own)

    def raise_much():
        raise much_to_say()

    future = own.submit(raise_much)
    eventually(own, lambda: any(w.replies._missing > 100_000 for w in list(engine.crew.workers)))
    victim = max(engine.crew.workers, key=lambda w: w.replies._missing).pid
    os.kill(victim, signal.SIGKILL)
    assert len(future.exception(30).data) == 20_000


@posix
def test_restart_with_a_worker_that_does_not_read(own):
    """Workers whose pipes are full are replaced; what was meant for them does not end up in pipes of others."""
    own.gather(own.map(len, [b"x"] * 50, pure=False))
    pids = [one["pid"] for one in own.scheduler_info()["workers"].values()]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    stuck = own.map(len, [os.urandom(60_000) for _ in range(100)], pure=False)
    eventually(own, lambda: any(w.tasks.blocked for w in list(engine_of(own).crew.workers)))
    own.restart()
    assert {future.status for future in stuck} == {"cancelled"}
    assert not still_running(pids, 5)
    for _ in range(3):
        assert own.gather(own.map(inc, range(200), pure=False)) == list(range(1, 201))


@posix
def test_close_with_workers_that_do_not_read():
    """`close` ends workers that are stopped and have full pipes."""
    client = Client(n_workers=2, threads_per_worker=1)
    client.wait_for_workers(2)
    client.gather(client.map(len, [b"x"] * 50, pure=False))
    pids = [one["pid"] for one in client.scheduler_info()["workers"].values()]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    stuck = client.map(len, [os.urandom(60_000) for _ in range(100)], pure=False)
    eventually(client, lambda: any(w.tasks.blocked for w in list(engine_of(client).crew.workers)))
    client.close()
    assert not still_running(pids, 5)
    assert {future.status for future in stuck} == {"cancelled"}


# -- our own mistakes


def test_an_internal_error_ends_everything_aloud(capfd):
    """If the core fails, futures are cancelled, waiting threads wake, and the error is printed; nothing hangs."""
    client = Client(n_workers=1, threads_per_worker=1)
    engine = engine_of(client)
    pids = [one["pid"] for one in client.scheduler_info()["workers"].values()]
    assert client.submit(inc, 1).result(20) == 2

    def fail(event, now):
        raise InternalError("a rule was broken")

    engine.core.handle = fail
    broken = client.map(inc, range(10), pure=False)
    for one in broken:
        with pytest.raises((localdist.CancelledError, ClosedClientError)):
            one.result(20)
    engine._thread.join(20)
    assert "internal error, please report it" in capfd.readouterr().err
    assert not still_running(pids, 5)
    for use in (lambda: client.submit(inc, 1).result(20), client.scheduler_info):
        with pytest.raises((localdist.CancelledError, ClosedClientError)):
            use()
    client.close()


def test_descriptors_do_not_grow(own):
    """Ten deaths later this process has as many open descriptors as before."""
    if not hasattr(psutil.Process, "num_fds"):
        pytest.skip("this system does not count descriptors")

    def kill_all():
        old = {one["pid"] for one in own.scheduler_info()["workers"].values()}
        for pid in old:
            psutil.Process(pid).kill()
        eventually(own, lambda: own.cluster._engine.crew.ready == 2 and not old & set(_pids(own)))

    kill_all()
    gc.collect()
    before = psutil.Process().num_fds()
    for _ in range(5):
        kill_all()
    gc.collect()
    assert psutil.Process().num_fds() <= before
    assert own.submit(inc, 1).result(20) == 2


def _pids(client):
    return [worker.pid for worker in list(engine_of(client).crew.workers)]
