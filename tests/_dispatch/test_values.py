"""The client's side of the store: a descriptor leads to its own value, or to none."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import pytest

from localdist._dispatch._values import ValueStore
from localdist._store._folders import make_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from localdist._store._file import Stored


@pytest.fixture
def values(tmp_path: Path) -> Iterator[ValueStore]:
    """Give a store that nobody else uses."""
    store = ValueStore(make_folder(str(tmp_path)), lambda: None)
    yield store
    store.close()


def keep(values: ValueStore, byte: bytes) -> Stored:
    return values.keep([pickle.dumps(byte * 400_000)], None)


def test_a_released_value_cannot_be_loaded(values: ValueStore) -> None:
    """After its last holder has let go a value is an error, also when its segment is still there, or holds another."""
    old = keep(values, b"a")
    again = keep(values, b"a")
    assert again is old
    values.release([old])
    assert values.load(old) == b"a" * 400_000, "one holder is left"
    values.release([old])
    with pytest.raises(FileNotFoundError, match="was released"):
        values.load(old)
    values.settle(0.0)
    with pytest.raises(FileNotFoundError, match="was released"):
        values.load(old)
    new = keep(values, b"b")
    assert new.name == old.name, "the segment is written again"
    with pytest.raises(FileNotFoundError, match="was released"):
        values.load(old)
    assert values.load(new) == b"b" * 400_000
