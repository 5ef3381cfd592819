"""`Client`: how it begins, what it shows, which one is the default, how it ends."""

from __future__ import annotations

import contextvars
import gc
import os
import pickle
import re
import threading
import weakref
from typing import Any

import psutil
import pytest

from localdist import CancelledError, Client, ClosedClientError, Future, LocalCluster, _registry, default_client
from localdist.errors import WorkerStartTimeoutError
from tests.support import (
    Gate,
    cancelled_everywhere,
    div,
    eventually,
    inc,
    note,
    note_and_fail,
    notes,
    pid,
    settled,
    wait_at,
)

# -- construction


def test_workers_are_processes_by_default(client: Client) -> None:
    """Tasks run in processes of their own, as many as were asked for."""
    pids = {one["pid"] for one in client.scheduler_info()["workers"].values()}
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert set(client.gather(client.map(pid, range(20), pure=False))) <= pids


def test_a_client_is_ready_when_it_is_made() -> None:
    """Without arguments it has a worker for each core, and a task can be submitted at once."""
    import loky

    with Client() as client:
        assert client.submit(inc, 1).result() == 2
        assert sum(client.nthreads().values()) <= loky.cpu_count()
        client.wait_for_workers(len(client.cluster.workers), timeout="20 s")
        assert client.status == "running"


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"colour": "red"}, TypeError, "colour"),
        ({"n_workers": 0}, ValueError, "n_workers must be a positive int"),
        ({"n_workers": 1.5}, ValueError, "n_workers must be"),
        ({"threads_per_worker": -1}, ValueError, "threads_per_worker must be"),
        ({"memory_limit": "much"}, ValueError, "not a size"),
        ({"initializer": 5}, TypeError, "initializer must be callable"),
        ({"timeout": "soon"}, ValueError, "not a duration"),
        ({"address": 5}, TypeError, "LocalCluster or a str"),
        ({"address": "tcp://host:8786", "n_workers": 2}, ValueError, "do not go with an address"),
        ({"address": "127.0.0.1:8786", "timeout": None}, ValueError, "needs a limit"),
        ({"address": "127.0.0.1:8786"}, NotImplementedError, "later version"),
        ({"address": "tls://scheduler:8786"}, NotImplementedError, "later version"),
        ({"asynchronous": True}, NotImplementedError, "later version"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], text: str) -> None:
    """What makes no sense is an error at construction that names it, and nothing is left running."""
    with pytest.raises(error, match=text):
        Client(**options)


def test_options_of_dask_are_accepted() -> None:
    """Options about dashboards, networks and logs have nothing to do here, and are accepted."""
    with Client(
        processes=False, n_workers=1, dashboard_address=":0", silence_logs=30, host="localhost", local_directory="x",
        security=None, heartbeat_interval=5, direct_to_workers=True, connection_limit=10, memory_target_fraction=0.5,
    ) as client:  # fmt: skip
        assert client.submit(inc, 1).result() == 2
        assert client.dashboard_link == ""


def test_initializer() -> None:
    """Every worker calls it with its arguments before its first task."""
    with Client(n_workers=2, threads_per_worker=1, initializer=set_variable, initargs=("LOCALDIST_X", "set")) as client:
        client.wait_for_workers(2)
        assert list(client.run(os.getenv, "LOCALDIST_X").values()) == ["set", "set"]  # type: ignore[union-attr]
    assert "LOCALDIST_X" not in os.environ


def set_variable(name: str, value: str) -> None:
    os.environ[name] = value


# -- what it shows


def test_repr(client: Client) -> None:
    """It shows address, workers, threads and memory in less than 80 characters, and a closed one says so."""
    text = repr(client)
    assert re.fullmatch(r"<Client: 'local://[\d-]+' processes=2 threads=2, memory=[\d.]+ \w+>", text)
    assert str(client) == text
    assert len(text) < 80
    assert "&lt;Client" in client._repr_html_()
    other = Client(processes=False, memory_limit=None)
    assert "memory" not in repr(other)
    other.close()
    assert repr(other) == "<Client: No scheduler connected>"


def test_identity(client: Client) -> None:
    """The id begins with "Client-" and contains the name that was given; no client can be pickled."""
    assert client.id.startswith("Client-")
    with Client(processes=False, name="bob") as other:
        assert other.id.startswith("Client-bob-")
        assert other.id != client.id
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(client)


def test_futures_and_refcount(client: Client) -> None:
    """`futures` maps every key that is held to its status, `refcount` to the number of its Future objects."""
    good, again, bad = client.submit(inc, 1), client.submit(inc, 1), client.submit(div, 1, 0)
    good.result()
    bad.exception()
    assert client.futures[good.key] == "finished"
    assert client.futures[bad.key] == "error"
    assert (client.refcount[good.key], client.refcount[bad.key]) == (2, 1)
    key = again.key
    del again
    eventually(client, lambda: client.refcount[key] == 1)


# -- which one is the default


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give three clients of one cluster, as if there were no others; the last is no default."""
    monkeypatch.setattr(_registry, "defaults", [])
    with LocalCluster(processes=False, n_workers=1, threads_per_worker=1) as cluster:
        clients = Client(cluster), Client(cluster), Client(cluster, set_as_default=False)
        yield clients
        for client in clients:
            client.close()


def test_the_newest_default_client_counts(several: tuple[Client, ...]) -> None:
    """`default_client` is the newest living client that wants to be; closing it gives the one before its place."""
    first, second, third = several
    assert default_client() is second
    assert Client.current() is second
    assert default_client(third) is third
    second.close()
    assert default_client() is first
    first.close()
    with pytest.raises(ValueError, match="no client found"):
        default_client()
    with pytest.raises(ValueError, match="no client found"):
        Client.current()


def test_the_current_client(several: tuple[Client, ...]) -> None:
    """Within `as_current` and `with client` a client is the current one, for this thread and its contexts only."""
    first, second, third = several
    with pytest.raises(ValueError, match="no client is current"):
        Client.current(allow_global=False)
    seen: list[Client] = []
    with third.as_current() as entered:
        assert entered is third
        assert default_client() is Client.current(allow_global=False) is third
        with first.as_current():
            assert default_client() is first
        assert default_client() is third
        thread = threading.Thread(target=lambda: seen.append(default_client()))
        thread.start()
        thread.join()
    assert seen == [second]
    assert default_client() is second
    with third as entered:
        assert entered is default_client() is third
    assert third.status == "closed"


def test_leaving_from_another_context(several: tuple[Client, ...]) -> None:
    """A `with` block that is left in another context than it was entered in is a ValueError; the client is closed."""
    client = several[0]
    contextvars.Context().run(client.__enter__)
    with pytest.raises(ValueError, match="Context"):
        client.__exit__(None, None, None)
    assert client.status == "closed"


# -- workers


def test_wait_for_workers(client: Client) -> None:
    """It returns when so many run, and refuses what is no positive int; too few in time are an error that counts."""
    assert client.wait_for_workers(2) is None  # type: ignore[func-returns-value]
    for count in (None, 0, -1, 1.0, "2", True):
        with pytest.raises(ValueError, match="positive int"):
            client.wait_for_workers(count)  # type: ignore[arg-type]
    with pytest.raises(WorkerStartTimeoutError) as info:
        client.wait_for_workers(3, timeout="10 ms")
    assert (info.value.available_workers, info.value.expected_workers, info.value.timeout) == (2, 3, 0.01)
    assert isinstance(info.value, TimeoutError)


@pytest.mark.parametrize("processes", [True, False])
def test_restart(processes: bool, gate: Gate) -> None:
    """New workers, no task or future of before is left, and the client goes on."""
    with Client(processes=processes, n_workers=2, threads_per_worker=1) as client:
        client.wait_for_workers(2)
        before = {one["pid"] for one in client.scheduler_info()["workers"].values()}
        addresses = set(client.nthreads())
        running, done = client.submit(wait_at, gate.address), client.submit(inc, 1)
        done.result()
        gate.wait_for()
        waiting = client.submit(inc, running)
        assert client.restart() is client
        for future in (running, done, waiting):
            assert future.status == "cancelled"
            with pytest.raises(CancelledError, match="scheduler-restart"):
                future.result()
        assert client.futures == {}
        assert len(client.nthreads()) == 2
        assert not addresses & set(client.nthreads())
        if processes:
            assert not before & {one["pid"] for one in client.scheduler_info()["workers"].values()}
        assert client.gather(client.map(inc, range(10))) == list(range(1, 11))
        assert done.status == "cancelled"
        if not processes:
            gate.open()


def test_run_on_every_worker(client: Client) -> None:
    """`run` calls a function once in each worker process, outside of the queue, and returns a dict by address."""
    pids = client.run(os.getpid)
    assert pids == {a: one["pid"] for a, one in client.scheduler_info()["workers"].items()}
    one = next(iter(pids))
    assert client.run(os.getpid, workers=[one]) == {one: pids[one]}
    assert client.run(os.getpid, workers=[1]).keys() != {one}  # type: ignore[union-attr]
    assert client.run(os.getpid, workers=[]) == {}
    assert client.run(os.getpid, wait=False) is None
    assert set(client.run(inc, 1).values()) == {2}  # type: ignore[union-attr]
    assert set(client.run(name_of, 5).values()) == {(5, 0), (5, 1)}  # type: ignore[union-attr]
    assert set(client.run(in_a_coroutine, x=3).values()) == {4}  # type: ignore[union-attr]


def name_of(x: int, dask_worker: Any = None) -> tuple[int, Any]:
    return x, dask_worker.name


async def in_a_coroutine(x: int) -> int:
    return x + 1


def fail_on_one(dask_worker: Any) -> Any:
    if dask_worker.name == 1:
        raise LookupError("only here")
    return dask_worker.name


def test_errors_of_run(client: Client) -> None:
    """They are raised, returned or ignored, as was asked for; other ways are a ValueError."""
    with pytest.raises(LookupError, match="only here"):
        client.run(fail_on_one)
    returned = list(client.run(fail_on_one, on_error="return").values())  # type: ignore[union-attr]
    assert sorted(map(str, returned)) == ["0", "only here"]
    assert list(client.run(fail_on_one, on_error="ignore").values()) == [0]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="on_error must be"):
        client.run(fail_on_one, on_error="shrug")


def test_closing_while_run_waits(gate: Gate) -> None:
    """A thread in `run` gets a ClosedClientError when the client is closed before all workers have answered."""
    client = Client(n_workers=1, threads_per_worker=1)
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            client.run(wait_at, gate.address)
        except BaseException as error:  # noqa: BLE001  (it is looked at below)
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    gate.wait_for()
    client.close()
    thread.join()
    assert [type(error) for error in errors] == [ClosedClientError]


def test_run_while_all_slots_are_busy(client: Client, gate: Gate) -> None:
    """`run` does not wait for tasks."""
    blockers = client.map(wait_at, [gate.address] * 2, pure=False)
    gate.wait_for(2)
    assert len(client.run(os.getpid)) == 2  # type: ignore[arg-type]
    gate.open()
    client.gather(blockers)


# -- control


def test_cancel_reaches_every_handle_and_dependent(client: Client, gate: Gate) -> None:
    """All handles of the key and everything that depends on it are cancelled at once; finished ones too."""
    first, second = client.submit(wait_at, gate.address), client.submit(wait_at, gate.address)
    gate.wait_for()
    dependent = client.submit(inc, first)
    deep = client.submit(inc, [dependent])
    done = client.submit(inc, 1, pure=False)
    done.result()
    failed = client.submit(div, 1, 0, pure=False)
    failed.exception()
    assert client.cancel([first, {"x": done}, failed]) is None  # type: ignore[func-returns-value]
    assert first.status == second.status == done.status == failed.status == "cancelled"
    eventually(client, lambda: dependent.status == deep.status == "cancelled")
    with pytest.raises(CancelledError, match="unknown"):
        second.result()
    with pytest.raises(CancelledError):
        deep.result()
    client.cancel(first)
    client.cancel([])
    client.cancel(None)
    gate.open()


def test_cancelled_work_never_begins(client: Client, gate: Gate, tmp_path: Any) -> None:
    """What has not begun when it is cancelled never runs; its slot is free for others."""
    path = str(tmp_path / "runs")
    blockers = client.map(wait_at, [gate.address] * 2, pure=False)
    gate.wait_for(2)
    futures = client.map(note, [path] * 50, range(50))
    kept = futures.pop()
    client.cancel(futures)
    cancelled_everywhere(client)
    gate.open()
    assert kept.result() == 49
    client.gather(blockers)
    assert client.gather(client.map(inc, range(20))) == list(range(1, 21))
    assert notes(path) == ["49"]


def test_cancelling_a_running_task_lets_it_end(client: Client, gate: Gate, tmp_path: Any) -> None:
    """A running function is not interrupted: it runs to its end, unseen, on the slot that it has."""
    path = str(tmp_path / "runs")
    future = client.submit(wait_and_note, gate.address, path)
    gate.wait_for()
    future.cancel()
    assert future.cancelled()
    assert notes(path) == []
    gate.open()
    eventually(client, lambda: notes(path) == ["went-on"])


def wait_and_note(address: Any, path: str) -> None:
    wait_at(address)
    note(path, "went-on")


def test_cancelling_drops_intermediate_tasks(client: Client, gate: Gate, tmp_path: Any) -> None:
    """Cancelling a task reaches those that depend on it through tasks whose futures are gone already."""
    path = str(tmp_path / "runs")
    blockers = client.map(wait_at, [gate.address] * 2, pure=False)
    gate.wait_for(2)
    x = client.submit(note, path, "x")
    y = client.submit(note, path, [x])
    z = client.submit(note, path, [y])
    keys = {x.key, y.key, z.key}
    del y
    settled(client)
    x.cancel()
    with pytest.raises(CancelledError):
        z.result()
    cancelled_everywhere(client)
    gate.open()
    client.gather(blockers)
    eventually(client, lambda: not keys & client.cluster._engine.core.tasks.keys())
    assert notes(path) == []


def test_resubmitting_what_was_cancelled(client: Client) -> None:
    """The same pure call submitted at once after it was cancelled runs anew."""
    for i in range(200):
        future = client.submit(inc, i)
        future.cancel()
        assert client.submit(inc, i).result() == i + 1


def test_retry_runs_failed_tasks_again(client: Client, tmp_path: Any) -> None:
    """`retry` runs a failed task and the failed ones it stems from; the futures are pending, then have new results."""
    path = str(tmp_path / "runs")
    first = client.submit(fail_once, path)
    second = client.submit(inc, first)
    with pytest.raises(ValueError, match="first time"):
        second.result()
    assert client.retry([second]) is None  # type: ignore[func-returns-value]
    assert second.result() == 101
    assert first.result() == 100
    assert len(notes(path)) == 2
    client.retry([first, second])
    assert first.result() == 100
    assert len(notes(path)) == 2, "finished tasks are left alone"


def fail_once(path: str) -> int:
    if not notes(path):
        note_and_fail_first(path)
    note(path, "ran")
    return 100


def note_and_fail_first(path: str) -> None:
    note(path, "ran")
    raise ValueError("first time")


def test_retry_of_a_released_upstream(client: Client, tmp_path: Any) -> None:
    """Failed tasks whose own futures are gone are run again as well."""
    path = str(tmp_path / "runs")
    second = client.submit(inc, client.submit(fail_once, path))
    with pytest.raises(ValueError, match="first time"):
        second.result()
    second.retry()
    assert second.result() == 101


def test_two_clients_of_one_cluster(gate: Gate, tmp_path: Any) -> None:
    """Equal calls are shared between them; cancelling takes away one's claim only, unless it is forced."""
    path = str(tmp_path / "runs")
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as a, Client(cluster) as b:
        one, two = a.submit(note, path, "x"), b.submit(note, path, "x")
        assert one.result() == two.result() == "x"
        assert notes(path) == ["x"]
        one.cancel()
        assert one.status == "cancelled"
        del one
        eventually(a, lambda: not a.futures)
        assert two.result() == "x", "the other client's claim stays, although the first has dropped its future too"

        here, there = a.submit(wait_at, gate.address, 5), b.submit(wait_at, gate.address, 5)
        gate.wait_for()
        here.cancel()
        del here
        eventually(a, lambda: not a.futures)
        gate.open()
        assert there.result() == 5

        here, there = a.submit(inc, 1, key="both"), b.submit(inc, 1, key="both")
        assert (here.result(), there.result()) == (2, 2)
        a.cancel(here, force=True, reason="forced")
        eventually(a, lambda: there.status == "cancelled")
        with pytest.raises(CancelledError, match="forced"):
            there.result()
        assert b.submit(inc, 2, key="both").result() == 3
        assert notes(path) == ["x"]


def test_failing_for_two_clients(tmp_path: Any) -> None:
    """A failed call is shared between clients, and can be retried by either."""
    path = str(tmp_path / "runs")
    with LocalCluster(processes=False, n_workers=1) as cluster, Client(cluster) as a, Client(cluster) as b:
        one, two = a.submit(note_and_fail, path), b.submit(note_and_fail, path)
        assert isinstance(one.exception(), ValueError)
        assert isinstance(two.exception(), ValueError)
        assert notes(path) == ["ran"]
        b.retry(two)
        assert isinstance(two.exception(), ValueError)
        assert isinstance(one.exception(), ValueError)
        assert notes(path) == ["ran", "ran"]


# -- the end


@pytest.fixture
def closed() -> tuple[Client, Any]:
    """Give a closed client and a finished future of it."""
    client = Client(processes=False, n_workers=1)
    future = client.submit(inc, 1)
    future.result()
    client.close()
    return client, future


def test_use_after_close(closed: tuple[Client, Any]) -> None:
    """Whatever needs the scheduler is a ClosedClientError; `close` and `release` do nothing."""
    client, future = closed
    assert client.status == "closed"
    for use in (
        lambda: client.submit(inc, 1),
        lambda: client.submit(inc, [1]),
        lambda: client.submit(inc, 1, key="k"),
        lambda: client.map(inc, [1]),
        lambda: client.map(inc, [[1]]),
        lambda: client.scatter(1),
        lambda: client.gather([]),
        lambda: client.gather(future),
        lambda: client.cancel(future),
        lambda: client.retry(future),
        lambda: client.run(pid),
        lambda: client.restart(),
        lambda: client.wait_for_workers(1),
        lambda: client.nthreads(),
        lambda: client.scheduler_info(),
        lambda: client.processing(),
        lambda: client.who_has(),
        lambda: client.story("k"),
    ):
        with pytest.raises(ClosedClientError, match="is closed"):
            use()
    assert issubclass(ClosedClientError, RuntimeError)
    assert client.close() is None  # type: ignore[func-returns-value]
    future.release()
    assert client.futures == {}


def test_futures_of_a_closed_client(closed: tuple[Client, Any]) -> None:
    """Finished or not, they are cancelled; asking for their result says why."""
    _, future = closed
    assert future.status == "cancelled"
    assert future.exception() is None
    with pytest.raises(CancelledError, match="client closed"):
        future.result()


def test_leaving_does_not_wait_for_work(gate: Gate) -> None:
    """`with Client()` closes without waiting for what is unfinished: that is cancelled."""
    with Client(n_workers=1, threads_per_worker=1) as client:
        running = client.submit(wait_at, gate.address)
        gate.wait_for()
        waiting = client.submit(inc, 1)
        assert client.close() is None  # type: ignore[func-returns-value]
        assert running.status == waiting.status == "cancelled"
    with pytest.raises(CancelledError, match="client closed"):
        waiting.result()


def test_an_error_in_the_block_gets_through() -> None:
    """An exception in a `with` block closes the client and passes."""
    with pytest.raises(KeyError, match="mine"), Client(processes=False) as client:
        raise KeyError("mine")
    assert client.status == "closed"


def test_closing_wakes_those_who_wait(gate: Gate) -> None:
    """Threads in `result` hear that the client was closed."""
    client = Client(n_workers=1, threads_per_worker=1)
    future = client.submit(wait_at, gate.address)
    gate.wait_for()
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            future.result()
        except CancelledError as error:
            errors.append(error)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    client.close()
    for thread in threads:
        thread.join()
    assert len(errors) == 3


def test_closing_from_many_threads() -> None:
    """`close` may be called by several threads at once."""
    client = Client(n_workers=1, threads_per_worker=1)
    threads = [threading.Thread(target=client.close) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client.status == "closed"


class Closer:
    """Closes a client while it is pickled."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def __reduce__(self) -> tuple[type, tuple[()]]:
        self.client.close()
        return int, ()


def test_closing_in_the_middle_of_a_call() -> None:
    """A client that is closed between the beginning of a call and its entry takes it no more."""
    for use in (
        lambda client: client.submit(inc, Closer(client), pure=False),
        lambda client: client.map(inc, [Closer(client)], pure=False),
        lambda client: client.scatter(Closer(client), hash=False),
    ):
        client = Client(n_workers=1, threads_per_worker=1)
        with pytest.raises(ClosedClientError):
            use(client)
        assert client.futures == {}


def test_closing_while_others_submit() -> None:
    """A thread that submits while the client is closed gets a ClosedClientError or a cancelled future, and ends."""
    for processes in (True, False):
        client = Client(processes=processes, n_workers=1, threads_per_worker=1)
        begun = threading.Barrier(3)
        statuses: list[str | None] = []

        def submit(
            client: Client = client, begun: threading.Barrier = begun, statuses: list[str | None] = statuses
        ) -> None:
            futures: list[Future] = []
            begun.wait()
            try:
                while True:
                    futures.append(client.submit(inc, len(futures), pure=False))
                    futures += client.map(inc, range(10))
            except ClosedClientError:
                statuses.extend(future.status for future in futures)

        threads = [threading.Thread(target=submit) for _ in range(2)]
        for thread in threads:
            thread.start()
        begun.wait()
        client.close()
        for thread in threads:
            thread.join()
        assert set(statuses) <= {"cancelled"}


@pytest.mark.parametrize("processes", [True, False])
def test_a_forgotten_client_is_collected(processes: bool) -> None:
    """A client that nobody refers to is closed by the garbage collector: its workers end without `close`."""
    client = Client(processes=processes, n_workers=1, threads_per_worker=1)
    future = client.submit(inc, 1)
    assert future.result() == 2
    workers = [psutil.Process(one["pid"]) for one in client.scheduler_info()["workers"].values()] if processes else []
    engine, ref = client.cluster._engine, weakref.ref(client)
    client._transport.settle()
    del client
    gc.collect()
    assert ref() is not None, "its future keeps it"
    del future
    engine.settle()
    gc.collect()
    assert ref() is None
    assert engine.closed
    engine.close()
    assert not psutil.wait_procs(workers, timeout=20)[1]


def test_a_client_closed_in_a_callback() -> None:
    """A callback may close its client."""
    client = Client(processes=False, n_workers=1)
    done = threading.Event()

    def close(_future: Any) -> None:
        client.close()
        done.set()

    client.submit(inc, 1).add_done_callback(close)
    assert done.wait(20)
    assert client.status == "closed"
    client.close()


def test_many_clients_one_after_the_other() -> None:
    """Clients come and go without leaving anything, and may live side by side."""
    for _ in range(3):
        with Client(n_workers=1, threads_per_worker=1) as one, Client(n_workers=1, threads_per_worker=1) as two:
            assert one.submit(inc, 1).result() == two.submit(inc, 1).result() == 2
            assert one.address != two.address
