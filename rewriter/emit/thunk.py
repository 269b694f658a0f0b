"""A window's thunk: the moved instructions themselves, the way back, and behind it each site as a call.

The first part, the mainline, is the window's code at another place, its sites included: at privilege 0 a
thunk does what the instructions did because it consists of them. Each site there is a *cell*; its *body*,
behind the mainline, is the same as a call of the ABI, and leads back to what follows the cell. A loader
that takes the guest's privilege lays a jump of two bytes to the body over the cell (docs/abi.md). What
stands in the shadow of STI or of a load of SS is part of that site's cell, and of its body.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from iced_x86 import Code, Encoder, Instruction, Register

from pvpatch.abi.layout import CELL_REACH
from pvpatch.abi.spec import load_spec
from rewriter.emit.assembly import SP, Assembly, Label, Place
from rewriter.emit.binding import Refused
from rewriter.emit.enabling import Enabling, enabling
from rewriter.emit.marshal import Slots, Surroundings, emit_binding
from rewriter.emit.operands import Binding
from rewriter.emit.relocate import (
    call_from,
    is_direct_branch,
    is_direct_call,
    push_return,
    relocate,
    relocate_to,
)
from rewriter.emit.relocate_absolute import finish_absolute, relocate_absolute

__all__ = ["BODY", "CellPlace", "Piece", "Thunk", "compose_absolute", "compose_relative", "moves_as_one"]

BODY = "body"
"""Name of the labels at which bodies begin."""


@dataclass(frozen=True)
class Piece:
    """One instruction of a window: a site with its binding and form, or a neighbour.

    ``code`` are a site's own bytes and ``second`` the other instruction of a pair. ``red_zone`` and
    ``dead`` are what liveness says about the code behind a site; ``stackless`` says that no stack exists
    there for a body. ``covers`` is what stands in its shadow; ``beside``, of such a piece, that it is
    needed at its own place too.
    """

    instruction: Instruction
    binding: Binding | None = None
    red_zone: bool = False
    dead: tuple[int, ...] = ()
    stackless: bool = False
    form: int = 0
    code: bytes = b""
    second: Instruction | None = None
    covers: tuple[Piece, ...] = ()
    beside: bool = False


@dataclass(frozen=True)
class CellPlace:
    """A site's cell: where it starts and ends, and its body; ``covered`` says that it is inside the cell of
    the site whose shadow it stands in."""

    site: int
    call: int
    form: int
    start: Label
    end: Label
    body: Label | None = None
    covered: bool = False


@dataclass(frozen=True)
class Thunk:
    """The code of a window and the cells in it."""

    assembly: Assembly
    cells: tuple[CellPlace, ...]


def compose_relative(bits: int, pieces: tuple[Piece, ...], end: int | None, slot: Slots) -> Thunk:
    """The thunk of a window that jumps there; it jumps back to ``end`` unless that is None."""

    def compose(far: frozenset[int]) -> Thunk:
        thunk = _Composer(Assembly(bits), pieces, slot, far)
        thunk.mainline()
        if end is not None:
            thunk.asm.stand_for(end)
            thunk.asm.jump(end)
        thunk.bodies(end)
        return thunk.done()

    return _within_reach(compose, slot(0))


def compose_absolute(
    bits: int, pieces: tuple[Piece, ...], anchor: int, end: int | None, slot: Slots, *, called: bool
) -> Thunk:
    """The thunk of a window in code that moves.

    ``called``: the site calls, and the return address stands for ``anchor``; otherwise it
    jumps, nothing in the window depends on its place, and control does not come back.
    """

    def compose(far: frozenset[int]) -> Thunk:
        thunk = _Called(Assembly(bits), pieces, slot, far, anchor) if called else None
        work = thunk or _Composer(Assembly(bits), pieces, slot, far)
        work.mainline()
        if called and end is not None and not is_direct_call(pieces[-1].instruction):
            work.asm.stand_for(end)
            finish_absolute(work.asm, anchor, end)
        work.bodies(None)
        return work.done()

    return _within_reach(compose, slot(0))


def _within_reach(compose: Callable[[frozenset[int]], Thunk], base: int) -> Thunk:
    """The thunk with every body in reach of its cell: through a jump beside the cell where it must be."""
    far: frozenset[int] = frozenset()
    while True:
        thunk = compose(far)
        places = thunk.assembly.labels(base)
        beyond = {
            cell.site
            for cell in thunk.cells
            if cell.body is not None and places[cell.body] - places[cell.start] > CELL_REACH
        }
        if beyond <= far:
            return thunk
        far |= beyond


@dataclass
class _Composer:
    """One thunk in the making, reached by a jump."""

    asm: Assembly
    pieces: tuple[Piece, ...]
    slot: Slots
    far: frozenset[int]
    anchor: int = 0
    cells: list[CellPlace] = field(default_factory=list)
    _later: list[tuple[Piece, Label, Label, Surroundings]] = field(default_factory=list)
    _open: list[tuple[int, Label]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.labels = _labels(self.pieces)

    def done(self) -> Thunk:
        """The finished thunk."""
        return Thunk(self.asm, tuple(self.cells))

    # ---- the mainline ----------------------------------------------------------------

    def mainline(self) -> None:
        """The window's instructions."""
        for index, piece in enumerate(self.pieces):
            address = piece.instruction.ip
            self._close(address)
            self.asm.serving = address
            self.asm.mark(address)
            if address in self.labels:
                self.asm.place(self.labels[address])
            if piece.binding is None:
                self.asm.stand_for(address)
                self.neighbour(piece, index == len(self.pieces) - 1)
            else:
                self.site(piece, piece.binding)
        self._close(None)
        self.asm.serving = None

    def _close(self, address: int | None) -> None:
        """Here go on the cells whose shadow ends before ``address``."""
        for last, label in list(self._open):
            if address is None or address > last:
                self.asm.place(label)
                self._open.remove((last, label))

    def neighbour(self, piece: Piece, last: bool) -> None:
        """An instruction that is no site."""
        self.moved(piece.instruction)

    def moved(self, instruction: Instruction) -> None:
        """A moved instruction, aimed at targets that moved too."""
        if is_direct_branch(instruction) and instruction.near_branch_target in self.labels:
            relocate_to(self.asm, instruction, self.labels[instruction.near_branch_target])
        elif is_direct_call(instruction):
            call_from(self.asm, instruction)
        else:
            relocate(self.asm, instruction)

    def site(self, piece: Piece, binding: Binding) -> None:
        """A site as its cell."""
        self.cell(piece, binding, Surroundings(red_zone=piece.red_zone, dead=piece.dead))

    def cell(self, piece: Piece, binding: Binding, around: Surroundings) -> None:
        """The instruction, what its shadow covers, and the way to the body where that is far."""
        asm, site = self.asm, piece.instruction.ip
        start, end, after, body = Label("cell"), Label("end"), Label("after"), Label(BODY)
        called = bool(around.bias)
        asm.stand_for(site, called=called)
        asm.place(start)
        for inner in piece.covers:
            if is_direct_call(inner.instruction):
                self._return_first(binding, inner.instruction.next_ip)
        self.instructions(piece)
        for inner in piece.covers:
            self._covered(inner, called=called)
        asm.serving = site
        asm.place(end)
        if piece.stackless:
            self.cells.append(CellPlace(site, binding.number, piece.form, start, end))
            return
        reached = body
        if site in self.far or any(inner.beside for inner in piece.covers):
            asm.stand_for(_behind(piece), called=called)
            asm.jump_label(after)
        if site in self.far:
            reached = Label("way to the body")
            asm.stand_for(site, called=called)
            asm.place(reached)
            asm.jump_label(body)
        self.cells.append(CellPlace(site, binding.number, piece.form, start, end, reached))
        self._open.append((max([site, *(inner.instruction.ip for inner in piece.covers)]), after))
        self._later.append((piece, body, after, around))

    def _return_first(self, binding: Binding, back: int) -> None:
        """Push the return address of a call behind the site, below what the site pops; a jump remains."""
        asm = self.asm
        if binding.pops:
            asm.push_at(Place(SP))
        push_return(asm, back)
        if binding.pops:
            asm.pop_at(Place(SP, displacement=asm.word))

    def instructions(self, piece: Piece) -> None:
        """A site's own instructions, at least as long as the jump that a loader lays over them."""
        asm, instruction = self.asm, piece.instruction
        assert piece.binding is not None
        alone = piece.second is None and not piece.covers
        size = len(piece.code) or Encoder(asm.bits).encode(instruction, instruction.ip)
        short = alone and size < load_spec().cells.least
        if short and not piece.binding.jump:
            asm.keep(_longer(instruction), b"")
            return
        asm.keep(instruction, piece.code)
        if piece.second is not None:
            asm.keep(piece.second, b"")
        if short:
            asm.add(Instruction.create(Code.NOPD))  # never reached

    def _covered(self, inner: Piece, *, called: bool) -> None:
        asm, instruction = self.asm, inner.instruction
        asm.serving = instruction.ip
        if not is_direct_call(instruction):  # its return address is pushed before the shadow opens
            asm.stand_for(instruction.ip, called=called)
        if inner.binding is not None:
            start, end = Label("covered"), Label("end")
            asm.place(start)
            asm.keep(instruction, inner.code)
            if inner.second is not None:
                asm.keep(inner.second, b"")
            asm.place(end)
            self.cells.append(
                CellPlace(instruction.ip, inner.binding.number, inner.form, start, end, covered=True)
            )
        elif is_direct_call(instruction):
            asm.jump(instruction.near_branch_target, origin=instruction.ip)
        else:
            self.moved(instruction)

    # ---- the bodies ------------------------------------------------------------------

    def bodies(self, end: int | None) -> None:
        """Every site of the mainline as a call; behind the last one the guest goes on at ``end``."""
        for piece, body, after, around in self._later:
            self.asm.place(body)
            self.body(piece, around)
            self.asm.serving = None
            if not self._goes_on((piece, *piece.covers)[-1]):
                continue
            self.asm.stand_for(_behind(piece), called=bool(around.bias))
            if end is not None and after is self._later[-1][2] and piece is self.pieces[-1]:
                self.asm.jump(end)
            else:
                self.asm.jump_label(after)

    def body(self, piece: Piece, around: Surroundings) -> None:
        """The call of a site, and those or the instructions of what stands in its shadow."""
        assert piece.binding is not None
        called = bool(around.bias)
        covers = piece.covers
        self.asm.serving = piece.instruction.ip
        self.asm.stand_for(piece.instruction.ip, leaves=piece.binding.jump, called=called)
        way = enabling(piece.instruction, covers[0].instruction) if covers else Enabling.FIRST
        if way is Enabling.LAST:  # what is enabled may come at once, so it is enabled behind the shadow
            self.moved(covers[0].instruction)
            self.asm.stand_for(_behind(covers[0]), called=called)
            covers = covers[1:]
        if way is not Enabling.NEVER:
            emit_binding(self.asm, piece.binding, self.slot, around)
        for inner in covers:
            self.asm.serving = inner.instruction.ip
            leaves = inner.binding is not None and inner.binding.jump
            self.asm.stand_for(inner.instruction.ip, leaves=leaves, called=called)
            if inner.binding is not None:
                within = Surroundings(around.bias, around.anchor, inner.red_zone, inner.dead)
                emit_binding(self.asm, inner.binding, self.slot, within)
            else:
                self.moved(inner.instruction)

    def _goes_on(self, piece: Piece) -> bool:
        """Whether control comes to what follows a piece."""
        return piece.binding is None or not piece.binding.jump


@dataclass
class _Called(_Composer):
    """One reached by a call, whose return address is on top of the stack and stands for ``anchor``.

    A site that uses the stack, or depends on its place, cannot stand there as it is: it is a call in the
    mainline, and has no cell.
    """

    def neighbour(self, piece: Piece, last: bool) -> None:
        """An instruction that is no site."""
        if is_direct_branch(piece.instruction) and piece.instruction.near_branch_target in self.labels:
            relocate_to(self.asm, piece.instruction, self.labels[piece.instruction.near_branch_target])
        else:
            relocate_absolute(self.asm, piece.instruction, self.anchor, last)

    def moved(self, instruction: Instruction) -> None:
        """What stands in a shadow: one instruction."""
        relocate_absolute(self.asm, instruction, self.anchor, False)

    def site(self, piece: Piece, binding: Binding) -> None:
        """A cell where the instruction can stand above a return address, else the call."""
        called = Surroundings(self.asm.word, self.anchor, piece.red_zone, piece.dead)
        self.asm.stand_for(piece.instruction.ip, leaves=binding.jump)
        if binding.jump and not piece.instruction.is_ip_rel_memory_operand:
            self.asm.move_stack(self.asm.word)
            self.cell(piece, binding, Surroundings(dead=piece.dead))
        elif moves_as_one(piece.instruction, self.asm.bits):
            self.cell(piece, binding, called)
        else:
            emit_binding(self.asm, binding, self.slot, called)

    def instructions(self, piece: Piece) -> None:
        """The instruction, with operands based on the stack pointer one word further."""
        shifted = _alone(piece.instruction, self.asm.bits)
        if shifted is None or shifted == piece.instruction:
            super().instructions(piece)
        else:
            self.asm.add(shifted, origin=piece.instruction.ip)


def _longer(instruction: Instruction) -> Instruction:
    """An instruction of one byte with a prefix that says what holds anyway: nothing runs behind it that is
    not the guest's, as a NOP would."""
    longer = instruction.copy()
    longer.segment_prefix = Register.DS
    return longer


def _behind(piece: Piece) -> int:
    """The address behind a piece and what its shadow covers."""
    last = (piece, *piece.covers)[-1]
    return int((last.second or last.instruction).next_ip)


def moves_as_one(instruction: Instruction, bits: int) -> bool:
    """Whether an instruction stays one where a return address lies on top of its stack."""
    return _alone(instruction, bits) is not None


def _alone(instruction: Instruction, bits: int) -> Instruction | None:
    """The instruction as it stands above a return address; None if it takes more than one there."""
    trial = Assembly(bits)
    try:
        relocate_absolute(trial, instruction, instruction.next_ip, False)
    except (Refused, OverflowError):
        return None
    alone = len(trial.items) == 1 and trial.items[0].origin is not None
    return trial.items[0].instruction if alone else None


def _labels(pieces: tuple[Piece, ...]) -> dict[int, Label]:
    """Labels for the pieces behind the first that branches of the window lead to."""
    inside = {piece.instruction.ip for piece in pieces[1:]}
    everything = [inner for piece in pieces for inner in (piece, *piece.covers)]
    targets = {
        piece.instruction.near_branch_target for piece in everything if is_direct_branch(piece.instruction)
    }
    return {address: Label(f"{address:#x}") for address in sorted(inside & targets)}
