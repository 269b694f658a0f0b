"""Sites of a patched image that no tactic could take: carried out through the ABI's own slots.

Such a site keeps its instruction. In the guest's kernel it faults (privileged, or a selector that the
real tables have not) or is watched (silently sensitive); either way it arrives here, is counted as missed,
and does what the patched form would have done. Where the form moves nothing the slot is entered as from a
call behind the instruction. Otherwise the operands go into the call's registers and the slot returns to a
trap, a HLT in the last byte of the call page, at which the registers become the guest's again and the
results go where the instruction puts them. In 64-bit code every slot returns there: it is entered below the
red zone, which the instruction would have left alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from iced_x86 import Decoder, Instruction, Mnemonic, OpKind

from pvpatch.abi.forms import match_form
from pvpatch.abi.layout import CALL_PAGE_SIZE, slot_offset
from pvpatch.abi.spec import Call, Form, load_spec
from runtime.cpu import flags as fl
from runtime.cpu.delivery import Event
from runtime.deprivileged.fartransfers import NarrowTransfer, narrow_transfer
from runtime.deprivileged.formvalues import (
    FormValues,
    GuestBytes,
    address_mask,
    put_argument,
    result_value,
    segment_base,
)
from runtime.deprivileged.operands import SEGMENTS, is_undefined_move, mnemonic_name
from runtime.memory import PageFault
from runtime.unwind.unwinder import Context

if TYPE_CHECKING:
    from runtime.machine import Machine

__all__ = ["SELECTOR_FAULTS", "SILENT", "MissedSites", "SiteHost", "uses_selector"]

SILENT = frozenset({
    "pushf", "pushfd", "pushfq", "popf", "popfd", "popfq", "sgdt", "sidt", "sldt", "str", "smsw",
    "lar", "lsl", "verr", "verw", "mov cs", "mov ss", "push cs", "push ss", "call far",
})  # fmt: skip
"""Sensitive instructions that do not trap below privilege 0: a patch or nothing intercepts them."""
SELECTOR_FAULTS = frozenset({fl.NP, fl.SS_FAULT, fl.GP})
"""What a selector gives that the real tables have not, or not with the privilege that the guest sees."""

_HLT = b"\xf4"
_NEXT_LENGTHS = (3, 1)
"""Bytes of the second instruction of a pair (MWAIT, HLT): the longer one may not be mapped."""
_RED_ZONE = 128
"""Bytes below the stack pointer that 64-bit code may use without moving it (System V AMD64 ABI, 3.2.2)."""
_OPEN_CALLS = 256
"""Calls that may be on their way at once: one for each thread that was preempted there."""
_FAR_POINTERS = frozenset({Mnemonic.LDS, Mnemonic.LES, Mnemonic.LSS, Mnemonic.LFS, Mnemonic.LGS})
_FAR_RETURNS = frozenset({Mnemonic.RETF, Mnemonic.IRETD, Mnemonic.IRETQ})


def uses_selector(instruction: Instruction) -> bool:
    """Far transfers and loads of segment registers."""
    if instruction.mnemonic in (Mnemonic.MOV, Mnemonic.POP):
        return instruction.op0_kind == OpKind.REGISTER and instruction.op0_register in SEGMENTS
    return (
        instruction.mnemonic in _FAR_POINTERS
        or instruction.mnemonic in _FAR_RETURNS
        or instruction.is_jmp_far
        or instruction.is_call_far
        or instruction.is_jmp_far_indirect
        or instruction.is_call_far_indirect
    )


class SiteHost(GuestBytes, Protocol):
    """What the sites need of a hypervisor."""

    @property
    def in_kernel(self) -> bool:
        """The guest's kernel runs, not its user mode."""

    @property
    def code_selector(self) -> int:
        """CS as the guest's kernel believes it to be."""

    def page_fault(self, fault: PageFault) -> None:
        """Give the guest a page fault at the current instruction."""


@dataclass(frozen=True)
class _Open:
    """A call that has not come back: the site, its operands, and the guest's registers; the stack pointer
    `after` the instruction has popped. `in_place`: nothing has to be moved."""

    site: int
    goes_on: int
    after: int
    in_place: bool
    call: Call
    form: Form
    values: FormValues
    gpr: tuple[int, ...]
    carried: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class _Entered:
    """The slot entered last: its call and address, the stack pointer there and when it comes back, the site,
    and the registers at the site; `in_place`: only the stack pointer has changed."""

    number: int
    slot: int
    pointer: int
    returned: int
    site: int
    gpr: tuple[int, ...]
    in_place: bool


def _moves_nothing(call: Call, form: Form) -> bool:
    """Is every argument and result in the call's own register, or on the stack?"""
    homes = {item.name: item.registers(32) for item in (*call.args, *call.results)}
    bound = [(homes[name], text) for name, text in (*form.args, *form.results)]
    return not form.also and all(not home or home == (text.removeprefix("reg:"),) for home, text in bound)


def _spares_red_zone(call: Call) -> bool:
    """All but INT n and a far call: what these put on the stack lies where their instructions put it."""
    return call.kind == "call" and all(item.stack_index is None for item in call.args)


class MissedSites:
    """Carries out missed instructions of one machine.

    A call on its way is known by the stack pointer that it returns with.
    """

    def __init__(self, machine: Machine, host: SiteHost) -> None:
        self._machine = machine
        self._host = host
        self._open: dict[int, _Open] = {}
        self._traps: set[int] = set()
        self._entered: _Entered | None = None

    def install(self) -> None:
        """The call pages are filled: put the traps in."""
        for page in self._machine.patched.pages if self._machine.patched is not None else ():
            self._machine.memory.store(page.physical + CALL_PAGE_SIZE - 1, _HLT)
            self._traps |= {start + CALL_PAGE_SIZE - 1 for start in (page.physical, page.virtual)}

    def as_defined(self, event: Event) -> Event:
        """`event`, or the #UD of the kernel's MOV to or from a register that does not exist: that is invalid
        at any privilege, but the emulated CPU looks at the privilege first."""
        machine = self._machine
        if event.vector != fl.GP or event.software or event.error_code or not self._host.in_kernel:
            return event
        if not is_undefined_move(machine.cpu, machine.linear):
            return event
        machine.stats.take_back(event.vector)
        machine.stats.exceptions[fl.UD] += 1
        return Event(fl.UD)

    # -- the way in ----------------------------------------------------------------------------------

    def carry_out(self, instruction: Instruction) -> bool:
        """Do what `instruction` (at RIP) asks; False if that is not possible here."""
        try:
            page, narrow = self._nearest_page(), narrow_transfer(instruction)
            if page is not None and narrow is not None:
                return self._transfer(page, narrow, instruction)
            behind = self._behind(instruction)
            following = "" if behind is None else mnemonic_name(behind)
            found = match_form(instruction, self._machine.cpu.code_width, following)
            if page is None or found.call is None or found.form is None:
                return False
            last = behind if found.form.next and behind is not None else instruction
            self._begin(page, found.call, found.form, instruction, int(last.next_ip))
        except PageFault as fault:
            self._host.page_fault(fault)
        return True

    def _transfer(self, page: int, narrow: NarrowTransfer, instruction: Instruction) -> bool:
        """A far transfer of operand size 16. Raises `PageFault` with nothing changed."""
        pushed = b""
        if narrow.pushes:
            words = (int(instruction.next_ip), self._host.code_selector)
            pushed = b"".join((word & 0xFFFF).to_bytes(2, "little") for word in words)
        values = FormValues(self._machine.cpu, instruction, self._host)
        if narrow.call.name == "far_return" and values.source(dict(narrow.form.args)["selector"]) & 3:
            where, backend = int(self._machine.cpu.state.rip), self._machine.capabilities.name
            self._machine.crash(
                f"the 16-bit far return at {where:#x} leads to another privilege level, "
                f"which is not offered on {backend}"
            )
            return True
        self._begin(page, narrow.call, narrow.form, instruction, int(instruction.next_ip), pushed)
        return True

    def _nearest_page(self) -> int | None:
        """Offset in the code segment of the call page for code of the present width; None without one.

        Of its two addresses the one nearer to RIP: before paging only the physical one works.
        """
        cpu, patched = self._machine.cpu, self._machine.patched
        base, width = segment_base(cpu, fl.CS), cpu.code_width
        linear = base + int(cpu.state.rip) & address_mask(cpu)
        pages = [page for page in patched.pages if page.width == width] if patched is not None else []
        starts = [start for page in pages for start in (page.physical, page.virtual)]
        nearest = min(starts, key=lambda start: abs(start - linear), default=None)
        return None if nearest is None else nearest - base & address_mask(cpu)

    def _behind(self, instruction: Instruction) -> Instruction | None:
        """The next instruction, where it may belong to the form."""
        cpu = self._machine.cpu
        if not any(form.next for _, form in load_spec().forms_of(mnemonic_name(instruction))):
            return None
        start = int(instruction.next_ip)
        linear = segment_base(cpu, fl.CS) + start & address_mask(cpu)
        for length in _NEXT_LENGTHS:
            try:
                code = self._host.read_linear(linear, length)
            except PageFault:
                continue
            found = Decoder(cpu.code_width, code, ip=start).decode()
            return None if found.is_invalid else found
        return None

    def _begin(
        self, page: int, call: Call, form: Form, instruction: Instruction, goes_on: int, pushed: bytes = b""
    ) -> None:
        """Enter the slot, its words below what the instruction itself has `pushed`. Raises `PageFault` with
        nothing changed."""
        cpu = self._machine.cpu
        state, word, goes_on = cpu.state, cpu.code_width // 8, goes_on & address_mask(cpu)
        values = FormValues(cpu, instruction, self._host)
        arguments = {name: values.source(text) for name, text in form.args}
        carried = tuple((target, values.source(text)) for target, text in form.also)
        for target in (*(target for target, _ in carried), *(target for _, target in form.results)):
            values.probe(target)
        site, before = int(state.rip), tuple(int(value) for value in state.gpr)
        after = before[fl.RSP] + values.taken(form) & address_mask(cpu)
        returned, in_place = after, _moves_nothing(call, form)
        if word == 8 and _spares_red_zone(call):
            returned = before[fl.RSP] - _RED_ZONE & address_mask(cpu)
        trapped = call.kind == "call" and not (in_place and returned == after)
        words = [page + CALL_PAGE_SIZE - 1 if trapped else goes_on] if call.kind == "call" else []
        words += [arguments[item.name] for item in call.args if arguments and item.stack_index is not None]
        data = b"".join((item & (1 << 8 * word) - 1).to_bytes(word, "little") for item in words) + pushed
        pointer = returned - len(data) & address_mask(cpu)
        if data:
            self._host.write_linear(segment_base(cpu, fl.SS) + pointer & address_mask(cpu), data)
        if trapped:
            entry = _Open(site, goes_on, after, in_place, call, form, values, before, carried)
            self._remember(returned, entry)
        for item in () if in_place else call.args:
            put_argument(cpu, item, arguments[item.name])
        state.gpr[fl.RSP] = pointer
        state.rip = page + slot_offset(call.number)
        self._entered = _Entered(call.number, int(state.rip), pointer, returned, site, before, in_place)

    def _remember(self, pointer: int, entry: _Open) -> None:
        """Note a call on its way. Some never return: when there are too many the oldest is forgotten."""
        self._open.pop(pointer, None)
        if len(self._open) >= _OPEN_CALLS:
            del self._open[next(iter(self._open))]
        self._open[pointer] = entry

    def withdrawn(self, context: Context, number: int | None) -> Context:
        """A fault is about to be delivered in `context`, or at the slot of call `number`: one of a slot that
        was entered from here is the site's, whose instruction has not run then."""
        entered, mask = self._entered, (1 << context.bits) - 1
        if entered is None or context.registers[fl.RSP] != entered.pointer & mask:
            return context
        if number != entered.number and context.rip != entered.slot:
            return context
        self._open.pop(entered.returned & mask, None)
        registers = list(context.registers) if entered.in_place else [item & mask for item in entered.gpr]
        registers[fl.RSP] = entered.gpr[fl.RSP] & mask
        return replace(context, rip=entered.site, registers=tuple(registers))

    # -- the way back --------------------------------------------------------------------------------

    def answered(self, event: Event) -> bool:
        """Was that fault the trap behind a call?"""
        machine = self._machine
        state = machine.cpu.state
        if event.vector != fl.GP or event.software or event.error_code:
            return False
        linear = segment_base(machine.cpu, fl.CS) + int(state.rip) & address_mask(machine.cpu)
        if linear not in self._traps:
            return False
        pointer = int(state.gpr[fl.RSP]) & address_mask(machine.cpu)
        if pointer not in self._open or not self._host.in_kernel:
            return False
        machine.stats.exits["missed_return"] += 1
        machine.stats.take_back(event.vector)
        self._finish(self._open.pop(pointer))
        return True

    def _finish(self, entry: _Open) -> None:
        """The slot is done: the guest's own registers, the results, and on."""
        cpu = self._machine.cpu
        state = cpu.state
        state.rip = entry.goes_on
        state.gpr[fl.RSP] = entry.after
        if entry.in_place:
            return
        results = {item.name: result_value(cpu, item) for item in entry.call.results}
        for index, value in enumerate(entry.gpr):
            if index != fl.RSP:
                state.gpr[index] = value
        targets = [(target, results[name]) for name, target in entry.form.results] + list(entry.carried)
        try:
            for target, value in sorted(targets, key=lambda pair: pair[0].startswith("reg:")):
                entry.values.put(target, value)
        except PageFault as fault:
            state.rip, state.gpr[fl.RSP] = entry.site, entry.gpr[fl.RSP]
            self._host.page_fault(fault)
