"""Parallel moves: bring every argument of a call into its register.

An argument is loaded when nobody still needs what its register holds; in a cycle one value
waits on the stack. Only MOV, MOVZX, LEA, PUSH and POP are used: no flag changes.
"""

from __future__ import annotations

from rewriter.emit.assembly import SP, Assembly, Place
from rewriter.emit.operands import Address, HalfOfResult, Immediate, InMemory, InRegister, OnStack, Source

__all__ = ["in_place", "load_all", "load_source", "push_source", "reads"]

TABLE_BASE = 3
"""Bytes of a table base at 16-bit operand size; the operand has a fourth that is not read (SDM 2A, LGDT)."""


def in_place(number: int, source: Source) -> bool:
    """Whether the argument already is in its register (what lies above its bits does not count)."""
    return isinstance(source, InRegister) and source.number == number


def reads(source: Source) -> frozenset[int]:
    """Registers that a source depends on, the stack pointer aside."""
    if isinstance(source, InRegister):
        return frozenset({source.number})
    if isinstance(source, InMemory | Address):
        return source.place.reads()
    return frozenset()


def load_all(asm: Assembly, inputs: tuple[tuple[int, Source], ...], depth: int) -> None:
    """Load every argument, ``depth`` bytes having been pushed since the site."""
    pending = {number: source for number, source in inputs if not in_place(number, source)}
    waiting: list[int] = []
    while pending:
        ready = next((number for number in pending if not _needed(number, pending)), None)
        if ready is not None:
            load_source(asm, ready, pending.pop(ready), depth)
            continue
        number = next(number for number, source in pending.items() if pushable(asm, source))
        push_source(asm, pending.pop(number), depth)
        depth += asm.word
        waiting.append(number)
    for number in reversed(waiting):
        asm.pop(number)


def _needed(number: int, pending: dict[int, Source]) -> bool:
    return any(number in reads(source) for other, source in pending.items() if other != number)


def pushable(asm: Assembly, source: Source) -> bool:
    """Whether PUSH takes the source as it is."""
    if isinstance(source, InRegister):
        return source.number != SP
    return isinstance(source, InMemory) and source.size in (asm.word, TABLE_BASE)


def load_source(asm: Assembly, number: int, source: Source, depth: int) -> None:
    """Load one argument into its register, zero-extended; half of a result is there already."""
    if isinstance(source, Immediate):
        asm.set(number, source.value)
    elif isinstance(source, InMemory) and source.size == TABLE_BASE:
        push_source(asm, source, depth)
        asm.pop(number)
    elif isinstance(source, InMemory):
        asm.load(number, source.place.moved(depth), source.size)
    elif isinstance(source, OnStack):
        asm.load(number, Place(SP, displacement=depth + source.offset), source.size)
    elif isinstance(source, HalfOfResult):
        asm.push(number)
        asm.load(number, Place(SP, displacement=depth + asm.word + source.offset), 2)
        asm.store(Place(SP), number, 2)
        asm.pop(number)
    elif isinstance(source, Address):
        asm.address(number, source.place.moved(depth))
    elif source.number == SP:
        asm.address(number, Place(SP, displacement=depth))
        if source.size == 2:
            asm.extend(number, number)
    elif source.size == 2:
        asm.extend(number, source.number)
    else:
        asm.move(number, source.number, source.size)


def push_source(asm: Assembly, source: Source, depth: int) -> None:
    """Push a full word of a source that ``pushable`` accepts."""
    if isinstance(source, InRegister):
        asm.push(source.number)
    elif isinstance(source, InMemory):
        asm.push_at(source.place.moved(depth))
        if source.size == TABLE_BASE:
            asm.clear_byte(Place(SP, displacement=TABLE_BASE))
    else:
        raise ValueError(f"no way to push {source}")
