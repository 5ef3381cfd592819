"""What every test gets: the leak guard, and Hypothesis without a clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

import hypothesis
import pytest

from localdist import Client
from localdist.testing import LeakError, Snapshot, find_leaks
from tests.support import Gate

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

# No deadline: how long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile("localdist", deadline=None, print_blob=True)
hypothesis.settings.load_profile("localdist")

FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note on the test whether it failed, for `no_leaks`."""
    report = yield
    if report.when == "call":
        item.stash[FAILED] = report.failed
    return report


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves threads, processes, descriptors or segments behind.

    It is set up before, and checked after, all other fixtures of the test's own scope; what fixtures of a wider scope
    hold is there before and after. A test that kills a worker therefore needs a client of its own.
    """
    before = Snapshot.take()
    yield
    # The traceback of a failed test keeps its variables alive, and with them whatever they hold.
    if not request.node.stash.get(FAILED, False) and (leaks := find_leaks(before)):
        raise LeakError(leaks)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Give a client of two worker processes that the tests of a module share; they leave nothing running in it."""
    client = Client(n_workers=2, threads_per_worker=1)
    client.wait_for_workers(2)
    yield client
    client.close()


@pytest.fixture(scope="module")
def threads() -> Iterator[Client]:
    """Give a client whose workers are threads, which the tests of a module share."""
    client = Client(processes=False, n_workers=2, threads_per_worker=1)
    yield client
    client.close()


@pytest.fixture(params=["processes", "threads"])
def either(request: pytest.FixtureRequest, client: Client, threads: Client) -> Client:
    """Give one, then the other of the two clients above: what is tested holds for both."""
    return client if request.param == "processes" else threads


@pytest.fixture
def gate() -> Iterator[Gate]:
    """Give a gate that holds tasks up until the test opens it."""
    gate = Gate()
    yield gate
    gate.close()
