"""A window's thunk: its sites as calls, its other instructions as they were, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from iced_x86 import Code, Encoder, Instruction

from pvpatch.abi.spec import load_spec
from rewriter.emit.assembly import Assembly, Label
from rewriter.emit.marshal import Surroundings, emit_binding
from rewriter.emit.operands import Binding
from rewriter.emit.relocate import call_from, is_direct_branch, is_direct_call, relocate, relocate_to
from rewriter.emit.relocate_absolute import finish_absolute, relocate_absolute

__all__ = ["Piece", "compose_absolute", "compose_relative"]


@dataclass(frozen=True)
class Piece:
    """One instruction of a window: a site with its binding, or a neighbour.

    ``red_zone`` and ``dead`` are what liveness says about the code behind a site; ``cell`` says
    that it takes the stackless form.
    """

    instruction: Instruction
    binding: Binding | None = None
    red_zone: bool = False
    dead: tuple[int, ...] = ()
    cell: bool = False


def compose_relative(
    bits: int, pieces: tuple[Piece, ...], end: int | None, slot: Callable[[int], int]
) -> Assembly:
    """The thunk of a window that jumps there; it jumps back to ``end`` unless that is None."""
    asm = Assembly(bits)
    labels = _labels(pieces)
    for piece in pieces:
        _mark(asm, labels, piece)
        if piece.cell:
            _add_cell(asm, piece.instruction)
        elif piece.binding is not None:
            around = Surroundings(red_zone=piece.red_zone, dead=piece.dead)
            emit_binding(asm, piece.binding, slot, around)
        elif _stays_inside(labels, piece):
            relocate_to(asm, piece.instruction, labels[piece.instruction.near_branch_target])
        elif is_direct_call(piece.instruction):
            call_from(asm, piece.instruction)
            return asm
        else:
            relocate(asm, piece.instruction)
    if end is not None:
        asm.stand_for(end)
        asm.jump(end)
    return asm


def compose_absolute(
    bits: int,
    pieces: tuple[Piece, ...],
    anchor: int,
    end: int | None,
    slot: Callable[[int], int],
    *,
    called: bool,
) -> Assembly:
    """The thunk of a window in code that moves.

    ``called``: the site calls, and the return address stands for ``anchor``; otherwise it
    jumps, nothing in the window depends on its place, and control does not come back.
    """
    asm = Assembly(bits)
    bias = asm.word if called else 0
    labels = _labels(pieces)
    for index, piece in enumerate(pieces):
        _mark(asm, labels, piece)
        if piece.binding is not None:
            around = Surroundings(bias, anchor, piece.red_zone, piece.dead)
            emit_binding(asm, piece.binding, slot, around)
        elif _stays_inside(labels, piece):
            relocate_to(asm, piece.instruction, labels[piece.instruction.near_branch_target])
        elif called:
            relocate_absolute(asm, piece.instruction, anchor, index == len(pieces) - 1)
        else:
            relocate(asm, piece.instruction)
    if called and end is not None and not is_direct_call(pieces[-1].instruction):
        asm.stand_for(end)
        finish_absolute(asm, anchor, end)
    return asm


def _add_cell(asm: Assembly, instruction: Instruction) -> None:
    """The instruction as it is, long enough for a loader's traps."""
    asm.add(instruction.copy(), origin=instruction.ip)
    if Encoder(asm.bits).encode(instruction, instruction.ip) < load_spec().cells.least:
        asm.add(Instruction.create(Code.NOPD))


def _labels(pieces: tuple[Piece, ...]) -> dict[int, Label]:
    """Labels for the pieces behind the first that branches of the window lead to."""
    inside = {piece.instruction.ip for piece in pieces[1:]}
    targets = {
        piece.instruction.near_branch_target for piece in pieces if is_direct_branch(piece.instruction)
    }
    return {address: Label(f"{address:#x}") for address in sorted(inside & targets)}


def _mark(asm: Assembly, labels: dict[int, Label], piece: Piece) -> None:
    asm.mark(piece.instruction.ip)
    leaves = piece.binding is not None and piece.binding.jump and not piece.cell
    asm.stand_for(piece.instruction.ip, leaves=leaves)
    if piece.instruction.ip in labels:
        asm.place(labels[piece.instruction.ip])


def _stays_inside(labels: dict[int, Label], piece: Piece) -> bool:
    return is_direct_branch(piece.instruction) and piece.instruction.near_branch_target in labels
