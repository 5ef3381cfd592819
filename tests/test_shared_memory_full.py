"""Shared memory that is small or full costs speed, never a value or a process; when all is full, one task."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest

from localdist import Client
from localdist.errors import StoreFullError
from tests.support import eventually, inc

MB = 1024 * 1024

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")


@pytest.fixture
def tmpfs(tmp_path):
    """Mount file systems in memory with so many megabytes; skip where that is not permitted."""
    mounted = []

    def mount(name, megabytes):
        folder = tmp_path / name
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"mounting a tmpfs is not permitted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    try:
        yield mount
    finally:
        for folder in mounted:
            subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def small(tmpfs, monkeypatch):
    """A client's shared memory has 64 MB, as in a container, and its disk folder is where it always is."""
    folder = tmpfs("shm", 64)
    monkeypatch.setenv("LOCALDIST_SHARED_FOLDER", str(folder))
    return folder


@pytest.fixture
def full(small, tmpfs, monkeypatch):
    """Besides, the disk has room for 100 MB only."""
    folder = tmpfs("disk", 100)
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def ones(megabytes):
    return np.ones(megabytes * MB, np.uint8)


def total(array):
    return int(array.sum(dtype=np.int64))


def used(folder):
    found = os.statvfs(folder)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


@contextlib.contextmanager
def spills():
    """Collect the warnings that values go to disk; in tests all others are errors."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", "shared memory has no room", RuntimeWarning)
        yield caught


def test_200_mb_result_and_argument(small):
    """A result, an argument, and a result as an argument of 200 MB arrive over the disk, with one warning in all."""
    with spills() as caught, Client(n_workers=2, threads_per_worker=1) as client:
        made = client.submit(ones, 200)
        assert client.submit(total, made).result(60) == 200 * MB
        array = made.result()
        assert array.nbytes == 200 * MB
        array[0] = 2  # writeable, and nobody else sees it
        assert client.submit(total, array).result(60) == 200 * MB + 1
        assert client.submit(total, made, pure=False).result(60) == 200 * MB
        pids = {one["pid"] for one in client.scheduler_info()["workers"].values()}
        assert len(pids) == 2
        assert "killed" not in str(client.story(made)).lower()
        del array, made
    assert len(caught) == 1
    assert used(small) < 1 * MB


def test_many_values_overflow_in_the_middle(small):
    """Values that fit one by one and not together: those that came too late lie on disk, all are right."""
    with spills() as caught, Client(n_workers=2, threads_per_worker=1) as client:
        futures = client.map(ones, [10] * 12, pure=False)
        sums = client.map(total, futures)
        assert client.gather(sums) == [10 * MB] * 12
        assert all(total(future.result()) == 10 * MB for future in futures)
    assert len(caught) == 1


def test_released_values_make_room(small):
    """Many times the size of shared memory goes through it without ever touching the disk, if it is released."""
    with spills() as caught, Client(n_workers=1, threads_per_worker=1) as client:
        for _ in range(20):
            future = client.submit(ones, 20, pure=False)
            assert total(future.result()) == 20 * MB
            del future
            eventually(client, lambda: used(small) <= 45 * MB)
    assert caught == []


def test_too_large_a_result_for_both(full):
    """A result that fits nowhere fails its task with StoreFullError, which names both folders; the rest lives on."""
    with spills(), Client(n_workers=2, threads_per_worker=1) as client:
        future = client.submit(ones, 150)
        user = client.submit(total, future)
        for one in (future, user):
            with pytest.raises(StoreFullError) as caught:
                one.result(60)
            assert caught.value.nbytes > 150 * MB
            assert len(caught.value.folders) == 2
            assert all("No space left" in why for why in caught.value.folders.values())
        assert client.submit(total, client.submit(ones, 5)).result(60) == 5 * MB
        assert client.submit(inc, 1).result(60) == 2
        assert len(client.scheduler_info()["workers"]) == 2


def test_too_large_an_argument_for_both(full):
    """An argument that fits nowhere raises StoreFullError from `submit` and `scatter`; nothing of it is left."""
    with spills(), Client(n_workers=1, threads_per_worker=1) as client:
        array = ones(150)
        for call in (lambda: client.submit(total, array), lambda: client.scatter(array)):
            with pytest.raises(StoreFullError, match="no room for a value of 15"):
                call()
        assert used(full) < MB
        assert client.submit(total, ones(5)).result(60) == 5 * MB
        eventually(client, lambda: client.futures == {})


def test_both_full_then_released(full):
    """When both are full one task fails, and works when it is retried after others were released."""
    with spills(), Client(n_workers=1, threads_per_worker=1) as client:
        kept = client.map(ones, [20] * 6, pure=False)
        assert client.gather(client.map(total, kept)) == [20 * MB] * 6
        late = client.submit(ones, 50)
        assert type(late.exception(60)) is StoreFullError
        del kept
        eventually(client, lambda: used(full) < 40 * MB)
        client.retry(late)
        assert total(late.result(60)) == 50 * MB


def test_warnings_that_are_errors(small, caplog):
    """Where warnings are errors the client's own call raises it; from a worker it is logged, and harms nothing."""
    with Client(n_workers=1, threads_per_worker=1) as client:
        assert client.submit(total, client.submit(ones, 100)).result(60) == 100 * MB
        assert "shared memory has no room" in caplog.text
        assert client.submit(total, ones(101)).result(60) == 101 * MB  # one warning in all
    with Client(n_workers=1, threads_per_worker=1) as client:
        array = ones(100)
        with pytest.raises(RuntimeWarning, match="shared memory has no room"):
            client.scatter(array)
        assert client.submit(inc, 1).result(60) == 2


def test_no_shared_memory_at_all(monkeypatch):
    """With an empty LOCALDIST_SHARED_FOLDER everything goes to disk, without a warning."""
    monkeypatch.setenv("LOCALDIST_SHARED_FOLDER", "")
    with Client(n_workers=1, threads_per_worker=1) as client:
        made = client.submit(ones, 20)
        assert total(made.result(60)) == 20 * MB
        assert client.submit(total, made).result(60) == 20 * MB


def test_a_folder_that_does_not_exist(monkeypatch):
    """A folder that cannot be used is an error of `Client()` that names the variable and the folder."""
    monkeypatch.setenv("LOCALDIST_SHARED_FOLDER", "/no/such/folder")
    with pytest.raises(OSError, match=r"LOCALDIST_SHARED_FOLDER.*'/no/such/folder'"):
        Client(n_workers=1, threads_per_worker=1)
