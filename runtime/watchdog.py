"""Ending a run from outside: after so much host time, or because a signal came.

The emulator runs for long stretches without a return to Python, where signals are heard, and how long they
are depends on the guest. A thread waits meanwhile; when it has a reason, it asks the emulator to return at
the next block, again and again until the run is over. Nothing else about a run depends on it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from types import TracebackType

__all__ = ["Watchdog"]

_AGAIN_S = 0.02
"""Between two requests: one can get lost while the run loop sets the next deadline."""
_SIZE = 64


class Watchdog:
    """While it is entered, `stop` is called from another thread when a signal has arrived or the time is up.

    `limit_s` is in seconds of host time (None: no limit); `expired` is called once, from that thread, when
    they are over. Signals are noticed if it is entered in the main thread; their handlers run there as ever.
    """

    def __init__(self, stop: Callable[[], None], limit_s: float | None, expired: Callable[[], None]) -> None:
        self._stop = stop
        self._limit_s = limit_s
        self._expired = expired
        self._over = False
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._previous: int | None = None

    def __enter__(self) -> Watchdog:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._previous is not None:
            signal.set_wakeup_fd(self._previous)
        self._over = True
        with contextlib.suppress(BlockingIOError):  # full of signals: it is awake
            os.write(self._writing, b"\0")
        self._thread.join()
        os.close(self._reading)
        os.close(self._writing)

    def _watch(self) -> None:
        """The thread."""
        until = None if self._limit_s is None else time.monotonic() + self._limit_s
        asked = False
        while not self._over:
            left = None if until is None else max(0.0, until - time.monotonic())
            ready, _, _ = select.select([self._reading], [], [], _AGAIN_S if asked else left)
            if self._over:
                break
            if ready:
                os.read(self._reading, _SIZE)
            elif not asked or (until is not None and time.monotonic() >= until):
                self._expired()
                until = None
            asked = True
            self._stop()
