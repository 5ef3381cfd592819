"""The page that tells, after a worker's death, what it had begun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from localdist._store._begun import BegunTable
from localdist._store._folders import Folders


def test_what_another_process_writes_is_read_after_its_death(tmp_path: Path) -> None:
    """Each slot's last number is there, however the process that wrote it ended."""
    table = BegunTable.create(Folders(None, str(tmp_path)), "worker-0.begun", 3)
    assert table is not None
    assert table.begun() == []
    code = "import os, sys; from localdist._store._begun import BegunTable; t = BegunTable.open(sys.argv[1], 3); t.slots[0] = 7; t.slots[2] = 2**40; t.slots[0] = 8; os.abort()"
    ended = subprocess.run(
        [sys.executable, "-X", "faulthandler=0", "-c", code, table.path], capture_output=True, timeout=30
    )
    assert ended.returncode != 0
    assert table.begun() == [8, 2**40]
    table.close()
    assert os.listdir(tmp_path) == []
    table.close()


def test_no_room_is_no_error(tmp_path: Path) -> None:
    """Where neither folder takes it there is no table, and nothing is left behind."""
    missing = str(tmp_path / "missing")
    assert BegunTable.create(Folders(missing, missing), "worker-0.begun", 1) is None
    assert os.listdir(tmp_path) == []


def test_the_second_folder_is_taken_when_the_first_is_full(tmp_path: Path) -> None:
    """Shared memory is preferred; a disk does as well."""
    table = BegunTable.create(Folders(str(tmp_path / "missing"), str(tmp_path)), "worker-0.begun", 1)
    assert table is not None
    assert os.path.dirname(table.path) == str(tmp_path)
    table.close()


def test_a_table_that_is_gone_cannot_be_opened(tmp_path: Path) -> None:
    """A worker whose client has gone meanwhile gets an OSError."""
    with pytest.raises(FileNotFoundError):
        BegunTable.open(str(tmp_path / "worker-0.begun"), 1)
