"""However a client ends, its workers, what they started, and its folders are gone soon, and nothing is printed."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

import localdist
from localdist import Client, LocalCluster
from localdist.errors import ClosedClientError
from tests.support import inc, still_running

ROOT = Path(localdist.__file__).parent.parent
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")

# What every program below begins with: it tells where its folders are, and which processes its workers.
HEAD = """
import gc, os, sys, threading, time
from localdist import Client, LocalCluster, as_completed, wait

def spin(path):
    open(path, "a").write("x")
    while True:
        pass

def nap(path):
    open(path, "a").write("x")
    time.sleep(60)

def inc(x):
    return x + 1

def tell(client):
    folders = client.cluster._engine.values.folders.all
    print("|".join([*folders, *[str(w["pid"]) for w in client.scheduler_info()["workers"].values()]]), flush=True)

log = sys.argv[1]
"""


class Program:
    """A program in a process of its own."""

    def __init__(self, text, log, *options):
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, *options, "-c", HEAD + text, str(log)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        self.folders: list[str] = []
        self.workers: list[int] = []

    def told(self):
        assert self.process.stdout is not None
        parts = self.process.stdout.readline().decode().strip().split("|")
        self.workers = [int(part) for part in parts if part.isdigit()]
        self.folders = [part for part in parts if not part.isdigit()]
        assert self.workers

    def begun(self, count):
        """Wait until so many tasks have begun."""
        deadline = time.monotonic() + 20
        while not self.log.exists() or self.log.stat().st_size < count:
            assert time.monotonic() < deadline

    def finish(self):
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out.decode(), err.decode()

    def assert_nothing_left(self, seconds=5):
        assert not still_running(self.workers, seconds)
        deadline = time.monotonic() + seconds
        while left := [folder for folder in self.folders if os.path.exists(folder)]:
            assert time.monotonic() < deadline, left


@pytest.fixture
def program(tmp_path):
    programs = []

    def start(text, *options):
        programs.append(Program(text, tmp_path / "log", *options))
        return programs[-1]

    yield start
    for one in programs:
        one.process.kill()
        one.process.communicate()
        for pid in one.workers:
            if psutil.pid_exists(pid):
                psutil.Process(pid).kill()


# -- ends of the interpreter

ENDS = {
    "end of program": ("", 0, ""),
    "sys.exit": ("sys.exit(3)", 3, ""),
    "exception": ("raise ValueError('of the program')", 1, "ValueError: of the program"),
    "in a with block": ("with client:\n    raise ValueError('inside')", 1, "ValueError: inside"),
    "closed before": ("client.close()", 0, ""),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("work", ["idle", "pending"])
def test_end_of_the_interpreter(program, end, work):
    """With work pending or without, a program ends at once, as it would without us: same code, same output."""
    text, code, _ = ENDS[end]
    work = {"idle": "client.submit(inc, 1).result()", "pending": "fs = client.map(nap, [log] * 9, pure=False)"}[work]
    one = program(f"client = Client(n_workers=2, threads_per_worker=1)\ntell(client)\n{work}\n{text}\n", "-W", "error")
    one.told()
    assert one.finish()[:2] == (code, "")
    one.assert_nothing_left()


@pytest.mark.parametrize("end", ENDS)
def test_nothing_is_printed_at_the_end(program, end):
    """Standard error holds what the program itself is to blame for, even where warnings are errors."""
    text, _, error = ENDS[end]
    one = program(
        f"client = Client(n_workers=2, threads_per_worker=1)\ntell(client)\nx = client.submit(inc, 1)\n{text}\n",
        "-W",
        "error",
    )
    one.told()
    _, _, err = one.finish()
    assert err.strip().splitlines()[-1:] == ([error] if error else [])
    assert err.count("Traceback") == bool(error)


def test_end_with_a_cluster_and_no_client(program):
    """A cluster that nobody closed ends with the interpreter."""
    one = program(
        "cluster = LocalCluster(n_workers=2, threads_per_worker=1)\n"
        "client = Client(cluster)\ntell(client)\nclient.close()\n",
        "-W",
        "error",
    )
    one.told()
    assert one.finish() == (0, "", "")
    one.assert_nothing_left()


def test_collection_of_an_unclosed_cluster():
    """A cluster that nobody refers to any more ends its workers; a client of it keeps it."""
    cluster = LocalCluster(n_workers=1, threads_per_worker=1)
    client = Client(cluster)
    pids = [one["pid"] for one in client.scheduler_info()["workers"].values()]
    del cluster
    gc.collect()
    assert client.submit(inc, 1).result() == 2
    del client
    collect_until_gone(pids)


def test_end_in_the_middle_of_submitting(program):
    """Threads that still submit and wait when the interpreter ends do not keep it, and print nothing."""
    one = program(
        """
client = Client(n_workers=2, threads_per_worker=1)
tell(client)
def submit_for_ever():
    i = 0
    while True:
        i += 1
        try:
            client.submit(inc, i).result()
        except BaseException:
            return
for _ in range(3):
    threading.Thread(target=submit_for_ever, daemon=True).start()
time.sleep(0.2)
""",
        "-W",
        "error",
    )
    one.told()
    assert one.finish() == (0, "", "")
    one.assert_nothing_left()


# -- close


def test_close_with_a_running_task(tmp_path):
    """A running task delays `close` by half a second, not by as long as it takes; its future is cancelled."""
    client = Client(n_workers=2, threads_per_worker=1)
    path = tmp_path / "log"
    running = client.submit(begin_and_nap, str(path), 60)
    waiting = client.submit(inc, running)
    wait_for(path.exists)
    start = time.monotonic()
    client.close()
    assert time.monotonic() - start < 5  # of the sixty seconds that the task takes
    for future in (running, waiting):
        assert future.cancelled()
        with pytest.raises(localdist.CancelledError, match="client closed"):
            future.result()


def begin_and_nap(path, seconds):
    Path(path).touch()
    time.sleep(seconds)


def begin_and_wait_for(begun, go):
    Path(begun).touch()
    while not os.path.exists(go):
        time.sleep(0.001)


def wait_for(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline


def test_close_lets_short_tasks_finish(tmp_path):
    """A task that ends within the grace ends in order: what it does at its end happens."""

    def write_slowly(path):
        Path(path, "begun").touch()
        time.sleep(0.1)
        Path(path, "ended").touch()

    client = Client(n_workers=1, threads_per_worker=1)
    future = client.submit(write_slowly, str(tmp_path))
    wait_for((tmp_path / "begun").exists)
    client.close()
    assert (tmp_path / "ended").exists()
    assert future.cancelled()


def test_close_twice_and_use_after():
    """`close` may be repeated; afterwards everything that needs workers says that the client is closed."""
    client = Client(n_workers=1, threads_per_worker=1)
    done = client.submit(inc, 1)
    assert done.result() == 2
    client.close()
    client.close()
    assert client.status == "closed"
    for use in (
        lambda: client.submit(inc, 1),
        lambda: client.map(inc, [1]),
        lambda: client.scatter(1),
        lambda: client.gather([done]),
        lambda: client.run(inc, 1),
        client.scheduler_info,
        client.restart,
        lambda: client.wait_for_workers(1),
    ):
        with pytest.raises(ClosedClientError):
            use()


def test_close_in_a_thread_wakes_those_who_wait(tmp_path):
    """Whoever waits for a future when another thread closes the client gets a CancelledError at once."""
    client = Client(n_workers=1, threads_per_worker=1)
    path = tmp_path / "log"
    future = client.submit(begin_and_nap, str(path), 60)
    errors: list[BaseException] = []

    def wait_for_it(wait):
        try:
            wait()
        except BaseException as e:  # noqa: BLE001  (that is what is asked)
            errors.append(e)

    waits = [
        future.result,
        lambda: client.gather([future]),
        lambda: localdist.wait([future]),
    ]
    threads = [threading.Thread(target=wait_for_it, args=(wait,)) for wait in waits]
    for thread in threads:
        thread.start()
    wait_for(path.exists)
    closers = [threading.Thread(target=client.close) for _ in range(3)]
    for thread in closers:
        thread.start()
    for thread in (*closers, *threads):
        thread.join(20)
        assert not thread.is_alive()
    assert len(errors) == 3
    assert all(isinstance(e, localdist.CancelledError | ClosedClientError) for e in errors)


def test_calls_and_closes_from_many_threads():
    """Submitting, asking and closing at once: each call succeeds or says that the client is closed; none hangs."""
    for _ in range(10):
        client = Client(n_workers=1, threads_per_worker=1)
        problems: list[BaseException] = []
        go = threading.Barrier(5)

        def use(client=client, problems=problems, go=go):
            go.wait()
            try:
                for i in range(10_000):
                    client.submit(inc, i)
                    client.scheduler_info()
            except (ClosedClientError, localdist.CancelledError):
                pass  # as it should
            except BaseException as e:  # noqa: BLE001  (that is what is asked)
                problems.append(e)

        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        go.wait()
        client.close()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        assert problems == []


def collect_until_gone(pids):
    """Collect garbage as a program that goes on would, until processes have ended."""
    deadline = time.monotonic() + 20
    while still_running(pids, 0):
        gc.collect()
        assert time.monotonic() < deadline


def test_collection_of_an_unclosed_client():
    """A client that nobody refers to any more ends its workers, without being closed."""
    client = Client(n_workers=2, threads_per_worker=1)
    client.wait_for_workers(2)
    assert client.submit(inc, 1).result() == 2
    pids = [one["pid"] for one in client.scheduler_info()["workers"].values()]
    del client
    collect_until_gone(pids)


def test_collection_with_a_running_task(tmp_path):
    """So does one whose task still runs and whose future is gone, as soon as the task ends."""
    client = Client(n_workers=1, threads_per_worker=1)
    begun, go = tmp_path / "begun", tmp_path / "go"
    future = client.submit(begin_and_wait_for, str(begun), str(go))
    wait_for(begun.exists)
    pids = [one["pid"] for one in client.scheduler_info()["workers"].values()]
    del client, future
    go.touch()
    collect_until_gone(pids)


# -- descendants


def start_children(path, fork):
    """Start a program and, if asked, fork, and tell their ids; then go on for a minute."""
    pids = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid]
    if fork:
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        pids.append(child)
    Path(path + ".part").write_text(" ".join(map(str, pids)))
    os.rename(path + ".part", path)
    return pids


def start_children_and_nap(path, fork):
    start_children(path, fork)
    time.sleep(60)


@posix
@pytest.mark.parametrize("function", [start_children, start_children_and_nap])
def test_children_of_tasks_end_at_close(tmp_path, function):
    """What a task has started, programs and forks, is ended by `close`, whether the task has ended or not; promptly."""
    client = Client(n_workers=1, threads_per_worker=1)
    path = tmp_path / "pids"
    future = client.submit(function, str(path), True)
    wait_for(path.exists)
    if function is start_children:
        future.result()
    start = time.monotonic()
    client.close()
    assert time.monotonic() - start < 4  # though the fork keeps all pipes of the worker open
    assert not still_running(map(int, path.read_text().split()), 5)


@posix
def test_children_of_tasks_end_at_restart(tmp_path):
    """`restart` ends them too."""
    with Client(n_workers=1, threads_per_worker=1) as client:
        path = tmp_path / "pids"
        future = client.submit(start_children_and_nap, str(path), True)
        wait_for(path.exists)
        client.restart()
        assert future.cancelled()
        assert not still_running(map(int, path.read_text().split()), 5)
        assert client.submit(inc, 1).result(20) == 2


# -- the client is killed


@posix
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM], ids=lambda s: s.name)
@pytest.mark.parametrize("task", ["idle", "nap", "spin"])
def test_killed_client(program, sent, task):
    """When the client is killed its workers, idle or busy in Python code, and its folders are gone within seconds."""
    one = program(
        f"""
client = Client(n_workers=2, threads_per_worker=1)
tell(client)
large = client.submit(bytes, 3_000_000)
large.result()
busy = [client.submit({task}, log, pure=False) for _ in range(2)] if {task!r} != "idle" else []
open(log, "a").write("xx" if not busy else "")
time.sleep(60)
""".replace("submit(idle", "submit(nap")
    )
    one.told()
    one.begun(2)
    one.process.send_signal(sent)
    one.finish()
    assert one.process.returncode == -sent
    one.assert_nothing_left()


@posix
def test_killed_client_with_much_to_remove(program):
    """Workers that are idle do not end before the folders are empty, however much lies in them."""
    one = program(
        """
client = Client(n_workers=2, threads_per_worker=1)
client.wait_for_workers(2)
for i in range(20_000):
    open(os.path.join(client.cluster._engine.values.folders.all[0], f"client-{i}"), "w").close()
tell(client)
time.sleep(60)
"""
    )
    one.told()
    one.process.kill()
    one.finish()
    one.assert_nothing_left()


@posix
def test_killed_client_while_results_come(program):
    """Killed while workers write large results and replies, again and again: nothing is left in the folders."""
    one = program(
        """
client = Client(n_workers=2, threads_per_worker=1)
tell(client)
fs = client.map(lambda i: bytes(1_000_000), range(2000), pure=False)
open(log, "a").write("xx")
for f in as_completed(fs):
    pass
"""
    )
    one.told()
    one.begun(2)
    one.process.kill()
    one.finish()
    one.assert_nothing_left()


@posix
def test_killed_client_while_a_worker_starts(program):
    """A worker whose initializer still runs notices the end of the client as well."""
    one = program(
        """
def start():
    open(log + ".pid", "w").write(str(os.getpid()))
    os.rename(log + ".pid", log)
    time.sleep(60)
log_ = log
Client(n_workers=1, threads_per_worker=1, initializer=start)
"""
    )
    wait_for(one.log.exists)
    one.workers = [int(one.log.read_text())]
    one.process.kill()
    one.finish()
    one.assert_nothing_left()
    here = set(os.listdir("/dev/shm") if os.path.isdir("/dev/shm") else ())
    assert not [name for name in here if f"-{one.process.pid}-" in name]


# -- output


def test_output_of_tasks_reaches_the_client(program):
    """What tasks print to standard output and error comes out at those of the client."""
    one = program(
        """
def speak(i):
    print(f"out {i}", flush=True)
    print(f"err {i}", file=sys.stderr, flush=True)
    os.write(1, b"raw\\n")

with Client(n_workers=2, threads_per_worker=1) as client:
    tell(client)
    client.gather(client.map(speak, range(2)))
    print("late", end="")
    client.submit(print, "not flushed by the task").result()
""",
        "-W",
        "error",
    )
    one.told()
    code, out, err = one.finish()
    assert code == 0
    assert sorted(err.split("\n")) == ["", "err 0", "err 1"]
    for text in ("out 0", "out 1", "raw", "late", "not flushed by the task"):
        assert text in out


def test_standard_streams_that_are_closed(program):
    """A program that closed its standard streams can start workers, as a daemon does."""
    one = program(
        """
for stream in (0, 2):
    os.close(stream)
with Client(n_workers=1, threads_per_worker=1) as client:
    assert client.submit(inc, 1).result() == 2
    tell(client)
sys.stderr = None
"""
    )
    one.told()
    assert one.finish()[0] == 0


def test_a_cluster_ends_with_its_block():
    """`with LocalCluster()` ends the workers; its clients' futures are cancelled."""
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster:
        client = Client(cluster)
        future = client.submit(time.sleep, 60)
        pids = [one["pid"] for one in client.scheduler_info()["workers"].values()]
    assert not still_running(pids, 5)
    assert future.cancelled()
    client.close()
