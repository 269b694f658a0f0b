"""Bytes that nobody executes, within reach of a short jump: room for the long jump to a thunk.

Two kinds: what a window leaves over behind its own jump, and padding behind a branch.
"""

from __future__ import annotations

from collections.abc import Iterator

from rewriter.emit.relocate import ends_block
from rewriter.tactics.protocol import Context

__all__ = ["SHORT_JUMP", "caves_near", "reachable"]

SHORT_JUMP = 2  # bytes of JMP rel8
_FORWARD, _BACKWARD = 127, -128


def reachable(start: int, cave: int) -> bool:
    """Whether a short jump at ``start`` can go to ``cave``."""
    return _BACKWARD <= cave - (start + SHORT_JUMP) <= _FORWARD


def caves_near(context: Context, start: int, end: int, size: int) -> Iterator[int]:
    """Free caves of ``size`` bytes outside [start, end), in reach of a short jump there, nearest first."""
    found = [
        cave
        for cave in _candidates(context, start, size)
        if reachable(start, cave)
        and not (cave < end and start < cave + size)
        and not _taken(context, cave, cave + size)
    ]
    return iter(sorted(found, key=lambda cave: (abs(cave - start), cave)))


def _candidates(context: Context, start: int, size: int) -> Iterator[int]:
    low, high = start + _BACKWARD - 64, start + _FORWARD + 64
    for window in context.windows.overlapping(low, high):
        first = window.start + (SHORT_JUMP if window.cave is not None else context.reach.size(window.bits))
        yield from range(first, window.end - size + 1)
    address = max(low, 0)
    while address < high:
        instruction = context.view.at(address)
        if instruction is None:
            address += 1
            continue
        address = instruction.next_ip
        if ends_block(instruction) and not context.windows.at(instruction.ip):
            room = context.view.filler(address)
            if room >= size and not context.view.excluded(address, address + room):
                yield from range(address, address + room - size + 1)


def _taken(context: Context, start: int, end: int) -> bool:
    if context.holds_cave(start, end):
        return True
    for window in context.windows.overlapping(start, end):
        used = SHORT_JUMP if window.cave is not None else context.reach.size(window.bits)
        if start < window.start + used or end > window.end:
            return True
    return False
