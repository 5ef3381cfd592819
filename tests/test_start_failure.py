from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from localdist import Client, LocalCluster
from localdist.errors import WorkerStartError, WorkerStartTimeoutError
from tests.support import eventually, inc, note, notes, pid

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the ways to fail are POSIX's")


@pytest.fixture(autouse=True)
def helpers():
    """Start the helper processes of multiprocessing and loky, which live as long as this interpreter."""
    from multiprocessing import resource_tracker

    from loky.backend import resource_tracker as loky_resource_tracker

    resource_tracker.ensure_running()
    loky_resource_tracker.ensure_running()


def start():
    """Start a client that is expected not to start."""
    with Client(n_workers=2, threads_per_worker=1):
        pass


def raise_error(text):
    raise ValueError(text)


def leave(code):
    os._exit(code)


def test_no_interpreter(monkeypatch):
    """An interpreter that does not exist: the error says so, with its path."""
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(WorkerStartError, match=r"/no/such/python.*No such file"):
        start()


def test_an_interpreter_that_fails(monkeypatch, tmp_path):
    """An interpreter that ends at once: its exit code, and what it prints to standard error."""
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho it is broken >&2\nexit 4\n")
    fake.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(fake))
    with pytest.raises(WorkerStartError, match="it is broken") as caught:
        start()
    assert caught.value.exitcode == 4


def test_sitecustomize_that_ends_the_process(monkeypatch, tmp_path):
    """What the environment does to every new interpreter is seen in the error."""
    (tmp_path / "sitecustomize.py").write_text("import os\nos.write(2, b'not today')\nos._exit(5)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(WorkerStartError, match="not today") as caught:
        start()
    assert caught.value.exitcode == 5


def test_segfault_at_start(monkeypatch, tmp_path):
    """A signal at start is named."""
    (tmp_path / "sitecustomize.py").write_text("import os\nos.kill(os.getpid(), 11)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(WorkerStartError, match="SIGSEGV") as caught:
        start()
    assert caught.value.exitcode == -signal.SIGSEGV


def test_a_module_that_is_missing_in_the_child(monkeypatch, tmp_path):
    """A module that the child cannot import is named in the error."""
    (tmp_path / "loky.py").write_text("")  # hides the package
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(WorkerStartError, match=r"loky.*is not a package"):
        start()


def test_initializer_that_raises():
    """The traceback of an initializer that raises is in the error."""
    with pytest.raises(WorkerStartError, match=r"(?s)raise_error.*ValueError: no licence") as caught:
        Client(n_workers=2, threads_per_worker=1, initializer=raise_error, initargs=("no licence",))
    assert caught.value.exitcode == 1


def test_initializer_that_exits():
    """SystemExit in an initializer is an error like others, and names itself."""
    with pytest.raises(WorkerStartError, match="SystemExit: 6"):
        Client(n_workers=2, threads_per_worker=1, initializer=sys.exit, initargs=(6,))


def test_initializer_that_ends_the_process():
    """An initializer that ends the process without a word: the exit code is all there is to say."""
    with pytest.raises(WorkerStartError, match="exited with code 8"):
        Client(n_workers=2, threads_per_worker=1, initializer=leave, initargs=(8,))


def test_initializer_that_cannot_be_unpickled(tmp_path, monkeypatch):
    """An initializer whose module exists in the client only: the error names the module."""
    folder = tmp_path / "only_here"
    folder.mkdir()
    module = folder / "vanishing.py"
    module.write_text("def start(): pass\n")
    monkeypatch.syspath_prepend(str(folder))
    import vanishing  # type: ignore[import-not-found]

    module.unlink()
    with pytest.raises(WorkerStartError, match="No module named 'vanishing'"):
        Client(n_workers=1, threads_per_worker=1, initializer=vanishing.start)


def wait_for_ever():
    threading.Event().wait()


def linger_and_raise():
    threading.Thread(target=threading.Event().wait).start()
    raise ValueError("and a thread goes on")


def test_threads_of_a_failed_initializer_do_not_keep_the_worker():
    """A worker that cannot start ends, though its initializer has started a thread that never ends."""
    with pytest.raises(WorkerStartError, match="a thread goes on"):
        Client(n_workers=1, threads_per_worker=1, initializer=linger_and_raise)


def test_initializer_that_takes_too_long():
    """When the time is over: an error that counts the workers, and no process is left."""
    with pytest.raises(WorkerStartTimeoutError) as caught:
        Client(n_workers=2, threads_per_worker=1, initializer=wait_for_ever, timeout="0.3 s")
    assert (caught.value.available_workers, caught.value.expected_workers) == (0, 1)


@pytest.mark.parametrize("how", [raise_error, leave])
def test_long_arguments_of_a_failing_initializer(how, monkeypatch, tmp_path):
    """Ten megabytes for a child that never reads them hang nobody."""
    (tmp_path / "sitecustomize.py").write_text("import os\nos._exit(5)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(WorkerStartError, match="exited with code 5"):
        LocalCluster(n_workers=1, threads_per_worker=1, initializer=how, initargs=(b"x" * 10_000_000,))


def test_long_arguments_arrive(tmp_path):
    """Ten megabytes of arguments reach an initializer."""
    path = str(tmp_path / "log")
    with Client(n_workers=1, threads_per_worker=1, initializer=note_length, initargs=(path, b"x" * 10_000_000)):
        assert notes(path) == ["10000000"]


def note_length(path, value):
    note(path, len(value))


def note_pid(path):
    note(path, os.getpid())


def test_initializer_runs_once_in_every_worker(tmp_path):
    """Every worker calls the initializer once, before its first task; replacements and restarted ones too."""
    path = str(tmp_path / "log")

    def workers():
        return {one["pid"] for one in client.scheduler_info()["workers"].values()}

    with Client(n_workers=2, threads_per_worker=1, initializer=note_pid, initargs=(path,)) as client:
        client.wait_for_workers(2, 20)
        first = workers()
        assert sorted(map(int, notes(path))) == sorted(first)
        victim = client.submit(pid).result(20)
        os.kill(victim, signal.SIGKILL)
        eventually(client, lambda: len(workers() - {victim}) == 2)
        second = workers() - first
        assert sorted(map(int, notes(path))) == sorted(first | second)
        client.restart()
        client.wait_for_workers(2, 20)
        assert sorted(map(int, notes(path))) == sorted(first | second | workers())
        ran = [int(line) for line in notes(path)]
        assert len(ran) == len(set(ran)) == 5
        assert client.submit(inc, 1).result(20) == 2


def test_start_errors_leave_no_folder(tmp_path, monkeypatch):
    """Neither shared memory nor the disk keeps anything of a client that could not start."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(WorkerStartError):
        Client(n_workers=1, threads_per_worker=1, initializer=raise_error, initargs=("no",))
    assert list(Path(tmp_path).iterdir()) == []
