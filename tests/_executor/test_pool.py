"""What can be said of an executor's pool without starting one."""

from __future__ import annotations

import warnings

import loky
import pytest

from localdist._executor._pool import MOST_ON_WINDOWS, count_workers


def test_windows_cannot_wait_for_more() -> None:
    """There 62 workers become 61, with one warning that points at the caller; elsewhere, and up to 61, nothing is said."""
    with pytest.warns(RuntimeWarning, match="max_workers is 62: on Windows 61") as caught:
        assert count_workers(62, "win32") == MOST_ON_WINDOWS == 61
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert count_workers(61, "win32") == 61
        assert count_workers(500, "linux") == 500
        assert count_workers(500, "darwin") == 500


def test_the_default_is_what_may_be_used() -> None:
    """One worker for each core that this process may use, quotas included."""
    assert count_workers(None, "linux") == loky.cpu_count()
    assert count_workers(None, "win32") == min(loky.cpu_count(), 61)


@pytest.mark.parametrize(
    ("wrong", "error"), [(0, ValueError), (-3, ValueError), (1.5, TypeError), ("2", TypeError), (True, TypeError)]
)
def test_what_is_no_number_of_workers(wrong: object, error: type[Exception]) -> None:
    """It is refused in the standard library's words."""
    with pytest.raises(error, match="max_workers must be"):
        count_workers(wrong, "linux")  # type: ignore[arg-type]  # that is what is tested
