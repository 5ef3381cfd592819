"""Globals of functions that travel by value: shared within a worker, as those of a module are."""

from __future__ import annotations

import textwrap
from functools import partial
from typing import Any

import pytest

from localdist._serialize import FunctionTable
from localdist._worker._codec import LoadedFunction
from localdist._worker._globals import SharedGlobals, may_set_globals, scope_of


def arrive(source: str, name: str, shared: SharedGlobals | None, *, keep: bool | None = None) -> LoadedFunction:
    """Define functions as ``__main__`` would, and let one of them arrive in a worker."""
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec(textwrap.dedent(source), scope)
    function = FunctionTable().describe(eval(name, scope))
    return LoadedFunction(function.pickled, function.cacheable if keep is None else keep, shared)


PROGRAM = """
    from functools import partial

    CAPTURED = "where it was sent"

    def begin(value):
        global LATE, CAPTURED
        LATE = CAPTURED = value

    def late():
        return LATE

    def captured():
        return CAPTURED

    def count():
        global number
        number = number + 1
        return number

    def start_counting():
        global number
        number = 0

    def by_helper():
        start_counting()
        return count()

    class Reader:
        def __call__(self):
            return LATE

        def method(self):
            return LATE
"""


@pytest.mark.parametrize(
    "reader", ["late", "captured", "lambda: late()", "partial(late)", "Reader()", "Reader().method"]
)
def test_what_one_sets_others_see(reader: str) -> None:
    """What a function has set is there for all that are called after it, also where another value was captured."""
    shared = SharedGlobals()
    early = arrive(PROGRAM, reader, shared, keep=True)
    early.get("key")
    arrive(PROGRAM, "begin", shared).get("key")("here")
    assert early.get("key")() == "here"
    assert arrive(PROGRAM, reader, shared).get("key")() == "here"


def test_what_a_call_sets_is_there_in_the_next() -> None:
    """A function that rebinds a global is a fresh copy in each call, and yet it goes on from where it was."""
    shared = SharedGlobals()
    arrive(PROGRAM, "start_counting", shared).get("key")()
    counting = arrive(PROGRAM, "count", shared)
    assert [counting.get("key")() for _ in range(3)] == [1, 2, 3]
    assert arrive(PROGRAM, "by_helper", shared).get("key")() == 1
    assert counting.get("key")() == 2


def test_what_was_set_before_an_error_stays() -> None:
    """As with any module: an exception takes nothing back."""
    shared = SharedGlobals()
    failing = arrive("def f():\n    global A\n    A = 1\n    raise ValueError('on purpose')", "f", shared)
    with pytest.raises(ValueError, match="on purpose"):
        failing.get("key")()
    assert arrive("def g():\n    return A", "g", shared).get("key")() == 1


def test_without_sharing_each_is_alone() -> None:
    """Workers of a `Client` keep tasks apart: nothing that one sets is seen by another."""
    arrive(PROGRAM, "begin", None).get("key")("here")
    with pytest.raises(NameError):
        arrive(PROGRAM, "late", None).get("key")()
    assert arrive(PROGRAM, "captured", None).get("key")() == "where it was sent"


def test_functions_of_modules_are_left_alone() -> None:
    """What travels by name has its module's globals, so there is nothing to share and nothing to pay."""
    assert scope_of(textwrap.dedent) is None
    assert scope_of(partial(textwrap.dedent)) is None
    assert scope_of(len) is None
    assert scope_of(int) is None
    shared = SharedGlobals()
    function = FunctionTable().describe(textwrap.dedent)
    assert LoadedFunction(function.pickled, True, shared).get("key") is textwrap.dedent


def test_functions_that_set_nothing_are_called_as_they_are() -> None:
    """As long as nobody has set anything, a function that sets nothing costs nothing more."""
    shared = SharedGlobals()
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec("import os\nA = [1]\ndef plain(): return A, os, helper()\ndef helper(): return len(A)", scope)
    del scope["__builtins__"]
    assert not may_set_globals(scope["plain"], scope)
    for neighbour in (
        "def f():\n    global A\n    A = 1",
        "def f(): globals()['A'] = 1",
        "class C: pass",
        "C = object()",
    ):
        other = dict(scope)
        exec("def plain(): return A\n" + neighbour, other)
        del other["__builtins__"]
        assert may_set_globals(other["plain"], other)
    late = arrive(PROGRAM, "late", shared, keep=True)
    assert late.get("key").__name__ == "late"
