"""A finished plan, looked at by somebody who did not make it: whose are the bytes that it changes?

The planner asks before it takes bytes; here every byte that is taken is asked for again, from the other side.
No known instruction, of any width and of any reading of the same bytes, may reach into a window unless
it moves with it; no branch of known code may lead into one; and no byte is given out twice.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise

from iced_x86 import Decoder

from pvpatch.abi.errors import SelfCheckError
from rewriter.emit.reach import Reach
from rewriter.plan import Plan
from rewriter.tactics import Window
from rewriter.tactics.caves import SHORT_JUMP
from rewriter.tactics.view import MAX_INDEXED, MAX_LENGTH, NEAR_BRANCHES, CodeRegion, CodeView, is_filler

__all__ = ["check_windows"]


def check_windows(view: CodeView, reach: Reach, plan: Plan) -> None:
    """Raise SelfCheckError for a byte that the plan changes and must not."""
    _check_room(plan, reach)
    for window in plan.windows:
        _check_bytes(view, window.start, window.end, window)
        if window.cave is not None and not _inside_a_window(plan, window.cave):
            _check_bytes(view, window.cave, window.cave + reach.size(window.bits), None)
    _check_branches(view, plan)


def _check_room(plan: Plan, reach: Reach) -> None:
    """Windows do not meet, and neither do the jumps that are written into them and into caves."""
    for first, second in pairwise(plan.windows):
        if second.start < first.end:
            raise SelfCheckError(f"the windows at {first.start:#x} and {second.start:#x} overlap")
    jumps: list[tuple[int, int]] = []
    for window in plan.windows:
        size = reach.size(window.bits)
        if window.cave is None:
            jumps.append((window.start, window.start + size))
        else:
            jumps.append((window.start, window.start + SHORT_JUMP))
            jumps.append((window.cave, window.cave + size))
    for (one, end), (other, _) in pairwise(sorted(jumps)):
        if other < end:
            raise SelfCheckError(f"the jumps at {one:#x} and {other:#x} overlap")
    for window in plan.windows:
        if window.cave is not None:
            _check_cave_bounds(plan, window.cave, window.cave + reach.size(window.bits))


def _check_cave_bounds(plan: Plan, start: int, end: int) -> None:
    """A cave lies in one window, or in none."""
    homes = {_window_at(plan, start), _window_at(plan, end - 1)}
    if len(homes) > 1:
        raise SelfCheckError(f"the cave at {start:#x} reaches over the edge of a window")


def _window_at(plan: Plan, address: int) -> int | None:
    index = bisect_right(plan.windows, address, key=lambda window: window.start) - 1
    window = plan.windows[index] if index >= 0 else None
    return window.start if window is not None and address < window.end else None


def _inside_a_window(plan: Plan, address: int) -> bool:
    return _window_at(plan, address) is not None


def _check_bytes(view: CodeView, start: int, end: int, window: Window | None) -> None:
    """Who else has bytes of [start, end)? Instructions that move have none, and padding nobody runs."""
    if reason := view.excluded(start, end):
        raise SelfCheckError(f"bytes at {start:#x} are changed although {reason}")
    moved = window.instructions if window is not None else ()
    for target in view.targets_inside(start, end):
        if target not in moved or not view.only_from(target, start, end):
            raise SelfCheckError(f"a branch target at {target:#x} lies in what is written at {start:#x}")
    last = max(moved, default=start)
    for address in range(start - MAX_LENGTH, end):
        instruction = view.at(address)
        if instruction is None or instruction.next_ip <= start or address in moved:
            continue
        padding = address >= last and is_filler(instruction) and not view.is_target(address)
        if address < start or not padding:
            raise SelfCheckError(f"'{instruction}' at {address:#x} has bytes of the window at {start:#x}")
    if window is not None and any(view.width(address) != window.bits for address in moved):
        raise SelfCheckError(f"the window at {start:#x} holds code of another width")


def _check_branches(view: CodeView, plan: Plan) -> None:
    """No direct branch from elsewhere leads behind the first byte of a window, or into a cave."""
    if sum(len(region.data) for region in view.regions) > MAX_INDEXED:
        return  # the flow of swept code is computed for all of it at once: there is no second source
    for source, target in _branches(view):
        start = _window_at(plan, target)
        if start not in (None, target) and _window_at(plan, source) != start:
            raise SelfCheckError(f"the branch at {source:#x} leads into the window at {start:#x}")


def _branches(view: CodeView) -> Iterator[tuple[int, int]]:
    """(source, target) of every direct branch and call among the known instructions, decoded afresh."""
    for region in view.regions:
        for width in (16, 32, 64):
            yield from _branches_of(region, width)


def _branches_of(region: CodeRegion, width: int) -> Iterator[tuple[int, int]]:
    decoder = Decoder(width, region.data, ip=region.vaddr)
    mask = (1 << 64) - 1 if width == 64 else (1 << 32) - 1
    for offset, known in enumerate(region.widths):
        if known != width:
            continue
        decoder.position, decoder.ip = offset, region.vaddr + offset
        instruction = decoder.decode()
        if instruction.op_count and instruction.op0_kind in NEAR_BRANCHES:
            yield region.vaddr + offset, instruction.near_branch_target & mask
