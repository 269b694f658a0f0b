"""The one exception root: every failure a person can cause has a message, a hint and an exit code.

Exit codes are those of the command-line contract (docs/cli.md).
"""

from __future__ import annotations

__all__ = [
    "AnswerNo",
    "GuestCrash",
    "ImageError",
    "LimitReached",
    "PvpatchError",
    "SelfCheckError",
    "UsageError",
]


class PvpatchError(Exception):
    """A failure that is reported as one clear line: what, where, and what to do about it."""

    exit_code = 3

    def __init__(self, message: str, hint: str = "", exit_code: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if exit_code is not None:
            self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class AnswerNo(PvpatchError):
    """The work was done and the answer is no."""

    exit_code = 1


class UsageError(PvpatchError):
    """Wrong usage: the words of the command are off."""

    exit_code = 2


class ImageError(PvpatchError):
    """The input file is damaged, not supported, not patched, or already patched."""

    exit_code = 3


class GuestCrash(PvpatchError):
    """The guest ended by a triple fault or an unrecoverable exception."""

    exit_code = 4


class LimitReached(PvpatchError):
    """A limit (guest time, memory) was reached before the guest ended."""

    exit_code = 5


class SelfCheckError(PvpatchError):
    """What was made is not what was meant: a fault of this program, found before anything is written."""

    exit_code = 70

    def __init__(self, message: str) -> None:
        super().__init__(f"a fault of pvpatch itself: {message}", "nothing was written; please report it")
