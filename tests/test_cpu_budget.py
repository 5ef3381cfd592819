"""The processors that this process may use are shared out: workers, and threads inside each one's libraries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import loky
import pytest

import localdist
from localdist import Client
from localdist._cluster import layout
from localdist._dispatch._pool import THREAD_VARIABLES, thread_environment

ROOT = Path(localdist.__file__).parent.parent
LIMITS = [name for name in THREAD_VARIABLES if name != "LOKY_MAX_CPU_COUNT"]


@pytest.fixture(autouse=True)
def no_limits_set(monkeypatch):
    """Start from an environment in which the user has set nothing."""
    for name in THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_every_library_is_limited():
    """OpenMP, OpenBLAS, MKL, NumExpr, Numba and Polars are among those that are limited."""
    assert set(THREAD_VARIABLES) >= {
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "NUMEXPR_NUM_THREADS",
        "NUMBA_NUM_THREADS",
        "POLARS_MAX_THREADS",
    }


@pytest.mark.parametrize(
    ("cpus", "workers", "share"), [(8, 8, "1"), (8, 2, "4"), (8, 3, "2"), (2, 8, "1"), (1, 1, "1"), (4, 0, "4")]
)
def test_each_worker_gets_its_share(cpus, workers, share):
    """The processors are divided by the workers, rounded down, at least one each."""
    assert thread_environment(cpus, workers) == dict.fromkeys(THREAD_VARIABLES, share)


def test_what_the_user_has_set_is_left_alone(monkeypatch):
    """A limit in the environment, even an empty one, is not touched."""
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("MKL_NUM_THREADS", "")
    chosen = thread_environment(8, 2)
    assert set(THREAD_VARIABLES) - set(chosen) == {"OMP_NUM_THREADS", "MKL_NUM_THREADS"}


def limits_seen():
    return {name: os.environ.get(name) for name in LIMITS}


def limits_at_import(path):
    """Return what the interpreter's first user code saw, before anything was imported."""
    return json.loads(Path(path).read_text())


def test_workers_have_the_limits_before_any_import(monkeypatch, tmp_path):
    """They are in a worker's environment when its interpreter starts; the client's own environment is unchanged."""
    seen = tmp_path / "seen"
    (tmp_path / "sitecustomize.py").write_text(
        f"import json, os\nassert 'numpy' not in __import__('sys').modules\n"
        f"open({str(seen)!r}, 'w').write(json.dumps({{k: os.environ.get(k) for k in {LIMITS!r}}}))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    with Client(n_workers=1, threads_per_worker=1) as client:
        found = client.submit(limits_seen).result(20)
        assert client.submit(limits_at_import, str(seen)).result(20) == found
    assert found.pop("OMP_NUM_THREADS") == "5"
    assert set(found.values()) == {str(loky.cpu_count())}
    assert not [name for name in LIMITS if name in os.environ and name != "OMP_NUM_THREADS"]


def test_replacements_have_them_too():
    """A worker that takes the place of a dead one has the same limits."""
    with Client(n_workers=2, threads_per_worker=1) as client:
        client.restart()
        found = client.submit(limits_seen).result(20)
    assert set(found.values()) == {str(max(1, loky.cpu_count() // 2))}


def test_numpy_in_a_worker_obeys():
    """The thread pool inside NumPy's BLAS has as many threads as its worker's share allows."""
    threadpoolctl = pytest.importorskip("threadpoolctl")

    def threads():
        import numpy as np

        np.ones((200, 200)) @ np.ones((200, 200))
        return {pool["num_threads"] for pool in threadpoolctl.threadpool_info()}

    with Client(n_workers=loky.cpu_count(), threads_per_worker=1) as client:
        assert client.submit(threads).result(30) == {1}


def workers_of_a_program(environment, *command):
    """Return (n_workers, threads) of a `Client()` in a process of its own."""
    text = (
        "from localdist import Client\n"
        "with Client() as c: print(c.cluster._engine.settings.n_workers, c.cluster._engine.settings.threads_per_worker)"
    )
    done = subprocess.run(
        [*command, sys.executable, "-c", text],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return tuple(map(int, done.stdout.split()))


@pytest.mark.parametrize(("count", "expected"), [("1", (1, 1)), ("2", (2, 1))])
def test_default_number_of_workers_follows_loky(count, expected):
    """`Client()` starts a worker for each processor that `loky.cpu_count` counts, which a user may limit."""
    if loky.cpu_count() < int(count):
        pytest.skip(f"needs {count} processors")
    assert workers_of_a_program({"LOKY_MAX_CPU_COUNT": count}) == expected


def test_default_number_of_workers_follows_affinity():
    """A process that may use one processor only starts one worker."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system does not let a process choose its processors")
    one = str(min(os.sched_getaffinity(0)))
    pin = f"import os, sys; os.sched_setaffinity(0, [{one}]); os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
    assert workers_of_a_program({}, sys.executable, "-c", pin) == (1, 1)


@pytest.mark.parametrize("cores", range(1, 65))
def test_layout_uses_all_cores(cores):
    """Whatever the number of cores, workers times threads is that number, and few cores mean a process each."""
    workers, threads = layout(cores, None, None)
    assert workers * threads == cores
    assert (threads == 1) or cores > 4
