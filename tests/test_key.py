from __future__ import annotations

import collections
import copy
import dataclasses
import datetime
import decimal
import enum
import functools
import importlib
import operator
import os
import pathlib
import pickle
import re
import subprocess
import sys
import threading
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_128_digest

from localdist import _key
from localdist._key import Digests, Unstable, call_key, check_key, function_digest, function_name, random_key, token

if TYPE_CHECKING:
    from types import ModuleType

ROOT = pathlib.Path(_key.__file__).parents[1]


def inc(x: int) -> int:
    return x + 1


class Color(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass
class Point:
    x: Any
    y: Any = None

    def norm(self) -> Any:
        return self.x

    @classmethod
    def origin(cls) -> Point:
        return cls(0, 0)


class Named:
    """Stands for its name, whatever else it holds, as futures do."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lock = threading.Lock()

    def __localdist_token__(self) -> object:
        return self.name


class OtherNamed(Named):
    pass


def nested(depth: int) -> list[Any]:
    value: list[Any] = [int]
    for _ in range(depth):
        value = [value]
    return value


def buffer_of(value: object) -> pickle.PickleBuffer:
    """Return the buffer that pickling gives."""
    buffers: list[pickle.PickleBuffer] = []
    pickle.dumps(value, 5, buffer_callback=buffers.append)
    return buffers[0]


def run_python(code: str, *, hash_seed: int = 0, cwd: pathlib.Path | None = None) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": str(hash_seed)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def module_file(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # two versions within a second look alike to its cache
    monkeypatch.delitem(sys.modules, "edited_for_key", raising=False)
    return tmp_path / "edited_for_key.py"


def load(path: pathlib.Path, source: str) -> ModuleType:
    path.write_text(source)
    importlib.invalidate_caches()
    if path.stem in sys.modules:
        return importlib.reload(sys.modules[path.stem])
    return importlib.import_module(path.stem)


# --- names


@pytest.mark.parametrize(
    ("func", "name"),
    [
        (inc, "inc"),
        (lambda x: x, "lambda"),
        (functools.partial(functools.partial(inc), 1), "inc"),
        (operator.methodcaller("upper"), "upper"),
        (operator.methodcaller("split", sep=","), "split"),
        (np.vectorize(inc), "vectorize_inc"),
        (np.sqrt, "sqrt"),
        (Point, "Point"),
        (Point(1).norm, "norm"),
        (len, "len"),
    ],
)
def test_name(func: Any, name: str) -> None:
    """A function's keys begin with what its author calls it."""
    assert function_name(func) == name


def test_name_is_cut_and_falls_back_to_text() -> None:
    """No name is longer than 50 characters; an object without one is shown, but never its address."""

    class Speaking:
        def __call__(self) -> None: ...
        def __str__(self) -> str:
            return "s" * 60

    class Silent:
        def __call__(self) -> None: ...

    long = lambda: None  # noqa: E731  # its name is set below
    long.__name__ = "n" * 60
    assert function_name(long) == "n" * 50
    assert function_name(Speaking()) == "s" * 50
    assert function_name(Silent()) == "Silent"


# --- values

atoms = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
)
hashable = st.recursive(atoms, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=5)
values = st.recursive(
    atoms | st.builds(Point, atoms, atoms) | st.builds(decimal.Decimal, st.integers()) | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(hashable, inner, max_size=4)
        | st.sets(hashable, max_size=4)
        | st.builds(Point, inner, inner)
    ),
    max_leaves=12,
)


def strict(value: Any) -> object:
    """Return something that is equal for two values exactly when they are the same in value and in all types."""
    if isinstance(value, (list, tuple)):
        return type(value), tuple(map(strict, value))
    if isinstance(value, (set, frozenset)):
        return type(value), frozenset(map(strict, value))
    if isinstance(value, dict):
        return dict, frozenset((strict(key), strict(part)) for key, part in value.items())
    if isinstance(value, Point):
        return Point, strict(value.x), strict(value.y)
    return type(value), repr(value)  # repr tells 0.0 from -0.0


@given(values)
def test_equal_copies_have_equal_tokens(value: Any) -> None:
    """A deep copy has the token of the original."""
    assert token(copy.deepcopy(value)) == token(value)


@given(values, values)
def test_tokens_are_equal_exactly_when_values_are(one: Any, other: Any) -> None:
    """Two values share a token when they agree in value and in type, at every depth, and only then."""
    assert (token(one) == token(other)) == (strict(one) == strict(other))


@given(st.dictionaries(hashable, values, max_size=6), st.randoms())
def test_order_of_dicts_and_sets_does_not_matter(value: dict[Any, Any], random: Any) -> None:
    """The order in which a dict or set was filled leaves no trace."""
    items = list(value.items())
    random.shuffle(items)
    assert token(dict(items)) == token(value)
    assert token({key for key, _ in items}) == token(set(value))


DISTINCT = {
    "int": 1,
    "float": 1.0,
    "bool": True,
    "text": "1",
    "bytes": b"1",
    "bytearray": bytearray(b"1"),
    "memoryview": memoryview(b"1"),
    "complex": 1 + 0j,
    "none": None,
    "ellipsis": ...,
    "zero": 0.0,
    "minus zero": -0.0,
    "nan": float("nan"),
    "empty list": [],
    "empty tuple": (),
    "empty dict": {},
    "empty set": set(),
    "empty frozenset": frozenset(),
    "list": [1],
    "tuple": (1,),
    "set": {1},
    "list in list": [[1]],
    "list of bytes": [b"1"],
    "list of bytearray": [bytearray(b"1")],
    "list of memoryview": [memoryview(b"1")],
    "list of array": [np.frombuffer(b"1", np.uint8)],
    "surrogate": "\ud800",
    "dict": {"a": 1},
    "items": [("a", 1)],
    "ordered": collections.OrderedDict(a=1, b=2),
    "ordered otherwise": collections.OrderedDict(b=2, a=1),
    "counter": collections.Counter("a"),
    "default dict": collections.defaultdict(int, a=1),
    "range": range(1),
    "slice": slice(1),
    "red": Color.RED,
    "blue": Color.BLUE,
    "colors": Color,
    "point": Point(1, 2),
    "other point": Point(2, 1),
    "datetime": datetime.datetime(2020, 1, 1),
    "zoned": datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc),
    "date": datetime.date(2020, 1, 1),
    "decimal": decimal.Decimal(1),
    "path": pathlib.PurePosixPath("1"),
    "pattern": re.compile("1"),
    "class": int,
    "builtin": len,
    "module": operator,
    "method descriptor": str.upper,
    "class method": Point.origin,
    "bound method": Point(1, 2).norm,
    "partial": functools.partial(inc, 1),
    "partial of 2": functools.partial(inc, 2),
    "function": inc,
    "ufunc": np.sin,
    "other ufunc": np.cos,
    "large bytes": b"x" * 100_000,
    "large text": "x" * 100_000,
    "nested large": ["x" * 100_000],
    "array": np.array([1, 2]),
    "array, reversed": np.array([2, 1]),
    "array of int32": np.array([1, 2], np.int32),
    "array of float": np.array([1.0, 2.0]),
    "row": np.array([[1, 2]]),
    "column": np.array([[1], [2]]),
    "array of objects": np.array([1, 2], object),
    "array of texts": np.array(["1", 2], object),
    "scalar": np.int64(1),
    "frame": pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}),
    "frame, renamed": pd.DataFrame({"a": [1, 2], "c": ["x", "y"]}),
    "series": pd.Series([1, 2]),
    "index": pd.Index([1, 2]),
}


def test_kinds_of_values_are_told_apart() -> None:
    """Values of different types or contents never share a token, however equal Python calls them."""
    tokens = {name: token(value) for name, value in DISTINCT.items()}
    assert all(len(digest) == 16 for digest in tokens.values())
    same = [name for name, digest in tokens.items() if list(tokens.values()).count(digest) > 1]
    assert same == []


@pytest.mark.parametrize("name", [name for name in DISTINCT if "memoryview" not in name and name != "module"])
def test_copies_of_all_kinds_share_a_token(name: str) -> None:
    """Each kind of value has the token of its deep copy."""
    value = DISTINCT[name]
    assert token(copy.deepcopy(value)) == token(value)


def test_arrays_in_any_layout() -> None:
    """Arrays that are not contiguous are hashed by content too, in the same way each time."""
    strided = np.arange(100)[::2]
    assert token(strided) == token(np.arange(100)[::2])
    assert token(strided) != token(np.arange(1, 101)[::2])
    columns = np.asfortranarray(np.arange(12).reshape(3, 4))
    assert token(columns) == token(columns.copy(order="F"))
    assert token(columns) != token(np.asfortranarray(np.arange(12).reshape(3, 4)[::-1]))


def test_identity_of_parts_leaves_no_trace() -> None:
    """One object mentioned twice counts like two equal ones."""
    part = Point([1], {})
    assert token([part, part]) == token([Point([1], {}), Point([1], {})])


def test_small_values_of_many_parts() -> None:
    """A list of a thousand million elements that shares its parts is hashed as fast as it was made."""
    assert token([[[0] * 1000] * 1000] * 1000) != token([[[0] * 1000] * 1000] * 1001)
    assert token([[[0] * 2000] * 2000]) == token([[[0] * 2000 for _ in range(2000)]])


def test_cycles() -> None:
    """Values that contain themselves have tokens, equal for equal shapes and different for different ones."""

    def ring(n: int) -> list[Any]:
        first: list[Any] = []
        last = first
        for _ in range(n - 1):
            last.append([])
            last = last[0]
        last.append(first)
        return first

    assert token(ring(3)) == token(ring(3))
    assert token(ring(3)) != token(ring(2))
    to_itself: list[Any] = []
    to_itself.append(to_itself)
    assert token([to_itself]) != token(ring(2))
    inner: list[Any] = []
    outer = [inner]
    inner.append(outer)
    other: list[Any] = [outer]
    one, two = [outer, inner], [outer, other]
    assert token(one) == token(copy.deepcopy(one))
    back: list[Any] = []
    three = [outer, back]
    back.append(three)
    assert len({token(one), token(two), token(three)}) == 3


def test_dense_graphs_take_one_visit_per_node() -> None:
    """A mesh of objects that all refer to each other is hashed in one walk, not once per path."""
    nodes = [Point(n, []) for n in range(40)]
    for node in nodes:
        node.y.extend(nodes)
    assert token(nodes) == token(copy.deepcopy(nodes))
    tower = Point(1)
    for _ in range(60):
        tower = Point(tower, tower)
    assert token(tower) == token(copy.deepcopy(tower))


@pytest.mark.parametrize(
    "make",
    [
        object,
        threading.Lock,
        lambda: iter(x for x in [1]),
        lambda: [object()],
        lambda: {"a": threading.Lock()},
        lambda: Point(object()),
        lambda: nested(100_000),
    ],
    ids=["object", "lock", "generator", "nested", "in dict", "attribute", "too deep"],
)
def test_unstable(make: Any) -> None:
    """What means nothing outside of this process has no token and makes no key."""
    value = make()
    with pytest.raises(Unstable):
        token(value)
    with pytest.raises(Unstable):
        call_key("f", bytes(16), (value,), {})


def test_open_file_is_unstable(tmp_path: pathlib.Path) -> None:
    """An open file has no token."""
    with (tmp_path / "f").open("w") as file, pytest.raises(Unstable):
        token(file)


def test_own_token() -> None:
    """An object that says what stands for it is hashed as that, together with its type."""
    assert token(Named("a")) == token(Named("a"))
    assert token(Named("a")) != token(Named("b"))
    assert token(Named("a")) != token(OtherNamed("a"))
    assert token(Named("a")) != token("a")


# --- digests of buffers


def test_content_digests_are_recorded() -> None:
    """The digest of a large array's content can be found for the buffer that pickling gives."""
    array, digests = np.arange(10_000), Digests()
    call_key("f", bytes(16), ([array],), {}, digests)
    assert digests.find(buffer_of(array)) == xxh3_128_digest(array.tobytes())
    assert digests.find(buffer_of(np.arange(10_000))) is None


def test_content_digests_of_temporary_owners_are_not_mixed_up() -> None:
    """An array whose buffer belongs to a temporary object never gets another array's digest."""
    digests = Digests()
    for n in range(50):
        array = np.asfortranarray(np.full((40, 50), n))
        assert token(array, digests)
        after = np.asfortranarray(np.full((40, 50), -1 - n))
        assert digests.find(buffer_of(after)) is None


# --- functions


def make_adder(n: object) -> Any:
    return lambda x: x + n


FACTOR = 2


def test_equal_lambdas_share_a_digest() -> None:
    """Two lambdas of the same text and the same captured values are one function."""
    one = lambda x: x + FACTOR  # noqa: E731  # two lambdas are compared

    other = lambda x: x + FACTOR  # noqa: E731  # the same, on another line
    assert function_digest(one) == function_digest(other)
    assert function_digest(make_adder(1)) == function_digest(make_adder(1))


def test_what_by_value_functions_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code, defaults, captured values and the values of globals all count."""
    different = [
        lambda x: x + FACTOR,
        lambda x: x - FACTOR,
        lambda y: y + FACTOR,
        lambda x=1: x + FACTOR,
        lambda x=1.0: x + FACTOR,
        lambda *, x=1: x + FACTOR,
        lambda x: x in {1, 2},
        lambda x: x in {1, 3},
        make_adder(1),
        make_adder(2),
        make_adder([1]),
        make_adder(True),
        lambda x: (lambda y: y + 1)(x),
        lambda x: (lambda y: y + 2)(x),
    ]
    assert len({function_digest(func) for func in different}) == len(different)
    before = function_digest(different[0])
    monkeypatch.setitem(globals(), "FACTOR", 3)
    assert function_digest(different[0]) != before


def test_recursive_functions() -> None:
    """A function that calls itself through its closure has a digest, equal for an equal function."""

    def make(step: int) -> Any:
        def down(n: int) -> int:
            return 0 if n < 1 else down(n - step)

        return down

    assert function_digest(make(1)) == function_digest(make(1))
    assert function_digest(make(1)) != function_digest(make(2))


def test_function_capturing_the_unstable_is_unstable() -> None:
    """A function that closes over a lock has no digest."""
    with pytest.raises(Unstable):
        function_digest(make_adder(threading.Lock()))
    digest, references = _key.describe(make_adder(threading.Lock()))
    assert digest is None
    assert references == ()


DECORATED = "def d(n):\n    def w(f): return lambda x: f(x) + n\n    return w\n@d({})\ndef f(x): return x + {}"
CACHED = "import functools\n@functools.lru_cache\ndef f(x): return x + {}"


@pytest.mark.parametrize(
    ("source", "edited"),
    [
        ("def f(x): return x + 1", "def f(x): return x + 2"),
        ("def f(x): return x + 1", "def f(x, n=1): return x + 1"),
        ("def f(x, n=1): return x", "def f(x, n=2): return x"),
        ("def f(x, n=(1, 2)): return x", "def f(x, n=(1, 3)): return x"),
        ("def f(x, *, n=1): return x", "def f(x, *, n=2): return x"),
        (DECORATED.format(1, 1), DECORATED.format(2, 1)),
        (DECORATED.format(1, 1), DECORATED.format(1, 2)),
        (CACHED.format(1), CACHED.format(2)),
    ],
)
def test_edited_module(module_file: pathlib.Path, source: str, edited: str) -> None:
    """A function of a module has a new digest after its code, default or decorator was edited, and only then."""
    before = function_digest(load(module_file, source).f)
    assert function_digest(load(module_file, f"# moved by\n# comments\n{source}").f) == before
    assert function_digest(load(module_file, edited).f) != before
    assert function_digest(load(module_file, source).f) == before


def test_functions_of_modules_are_told_apart_by_name(module_file: pathlib.Path) -> None:
    """Two functions of a module with the same code are two functions."""
    module = load(module_file, "def f(x): return x\ndef g(x): return x")
    assert function_digest(module.f) != function_digest(module.g)


def test_what_a_module_function_meets_does_not_matter(module_file: pathlib.Path) -> None:
    """Unstable defaults of a function that travels by name do not hinder."""
    source = "import threading, functools\ndef f(x, lock=threading.Lock(), none=object()): return x"
    assert function_digest(load(module_file, source).f) == function_digest(load(module_file, source).f)


# --- keys


def test_call_key_form() -> None:
    """A pure key is the name, a dash and 32 lower-case hexadecimal digits."""
    for args in [(), (1,), ([1],), (Named("a"),)]:
        assert re.fullmatch("inc-[0-9a-f]{32}", call_key("inc", function_digest(inc), args, {}))


def test_call_key_tells_calls_apart() -> None:
    """Function, values, types and the way of passing count; the order of keywords does not."""
    digest, other = function_digest(inc), function_digest(len)
    keys = [
        call_key("f", digest, (), {}),
        call_key("f", other, (), {}),
        call_key("f", digest, (1,), {}),
        call_key("f", digest, (1.0,), {}),
        call_key("f", digest, (True,), {}),
        call_key("f", digest, (1, 1), {}),
        call_key("f", digest, ([1, 1],), {}),
        call_key("f", digest, ((1, 1),), {}),
        call_key("f", digest, (), {"x": 1}),
        call_key("f", digest, (), {"y": 1}),
        call_key("f", digest, ("x", 1), {}),
        call_key("f", digest, ([], "x", 1), {}),
        call_key("f", digest, ([],), {"x": 1}),
        call_key("f", digest, (Named("f-1"),), {}),
        call_key("f", digest, ("f-1",), {}),
    ]
    assert len(set(keys)) == len(keys)
    assert call_key("f", digest, (), {"x": 1, "y": 2}) == call_key("f", digest, (), {"y": 2, "x": 1})


@given(st.lists(values, max_size=3), st.dictionaries(st.text(), values, max_size=3))
def test_call_key_of_copies(args: list[Any], kwargs: dict[str, Any]) -> None:
    """A call with deep copies of its arguments has the same key."""
    again = call_key("f", bytes(16), tuple(copy.deepcopy(args)), copy.deepcopy(kwargs))
    assert again == call_key("f", bytes(16), tuple(args), kwargs)


@given(st.lists(values, max_size=2), st.dictionaries(st.text(), values, max_size=3))
def test_known_tokens_give_the_same_key(args: list[Any], kwargs: dict[str, Any]) -> None:
    """A key made with tokens computed before is the key made without, even where arguments refer to themselves."""
    ring = [*args]
    ring.append([ring, ring])
    call, kwargs = (ring, *args), kwargs | {"ring": ring, "again": [ring[-1]]}
    known = {word: token(value) for word, value in kwargs.items()}
    assert call_key("f", bytes(16), call, kwargs, None, known) == call_key("f", bytes(16), call, kwargs)


def test_random_key() -> None:
    """An impure key ends in a fresh uuid4."""
    keys = [random_key("inc") for _ in range(100)]
    assert len(set(keys)) == 100
    for key in keys:
        parsed = uuid.UUID(key.removeprefix("inc-"))
        assert (parsed.version, parsed.variant, str(parsed)) == (4, uuid.RFC_4122, key.removeprefix("inc-"))


def test_check_key() -> None:
    """Keys are str, int, float and tuples of those; everything else is refused by the name of its type."""
    for good in ["a", 1, 1.5, True, ("a", 1), ("a", ("b", 2.0)), ()]:
        check_key(good)
    for bad, name in [(b"a", "bytes"), (None, "NoneType"), (["a"], "list"), (("a", [1]), "list"), (Point(1), "Point")]:
        with pytest.raises(TypeError, match=name):
            check_key(bad)


# --- the same everywhere

EVERYWHERE = """
import abc, collections, dataclasses, datetime, decimal, enum, functools, operator, pathlib, threading, typing
import numpy as np, pandas as pd
from localdist._key import call_key, function_digest, token

class Color(enum.Enum):
    RED, BLUE = "r", "b"

class Shape(abc.ABC):
    kinds = {"round", "square", "long"}
    lock = threading.Lock()
    @abc.abstractmethod
    def area(self): ...

@dataclasses.dataclass
class Box(Shape):
    side: "int"
    tags: set = dataclasses.field(default_factory=set)
    missing = object()
    def area(self): return self.side ** 2 * FACTOR if self.side not in {"a", "b", "c"} else helper(Box)
    @property
    def half(self): return self.side / 2
    @functools.cached_property
    def third(self): return self.side / 3
    @staticmethod
    def name(): return "box"
    @classmethod
    def unit(cls): return super().__new__(cls)

class Pair(typing.NamedTuple):
    a: int
    b: str = "b"

class Slotted:
    __slots__ = ("x", "y")
    def __init__(self): self.x, self.y = {"p", "q", "r"}, Color.BLUE

FACTOR = frozenset({"u", "v", "w"})
def helper(x): return x, FACTOR, np.sum, Color
def fact(n): return 1 if n < 2 else n * fact(n - 1)

words = {w for w in "the order of a set of words differs from run to run".split()}
everything = [
    words, frozenset(words), {w: len(w) for w in words}, {(w, 1): {w} for w in words}, {("t", w) for w in words},
    helper, fact, Box, Color, Slotted, lambda x: x in {"a", "b", "c", "d"}, Box(2, words), Box(3).area,
    Box.unit, Color.RED,
    Pair(1), Slotted(), functools.partial(helper, Box(1)), operator.methodcaller("m", k=words),
    collections.Counter(sorted(words)), collections.OrderedDict(a=words), datetime.datetime(2020, 1, 1),
    decimal.Decimal("1.5"), pathlib.PurePath("a"), np.arange(9), np.array(["a", 1, words], object), np.float32(1.5),
    pd.DataFrame({"a": [1, 2], "b": ["x", None]}), pd.Categorical(["a", "b"]), np.add, np.vectorize(helper), len,
    dataclasses.asdict, float("nan"), "\\ud800", ...,
]
for value in everything:
    print(token(value).hex())
print(call_key("helper", function_digest(helper), (words, Box(1)), {w: w for w in words}))
"""


def test_equal_in_every_process() -> None:
    """Tokens of all kinds of values, functions and classes of `__main__` among them, do not depend on the process."""
    first, second = run_python(EVERYWHERE, hash_seed=1), run_python(f"\n\n{EVERYWHERE}", hash_seed=2)
    assert first.splitlines() == second.splitlines()
    assert len(set(first.split())) == len(first.split())


def test_keys_need_no_numpy() -> None:
    """Making keys imports no NumPy."""
    assert run_python("import sys, localdist._key; print('numpy' in sys.modules)") == "False\n"
