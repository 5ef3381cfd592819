"""Many calls in one task."""

from __future__ import annotations

import operator
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localdist._chunk import FailedChunk, run_chunk
from localdist._serialize import load_error


class Flaky:
    """Fails the first calls with an argument, as often as that argument's plan says."""

    def __init__(self, plan: dict[int, int]) -> None:
        self.plan = dict(plan)
        self.calls: list[int] = []

    def __call__(self, value: int) -> int:
        self.calls.append(value)
        if self.plan.get(value, 0):
            self.plan[value] -= 1
            raise ValueError(value)
        return -value


@given(st.lists(st.integers(0, 3), max_size=8), st.integers(0, 3))
def test_against_a_plain_loop(failures: list[int], retries: int) -> None:
    """Each element is tried 1 + `retries` times; the first that never succeeds ends the chunk, and nothing runs twice."""
    flaky = Flaky(dict(enumerate(failures)))
    result = run_chunk(flaky, retries, (), {}, tuple(range(len(failures))))
    hopeless = next((i for i, count in enumerate(failures) if count > retries), None)
    done = [-i for i in range(len(failures) if hopeless is None else hopeless)]
    tried = [i for i, count in enumerate(failures[: len(done)]) for _ in range(count + 1)]
    if hopeless is None:
        assert result == done
    else:
        assert isinstance(result, FailedChunk)
        assert result.results == done
        assert result.error.args == (hopeless,)
        tried += [hopeless] * (retries + 1)
    assert flaky.calls == tried


def test_several_columns() -> None:
    """Columns are the arguments, in order."""
    assert run_chunk(operator.sub, 0, (), {}, (5, 6), (1, 2)) == [4, 4]
    assert run_chunk(pow, 1, (), {}, (2,), (3,), (5,)) == [3]
    assert run_chunk(pow, 0, (2,), {"mod": 5}, (3, 4)) == [3, 1]


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration])
def test_any_exception_is_the_calls_own(error: Any) -> None:
    """Also those that would end a program, or a loop."""

    def fail(value: int) -> int:
        if value:
            raise error("on purpose")
        return value

    result = run_chunk(fail, 0, (), {}, (0, 1, 0))
    assert isinstance(result, FailedChunk)
    assert result.results == [0]
    assert type(result.error) is error


def test_a_failed_chunk_travels_with_its_traceback() -> None:
    """On its way to the client the exception is dumped as any task's is, also when it travels on."""

    def fail(value: int) -> int:
        raise ValueError("on purpose")

    result = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(run_chunk(fail, 0, (), {}, (1,))))))
    error = load_error(result.error)
    assert repr(error) == "ValueError('on purpose')"
    names = []
    traceback = error.__traceback__
    while traceback is not None:
        names.append(traceback.tb_frame.f_code.co_name)
        traceback = traceback.tb_next
    assert names[-1] == "fail"
