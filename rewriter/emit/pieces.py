"""From a window to the pieces of its thunk: sites with their bindings, and what stands in their shadows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from rewriter.bind_sites import Bound
from rewriter.emit.relocate import ends_block, is_direct_call
from rewriter.emit.thunk import Piece
from rewriter.tactics import Patchable, Window, Windows
from rewriter.tactics.liveness import dead_registers, red_zone_live
from rewriter.tactics.shadow import shadow_of
from rewriter.tactics.view import CodeView

__all__ = ["Moved", "pieces_of"]


@dataclass(frozen=True)
class Moved:
    """What a thunk holds, in the order of the guest's code, and where the guest goes on behind it; None where
    control does not come back."""

    pieces: tuple[Piece, ...]
    end: int | None


def pieces_of(view: CodeView, bound: Bound, windows: Windows, window: Window) -> Moved:
    """The pieces of a window's thunk.

    What a shadow at its end covers is copied from behind it; where that lies in another window, which
    cannot be entered in its middle, so is the rest of that one.
    """
    pieces = list(_pieces(view, bound, window, window.instructions))
    end = window.end if window.returns else None
    while pieces[-1].covers or pieces[-1].instruction.ip >= window.end:
        last = (pieces[-1], *pieces[-1].covers)[-1]
        if last.instruction.ip < window.end:
            break
        end = _behind(bound, last)
        other = None if end is None else windows.at(end)
        if end is None or other is None or other.start == end:
            break
        rest = tuple(address for address in other.instructions if address >= end)
        pieces += _pieces(view, bound, other, rest)
        end, window = (other.end if other.returns else None), other
    return Moved(tuple(pieces), end)


def _pieces(view: CodeView, bound: Bound, window: Window, instructions: tuple[int, ...]) -> Iterator[Piece]:
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
        instruction = view.at(address)
        assert instruction is not None
        if site is None:
            return Piece(instruction, beside=beside)
        binding = site.binding
        piece = Piece(instruction, binding, form=site.form, code=view.code(address), beside=beside)
        if binding.length == 2:
            second = view.at(instruction.next_ip)
            assert second is not None
            piece = replace(piece, second=second)
        if site.stackless:
            return replace(piece, stackless=True)
        dead = dead_registers(view, site.end, site.bits) if binding.loads_ss else ()
        return replace(piece, dead=dead, red_zone=not binding.jump and red_zone_live(view, site.end))

    def is_target(self, address: int) -> bool:
        """Whether a branch of the window leads there, so that it is needed at a place of its own."""
        return address in self.window.instructions[1:] and self.view.is_target(address)
