"""Tests of localdist._store._segment."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
import warnings
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pickle import PickleBuffer
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from localdist._store import _segment
from localdist._store._folders import Folders
from localdist._store._reader import COPY_MAX, SegmentReader
from localdist._store._segment import SegmentWriter, warn_once
from localdist.errors import StoreFullError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from localdist._store._file import Stored

MB = 1_000_000
PAGE = mmap.PAGESIZE
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX")


@pytest.fixture
def writer(folders: Folders) -> Iterator[SegmentWriter]:
    """Return a writer, which is closed at the end."""
    made = SegmentWriter(folders, "w")
    yield made
    made.close()


def load(stored: Stored) -> list[bytes]:
    """Return the parts of a value, as a reader sees them."""
    return [bytes(view) for view in SegmentReader(deque[str]().append).open(stored)]


def files(folders: Folders) -> list[str]:
    """Return the paths of all segments that exist."""
    return sorted(os.path.join(folder, file) for folder in folders.all for file in os.listdir(folder))


def age(writer: SegmentWriter, *values: Stored) -> None:
    """Make the segments of values warm."""
    for stored in values:
        assert writer.recycle(stored.name)


SIZES = st.sampled_from([0, 1, 63, 64, 65, PAGE - 1, PAGE, PAGE + 1, COPY_MAX - 1, COPY_MAX, COPY_MAX + 1])


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(SIZES, max_size=4), min_size=1, max_size=6))
def test_every_value_comes_back(writer: SegmentWriter, values: list[list[int]]) -> None:
    """Parts of any length come back as they were, from fresh segments and from warm ones of other lengths."""
    for number, sizes in enumerate(values):
        parts = [bytes([number, index]) * size for index, size in enumerate(sizes)]
        stored = writer.write([part[: len(part) // 2] for part in parts])
        assert load(stored) == [part[: len(part) // 2] for part in parts]
        age(writer, stored)


def test_parts_may_be_any_contiguous_buffer(writer: SegmentWriter) -> None:
    """Bytes, memory views and pickle buffers are taken, of any item type, shape (also empty) and order."""
    arrays: list[Any] = [
        np.arange(24.0).reshape(2, 3, 4),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.zeros((0, 3)),
    ]
    stored = writer.write([b"stream", memoryview(b"view"), *map(PickleBuffer, arrays)], b"digest", "some.Type")
    assert load(stored) == [b"stream", b"view", *(array.tobytes("A") for array in arrays)]
    assert (stored.digest, stored.type_name) == (b"digest", "some.Type")
    strided: Any = np.arange(10)[::2]
    with pytest.raises(BufferError):
        writer.write([PickleBuffer(strided)])


@pytest.mark.parametrize("size", [100, PAGE, COPY_MAX, 5 * MB])
def test_warm_segment_is_used_again(writer: SegmentWriter, folders: Folders, size: int) -> None:
    """A released segment takes the next value of its size: the very same file, whose content is the new value."""
    first = writer.write([b"a" * size])
    inode = os.stat(first.name).st_ino
    for letter in (b"b", b"c", b"d"):
        age(writer, first)
        again = writer.write([letter * size])
        assert again.name == first.name
        assert os.stat(again.name).st_ino == inode
        assert load(again) == [letter * size]
    assert files(folders) == [first.name]


def test_mapping_is_kept(folders: Folders, tmp_path: Path) -> None:
    """A segment in shared memory is mapped when it is first used again; later values go through that mapping."""
    (tmp_path / "shared").mkdir()
    writer = SegmentWriter(Folders(str(tmp_path / "shared"), folders.disk), "w")
    mappings = []
    for letter in (b"a", b"b", b"c", b"d"):
        stored = writer.write([letter * MB])
        assert load(stored) == [letter * MB]
        mappings.append(writer._used[stored.name].mapping)
        age(writer, stored)
    assert mappings[0] is None
    assert mappings[1] is not None
    assert mappings[1] is mappings[2] is mappings[3]
    writer.close()


def test_segment_in_use_is_never_written_again(writer: SegmentWriter) -> None:
    """Values that are in use keep their segments, whatever is written besides."""
    values = {letter: writer.write([letter * MB]) for letter in (b"a", b"b", b"c")}
    assert len({stored.name for stored in values.values()}) == 3
    age(writer, values.pop(b"b"))
    values[b"d"] = writer.write([b"d" * MB])
    for letter, stored in values.items():
        assert load(stored) == [letter * MB]


def test_best_fit(writer: SegmentWriter) -> None:
    """The smallest warm segment that is large enough is taken, unless more than a quarter of it would be wasted."""
    large, fitting, small = (writer.write([b"x" * (pages * PAGE)]) for pages in (120, 110, 90))
    age(writer, large, fitting, small)
    assert writer.warm_bytes == 320 * PAGE
    assert writer.write([b"y" * (100 * PAGE)]).name == fitting.name
    assert writer.write([b"y" * (100 * PAGE)]).name == large.name
    assert writer.write([b"y" * (100 * PAGE)]).name not in {large.name, fitting.name, small.name}
    assert writer.write([b"y" * (71 * PAGE)]).name != small.name
    assert writer.write([b"y" * (72 * PAGE)]).name == small.name
    assert writer.warm_bytes == 0


def test_discard(writer: SegmentWriter, folders: Folders) -> None:
    """Discarding removes a warm segment, and nothing else: neither a value in use nor what is not known."""
    stored = writer.write([b"x" * MB])
    assert not writer.discard(stored.name)
    assert load(stored) == [b"x" * MB]
    age(writer, stored)
    assert not writer.recycle(stored.name)
    assert writer.discard(stored.name)
    assert files(folders) == []
    assert not writer.discard(stored.name)
    assert not writer.recycle("unknown")
    assert writer.warm_bytes == 0


def test_late_discard_is_ignored(writer: SegmentWriter) -> None:
    """An order to discard that arrives after the segment was taken for a new value leaves that value alone."""
    first = writer.write([b"a" * MB])
    age(writer, first)
    second = writer.write([b"b" * MB])
    assert second.name == first.name
    assert not writer.discard(first.name)
    assert load(second) == [b"b" * MB]


def test_close(folders: Folders) -> None:
    """Closing removes what is warm, and what is released later; values in use stay readable."""
    writer = SegmentWriter(folders, "w")
    warm, used, mapped = (writer.write([letter * MB]) for letter in (b"a", b"b", b"c"))
    age(writer, mapped)
    mapped = writer.write([b"d" * MB])
    age(writer, warm)
    writer.close()
    assert files(folders) == sorted([used.name, mapped.name])
    assert (load(used), load(mapped)) == ([b"b" * MB], [b"d" * MB])
    age(writer, used, mapped)
    assert files(folders) == []
    writer.close()


def test_cleaned_folder(writer: SegmentWriter) -> None:
    """A warm segment whose file somebody removed is not used, even when it is still mapped."""
    first = writer.write([b"a" * MB])
    age(writer, first)
    writer.write([b"b" * MB])
    os.unlink(first.name)
    age(writer, first)
    again = writer.write([b"c" * MB])
    assert again.name != first.name
    assert load(again) == [b"c" * MB]


def test_shared_limit(folders: Folders, tmp_path: Path) -> None:
    """A writer holds no more shared memory than it may, warm segments included, and then goes to disk."""
    (tmp_path / "shared").mkdir()
    both = Folders(str(tmp_path / "shared"), folders.disk)
    said: list[str] = []
    writer = SegmentWriter(both, "w", shared_limit=30 * PAGE, on_spill=said.append)
    first, second = writer.write([b"a" * 10 * PAGE]), writer.write([b"b" * 10 * PAGE])
    age(writer, first)
    third = writer.write([b"c" * 20 * PAGE])
    assert not os.path.exists(first.name)
    assert not said
    fourth = writer.write([b"d" * PAGE])
    assert [os.path.dirname(s.name) == both.shared for s in (second, third, fourth)] == [True, True, False]
    assert len(said) == 1
    assert f"the limit of {30 * PAGE} bytes is reached" in said[0]
    fifth = writer.write([b"d" * PAGE])
    assert len(said) == 1
    age(writer, second, third, fourth, fifth)
    assert not os.path.exists(fourth.name)
    assert os.path.dirname(writer.write([b"e" * 30 * PAGE]).name) == both.shared
    writer.close()


def test_threads(writer: SegmentWriter, folders: Folders) -> None:
    """Threads may write, recycle and discard at once: each gets its own segment, none is lost."""

    def work(thread: int) -> None:
        for number in range(60):
            body = bytes([thread]) * (PAGE * (1 + number % 40))
            stored = writer.write([b"head", body])
            assert load(stored) == [b"head", body]
            age(writer, stored)
            if number % 7 == 0:
                writer.discard(stored.name)
            if number % 31 == 0:
                writer.drop_warm()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert writer.warm_bytes == sum(os.path.getsize(file) for file in files(folders))
    writer.close()
    assert files(folders) == []


def test_many_mappings(writer: SegmentWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer keeps a bounded number of mappings, and rewrites further segments without."""
    monkeypatch.setattr(_segment, "_MAPPED_MAX", 2)
    for letter in (b"a", b"b", b"c"):
        values = [writer.write([letter * PAGE]) for _ in range(5)]
        assert [load(stored) for stored in values] == [[letter * PAGE]] * 5
        assert sum(segment.mapping is not None for segment in writer._used.values()) <= 2
        age(writer, *values)


def test_warning_is_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process warns once that values go to disk, however many writers it has."""
    monkeypatch.setattr(_segment, "_warned", [])
    with pytest.warns(RuntimeWarning, match="first"):
        warn_once("first")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_once("second")


@posix_only
def test_small_shared_memory(
    folders: Folders, small_tmpfs: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In 64 MB of shared memory a value of 200 MB goes to disk, with one warning, and small ones stay in memory."""
    monkeypatch.setattr(_segment, "_warned", [])
    both = Folders(str(small_tmpfs(64)), folders.disk)
    writer = SegmentWriter(both, "w")
    array: Any = np.arange(25 * MB)
    with pytest.warns(RuntimeWarning, match="no room for a value of 200000000 bytes.*docker run --shm-size") as caught:
        large, larger = writer.write([PickleBuffer(array)]), writer.write([PickleBuffer(array[1:])])
    assert len(caught) == 1
    small = writer.write([b"x" * MB])
    assert [os.path.dirname(s.name) for s in (large, larger, small)] == [both.disk, both.disk, both.shared]
    (view,) = SegmentReader(deque[str]().append).open(large)
    np.testing.assert_array_equal(np.frombuffer(view, array.dtype), array)
    age(writer, large, larger, small)
    assert files(both) == [small.name]
    writer.close()


@posix_only
def test_both_full(small_tmpfs: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """When disk is full too, the error names both folders and their errors; nothing is left, and smaller values fit."""
    monkeypatch.setattr(_segment, "_warned", ["already"])
    both = Folders(str(small_tmpfs(8)), str(small_tmpfs(16)))
    writer = SegmentWriter(both, "w")
    with pytest.raises(StoreFullError) as caught:
        writer.write([b"x" * (20 * MB)])
    assert caught.value.nbytes == 20 * MB
    assert caught.value.folders == dict.fromkeys(both.all, os.strerror(errno.ENOSPC))
    assert files(both) == []
    assert load(writer.write([b"y" * (12 * MB)])) == [b"y" * (12 * MB)]


@posix_only
def test_space_that_vanishes_while_writing(
    small_tmpfs: Callable[..., Path], folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When others fill the folder during the writing, the half-written file is removed and the next folder tried."""
    monkeypatch.setattr(_segment, "check_room", lambda _folder, _nbytes: None)
    both = Folders(str(small_tmpfs(8)), folders.disk)
    writer = SegmentWriter(both, "w", on_spill=list[str]().append)
    stored = writer.write([b"x" * (20 * MB)])
    assert files(both) == [stored.name]
    assert load(stored) == [b"x" * (20 * MB)]


@posix_only
def test_warm_segments_make_room(small_tmpfs: Callable[..., Path], folders: Folders) -> None:
    """Before a value goes to disk the writer gives up its own warm segments."""
    both = Folders(str(small_tmpfs(64)), folders.disk)
    said: list[str] = []
    writer = SegmentWriter(both, "w", on_spill=said.append)
    age(writer, writer.write([b"x" * (20 * MB)]), writer.write([b"x" * (20 * MB)]))
    stored = writer.write([b"y" * (50 * MB)])
    assert files(both) == [stored.name]
    assert os.path.dirname(stored.name) == both.shared
    assert not said


@posix_only
def test_full_memory_does_not_kill(
    small_tmpfs: Callable[..., Path], folders: Folders, run_script: Callable[..., object]
) -> None:
    """Rewriting a warm segment of a tmpfs that others filled meanwhile needs no new page, so no SIGBUS can come."""
    both = Folders(str(small_tmpfs(16)), folders.disk)
    script = """
import os
from localdist._store._segment import SegmentWriter
writer = SegmentWriter(given, "child", on_spill=[].append)
for parts in ([b"x" * 4_000_001], [b"x" * 100, b"y" * 4_000_000 + b"z" * 3_000]):
    stored = writer.write([b"a", b"b" * 5_000, *parts])
    writer.recycle(stored.name)
    with open(os.path.join(given.shared, "others"), "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
    again = writer.write([parts[-1][::-1]])
    assert again.name == stored.name
    assert open(again.name, "rb").read()[: again.nbytes] == parts[-1][::-1]
    assert os.path.dirname(writer.write([b"more" * 1000]).name) == given.disk
    os.unlink(os.path.join(given.shared, "others"))
result = True
"""
    assert run_script(script, both) is True
    for file in files(both):
        os.unlink(file)


@posix_only
def test_file_size_limit(folders: Folders, run_script: Callable[..., object]) -> None:
    """A limit of the process on file sizes (EFBIG) gives a StoreFullError, and no half-written file stays."""
    script = """
import os, resource
from localdist._store._segment import SegmentWriter
from localdist.errors import StoreFullError
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
try:
    SegmentWriter(given, "child", on_spill=[].append).write([b"x" * 3_000_000])
except StoreFullError as error:
    result = error.folders
"""
    assert run_script(script, folders) == dict.fromkeys(folders.all, os.strerror(errno.EFBIG))
    assert files(folders) == []


@posix_only
def test_read_only_folder(small_tmpfs: Callable[..., Path], folders: Folders) -> None:
    """A shared folder that became read-only is passed over; when disk is read-only too, the error says so."""
    first, second = small_tmpfs(8), small_tmpfs(8)
    for place in (first, second):
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    said: list[str] = []
    writer = SegmentWriter(Folders(str(first), folders.disk), "w", on_spill=said.append)
    assert os.path.dirname(writer.write([b"x" * MB]).name) == folders.disk
    assert len(said) == 1
    writer = SegmentWriter(Folders(str(first), str(second)), "w", on_spill=said.append)
    with pytest.raises(StoreFullError, match=r"Read-only file system.*Read-only file system"):
        writer.write([b"x" * MB])


def test_removed_folders(tmp_path: Path) -> None:
    """A writer whose folders are gone fails with an OSError that names them."""
    writer = SegmentWriter(Folders(None, str(tmp_path / "gone")), "w")
    with pytest.raises(StoreFullError, match=f"gone: {os.strerror(errno.ENOENT)}"):
        writer.write([b"x"])


def test_warning_as_error_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where warnings are errors the value is not stored, and no file stays."""
    monkeypatch.setattr(_segment, "_warned", [])
    (tmp_path / "disk").mkdir()
    both = Folders(str(tmp_path / "gone"), str(tmp_path / "disk"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="no room for a value of 1 bytes"):
            SegmentWriter(both, "w").write([b"x"])
    assert os.listdir(both.disk) == []


def test_rewriting_on_disk(tmp_path: Path) -> None:
    """Where there is no shared memory segments on disk are kept warm, and rewritten without a mapping."""
    writer = SegmentWriter(Folders(None, str(tmp_path)), "w")
    first = writer.write([b"a" * MB])
    age(writer, first)
    again = writer.write([b"b" * MB])
    assert again.name == first.name
    assert load(again) == [b"b" * MB]
    assert writer._used[again.name].mapping is None
    age(writer, again)
    writer.close()
    assert os.listdir(tmp_path) == []


def test_repr(writer: SegmentWriter) -> None:
    """A writer shows its state."""
    writer.write([b"x"])
    age(writer, writer.write([b"x"]))
    assert repr(writer) == f"<SegmentWriter w: 1 used, 1 warm, {PAGE} bytes>"
