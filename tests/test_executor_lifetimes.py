"""What lives how long: calls whose futures are dropped, results whose client closes, functions of failed calls."""

from __future__ import annotations

import concurrent.futures as cf
import gc
import subprocess
import sys
import textwrap
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localdist import Client, Executor, LocalCluster
from tests.support import Gate, eventually, inc, note, notes, wait_at

LONG = 30


def note_late(address: Any, path: str) -> None:
    wait_at(address)
    note(path, "done")


@pytest.mark.parametrize("pure", [False, True])
@pytest.mark.parametrize("how", ["future", "map"])
def test_shutdown_waits_for_what_nobody_holds(client: Client, gate: Gate, tmp_path: Path, how: str, pure: bool) -> None:
    """A call whose future, or generator, was dropped runs, and `shutdown` returns when it has ended."""
    executor = client.get_executor(pure=pure)
    path = str(tmp_path / "notes")
    if how == "map":
        next(executor.map(inc, [1]))
        executor.map(note_late, [gate.address], [path])
    else:
        executor.submit(note_late, gate.address, path)
    gate.wait_for()
    with cf.ThreadPoolExecutor(1) as other:
        ended = other.submit(executor.shutdown)
        assert not cf.wait([ended], 0.2).done
        gate.open()
        ended.result(LONG)
    assert notes(path) == ["done"]


def test_shutdown_waits_for_a_call_that_is_shared(client: Client, gate: Gate) -> None:
    """With pure=True a call may have been the client's before; it is waited for all the same."""
    shared = client.submit(wait_at, gate.address)
    executor = client.get_executor(pure=True)
    executor.submit(wait_at, gate.address)
    gate.wait_for()
    with cf.ThreadPoolExecutor(1) as other:
        ended = other.submit(executor.shutdown)
        assert not cf.wait([ended], 0.2).done
        gate.open()
        ended.result(LONG)
    assert shared.done()


def test_ended_futures_outlive_their_client() -> None:
    """A client that leaves its cluster cancels nothing that has ended, and leaves no bytes behind in the store."""
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as other:
        client = Client(cluster, set_as_default=False)
        executor = client.get_executor()
        small, large = executor.submit(inc, 1), executor.submit(np.ones, 200_000)
        failed: cf.Future[Any] = executor.submit(divmod, 1, 0)
        cf.wait([small, large, failed], LONG)
        client.close()
        assert (small.result(), large.result().sum()) == (2, 200_000)
        assert isinstance(failed.exception(), ZeroDivisionError)
        del small, large
        eventually(other, lambda: other._transport.inspect("statistics")["total_bytes"] == 0)


def test_a_call_seen_running_is_not_cancelled_by_shutdown(gate: Gate) -> None:
    """Although it had not begun: whoever was told that it runs may rely on it."""
    executor = Executor(1)
    for _ in range(2):  # so that the next ones are known to be quick
        cf.wait([executor.submit(inc, i) for i in range(200)], LONG)
    held = executor.submit(wait_at, gate.address)
    gate.wait_for()
    futures = [executor.submit(inc, i) for i in range(50)]
    running = [future for future in futures if future.running()]
    refused = [future for future in futures[:5] if not future.cancel()]
    executor.shutdown(wait=False, cancel_futures=True)
    gate.open()
    executor.shutdown()
    assert held.exception() is None
    assert not any(future.cancelled() for future in [*running, *refused])
    assert futures[-1].cancelled()


class Load:
    pass


def make_call(load: Load, how: str) -> Any:
    def call() -> None:
        assert load is None, "it raises"

    return call if how == "raises" else lambda: bool(load)


@pytest.mark.parametrize("how", ["returns", "raises", "is cancelled"])
def test_futures_do_not_keep_functions(gate: Gate, how: str) -> None:
    """Neither the function of a call that has ended is kept, nor the bytes that it was sent as."""
    with Executor(1) as executor:
        executor.submit(inc, 1).result()
        if how == "is cancelled":
            executor.submit(wait_at, gate.address)
            gate.wait_for()
        load = Load()
        ref = weakref.ref(load)
        future = executor.submit(make_call(load, how))
        if how == "is cancelled":
            executor.submit(inc, 1)
            assert future.cancel()
        else:
            future.exception(LONG)
        entry: Any = future._entry  # type: ignore[attr-defined]
        assert (entry.function, entry.call) == (None, None)
        del load
        gc.collect()
        assert ref() is None
        gate.open()


def test_a_global_that_cannot_be_pickled_is_named() -> None:
    """Else one would have to search for it; the next call is made as ever."""
    scope: dict[str, Any] = {"__name__": "__main__", "LOCK": threading.Lock(), "data": [1]}
    exec("def locked():\n    with LOCK: return data", scope)
    with Executor(1) as executor:
        error = executor.submit(scope["locked"]).exception(LONG)
        assert isinstance(error, TypeError)
        assert "global variable 'LOCK' of the function cannot be pickled: type _thread.lock" in str(error)
        assert executor.submit(inc, 1).result(LONG) == 2


def test_the_collector_runs_while_iterables_are_read() -> None:
    """Reading a generator of the user may take hours, and make garbage."""
    seen = []

    def numbers() -> Any:
        for i in range(3):
            seen.append(gc.isenabled())
            yield i

    with Executor(1) as executor:
        assert list(executor.map(inc, numbers())) == [1, 2, 3]
    assert seen == [True] * 3


SETTING = """
    from localdist import Executor

    M = 0

    class Loader:
        def load(self):
            global M
            M = 42

    def by_method():
        Loader().load()

    def by_name():
        globals()["N"] = 1

    def decorated(f):
        return lambda: f()

    @decorated
    def wrapped():
        global W
        W = 7

    with Executor(1) as executor:
        for setter in (by_method, by_name, wrapped):
            executor.submit(setter).result()
        print(executor.submit(lambda: (M, N, W)).result())
"""

INITIALIZED = """
    from localdist import Executor

    state, number, untouched = {}, 0, [1]

    def begin(value):
        global number
        number = value
        state["value"] = value
        state["seen"] = list(untouched)

    def read(): return state, number, untouched

    with Executor(1, initializer=begin, initargs=(5,)) as executor:
        print(executor.submit(read).result(), executor.submit(lambda: state).result())
        state = {"changed": 1}
        number = 7
        untouched.append(2)
        print(executor.submit(read).result())
"""

WAITING_FOR_EACH_OTHER = """
    import multiprocessing

    from localdist import Executor

    barrier = multiprocessing.get_context("spawn").Barrier(4)

    with Executor(4, initializer=lambda b: b.wait(25), initargs=(barrier,)) as executor:
        print(list(executor.map(abs, range(-8, 0))), len(executor._processes))
"""

STATE = """
    import functools
    import random

    from localdist import Executor

    class Numbers:
        last = -1

        def __next__(self):
            self.last += 1
            return self.last

    generator, numbers, cache, large = random.Random(5), Numbers(), {}, list(range(100_000))
    changed = [1]

    def draw(_): return generator.random()
    def count(_): return next(numbers)
    def remember(x): return cache.setdefault(x, len(cache))
    def look(i): return large[i]
    def seen(x, before=[]): before.append(x); return before
    def read(): return list(changed)
    def held(x, given=changed): return given == changed, list(given)

    @functools.lru_cache
    def once(x): return next(numbers)

    @functools.singledispatch
    def kind(x): return "any"

    @kind.register
    def _(x: int): return "int"

    class Single:
        made = None

        @classmethod
        def get(cls):
            if cls.made is None:
                cls.made = next(numbers)
            return cls.made

        @functools.cached_property
        def seven(self): return 7

    def single(): return Single.get()

    with Executor(1) as executor:
        run = lambda *call: executor.submit(*call).result()
        print(len(set(executor.map(draw, range(20)))), len({run(draw, 0) for _ in range(5)}))
        print(list(executor.map(count, range(3))), run(count, 0), list(executor.map(count, range(4), chunksize=2)))
        print([run(remember, x) for x in "aba"], run(look, 99_999), list(executor.map(look, range(4), chunksize=3)))
        print(run(seen, 1), run(seen, 2), run(functools.partial(seen, 3)))
        print(run(once, 1) == run(once, 1), run(kind, 1), run(kind, ""), run(lambda: Single().seven), run(single) == run(single))
        print(run(held, 0), run(read), changed.append(2), run(read), run(held, 0))
        for changed in ([3], (4,), "5", [6], "5", [6]):
            print(run(read), end=" ")
"""

AT_THE_END = """
    from localdist import Executor

    executor = Executor(1)
    for i in range(3):
        executor.submit(abs, -i).add_done_callback(lambda future: print("called back", future.result()))
    print("the end")
"""


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (SETTING, ["(42, 1, 7)"]),
        (
            STATE,
            [
                "20 5",
                "[0, 1, 2] 3 [4, 5, 6, 7]",
                "[0, 1, 0] 99999 [0, 1, 2, 3]",
                "[1] [1, 2] [1, 2, 3]",
                "True int any 7 True",
                "(True, [1]) [1] None [1, 2] (True, [1, 2])",
                "[3] [4] ['5'] [6] ['5'] [6] ",
            ],
        ),
        (
            INITIALIZED,
            [
                "({'value': 5, 'seen': [1]}, 5, [1]) {'value': 5, 'seen': [1]}",
                "({'changed': 1}, 7, [1, 2])",
            ],
        ),
        (WAITING_FOR_EACH_OTHER, ["[8, 7, 6, 5, 4, 3, 2, 1] 4"]),
        (AT_THE_END, ["the end", "called back 0", "called back 1", "called back 2"]),
    ],
    ids=["globals", "state", "initialized", "initializers", "callbacks"],
)
def test_scripts(tmp_path: Path, program: str, expected: list[str]) -> None:
    """What calls leave in globals stays while the script leaves them alone; initializers may wait for each other; ..."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(program))
    done = subprocess.run([sys.executable, "-W", "error", str(script)], capture_output=True, text=True, timeout=LONG)
    assert (done.stdout.splitlines(), done.stderr) == (expected, "")
