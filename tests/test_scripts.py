"""Real programs in processes of their own: plain scripts without a guard, functions of `__main__`, interactive use."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from localdist import Client

ROOT = Path(__file__).parent.parent


def run(*arguments: str, text: str | None = None, cwd: Any = None) -> str:
    """Run an interpreter, which has to end well and say nothing on standard error; return what it printed."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        input=text,
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path},
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


SCRIPT = """
    import functools
    from dataclasses import dataclass

    from localdist import Client

    FACTOR = 3


    def times(x):
        return x * FACTOR


    def deep(x):
        return times(times(x))


    def logged(func):
        @functools.wraps(func)
        def wrapper(*args):
            return func(*args)
        return wrapper


    @logged
    def decorated(x):
        return deep(x) + 1


    @dataclass
    class Point:
        x: int

        def moved(self, by):
            return Point(self.x + by)

        def __call__(self, y):
            return self.x * y

        @classmethod
        def origin(cls):
            return cls(0)

        @staticmethod
        def twice(x):
            return 2 * x


    class Broken(Exception):
        def __init__(self, code):
            super().__init__(code)
            self.code = code


    def fail(code):
        raise Broken(code)


    client = Client(n_workers=2, threads_per_worker=1)
    print(client.gather(client.map(deep, range(4))))
    print(client.submit(decorated, 1).result())
    point = client.submit(Point, 5).result()
    print(type(point) is Point, client.submit(point.moved, 2).result(), client.submit(point, 4).result())
    print(client.submit(Point.origin).result(), client.submit(Point.twice, 4).result())
    print(client.submit(lambda p: p.x + FACTOR, point).result())
    try:
        client.submit(fail, 7).result()
    except Broken as error:
        print("Broken", error.code)
    FACTOR = 10
    print(client.submit(deep, 1).result())
    print(client.submit(functools.partial(times), 2).result())
"""

PRINTED = [
    "[0, 9, 18, 27]",
    "10",
    "True Point(x=7) 20",
    "Point(x=0) 8",
    "8",
    "Broken 7",
    "100",
    "20",
]


def test_a_script_without_a_guard(tmp_path: Path) -> None:
    """`Client()` at the top of a script works without `if __name__ == "__main__"`, and nothing has to be closed."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    assert run(str(script)).splitlines() == PRINTED


def test_a_script_that_is_piped_in(tmp_path: Path) -> None:
    """A program without a file, read from standard input, works the same."""
    assert run("-", text=textwrap.dedent(SCRIPT), cwd=tmp_path).splitlines() == PRINTED


def test_a_module_that_is_run(tmp_path: Path) -> None:
    """`python -m module` works the same."""
    (tmp_path / "program.py").write_text(textwrap.dedent(SCRIPT))
    assert run("-m", "program", cwd=tmp_path).splitlines() == PRINTED


def test_interactive_use(tmp_path: Path) -> None:
    """At a prompt functions are typed in, redefined, and submitted; each submit sees the newest definition."""
    lines = """
        from localdist import Client
        client = Client(n_workers=1, threads_per_worker=1)
        def f(x): return x + 1

        first = client.submit(f, 1)
        print(first.result())
        def f(x): return x + 100

        second = client.submit(f, 1)
        print(second.result(), first.result(), first.key == second.key)
        y = 5
        print(client.submit(lambda x: x * y, 2).result())
        y = 6
        print(client.submit(lambda x: x * y, 2).result())
        class Thing: value = 3

        print(client.submit(Thing).result().value)
        print(client.submit(f, 2))
        exit()
    """
    environment = "import sys; sys.ps1 = sys.ps2 = ''; sys.stderr = sys.stdout"
    printed = run("-q", "-i", "-c", environment, text=textwrap.dedent(lines), cwd=tmp_path).splitlines()
    assert [line for line in printed if line.strip()][:5] == ["2", "101 2 False", "10", "12", "3"]


def test_keys_of_main_are_the_same_in_the_next_run(tmp_path: Path) -> None:
    """A function of a script has the same key in every run of the script, whatever the hash seed."""
    script = tmp_path / "script.py"
    script.write_text(
        "from localdist import Client\n"
        "def f(x, y={'b': 1, 'a': {1, 2}}): return x\n"
        "with Client(processes=False) as c: print(c.submit(f, {'k', 'j'}).key)\n"
    )
    assert run(str(script)) == run(str(script))


@pytest.mark.parametrize("way", ["raise SystemExit(0)", "client.close()", "del client", "pass"])
def test_every_end_is_silent(tmp_path: Path, way: str) -> None:
    """However a program ends, with work pending or not, it ends soon and prints nothing of its own."""
    script = tmp_path / "script.py"
    script.write_text(
        "from localdist import Client\n"
        "client = Client(n_workers=1, threads_per_worker=1)\n"
        "client.submit(len, 'abc').result()\n"
        "futures = client.map(pow, [3] * 50, range(50))\n"
        f"{way}\n"
    )
    assert run(str(script)) == ""


def test_a_client_within_a_task(tmp_path: Path) -> None:
    """A task may start workers of its own."""
    script = tmp_path / "script.py"
    script.write_text(
        "from localdist import Client\n"
        "def outer(n):\n"
        "    with Client(n_workers=1, threads_per_worker=1) as inner:\n"
        "        return sum(inner.gather(inner.map(abs, range(n))))\n"
        "with Client(n_workers=1, threads_per_worker=1) as client:\n"
        "    print(client.submit(outer, 5).result())\n"
    )
    assert run(str(script)) == "10\n"


FORKING = """
    import os, sys, warnings

    import numpy as np

    from localdist import CancelledError, Client, ClosedClientError

    warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.12 on: threads do not survive a fork
    processes, way = sys.argv[1] == "processes", sys.argv[2]


    def in_a_child(check):
        sys.stdout.flush()
        child = os.fork()
        if child:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        status = 99
        try:
            status = check()
        finally:
            if way == "sys.exit":
                sys.exit(status)
            os._exit(status)


    def check():
        uses = [
            lambda: client.submit(abs, -2),
            lambda: client.submit(abs, -1),
            lambda: client.submit(np.sum, [large]),
            lambda: client.map(abs, [1, 2]),
            lambda: client.scatter([1]),
            lambda: pending.result(20),
            lambda: client.cluster._engine.settle(),
        ]
        for number, use in enumerate(uses):
            try:
                use()
            except ClosedClientError:
                continue
            return 10 + number
        if client.status != "closed" or small.result() != 1 or large.result().sum() != 200_000:
            return 2
        if not isinstance(failed.exception(), ZeroDivisionError):
            return 3
        with Client(n_workers=1, threads_per_worker=1, processes=processes) as own:
            if own.submit(abs, -3).result(20) != 3 or Client.current() is not own:
                return 4
        client.close()
        pending.release()
        return 0


    with Client(n_workers=1, threads_per_worker=1, processes=processes) as client:
        small, large, failed = client.submit(abs, -1), client.submit(np.ones, 200_000), client.submit(divmod, 1, 0)
        array = large.result()
        failed.exception()
        pending = client.submit(abs, -1, key="pending", resources={"GPU": 1})
        for _ in range(3):
            print(in_a_child(check))
            print(client.submit(abs, -5, pure=False).result(20), client.map(abs, [-6, -7])[1].result(20))
            print(int(large.result().sum()), int(array.sum()), pending.status, client.status)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize(("kind", "way"), [("processes", "os._exit"), ("threads", "os._exit"), ("threads", "sys.exit")])
def test_a_forked_child(tmp_path: Path, kind: str, way: str) -> None:
    """A forked child has finished results and may start a client of its own; its parent's is closed there, and lives on."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(FORKING))
    assert run(str(script), kind, way).splitlines() == ["0", "5 7", "200000 200000 pending running"] * 3


SHARING = """
    import os, warnings

    import numpy as np

    from localdist import Client

    warnings.simplefilter("ignore", DeprecationWarning)

    with Client(n_workers=1, threads_per_worker=1) as client:
        array = client.submit(np.full, 300_000, 7).result()
        told, tell = os.pipe()
        child = os.fork()
        if not child:
            os.read(told, 1)
            os._exit(int(not (array == 7).all()))
        del array
        for number in range(20):
            assert (client.submit(np.full, 300_000, 100 + number).result() == 100 + number).all()
        os.write(tell, b"!")
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_what_a_forked_child_maps_stays(tmp_path: Path) -> None:
    """An array that a child shares since the fork keeps its content there, whatever the parent does with its own."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SHARING))
    assert run(str(script)) == "0\n"


# -- multiprocessing within tasks


def start_process(method: str | None) -> Any:
    """Start a process as `multiprocessing` does by default, or in the way that is named; return its exit code."""
    make = multiprocessing.Process if method is None else multiprocessing.get_context(method).Process  # type: ignore[attr-defined]
    process = make(target=sys.exit, args=(7,))
    process.start()
    process.join()
    return process.exitcode


def use_pool(method: str | None) -> Any:
    with multiprocessing.get_context(method).Pool(2) as pool:
        return pool.map(abs, [-1, -2, -3])


METHODS = [None, *multiprocessing.get_all_start_methods()]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_multiprocessing_within_a_task(client: Client, method: str | None) -> None:
    """A task may start processes and pools by `multiprocessing`, by default and in every way that the system has."""
    assert client.submit(start_process, method).result(30) == 7
    assert client.submit(use_pool, method).result(30) == [1, 2, 3]


MULTIPROCESSING = """
    import multiprocessing

    from localdist import Client


    def use(method):
        with multiprocessing.get_context(method).Pool(1) as pool:
            return pool.map(abs, [-1, -2])


    with Client(n_workers=1, threads_per_worker=1) as client:
        for method in [None, *multiprocessing.get_all_start_methods()]:
            print(client.submit(use, method).result(30))
"""


@pytest.mark.slow
def test_multiprocessing_within_a_task_of_a_script(tmp_path: Path) -> None:
    """That holds for functions of a script without a guard, too."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(MULTIPROCESSING))
    assert run(str(script)).splitlines() == ["[1, 2]"] * len(METHODS)
