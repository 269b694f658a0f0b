"""From a window to the pieces of its thunk: sites with their bindings, and what stands in their shadows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from iced_x86 import Instruction

from rewriter.bind_sites import Bound
from rewriter.emit.relocate import ends_block, is_direct_call
from rewriter.emit.thunk import Piece
from rewriter.tactics import Patchable, Window, Windows
from rewriter.tactics.liveness import dead_registers, red_zone_live
from rewriter.tactics.shadow import shadow_of, unmoved
from rewriter.tactics.view import CodeView

__all__ = ["Moved", "pieces_of"]

_RESUMED = ("far_jump", "iret")
"""Calls that may switch tasks: when it is switched to again a task goes on behind them (SDM vol. 3, 8.3)."""


@dataclass(frozen=True)
class Moved:
    """What a thunk holds, in the order of the guest's code, and where the guest goes on behind it; None where
    control does not come back."""

    pieces: tuple[Piece, ...]
    end: int | None


def pieces_of(view: CodeView, bound: Bound, windows: Windows, window: Window, *, called: bool) -> Moved:
    """The pieces of a window's thunk; ``called``: it is reached by a call.

    What a shadow at its end covers is copied from behind it; where that lies in another window, which
    cannot be entered in its middle, so is the rest of that one.
    """
    pieces = list(_pieces(view, bound, window, window.instructions, called=called))
    site = bound.sites.get(window.instructions[-1])
    if site is not None and not pieces[-1].covers and not called:
        pieces += _pieces(view, bound, window, _traced(view, bound, site), called=called)
    resumes = site is not None and site.binding.call in _RESUMED and not called
    end = window.end if window.returns or resumes else None
    while pieces[-1].covers or pieces[-1].instruction.ip >= window.end:
        last = (pieces[-1], *pieces[-1].covers)[-1]
        if last.instruction.ip < window.end:
            break
        end = _behind(bound, last)
        other = None if end is None else windows.at(end)
        if end is None or other is None or other.start == end:
            break
        rest = tuple(address for address in other.instructions if address >= end)
        pieces += _pieces(view, bound, other, rest, called=called)
        end, window = (other.end if other.returns else None), other
    return Moved(tuple(pieces), end)


def _traced(view: CodeView, bound: Bound, site: Patchable) -> tuple[int, ...]:
    """What follows a POPF: if that sets TF, the first step is behind this instruction, and must not be behind
    a jump of ours. Empty where it cannot move, as nothing else depends on it."""
    if site.binding.call != "flags_write" or unmoved(view, bound.sites, bound.kept, site, site.end):
        return ()
    following = view.at(site.end)
    if following is not None and is_direct_call(following) and site.binding.pops != site.bits // 8:
        return ()
    return (site.end,)


def _pieces(
    view: CodeView, bound: Bound, window: Window, instructions: tuple[int, ...], *, called: bool
) -> Iterator[Piece]:
    """Pieces for those ``instructions`` of a window, and for what a shadow at their end covers."""
    maker = _Maker(view, bound.sites, window)
    covered: set[int] = set()
    for address in instructions:
        if address in bound.paired or (address in covered and not maker.is_target(address)):
            continue
        piece = maker.piece(address)
        site = bound.sites.get(address)
        behind = () if site is None else shadow_of(view, bound.sites, bound.kept, site)
        assert not isinstance(behind, str)
        if site is not None and not behind and not called:
            behind = tuple(item for item in _traced(view, bound, site) if is_direct_call(maker.at(item)))
        shadow = tuple(maker.piece(inside, beside=maker.is_target(inside)) for inside in behind)
        if site is not None and site.stackless:  # each of them is a cell of its own
            yield piece
            yield from (inside for inside in shadow if inside.instruction.ip >= window.end)
            continue
        covered |= set(behind)
        yield replace(piece, covers=shadow)


def _behind(bound: Bound, piece: Piece) -> int | None:
    """Where the guest goes on behind a copied piece; None where control does not come there."""
    instruction = piece.instruction
    if piece.binding is not None:
        return None if piece.binding.jump else bound.sites[instruction.ip].end
    leaves = is_direct_call(instruction) or ends_block(instruction)
    return None if leaves else int(instruction.next_ip)


@dataclass(frozen=True)
class _Maker:
    view: CodeView
    sites: Mapping[int, Patchable]
    window: Window

    def piece(self, address: int, *, beside: bool = False) -> Piece:
        """One instruction, or the two of a pair, as a piece."""
        view, site = self.view, self.sites.get(address)
        instruction = self.at(address)
        if site is None:
            return Piece(instruction, beside=beside)
        binding = site.binding
        piece = Piece(instruction, binding, form=site.form, code=view.code(address), beside=beside)
        if binding.length == 2:
            piece = replace(piece, second=self.at(instruction.next_ip))
        if site.stackless:
            return replace(piece, stackless=True)
        dead = dead_registers(view, site.end, site.bits) if binding.loads_ss else ()
        return replace(piece, dead=dead, red_zone=not binding.jump and red_zone_live(view, site.end))

    def at(self, address: int) -> Instruction:
        """The known instruction at an address."""
        instruction = self.view.at(address)
        assert instruction is not None
        return instruction

    def is_target(self, address: int) -> bool:
        """Whether a branch of the window leads there, so that it is needed at a place of its own."""
        return address in self.window.instructions[1:] and self.view.is_target(address)
