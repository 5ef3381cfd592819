"""`Client.submit`: what can be called with what, how the call is named, when it runs, and how it fails."""

from __future__ import annotations

import collections
import functools
import operator
import os
import re
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

import localdist
from localdist import CancelledError, Client, Future, Reschedule, get_worker
from localdist.errors import SerializationError
from tests.support import (
    Gate,
    add,
    cancelled_everywhere,
    div,
    echo,
    eventually,
    identity,
    inc,
    note,
    note_and_fail,
    notes,
    pid,
    settled,
    wait_at,
    worker_name,
)


def iter_nothing() -> Iterator[int]:
    yield from ()


class Adder:
    def __init__(self, amount: int) -> None:
        self.amount = amount

    def __call__(self, x: int) -> int:
        return x + self.amount

    def method(self, x: int) -> int:
        return x + self.amount

    @classmethod
    def from_class(cls, x: int) -> int:
        return x + 1

    @staticmethod
    def static(x: int) -> int:
        return x + 1


class Unhashable:
    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unhashable)

    def __call__(self, x: int) -> int:
        return x + 1


def decorated(func: Any) -> Any:
    @functools.wraps(func)
    def wrapper(*args: Any) -> Any:
        return func(*args)

    return wrapper


@decorated
def wrapped_inc(x: int) -> int:
    return x + 1


@functools.lru_cache
def cached_inc(x: int) -> int:
    return x + 1


def closure(amount: int) -> Any:
    def add_amount(x: int) -> int:
        return x + amount

    return add_amount


CALLABLES = {
    "lambda": lambda x: x + 1,
    "closure": closure(1),
    "partial": functools.partial(add, 1),
    "partial of a lambda": functools.partial(lambda x, y: x + y, y=1),
    "bound method": Adder(1).method,
    "class method": Adder.from_class,
    "static method": Adder.static,
    "callable instance": Adder(1),
    "wrapped": wrapped_inc,
    "wrapped lambda": decorated(lambda x: x + 1),
    "unhashable": Unhashable(),
    "builtin method": (1).__add__,
    "method caller": operator.methodcaller("__add__", 1),
    "cached": cached_inc,
    "ufunc": functools.partial(np.add, 1),
}


@pytest.mark.parametrize("func", CALLABLES.values(), ids=CALLABLES)
def test_any_callable_runs(client: Client, func: Any) -> None:
    """Every kind of callable can be submitted."""
    assert client.submit(func, 10).result() == 11


def test_classes_and_builtins_run(client: Client) -> None:
    """Classes and builtin functions are callables like others."""
    assert client.submit(Adder, 3).result().amount == 3
    assert client.submit(dict, a=1).result() == {"a": 1}
    assert client.submit(sum, [1, 2, 3]).result() == 6
    assert client.submit(operator.itemgetter(1), "abc").result() == "b"


def test_a_local_class_comes_back_as_itself(client: Client) -> None:
    """An instance of a class that no worker can import comes back as an instance of the very class here."""

    class Local:
        def __init__(self, x: int) -> None:
            self.x = x

    result = client.submit(Local, 5).result()
    assert type(result) is Local
    assert result.x == 5


def test_submit_returns_a_future_at_once(client: Client, gate: Gate) -> None:
    """The future is there while the task still runs, and the result when it has ended."""
    future = client.submit(wait_at, gate.address, 7)
    gate.wait_for()
    assert isinstance(future, Future)
    assert future.status == "pending"
    assert not future.done()
    gate.open()
    assert future.result() == 7
    assert future.status == "finished"
    assert future.done()


def test_what_is_not_callable_is_refused(client: Client) -> None:
    """Something that cannot be called is a TypeError from `submit` that names its type."""
    with pytest.raises(TypeError, match="callable, not int"):
        client.submit(3)  # type: ignore[arg-type]


# -- keys


def test_key_of_a_pure_call(client: Client) -> None:
    """It is the function's name and 32 hex digits, and equal calls have equal keys."""
    key = client.submit(add, 1, 2).key
    assert re.fullmatch(r"add-[0-9a-f]{32}", key)
    assert client.submit(add, 1, 2).key == key
    assert client.submit(add, 1, 3).key != key
    assert client.submit(identity, 1).key != client.submit(inc, 1).key


def test_key_of_an_impure_call(client: Client) -> None:
    """It is the function's name and a uuid4, different each time."""
    keys = [client.submit(add, 1, 2, pure=False).key for _ in range(2)]
    form = r"add-[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
    assert all(re.fullmatch(form, key) for key in keys)
    assert keys[0] != keys[1]


@pytest.mark.parametrize(
    ("func", "name"),
    [
        (lambda x: x, "lambda"),
        (functools.partial(add, 1), "add"),
        (functools.partial(functools.partial(add), 1), "add"),
        (Adder(1).method, "method"),
        (operator.methodcaller("bit_length"), "bit_length"),
        (len, "len"),
        (Adder, "Adder"),
        (np.vectorize(inc), "vectorize_inc"),
    ],
)
def test_names_in_keys(client: Client, func: Any, name: str) -> None:
    """The name in a key says what is called, whatever it is wrapped in."""
    assert client.submit(func, 1).key.rsplit("-", 1)[0] == name


def test_long_names_are_cut(client: Client) -> None:
    """At most 50 characters of a name go into the key."""

    def f() -> None:
        pass

    f.__name__ = "n" * 80
    assert client.submit(f).key.rsplit("-", 1)[0] == "n" * 50


def test_keys_tell_calls_apart(client: Client) -> None:
    """1, 1.0 and True differ, and so do positional and keyword arguments; the order of keywords does not matter."""
    futures = [client.submit(identity, x) for x in (1, 1.0, True, "1", b"1", (1,), [1])]
    assert len({f.key for f in futures}) == len(futures)
    assert client.submit(identity, 1).key != client.submit(identity, x=1).key
    assert client.submit(echo, a=1, b=2).key == client.submit(echo, b=2, a=1).key
    assert client.submit(echo, {"a": 1, "b": 2}).key == client.submit(echo, {"b": 2, "a": 1}).key
    assert client.submit(echo, {3, 1, 2}).key == client.submit(echo, {2, 3, 1}).key


def test_equal_closures_and_arrays_have_equal_keys(client: Client) -> None:
    """Two closures made alike, and two arrays with equal contents, are equal for keys; other contents are not."""
    assert client.submit(closure(4), 1).key == client.submit(closure(4), 1).key
    assert client.submit(closure(4), 1).key != client.submit(closure(5), 1).key
    assert client.submit(identity, np.arange(9)).key == client.submit(identity, np.arange(9)).key
    assert client.submit(identity, np.arange(9)).key != client.submit(identity, np.arange(9.0)).key


def test_what_cannot_be_named_is_not_shared(client: Client) -> None:
    """An argument without a stable description gets its call a key of its own, and no error."""
    thing = object()
    first, second = client.submit(type, thing), client.submit(type, thing)
    assert first.key != second.key
    assert first.result() is second.result() is object


def test_options_are_not_part_of_the_key(client: Client) -> None:
    """Retries, priority, workers and resources do not change what a call is."""
    plain = client.submit(inc, 100).key
    assert client.submit(inc, 100, retries=2, priority=3).key == plain
    assert client.submit(inc, 100, workers=[0], allow_other_workers=True).key == plain


def test_keys_are_the_same_in_other_processes(client: Client) -> None:
    """Another interpreter, with another hash seed, names equal calls equally."""
    code = (
        "from localdist import Client\nfrom tests.support import echo\n"
        "with Client(processes=False) as c: print(c.submit(echo, 1, 'a', [2.5], {'x', 'y'}, {'p': None}, w=3).key)"
    )
    here = client.submit(echo, 1, "a", [2.5], {"x", "y"}, {"p": None}, w=3).key
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        other = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        assert other.stdout.strip() == here


@pytest.mark.parametrize("key", ["mine", "größe-✓", 5, 2.5, ("a", 1), ("a", ("b", 2.0))])
def test_explicit_keys(client: Client, key: Any) -> None:
    """A str, int, float or nested tuple of those names a task."""
    future = client.submit(inc, 1, key=key)
    assert future.key == key
    assert future.result() == 2
    assert client.futures[key] == "finished"


@pytest.mark.parametrize("key", [b"bytes", ["list"], object(), ("a", [1]), {1}])
def test_keys_of_other_types_are_refused(client: Client, key: Any) -> None:
    """Any other key is a TypeError from `submit`."""
    with pytest.raises(TypeError, match="a key is a str, int, float"):
        client.submit(inc, 1, key=key)


def test_key_none_means_automatic(client: Client) -> None:
    """`key=None` is as if it were not given."""
    assert client.submit(inc, 1, key=None).key == client.submit(inc, 1).key


def test_explicit_key_in_use_gives_the_existing_task(client: Client) -> None:
    """While a future with the key lives, the call is ignored, whatever it is; afterwards it counts again."""
    first = client.submit(inc, 1, key="taken")
    second = client.submit(add, 10, 20, key="taken")
    assert second.result() == 2
    del first, second
    assert client.submit(add, 10, 20, key="taken").result() == 30


@pytest.mark.parametrize("ended", [True, False], ids=["ended", "pending"])
def test_a_released_key_is_free_at_once(either: Client, ended: bool) -> None:
    """After `release` the key names whatever is submitted with it next, whether the first task had ended or not."""
    for number in range(60):
        first = either.submit(inc, number, key="reused")
        if ended:
            assert first.result() == number + 1
        first.release()
        second = either.submit(add, number, 1000, key="reused")
        assert second.result() == number + 1000
        second.release()


@pytest.mark.parametrize("how", ["release", "del"])
def test_a_key_that_only_a_dependent_needs_is_free(either: Client, gate: Gate, how: str) -> None:
    """A new task takes the key of one that only its dependent still needs; each has the value of its own function."""
    first = either.submit(wait_at, gate.address, 1, key="needed")
    dependent = either.submit(inc, first, pure=False)
    gate.wait_for()
    if how == "release":
        first.release()
    else:
        del first
    second = either.submit(add, 10, 20, key="needed")
    assert second.result() == 30
    gate.open()
    assert dependent.result() == 2
    assert either.submit(inc, second, pure=False).result() == 31


# -- sharing


def test_equal_pure_calls_run_once_while_held(client: Client, tmp_path: Any) -> None:
    """Equal calls share one run, and are two futures, as long as one of them lives; later the call runs again."""
    path = str(tmp_path / "runs")
    first = client.submit(note, path, "x")
    second = client.submit(note, path, "x")
    assert first is not second
    assert first != second
    assert first.result() == second.result() == "x"
    del first
    assert client.submit(note, path, "x").result() == "x"
    assert notes(path) == ["x"]
    del second
    eventually(client, lambda: not client.futures)
    assert client.submit(note, path, "x").result() == "x"
    assert notes(path) == ["x", "x"]


def read(paths: Any) -> str:
    """Return what a file holds, or the first of a list of files."""
    with open(paths if isinstance(paths, str) else paths[0], encoding="utf-8") as file:
        return file.read()


def read_and_delete(client: Client, path: str) -> str:
    future = client.submit(read, path)
    text: str = future.result()
    del future
    return text


def read_and_release(client: Client, path: str) -> str:
    future = client.submit(read, path)
    text: str = future.result()
    future.release()
    return text


def read_and_drop_both(client: Client, path: str) -> str:
    first, second = client.submit(read, path), client.submit(read, path)
    text: str = first.result()
    del second
    first.release()
    return text


READERS: dict[str, Callable[[Client, str], str]] = {
    "temporary": lambda client, path: client.submit(read, path).result(),
    "del": read_and_delete,
    "release": read_and_release,
    "two handles": read_and_drop_both,
    "key": lambda client, path: client.submit(read, path, key="what the file holds").result(),
    "keyword": lambda client, path: client.submit(read, paths=path).result(),
    "list": lambda client, path: client.submit(read, [path]).result(),
    "map": lambda client, path: client.gather(client.map(read, [path] * 2))[1],
    "map of lists": lambda client, path: client.gather(client.map(read, [[path]]))[0],
    "map with keys": lambda client, path: client.gather(client.map(read, [path], key=["what the file holds"]))[0],
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_an_equal_call_after_the_last_future_runs_anew(
    either: Client, tmp_path: Any, reader: Callable[[Client, str], str]
) -> None:
    """At once after the last future of a pure call has gone, however it went, an equal call is run, not remembered."""
    path = tmp_path / "changing"
    for number in range(60):
        path.write_text(str(number))
        assert reader(either, str(path)) == str(number)


def test_failures_are_shared_too(client: Client, tmp_path: Any) -> None:
    """Submitting a failed call again gives its stored error, while somebody holds it."""
    path = str(tmp_path / "runs")
    first = client.submit(note_and_fail, path)
    with pytest.raises(ValueError, match="it failed"):
        first.result()
    second = client.submit(note_and_fail, path)
    assert second.status == "error"
    with pytest.raises(ValueError, match="it failed"):
        second.result()
    assert notes(path) == ["ran"]


def test_impure_calls_always_run(client: Client, tmp_path: Any) -> None:
    """`pure=False` runs every call."""
    path = str(tmp_path / "runs")
    client.gather([client.submit(note, path, "x", pure=False) for _ in range(3)])
    assert notes(path) == ["x"] * 3


def test_futures_count_by_what_they_stand_for(client: Client) -> None:
    """Two handles of one task are equal inputs."""
    a, b = client.submit(inc, 1), client.submit(inc, 1)
    assert client.submit(inc, a).key == client.submit(inc, b).key
    assert client.submit(echo, [a]).key == client.submit(echo, [b]).key
    assert client.submit(inc, a).key != client.submit(inc, client.submit(inc, 2)).key


# -- arguments


class Pair(NamedTuple):
    left: Any
    right: Any


def test_futures_are_replaced_at_any_depth(client: Client) -> None:
    """In lists, tuples, sets, dict values and named tuples, positional or keyword, a future becomes its result."""
    one, two = client.submit(inc, 0), client.submit(inc, 1)
    args, kwargs = client.submit(
        echo,
        one,
        [two, [one]],
        (one, (two,)),
        {one, two},
        {"k": [two]},
        Pair(one, [two]),
        word={"x": (one, {"y": two})},
    ).result()
    assert args == (1, [2, [1]], (1, (2,)), {1, 2}, {"k": [2]}, Pair(1, [2]))
    assert type(args[5]) is Pair
    assert kwargs == {"word": {"x": (1, {"y": 2})}}


def test_one_future_in_many_places(client: Client) -> None:
    """The same future may be given several times."""
    one = client.submit(inc, 0)
    assert client.submit(echo, one, one, [one, one], x=one).result() == ((1, 1, [1, 1]), {"x": 1})


def test_subclasses_with_futures_arrive_plain(client: Client) -> None:
    """A subclass of list or dict that holds a future arrives as list or dict; without one it stays what it is."""
    one = client.submit(inc, 0)
    ordered = collections.OrderedDict(a=one)
    (with_future, without), _ = client.submit(echo, ordered, collections.OrderedDict(a=1)).result()
    assert type(with_future) is dict
    assert with_future == {"a": 1}
    assert type(without) is collections.OrderedDict


def describe_future(value: Any) -> Any:
    (future,) = value
    try:
        future.result()
    except RuntimeError as error:
        return type(future).__name__, future.key, str(error)
    return None


@pytest.mark.parametrize("container", [frozenset, collections.deque, lambda f: {f[0]: 1}])
def test_futures_elsewhere_stay_futures(client: Client, container: Any) -> None:
    """In dict keys, frozensets and other objects a future arrives as a Future, which says why it cannot be used."""
    one = client.submit(inc, 0)
    kind, key, text = client.submit(describe_future, container([one])).result()
    assert (kind, key) == ("Future", one.key)
    assert "not bound to a client" in text


def test_futures_in_objects_come_back_usable(client: Client) -> None:
    """A future that travelled inside an object through a task is bound again in the process of its client."""
    one = client.submit(inc, 0)
    (back,) = client.submit(identity, collections.deque([one])).result()
    assert back.result() == 1
    assert back.client is client


def test_plain_arguments_are_left_alone(client: Client) -> None:
    """A string that is a key, a tuple that begins with a callable, and lists arrive as they are."""
    one = client.submit(inc, 0)
    args, _ = client.submit(echo, one.key, (inc, 1), [1, [2]]).result()
    assert args == (one.key, (inc, 1), [1, [2]])


def test_arguments_are_taken_at_submit(client: Client, gate: Gate) -> None:
    """What is written into an argument after `submit` is not seen by the task."""
    blockers = client.map(wait_at, [gate.address] * 2, pure=False)
    gate.wait_for(2)
    data, array = [1], np.zeros(100_000)
    futures = [client.submit(identity, data), client.submit(np.sum, array)]
    data.append(2)
    array[:] = 1
    gate.open()
    assert client.gather(futures) == [[1], 0]
    assert client.gather(blockers) == [None, None]


def grow(items: list[int]) -> list[int]:
    items.append(0)
    return items


def test_tasks_may_change_their_arguments(client: Client) -> None:
    """What a task does to an argument is seen by nobody else: neither another task nor the stored value."""
    data = client.scatter([[1]])[0]
    futures = [client.submit(grow, data, pure=False) for _ in range(4)]
    assert client.gather(futures) == [[1, 0]] * 4
    assert data.result() == [1]


def test_other_keywords_go_to_the_function(client: Client) -> None:
    """Every keyword that is not an option is the function's, `asynchronous`, `func` and `self` included."""
    options: dict[str, Any] = {"asynchronous": 1, "func": 2, "self": 3}
    assert client.submit(echo, **options).result() == ((), options)


@pytest.mark.parametrize(
    "argument", [threading.Lock(), iter_nothing(), [threading.Lock()]], ids=["lock", "generator", "list"]
)
def test_arguments_that_cannot_be_pickled(client: Client, argument: Any) -> None:
    """They are a TypeError from `submit`, which names the type; nothing is left of the call."""
    before = set(client.futures)
    with pytest.raises(TypeError, match=r"lock|generator") as info:
        client.submit(identity, argument, key="unpicklable")
    assert isinstance(info.value, SerializationError)
    assert info.value.key == "unpicklable"
    assert set(client.futures) == before


def test_what_comes_later_says_so(client: Client) -> None:
    """Actors and time limits are refused with a clear error, not ignored."""
    for options in ({"actor": True}, {"actors": True}, {"timeout": 1}):
        with pytest.raises(NotImplementedError, match="later version"):
            client.submit(inc, 1, **options)
        with pytest.raises(NotImplementedError, match="later version"):
            client.map(inc, [1], **options)


# -- where and when


def fail_until(path: str, runs: int) -> int:
    note(path, "run")
    count = len(notes(path))
    if count < runs:
        raise ValueError(f"run {count}")
    return count


def test_retries(client: Client, tmp_path: Any) -> None:
    """`retries=n` allows n further runs after an exception, then the last exception stands."""
    good, bad = str(tmp_path / "good"), str(tmp_path / "bad")
    assert client.submit(fail_until, good, 3, retries=2).result() == 3
    with pytest.raises(ValueError, match="run 3"):
        client.submit(fail_until, bad, 9, retries=2).result()
    assert len(notes(bad)) == 3


def hold_both(client: Client, gate: Gate) -> list[Future]:
    """Occupy both workers of a client until the gate opens."""
    blockers = client.map(wait_at, [gate.address] * 2, pure=False)
    gate.wait_for(2)
    return blockers


def test_priority_decides_the_order(gate: Gate, tmp_path: Any) -> None:
    """Higher priorities run earlier; equal ones in the order of submission."""
    path = str(tmp_path / "order")
    with Client(n_workers=1, threads_per_worker=1) as client:
        blocker = client.submit(wait_at, gate.address)
        gate.wait_for()
        futures = [client.submit(note, path, f"{p}/{i}", priority=p) for i in range(2) for p in (0, -1, 1, 5, -7)]
        gate.open()
        client.gather([blocker, *futures])
    assert notes(path) == [f"{p}/{i}" for p in (5, 1, 0, -1, -7) for i in range(2)]


def test_equal_priorities_run_in_the_order_of_submission(gate: Gate, tmp_path: Any) -> None:
    """One slot runs tasks oldest first; elements of `map` in the order of the input."""
    path = str(tmp_path / "order")
    with Client(n_workers=1, threads_per_worker=1) as client:
        blocker = client.submit(wait_at, gate.address)
        gate.wait_for()
        futures = [client.submit(note, path, f"s{i}") for i in range(5)]
        futures += client.map(note, [path] * 20, [f"m{i}" for i in range(20)])
        gate.open()
        client.gather([blocker, *futures])
    assert notes(path) == [f"s{i}" for i in range(5)] + [f"m{i}" for i in range(20)]


def test_workers_restrict_where_a_task_runs(client: Client) -> None:
    """A name, an address, or a list or set of them: the task runs only there."""
    for address, one in client.scheduler_info()["workers"].items():
        for workers in (one["name"], address, [one["name"]], {address}):
            futures = [client.submit(pid, i, workers=workers, pure=False) for i in range(5)]
            assert set(client.gather(futures)) == {one["pid"]}
            assert set(client.gather(client.map(pid, range(5), workers=workers, pure=False))) == {one["pid"]}


def test_workers_that_do_not_exist(client: Client) -> None:
    """A task for a worker that nobody is stays pending, and holds up nobody else."""
    future = client.submit(inc, 1, workers="nobody", key="nowhere")
    assert client.gather(client.map(inc, range(20))) == list(range(1, 21))
    assert future.status == "pending"
    future.cancel()


def test_allow_other_workers(client: Client) -> None:
    """It makes `workers` a preference: somebody else may do it; without `workers` it makes no sense."""
    assert client.submit(inc, 41, workers="nobody", allow_other_workers=True).result() == 42
    with pytest.raises(ValueError, match="goes with workers"):
        client.submit(inc, 1, allow_other_workers=True)
    with pytest.raises(TypeError, match="must be a bool"):
        client.submit(inc, 1, workers=[0], allow_other_workers=1)  # type: ignore[arg-type]


def test_resources_limit_what_runs_at_a_time(gate: Gate) -> None:
    """A worker runs only as many tasks at a time as it has of the resource that they ask for."""
    with Client(n_workers=1, threads_per_worker=3, resources={"GPU": 1}) as client:
        futures = client.map(wait_at, [gate.address] * 3, range(3), resources={"GPU": 1})
        gate.wait_for()
        assert client.submit(inc, 1).result() == 2, "a task without the resource is not held up"
        assert sum(map(len, client.processing().values())) == 1
        for _ in range(2):
            gate.open()
            gate.wait_for()
            assert sum(map(len, client.processing().values())) == 1
        gate.open()
        assert client.gather(futures) == [0, 1, 2]


def test_resources_that_nobody_has(client: Client) -> None:
    """A demand that nobody offers keeps the task pending, without an error."""
    future = client.submit(inc, 1, resources={"GPU": 1}, key="no such thing")
    assert client.submit(inc, 2).result() == 3
    assert future.status == "pending"
    future.cancel()
    assert future.status == "cancelled"


def again_until(path: str, runs: int) -> int:
    note(path, "run")
    if len(notes(path)) < runs:
        raise Reschedule
    return len(notes(path))


def test_reschedule(client: Client, tmp_path: Any) -> None:
    """A task that raises Reschedule runs again, without using up a retry."""
    assert client.submit(again_until, str(tmp_path / "runs"), 4).result() == 4


def see_worker() -> Any:
    worker = get_worker()
    seen_in_thread: list[Any] = []

    def look() -> None:
        try:
            seen_in_thread.append(get_worker())
        except ValueError as error:
            seen_in_thread.append(str(error))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return worker.address, worker.name, worker.id, worker.pid, worker.get_current_task(), seen_in_thread, os.getpid()


def test_get_worker(client: Client) -> None:
    """In a task it says where and as what it runs; outside, and in threads of the task's own, it is a ValueError."""
    future = client.submit(see_worker)
    address, name, identifier, number, key, seen, actual = future.result()
    known = client.scheduler_info()["workers"][address]
    assert (known["name"], known["pid"]) == (name, number)
    assert identifier == address
    assert number == actual
    assert key == future.key
    assert "outside a task" in seen[0]
    with pytest.raises(ValueError, match="outside a task"):
        get_worker()


def remember(x: int) -> int:
    worker = get_worker()
    worker.seen = getattr(worker, "seen", 0) + x  # type: ignore[attr-defined]
    return int(worker.seen)  # type: ignore[attr-defined]


def test_workers_remember_what_tasks_put_on_them(client: Client) -> None:
    """Attributes that a task sets on its worker are there for the next task on the same worker."""
    assert [client.submit(remember, 1, workers=[0], pure=False).result() for _ in range(3)] == [1, 2, 3]
    assert client.submit(remember, 1, workers=[1]).result() == 1
    assert client.submit(worker_name, workers=[1]).result() == 1


# -- failing


class CustomError(Exception):
    def __init__(self, code: int, *, extra: str = "") -> None:
        super().__init__(code)
        self.code = code
        self.extra = extra


def fail_with_cause() -> None:
    try:
        div(1, 0)
    except ZeroDivisionError as cause:
        raise CustomError(5, extra="more") from cause


def test_exceptions_arrive_intact(client: Client) -> None:
    """Class, arguments, attributes and cause of an exception are those that the task raised."""
    with pytest.raises(CustomError) as info:
        client.submit(fail_with_cause).result()
    assert (info.value.code, info.value.extra, info.value.args) == (5, "more", (5,))
    assert isinstance(info.value.__cause__, ZeroDivisionError)


def test_traceback_shows_the_users_frames(client: Client) -> None:
    """The remote traceback holds the user's frames only, with their source lines, down to where it was raised."""
    future = client.submit(fail_with_cause)
    frames = traceback.extract_tb(future.traceback())
    assert [frame.name for frame in frames] == ["fail_with_cause"]
    assert frames[0].line == 'raise CustomError(5, extra="more") from cause'
    with pytest.raises(CustomError) as info:
        future.result()
    names = [frame.name for frame in traceback.extract_tb(info.value.__traceback__)]
    assert names[-1] == "fail_with_cause"
    assert len(names) < 4
    shown = "".join(traceback.format_exception(info.value))
    assert "return x / y" in shown, "the cause has its frames too"


def test_dependents_fail_with_the_same_error(client: Client, tmp_path: Any) -> None:
    """What depends on a failed task, at any depth and in any container, fails alike and never runs."""
    path = str(tmp_path / "runs")
    failed = client.submit(fail_with_cause)
    first = client.submit(note, path, [failed])
    second = client.submit(note, path=path, text={"x": first})
    with pytest.raises(CustomError):
        second.result()
    assert first.status == second.status == failed.status == "error"
    assert [f.name for f in traceback.extract_tb(second.traceback())] == ["fail_with_cause"]
    assert isinstance(first.exception(), CustomError)
    late = client.submit(note, path, failed)
    assert isinstance(late.exception(), CustomError)
    assert notes(path) == []


class OwnBaseException(BaseException):
    pass


def raise_one(kind: type[BaseException]) -> None:
    raise kind("on purpose")


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, OwnBaseException, StopIteration])
def test_base_exceptions_are_the_tasks_own(client: Client, kind: type[BaseException]) -> None:
    """Whatever a task raises is its error, and its worker lives on."""
    before = set(client.gather(client.map(pid, range(20), pure=False)))
    future = client.submit(raise_one, kind, pure=False)
    with pytest.raises(kind, match="on purpose"):
        future.result()
    assert future.status == "error"
    assert isinstance(future.exception(), kind)
    workers = {one["pid"] for one in client.scheduler_info()["workers"].values()}
    assert before <= workers


def test_depending_on_a_cancelled_future(client: Client) -> None:
    """A task that depends on a cancelled or released future is cancelled."""
    for give_up in (Future.cancel, Future.release):
        one = client.submit(inc, 1, pure=False)
        give_up(one)
        two = client.submit(inc, one, pure=False)
        with pytest.raises(CancelledError):
            two.result()
        assert two.status == "cancelled"


def test_intermediate_futures_may_be_dropped(client: Client, gate: Gate) -> None:
    """A future that another task depends on may be dropped: its task runs, and its value is there."""
    blockers = hold_both(client, gate)
    x = client.submit(inc, 10, pure=False)
    y = client.submit(inc, x)
    del x
    settled(client)
    gate.open()
    assert y.result() == 12
    client.gather(blockers)


def test_dropped_work_never_begins(client: Client, gate: Gate, tmp_path: Any) -> None:
    """Work that has not begun when its last future goes is dropped without running; what runs, runs to its end."""
    path = str(tmp_path / "runs")
    blockers = hold_both(client, gate)
    future = client.submit(note, path, "dropped")
    del future
    cancelled_everywhere(client)
    gate.open()
    client.gather(blockers)
    assert client.gather(client.map(note, [path] * 4, range(4))) == [0, 1, 2, 3]
    assert sorted(notes(path)) == ["0", "1", "2", "3"]


def test_version_is_text() -> None:
    """The package says its version."""
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", localdist.__version__)
