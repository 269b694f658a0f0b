"""Ranges of numbers that several commands take."""

from __future__ import annotations

from pvpatch.abi.errors import UsageError

__all__ = ["check_guest_seconds", "check_host_seconds"]

_LONGEST_S = 1_000_000_000
"""Guest seconds; virtual time is counted in nanoseconds in 64 bits."""
_LONGEST_HOST_S = 1_000_000
"""Host seconds; what every system can wait for at once."""


def check_guest_seconds(seconds: float | None) -> None:
    """`UsageError` unless `--max-time` was not given, or is a time that a run can reach."""
    if seconds is not None and not 0 < seconds <= _LONGEST_S:
        raise UsageError(f"--max-time takes a number of seconds, more than 0 and at most {_LONGEST_S:,}")


def check_host_seconds(seconds: float | None) -> None:
    """`UsageError` unless `--max-host-time` was not given, or is a time that somebody can wait for."""
    if seconds is not None and not 0 < seconds <= _LONGEST_HOST_S:
        raise UsageError(
            f"--max-host-time takes a number of seconds, more than 0 and at most {_LONGEST_HOST_S:,}"
        )
