"""A guest's console as a screen: what a full-screen program has drawn, whatever deltas it sent."""

from __future__ import annotations

import re

import pyte

__all__ = ["DrawnScreen", "is_screen", "screen"]

_CURSOR = re.compile(rb"\x1b\[\d+;\d+H")
_COLUMNS, _ROWS = 80, 25
_SCREEN_MOVES = 20
"""More cursor moves than this make a transcript a screen; a boot loader's clear-screen does not."""


def is_screen(transcript: bytes) -> bool:
    """Is this the drawing of a full-screen program?"""
    return len(_CURSOR.findall(transcript)) > _SCREEN_MOVES


def screen(transcript: bytes) -> list[str]:
    """The final screen of a transcript: 25 lines without trailing blanks."""
    drawn = DrawnScreen()
    drawn.feed(transcript)
    return drawn.lines()


class DrawnScreen:
    """A terminal of 80 by 25 that bytes are fed to."""

    def __init__(self) -> None:
        self._display = pyte.Screen(_COLUMNS, _ROWS)
        self._stream = pyte.ByteStream(self._display)

    def feed(self, data: bytes) -> None:
        """Draw more bytes."""
        self._stream.feed(data)

    def lines(self) -> list[str]:
        """The lines as they stand, without trailing blanks."""
        return [line.rstrip() for line in self._display.display]
