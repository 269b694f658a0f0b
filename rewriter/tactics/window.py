"""Building a window: are these consecutive instructions allowed to move into a thunk together?

A window is allowed only if no branch target lies inside it, no byte of it is excluded, every
instruction in it is a bound site or can be relocated, and nothing follows a call or an
unconditional branch. STI and loads of SS keep what stands in their shadow (``shadow``), which may also be
copied from behind the window; STI;HLT is one binding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from iced_x86 import Instruction

from rewriter.emit.relocate import check, ends_block, is_direct_branch, is_direct_call
from rewriter.emit.relocate_absolute import check_absolute
from rewriter.emit.thunk import moves_as_one
from rewriter.tactics.liveness import red_zone_live
from rewriter.tactics.protocol import Context, Patchable, Window
from rewriter.tactics.shadow import shadow_of

__all__ = ["Rules", "build", "search"]

MAX_AROUND = 14  # instructions tried on either side; 5 one-byte instructions suffice by size


@dataclass(frozen=True)
class Rules:
    """What a tactic allows beside the site: instructions before it, branches, a call at the end."""

    preceding: bool = False
    branches: bool = False
    calls: bool = False
    neighbours: bool = True


def build(
    context: Context, start: int, end: int, tactic: str, size: int, *, closed: bool = False
) -> Window | str:
    """The window [start, end), extended over padding to ``size`` bytes, or why it cannot be.

    ``closed``: targets inside are allowed when only branches inside lead to them.
    """
    view, bits = context.view, context.view.width(start)
    instructions: list[int] = []
    sites: list[int] = []
    address, last = start, None
    while address < end:
        if last is not None and _stops(context, last) and not (closed and view.is_target(address)):
            if not is_direct_call(last) and view.filler(address) >= end - address:
                address = end  # padding behind the branch, taken in before
                break
            return "code behind a branch or call"
        step = _step(context, address, bits)
        if isinstance(step, str):
            return step
        last, after = step
        instructions.append(address)
        if address in context.sites:
            sites.append(address)
            if after != last.next_ip:
                instructions.append(last.next_ip)
        address = after
    if last is None or address != end:
        return "its end is not on an instruction boundary"
    if reason := _inside(context, start, end, instructions, closed=closed) or view.excluded(start, end):
        return reason
    returns = not (ends_block(last) or _jumps(context, last))
    if end - start < size and not returns:
        end += min(view.filler(end), context.free_from(end, size - (end - start)))
    if end - start < size:
        return "too short"
    if context.holds_cave(start, end):
        return "its bytes hold the jump of another window"
    window = Window(start, end, bits, tuple(instructions), tuple(sites), returns, tactic)
    return _check_shadows(context, window) or _check_absolute(context, window) or window


def _stops(context: Context, instruction: Instruction) -> bool:
    return ends_block(instruction) or is_direct_call(instruction) or _jumps(context, instruction)


def _inside(context: Context, start: int, end: int, instructions: list[int], *, closed: bool) -> str:
    """Why the targets inside forbid the window; empty when only its own branches lead there."""
    for target in context.view.targets_inside(start, end):
        if not closed or target not in instructions or not context.view.only_from(target, start, end):
            return "a branch target lies inside"
    return ""


def _jumps(context: Context, instruction: Instruction) -> bool:
    site = context.sites.get(instruction.ip)
    return site is not None and site.binding.jump


def _step(context: Context, address: int, bits: int) -> tuple[Instruction, int] | str:
    """The instruction at an address and where the next one starts; a reason if it cannot move."""
    instruction = context.view.at(address)
    if instruction is None:
        return "no known instruction"
    if context.view.width(address) != bits:
        return "code of another width"
    site = context.sites.get(address)
    if site is not None:
        if site.binding.length == 2 and context.view.is_target(instruction.next_ip):
            return "a branch target lies between STI and its company"
        if site.stackless and (doubt := context.view.doubt(address)):
            return doubt
        return instruction, site.end
    if kept := context.unpatchable.get(address):
        return f"a site that cannot be replaced is beside it: {kept}"
    if reason := check(instruction) or context.view.doubt(address):
        return reason
    return instruction, instruction.next_ip


def _check_shadows(context: Context, window: Window) -> str:
    """What stands in the shadow of a site must be able to follow it into the thunk."""
    for address in window.sites:
        behind = shadow_of(context.view, context.sites, context.unpatchable, context.sites[address])
        if isinstance(behind, str):
            return behind
        if context.reach.kind != "absolute":
            continue
        for inside in behind:
            instruction = context.view.at(inside)
            assert instruction is not None
            if not moves_as_one(instruction, window.bits):
                return "what stands in its shadow depends on its place"
    return ""


def _check_absolute(context: Context, window: Window) -> str:
    """What only matters where sites call through memory."""
    if context.reach.kind != "absolute":
        return ""
    if not needs_return_address(context, window):
        return ""
    if red_zone_live(context.view, window.start):
        return "bytes below the stack pointer are live, so the site cannot be a call"
    last = window.instructions[-1]
    for address in window.instructions:
        site = context.sites.get(address)
        if site is not None:
            if site.binding.stack_arguments and not site.binding.jump:
                return "a far call or INT reached by a call"
            if site.binding.loads_ss and site.binding.pops:
                return "POP SS reached by a call"
            continue
        instruction = context.view.at(address)
        assert instruction is not None
        if _covered_by_pair(context, window, address):
            continue
        if reason := check_absolute(instruction, window.bits, address == last):
            return f"it cannot move to a fixed address: {reason}"
    return ""


def _covered_by_pair(context: Context, window: Window, address: int) -> bool:
    return any(context.sites[site].end > address > site for site in window.sites)


def needs_return_address(context: Context, window: Window) -> bool:
    """Whether the thunk must know where the site stands (else the site can jump instead of call)."""
    if window.returns:
        return True
    for address in window.instructions:
        instruction = context.view.at(address)
        assert instruction is not None
        if address not in context.sites and (is_direct_branch(instruction) or is_direct_call(instruction)):
            return True
        if instruction.is_ip_rel_memory_operand:
            return True
    return False


def search(context: Context, site: Patchable, rules: Rules, tactic: str, size: int) -> Window | str:
    """The shortest allowed window around a site under the rules, or the last reason met."""
    best: Window | None = None
    reason = "no room"
    for start, end in _ranges(context, site, rules, size):
        found = build(context, start, end, tactic, size)
        if isinstance(found, str):
            reason = found if found != "too short" else reason
        elif not _keeps(context, found, site, rules):
            reason = "needs what this tactic does not move"
        elif best is None or found.end - found.start < best.end - best.start:
            best = found
    return best if best is not None else reason


def _keeps(context: Context, window: Window, site: Patchable, rules: Rules) -> bool:
    if window.start < site.address and not rules.preceding:
        return False
    for address in window.instructions:
        instruction = context.view.at(address)
        assert instruction is not None
        if address in context.sites:
            continue
        if is_direct_call(instruction) and not rules.calls:
            return False
        branch = is_direct_branch(instruction) or ends_block(instruction)
        if branch and not rules.branches:
            return False
    return True


def _ranges(context: Context, site: Patchable, rules: Rules, size: int) -> Iterator[tuple[int, int]]:
    """Candidate ranges that hold the site, whole windows of others included."""
    starts = list(_starts(context, site)) if rules.preceding else [_joined_start(context, site.address)]
    for start in starts:
        end = _joined_end(context, site.end)
        for _ in range(MAX_AROUND):
            if end - start >= size or not rules.neighbours:
                yield start, end
                break
            yield start, end  # padding behind a branch may still make it long enough
            if context.view.is_target(end):
                break
            following = context.view.at(end)
            if following is None:
                break
            neighbour = context.sites.get(end)
            end = _joined_end(context, neighbour.end if neighbour else following.next_ip)


def _starts(context: Context, site: Patchable) -> Iterator[int]:
    start = _joined_start(context, site.address)
    yield start
    for _ in range(MAX_AROUND):
        if context.view.is_target(start):
            return
        before = context.view.before(start)
        if before is None or ends_block(before) or is_direct_call(before):
            return
        start = _joined_start(context, before.ip)
        yield start


def _joined_start(context: Context, address: int) -> int:
    window = context.windows.at(address)
    return window.start if window is not None else address


def _joined_end(context: Context, end: int) -> int:
    window = context.windows.at(end - 1)
    return max(window.end, end) if window is not None else end
