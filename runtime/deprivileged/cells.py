"""Cells below privilege 0: their instructions become jumps to calls, or traps where no stack exists.

A cell is an instruction of the guest at a place that the patched image declares. When the call pages are
filled, a jump to the same as a call takes the place of its first two bytes; where there is none, since no
stack is known to exist, it is twice HLT, and the rest of this module makes the call. At the first the guest
arrives with its registers as they are: the hypervisor lends it a stack of the resident code's, brings the
operands into the call's registers, and lets it run the call's own slot. At the second the slot comes back:
stack and registers become the guest's again, and the results go where the instruction puts them. A far jump
comes back there too, as its slot is given that place in the new segment as its target.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from iced_x86 import Decoder, Instruction

from pvpatch.abi.errors import PvpatchError
from pvpatch.abi.layout import Cell, slot_offset
from pvpatch.abi.spec import SEGMENT_INDEX, Call, Form, load_spec
from runtime.cpu import flags as fl
from runtime.cpu.segments import load_cache, update_modes
from runtime.deprivileged.formvalues import FormValues, GuestBytes, put_argument, result_value
from runtime.memory import PageFault
from runtime.unwind.unwinder import Context

if TYPE_CHECKING:
    from runtime.cpu.delivery import Event
    from runtime.machine import Machine

__all__ = ["CellHost", "Cells", "CodeRange", "LentStack"]

_HLT = b"\xf4"
_JMP_SHORT = 0xEB
_WORD = 0xFFFFFFFF
_LENT_SIZE = 2048
"""Bytes of a lent stack."""


@dataclass(frozen=True)
class LentStack:
    """The end of memory that is a stack for one call: where it is in RAM, its offset in its segment, and that
    segment's selector and attributes; None where the kernel's stack segment is always flat."""

    physical: int
    pointer: int
    segment: tuple[int, int] | None = None


@dataclass(frozen=True)
class CodeRange:
    """Base and limit of a code segment, in bytes."""

    base: int
    limit: int


class CellHost(GuestBytes, Protocol):
    """What a cell needs of a hypervisor."""

    @property
    def in_kernel(self) -> bool:
        """The guest's kernel runs, not its user mode."""

    @property
    def stack(self) -> LentStack:
        """The stack to lend."""

    def code_range(self, selector: int) -> CodeRange | None:
        """A code segment as a far jump to `selector` would load it; None if the jump faults.

        Raises `PageFault`.
        """

    def page_fault(self, fault: PageFault) -> None:
        """Give the guest a page fault at the current EIP."""


@dataclass(frozen=True)
class _Lent:
    """A call that has not come back: the guest's registers and stack segment, and where it goes on."""

    site: int
    values: FormValues
    gpr: tuple[int, ...]
    stack_segment: tuple[int, int, int, int]
    loads_stack: bool
    """The call loads SS itself."""
    carried: tuple[tuple[str, int], ...]
    goes_on: int


class Cells:
    """The cells of one machine; `exited` is told the call of each."""

    def __init__(self, machine: Machine, host: CellHost, exited: Callable[[str], None]) -> None:
        self._machine = machine
        self._host = host
        self._exited = exited
        self._native: dict[int, bytes] = {}
        self._places: dict[int, tuple[Cell, bool]] = {}
        self._lent: dict[int, _Lent] = {}

    def install(self) -> None:
        """The image is in memory: put the traps in."""
        machine = self._machine
        if machine.patched is None:
            return
        locator = machine.patched.locator
        for cell in machine.patched.cells:
            place = locator.resident_phys + cell.offset
            if cell.covered:
                continue
            if cell.body:
                distance = cell.body - cell.offset - load_spec().cells.least
                machine.memory.store(place, bytes([_JMP_SHORT, distance]))
                continue
            self._native[cell.offset] = machine.memory.load(place, cell.length)
            machine.memory.store(place, _HLT * load_spec().cells.least)
            for start in (locator.resident_phys, locator.resident_virt):
                linear = start + cell.offset & _WORD
                self._places[linear] = cell, False
                self._places[linear + 1 & _WORD] = cell, True

    def answered(self, event: Event) -> bool:
        """Was that fault a cell's?"""
        if not self._places or event.vector != fl.GP or event.software or event.error_code:
            return False
        state = self._machine.cpu.state
        base = 0 if self._machine.cpu.code_width == 64 else int(state.segments[fl.CS].base)
        found = self._places.get(base + int(state.rip) & _WORD)
        if found is None or not self._host.in_kernel:
            return False
        cell, back = found
        if back and cell.offset not in self._lent:
            return False
        self._count(event.vector, back)
        try:
            if back:
                self._finish(cell)
            else:
                self._begin(cell)
        except PageFault as fault:
            self._give(fault)
        return True

    def _count(self, vector: int, back: bool) -> None:
        """An exit, not an exception of the guest's."""
        machine = self._machine
        machine.stats.exits["cell_return" if back else "cell"] += 1
        machine.stats.take_back(vector)

    def _give(self, fault: PageFault) -> None:
        try:
            self._host.page_fault(fault)
        except PvpatchError as problem:
            self._machine.crash(problem.message)

    # -- the way in ----------------------------------------------------------------------------------

    def _begin(self, cell: Cell) -> None:
        """Lend a stack and enter the slot. Raises `PageFault` with nothing changed."""
        machine = self._machine
        assert machine.patched is not None
        state = machine.cpu.state
        start = int(state.rip) & _WORD
        call = load_spec().calls[cell.call]
        form = call.replaces[cell.form]
        instruction = Decoder(cell.width, self._native[cell.offset], ip=start).decode()
        values = FormValues(machine.cpu, instruction, self._host)
        arguments = {name: values.source(text) for name, text in form.args}
        carried = tuple((target, values.source(text)) for target, text in form.also)
        for target in (*(target for target, _ in carried), *(target for _, target in form.results)):
            values.probe(target)
        lent = _Lent(
            start,
            values,
            tuple(int(value) for value in state.gpr),
            self._stack_segment(),
            _loads_stack_segment(call, arguments),
            carried,
            start + cell.length & _WORD,
        )
        machine.trace("cell", name=call.name, rip=start)
        slot = start + machine.patched.locator.off_page32 + slot_offset(call.number) - cell.offset & _WORD
        words = [start + 1]
        if call.kind == "jump":
            lent, words = self._jump(lent, call, arguments, start, instruction)
        self._lent[cell.offset] = lent
        self._enter(call, arguments, words, slot)
        self._exited(call.name)

    def _jump(
        self, lent: _Lent, call: Call, arguments: dict[str, int], start: int, instruction: Instruction
    ) -> tuple[_Lent, list[int]]:
        """The words that a far jump's slot finds: its target is our second trap, so that it comes back there.

        A jump that faults, or to an offset beyond the segment, is left to the slot as it is.
        """
        offset, selector = arguments["offset"], arguments["selector"]
        found = self._host.code_range(selector)
        if found is not None and offset <= found.limit:
            base = int(self._machine.cpu.state.segments[fl.CS].base)
            arrival = base + start + 1 - found.base & _WORD
            if arrival > found.limit:
                self._machine.crash(
                    f"{instruction} from code without a stack leaves the resident block's reach"
                )
            lent, offset = replace(lent, goes_on=offset), arrival
        by_name = {"offset": offset, "selector": selector}
        return lent, [by_name[item.name] for item in call.args]

    def _enter(self, call: Call, arguments: dict[str, int], words: list[int], slot: int) -> None:
        machine, stack = self._machine, self._host.stack
        state = machine.cpu.state
        for item in call.args:
            put_argument(machine.cpu, item, arguments[item.name])
        if stack.segment is not None:
            selector, attributes = stack.segment
            load_cache(machine.cpu, fl.SS, selector, 0, _WORD, attributes)
            update_modes(machine.cpu, machine.cpu.cpl)
        size = 4 * len(words)
        data = b"".join((word & _WORD).to_bytes(4, "little") for word in words)
        machine.memory.whole.store(stack.physical - size, data)
        state.gpr[fl.RSP] = stack.pointer - size
        state.rip = slot

    def _stack_segment(self) -> tuple[int, int, int, int]:
        segment = self._machine.cpu.state.segments[fl.SS]
        return int(segment.selector), int(segment.base), int(segment.limit), int(segment.flags)

    # -- the way back --------------------------------------------------------------------------------

    def _finish(self, cell: Cell) -> None:
        """The slot is done: the guest's own stack and registers, the results, and on."""
        lent = self._lent.pop(cell.offset)
        cpu = self._machine.cpu
        state = cpu.state
        call = load_spec().calls[cell.call]
        results = {item.name: result_value(cpu, item) for item in call.results}
        for index, value in enumerate(lent.gpr):
            state.gpr[index] = value
        if not lent.loads_stack:
            self._give_back(lent)
        state.rip = lent.goes_on
        self._deliver(call.replaces[cell.form], lent, results)

    def _give_back(self, lent: _Lent) -> None:
        """The stack segment is the guest's again."""
        if self._host.stack.segment is not None:
            load_cache(self._machine.cpu, fl.SS, *lent.stack_segment)
            update_modes(self._machine.cpu, self._machine.cpu.cpl)

    def withdrawn(self, context: Context) -> Context:
        """A fault is about to be delivered in `context`: one of a call on a lent stack is the cell's, which
        has not run then."""
        stack = self._host.stack
        depth = stack.pointer - context.registers[fl.RSP]
        if not self._lent or not 0 <= depth < _LENT_SIZE:
            return context
        _, lent = self._lent.popitem()
        self._give_back(lent)
        mask = (1 << context.bits) - 1
        registers = tuple(value & mask for value in lent.gpr)
        return replace(context, rip=lent.site, registers=registers, stack_base=lent.stack_segment[1])

    def _deliver(self, form: Form, lent: _Lent, results: dict[str, int]) -> None:
        """Memory first: its address is that of the registers at the site."""
        targets = [(target, results[name]) for name, target in form.results] + list(lent.carried)
        for target, value in sorted(targets, key=lambda pair: pair[0].startswith("reg:")):
            lent.values.put(target, value)


def _loads_stack_segment(call: Call, arguments: dict[str, int]) -> bool:
    return call.name == "segment_load" and arguments["segment"] == SEGMENT_INDEX["ss"]
