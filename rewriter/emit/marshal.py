"""From a binding to code: save what the call uses, bring the arguments, call, deliver, restore.

The frame, from the stack pointer of the site downwards: the return address of the site's own
call where the site is one (absolute reach), the word that the instruction itself pushes, 128
bytes of red zone where live, the values carried beside the call, the saved registers, the
address of a result in memory. Nothing here changes a flag, so the flags after the thunk are
the ones that the call left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from iced_x86 import Register

from rewriter.emit.assembly import SP, Assembly, Place
from rewriter.emit.binding import Refused
from rewriter.emit.moves import in_place, load_all, load_source, reads
from rewriter.emit.operands import (
    Address,
    Binding,
    Destination,
    HalfOfResult,
    InMemory,
    InRegister,
    OnStack,
    Source,
)

__all__ = ["RED_ZONE", "Surroundings", "emit_binding", "refusal", "spares_stack"]

RED_ZONE = 128  # bytes below the stack pointer that a leaf function may own (System V AMD64 ABI 3.2.2)
_SAVE_ORDER = (0, 2, 1, 3, 6, 7, 5, *range(8, 16))
Slots = Callable[[int], int]
"""Number of a call -> address of its slot."""
_SCRATCH = (6, 7, 3, 1, 2, 0, 5)


@dataclass(frozen=True)
class Surroundings:
    """What the code around a site demands.

    ``bias`` is the size of the return address on top of the stack when the site reached the
    thunk by a CALL, else 0; ``anchor`` the address that return address stands for, to which
    everything relative is then computed. ``red_zone``: bytes below the stack pointer are live.
    ``dead``: registers whose values nobody reads any more, for sites that change the stack
    segment and cannot restore from the stack.
    """

    bias: int = 0
    anchor: int = 0
    red_zone: bool = False
    dead: tuple[int, ...] = ()


def emit_binding(asm: Assembly, binding: Binding, slot: Slots, around: Surroundings) -> None:
    """Append the code that does ``binding`` through the slots of its calls; Refused where it cannot."""
    if binding.stack_arguments:
        _emit_stacked(asm, binding, slot(binding.number), around)
    elif binding.jump:
        if around.bias:
            asm.move_stack(around.bias)
        asm.jump(slot(binding.number))
    else:
        _Marshal(asm, binding, around).emit(slot)


def refusal(binding: Binding, bits: int, *, called: bool) -> str:
    """Why the binding cannot be emitted; ``called``: the site reaches its thunk by a CALL. Else empty."""
    bias = bits // 8 if called else 0
    try:
        emit_binding(Assembly(bits), binding, lambda _: 0, Surroundings(bias=bias))
    except (Refused, OverflowError) as reason:
        return str(reason)
    return ""


def spares_stack(binding: Binding, bits: int, dead: tuple[int, ...]) -> bool:
    """Whether a load of SS can be done without the stack once SS has changed."""
    return _Marshal(Assembly(bits), binding, Surroundings(dead=dead)).stash()


def _emit_stacked(asm: Assembly, binding: Binding, slot: int, around: Surroundings) -> None:
    """Arguments on the stack: all are read before the first is written, as they may overlap."""
    count = len(binding.stack_arguments)
    if around.bias and not binding.jump:
        raise Refused("a far call or INT from a site that is itself reached by a call")
    used = frozenset().union(*(reads(source) for source in binding.stack_arguments))
    scratch = tuple(number for number in (0, 2, 1, 3, 6, 7) if number not in used)[:count]
    below = RED_ZONE + count * asm.word + around.bias
    asm.move_stack(around.bias - below)
    depth = below
    for number in scratch:
        asm.push(number)
        depth += asm.word
    for number, source in zip(scratch, binding.stack_arguments, strict=True):
        if around.bias and isinstance(source, InMemory) and source.place.rip:
            raise Refused("a far pointer relative to RIP in code that moves")
        load_source(asm, number, source, depth)
    for position, number in enumerate(scratch):
        offset = depth + binding.pops - (count - position) * asm.word
        asm.store(Place(SP, displacement=offset), number)
    for number in reversed(scratch):
        asm.pop(number)
        depth -= asm.word
    asm.move_stack(depth + binding.pops - count * asm.word)
    if binding.jump:
        asm.jump(slot)
    else:
        asm.call(slot)


def _anchored_place(register: int, anchor: int, place: Place) -> Place:
    """A RIP-relative place relative to a register that holds the return address."""
    if not place.rip:
        return place
    return Place(register, displacement=place.displacement - anchor, segment=place.segment)


def _replaced_source(source: Source, change: Callable[[Place], Place]) -> Source:
    if isinstance(source, InMemory):
        return InMemory(change(source.place), source.size)
    return Address(change(source.place)) if isinstance(source, Address) else source


def _replaced_target(target: Destination, change: Callable[[Place], Place]) -> Destination:
    return InMemory(change(target.place), target.size) if isinstance(target, InMemory) else target


def _is_stack_pointer(target: Destination) -> bool:
    return isinstance(target, InRegister) and target.number == SP


@dataclass
class _Frame:
    """What was pushed so far; ``depth`` is the distance to the site's stack pointer in bytes."""

    depth: int = 0
    saved: dict[int, int] = field(default_factory=dict)  # register -> depth after its push
    stashed: dict[int, int] = field(default_factory=dict)  # register -> dead register that keeps it
    carried: list[int] = field(default_factory=list)  # depth after each carried value's push
    addresses: dict[int, int] = field(default_factory=dict)  # output index -> depth after its address

    def place(self, depth: int) -> Place:
        """Where what was pushed at ``depth`` lies now."""
        return Place(SP, displacement=self.depth - depth)


class _Marshal:
    """The state of one emission of a call that returns."""

    def __init__(self, asm: Assembly, binding: Binding, around: Surroundings) -> None:
        self.asm = asm
        self.around = around
        self.frame = _Frame(depth=around.bias)
        self.anchor: int | None = None
        bound = self._anchored(binding)
        self.new_stack = next((source for source, target in bound.copies if _is_stack_pointer(target)), None)
        self.binding = replace(
            bound, copies=tuple(pair for pair in bound.copies if not _is_stack_pointer(pair[1]))
        )
        self.scratch = self._choose_scratch()
        self.red_zone = RED_ZONE if around.red_zone else 0

    def emit(self, slot: Slots) -> None:
        """The whole thunk of the binding."""
        if self.binding.loads_ss and self.stash():
            self._emit_without_stack(slot(self.binding.number))
        else:
            self._enter()
            for _, source in self.binding.inputs:
                if isinstance(source, HalfOfResult):
                    self.asm.call(slot(source.number))
            load_all(self.asm, self.binding.inputs, self.frame.depth)
            self.asm.call(slot(self.binding.number))
            self._deliver()
            self._leave()
        if self.new_stack is not None:
            self._load_stack_pointer(self.new_stack)

    def _load_stack_pointer(self, source: Source) -> None:
        """LSS: the stack pointer is the very last thing that changes, read once more from memory."""
        if self.around.bias or not isinstance(source, InMemory) or source.size < 4:
            raise Refused("the stack pointer is loaded in a way that a thunk cannot follow")
        self.asm.load(SP, source.place, source.size)

    # ---- which registers -------------------------------------------------------------

    def _anchored(self, binding: Binding) -> Binding:
        """The binding with RIP-relative operands turned relative to the return address."""
        if not self.around.bias:
            return binding
        places = [
            item.place
            for _, item in (*binding.inputs, *binding.outputs, *binding.copies)
            if isinstance(item, InMemory | Address)
        ]
        places += [source.place for source, _ in binding.copies if isinstance(source, InMemory)]
        if not any(place.rip for place in places):
            return binding
        taken = {number for number, _ in (*binding.inputs, *binding.outputs)}
        taken |= {number for place in places for number in place.reads()}
        self.anchor = next(number for number in _SCRATCH if number not in taken)

        place = partial(_anchored_place, self.anchor, self.around.anchor)
        return replace(
            binding,
            inputs=tuple((number, _replaced_source(source, place)) for number, source in binding.inputs),
            outputs=tuple((number, _replaced_target(target, place)) for number, target in binding.outputs),
            copies=tuple(
                (_replaced_source(source, place), _replaced_target(target, place))
                for source, target in binding.copies
            ),
        )

    def _natural(self, number: int, destination: Destination) -> bool:
        """Whether the call already leaves the result where the instruction does."""
        return (
            isinstance(destination, InRegister)
            and destination.number == number
            and destination.size == self.asm.word
        )

    def _touched(self) -> frozenset[int]:
        """Registers that hold something else than at the site when the call has returned."""
        binding = self.binding
        touched = {number for number, source in binding.inputs if not in_place(number, source)}
        touched |= {number for number, _ in binding.outputs} | binding.discards
        return frozenset(touched)

    def _indirect(self) -> list[int]:
        """Outputs in memory whose address registers do not survive the call."""
        touched = self._touched()
        return [
            index
            for index, (_, destination) in enumerate(self.binding.outputs)
            if isinstance(destination, InMemory) and destination.place.reads() & touched
        ]

    def _choose_scratch(self) -> int | None:
        if not self._indirect() and not self.binding.copies:
            return None
        used = {number for number, _ in self.binding.outputs} | {self.anchor}
        return next(number for number in _SCRATCH if number not in used)

    def _to_save(self) -> tuple[int, ...]:
        """Registers that the thunk or the call changes and the instruction does not."""
        changed = set(self._touched())
        changed -= {number for number, target in self.binding.outputs if self._natural(number, target)}
        changed |= {number for number in (self.scratch, self.anchor) if number is not None}
        return tuple(number for number in _SAVE_ORDER if number in changed)

    # ---- prologue --------------------------------------------------------------------

    def _step(self, delta: int) -> None:
        self.asm.move_stack(delta)
        self.frame.depth -= delta

    def _push(self, number: int) -> int:
        self.asm.push(number)
        self.frame.depth += self.asm.word
        return self.frame.depth

    def _enter(self) -> None:
        asm, binding, frame, around = self.asm, self.binding, self.frame, self.around
        if binding.pushes and around.bias:
            self._make_room(binding.pushes)
        else:
            self._step(-binding.pushes)
        self._step(-self.red_zone)
        home = around.bias + binding.pushes if around.bias else 0
        for number in self._to_save():
            frame.saved[number] = self._push(number)
        if self.anchor is not None:
            asm.load(self.anchor, frame.place(home))
        self._carry()
        self._take_addresses()

    def _make_room(self, size: int) -> None:
        """Move the return address down by ``size`` bytes, at most a word: room for what is pushed."""
        if size == self.asm.word:
            self.asm.push_at(Place(SP))
            self.frame.depth += size
            return
        self._step(-size)
        self.asm.push_at(Place(SP, displacement=size))
        self.asm.pop_at(Place(SP))

    def _close_room(self, size: int) -> None:
        """Move the return address up over the ``size`` bytes that were popped, and leave it on top."""
        if size != self.asm.word:
            self.asm.push_at(Place(SP))
        self.asm.pop_at(Place(SP, displacement=size % self.asm.word))
        self.asm.move_stack(size % self.asm.word)

    def _carry(self) -> None:
        """Push the values that cross the call beside it."""
        for source, _ in self.binding.copies:
            assert self.scratch is not None
            load_source(self.asm, self.scratch, source, self.frame.depth)
            self.frame.carried.append(self._push(self.scratch))
            self.asm.load(self.scratch, self.frame.place(self.frame.saved[self.scratch]))

    def _take_addresses(self) -> None:
        """Push the address of each result whose address registers will not survive."""
        for index in self._indirect():
            _, destination = self.binding.outputs[index]
            assert isinstance(destination, InMemory) and self.scratch is not None
            self.asm.address(self.scratch, destination.place.moved(self.frame.depth))
            self.frame.addresses[index] = self._push(self.scratch)
            self.asm.load(self.scratch, self.frame.place(self.frame.saved[self.scratch]))

    # ---- results ---------------------------------------------------------------------

    def _deliver(self) -> None:
        for index, (number, destination) in enumerate(self.binding.outputs):
            if index in self.frame.addresses:
                self._store_through(number, destination, self.frame.place(self.frame.addresses[index]))
            elif not self._natural(number, destination):
                self._put(number, destination)
        for depth, (_, destination) in zip(self.frame.carried, self.binding.copies, strict=True):
            assert self.scratch is not None
            self.asm.load(self.scratch, self.frame.place(depth))
            self._put(self.scratch, destination)

    def _store_through(self, number: int, destination: Destination, pointer: Place) -> None:
        assert isinstance(destination, InMemory) and self.scratch is not None
        self.asm.load(self.scratch, pointer)
        segment = destination.place.segment
        if segment == Register.NONE and destination.place.base in (4, 5) and self.asm.bits == 32:
            segment = Register.SS
        self.asm.store(Place(self.scratch, segment=segment), number, destination.size)

    def _put(self, number: int, destination: Destination) -> None:
        """Deliver one result that is in a register."""
        asm, frame = self.asm, self.frame
        if isinstance(destination, InMemory):
            asm.store(destination.place.moved(frame.depth), number, destination.size)
        elif isinstance(destination, OnStack):
            asm.store(Place(SP, displacement=frame.depth + destination.offset), number, destination.size)
        elif destination.number in frame.saved:
            home = frame.place(frame.saved[destination.number])
            if destination.size == 4 and asm.bits == 64:
                asm.move(number, number, 4)  # a 32-bit result zero-extends
                asm.store(home, number)
            else:
                asm.store(home, number, destination.size)
        else:
            asm.move(destination.number, number, destination.size)

    def _leave(self) -> None:
        asm, binding, frame, around = self.asm, self.binding, self.frame, self.around
        self._step(frame.depth - max(frame.saved.values(), default=frame.depth))
        for number in reversed(frame.saved):
            asm.pop(number)
            frame.depth -= asm.word
        if not around.bias:
            self._step(frame.depth - binding.pushes + binding.pops)
        elif binding.pops:
            self._close_room(binding.pops)
        else:
            self._step(frame.depth - binding.pushes - around.bias)

    # ---- loading SS ------------------------------------------------------------------

    def stash(self) -> bool:
        """Find dead registers to keep the saved ones in; False when there are too few."""
        if self.around.bias or self.binding.pops or self.binding.copies:
            return False
        sources = frozenset().union(*(reads(source) for _, source in self.binding.inputs))
        wanted = self._to_save()
        given = {number for number, _ in self.binding.inputs}
        free = [number for number in self.around.dead if number not in (*wanted, *sources, *given, SP)]
        saved = [number for number in wanted if number not in self.around.dead]
        if len(saved) > len(free):
            return False
        self.frame.stashed = dict(zip(saved, free, strict=False))
        return True

    def _emit_without_stack(self, slot: int) -> None:
        """SS may get another base: after the call the stack is not where it was."""
        for number, keeper in self.frame.stashed.items():
            self.asm.move(keeper, number)
        load_all(self.asm, self.binding.inputs, self.frame.depth)
        self.asm.call(slot)
        for number, keeper in self.frame.stashed.items():
            self.asm.move(number, keeper)
