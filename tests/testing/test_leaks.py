"""The leak guard sees each kind of leak, names it, waits for what is about to end, and is silent otherwise."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from localdist.testing import LeakError, Snapshot, find_leaks, leak_guard

if TYPE_CHECKING:
    from collections.abc import Iterator

AT_ONCE = 0.0  # seconds: what the test leaves is not about to end
UNTIL_STDIN_CLOSES = [sys.executable, "-c", "input()"]
POSIX_ONLY = pytest.mark.skipif(sys.platform == "win32", reason="descriptors are not counted on Windows")


@contextlib.contextmanager
def waiting_thread(name: str) -> Iterator[threading.Thread]:
    over = threading.Event()
    thread = threading.Thread(target=over.wait, name=name)
    thread.start()
    try:
        yield thread
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def waiting_process(command: list[str] = UNTIL_STDIN_CLOSES) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        yield process


def own_segment(folder: str) -> Path:
    """Make a folder as a client of this process would name it."""
    created = int(psutil.Process().create_time())
    return Path(tempfile.mkdtemp(prefix=f"localdist-some-user-{os.getpid()}-{created}-", dir=folder))


def do_nothing() -> None:
    pass


def test_nothing_left_is_no_leak() -> None:
    """A body that leaves nothing passes."""
    with leak_guard(AT_ONCE):
        pass


def test_thread_is_named() -> None:
    """A thread that still runs is a leak, named by its name."""
    before = Snapshot.take()
    with waiting_thread("localdist-forgotten") as thread:
        leaks = find_leaks(before, AT_ONCE)
        assert leaks.threads == (thread,)
        assert "thread 'localdist-forgotten'" in str(leaks)
    assert not find_leaks(before)


def test_calling_thread_is_no_leak() -> None:
    """Whoever looks is not a leak itself, even when it was started after the first snapshot."""
    before, found = Snapshot.take(), []
    thread = threading.Thread(target=lambda: found.append(find_leaks(before, AT_ONCE)))
    thread.start()
    thread.join()
    assert not found[0]


def test_thread_about_to_end_is_waited_for() -> None:
    """A thread that ends when it is joined is not a leak."""
    asked = threading.Event()

    class EndsWhenJoined(threading.Thread):
        def run(self) -> None:
            asked.wait()

        def join(self, timeout: float | None = None) -> None:
            asked.set()
            super().join(timeout)

    with leak_guard():
        EndsWhenJoined(daemon=True).start()  # daemon: should the guard not join it, pytest still ends
    assert asked.is_set()


def test_process_is_named() -> None:
    """A child that still runs is a leak, named by its pid and command."""
    before = Snapshot.take()
    with waiting_process() as process:
        leaks = find_leaks(before, AT_ONCE)
        assert [p.pid for p in leaks.processes] == [process.pid]
        assert f"process {process.pid} (" in str(leaks)
        assert "input()" in str(leaks)


def test_grandchild_is_found() -> None:
    """A child's own child is a leak too."""
    script = """if True:
        import subprocess, sys
        with subprocess.Popen([sys.executable, "-c", "input()"]) as process:
            print(process.pid, flush=True)
    """
    before = Snapshot.take()
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        assert child.stdout is not None
        grandchild = int(child.stdout.readline())
        assert {p.pid for p in find_leaks(before, AT_ONCE).processes} == {child.pid, grandchild}


def test_process_about_to_end_is_waited_for() -> None:
    """A child that was told to end, and that nobody waited for, is not a leak once it has ended."""
    with leak_guard():
        process = subprocess.Popen(UNTIL_STDIN_CLOSES, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert process.stdin is not None
        process.stdin.close()
    assert not psutil.pid_exists(process.pid)
    process.wait()


def test_ended_multiprocessing_child_is_reaped_by_its_owner() -> None:
    """Waiting for a multiprocessing child leaves its exit code with its own object."""
    before = Snapshot.take()
    process = multiprocessing.get_context("spawn").Process(target=do_nothing)
    process.start()
    # The object holds descriptors until it is closed; here only the process shall be new.
    assert not find_leaks(dataclasses.replace(Snapshot.take(), processes=before.processes))
    assert process.exitcode == 0
    process.close()


def test_helpers_of_loky_and_multiprocessing_are_no_leak() -> None:
    """Resource trackers, which live as long as the interpreter, do not count, nor do the pipes to them."""
    script = """if True:
        import loky, os
        from localdist.testing import leak_guard
        with leak_guard():
            process = loky.backend.get_context("loky").Process(target=os.getpid)
            process.start()
            process.join()
            del process
            from multiprocessing import resource_tracker
            resource_tracker.ensure_running()
        import psutil
        print(len(psutil.Process().children()))
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # Else nothing would have been left out, and this test would hold nothing.
    assert int(done.stdout) >= 1


@POSIX_ONLY
def test_descriptor_is_named() -> None:
    """A descriptor more than before is a leak, named by its number and target."""
    before = Snapshot.take()
    read, write = os.pipe()
    leaks = find_leaks(before, AT_ONCE)
    os.close(read)
    os.close(write)
    assert [number for number, _ in leaks.descriptors] == sorted([read, write])
    assert f"descriptor {read} -> pipe" in str(leaks)


@POSIX_ONLY
def test_closing_one_makes_no_room_for_another(tmp_path: Path) -> None:
    """A leaked descriptor is seen although another one was closed meanwhile."""
    first = os.open(tmp_path / "first", os.O_CREAT | os.O_WRONLY)
    before = Snapshot.take()
    os.close(first)
    second = os.open(tmp_path / "second", os.O_CREAT | os.O_WRONLY)
    leaks = find_leaks(before, AT_ONCE)
    os.close(second)
    assert [number for number, _ in leaks.descriptors] == [second]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the path of a descriptor")
def test_files_of_an_older_segment_folder_are_no_leak() -> None:
    """A client that outlives the body may open and keep segments in its folder."""
    segment = own_segment(tempfile.gettempdir())
    file = segment / "warm"
    with leak_guard(AT_ONCE):
        descriptor = os.open(file, os.O_CREAT | os.O_WRONLY)
    os.close(descriptor)
    file.unlink()
    segment.rmdir()


@POSIX_ONLY
def test_what_only_a_cycle_keeps_is_no_leak(tmp_path: Path) -> None:
    """Garbage is collected before the guard complains."""

    class Holder:
        def __init__(self) -> None:
            self.itself = self
            self.descriptor = os.open(tmp_path / "held", os.O_CREAT | os.O_WRONLY)

        def __del__(self) -> None:
            os.close(self.descriptor)

    with leak_guard():
        Holder()


@pytest.mark.parametrize("where", ["temporary", "shared"])
def test_segment_is_named(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of this process, in either place, is a leak, named by its path."""
    monkeypatch.setenv("LOCALDIST_SHARED_FOLDER", str(tmp_path))
    before = Snapshot.take()
    segment = own_segment(tempfile.gettempdir() if where == "temporary" else str(tmp_path))
    leaks = find_leaks(before, AT_ONCE)
    segment.rmdir()
    assert leaks.segments == (str(segment),)
    assert f"segment {segment}" in str(leaks)


def test_segment_about_to_vanish_is_waited_for() -> None:
    """A folder that another thread is removing is not a leak."""
    looked = threading.Event()

    class Tells(dict[int, str]):
        """The first snapshot's descriptors; asked for at each comparison."""

        def items(self):
            looked.set()
            return super().items()

    taken = Snapshot.take()
    before = Snapshot(taken.threads, taken.processes, Tells(taken.descriptors), taken.segments)
    segment = own_segment(tempfile.gettempdir())

    def remove_once_seen() -> None:
        looked.wait()
        segment.rmdir()

    remover = threading.Thread(target=remove_once_seen)
    remover.start()
    assert not find_leaks(before)
    assert not segment.exists()


@pytest.mark.parametrize("name", ["localdist-me-{other}-17-0123abcd", "localdist-{own}", "other-me-{own}-17-0123abcd"])
def test_folders_of_others_are_no_leak(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of other processes and with other names are not this process's business."""
    monkeypatch.setenv("LOCALDIST_SHARED_FOLDER", str(tmp_path))
    with leak_guard(AT_ONCE):
        (tmp_path / name.format(own=os.getpid(), other=os.getppid())).mkdir()


def test_guard_raises_with_the_leaks() -> None:
    """The context manager raises an AssertionError that names and carries what is left."""
    with contextlib.ExitStack() as cleanup:
        with (
            pytest.raises(LeakError, match=r"^left over at the end: thread 'forgotten'$") as caught,
            leak_guard(AT_ONCE),
        ):
            thread = cleanup.enter_context(waiting_thread("forgotten"))
        assert isinstance(caught.value, AssertionError)
        assert caught.value.leaks.threads == (thread,)


def test_exception_of_the_body_comes_first() -> None:
    """A body that fails shows its own error, not the leaks which follow from it."""

    def leak_and_fail() -> None:
        cleanup.enter_context(waiting_thread("forgotten"))
        raise ZeroDivisionError

    with contextlib.ExitStack() as cleanup, pytest.raises(ZeroDivisionError), leak_guard(AT_ONCE):
        leak_and_fail()
