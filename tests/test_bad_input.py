"""What cannot be pickled or unpickled, at each end: that future alone fails, promptly, and says what and why."""

from __future__ import annotations

import sys
import threading
import traceback
from pathlib import Path

import pytest

import localdist
from localdist import Client
from localdist.errors import DeserializationError, SerializationError
from tests.support import inc

LOCK = threading.Lock()


class NotPicklable:
    """Refuses to be pickled."""

    def __reduce__(self):
        raise RuntimeError("I stay here")


def refuse_to_load(text):
    raise LookupError(text)


class NotLoadable:
    """Is pickled, and refuses to be rebuilt."""

    def __reduce__(self):
        return refuse_to_load, ("I do not come back",)


def in_client(text):
    if threading.current_thread().name.startswith("localdist") or not is_worker():
        raise LookupError(text)
    return "rebuilt"


def in_worker(text):
    if is_worker():
        raise LookupError(text)
    return "rebuilt"


def is_worker():
    from localdist._worker._context import current

    return current.runner is not None


class NotLoadableInClient:
    def __reduce__(self):
        return in_client, ("not in the client",)


class NotLoadableInWorker:
    def __reduce__(self):
        return in_worker, ("not in the worker",)


@pytest.fixture(autouse=True)
def others(client):
    """What else is there completes: twenty tasks beside each failure."""
    futures = client.map(inc, range(20), pure=False)
    yield
    assert client.gather(futures) == list(range(1, 21))


def text_of(error):
    return "".join(traceback.format_exception(type(error), error, error.__traceback__))


# -- arguments


@pytest.mark.parametrize(
    "argument", [NotPicklable(), LOCK, [1, {"a": LOCK}], (i for i in "ab")], ids=lambda a: type(a).__name__
)
def test_argument_that_cannot_be_pickled(client, argument):
    """`submit` raises a TypeError with the key, the innermost culprit's type, and the pickler's error as the cause."""
    culprit = argument[1]["a"] if isinstance(argument, list) else argument
    with pytest.raises(SerializationError) as caught:
        client.submit(inc, argument, key="mine")
    assert isinstance(caught.value, TypeError)
    assert caught.value.key == "mine"
    assert type(culprit).__name__ in str(caught.value)
    assert "the argument of task 'mine' cannot be pickled" in str(caught.value)
    assert caught.value.__cause__ is not None
    assert "mine" not in client.futures


def test_argument_of_map_that_cannot_be_pickled(client):
    """`map` raises it too; what it had submitted before is given up."""
    with pytest.raises(SerializationError, match=r"NotPicklable.*I stay here"):
        client.map(inc, [1, NotPicklable(), 3], pure=False)


def test_data_that_cannot_be_pickled(client):
    """`scatter` raises a TypeError that names the type."""
    with pytest.raises(SerializationError, match="lock"):
        client.scatter([1, LOCK])


def test_argument_that_cannot_be_unpickled(client):
    """The task fails with a RuntimeError: key, the original error as the cause, and the frame that raised it."""
    future = client.submit(inc, NotLoadable())
    with pytest.raises(DeserializationError) as caught:
        future.result(20)
    error = caught.value
    assert isinstance(error, RuntimeError)
    assert future.status == "error"
    assert f"the argument of task {future.key!r} cannot be unpickled: LookupError: I do not come back" in str(error)
    assert type(error.__cause__) is LookupError
    assert "in refuse_to_load" in text_of(error)
    assert "raise LookupError(text)" in text_of(error)


def test_future_as_argument_that_cannot_be_unpickled_in_the_worker(client):
    """A result that only the client can rebuild is fine there, and fails what depends on it."""
    value = client.scatter(NotLoadableInWorker(), hash=False)
    assert value.result() == "rebuilt"
    user = client.submit(inc, value)
    with pytest.raises(DeserializationError, match=r"argument.*not in the worker") as caught:
        user.result(20)
    assert caught.value.key == user.key
    assert value.status == "finished"


# -- functions


def test_function_that_cannot_be_pickled(client):
    """`submit` and `map` raise a TypeError that names what the function holds."""
    lock = LOCK

    def holds_a_lock():
        return lock

    for call in (lambda: client.submit(holds_a_lock), lambda: client.map(holds_a_lock, [1])):
        with pytest.raises(SerializationError, match=r"function.*lock"):
            call()


@pytest.fixture
def module_only_here(tmp_path, monkeypatch):
    """A module that the workers, which started before, cannot import."""
    (tmp_path / "only_in_client.py").write_text(
        "def f(x):\n    return x\n\nclass Value:\n    pass\n\nclass Oops(Exception):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import only_in_client  # type: ignore[import-not-found]

    yield only_in_client
    del sys.modules["only_in_client"]


def test_function_that_cannot_be_loaded(client, module_only_here):
    """A function of a module that the worker does not have: the task fails with key and the module's name."""
    future = client.submit(module_only_here.f, 1)
    with pytest.raises(DeserializationError, match=r"function.*ModuleNotFoundError.*only_in_client") as caught:
        future.result(20)
    assert caught.value.key == future.key
    assert type(caught.value.__cause__) is ModuleNotFoundError
    # Each element of a map fails by itself.
    for one in client.map(module_only_here.f, range(3)):
        assert type(one.exception(20)) is DeserializationError


def test_argument_whose_class_cannot_be_loaded(client, module_only_here):
    """An instance of such a module's class fails the task that gets it."""
    future = client.submit(inc, module_only_here.Value())
    with pytest.raises(DeserializationError, match=r"argument.*only_in_client"):
        future.result(20)


# -- results


def make_unpicklable():
    return NotPicklable()


def make_lock():
    return {"deep": [threading.Lock()]}


@pytest.mark.parametrize(("function", "culprit"), [(make_unpicklable, "NotPicklable"), (make_lock, "lock")])
def test_result_that_cannot_be_pickled(client, function, culprit):
    """The task fails with a TypeError that names key and type, and tells what to do; its dependents fail with it."""
    future = client.submit(function)
    user = client.submit(str, future)
    for one in (future, user):
        with pytest.raises(SerializationError, match=culprit) as caught:
            one.result(20)
        assert one.status == "error"
        assert caught.value.key == future.key
        assert caught.value.what == "result"
        assert f"the result of task {future.key!r} cannot be pickled" in str(caught.value)
        assert "__reduce__" in str(caught.value)


def test_pickling_error_carries_the_users_frame(client):
    """What a result's own code raised is the cause, with the frame in which it happened."""
    error = client.submit(make_unpicklable).exception(20)
    assert type(error.__cause__) is RuntimeError
    assert "in __reduce__" in text_of(error)
    assert "I stay here" in text_of(error)


def make_unloadable():
    return NotLoadableInClient()


def test_result_that_cannot_be_unpickled_in_the_client(client):
    """`result` and `gather` raise a RuntimeError with key and cause; workers that can rebuild it use it."""
    future = client.submit(make_unloadable)
    for get in (future.result, lambda: client.gather([future])):
        with pytest.raises(DeserializationError, match="not in the client") as caught:
            get()
        assert caught.value.key == future.key
        assert type(caught.value.__cause__) is LookupError
    assert future.status == "finished"
    assert client.submit(str.upper, future).result(20) == "REBUILT"
    assert "finished" in repr(future)


def test_deeply_nested_result(client):
    """A result that is nested deeper than pickling can follow fails its task, and nothing else."""

    def nest(depth):
        value: list = []
        for _ in range(depth):
            value = [value]
        return value

    future = client.submit(nest, 100_000)
    with pytest.raises(SerializationError, match="recursion"):
        future.result(30)


# -- exceptions


class HoldsALock(Exception):
    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()


class TakesTwo(Exception):
    """Is pickled, and cannot be rebuilt: pickle calls it with one argument."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


class Unspeakable(Exception):
    """Nothing can be done with it."""

    def __str__(self):
        raise SystemExit("no text")

    __repr__ = __str__

    def __reduce__(self):
        raise KeyboardInterrupt("no pickle")


class BadNotes(Exception):
    def __init__(self):
        super().__init__("with notes")
        self.__notes__ = 5  # type: ignore[assignment]  # that is the point
        self.lock = threading.Lock()


def raise_it(make, *args):
    raise make(*args)


@pytest.mark.parametrize(
    ("make", "args", "text"),
    [
        (HoldsALock, ("a lock inside",), "HoldsALock('a lock inside')"),
        (TakesTwo, (1, 2), "TakesTwo('1 and 2')"),
        (Unspeakable, (), "Unspeakable"),
        (BadNotes, (), "BadNotes"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_exception_that_cannot_be_pickled_or_rebuilt(client, make, args, text):
    """An Exception with the original's repr takes its place; a note tells key, type and why; the worker lives on."""
    workers = client.scheduler_info()["workers"]
    future = client.submit(raise_it, make, *args)
    error = future.exception(20)
    assert type(error) is Exception
    assert text in str(error)
    notes = "\n".join(error.__notes__)
    assert repr(future.key) in notes
    with pytest.raises(Exception, match=make.__name__):
        future.result()
    assert client.scheduler_info()["workers"] == workers


def test_stand_ins_keep_the_traceback(client):
    """The traceback of an exception that could not travel shows where it was raised."""
    error = client.submit(raise_it, HoldsALock, "x").exception(20)
    assert "in raise_it" in text_of(error)
    assert "raise make(*args)" in text_of(error)


def make_foreign_error():
    made = {"__module__": "nowhere", "__reduce__": lambda self: (vanish, ("Oops",))}
    raise type("Oops", (Exception,), made)("far away")


def vanish(name):
    if not is_worker():
        raise ImportError(f"there is no {name} here")
    return type(name, (Exception,), {"__module__": "nowhere"})("far away")


def test_exception_that_cannot_be_unpickled_in_the_client(client):
    """The task fails with an Exception that shows what the worker saw."""
    error = client.submit(make_foreign_error).exception(20)
    assert type(error) is Exception
    assert "far away" in str(error)
    assert "in make_foreign_error" in text_of(error)


@pytest.mark.parametrize(
    "error", [SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration, BaseException], ids=lambda e: e.__name__
)
def test_base_exceptions_are_the_tasks_own(client, error):
    """Whatever a task raises is its error, is raised by `result`, and costs no worker."""
    workers = client.scheduler_info()["workers"]
    future = client.submit(raise_it, error, 7)
    with pytest.raises(error) as caught:
        future.result(20)
    assert type(caught.value) is error
    assert caught.value.args == (7,)
    assert future.status == "error"
    assert client.scheduler_info()["workers"] == workers


def test_calls_outside_of_the_queue(client, module_only_here):
    """`Client.run` gets the same errors, and waits for no answer that never comes."""
    with pytest.raises(SerializationError, match="lock"):
        client.run(inc, LOCK)
    with pytest.raises(TypeError, match="lock"):
        client.run(make_lock)
    with pytest.raises(ModuleNotFoundError, match="only_in_client"):
        client.run(module_only_here.f, 1)
    with pytest.raises(SystemExit):
        client.run(sys.exit, 3)
    with pytest.raises(SystemExit):
        client.run(make_exiting)
    answers = client.run(raise_it, HoldsALock, "x", on_error="return")
    assert {type(a) for a in answers.values()} == {Exception}


class ExitsWhenPickled:
    def __reduce__(self):
        raise SystemExit(4)


def make_exiting():
    return ExitsWhenPickled()


def test_a_task_with_bad_and_good_neighbours(client):
    """Of many tasks sent together only the bad ones fail, each with its own key."""
    futures = client.map(inc, [NotLoadable() if i % 10 == 3 else i for i in range(50)], pure=False)
    localdist.wait(futures)
    for i, future in enumerate(futures):
        if i % 10 == 3:
            assert type(future.exception()) is DeserializationError
            assert future.exception().key == future.key
        else:
            assert future.result() == i + 1


def test_threads_pickle_nothing(tmp_path: Path):
    """With `processes=False` nothing has to be picklable."""
    with Client(processes=False, n_workers=1, threads_per_worker=1) as threads:
        assert type(threads.submit(lambda lock: lock, LOCK).result(20)) is type(LOCK)
        assert type(threads.submit(make_unpicklable).result(20)) is NotPicklable
        error = threads.submit(raise_it, HoldsALock, "x").exception(20)
        assert type(error) is HoldsALock
        for base in (SystemExit, KeyboardInterrupt):
            assert type(threads.submit(raise_it, base, 1).exception(20)) is base
        assert threads.submit(inc, 1).result(20) == 2
