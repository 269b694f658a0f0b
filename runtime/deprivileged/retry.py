"""Asking again, a moment later, whether a guest has left code in which it takes no interrupts."""

from __future__ import annotations

from runtime.clock import VirtualClock

__all__ = ["Retry"]

_LEAST_NS, _BELOW_NS, _STEP_NS = 64, 1021, 131


class Retry:
    """At most one question is open. The waits differ from one to the next, so that a loop which spends most
    of its time in such code cannot keep in step with them."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self._open = False
        self._wait = _LEAST_NS

    def ask(self) -> None:
        """Have the machine look at its interrupts again soon."""
        if self._open:
            return
        self._open = True
        self._wait = _LEAST_NS + (self._wait + _STEP_NS - _LEAST_NS) % (_BELOW_NS - _LEAST_NS)
        self._clock.schedule_in_background(self._clock.now_ns + self._wait, self._asked)

    def _asked(self) -> None:
        self._open = False
