"""Ctrl-C in a terminal: the whole process group gets SIGINT; the client shows one traceback, and nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import localdist
from tests.support import still_running

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="process groups and SIGINT are POSIX's")

ROOT = Path(localdist.__file__).parent.parent

PROGRAM = """
import os, sys, threading, time
from localdist import Client, as_completed, wait

def begin(path, i):
    with open(path, "a") as file:
        file.write(f"{i}\\n")
    time.sleep(60)

how, path = sys.argv[1:]
client = Client(n_workers=2, threads_per_worker=1)
client.wait_for_workers(2)
futures = client.map(begin, [path] * 6, range(6), pure=False)
print(client.cluster._engine.values.folders.disk, *[w["pid"] for w in client.scheduler_info()["workers"].values()])
sys.stdout.flush()
if how == "result":
    futures[0].result()
elif how == "gather":
    client.gather(futures)
elif how == "wait":
    wait(futures)
elif how == "as_completed":
    for future in as_completed(futures):
        pass
elif how == "with gather":
    with client:
        client.gather(futures)
elif how == "exception":
    futures[0].exception()
else:
    time.sleep(60)
"""


@pytest.fixture
def program(tmp_path):
    """Start `PROGRAM` in a session of its own; end it in any case."""
    started = []

    def start(text, *args):
        process = subprocess.Popen(
            [sys.executable, "-c", text, *args],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for_lines(path, count, seconds=20):
    """Wait until so many tasks have begun."""
    deadline = time.monotonic() + seconds
    while not path.exists() or len(path.read_text().split()) < count:
        assert time.monotonic() < deadline
    return path.read_text().split()


def wait_until_blocked(pid, seconds=20):
    """Wait until the main thread of a process sleeps: nothing tells from outside that a call waits."""
    deadline = time.monotonic() + seconds
    while psutil.Process(pid).status() != psutil.STATUS_SLEEPING:
        assert time.monotonic() < deadline


@pytest.mark.parametrize("how", ["result", "gather", "wait", "as_completed", "with gather", "exception", "sleep"])
def test_ctrl_c(program, tmp_path, how):
    """One KeyboardInterrupt traceback, pending tasks never start, the children are gone within two seconds."""
    log = tmp_path / "begun"
    process = program(PROGRAM, how, str(log))
    folder, *pids = process.stdout.readline().decode().split()
    begun = wait_for_lines(log, 2)
    wait_until_blocked(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    assert not still_running(map(int, pids), seconds=2)
    out, err = (text.decode() for text in process.communicate(timeout=10))
    assert process.returncode == -signal.SIGINT
    assert out == ""
    assert err.startswith("Traceback (most recent call last):\n")
    assert err.count("Traceback") == 1
    assert err.splitlines()[-1] == "KeyboardInterrupt"
    assert log.read_text().split() == begun
    assert not os.path.exists(folder)


# Imports first: Python itself may swallow a Ctrl-C, or chain it to another error, while it imports.
STARTING = """
import sys, time
import loky, psutil
from localdist import Client

def note(path):
    open(path, "a").write("x")

print("ready", flush=True)
client = Client(n_workers=2, threads_per_worker=1, initializer=note, initargs=(sys.argv[1],))
time.sleep(60)
"""


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2])
def test_ctrl_c_while_workers_start(program, tmp_path, delay):
    """At whatever moment of the start it comes: one traceback, none of them from a worker, nothing left."""
    process = program(STARTING, str(tmp_path / "log"))
    process.stdout.readline()
    pressed = time.monotonic() + delay
    while time.monotonic() < pressed:
        continue
    children = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    os.killpg(process.pid, signal.SIGINT)
    out, err = (text.decode() for text in process.communicate(timeout=10))
    assert process.returncode == -signal.SIGINT
    assert err.count("Traceback") == 1, err
    assert err.splitlines()[-1] == "KeyboardInterrupt"
    assert not still_running(children, seconds=5)
    assert out == ""


GOING_ON = """
import os, signal, sys, time
from localdist import CancelledError, Client

def nap(i, seconds):
    time.sleep(seconds)
    return i

with Client(n_workers=1, threads_per_worker=1) as client:
    other = client.submit(nap, 1, 0.5)
    waited = [client.submit(nap, i, 0.5) for i in range(2, 5)]
    print("ready", flush=True)
    try:
        client.gather(waited)
    except KeyboardInterrupt:
        print("interrupted", [f.status for f in waited], flush=True)
    print(other.result(), client.submit(nap, 7, 0).result())
"""


def test_the_client_goes_on_after_ctrl_c(program):
    """Only what the interrupted call was waiting for is cancelled; workers ignore the signal, the client goes on."""
    process = program(GOING_ON)
    process.stdout.readline()
    wait_until_blocked(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    out, err = (text.decode() for text in process.communicate(timeout=20))
    assert out.splitlines() == ["interrupted ['cancelled', 'cancelled', 'cancelled']", "1 7"]
    assert err == ""
    assert process.returncode == 0
