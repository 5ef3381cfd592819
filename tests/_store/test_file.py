"""Tests of localdist._store._file."""

from __future__ import annotations

import errno
import pickle
from dataclasses import FrozenInstanceError
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localdist._store._file import ALIGNMENT, Stored, check_room, lay_out

if TYPE_CHECKING:
    from pathlib import Path


def test_descriptor_is_small_and_frozen() -> None:
    """A descriptor survives pickling, takes little space, can be hashed, and cannot be changed."""
    stored = Stored("/folder/w1-1", 200_000_192, ((0, 130), (192, 200_000_000)), b"d" * 16, "numpy.ndarray")
    payload = pickle.dumps(stored, protocol=5)
    assert pickle.loads(payload) == stored
    assert hash(pickle.loads(payload)) == hash(stored)
    assert len(payload) < 160
    with pytest.raises(FrozenInstanceError):
        stored.nbytes = 1  # type: ignore[misc]


@given(st.lists(st.integers(0, 300)))
def test_layout(sizes: list[int]) -> None:
    """Parts keep their order and length, do not overlap, start aligned, and leave gaps shorter than the alignment."""
    layout, nbytes = lay_out([memoryview(bytes(size)) for size in sizes])
    assert [length for _, length in layout] == sizes
    end = 0
    for offset, length in layout:
        assert 0 <= offset - end < ALIGNMENT
        assert not length or offset % ALIGNMENT == 0
        end = offset + length
    assert nbytes == end


def test_too_large_a_value_is_refused_before_writing(tmp_path: Path) -> None:
    """A value larger than what the file system has free is refused with ENOSPC before a byte is written."""
    check_room(str(tmp_path), 1)
    with pytest.raises(OSError, match=str(tmp_path)) as caught:
        check_room(str(tmp_path), 1 << 60)
    assert caught.value.errno == errno.ENOSPC
