"""Linear sweep over a length map, exact although it is done in many places at once.

A sweep is a chain: the start of an instruction follows from the length of the one before.
To let numpy walk it, the range is cut into lanes that are walked in lock step from their
first byte. Wrong starts meet the true chain after a few instructions (x86 code is
self-synchronising); a second walk enters every lane where the lane before it really
ended, until it meets a boundary already found, and removes the wrong ones before that.
The result equals walking the chain byte by byte; `tests/decode` proves it.
"""

import numpy as np
from numpy.typing import NDArray

from rewriter.decode.opcode_tables import ByteArray

LANE = 1024
"""Bytes per lane: few lanes to join, and enough of them to keep numpy busy."""

Marks = NDArray[np.bool_]


def sweep(lengths: ByteArray) -> Marks:
    """Instruction boundaries of a linear sweep from offset 0; an invalid byte counts as one step."""
    size = lengths.size
    marks = np.zeros(size, np.bool_)
    if not size:
        return marks
    starts = np.arange(0, size, LANE, dtype=np.int64)
    ends = np.minimum(starts + LANE, size)
    exits = _walk_lanes(lengths, marks, starts, ends)
    _join(lengths, marks, starts, ends, exits)
    return marks


def _walk_lanes(
    lengths: ByteArray, marks: Marks, starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> NDArray[np.int64]:
    position = starts.copy()
    lane = np.arange(starts.size)
    exits = ends.copy()
    while lane.size:
        current = position[lane]
        marks[current] = True
        following = current + np.maximum(lengths[current], 1)
        position[lane] = following
        done = following >= ends[lane]
        exits[lane[done]] = following[done]
        lane = lane[~done]
    return exits


def _join(
    lengths: ByteArray,
    marks: Marks,
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    exits: NDArray[np.int64],
) -> None:
    """Repair every lane whose true chain enters it elsewhere than at its first byte."""
    begin_of, end_of, exit_of = starts.tolist(), ends.tolist(), exits.tolist()
    entry = begin_of[0]
    for lane, (begin, end) in enumerate(zip(begin_of, end_of, strict=True)):
        if entry == begin:
            entry = exit_of[lane]
            continue
        position, found = entry, []
        while position < end and not marks[position]:
            found.append(position)
            position += int(lengths[position]) or 1
        marks[begin : min(position, end)] = False
        marks[found] = True
        entry = exit_of[lane] if position < end else position
