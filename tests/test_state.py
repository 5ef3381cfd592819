"""What the client's threads and the scheduler's share: the pause of the garbage collector."""

from __future__ import annotations

import gc
import sys
import threading

import pytest

from localdist._state import collection_paused


def test_collection_is_paused_and_runs_again() -> None:
    """Within the block the collector rests; afterwards, also after an error, it is as it was before."""
    assert gc.isenabled()
    with collection_paused():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(KeyError), collection_paused():
        raise KeyError
    assert gc.isenabled()
    gc.disable()
    try:
        with collection_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_pauses_that_overlap() -> None:
    """In whatever order several pauses begin and end, the collector runs when all have ended."""
    for last in (0, 1):
        pauses = [collection_paused(), collection_paused()]
        for pause in pauses:
            pause.__enter__()
        pauses[1 - last].__exit__(None, None, None)
        pauses[last].__exit__(None, None, None)
        assert gc.isenabled()


def test_threads_that_pause_at_the_same_time() -> None:
    """That holds for threads, too, thousands of times."""

    def pause() -> None:
        for _ in range(2000):
            with collection_paused():
                pass

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=pause) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert gc.isenabled()
    finally:
        sys.setswitchinterval(interval)
        gc.enable()
