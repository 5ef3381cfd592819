"""CPython's own tests of its process pool, run against `localdist.Executor`: whoever changes the import changes no rules.

The suite is `test.test_concurrent_futures` of the running interpreter. Nothing of it is copied; where it is not
installed, these tests skip. Each of its methods about process pools is one test here. Their outcomes come from
subprocesses, one for each class of the suite, several at a time because they mostly sleep.

In those subprocesses (`python -m tests.test_cpython_suite run`) everything that names the standard library's pool is
pointed at ours before the tests begin: the mixin class, `concurrent.futures.ProcessPoolExecutor`, and the scripts that
tests run in interpreters of their own. Only the classes for the start method "spawn" are run: an `mp_context` makes no
difference to how our workers start, so those for "fork" and "forkserver" would do the same once more.

A failure may be the harness's own. CPYTHON_SUITE_POOL=concurrent.futures.ProcessPoolExecutor in the environment runs the
same with the standard library's pool, to compare; nothing is listed as failing then.
"""

# ruff: noqa: N802 - unittest calls the methods of its results by such names
from __future__ import annotations

import _thread
import concurrent.futures
import concurrent.futures.process
import contextlib
import faulthandler
import functools
import gc
import importlib
import importlib.util
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import unittest
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import psutil
import pytest

from localdist.testing import Snapshot, find_leaks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    Error = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]

SUITE = "test.test_concurrent_futures"
INSTALLED = importlib.util.find_spec("test") is not None and importlib.util.find_spec(SUITE) is not None
ROOT = Path(__file__).parent.parent
OURS = "localdist.Executor"
MARK = "CPYTHON_SUITE_RUN"  # in the environment of all processes of one run, which is told from others by its value
POOL = os.environ.get("CPYTHON_SUITE_POOL", OURS)

TEST_SECONDS = 30  # for one method of the suite; the longest takes six and some
DUMP_SECONDS = TEST_SECONDS - 5  # the stacks of all threads are printed before the process is ended
SUITE_SECONDS = 300  # for everything, should a few of them hang
ORPHAN_SECONDS = 5  # from the end of a process to that of all below it; usual are some milliseconds
SUBPROCESSES = 4  # at a time; more get in each other's way, and some methods measure time
FEWEST_PASSED = 45  # 3.10 has fewer methods than later versions: 57, of which one is for Windows, and some are listed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(SUITE_SECONDS),
    pytest.mark.skipif(not INSTALLED, reason=f"this Python comes without {SUITE}"),
]

# Methods that do not pass: how they fail, and why they may. One that passes, or fails in another way, fails here too.
LISTED: dict[str, tuple[str, str]] = {
    **dict.fromkeys(
        [
            "test_del_shutdown",
            "test_shutdown_deadlock_pickle",
            "test_shutdown_no_wait",
            # These came after 3.13. They were read, not run.
            "test_failed_worker_replacement_breaks_pool",
            "test_force_shutdown_during_max_tasks_worker_exit",
            "test_force_shutdown_workers_invalid_op",
            "test_gc_during_max_tasks_worker_exit_gh152967",
            "test_shutdown_gh_132969_case_1",
            "test_shutdown_gh_132969_case_2",
            "test_shutdown_no_wait_max_tasks_gh119592",
        ],
        ("has no attribute '_(executor_manager_thread|call_queue|force_shutdown)'", "uses a private attribute"),
    ),
    **dict.fromkeys(
        ["test_kill_workers", "test_terminate_workers"],  # the same
        ("to be called once", "replaces a private method, and looks whether it was called"),
    ),
    "test_killed_child": (
        "BrokenProcessPool not raised by",
        "demands that the death of one worker breaks the pool for good; ours fails that worker's call, and goes on",
    ),
    **dict.fromkeys(
        ["test_processes_terminate", "test_saturation"],
        ("AssertionError: 0 != [35]", "counts the workers started for calls that cannot be pickled; ours starts none"),
    ),
    "test_python_finalization_error": (
        "TypeError: mul.. missing 1 required positional argument",
        "lets the start of a second thread fail; ours needs one only, and so finds that the call is wrong",
    ),
    "test_traceback": (
        "is not <class 'concurrent.futures.process._RemoteTraceback'>",
        "demands a private class as the error's cause; ours leaves the cause alone, the traceback itself is the worker's",
    ),
}


@dataclass(frozen=True)
class Outcome:
    """What became of one method of the suite.

    Attributes:
        kind: "passed", "failed" or "skipped".
        text: CPython's traceback and what was printed meanwhile, or the reason for skipping.
        executors: how many executors the method made in its own process.
    """

    kind: str
    text: str
    executors: int


@dataclass
class Run:
    """Outcomes by full name of the method, and what went wrong before, between and after methods."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


# ------------------------------------------------------------------------------------------------------- in pytest


@functools.cache
def method_names() -> tuple[str, ...]:
    """List the methods, in a subprocess: to import the suite is not for a process with other tests."""
    found = subprocess.run(command("list"), capture_output=True, text=True, env=environment(), timeout=60, check=False)
    assert found.returncode == 0, found.stderr
    return tuple(json.loads(found.stdout))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "method" in metafunc.fixturenames:
        names = method_names() if INSTALLED else ()
        metafunc.parametrize("method", names, ids=[".".join(name.split(".")[-2:]) for name in names])


@pytest.fixture(scope="module")
def run(request: pytest.FixtureRequest) -> Run:
    """Run the methods whose tests were selected; all of them when their number is to be tested."""
    items = [item for item in request.session.items if isinstance(item, pytest.Function) and item.path == request.path]
    names = {str(item.callspec.params["method"]) for item in items if hasattr(item, "callspec")}
    if any(item.function is test_enough_passed for item in items):
        names.update(method_names())
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        groups.setdefault(name.rpartition(".")[0], []).append(name)
    whole = Run()
    with concurrent.futures.ThreadPoolExecutor(SUBPROCESSES) as threads:
        # The largest first, because they take longest.
        for part in threads.map(run_all, sorted(groups.values(), key=len, reverse=True)):
            whole.outcomes.update(part.outcomes)
            whole.problems.extend(part.problems)
    return whole


def test_method(method: str, run: Run) -> None:
    """Our executor passes each of CPython's tests, except for those listed, and these fail as the list says."""
    outcome = run.outcomes[method]
    listed = LISTED.get(method.rpartition(".")[2]) if POOL == OURS else None
    if outcome.kind == "skipped":
        pytest.skip(outcome.text)
    if outcome.kind == "passed":
        assert outcome.executors > 0, "it passed, but made no executor"
        assert listed is None, "it passes: take it off the list"
    elif listed is None:
        pytest.fail(outcome.text, pytrace=False)
    else:
        pattern, reason = listed
        if not re.search(pattern, outcome.text):
            pytest.fail(f"{outcome.text}\nThe list says that it fails with {pattern!r}.", pytrace=False)
        pytest.xfail(reason)


def test_enough_passed(run: Run) -> None:
    """Tests of each part of CPython's suite were really run and passed, and no subprocess left anything behind."""
    passed = [name for name, outcome in run.outcomes.items() if outcome.kind == "passed"]
    classes = {name.split(".")[-2] for name in passed}
    parts = "AsCompleted Wait Initializer FailingInitializer ProcessPoolShutdown ProcessPoolExecutor ExecutorDeadlock"
    assert {f"ProcessPoolSpawn{part}Test" for part in parts.split()} <= classes
    assert len(passed) >= FEWEST_PASSED, passed
    assert not run.problems, "\n\n".join(run.problems)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tests.test_cpython_suite", *arguments]


def environment() -> dict[str, str]:
    """Let every interpreter that is started, at any depth, find this checkout."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path}


def run_all(names: list[str]) -> Run:
    """Run methods in one subprocess; and the rest in another, whenever a method hung or crashed."""
    whole = Run()
    while left := [name for name in names if name not in whole.outcomes]:
        before = len(whole.outcomes)
        run_once(left, whole)
        if len(whole.outcomes) == before:  # it would be no better the next time
            raise RuntimeError("\n\n".join(whole.problems))
    return whole


def run_once(names: list[str], whole: Run) -> None:
    """Run methods in one subprocess, as far as it comes, and add to `whole` what it reports."""
    mark = uuid.uuid4().hex
    arguments, variables = command("run", POOL, *names), {**environment(), MARK: mark}
    with (
        tempfile.TemporaryFile() as errors,  # a file never holds up who writes to it
        subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=errors, env=variables, cwd=ROOT) as process,
    ):
        begun, since = "before the first method", 0
        for message in messages(process):
            match message:
                case {"begun": begun, "printed": since}:
                    pass
                case {"ended": name, "kind": kind, "text": text, "executors": executors, "printed": until}:
                    whole.outcomes[name] = Outcome(kind, text + text_between(errors, since, until), executors)
                    begun, since = f"after {name}", until
                case {"problem": problem}:
                    whole.problems.append(problem)
        if process.wait():
            text = f"its process ended with {process.returncode} (it is ended if {TEST_SECONDS} s bring nothing new)\n"
            text += text_between(errors, since)
            if begun in names:
                whole.outcomes[begun] = Outcome("failed", text, executors=0)
            else:
                whole.problems.append(f"{begun}: {text}")
    _, left = psutil.wait_procs(marked(mark), timeout=ORPHAN_SECONDS)
    if left:
        whole.problems.append(f"after {begun}: processes left behind: {left}")
        for orphan in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                orphan.kill()


def messages(process: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    """Yield what a subprocess reports until it ends; end it when that takes too long."""
    assert process.stdout is not None
    while True:
        watchdog = threading.Timer(TEST_SECONDS, process.kill)
        watchdog.start()
        line = process.stdout.readline()
        watchdog.cancel()
        watchdog.join()
        if not line:
            return
        yield json.loads(line)


def marked(mark: str) -> list[psutil.Process]:
    """Find the processes of one run, at any depth, and those whose parents have died as well."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it has ended, or is none of ours
            if process.environ().get(MARK) == mark:
                found.append(process)
    return found


def text_between(file: IO[bytes], begin: int, end: int | None = None) -> str:
    file.seek(begin)
    return file.read(-1 if end is None else end - begin).decode(errors="replace")


# ------------------------------------------------------------------------------------------------ in the subprocess


def main(arguments: list[str]) -> None:
    """Print the names of methods (`list`), or run methods of one class with a pool (`run POOL NAME...`)."""
    # A way to the parent that no process started here inherits. What tests print goes elsewhere. It is open until the
    # interpreter has ended, so that the parent's watchdog sees a hang at that end, too.
    report = os.fdopen(os.dup(1), "w", encoding="utf-8", closefd=False)
    os.dup2(2, 1)
    if arguments[0] == "list":
        json.dump(list_methods(), report)
        report.flush()
    else:
        run_methods(arguments[1], arguments[2:], report)


def list_methods() -> list[str]:
    """Return the full names of all methods about process pools, without those for other start methods."""
    package = importlib.import_module(SUITE)  # a module in 3.10 and 3.11
    inner = [m.name for m in pkgutil.iter_modules(getattr(package, "__path__", ())) if m.name.startswith("test_")]
    names = []
    for module in [f"{SUITE}.{name}" for name in inner] or [SUITE]:
        with contextlib.suppress(unittest.SkipTest):  # a module on something that this Python was built without
            for case in vars(importlib.import_module(module)).values():
                if isinstance(case, type) and issubclass(case, unittest.TestCase):
                    methods = unittest.defaultTestLoader.getTestCaseNames(case)
                    names += [f"{module}.{case.__name__}.{method}" for method in methods]
    return [name for name in names if "ProcessPoolSpawn" in name or name.endswith("ResourcesTest.test_spawn")]


def run_methods(pool: str, names: list[str], report: IO[str]) -> None:
    """Run methods of one class of the suite, and report on each in lines of JSON."""
    faulthandler.enable()
    suite = unittest.defaultTestLoader.loadTestsFromNames(names)
    made = adopt(pool)
    before = Snapshot.take()
    reporter = Reporter(report, made, sys.modules["test.support"])
    suite.run(reporter)
    if leaks := find_leaks(before):
        reporter.send(problem=f"after {names}: left over at the end: {leaks}")


def adopt(pool: str) -> list[Any]:
    """Point everything in the suite's loaded modules that names the standard library's pool at another.

    Returns:
        A list that gets an entry for each executor that is made.
    """
    home, _, name = pool.rpartition(".")
    base = getattr(importlib.import_module(home), name)
    made: list[Any] = []

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - it becomes the method of that name
        made.append(None)
        base.__init__(self, *args, **kwargs)

    # A class of its own also because a method skips itself for the class that `concurrent.futures` has: that one hangs.
    counted = type(name, (base,), {"__init__": __init__})
    if base is not concurrent.futures.ProcessPoolExecutor:
        vars(concurrent.futures)["ProcessPoolExecutor"] = base
        concurrent.futures.process.ProcessPoolExecutor.__init__ = refuse  # type: ignore[method-assign]
    for module in [module for path, module in sys.modules.items() if path.startswith(SUITE)]:
        if hasattr(module, "ProcessPoolSpawnMixin"):
            module.ProcessPoolSpawnMixin.executor_type = counted
        if hasattr(module, "threading_helper"):
            module.threading_helper.threading_cleanup = threading_cleanup
        if hasattr(module, "assert_python_ok"):
            vars(module)["assert_python_ok"] = redirecting(module.assert_python_ok, home, name)
    return made


def refuse(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("a test has come past us to the standard library's pool")


def redirecting(assert_python_ok: Callable[..., Any], home: str, name: str) -> Callable[..., Any]:
    """Wrap CPython's function that runs a script, so that scripts import another pool, and can."""

    def wrapper(option: str, script: str) -> Any:
        # One script uses multiprocessing without importing it; nobody has noticed, because it is skipped for that pool.
        changed = script.replace("from concurrent.futures import", f"import multiprocessing; from {home} import")
        assert option == "-c"
        assert f"from {home} import {name}\n" in changed, script
        return assert_python_ok(option, changed, PYTHONPATH=os.environ["PYTHONPATH"])

    return wrapper


def threading_cleanup(count: int, dangling: object) -> None:
    """Do what the function of that name in CPython's later versions does: give the threads of a test a second to end.

    The one of 3.10 also minds the objects of threads that have ended, if only the garbage collector will free them.
    """
    support, deadline = sys.modules["test.support"], time.monotonic() + 1.0
    while _thread._count() > count:
        if time.monotonic() > deadline:
            vars(support)["environment_altered"] = True
            print("threads left behind:", threading.enumerate(), file=sys.stderr)
            return
        gc.collect()  # a traceback may keep an executor that was not shut down
        time.sleep(0.01)


class Reporter(unittest.TestResult):
    """Sends a line of JSON at the beginning and at the end of each method, and for each problem between them."""

    def __init__(self, report: IO[str], made: list[Any], support: Any) -> None:
        super().__init__()
        self._report = report
        self._made = made
        self._support = support
        self._support.verbose = False  # else it prints how long each method took
        self._kind = self._text = ""

    def send(self, **message: Any) -> None:
        self._report.write(json.dumps(message) + "\n")
        self._report.flush()

    def startTest(self, test: unittest.TestCase) -> None:
        self._kind, self._text = "", ""
        self._support.environment_altered = False
        self._made.clear()
        faulthandler.dump_traceback_later(DUMP_SECONDS)
        self.send(begun=test.id(), printed=printed())

    def stopTest(self, test: unittest.TestCase) -> None:
        faulthandler.cancel_dump_traceback_later()
        if self._kind == "passed" and self._support.environment_altered:
            self._kind, self._text = "failed", "it has left threads or processes behind\n"
        kind = self._kind or "failed"  # no outcome at all is none that we know
        self.send(ended=test.id(), kind=kind, text=self._text, executors=len(self._made), printed=printed())

    def addSuccess(self, test: unittest.TestCase) -> None:
        self._kind = self._kind or "passed"

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        self._kind, self._text = self._kind or "skipped", reason

    def addFailure(self, test: unittest.TestCase, err: Error) -> None:
        self.addError(test, err)

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Error | None) -> None:
        if err is not None:
            self.addError(subtest, err)

    def addError(self, test: unittest.TestCase, err: Error) -> None:
        text = f"{test}\n{''.join(traceback.format_exception(*err))}\n"
        if isinstance(test, unittest.TestCase):
            self._kind, self._text = "failed", self._text + text
        else:  # what unittest gives when a fixture of a module or class fails
            self.send(problem=text)


def printed() -> int:
    """Return how many bytes were printed so far, by us and by all below us."""
    sys.stdout.flush()
    sys.stderr.flush()
    return os.fstat(2).st_size


if __name__ == "__main__":
    main(sys.argv[1:])
