from __future__ import annotations

import builtins
import functools
import gc
import importlib
import math
import os
import pathlib
import pickle
import subprocess
import sys
import threading
import traceback
import types
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import cloudpickle
import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from localdist import _modules, _serialize
from localdist._serialize import (
    OUT_OF_BAND_MIN,
    TEXT_LIMIT,
    FunctionTable,
    blame,
    dump_error,
    load_error,
    load_function,
    pack,
    pack_whole,
    qualified_type,
    unpack,
)
from localdist.errors import KilledWorker, SerializationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

ROOT = pathlib.Path(_serialize.__file__).parents[1]


def run_script(path: pathlib.Path, source: str) -> str:
    path.write_text(source)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(path)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def round_trip(value: Any) -> Any:
    stream, buffers = pack(value)
    return unpack(stream, [memoryview(bytearray(buffer.raw())) for buffer in buffers])


# --- values

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
)


@given(values)
def test_values_come_back(value: Any) -> None:
    """A value comes back equal, and of the same type."""
    back = round_trip(value)
    assert back == value
    assert type(back) is type(value)
    assert unpack(pack_whole(value)) == value


@pytest.mark.parametrize("text", ["__main__", "a\x93b__main__", "\x93"])
def test_values_that_look_like_names(text: str) -> None:
    """Text that looks like what the choice of a pickler goes by is only text."""
    value = {"a": [text, text.encode("latin-1")], "path": pathlib.PurePosixPath(text)}
    assert round_trip(value) == value


@example([OUT_OF_BAND_MIN - 1, OUT_OF_BAND_MIN])
@given(st.lists(st.integers(0, 2 * OUT_OF_BAND_MIN), max_size=4))
def test_large_buffers_leave_the_stream(sizes: list[int]) -> None:
    """Exactly the buffers of at least 32 KiB travel beside the stream, in order."""
    arrays = [np.arange(size, dtype=np.uint8) for size in sizes]
    stream, buffers = pack(arrays)
    assert [buffer.raw().nbytes for buffer in buffers] == [size for size in sizes if size >= OUT_OF_BAND_MIN]
    assert len(stream) < sum(size for size in sizes if size < OUT_OF_BAND_MIN) + 1000
    for back, array in zip(round_trip(arrays), arrays, strict=True):
        np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize("size", [10, OUT_OF_BAND_MIN])
def test_arrays_are_writeable(size: int) -> None:
    """An array can be written to after its journey, whatever its size."""
    back = round_trip(np.zeros(size))
    back[0] = 1
    assert back[0] == 1


def test_buffers_are_not_copied() -> None:
    """An array is built on the buffer that it is given, and packing looks at the array's own memory."""
    array = np.zeros(OUT_OF_BAND_MIN)
    stream, buffers = pack(array)
    array[0] = 5
    target = bytearray(buffers[0].raw())
    back = unpack(stream, [memoryview(target)])
    back[1] = 7
    assert np.frombuffer(target)[:2].tolist() == [5, 7]


def test_arrays_in_any_layout() -> None:
    """Strided and Fortran-ordered arrays, arrays of objects and frames come back as they were."""
    big = np.arange(100_000).reshape(100, 1000)
    for array in (big[:, ::2], np.asfortranarray(big), big.T, np.array(["a", None, 1], object)):
        np.testing.assert_array_equal(round_trip(array), array)
    frame = pd.DataFrame({"a": np.arange(10_000), "b": ["x"] * 10_000})
    pd.testing.assert_frame_equal(round_trip(frame), frame)


def test_by_value_modules_are_respected(module_file: pathlib.Path) -> None:
    """What the user registered with cloudpickle travels by value, as an argument and as a function."""
    module = load(module_file, "class C: pass\ndef f(x): return x + 1\n")
    table = FunctionTable()
    assert table.describe(module.f).by_reference
    cloudpickle.register_pickle_by_value(module)
    try:
        stream, _ = pack(module.C())
        function = table.describe(module.f)
        assert not function.by_reference
        assert not function.cacheable
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    assert table.describe(module.f).by_reference
    del sys.modules[module_file.stem]
    module_file.unlink()
    importlib.invalidate_caches()
    assert type(unpack(stream)).__name__ == "C"
    assert load_function(function.pickled)(1) == 2


MAIN = """
import subprocess, sys
from localdist._serialize import FunctionTable, dump_error, load_error, load_function, pack_whole, unpack

class Point:
    def __init__(self, x): self.x = x
    def __eq__(self, other): return type(other) is Point and other.x == self.x
    __hash__ = None

class Trouble(Exception):
    def __init__(self, point): super().__init__(point); self.point = point

FACTOR = 3
def scale(point): return Point(helper(point.x))
def helper(x): return x * FACTOR
def fail(point): raise Trouble(point)

CHILD = '''
import sys
from localdist._serialize import dump_error, load_function, pack_whole, unpack
pickled, arguments = unpack(sys.stdin.buffer.read())
func = load_function(pickled)
try:
    answer = True, pack_whole(func(*unpack(arguments)))
except Exception as error:
    answer = False, dump_error(error, "k", ("__main__",))
sys.stdout.buffer.write(pack_whole(answer))
'''

def call(func, *args):
    sent = pack_whole((FunctionTable().describe(func).pickled, pack_whole(args)))
    done = subprocess.run([sys.executable, "-c", CHILD], input=sent, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    good, answer = unpack(done.stdout)
    return unpack(answer) if good else load_error(answer)

assert call(scale, Point(2)) == Point(6)
FACTOR = 4
assert call(lambda p: [p, scale(p)], Point(2)) == [Point(2), Point(8)]
error = call(fail, Point(5))
assert type(error) is Trouble and error.point == Point(5), repr(error)
print("good")
"""


def test_main_classes_come_back_as_themselves(tmp_path: pathlib.Path) -> None:
    """What a script defines travels to another process, and comes back as the script's own classes."""
    assert run_script(tmp_path / "script.py", MAIN) == "good\n"


def test_import_is_cheap() -> None:
    """Neither cloudpickle, tblib nor NumPy is loaded before it is needed."""
    late = ["cloudpickle", "tblib", "numpy", "dis"]
    code = f"import sys, localdist._serialize; print([m for m in {late} if m in sys.modules])"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    assert subprocess.check_output([sys.executable, "-c", code], env=environment, text=True) == "[]\n"


# --- what cannot be pickled


class Holder:
    def __init__(self, part: object) -> None:
        self.part = part


class SlottedHolder:
    __slots__ = ("part",)

    def __init__(self, part: object) -> None:
        self.part = part


@pytest.mark.parametrize(
    "wrap",
    [
        lambda part: part,
        lambda part: [1, (2, part)],
        lambda part: {"a": {"b": part}},
        Holder,
        SlottedHolder,
        lambda part: functools.partial(print, [part]),
        lambda part: lambda: part,
        lambda part: Holder([lambda x=part: x]),
    ],
    ids=["itself", "nested", "dict", "attribute", "slot", "partial", "closure", "default"],
)
def test_blame(wrap: Callable[[object], object]) -> None:
    """The type named is that of the innermost culprit, not of what contains it."""
    with pytest.raises(TypeError, match="lock"):
        pack(wrap(threading.Lock()))
    assert blame(wrap(threading.Lock())) == "_thread.lock"


def test_blame_of_recursive_values() -> None:
    """A culprit inside a value that contains itself is found, or at least the search ends."""
    value: list[object] = []
    value += [value, threading.Lock()]
    assert blame(value) in ("_thread.lock", "list")


def test_qualified_type() -> None:
    """Builtin types are named bare, others with their module; a class is named like its instances."""
    assert qualified_type(1) == qualified_type(int) == "int"
    assert qualified_type(None) == "NoneType"
    assert qualified_type(pathlib.PurePosixPath()).endswith(".PurePosixPath")
    assert qualified_type(np.zeros(1)) == "numpy.ndarray"


# --- functions


@pytest.fixture
def module_file(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # two versions within a second look alike to its cache
    monkeypatch.delitem(sys.modules, "edited_module", raising=False)
    return tmp_path / "edited_module.py"


def load(path: pathlib.Path, source: str) -> ModuleType:
    path.write_text(source)
    importlib.invalidate_caches()
    if path.stem in sys.modules:
        return importlib.reload(sys.modules[path.stem])
    return importlib.import_module(path.stem)


def script(source: str) -> dict[str, Any]:
    """Run source as a script's module would be: what it defines travels by value."""
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec(source, scope)
    return scope


def test_module_functions_travel_by_reference() -> None:
    """Functions, classes and builtins of modules are sent as names and are found again."""
    table = FunctionTable()
    for func in (round_trip, int, math.sqrt, len, np.sum, np.sqrt, pathlib.PurePath, functools.lru_cache):
        function = table.describe(func)
        assert function.by_reference, func
        assert len(function.pickled) < 150
        assert load_function(function.pickled) is func


def test_functions_by_value() -> None:
    """Lambdas, closures, partials, bound methods and callable instances come back working."""
    table, n = FunctionTable(), 2
    assert load_function(table.describe(lambda x: x + n).pickled)(1) == 3
    assert load_function(table.describe(functools.partial(max, 5)).pickled)(3) == 5
    assert load_function(table.describe([3, 1].__contains__).pickled)(3) is True
    assert load_function(table.describe(operator_like := functools.partial(pow, 2)).pickled)(3) == operator_like(3)


def test_description() -> None:
    """A description carries the name, the digest, and a number of its own."""
    table = FunctionTable()
    one, other = table.describe(round_trip), table.describe(len)
    assert (one.name, other.name) == ("round_trip", "len")
    assert one.digest is not None
    assert len(one.digest) == 16
    assert one.id != other.id
    assert table.describe(round_trip) is one


@pytest.mark.parametrize(
    "source",
    [
        "def f(x): return x + 1",
        "f = lambda x: len([x])",
        "k = 2\ndef f(x): return x + k",
        "k = (1, (2.0, 'a'))\ndef f(x, y=(1, 2), *, z='z'): return k",
        "import math\nfrom math import sqrt\ndef f(x): return math.floor(sqrt(x))",
        "from pathlib import PurePath\ndef f(x): return PurePath(x)",
        "def f(n): return 1 if n < 2 else n * f(n - 1)",
        "def f(x): return g(x)\ndef g(x): return f(x) + h(x)\ndef h(x): return 1",
        "def make(k):\n    return lambda x: x + k\nf = make(3)",
        "def f(x):\n    n = 0\n    def add():\n        nonlocal n\n        n += x\n    add()\n    return n",
    ],
)
def test_functions_that_are_described_once(source: str) -> None:
    """Functions that capture only what cannot change unseen are described once, and one copy serves all calls."""
    func, table = script(source)["f"], FunctionTable()
    function = table.describe(func)
    assert function.cacheable
    assert not function.by_reference
    assert all(table.describe(func) is function for _ in range(3))


@pytest.mark.parametrize(
    "source",
    [
        "k = []\ndef f(x): return k",
        "k = {}\ndef f(x): return k",
        "k = ([],)\ndef f(x): return k",
        "class C: pass\ndef f(x): return C",
        "class C: pass\nk = C()\ndef f(x): return k",
        "import numpy\nk = numpy.zeros(3)\ndef f(x): return k",
        "def f(x, y=[]): return y",
        "def f(x, *, y=[]): return y",
        "def make(k):\n    return lambda x: k\nf = make([])",
        "k = []\ndef g(x): return k\ndef f(x): return g(x)",
        "k = 0\ndef f(x):\n    global k\n    k += 1\n    return k",
        "def make(k):\n    def f(x):\n        nonlocal k\n        k += 1\n        return k\n    return f\nf = make(0)",
        "def make(k):\n    def f(x):\n        def g():\n            nonlocal k; k = 1\n    return f\nf = make(0)",
        "def f(x): return x\nf.calls = 0",
        "import functools\nf = functools.partial(max, 1)",
        "f = 'text'.upper",
        "class C:\n    def __call__(self): pass\nf = C()",
        "class f: pass",
    ],
)
def test_functions_that_are_described_anew(source: str) -> None:
    """What captures something mutable, or rebinds what it captured, is described anew and never shared by calls."""
    func, table = script(source)["f"], FunctionTable()
    one, other = table.describe(func), table.describe(func)
    assert not one.cacheable
    assert one.id != other.id
    assert one.digest == other.digest
    assert len(table) == 0


def rebind_global(scope: dict[str, Any]) -> None:
    scope["k"] = 20


def rebind_builtin(scope: dict[str, Any]) -> None:
    scope["len"] = lambda _: 20


def rebind_helper(scope: dict[str, Any]) -> None:
    scope["h"] = script("def h(x): return x + 20")["h"]


def change_helper_code(scope: dict[str, Any]) -> None:
    scope["h"].__code__ = script("def h(x): return x + 20")["h"].__code__


def change_default(scope: dict[str, Any]) -> None:
    scope["f"].__defaults__ = (20,)


def change_keyword_default(scope: dict[str, Any]) -> None:
    scope["f"].__kwdefaults__["k"] = 20


def change_code(scope: dict[str, Any]) -> None:
    scope["f"].__code__ = script("def f(x): return x + 20")["f"].__code__


def rebind_cell(scope: dict[str, Any]) -> None:
    scope["f"].__closure__[0].cell_contents = 20


def rebind_helper_cell(scope: dict[str, Any]) -> None:
    scope["h"].__closure__[0].cell_contents = 20


def append(scope: dict[str, Any]) -> None:
    scope["k"].append(19)


HELPER_CLOSURE = "def make(k):\n    return lambda x: x + k\nh = make(1)\ndef f(x): return h(x)"


@pytest.mark.parametrize(
    ("source", "change"),
    [
        ("k = 1\ndef f(x): return x + k", rebind_global),
        ("k = 1\ndef h(x): return x + k\ndef f(x): return h(x)", rebind_global),
        ("def f(x): return x + len([x])", rebind_builtin),
        ("def h(x): return x + 1\ndef f(x): return h(x)", rebind_helper),
        ("def h(x): return x + 1\ndef f(x): return h(x)", change_helper_code),
        ("def f(x, k=1): return x + k", change_default),
        ("def f(x, *, k=1): return x + k", change_keyword_default),
        ("def f(x): return x + 1", change_code),
        ("def make(k):\n    return lambda x: x + k\nf = make(1)", rebind_cell),
        (HELPER_CLOSURE, rebind_helper_cell),
        ("k = [1]\ndef f(x): return x + sum(k)", append),
        ("def make(k):\n    return k, lambda x: x + sum(k)\nk, f = make([1])", append),
    ],
)
def test_stale_code_is_never_sent(source: str, change: Callable[[dict[str, Any]], None]) -> None:
    """After anything that a function consists of has changed, the function is sent as it is now, under a new digest."""
    scope = script(source)
    func, table = scope["f"], FunctionTable()
    before = table.describe(func)
    assert load_function(before.pickled)(1) == func(1) == 2
    change(scope)
    after = table.describe(func)
    assert load_function(after.pickled)(1) == func(1) == 21
    assert after.id != before.id
    assert after.digest != before.digest


def test_reloaded_module(module_file: pathlib.Path) -> None:
    """After an edit and a reload the new function is another one; the old object still is what it was."""
    table = FunctionTable()
    old = load(module_file, "def f(x): return x + 1").f
    before = table.describe(old)
    assert before.by_reference
    new = load(module_file, "def f(x): return x + 2").f
    after = table.describe(new)
    assert after.digest != before.digest
    assert after.id != before.id
    again = table.describe(old)
    assert not again.by_reference
    assert load_function(again.pickled)(1) == 2


def test_changed_defaults_of_a_module_function(module_file: pathlib.Path) -> None:
    """A function that travels by name is described anew when someone gives it other defaults."""
    table = FunctionTable()
    f = load(module_file, "def f(x, a=1, *, b=1): return x").f
    digests = [table.describe(f).digest]
    f.__defaults__ = (2,)
    digests.append(table.describe(f).digest)
    f.__kwdefaults__ = {"b": 2}
    digests.append(table.describe(f).digest)
    assert len(set(digests)) == 3


def test_replaced_module(module_file: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function whose module was replaced by another one no longer travels by name."""
    table = FunctionTable()
    func = load(module_file, "def f(x): return x + 1").f
    assert table.describe(func).by_reference
    other = types.ModuleType("edited_module")
    monkeypatch.setitem(sys.modules, "edited_module", other)
    assert not table.describe(func).by_reference


RECEIVER = """
import sys
from localdist._serialize import load_function, unpack
for line in sys.stdin:
    print([load_function(p)(1) for p in unpack(bytes.fromhex(line))], flush=True)
"""


def test_receiver_reloads_an_edited_module(module_file: pathlib.Path) -> None:
    """A process that loaded a module before it was edited runs the new code, by name, captured, or in a partial."""
    table = FunctionTable()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(module_file.parent)])}
    command = [sys.executable, "-B", "-c", RECEIVER]
    one, two = (f"def f(x, n={n}): return x + n\ndef g(x): return x + {n}" for n in (1, 2))
    with subprocess.Popen(
        command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as receiver:
        assert receiver.stdin is not None
        assert receiver.stdout is not None
        for source, name, result in [(one, "f", 2), (two, "f", 3), (one, "f", 2), (two, "g", 3), (one, "f", 2)]:
            f = getattr(load(module_file, source), name)
            captured = eval("lambda x: f(x)", {"f": f, "__name__": "__main__"})
            sent = [table.describe(func).pickled for func in (f, captured, functools.partial(f))]
            receiver.stdin.write(pack_whole(sent).hex() + "\n")
            receiver.stdin.flush()
            assert receiver.stdout.readline() == f"{[result] * 3}\n"
        receiver.stdin.close()


def test_receiver_does_not_reload_without_need(module_file: pathlib.Path) -> None:
    """A module whose file is older than the process stays as it is, even where a default differs by design."""
    source = "import random\nloaded = []\ndef f(x, seed=random.random()): return id(loaded)"
    pickled = FunctionTable().describe(load(module_file, source).f).pickled
    now = importlib.reload(sys.modules["edited_module"])
    kept = now.loaded
    started, _modules._STARTED = _modules._STARTED, module_file.stat().st_ctime + 10
    try:
        assert load_function(pickled)(1) == id(kept)
    finally:
        _modules._STARTED = started


@pytest.mark.parametrize(
    "source",
    [
        "def f(x): return x",
        "def f(x): return f(x)",
        "def f(x): return g(x)\ndef g(x): return f(x)",
        "def make():\n    def inner(x): return inner(x)\n    return inner\nf = make()",
    ],
)
def test_functions_are_not_kept_alive(source: str) -> None:
    """The table holds no function alive, and forgets those that are gone."""
    table, scope = FunctionTable(), script(source)
    ref = weakref.ref(scope["f"])
    table.describe(scope["f"])
    assert len(table) == 1
    scope.clear()
    gc.collect()
    assert ref() is None
    assert len(table) == 0


def test_many_threads_get_one_description() -> None:
    """Threads that ask at once for the same functions get the same descriptions."""
    table = FunctionTable()
    funcs = [script(f"def f(x): return x + {n}")["f"] for n in range(200)]
    start = threading.Barrier(8)

    def ask() -> list[int]:
        start.wait()
        return [table.describe(func).id for func in funcs]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # seconds: threads take turns within a description
    try:
        with ThreadPoolExecutor(8) as pool:
            answers = [asked.result() for asked in [pool.submit(ask) for _ in range(8)]]
    finally:
        sys.setswitchinterval(interval)
    assert all(answer == answers[0] for answer in answers)
    assert len(set(answers[0])) == 200


def test_unpicklable_function() -> None:
    """A function that cannot be pickled is refused with the type at fault and the pickler's error as cause."""
    lock = threading.Lock()
    with pytest.raises(SerializationError, match=r"function.*_thread\.lock") as caught:
        FunctionTable().describe(lambda: lock)
    assert isinstance(caught.value.__cause__, TypeError)
    assert (caught.value.what, caught.value.type_name, caught.value.key) == ("function", "_thread.lock", None)


def test_function_without_stable_description() -> None:
    """A function that can be sent but not described has no digest."""
    sentinel = object()
    function = FunctionTable().describe(lambda x: x is sentinel)
    assert function.digest is None
    assert load_function(function.pickled)(1) is False


# --- exceptions


class PlainError(Exception):
    pass


class DetailedError(Exception):
    def __init__(self, code: int, where: str) -> None:
        super().__init__(code, where)
        self.code, self.where = code, where


class MisfitError(Exception):
    def __init__(self, code: int, where: str) -> None:
        super().__init__(f"{code} at {where}")


class MuteError(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


class StickyError(Exception):
    def __reduce__(self) -> Any:
        raise RuntimeError("stays here")


class TurncoatError(Exception):
    def __reduce__(self) -> Any:
        return str, ("no exception",)


def catch(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except BaseException as caught:  # noqa: BLE001  # of any class, that is the test
        return caught


def send(error: BaseException) -> BaseException:
    return load_error(dump_error(error, "key-1"))


@pytest.mark.parametrize(
    "error",
    [
        PlainError("a", 1),
        DetailedError(3, "here"),
        KeyError("k"),
        FileNotFoundError(2, "No such file", "name"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        StopIteration(5),
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        KilledWorker("k", "w", 3, 12, -9),
    ],
    ids=lambda error: type(error).__name__,
)
def test_exceptions_come_back(error: BaseException) -> None:
    """Class, arguments, text and attributes of an exception survive, whatever its base."""
    error.__dict__["extra"] = [1]
    back = send(catch(error))
    assert type(back) is type(error)
    assert back.args == error.args
    assert str(back) == str(error)
    assert vars(back) == vars(error)


def test_notes_come_back() -> None:
    """Notes survive."""
    error = PlainError("a")
    error.__dict__["__notes__"] = ["one", "two"]  # what add_note does, since 3.11
    assert send(error).__dict__["__notes__"] == ["one", "two"]


def test_traceback_shows_the_users_lines() -> None:
    """The traceback is a real one: it has the user's frames with their source, and can be raised again."""
    back = send(catch(PlainError("a")))
    text = "".join(traceback.format_exception(back))
    assert "in catch" in text
    assert "raise error from cause" in text
    assert isinstance(back.__traceback__, types.TracebackType)
    with pytest.raises(PlainError) as caught:
        raise back
    assert "raise error from cause" in "".join(traceback.format_exception(caught.value))


def test_own_frames_are_left_out() -> None:
    """Frames of localdist, and of modules that the caller names, do not show."""

    def fail() -> None:
        raise PlainError

    scope: dict[str, Any] = {"__name__": "localdist._worker._run"}
    exec("def run(f): return f()", scope)
    other: dict[str, Any] = {"__name__": "hidden.inner"}
    exec("def run(f, *args): return f(*args)", other)
    try:
        scope["run"](lambda: other["run"](scope["run"], fail))
    except PlainError as error:
        caught = error
    functions = [
        frame.name for frame in traceback.extract_tb(load_error(dump_error(caught, 1, ("hidden",))).__traceback__)
    ]
    assert functions == ["test_own_frames_are_left_out", "<lambda>", "fail"]
    only_own: dict[str, Any] = {"__name__": "localdist"}
    exec("def run():\n    try: 1 / 0\n    except Exception as error: return error", only_own)
    assert send(only_own["run"]()).__traceback__ is None


def test_endless_recursion() -> None:
    """A traceback of a thousand frames comes back shortened."""

    def down() -> None:
        down()

    with pytest.raises(RecursionError) as caught:
        down()
    back = send(caught.value)
    assert isinstance(back, RecursionError)
    assert len(traceback.extract_tb(back.__traceback__)) == _serialize.FRAME_LIMIT


def test_causes_and_contexts_come_back() -> None:
    """Causes and contexts survive, each with its own traceback, one object where it was one."""
    back = send(catch(PlainError("outer"), catch(DetailedError(1, "middle"), catch(KeyError("inner")))))
    middle = back.__cause__
    assert isinstance(middle, DetailedError)
    assert middle.__traceback__ is not None
    assert isinstance(middle.__cause__, KeyError)
    assert back.__suppress_context__
    try:
        try:
            raise PlainError("first")
        except PlainError:
            raise DetailedError(2, "second")  # noqa: B904  # without a cause, to get a context
    except DetailedError as error:
        back = send(error)
    assert isinstance(back.__context__, PlainError)
    assert back.__cause__ is None
    assert not back.__suppress_context__
    assert "During handling" in "".join(traceback.format_exception(back))


def test_chains_that_bite_their_tail() -> None:
    """An exception that is its own cause's cause comes back so, and a very long chain comes back shortened."""
    one, other = PlainError("one"), PlainError("other")
    one.__cause__, other.__cause__ = other, one
    back = send(one)
    assert back.__cause__ is not None
    assert back.__cause__.__cause__ is back
    last = PlainError(0)
    for n in range(2_000):
        last, last.__cause__ = PlainError(n), last
    back, length = send(last), 0
    while back.__cause__ is not None:
        back, length = back.__cause__, length + 1
    assert length == _serialize.CHAIN_LIMIT - 1


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups came with 3.11")
def test_groups() -> None:
    """The members of a group come back with their tracebacks and causes."""
    group_class = getattr(builtins, "ExceptionGroup")  # noqa: B009  # unknown to a checker for 3.10
    inner = group_class("inner", [catch(PlainError("a"), catch(KeyError("k")))])
    back: Any = send(catch(group_class("outer", [catch(DetailedError(1, "b")), inner])))
    assert [type(member).__name__ for member in back.exceptions] == ["DetailedError", "ExceptionGroup"]
    assert back.exceptions[0].__traceback__ is not None
    leaf = back.exceptions[1].exceptions[0]
    assert isinstance(leaf.__cause__, KeyError)
    assert "raise error from cause" in "".join(traceback.format_exception(leaf))
    broken: Any = send(group_class("outer", [MisfitError(1, "here")]))
    assert type(broken) is Exception


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MisfitError(3, "here"), "missing 1 required positional argument"),
        (StickyError("glue"), "stays here"),
        (PlainError(threading.Lock()), "lock"),
        (TurncoatError(), "comes back as str"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_exceptions_that_do_not_survive(error: Exception, reason: str) -> None:
    """One that cannot be pickled and rebuilt becomes an Exception with its repr, and a note saying why."""
    back = send(catch(error, KeyError("cause")))
    assert type(back) is Exception
    assert back.args == (repr(error),)
    (note,) = back.__dict__["__notes__"]
    assert "'key-1'" in note
    assert type(error).__name__ in note
    assert reason in note
    assert isinstance(back.__cause__, KeyError)
    assert [frame.name for frame in traceback.extract_tb(back.__traceback__)] == ["catch"]


def test_exceptions_that_cannot_show_themselves() -> None:
    """An exception whose own text fails is still reported by its class."""
    back = send(MuteError())
    assert type(back) is Exception
    assert "MuteError" in str(back)


def test_exception_unknown_here(module_file: pathlib.Path) -> None:
    """One whose class cannot be loaded by the receiver becomes an Exception with its repr, and keeps its traceback."""
    error = load(module_file, "class Lost(Exception): pass").Lost("a")
    payload = dump_error(catch(error), "key-1")
    del sys.modules["edited_module"]
    module_file.unlink()
    importlib.invalidate_caches()
    back = load_error(payload)
    assert type(back) is Exception
    assert str(back) == "Lost('a')"
    assert "edited_module" in back.__dict__["__notes__"][0]
    assert back.__traceback__ is not None


class WordedError(Exception):
    def __init__(self, number: int, other: int) -> None:
        super().__init__(number, other)

    def __str__(self) -> str:
        return "w" * (TEXT_LIMIT + 1)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("x" * (TEXT_LIMIT + 1)), ValueError),
        (OSError(5, "x" * 100_000), OSError),
        (PlainError("x" * 9_000, "y" * 9_000), PlainError),
        (PlainError(["x" * 100_000]), PlainError),
        (WordedError(1, 2), Exception),
    ],
)
def test_long_texts_are_cut(error: Exception, kind: type) -> None:
    """A text above the limit is shortened, the class stays where it can be made of one."""
    error.__dict__["extra"] = 1
    back = send(catch(error))
    assert type(back) is kind
    assert len(str(back)) <= TEXT_LIMIT
    assert "more characters" in str(back)
    assert str(back)[:100] in str(error)[:200]
    assert back.__dict__["extra"] == 1
    assert back.__traceback__ is not None


def test_text_at_the_limit_stays() -> None:
    """A text of exactly the limit is not touched."""
    assert send(ValueError("x" * TEXT_LIMIT)).args == ("x" * TEXT_LIMIT,)


FAILING = """
import sys
from localdist._serialize import dump_error

def middle(x):
    return deepest(x)  # the middle line

def deepest(x):
    raise ValueError(f"bad {x}")  # the deepest line

try:
    middle(1)
except ValueError as error:
    sys.stdout.write(dump_error(error, "k").hex())
"""


def test_traceback_of_another_process(tmp_path: pathlib.Path) -> None:
    """The lines of source of an error that was raised in another process are shown here."""
    back = load_error(bytes.fromhex(run_script(tmp_path / "failing.py", FAILING)))
    text = "".join(traceback.format_exception(back))
    assert type(back) is ValueError
    assert "# the middle line" in text
    assert "# the deepest line" in text
    assert text.rstrip().endswith("ValueError: bad 1")
    assert pickle.loads(pickle.dumps(back)).args == ("bad 1",)
