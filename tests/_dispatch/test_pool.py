"""Worker processes as the client sees them: the functions that each of them has."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import pytest

from localdist import Client
from localdist._dispatch import _pool

if TYPE_CHECKING:
    from collections.abc import Callable

MB = 2**20


def carrying(size: int, tag: int) -> Callable[[int], tuple[int, int]]:
    """Make a function that carries so many bytes."""
    data = bytes([tag]) * size

    def function(x: int) -> tuple[int, int]:
        return len(data), data[0] + x

    return function


def functions_kept(_x: Any = None) -> list[int]:
    """Say how many functions each task channel of this process has."""
    from localdist._worker._process import PipeChannel

    return [len(o._functions) for o in gc.get_objects() if type(o) is PipeChannel]


@pytest.mark.slow
def test_large_functions_are_forgotten_by_size() -> None:
    """What a worker keeps of functions that carry much is bounded in bytes; a forgotten one is sent again and works."""
    with Client(n_workers=1, threads_per_worker=1) as client:
        functions = [carrying(3 * MB, tag) for tag in range(9)]
        (worker,) = client.cluster._engine.crew.workers
        assert isinstance(worker, _pool.ProcessWorker)
        for _ in range(2):
            for tag, function in enumerate(functions):
                assert client.submit(function, 1, pure=False).result() == (3 * MB, tag + 1)
                assert worker._known_bytes == sum(worker._known.values()) <= _pool.FUNCTIONS_BYTES
        assert len(worker._known) == 5
        assert client.run(functions_kept) == {worker.record.address: [5]}
        alone = carrying(_pool.FUNCTIONS_BYTES + MB, 3)
        for _ in range(2):
            assert client.gather(client.map(alone, [1, 2], pure=False)) == [(17 * MB, 4), (17 * MB, 5)]
        assert (worker._known, worker._known_bytes) == ({}, 0)
        assert client.submit(functions[0], 1, pure=False).result() == (3 * MB, 1)


def test_small_functions_are_forgotten_by_number() -> None:
    """Of many small functions the ones used last are kept."""
    with Client(n_workers=1, threads_per_worker=1) as client:
        (worker,) = client.cluster._engine.crew.workers
        assert isinstance(worker, _pool.ProcessWorker)
        first = carrying(10, 0)
        for tag in range(300):
            assert client.submit(carrying(10, tag % 256), 0, pure=False).result() == (10, tag % 256)
            assert client.submit(first, 1, pure=False).result() == (10, 1)
        assert len(worker._known) == _pool.FUNCTIONS_KEPT
        assert client.run(functions_kept) == {worker.record.address: [_pool.FUNCTIONS_KEPT]}


def test_the_client_lets_go_of_the_function_of_a_finished_task(client: Client) -> None:
    """A future of a finished task holds neither its call nor the function, which may carry large data."""
    future = client.submit(carrying(MB, 1), 1)
    assert future.result() == (MB, 2)
    assert future._entry is not None
    assert (future._entry.function, future._entry.call) == (None, None)
