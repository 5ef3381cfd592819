"""What an import brings in, in fresh interpreters; counted in modules, because times say more about the machine."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
HEAVY = {
    *("asyncio", "concurrent", "multiprocessing"),
    *("loky", "cloudpickle", "psutil", "tblib", "xxhash", "numpy", "pandas"),
}
MOST_OWN_MODULES = 3  # the root, and at most two small ones that it cannot do without

SCRIPT = """
import importlib, json, sys
before = set(sys.modules)
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def modules_loaded_by(*names: str) -> list[str]:
    # With -c, the working directory is where modules are looked for first.
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *names], stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT
    )
    loaded: list[str] = json.loads(done.stdout)
    return loaded


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def worker_modules() -> list[str]:
    folder = ROOT / "localdist" / "_worker"
    return ["localdist._worker", *(f"localdist._worker.{m.name}" for m in pkgutil.iter_modules([str(folder)]))]


def test_root_is_light() -> None:
    """`import localdist` loads at most three of its own modules, and nothing heavy."""
    loaded = modules_loaded_by("localdist")
    own = [module for module in loaded if is_within(module, "localdist")]
    assert "localdist" in own
    assert len(own) <= MOST_OWN_MODULES
    assert HEAVY & {module.split(".")[0] for module in loaded} == set()


def test_worker_loads_no_scheduler() -> None:
    """All modules of the worker together load neither the scheduler nor the dispatcher nor the client, nor arrays."""
    loaded = modules_loaded_by(*worker_modules())
    assert "localdist._worker" in loaded
    unwanted = ("localdist._schedule", "localdist._dispatch", "localdist._client", "numpy", "pandas")
    assert [module for module in loaded if any(is_within(module, package) for package in unwanted)] == []


def test_no_public_module_loads_arrays() -> None:
    """Errors and test kit can be imported without NumPy and pandas."""
    loaded = modules_loaded_by("localdist.errors", "localdist.testing")
    assert "localdist.testing" in loaded
    assert {"numpy", "pandas"} & set(loaded) == set()
