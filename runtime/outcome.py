"""How a run ended, as one frozen document that reports and the command line read."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["CrashReport", "Outcome", "RunResult"]


class Outcome(enum.Enum):
    """Why the run is over."""

    UNTIL = "the console showed the text that was waited for"
    POWERED_OFF = "the guest powered off"
    REBOOTED = "the guest asked for a reboot"
    EXITED = "the guest wrote an exit code"
    HALTED = "the guest halted for ever"
    FAILED = "the guest said that it failed"
    CRASHED = "the guest crashed"
    TIME_LIMIT = "the limit of guest time was reached"
    HOST_TIME_LIMIT = "the limit of host time was reached"
    OUTPUT_LIMIT = "the limit of console output was reached"
    INTERRUPTED = "interrupted by the user"


@dataclass(frozen=True)
class CrashReport:
    """What a person needs to see of a guest that crashed."""

    reason: str
    vector: int | None
    error_code: int | None
    registers: Mapping[str, int]
    code_address: int
    code: bytes
    width: int
    symbol: str
    stack: tuple[int, ...] = ()


@dataclass(frozen=True)
class RunResult:
    """One run: the end, the console, the figures."""

    outcome: Outcome
    detail: str
    exit_code: int
    backend: str
    guest_ns: int
    host_seconds: float
    transcript: bytes = field(repr=False)
    stats: Mapping[str, object] = field(repr=False)
    crash: CrashReport | None = None
