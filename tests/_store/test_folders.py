"""Tests of localdist._store._folders."""

from __future__ import annotations

import os
import pickle
import stat
import sys
import tempfile
from typing import TYPE_CHECKING

import pytest

from localdist._store import _folders
from localdist._store._folders import (
    SHARED_FOLDER_VARIABLE,
    Folders,
    make_folder,
    remove_folders,
    unlink_segment,
    unlink_strays,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no mode bits")
def test_folders_are_private(folders: Folders) -> None:
    """Only the user may enter either folder."""
    assert [stat.S_IMODE(os.stat(folder).st_mode) for folder in folders.all] == [0o700] * len(folders.all)


def test_folders_name_their_client(folders: Folders) -> None:
    """Both folders carry the name localdist and the process id of the client, so that they can be told apart."""
    for folder in folders.all:
        name = os.path.basename(folder).split("-")
        assert name[0] == "localdist"
        assert name[2] == str(os.getpid())
        assert len(name) == 5


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /dev/shm")
def test_shared_memory_is_found(folders: Folders) -> None:
    """The shared folder lies in /dev/shm exactly when a tmpfs is mounted there."""
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        expected = any(line.split()[1:3] == ["/dev/shm", "tmpfs"] for line in mounts)
    assert (folders.shared is not None and folders.shared.startswith("/dev/shm/")) is expected


def test_plain_folder_is_no_shared_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder that is no tmpfs of its own does not pass for shared memory, nor does one that is missing."""
    monkeypatch.delenv(SHARED_FOLDER_VARIABLE, raising=False)
    for place in (tmp_path, tmp_path / "missing"):
        monkeypatch.setattr(_folders, "_DEFAULT_SHARED", str(place))
        made = make_folder(str(tmp_path))
        assert made.shared is None
        assert made.all == (made.disk,)
        assert remove_folders(made)


def test_variable_chooses_shared_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """LOCALDIST_SHARED_FOLDER says where the shared folder is made; when empty there is none."""
    monkeypatch.setenv(SHARED_FOLDER_VARIABLE, str(tmp_path / "memory"))
    (tmp_path / "memory").mkdir()
    made = make_folder(str(tmp_path))
    assert made.shared is not None
    assert os.path.dirname(made.shared) == str(tmp_path / "memory")
    assert remove_folders(made)
    monkeypatch.setenv(SHARED_FOLDER_VARIABLE, "")
    made = make_folder(str(tmp_path))
    assert made.shared is None
    assert remove_folders(made)


def test_unusable_choice_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A LOCALDIST_SHARED_FOLDER that cannot be used is named in the error, together with the folder."""
    monkeypatch.setenv(SHARED_FOLDER_VARIABLE, str(tmp_path / "missing"))
    with pytest.raises(OSError, match=f"{SHARED_FOLDER_VARIABLE} cannot be used.*missing"):
        make_folder(str(tmp_path))


def test_no_temporary_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a usable temporary folder shared memory serves alone; without that too it is an error."""
    monkeypatch.setenv(SHARED_FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    made = make_folder()
    assert made.shared is None
    assert os.path.dirname(made.disk) == str(tmp_path)
    assert remove_folders(made)
    with pytest.raises(FileNotFoundError):
        make_folder(str(tmp_path / "missing"))
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv(SHARED_FOLDER_VARIABLE, "")
    with pytest.raises(FileNotFoundError):
        make_folder()


def test_removal_is_idempotent_and_complete(folders: Folders, run_script: Callable[..., object]) -> None:
    """Any process removes both folders with all that is in them, and again without harm."""
    for folder in folders.all:
        for index in range(3):
            with open(os.path.join(folder, f"w-{index}"), "wb") as file:
                file.write(b"x")
    script = "from localdist._store._folders import remove_folders\nresult = [remove_folders(given) for _ in range(2)]"
    assert run_script(script, pickle.loads(pickle.dumps(folders))) == [True, True]
    assert not any(os.path.exists(folder) for folder in folders.all)


def test_removal_tells_what_stays(tmp_path: Path) -> None:
    """A folder that cannot be removed is reported, and the other one is removed all the same."""
    (tmp_path / "a" / "nested").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    assert not remove_folders(Folders(str(tmp_path / "a"), str(tmp_path / "b")))
    assert not (tmp_path / "b").exists()
    (tmp_path / "a" / "nested").rmdir()
    assert remove_folders(Folders(str(tmp_path / "a"), str(tmp_path / "b")))


def test_unlink_segment(tmp_path: Path) -> None:
    """Unlinking says whether the file is gone, also when it was gone before."""
    (tmp_path / "w-1").touch()
    (tmp_path / "folder").mkdir()
    assert unlink_segment(str(tmp_path / "w-1"))
    assert unlink_segment(str(tmp_path / "w-1"))
    assert not unlink_segment(str(tmp_path / "folder"))


def test_strays_of_one_process(folders: Folders) -> None:
    """What a dead process never announced is removed: only its own files, and none that is known."""
    for folder in folders.all:
        for name in ("w1-1", "w1-2", "w1-sub-1", "w11-1", "w2-1"):
            open(os.path.join(folder, name), "wb").close()
    known = {os.path.join(folders.disk, "w1-2")}
    expected = {os.path.join(folder, name) for folder in folders.all for name in ("w1-1", "w1-2")} - known
    assert set(unlink_strays(folders, "w1", known)) == expected
    assert not any(os.path.exists(path) for path in expected)
    assert all(len(os.listdir(folder)) == (4 if folder == folders.disk else 3) for folder in folders.all)
    assert remove_folders(folders)
    assert unlink_strays(folders, "w1", ()) == []
