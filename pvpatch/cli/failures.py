"""How a command ends: every failure is one line on standard error and its exit code, never a traceback."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType

from pvpatch.abi.errors import LimitReached, PvpatchError, UsageError
from pvpatch.report.shown import shown

__all__ = ["INTERNAL_ERROR", "SHOW_TRACEBACK", "guarded"]

INTERNAL_ERROR = 70
"""A fault of this program (EX_SOFTWARE of sysexits.h)."""
SHOW_TRACEBACK = "PVPATCH_TRACEBACK"
"""Environment variable: when set, a fault of this program is shown with its traceback."""


class _Interrupted(BaseException):
    """The user or the system wants this program to end; no handler on the way may swallow it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


def _interrupt(number: int, _frame: FrameType | None) -> None:
    raise _Interrupted(number)


def _say(message: str) -> None:
    """One line on standard error, if anybody is there to read it."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"pvpatch: {shown(message)}\n")
        sys.stderr.flush()


def _silence_stdout() -> None:
    """What is left in its buffer has no place to go: let the interpreter's last flush succeed."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def _run(command: Callable[[], object]) -> int:
    """The exit code that `command` wishes; flushes what it printed."""
    try:
        command()
    except SystemExit as end:
        sys.stdout.flush()
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    sys.stdout.flush()
    return 0


def _expected(error: OSError | MemoryError) -> PvpatchError:
    """What a failure of the system means to a person."""
    if isinstance(error, MemoryError) or error.errno == errno.ENOMEM:
        return LimitReached("out of memory")
    reason = error.strerror or str(error)
    if error.filename is not None:
        return UsageError(f"{error.filename}: {reason}")
    return UsageError(f"cannot write: {reason}")


def guarded(command: Callable[[], object]) -> int:
    """Run `command` and give the exit code of the process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        return _run(command)
    except _Interrupted as interrupted:
        _say("interrupted")
        return interrupted.exit_code
    except PvpatchError as error:
        _say(str(error))
        return error.exit_code
    except BrokenPipeError:
        _silence_stdout()
        return 1
    except (OSError, MemoryError) as error:
        _silence_stdout()
        expected = _expected(error)
        _say(str(expected))
        return expected.exit_code
    except Exception as error:
        if os.environ.get(SHOW_TRACEBACK):
            traceback.print_exc()
        text = " ".join(str(error).split()) or "no message"
        _say(
            f"a fault of pvpatch itself: {type(error).__name__}: {text}"
            f" (please report it; {SHOW_TRACEBACK}=1 shows where)"
        )
        return INTERNAL_ERROR
