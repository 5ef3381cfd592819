"""What a user may import is listed here; the package offers that, no more and no less."""

from __future__ import annotations

import importlib
import inspect
import sys
from concurrent.futures import CancelledError as StandardCancelledError
from concurrent.futures import TimeoutError as StandardTimeoutError
from typing import Any

import pytest

import localdist

# A name that is added to the package is added here, too.
PUBLIC = {
    "localdist": {
        "CancelledError",
        "Client",
        "ClosedClientError",
        "Executor",
        "Future",
        "KilledWorker",
        "LocalCluster",
        "LocaldistError",
        "Reschedule",
        "TaskTimeoutError",
        "TimeoutError",
        "as_completed",
        "default_client",
        "fire_and_forget",
        "futures_of",
        "get_worker",
        "progress",
        "wait",
    },
    "localdist.errors": {
        "CancelledError",
        "ClosedClientError",
        "DeserializationError",
        "FutureCancelledError",
        "FuturesCancelledError",
        "InternalError",
        "InvalidTransition",
        "KilledWorker",
        "LocaldistError",
        "Reschedule",
        "SerializationError",
        "StoreFullError",
        "TaskTimeoutError",
        "WorkerStartError",
        "WorkerStartTimeoutError",
    },
    "localdist.testing": {"History", "LeakError", "Leaks", "Snapshot", "find_leaks", "leak_guard", "simulate"},
}
FROM_THE_STANDARD_LIBRARY = {"CancelledError": StandardCancelledError, "TimeoutError": StandardTimeoutError}
DESCRIPTORS = (property, classmethod, staticmethod)
EACH = [(module, name) for module, names in sorted(PUBLIC.items()) for name in sorted(names)]


def get(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("module", sorted(PUBLIC))
def test_all_is_the_list(module: str) -> None:
    """`__all__` names exactly what is listed, once each, plus the version at the root."""
    names = importlib.import_module(module).__all__
    assert len(names) == len(set(names))
    assert set(names) - {"__version__"} == PUBLIC[module]


@pytest.mark.parametrize(("module", "name"), EACH)
def test_each_name_is_there_and_explained(module: str, name: str) -> None:
    """Each name can be imported and has a docstring of its own."""
    assert (get(module, name).__doc__ or "").strip()


@pytest.mark.parametrize(("module", "name"), EACH)
def test_each_name_says_where_to_import_it_from(module: str, name: str) -> None:
    """`__module__` is the module that defines the name, so that tools find its source; errors are in a public one."""
    found = get(module, name)
    if name in FROM_THE_STANDARD_LIBRARY:
        assert found is FROM_THE_STANDARD_LIBRARY[name]
        return
    home = found.__module__
    assert home.split(".")[0] == "localdist"
    if isinstance(found, type) and issubclass(found, BaseException):
        assert home in PUBLIC or home.startswith("localdist.testing.")  # tracebacks print it
    assert getattr(sys.modules[home], name) is found


@pytest.mark.parametrize(("module", "name"), EACH)
def test_each_public_method_is_explained(module: str, name: str) -> None:
    """Each public method and property of an exported class has a docstring, its own or an inherited one."""
    found = get(module, name)
    if not inspect.isclass(found) or name in FROM_THE_STANDARD_LIBRARY:
        return
    own = {
        attribute: value
        for base in found.__mro__
        if base.__module__.startswith("localdist")
        for attribute, value in vars(base).items()
        if not attribute.startswith("_") and (callable(value) or isinstance(value, DESCRIPTORS))
    }
    assert [attribute for attribute in own if not inspect.getdoc(getattr(found, attribute))] == []


def test_dir_shows_the_names() -> None:
    """Names that load on first use are shown by `dir` before, for those who explore with the tab key."""
    assert PUBLIC["localdist"] <= set(dir(localdist))


def test_unknown_name_is_an_attribute_error() -> None:
    """A misspelt name fails as anywhere else, not inside the loading of names."""
    with pytest.raises(AttributeError, match="Cleint"):
        get("localdist", "Cleint")


def test_version_is_a_version() -> None:
    """`__version__` is there without loading anything, as numbers with dots."""
    assert all(part.isdigit() for part in get("localdist", "__version__").split(".")[:2])
