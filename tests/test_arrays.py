"""Arrays and other large values: writeable and private everywhere, stored once, freed with their last holder."""

from __future__ import annotations

import gc
import os
from typing import Any

import numpy as np
import pandas as pd
import pytest

from localdist import Client
from tests.support import Gate, eventually, identity, wait_at

KB, MB = 1_000, 1_000_000


@pytest.fixture(scope="module")
def store() -> Any:
    """Give a client whose store nobody else uses."""
    client = Client(n_workers=2, threads_per_worker=1)
    client.wait_for_workers(2)
    yield client
    client.close()


def live_bytes(client: Client) -> int:
    """Count the bytes in segments that somebody wants; warm ones that wait for reuse are not counted."""
    return int(client._transport.inspect("statistics")["total_bytes"])


def scribble(array: Any) -> tuple[bool, Any]:
    """Write into an argument; say whether that was allowed, and what was there before."""
    before = array[0].copy()
    writeable = array.flags.writeable
    array[:] = -1
    return writeable, before


def ones(size: int) -> Any:
    return np.ones(size // 8)


@pytest.mark.parametrize("size", [KB, 40 * KB, MB, pytest.param(100 * MB, marks=pytest.mark.slow)])
def test_every_reader_may_write_and_nobody_sees_it(store: Client, size: int) -> None:
    """Arguments, results and scattered arrays are writeable at every size; what is written stays with the writer."""
    mine = ones(size)
    scattered, result = store.scatter(mine, hash=False), store.submit(ones, size, pure=False)
    for source in (mine, scattered, result):
        assert store.gather([store.submit(scribble, source, pure=False) for _ in range(3)]) == [(True, 1.0)] * 3
    assert mine[0] == 1.0
    for future in (scattered, result):
        here = future.result()
        assert here.flags.writeable
        here[:] = -1
        again = future.result()
        assert again[0] == again[-1] == 1.0


def test_read_only_arrays_stay_read_only(store: Client) -> None:
    """An array that its owner made read-only arrives so."""
    array = ones(MB)
    array.flags.writeable = False
    assert not store.scatter(array, hash=False).result().flags.writeable


@pytest.mark.slow
def test_equal_large_arguments_are_stored_once(store: Client, gate: Gate) -> None:
    """The same 100 MB array given to 20 tasks takes its size once, and is freed when they are gone."""
    eventually(store, lambda: live_bytes(store) == 0)
    array = ones(100 * MB)
    blockers = store.map(wait_at, [gate.address] * 2, pure=False)
    gate.wait_for(2)
    futures = [store.submit(total, array, i) for i in range(20)]
    assert 100 * MB <= live_bytes(store) <= 101 * MB
    gate.open()
    store.gather(blockers)
    assert store.gather(futures) == [array.size + i for i in range(20)]
    del futures
    eventually(store, lambda: live_bytes(store) == 0)


def total(array: Any, plus: int) -> float:
    return float(array.sum()) + plus


def test_changed_arguments_are_stored_anew(store: Client) -> None:
    """What was written into an array between two submits is seen by the second task: equality is of content."""
    array = ones(MB)
    first = store.submit(total, array, 0)
    array[0] = 11
    second = store.submit(total, array, 0)
    assert first.key != second.key
    assert store.gather([first, second]) == [array.size, array.size + 10]


def test_large_keywords_of_map_are_stored_once(store: Client, gate: Gate) -> None:
    """A large keyword argument of `map` is stored once for all its calls, and goes with the last of them."""
    eventually(store, lambda: live_bytes(store) == 0)
    blockers = store.map(wait_at, [gate.address] * 2, pure=False)
    gate.wait_for(2)
    futures = store.map(total_of_keyword, range(50), array=ones(4 * MB), frame=pd.DataFrame({"x": ones(MB)}))
    assert 5 * MB <= live_bytes(store) < 6 * MB
    gate.open()
    store.gather(blockers)
    assert store.gather(futures) == [i + ones(4 * MB).size for i in range(50)]
    del futures
    eventually(store, lambda: live_bytes(store) == 0)


def total_of_keyword(plus: int, array: Any, frame: Any) -> float:
    assert len(frame) == MB // 8
    return float(array.sum()) + plus


def test_large_arguments_are_freed_when_their_task_has_ended(store: Client) -> None:
    """A stored argument goes when its task has run, though the task's future lives."""
    eventually(store, lambda: live_bytes(store) == 0)
    future = store.submit(len, ones(MB), pure=False)
    assert future.result() == MB // 8
    eventually(store, lambda: live_bytes(store) == 0)


@pytest.mark.parametrize("give_up", ["del", "release", "cancel"])
def test_results_are_freed_with_their_future(store: Client, give_up: str) -> None:
    """Dropping, releasing or cancelling the last future frees its segment; views that the client has stay valid."""
    eventually(store, lambda: live_bytes(store) == 0)
    future = store.submit(ones, 2 * MB, pure=False)
    view = future.result()
    assert live_bytes(store) >= 2 * MB
    if give_up == "release":
        future.release()
    elif give_up == "cancel":
        future.cancel()
    del future
    assert view.sum() == view.size
    assert view[0] == 1.0
    other = store.submit(np.zeros, view.size, pure=False)
    assert other.result().sum() == 0
    assert view.sum() == view.size, "memory that is still looked at is not used again"
    del view, other
    gc.collect()
    eventually(store, lambda: live_bytes(store) == 0)


def test_failed_calls_free_their_arguments(store: Client) -> None:
    """The arguments of a failed task go with its future."""
    eventually(store, lambda: live_bytes(store) == 0)
    future = store.submit(int, ones(MB), pure=False)
    assert isinstance(future.exception(), TypeError)
    del future
    eventually(store, lambda: live_bytes(store) == 0)


def test_segments_are_files_that_go(store: Client) -> None:
    """Large values are files in the client's own folders, which go with `close`."""
    with Client(n_workers=1, threads_per_worker=1) as client:
        folders = client.cluster._engine.values.folders.all
        futures = [client.submit(ones, MB, pure=False) for _ in range(3)] + [client.scatter(ones(2 * MB))]
        client.gather(futures)
        assert sum(len(os.listdir(folder)) for folder in folders) >= 2
    assert not any(os.path.exists(folder) for folder in folders)


def test_tables_and_nested_arrays(store: Client) -> None:
    """Frames, dicts of arrays, and arrays that are no plain block of memory arrive equal."""
    frame = pd.DataFrame({"a": np.arange(50_000), "b": np.arange(50_000) * 0.5, "c": ["x"] * 50_000})
    pd.testing.assert_frame_equal(store.submit(identity, frame).result(), frame)
    values: dict[str, Any] = {"x": np.arange(100_000), "y": [np.ones((300, 300), order="F"), np.arange(100_000)[::2]]}
    back = store.submit(identity, values).result()
    assert np.array_equal(back["x"], values["x"])
    for got, given in zip(back["y"], values["y"], strict=True):
        assert np.array_equal(got, given)
    objects = np.array([{"a": 1}, None, "text"] * 10, dtype=object)
    assert store.submit(identity, objects).result().tolist() == objects.tolist()


def test_large_bytes_and_text(store: Client) -> None:
    """Bytes, text and lists beyond what travels in a message arrive equal, as arguments, elements and results."""
    for value in (b"x" * MB, "y" * MB, list(range(100_000)), {"k": "z" * 200_000}, bytearray(b"x" * MB)):
        assert store.submit(identity, value).result() == value
        assert store.map(identity, [value])[0].result() == value
        assert store.scatter([value])[0].result() == value


def test_the_first_arrays_of_a_worker_with_two_slots() -> None:
    """Two slots of a worker that has not imported NumPy yet may be given arrays at the same time."""
    # They are rebuilt by functions of different modules, each of which is imported when it is first needed.
    values = [np.arange(3), np.float64(1.5), np.array([None])]
    for _ in range(4):
        with Client(n_workers=1, threads_per_worker=2) as client:
            assert client.gather(client.map(str, values)) == ["[0 1 2]", "1.5", "[None]"]


def test_chains_of_large_values(store: Client) -> None:
    """Large values pass from task to task; those in between are freed as they are used up."""
    eventually(store, lambda: live_bytes(store) == 0)
    future = store.submit(ones, 2 * MB, pure=False)
    for _ in range(10):
        future = store.submit(np.add, future, 1)
    assert future.result()[0] == 11
    eventually(store, lambda: live_bytes(store) < 5 * MB)
    del future
    eventually(store, lambda: live_bytes(store) == 0)
