"""`LocalCluster`: workers for one or several clients, and how their number and size are chosen."""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest

from localdist import CancelledError, Client, ClosedClientError, LocalCluster, as_completed, wait
from localdist._cluster import format_bytes, layout, parse_bytes
from tests.support import Gate, inc, wait_at


@pytest.mark.parametrize(
    ("cores", "n_workers", "threads", "processes", "expected"),
    [
        (1, None, None, True, (1, 1)),
        (2, None, None, True, (2, 1)),
        (4, None, None, True, (4, 1)),
        (6, None, None, True, (3, 2)),
        (7, None, None, True, (7, 1)),
        (8, None, None, True, (4, 2)),
        (9, None, None, True, (3, 3)),
        (12, None, None, True, (4, 3)),
        (16, None, None, True, (4, 4)),
        (32, None, None, True, (8, 4)),
        (64, None, None, True, (8, 8)),
        (8, None, None, False, (1, 8)),
        (8, 3, None, True, (3, 3)),
        (8, 16, None, True, (16, 1)),
        (8, None, 2, True, (4, 2)),
        (2, None, 4, True, (1, 4)),
        (8, 2, 1, True, (2, 1)),
        (8, 2, None, False, (2, 4)),
    ],
)
def test_layout(cores: int, n_workers: Any, threads: Any, processes: bool, expected: tuple[int, int]) -> None:
    """Workers and threads that are not given follow from the number of cores by Dask's rule."""
    assert layout(cores, n_workers, threads, processes) == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("4GB", 4 * 10**9),
        ("500 MiB", 500 * 2**20),
        (1000, 1000),
        (1.5e3, 1500),
        ("1e3", 1000),
        ("2 kb", 2000),
        ("7", 7),
    ],
)
def test_sizes(size: Any, expected: int) -> None:
    """Sizes are numbers of bytes, or texts with a unit."""
    assert parse_bytes(size) == expected


@pytest.mark.parametrize("size", ["much", "4 XB", "", True])
def test_no_sizes(size: Any) -> None:
    """Anything else is a ValueError."""
    with pytest.raises(ValueError, match="not a size"):
        parse_bytes(size)


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1023, "1023 B"), (2048, "2.00 kiB"), (5 * 2**20, "5.00 MiB"), (2**41, "2.00 TiB")]
)
def test_sizes_for_people(size: int, text: str) -> None:
    """Bytes are shown in the largest unit that fits."""
    assert format_bytes(size) == text


@pytest.fixture
def cluster() -> Any:
    with LocalCluster(processes=False, n_workers=2, threads_per_worker=2, memory_limit="1GiB", name="mine") as cluster:
        yield cluster


def test_what_a_cluster_shows(cluster: LocalCluster) -> None:
    """Its repr has name, address, workers, threads and memory; `workers` describes each by name."""
    address = re.escape(cluster.scheduler_address)
    assert re.fullmatch(rf"LocalCluster\(mine, '{address}', workers=2, threads=4, memory=2.00 GiB\)", repr(cluster))
    assert cluster.status == "running"
    assert cluster.dashboard_link == ""
    assert set(cluster.workers) == {0, 1}
    assert {one["nthreads"] for one in cluster.workers.values()} == {2}
    cluster.close()
    assert "closed" in repr(cluster)
    assert cluster.status == "closed"
    assert cluster.workers == {}
    cluster.close()


def test_clients_come_and_go(cluster: LocalCluster) -> None:
    """Closing a client leaves the cluster, and the futures of its other clients, alone."""
    with cluster.get_client() as first:
        assert first.cluster is cluster
        kept = Client(cluster)
        held = kept.submit(inc, 1)
        assert first.submit(inc, 1).result() == 2
    assert cluster.status == "running"
    assert held.result() == 2
    kept.close()


def test_a_closed_cluster_is_refused(cluster: LocalCluster) -> None:
    """A client of a closed cluster is a RuntimeError."""
    cluster.close()
    with pytest.raises(RuntimeError, match="cluster is closed"):
        Client(cluster)


def test_unknown_options() -> None:
    """An unknown keyword is a TypeError."""
    with pytest.raises(TypeError, match="colour"):
        LocalCluster(colour="red")  # type: ignore[call-arg]


def test_closing_a_cluster_under_its_clients(cluster: LocalCluster, gate: Gate) -> None:
    """Its clients are closed with it: futures are cancelled, waiting threads wake up, nothing more is taken."""
    clients = Client(cluster), Client(cluster)
    futures = [client.submit(wait_at, gate.address) for client in clients]
    gate.wait_for(1)
    ended: list[str] = []
    started = threading.Barrier(4)

    def attempt(name: str, use: Any) -> None:
        started.wait()
        try:
            use()
        except (CancelledError, ClosedClientError):
            ended.append(name)

    uses = {
        "result": futures[0].result,
        "gather": lambda: clients[1].gather([futures[1]]),
        "wait": lambda: wait(futures),
    }
    threads = [threading.Thread(target=attempt, args=use) for use in uses.items()]
    for thread in threads:
        thread.start()
    started.wait()
    gate.open()  # its task may end, or be cancelled, whichever comes first
    gate.close()
    cluster.close()
    for thread in threads:
        thread.join()
    for client, future in zip(clients, futures, strict=True):
        assert client.status == "closed"
        assert future.status == "cancelled"
        for use in (lambda client=client: client.submit(inc, 1), lambda client=client: client.map(inc, [1])):
            with pytest.raises(ClosedClientError):
                use()
        with pytest.raises(ClosedClientError):
            client.scatter(1)
        client.close()
    assert list(as_completed(futures)) == futures
