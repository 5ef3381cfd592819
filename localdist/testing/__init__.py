"""What tests of programs on localdist can use: a guard that finds what was left running, open or stored.

Use it from a test suite (pytest shown; the guard itself knows no test framework)::

    @pytest.fixture(autouse=True)
    def no_leaks():
        with localdist.testing.leak_guard():
            yield
"""

from __future__ import annotations

from localdist.testing._leaks import LeakError, Leaks, Snapshot, find_leaks, leak_guard

__all__ = ["LeakError", "Leaks", "Snapshot", "find_leaks", "leak_guard"]
