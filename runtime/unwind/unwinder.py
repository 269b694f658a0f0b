"""From the registers in a thunk or a slot to those that the guest had at its own instruction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from pvpatch.abi.layout import Origin
from runtime.unwind.origins import Origins, Spot
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

    def unwind(self, context: Context, *, done: bool = False) -> Presented | None:
        """The context as the guest would have it; None where it already has, or where nobody can tell.

        `done`: the instruction that the code stands for has had its effect, unless its code has not begun:
        the guest is at the next one.
        """
        bits = context.bits
        spot = self.origins.spot(context.rip, context.code_base, bits)
        if spot is None:
            return None
        for piece in self._pieces(context, spot):
            start = spot.base + piece.offset & _mask(bits)
            state = State.at_site(bits // 8, called=piece.anchor is not None)
            fetch = self.origins.fetch(spot.base, bits)
            for _, reached in follow(start, context.rip.__eq__, state, bits, fetch):
                if self._agrees(context, reached):
                    goes_on = piece if context.rip == start or not done else self._next(context, spot, reached)
                    return self._present(context, spot, piece, reached, goes_on)
        return None

    def _next(self, context: Context, spot: Spot, state: State) -> Origin | None:
        """The piece that the code goes on in."""
        bits = context.bits

        def begins(rip: int) -> bool:
            found = self.origins.spot(rip, context.code_base, bits)
            return rip != context.rip and found is not None and found.begins

        for rip, _ in follow(context.rip, begins, state, bits, self.origins.fetch(spot.base, bits)):
            found = self.origins.spot(rip, context.code_base, bits)
            return None if found is None else found.piece
        return None

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

    def _present(
        self, context: Context, spot: Spot, piece: Origin, state: State, goes_on: Origin | None
    ) -> Presented | None:
        if goes_on is None:
            return None
        mask = _mask(context.bits)
        values = list(context.registers)
        depth = state.depth
        assert depth is not None
        values[SP] = context.registers[SP] + depth & mask
        for number in range(len(values)):
            if number != SP and (found := self._find(context, state, number, values[SP])) is not None:
                values[number] = found
        flags = self._find(context, state, FLAGS, values[SP])
        rip = spot.base + goes_on.origin & mask
        if piece.anchor is not None:
            back = self._find(context, state, RETURN, values[SP])
            if back is None:
                return None
            rip = back - piece.anchor + goes_on.origin - piece.origin & mask
        presented = replace(
            context,
            rip=rip,
            registers=tuple(values),
            flags=context.flags if flags is None else flags & _KEPT | context.flags & ~_KEPT,
        )
        return Presented(presented, goes_on, spot.base)

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
