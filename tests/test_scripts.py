"""Real programs in processes of their own: plain scripts without a guard, functions of `__main__`, interactive use."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

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
