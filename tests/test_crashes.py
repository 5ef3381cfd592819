from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

import localdist
from localdist import Client
from localdist.errors import DeserializationError, KilledWorker, SerializationError
from tests.support import eventually, still_running

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and exit codes are POSIX's")

MB = 1024 * 1024
ROOT = str(Path(localdist.__file__).parent.parent)


class Broken(Exception):
    """What `crash("raise")` raises."""


def crash(how):
    """End in one of the ways in which a task can end badly."""
    if how == "raise":
        raise Broken("on purpose")
    if how == "sys.exit":
        sys.exit(3)
    if how == "os._exit":
        os._exit(3)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    assert how == "segfault"
    import faulthandler

    faulthandler.disable()  # its report would only be noise
    ctypes.string_at(0)


class CrashOnPickle:
    """Ends the process that pickles it."""

    def __init__(self, how):
        self.how = how

    def __reduce__(self):
        crash(self.how)


class CrashOnUnpickle:
    """Ends the process that unpickles it, if that is of the kind named: "worker" or "client"."""

    def __init__(self, how, where):
        self.how, self.where = how, where

    def __reduce__(self):
        return rebuild, (self.how, self.where)


def rebuild(how, where):
    if is_worker() == (where == "worker"):
        crash(how)
    return "rebuilt"


def is_worker():
    from localdist._worker._context import current

    return current.runner is not None


def inc(x):
    return x + 1


def ignore(x):
    return "ignored"


def make_crash_on_pickle(how):
    return CrashOnPickle(how)


def make_crash_on_unpickle(how, where):
    return CrashOnUnpickle(how, where)


def pid():
    return os.getpid()


def nap(seconds):
    time.sleep(seconds)
    return seconds


def kill_me(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def pids(client):
    return {one["pid"] for one in client.scheduler_info()["workers"].values()}


def workers_of(client):
    return psutil.Process().children()


@pytest.fixture
def client(request):
    """Allow one failure, unless asked otherwise: fewer than by default is faster."""
    with Client(n_workers=2, threads_per_worker=1, allowed_failures=getattr(request, "param", 1)) as c:
        c.wait_for_workers(2, timeout=20)
        yield c


def run_script(text, *args, timeout=30):
    """Run a program in a process of its own; return what came of it."""
    return subprocess.run(
        [sys.executable, "-c", text, *args],
        env={**os.environ, "PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


# -- the matrix: stage x way to end

DEATHS = {"os._exit": 3, "segfault": -signal.SIGSEGV, "kill": -signal.SIGKILL}
ERRORS = {"raise": Broken, "sys.exit": SystemExit}
IN_WORKER = {
    "unpickling the call": lambda c, how: c.submit(ignore, CrashOnUnpickle(how, "worker"), pure=False),
    "running": lambda c, how: c.submit(crash, how, pure=False),
    "pickling the result": lambda c, how: c.submit(make_crash_on_pickle, how, pure=False),
}


@pytest.fixture
def innocent(client):
    """A hundred tasks that are queued when the crash comes; all have to complete, and the pool to refill."""
    futures = []

    def queue():
        futures.extend(client.map(inc, range(100), pure=False))

    yield queue
    assert len(futures) == 100
    assert client.gather(futures) == list(range(1, 101))
    client.wait_for_workers(2, timeout=20)


@pytest.mark.parametrize("how", DEATHS)
@pytest.mark.parametrize("stage", IN_WORKER)
def test_death_in_the_worker_is_killed_worker(client, innocent, stage, how):
    """A real death costs the task, after the retries, a KilledWorker with key, pid and how it died; nobody else."""
    future = IN_WORKER[stage](client, how)
    innocent()
    with pytest.raises(KilledWorker) as caught:
        future.result(30)
    assert future.status == "error"
    assert caught.value.task == future.key
    assert caught.value.exitcode == DEATHS[how]
    assert caught.value.allowed_failures == 1
    assert not psutil.pid_exists(caught.value.pid)
    text = str(caught.value)
    assert future.key in text
    assert str(caught.value.pid) in text
    assert ("exited with code 3" if how == "os._exit" else signal.Signals(-DEATHS[how]).name) in text


@pytest.mark.parametrize("how", ERRORS)
@pytest.mark.parametrize("stage", IN_WORKER)
def test_error_in_the_worker_is_the_tasks_own(client, innocent, stage, how):
    """An exception, SystemExit included, fails the task alone: every worker lives on."""
    before = pids(client)
    future = IN_WORKER[stage](client, how)
    innocent()
    error = future.exception(30)
    if stage == "running" or (stage == "pickling the result" and how == "sys.exit"):
        assert type(error) is ERRORS[how]
        assert error.args == (("on purpose",) if how == "raise" else (3,))
    else:
        wrapper = SerializationError if stage == "pickling the result" else DeserializationError
        assert type(error) is wrapper
        assert ("Broken: on purpose" if how == "raise" else "SystemExit: 3") in str(error)
        assert type(error.__cause__) is ERRORS[how]
        assert future.key in str(error)
    assert pids(client) == before


@pytest.mark.parametrize("how", ERRORS)
def test_error_while_pickling_the_call_is_raised_by_submit(client, innocent, how):
    """What an argument raises when it is pickled comes out of `submit`; no task is made."""
    innocent()
    with pytest.raises((TypeError, SystemExit)) as caught:
        client.submit(ignore, CrashOnPickle(how), key="unborn")
    if how == "raise":
        assert isinstance(caught.value, SerializationError)
        assert "Broken: on purpose" in str(caught.value)
        assert "CrashOnPickle" in str(caught.value)
        assert type(caught.value.__cause__) is Broken
    assert "unborn" not in client.futures


@pytest.mark.parametrize("how", ERRORS)
def test_error_while_unpickling_the_result_is_raised_by_result(client, innocent, how):
    """What a value raises when it is rebuilt comes out of `result`, each time; the task has finished."""
    future = client.submit(make_crash_on_unpickle, how, "client", pure=False)
    innocent()
    for _ in range(2):
        with pytest.raises((DeserializationError, SystemExit)) as caught:
            future.result(30)
        assert type(caught.value) is (DeserializationError if how == "raise" else SystemExit)
    assert future.status == "finished"
    assert client.submit(ignore, future).result(30) == "ignored"


DYING_CLIENT = """
import sys
from tests import test_crashes as t
from localdist import Client

how, stage = sys.argv[1:]
client = Client(n_workers=2, threads_per_worker=1)
print(client.cluster._engine.values.folders.disk, *t.pids(client), flush=True)
busy = [client.submit(t.nap, 60, pure=False) for _ in range(2)]
if stage == "pickling the call":
    client.submit(t.ignore, t.CrashOnPickle(how))
else:
    for future in busy:
        future.cancel()
    client.restart()
    print(*t.pids(client), flush=True)
    future = client.submit(t.make_crash_on_unpickle, how, "client")
    future.result()
"""


@pytest.mark.parametrize("how", DEATHS)
@pytest.mark.parametrize("stage", ["pickling the call", "unpickling the result"])
def test_death_of_the_client_takes_all_with_it(stage, how):
    """When the client itself dies, at whichever stage, its workers and folders are gone soon."""
    done = run_script(DYING_CLIENT, how, stage)
    assert done.returncode == DEATHS[how], done.stderr
    folder, *children = done.stdout.split()
    assert not still_running(map(int, children), seconds=5)
    assert not os.path.exists(folder)


# -- deaths


def test_a_death_is_rerun_elsewhere(client, tmp_path):
    """A task whose worker dies is run again, and what it gives then is its result."""

    def die_once(path):
        with open(path, "a") as file:
            file.write(f"{os.getpid()}\n")
        with open(path) as file:
            lines = file.read().split()
        if len(lines) < 2:
            os.kill(os.getpid(), 9)
        return [int(line) for line in lines]

    ran_on = client.submit(die_once, str(tmp_path / "log")).result(30)
    assert len(set(ran_on)) == 2


@pytest.mark.parametrize("allowed", [0, 1, 3])
def test_allowed_failures(tmp_path, allowed):
    """A task runs once, and again as often as failures are allowed, before it fails with KilledWorker."""

    def die(path):
        with open(path, "a") as file:
            file.write(f"{os.getpid()}\n")
        os._exit(7)

    with Client(n_workers=2, threads_per_worker=1, allowed_failures=allowed) as client:
        future = client.submit(die, str(tmp_path / "log"))
        with pytest.raises(KilledWorker) as caught:
            future.result(30)
        ran_on = (tmp_path / "log").read_text().split()
        assert len(ran_on) == allowed + 1
        assert caught.value.pid == int(ran_on[-1])
        assert caught.value.exitcode == 7
        assert client.submit(inc, 1).result(30) == 2


def test_dependents_get_killed_worker_too(client):
    """What depends on a task that killed its workers fails with the same error, at any depth, and never runs."""
    bad = client.submit(kill_me)
    above = client.submit(inc, client.submit(inc, bad))
    for future in (bad, above):
        with pytest.raises(KilledWorker) as caught:
            future.result(30)
        assert caught.value.task == bad.key


def test_tasks_queued_behind_a_death_are_not_blamed():
    """Not one death is counted for tasks that a worker had and was not running, however often it dies."""
    with Client(n_workers=1, threads_per_worker=1, allowed_failures=0) as client:
        client.gather(client.map(inc, range(50)))  # their time is known now, so they are sent many at a time
        bad = [client.submit(kill_me, i, key=("bad", i)) for i in range(3)]
        good = client.map(inc, range(100, 400))
        assert client.gather(good) == list(range(101, 401))
        assert all(type(f.exception(30)) is KilledWorker for f in bad)


@pytest.mark.parametrize("client", [3], indirect=True)
def test_finished_results_outlive_their_worker(client, tmp_path):
    """Results, small and in segments, are usable after all workers have died, and are not computed again."""

    def compute(path, size):
        with open(path, "a") as file:
            file.write("x")
        return b"v" * size

    log = str(tmp_path / "log")
    small, large = client.submit(compute, log, 10), client.submit(compute, log, 3 * MB)
    localdist.wait([small, large])
    for one in pids(client):
        os.kill(one, signal.SIGKILL)
    assert client.submit(len, small).result(30) == 10
    assert client.submit(len, large).result(30) == 3 * MB
    assert small.result() == b"v" * 10
    assert large.result() == b"v" * 3 * MB
    assert (tmp_path / "log").read_text() == "xx"


def test_the_pool_refills_to_its_size(client):
    """After deaths there are as many workers as before, under the same names."""
    before = client.scheduler_info()["workers"]
    for _ in range(3):
        old = pids(client)
        for one in old:
            os.kill(one, signal.SIGKILL)
        psutil.wait_procs([p for p in workers_of(client) if p.pid in old], timeout=10)
        client.submit(inc, 1, pure=False).result(30)
        client.wait_for_workers(2, timeout=20)
    after = client.scheduler_info()["workers"]
    assert sorted(one["name"] for one in after.values()) == sorted(one["name"] for one in before.values())
    assert not set(after) & set(before)


def test_workers_that_die_together_blame_a_task_once():
    """When six workers die at one time, a task that one of them was running is not blamed for the others as well."""
    with Client(n_workers=6, threads_per_worker=1, allowed_failures=1) as client:
        client.wait_for_workers(6, 30)
        engine: Any = client.cluster._engine

        def kill_all():
            workers = list(engine.crew.workers)
            for worker in workers:
                worker.kill()
            assert all(worker.sentinel.wait(20) for worker in workers)

        for _ in range(3):
            first = engine.crew.workers[
                0
            ].record.name  # the first one that is seen to be dead; then the others are there
            future = client.submit(nap, 0.1, pure=False, workers=[first], allow_other_workers=True)
            eventually(client, lambda: sum(map(len, client.processing().values())) == 1)
            engine.call(kill_all)  # in the scheduler's thread, so that it sees all of it at once
            assert future.result(30) == 0.1
            client.wait_for_workers(6, 30)


def test_exit_codes_that_somebody_else_collects(client):
    """Where the program collects exit codes itself (SIGCHLD ignored) deaths are still seen, at once."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        start = time.monotonic()
        with pytest.raises(KilledWorker, match="ended in an unknown way") as caught:
            client.submit(kill_me).result(30)
        assert caught.value.exitcode is None
        assert client.gather(client.map(inc, range(100))) == list(range(1, 101))
        client.close()
        assert time.monotonic() - start < 10  # several times the few hundred milliseconds that it takes
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_idle_death_is_noticed_without_work(client):
    """A worker that dies while nobody uses it is replaced, without anything being submitted."""
    old = pids(client)
    for one in old:
        os.kill(one, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while len(pids(client) - old) < 2:
        assert time.monotonic() < deadline
    assert client.gather(client.map(inc, range(10))) == list(range(1, 11))


def die_while_starting(path):
    """Let the first two replacements die before they are ready."""
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\n")
    with open(path) as file:
        count = len(file.readlines())
    if 2 <= count <= 3:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_while_it_starts_is_replaced(tmp_path):
    """Two replacements die before they are ready: the third one takes the work, nothing is lost or blamed."""
    log = tmp_path / "log"
    with Client(
        n_workers=1, threads_per_worker=1, allowed_failures=1, initializer=die_while_starting, initargs=(str(log),)
    ) as client:
        done = client.submit(inc, 1)
        assert done.result(30) == 2
        os.kill(min(pids(client)), signal.SIGKILL)
        assert client.gather(client.map(inc, range(100, 200))) == list(range(101, 201))
        assert done.result() == 2
    assert len(log.read_text().split()) == 4


def test_a_pool_that_cannot_refill_fails_what_waits(tmp_path):
    """When no replacement can start, pending and later tasks are cancelled with the reason; results stay usable."""
    flag = tmp_path / "flag"

    def refuse(path):
        if os.path.exists(path):
            os._exit(9)

    with Client(n_workers=2, threads_per_worker=1, initializer=refuse, initargs=(str(flag),)) as client:
        client.wait_for_workers(2, 20)
        done, large = client.submit(inc, 1), client.submit(bytes, 3 * MB)
        localdist.wait([done, large])
        flag.touch()
        running = client.submit(nap, 60)
        waiting = client.submit(inc, running)
        for one in pids(client):
            os.kill(one, signal.SIGKILL)
        for future in (running, waiting):
            with pytest.raises(localdist.CancelledError, match=r"no worker can start.*exited with code 9"):
                future.result(30)
        with pytest.raises(localdist.CancelledError, match="no worker can start"):
            client.submit(inc, 5).result(30)
        assert done.result() == 2
        assert large.result() == bytes(3 * MB)
        assert client.gather(client.scatter([1, 2])) == [1, 2]
        flag.unlink()
        client.restart()
        assert client.submit(inc, 1).result(30) == 2


def test_two_slots_blame_only_what_was_running():
    """With two threads per worker a death is counted for the two tasks it was running, and for none behind them."""
    with Client(n_workers=1, threads_per_worker=2, allowed_failures=1) as client:
        client.gather(client.map(inc, range(50)))
        bad = client.submit(kill_me)
        good = client.map(inc, range(1000, 1300))
        assert type(bad.exception(30)) is KilledWorker
        # The one that happened to run beside it may be blamed as well; at most one for each of the two deaths.
        localdist.wait(good)
        assert sum(f.status != "finished" for f in good) <= 1


def test_two_slots_go_on(tmp_path):
    """A worker with two threads that dies is replaced by one with two threads, which run at the same time."""

    def meet(path, me, other):
        Path(path, me).touch()
        while not Path(path, other).exists():
            time.sleep(0.001)
        return me

    with Client(n_workers=1, threads_per_worker=2) as client:
        os.kill(min(pids(client)), signal.SIGKILL)
        a = client.submit(meet, str(tmp_path), "a", "b")
        b = client.submit(meet, str(tmp_path), "b", "a")
        assert client.gather([a, b]) == ["a", "b"]


def test_a_forked_child_hides_no_death(client, tmp_path):
    """A worker whose forked child keeps all its pipes open is seen to die, at once."""

    def fork_and_die(path):
        child = os.fork()
        if child == 0:
            signal.pause()
        with open(path, "a") as file:
            file.write(f"{child}\n")
        os.kill(os.getpid(), signal.SIGKILL)

    log = tmp_path / "children"
    try:
        with pytest.raises(KilledWorker):
            client.submit(fork_and_die, str(log)).result(20)
    finally:
        for child in log.read_text().split():
            os.kill(int(child), signal.SIGKILL)


@pytest.mark.slow
def test_random_kills_leave_no_future_pending():
    """Two hundred kills at random moments, with large values on their way in and out: every future ends, correctly."""
    rng = random.Random(20261120)
    stop = threading.Event()
    killed = 0

    with Client(n_workers=2, threads_per_worker=1, allowed_failures=10_000) as client:

        def kill_all_the_time():
            nonlocal killed
            while killed < 200 and not stop.is_set():
                known = [w.pid for w in list(client.cluster._engine.crew.workers) if w.ready]
                if known:
                    with contextlib.suppress(ProcessLookupError):  # it was noticed in this very moment
                        os.kill(rng.choice(known), signal.SIGKILL)
                    killed += 1
                stop.wait(rng.uniform(0, 0.04))

        thread = threading.Thread(target=kill_all_the_time)
        thread.start()
        rounds = 0
        try:
            while thread.is_alive():
                base = 10_000 * rounds
                small = client.map(inc, range(base, base + 500))
                block = bytes([rounds % 256]) * (2 * MB)
                sent = [client.submit(echo_length, block, i) for i in range(4)]
                made = [client.submit(make_bytes, 2 * MB, base + i) for i in range(4)]
                back = [client.submit(echo_length, value, base) for value in made]
                assert client.gather(small) == list(range(base + 1, base + 501))
                assert client.gather(sent) == [(2 * MB, i) for i in range(4)]
                assert client.gather(back) == [(2 * MB, base)] * 4
                assert {len(value) for value in client.gather(made)} == {2 * MB}
                rounds += 1
        finally:
            stop.set()
            thread.join()
        assert killed == 200
        assert set(client.futures.values()) <= {"finished"}
        client.wait_for_workers(2, 20)
        assert client.gather(client.map(inc, range(100))) == list(range(1, 101))


def echo_length(value, tag):
    return len(value), tag


def make_bytes(size, seed):
    return bytes([seed % 256]) * size
