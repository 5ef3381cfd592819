"""What tests can use: a guard that finds what was left running, open or stored, and a simulation of the scheduler.

`simulate` is for those who change the scheduler. The guard is for every program on localdist; use it from a test suite
(pytest shown; the guard itself knows no test framework)::

    @pytest.fixture(autouse=True)
    def no_leaks():
        with localdist.testing.leak_guard():
            yield
"""

from __future__ import annotations

from localdist.testing._leaks import LeakError, Leaks, Snapshot, find_leaks, leak_guard
from localdist.testing._simulation import History, simulate

__all__ = ["History", "LeakError", "Leaks", "Snapshot", "find_leaks", "leak_guard", "simulate"]
