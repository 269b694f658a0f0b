"""Bytes that a patch must not change because of what else they are: windows to stay out of.

An instruction that overlaps another one, both reachable; one that is reached in two widths; what code reads
or copies; what only a guess calls code.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from iced_x86 import Decoder
from numpy.typing import NDArray

from rewriter.image import Image
from rewriter.scan.codemap import RegionMap, Window
from rewriter.scan.recursion import Recursion

__all__ = ["contested_windows", "other_readings"]

_LONGEST = 32
"""Instructions of another reading after which it counts as one that never meets the first."""


def contested_windows(maps: Iterable[RegionMap], recursion: Recursion) -> list[Window]:
    """Everything that recursion knows of, and overlapping instructions of all regions."""
    explorer = recursion.explorer
    windows = [window for built in maps for window in _overlaps(built)]
    windows += [Window(at, at + length, "width") for (at, _), length in explorer.conflicts.items()]
    data = recursion.data_read()
    windows += [Window(start, end, "read") for start, end in data.read.ranges]
    windows += [Window(start, end, "copied") for start, end in data.copied.ranges]
    for block in {id(block): block for block in explorer.doubtful.values()}.values():
        windows += [
            Window(at, at + length, "guess") for at, length in block.instructions if at in explorer.doubtful
        ]
    return windows


def _overlaps(built: RegionMap) -> list[Window]:
    """Runs of known instructions that share bytes, each as one window."""
    starts = np.flatnonzero(built.lengths)
    if not starts.size:
        return []
    reached = np.maximum.accumulate(starts + built.lengths[starts])
    first = np.flatnonzero(np.concatenate([[True], starts[1:] >= reached[:-1]]))
    last = np.concatenate([first[1:], [starts.size]]) - 1
    base = built.region.vaddr
    runs = zip(starts[first].tolist(), reached[last].tolist(), (last > first).tolist(), strict=True)
    return [Window(base + start, base + end, "overlap") for start, end, shared in runs if shared]


def other_readings(image: Image, built: RegionMap, targets: NDArray[np.int64]) -> list[Window]:
    """Where branches of swept code lead between its boundaries: the instructions up to the next boundary."""
    inside = targets[(targets >= 0) & (targets < built.region.size)]
    windows: list[Window] = []
    for offset in inside[built.lengths[inside] == 0].tolist():
        before = max((at for at in range(max(0, offset - 14), offset) if built.lengths[at]), default=offset)
        decoder = Decoder(image.bits, image.payload)
        decoder.position, end = built.region.file_offset + offset, offset
        for _ in range(_LONGEST):
            if end >= built.region.size or built.lengths[end]:
                break
            end += decoder.decode().len or 1
        base = built.region.vaddr
        windows.append(Window(base + before, base + end, "overlap"))
    return windows
