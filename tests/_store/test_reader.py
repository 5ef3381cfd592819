"""Tests of localdist._store._reader."""

from __future__ import annotations

import gc
import os
import pickle
import sys
from collections import deque
from typing import TYPE_CHECKING

import numpy as np
import psutil
import pytest

from localdist._store._file import FD_FREE, Stored
from localdist._store._reader import COPY_MAX, SegmentReader, mapping_limit
from localdist._store._segment import SegmentWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from localdist._store._folders import Folders

LARGE = 4 * COPY_MAX  # bytes; surely mapped


class World:
    """A writer, a reader, and the names that the reader reported as unmapped."""

    def __init__(self, folders: Folders) -> None:
        self.writer = SegmentWriter(folders, "w")
        self.unmapped: deque[str] = deque()
        self.reader = SegmentReader(self.unmapped.append)

    def store(self, value: object) -> Stored:
        buffers: list[pickle.PickleBuffer] = []
        stream = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
        return self.writer.write([stream, *buffers])

    def load(self, stored: Stored) -> object:
        stream, *buffers = self.reader.open(stored)
        return pickle.loads(stream, buffers=buffers)


@pytest.fixture
def world(folders: Folders) -> Iterator[World]:
    """Return a writer and a reader of one client."""
    made = World(folders)
    yield made
    made.writer.close()


@pytest.mark.parametrize("size", [1024, COPY_MAX // 8, LARGE // 8])
def test_arrays_are_private_and_writeable(world: World, size: int) -> None:
    """At every size each reader may write into its array, and nobody else sees it."""
    stored = world.store(np.arange(size))
    first, second = world.load(stored), world.load(stored)
    assert isinstance(first, np.ndarray)
    assert first.flags.writeable
    first[:] = -1
    np.testing.assert_array_equal(second, np.arange(size))
    np.testing.assert_array_equal(world.load(stored), np.arange(size))


def test_mapping_ends_with_the_last_view(world: World) -> None:
    """The end is reported once per `open`, when the last array or slice built on it is gone, and not before."""
    stored = world.store(np.arange(LARGE // 8))
    array = world.load(stored)
    assert isinstance(array, np.ndarray)
    tail = array[-10:].reshape(2, 5)
    assert world.reader.mapped == 1
    del array
    assert not world.unmapped
    assert tail.sum() == np.arange(LARGE // 8)[-10:].sum()
    del tail
    assert list(world.unmapped) == [stored.name]
    assert world.reader.mapped == 0


def test_each_open_is_reported(world: World) -> None:
    """Several mappings of one segment are reported one by one."""
    stored = world.store(np.zeros(LARGE, np.uint8))
    values = [world.load(stored) for _ in range(5)]
    while values:
        assert len(world.unmapped) == 5 - len(values)
        values.pop()
    assert list(world.unmapped) == [stored.name] * 5


def test_copied_values_are_reported_at_once(world: World) -> None:
    """A small value is copied, so that its segment is free as soon as it is opened."""
    stored = world.store(np.arange(100))
    value = world.load(stored)
    assert list(world.unmapped) == [stored.name]
    np.testing.assert_array_equal(value, np.arange(100))


def test_rescued_view_keeps_the_mapping(world: World) -> None:
    """A view in a reference cycle that a finalizer rescues keeps its mapping, which is not reported before it ends."""
    rescued: list[memoryview] = []

    class Cycle:
        def __init__(self, view: memoryview) -> None:
            self.view, self.me = view, self

        def __del__(self) -> None:
            rescued.append(self.view)

    stored = world.writer.write([b"x" * LARGE])
    Cycle(world.reader.open(stored)[0])
    gc.collect()
    assert rescued[0][:3].tobytes() == b"xxx"
    assert not world.unmapped
    gc.collect()
    assert not world.unmapped
    rescued.clear()
    gc.collect()
    assert list(world.unmapped) == [stored.name]


def test_garbage_cycle_is_reported(world: World) -> None:
    """Views that are garbage in a cycle are reported when they are collected, once."""
    stored = world.writer.write([b"x" * LARGE])
    cycle: list[object] = [world.reader.open(stored)]
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert list(world.unmapped) == [stored.name]
    gc.collect()
    assert list(world.unmapped) == [stored.name]
    assert world.reader.mapped == 0


def test_vanished_segment(world: World) -> None:
    """A segment that is gone gives an OSError which names it, and counts as unmapped."""
    stored = world.store(np.zeros(LARGE))
    os.unlink(stored.name)
    with pytest.raises(FileNotFoundError, match=f"has vanished.*{os.path.basename(stored.name)}"):
        world.reader.open(stored)
    assert list(world.unmapped) == [stored.name]


def test_damaged_segment(world: World) -> None:
    """A segment shorter than its value gives an OSError, where reading the mapping would kill the process."""
    stored = world.store(np.zeros(LARGE))
    os.truncate(stored.name, LARGE)
    with pytest.raises(OSError, match="shorter than the value"):
        world.reader.open(stored)
    assert list(world.unmapped) == [stored.name]


def test_other_processes_see_the_value_and_write_privately(world: World, run_script: Callable[..., object]) -> None:
    """Another process gets the value, writes into its own copy only, and so does a third one."""
    stored = world.store(np.arange(LARGE // 8))
    mine = world.load(stored)
    script = """
import numpy
from localdist._store._reader import SegmentReader
stream, *buffers = SegmentReader(list().append).open(given)
array = pickle.loads(stream, buffers=buffers)
result = int(array.sum()), array.flags.writeable
array[:] = 7
assert array.sum() == 7 * array.size
"""
    expected = (int(np.arange(LARGE // 8).sum()), True)
    assert run_script(script, stored) == expected
    assert run_script(script, stored) == expected
    np.testing.assert_array_equal(mine, np.arange(LARGE // 8))


def test_value_outlives_its_writer(folders: Folders, run_script: Callable[..., object]) -> None:
    """A value written by a process that ended can be read; so can one whose file is removed while it is mapped."""
    script = """
from localdist._store._segment import SegmentWriter
result = SegmentWriter(given, "child").write([b"head", b"x" * 1_000_000])
"""
    stored = run_script(script, folders)
    assert isinstance(stored, Stored)
    head, body = SegmentReader(deque[str]().append).open(stored)
    if sys.platform != "win32":
        os.unlink(stored.name)
    assert (bytes(head), bytes(body)) == (b"head", b"x" * 1_000_000)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_mapping_that_a_forked_child_shares_is_never_reported(
    folders: Folders, run_script: Callable[..., object]
) -> None:
    """The end of a mapping that lived at a fork says nothing about the child's; of later ones it is reported."""
    script = """
import os
from localdist._store._reader import SegmentReader
from localdist._store._segment import SegmentWriter
stored = SegmentWriter(given, "child").write([b"head", b"x" * 1_000_000])
unmapped = []
reader = SegmentReader(unmapped.append)
views = reader.open(stored)
child = os.fork()
if not child:
    del views
    os._exit(len(unmapped))
assert os.waitpid(child, 0)[1] == 0
del views
before = list(unmapped)
views = reader.open(stored)
del views
result = before, unmapped, reader.mapped
"""
    stored_names = run_script(script, folders)
    assert isinstance(stored_names, tuple)
    shared, reported, _ = stored_names
    assert (shared, len(reported)) == ([], 1)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_no_descriptors_run_out(folders: Folders, run_script: Callable[..., object]) -> None:
    """Holding more values than the process may have descriptors works, and leaves descriptors for others."""
    script = """
import os, resource
from localdist._store._segment import SegmentReader, SegmentWriter
writer = SegmentWriter(given, "child")
stored = [writer.write([b"%3d" % i, bytes([i]) * 300_000]) for i in range(150)]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
unmapped = []
reader = SegmentReader(unmapped.append)
values = [reader.open(s) for s in stored]
assert all(v[0] == b"%3d" % i and v[1] == bytes([i]) * 300_000 for i, v in enumerate(values))
files = [open(os.devnull) for _ in range(20)]
mapped = reader.mapped
assert len(unmapped) == 150 - mapped
del values
assert sorted(unmapped) == sorted(s.name for s in stored)
result = mapped
"""
    assert run_script(script, folders) == (150 if FD_FREE else 32)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_mapping_limit_follows_the_descriptors() -> None:
    """A mapping that costs no descriptor is not limited; else half of the descriptors may be used."""
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    expected = float("inf") if FD_FREE or soft == resource.RLIM_INFINITY else soft // 2
    assert mapping_limit() == expected


@pytest.mark.skipif(sys.platform == "win32", reason="counts POSIX descriptors")
def test_no_descriptor_leaks(world: World) -> None:
    """Values that come and go leave no descriptor; and from Python 3.13 not even a live mapping holds one."""
    me = psutil.Process()
    before = me.num_fds()
    for _ in range(20):
        stored = world.store(np.zeros(LARGE, np.uint8))
        value = world.load(stored)
        if FD_FREE:
            assert me.num_fds() == before
        del value
        world.writer.recycle(stored.name)
    world.writer.close()
    assert me.num_fds() == before
