"""What was overwritten, as a CPU sees it: no known instruction keeps only a part of its bytes.

The windows were chosen by tactics, each by its own rules. Here all of them are looked at once more with one
rule: every known instruction that shares a byte with a window or a cave has moved into its thunk, or is
padding that nothing reaches.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right

from pvpatch.abi.errors import SelfCheckError
from rewriter.emit.patch import PatchJob
from rewriter.tactics import Window
from rewriter.tactics.view import MAX_LENGTH, CodeView, is_filler

__all__ = ["check_windows"]


def check_windows(job: PatchJob) -> None:
    """SelfCheckError when two windows share bytes, or a known instruction lost some of its bytes only."""
    windows = sorted(job.plan.windows, key=lambda window: window.start)
    for one, two in itertools.pairwise(windows):
        if one.end > two.start:
            raise SelfCheckError(f"the windows at {one.start:#x} and {two.start:#x} share bytes")
    starts = [window.start for window in windows]
    for window in windows:
        _check_range(job.view, window.start, window.end, set(window.instructions))
        if window.cave is not None:
            size = job.reach.size(window.bits)
            _check_range(job.view, window.cave, window.cave + size, _moved_near(windows, starts, window.cave))


def _moved_near(windows: list[Window], starts: list[int], cave: int) -> set[int]:
    """Instructions that moved away from around a cave: it may lie in what another window left over."""
    index = bisect_right(starts, cave)
    return {address for window in windows[max(index - 2, 0) : index + 2] for address in window.instructions}


def _check_range(view: CodeView, start: int, end: int, moved: set[int]) -> None:
    region = view.region(start)
    if region is None:
        raise SelfCheckError(f"a window at {start:#x} lies in no code")
    for address in range(max(start - MAX_LENGTH + 1, region.vaddr), min(end, region.end)):
        length = region.lengths[address - region.vaddr]
        if not length or address + length <= start or address in moved:
            continue
        instruction = view.at(address)
        if instruction is None or not is_filler(instruction) or view.is_target(address):
            raise SelfCheckError(
                f"'{instruction}' at {address:#x} shares bytes with what is overwritten from {start:#x} on"
            )
