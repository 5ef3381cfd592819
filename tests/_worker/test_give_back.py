"""What a worker does with tasks that it gives back: the end of the rule in `_worker._codec` and `_runner`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from localdist import Client
from tests.support import eventually, settled, wait_at

if TYPE_CHECKING:
    from tests.support import Gate


def first(array: Any, _number: int) -> float:
    return float(array[0])


def perhaps_wait(address: Any, _number: int) -> None:
    if address is not None:
        wait_at(address)


@pytest.mark.slow
def test_inputs_of_released_tasks_are_freed(gate: Gate) -> None:
    """A large input of tasks that were at a worker and released before they began is freed when they are given back."""
    with Client(n_workers=1, threads_per_worker=1) as client:
        # Both functions are known to be quick, so that many tasks wait behind one that takes long for once.
        for function, argument in ((perhaps_wait, None), (first, [1.0])):
            client.gather(client.map(function, [argument] * 50, range(50)))
        blocker = client.submit(perhaps_wait, gate.address, -1)
        gate.wait_for(1)
        array = client.scatter(np.arange(300_000))
        waiting = client.map(first, [array] * 20, range(20))
        settled(client)
        assert sum(len(keys) for keys in client.processing().values()) > 1
        assert client._transport.inspect("statistics")["total_bytes"] > 2_000_000
        del array, waiting
        settled(client)
        gate.open()
        blocker.result()
        eventually(client, lambda: client._transport.inspect("statistics")["total_bytes"] == 0)
