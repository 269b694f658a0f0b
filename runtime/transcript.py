"""The guest's console: kept, shown as it appears, and searched for the text that ends the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from runtime.terminal import DrawnScreen, is_screen

__all__ = ["OUTPUT_LIMIT", "Transcript"]

OUTPUT_LIMIT = 32 << 20
"""Bytes of console output after which a run ends: a guest that prints for ever is not a run."""

_SCREEN_SAMPLE = 8192
"""Bytes of recent output that are looked at to tell a full-screen program."""


@dataclass
class _Wait:
    """A text that somebody waits for; no match begins before `start`."""

    text: bytes
    start: int
    callback: Callable[[], None]


class Transcript:
    """A console sink. `on_found` is called once when `until` has appeared, `on_full` at the limit."""

    def __init__(
        self,
        until: bytes,
        on_found: Callable[[], None],
        on_full: Callable[[], None],
        show: Callable[[bytes], None] | None = None,
        limit: int = OUTPUT_LIMIT,
    ) -> None:
        self._content = bytearray()
        self._until = until
        self._on_found = on_found
        self._on_full = on_full
        self._show = show
        self._limit = limit
        self._unshown = bytearray()
        self._found = False
        self._screen: DrawnScreen | None = None
        self._waits: list[_Wait] = []

    def write(self, data: bytes) -> None:
        """Take what the guest printed; beyond the limit it is dropped."""
        room = self._limit - len(self._content)
        if room <= 0:
            return
        data = data[:room]
        start = max(0, len(self._content) - len(self._until) + 1)
        self._content += data
        self._unshown += data
        if b"\n" in data:
            self.flush()
        if self._until and not self._found and self._shows_end(data, start):
            self._found = True
            self._on_found()
        self._check_waits()
        if len(self._content) >= self._limit:
            self._on_full()

    def flush(self) -> None:
        """Show what has been printed since the last time; lines are shown as soon as they end."""
        if self._unshown and self._show is not None:
            self._show(bytes(self._unshown))
        self._unshown.clear()

    def _shows_end(self, data: bytes, start: int) -> bool:
        """Has the text been printed, or been drawn on the screen piece by piece?"""
        if self._content.find(self._until, start) >= 0:
            return True
        if self._screen is None:
            if b"\x1b" not in data or not is_screen(bytes(self._content[-_SCREEN_SAMPLE:])):
                return False
            self._screen = DrawnScreen()
            data = bytes(self._content)
        self._screen.feed(data)
        if b"\x1b" not in data:  # the next movement is what ends a piece of drawing
            return False
        text = self._until.decode("utf-8", "replace")
        return any(text in line for line in self._screen.lines())

    def when(self, text: bytes, callback: Callable[[], None]) -> None:
        """Call `callback` once, as soon as `text` is printed from now on (at once when it is empty)."""
        self._waits.append(_Wait(text, len(self._content), callback))
        self._check_waits()

    def _check_waits(self) -> None:
        for wait in list(self._waits):
            if self._content.find(wait.text, wait.start) >= 0:
                self._waits.remove(wait)
                wait.callback()
            else:
                wait.start = max(wait.start, len(self._content) - len(wait.text) + 1)

    @property
    def found(self) -> bool:
        """True once the text that was waited for has appeared."""
        return self._found

    @property
    def content(self) -> bytes:
        """Everything printed so far."""
        return bytes(self._content)
