"""From the registers in a thunk or a slot to those that the guest had at its own instruction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from pvpatch.abi.layout import Origin
from runtime.unwind.origins import LONGEST, Origins, Spot
from runtime.unwind.replay import FLAGS, RETURN, SP, State, Value, follow

__all__ = ["Context", "Presented", "Unwinder"]

_CALLERS = 16
"""Words of the stack looked at for the return address of a slot; our deepest slot pushes half as many."""


@dataclass(frozen=True)
class Context:
    """Where the CPU stands: RIP and the base of its code segment, 16 general registers (8 at 32 bits, the
    rest 0), flags, and the base of the stack segment. `bits` is the width of the code."""

    rip: int
    registers: tuple[int, ...]
    flags: int
    bits: int
    code_base: int = 0
    stack_base: int = 0


@dataclass(frozen=True)
class Presented:
    """The context at the guest's instruction, and the piece of code that stands for it."""

    context: Context
    piece: Origin
    base: int
    """Address of the resident block as the code counts."""

    @property
    def code(self) -> int:
        """Where the code of the piece begins."""
        return self.base + self.piece.offset & _mask(self.context.bits)


class Unwinder:
    """Unwinds contexts of one patched image.

    `read` reads guest memory by linear address (empty where nothing is mapped); `left` gives the linear
    address of the last piece that was left by a jump to a slot, or 0.
    """

    def __init__(
        self, origins: Origins, read: Callable[[int, int], bytes], left: Callable[[], int] = lambda: 0
    ) -> None:
        self.origins = origins
        self._read = read
        self._left = left
        self.followed = 0
        """Instructions of ours followed so far: what the host has to do for the guest."""

    def unwind(self, context: Context) -> Presented | None:
        """The context at the instruction that the code stands for, as if nothing of it had run.

        None where the guest runs its own code, or where nobody can tell.
        """
        bits = context.bits
        spot = self.origins.spot(context.rip, context.code_base, bits)
        if spot is None:
            return None
        block = self.origins.fetch(spot.base, bits)

        def fetch(rip: int) -> bytes:
            self.followed += 1
            return block(rip)

        for piece in self._pieces(context, spot):
            start = spot.base + piece.offset & _mask(bits)
            state = State.at_site(bits // 8, called=piece.anchor is not None)
            for _, reached in follow(start, context.rip.__eq__, state, bits, fetch):
                if self._agrees(context, reached):
                    return self._present(context, spot, piece, reached)
        return None

    def run_on(self, context: Context) -> Presented | None:
        """The context at the next instruction of the guest's, when what is left of the code has run: it moves
        values, and nothing else. For code of the block or of a hypervisor beside the guest."""
        bits = context.bits

        def fetch(rip: int) -> bytes:
            self.followed += 1
            return self._read(rip + context.code_base & _mask(bits), LONGEST)

        for rip, state in follow(context.rip, self._begins(context), self._known(context), bits, fetch):
            found = self.origins.spot(rip, context.code_base, bits)
            assert found is not None and found.piece is not None
            return self._arrive(context, found, found.piece, state)
        return None

    def _begins(self, context: Context) -> Callable[[int], bool]:
        def begins(rip: int) -> bool:
            found = self.origins.spot(rip, context.code_base, context.bits)
            return found is not None and found.begins

        return begins

    def _known(self, context: Context) -> State:
        """All values as they are now; distances on the stack count from here."""
        word = context.bits // 8
        state = State([(None, value) for value in (*context.registers, context.flags)])
        state.registers[SP] = SP, 0
        for index in range(_CALLERS):
            content = self._stack(context, context.registers[SP] + index * word, word)
            if content is not None:
                state.words[index * word] = None, content
        return state

    def _arrive(self, context: Context, spot: Spot, piece: Origin, state: State) -> Presented | None:
        """All of `state` as numbers."""
        mask, word = _mask(context.bits), context.bits // 8
        depth = state.depth
        if depth is None or any(value is None for value in state.registers):
            return None
        values = [value[1] & mask for value in state.registers if value is not None]
        values[SP] = context.registers[SP] - depth & mask
        rip = spot.base + piece.origin & mask
        if piece.anchor is not None:
            back = state.words.get(-depth)
            if back is None:
                return None
            rip, values[SP] = back[1] - piece.anchor & mask, values[SP] + word & mask
        shown = replace(context, rip=rip, registers=tuple(values[:FLAGS]), flags=values[FLAGS])
        return Presented(shown, piece, spot.base)

    def at_slot(self, context: Context, number: int) -> Context:
        """With RIP on the slot of a call, which the code beside the guest answers."""
        bits = context.bits
        callers = [*self._return_addresses(context), self._left() - context.code_base]
        for address in callers:
            spot = self.origins.spot(address & _mask(bits), context.code_base, bits)
            slot = None if spot is None else self.origins.slot(number, spot.base, bits)
            if slot is not None:
                return replace(context, rip=slot)
        return context

    # -- which piece ---------------------------------------------------------------------------------

    def _pieces(self, context: Context, spot: Spot) -> Iterator[Origin]:
        if spot.piece is not None:
            yield spot.piece
            return
        if not self.origins.in_call_page(spot, context.bits):
            return
        for word in self._return_addresses(context):
            caller = self.origins.spot(word - 1 & _mask(context.bits), context.code_base, context.bits)
            if caller is not None and caller.piece is not None and caller.base == spot.base:
                yield caller.piece
        mask = _mask(context.bits)
        left = self.origins.spot(self._left() - context.code_base & mask, context.code_base, context.bits)
        if left is not None and left.piece is not None:
            yield left.piece

    def _return_addresses(self, context: Context) -> Iterator[int]:
        """What may be the slot's return address, nearest on the stack first, then registers."""
        word = context.bits // 8
        for index in range(_CALLERS):
            data = self._stack(context, context.registers[SP] + index * word, word)
            if data is None:
                break
            yield data
        yield from context.registers

    def _agrees(self, context: Context, state: State) -> bool:
        """Do the constants that the code has put on the stack really lie there?"""
        depth = state.depth
        if depth is None:
            return False
        site = context.registers[SP] + depth
        word, mask = context.bits // 8, _mask(context.bits)
        return all(
            self._stack(context, site + place, word) == value[1] & mask
            for place, value in state.words.items()
            if value is not None and value[0] is None and place >= -depth
        )

    # -- what the guest had --------------------------------------------------------------------------

    def _present(self, context: Context, spot: Spot, piece: Origin, state: State) -> Presented | None:
        mask = _mask(context.bits)
        values = list(context.registers)
        depth = state.depth
        assert depth is not None
        values[SP] = context.registers[SP] + depth & mask
        for number in range(len(values)):
            if number != SP and (found := self._find(context, state, number, values[SP])) is not None:
                values[number] = found
        flags = self._find(context, state, FLAGS, values[SP])
        rip = spot.base + piece.origin & mask
        if piece.anchor is not None:
            back = self._find(context, state, RETURN, values[SP])
            if back is None:
                return None
            rip = back - piece.anchor & mask
        presented = replace(
            context,
            rip=rip,
            registers=tuple(values),
            flags=context.flags if flags is None else flags & _KEPT | context.flags & ~_KEPT,
        )
        return Presented(presented, piece, spot.base)

    def _find(self, context: Context, state: State, symbol: int, site: int) -> int | None:
        """The value that a symbol stands for, from where it still is; None when it is nowhere."""
        mask = _mask(context.bits)
        holders: list[tuple[Value, int]] = [*zip(state.registers, context.registers, strict=False)]
        holders.append((state.registers[FLAGS], context.flags))
        if symbol < len(holders) - 1:
            holders.insert(0, (state.registers[symbol], context.registers[symbol]))
        for value, content in holders:
            if value is not None and value[0] == symbol:
                return content - value[1] & mask
        for place, value in state.words.items():
            if value is not None and value[0] == symbol:
                content_there = self._stack(context, site + place, context.bits // 8)
                if content_there is not None:
                    return content_there - value[1] & mask
        return None

    def _stack(self, context: Context, pointer: int, size: int) -> int | None:
        mask = _mask(context.bits)
        data = self._read(context.stack_base + (pointer & mask) & mask, size)
        return int.from_bytes(data, "little") if len(data) == size else None


_KEPT = 0x240CD5
"""Flags that a slot pushes and pops around its work: arithmetic, TF is not among them, DF, AC, ID."""


def _mask(bits: int) -> int:
    return (1 << bits) - 1
