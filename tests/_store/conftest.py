"""Fixtures of the store's tests: private folders, small file systems, and scripts run by another interpreter."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from localdist._store._folders import SHARED_FOLDER_VARIABLE, Folders, make_folder, remove_folders

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Folders]:
    """Folders of a client of its own, in shared memory where there is some; they must be removable at the end."""
    monkeypatch.delenv(SHARED_FOLDER_VARIABLE, raising=False)
    made = make_folder(str(tmp_path))
    yield made
    assert remove_folders(made)
    assert not any(os.path.exists(folder) for folder in made.all)


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Return a function that mounts a tmpfs of some megabytes; skips where that is not permitted."""
    mounted: list[Path] = []

    def mount(megabytes: int) -> Path:
        place = tmp_path / f"tmpfs{len(mounted)}"
        place.mkdir()
        try:
            command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(place)]
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"mounting a tmpfs is not permitted: {error}")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def run_script() -> Callable[..., object]:
    """Return a function that runs a script on `given` in a new interpreter and returns what it assigns to `result`."""

    def run(script: str, given: object = None, returncode: int = 0) -> object:
        head = "import pickle, sys\ngiven = pickle.load(sys.stdin.buffer)\nresult = None\n"
        tail = "\nsys.stdout.buffer.write(pickle.dumps(result))\n"
        done = subprocess.run(
            [sys.executable, "-c", head + script + tail],
            input=pickle.dumps(given),
            capture_output=True,
            check=False,
            timeout=60,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), *sys.path]))},
        )
        assert done.returncode == returncode, done.stderr.decode()
        return pickle.loads(done.stdout) if returncode == 0 else None

    return run
