"""What a client tells about its workers and tasks."""

from __future__ import annotations

import time

from localdist import Client
from tests.support import Gate, eventually, inc, wait_at


def test_threads_of_workers(client: Client) -> None:
    """`nthreads`, also called `ncores`, maps addresses to threads, of all workers or of those named."""
    threads = client.nthreads()
    assert list(threads.values()) == [1, 1]
    assert client.ncores() == threads
    one = next(iter(threads))
    assert client.nthreads([one]) == {one: 1}
    assert client.nthreads(["nobody"]) == {}


def test_scheduler_info(client: Client) -> None:
    """It describes the scheduler, and each worker with name, threads, memory, resources, status and pid."""
    info = client.scheduler_info()
    assert info["type"] == "Scheduler"
    assert info["address"] == client.address
    assert 0 < info["started"] <= time.time()
    assert {one["name"] for one in info["workers"].values()} == {0, 1}
    for one in info["workers"].values():
        assert {"nthreads", "memory_limit", "resources", "status", "pid", "local_directory"} <= one.keys()
        assert (one["nthreads"], one["resources"], one["status"]) == (1, {}, "running")
    assert len(client.scheduler_info(n_workers=1)["workers"]) == 1


def test_processing(client: Client, gate: Gate) -> None:
    """It lists the keys that each worker has been given; nothing when all is done."""
    assert all(keys == () for keys in client.processing().values())
    futures = client.map(wait_at, [gate.address] * 2, pure=False)
    gate.wait_for(2)
    assert sorted(client.processing().values()) == sorted((f.key,) for f in futures)
    gate.open()
    client.gather(futures)
    assert client.processing() == dict.fromkeys(client.nthreads(), ())


def test_who_has(client: Client, gate: Gate) -> None:
    """A finished result is within reach of every worker, an unfinished one of none."""
    done, running = client.submit(inc, 1), client.submit(wait_at, gate.address)
    done.result()
    workers = tuple(client.nthreads())
    assert client.who_has([done, running]) == {done.key: workers, running.key: ()}
    assert client.who_has()[done.key] == workers
    gate.wait_for()
    gate.open()


def test_story(client: Client) -> None:
    """It tells what happened to a key, oldest first, of a future or by its name."""
    future = client.submit(inc, 1, key="told")
    future.result()
    eventually(client, lambda: client.story(future))
    lines = client.story("told")
    assert lines == client.story(future)
    assert any(str(client.address) in line for line in lines), "where it ran is a part of it"
    assert client.story("unheard") == []
