"""Sites of a patched image that no tactic could take: carried out through the ABI's own slots.

Such a site keeps its instruction. In the guest's kernel it faults (privileged) or is watched
(silently sensitive); either way it arrives here, is counted as missed, and does what the patched
form would have done: a call of the slot with the registers as they are, or, for the flags, the same
on the variables that the slots use. Forms whose operands would need moving are not carried out: the
guest gets the fault.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

from iced_x86 import Code, OpKind

from pvpatch.abi.layout import slot_offset
from pvpatch.abi.spec import Call, Form, load_spec
from runtime.cpu import flags as fl
from runtime.deprivileged.operands import SEGMENTS, Operands, mnemonic_name

if TYPE_CHECKING:
    import iced_x86

    from runtime.machine import Machine
    from runtime.memory import MemoryRange

__all__ = ["SILENT", "MissedSites", "SiteHost", "nearest_slot", "plain_call"]

SILENT = frozenset({
    "pushf", "pushfd", "pushfq", "popf", "popfd", "popfq", "sgdt", "sidt", "sldt", "str", "smsw",
    "lar", "lsl", "verr", "verw", "mov cs", "mov ss", "push cs", "push ss", "call far",
})  # fmt: skip
"""Sensitive instructions that do not trap below privilege 0: a patch or nothing intercepts them."""
_KERNEL_PRIVILEGE = 1

_WORD = 0xFFFFFFFF
_LOADABLE = fl.ARITHMETIC | fl.DF | fl.TF | fl.AC | 1 << 21
_PUSHES = {Code.PUSHFW: 2, Code.PUSHFD: 4}
_TABLES = {
    Code.LGDT_M1632_16: ("gdt", 0xFFFFFF), Code.LGDT_M1632: ("gdt", _WORD),
    Code.LIDT_M1632_16: ("idt", 0xFFFFFF), Code.LIDT_M1632: ("idt", _WORD),
}  # fmt: skip
"""Table loads: which table, and the bits of the base that count."""
_SELECTOR_READS = {Code.MOV_RM16_SREG: 2, Code.MOV_R32M16_SREG: 4}
_SELECTOR_PUSHES = {Code.PUSHW_CS: 2, Code.PUSHD_CS: 4, Code.PUSHW_SS: 2, Code.PUSHD_SS: 4}
_POPS = {Code.POPFW: 2, Code.POPFD: 4}


def _needs_no_moves(call: Call, form: Form, width: int) -> bool:
    """True if every argument and result already is in the call's own register."""
    if form.next or form.ops or form.also or form.pops:
        return False
    values = [item for item in (*call.args, *call.results) if item.registers(width)]
    homes = {item.name: item.registers(32)[0] for item in values}
    return all(source == f"reg:{homes.get(name)}" for name, source in (*form.args, *form.results))


@functools.cache
def _plain_calls(width: int) -> dict[str, Call]:
    found: dict[str, Call] = {}
    for call in load_spec().calls:
        for form in call.replaces:
            if width in form.widths and form.rep is None and _needs_no_moves(call, form, width):
                found.setdefault(form.insn, call)
    return found


def plain_call(instruction: iced_x86.Instruction, width: int) -> Call | None:
    """The call that may simply be entered instead of `instruction`."""
    return _plain_calls(width).get(mnemonic_name(instruction))


def nearest_slot(machine: Machine, call: Call) -> int | None:
    """Where the slot of `call` is for code of the present width; None without a page for it.

    Of the page's two addresses the one nearer to RIP: before paging only the physical one works.
    """
    rip, width = int(machine.cpu.state.rip), machine.cpu.code_width
    pages = [page for page in machine.patched.pages if page.width == width] if machine.patched else []
    starts = [start for page in pages for start in (page.physical, page.virtual)]
    return min(starts, key=lambda start: abs(start - rip)) + slot_offset(call.number) if starts else None


class SiteHost(ABC):
    """What the sites need of a hypervisor and of the resident code beside the guest.

    `variables` is memory in which `place_of` names the variables of the resident code, which lies behind the
    guest's RAM; `flat_selectors` are the code and data selectors of that code.
    """

    def __init__(
        self,
        machine: Machine,
        variables: MemoryRange,
        place_of: Callable[[str], int],
        flat_selectors: tuple[int, int],
    ) -> None:
        self.machine = machine
        self._variables = variables
        self._place_of = place_of
        code, data = flat_selectors
        self.flat_selectors = code & ~3, data & ~3

    def load_variable(self, name: str) -> int:
        """A 32-bit V_ or P_ variable of the resident code."""
        return self._variables.load_u32(self.machine.memory.size + self._place_of(name))

    def store_variable(self, name: str, value: int) -> None:
        """Set a 32-bit V_ or P_ variable of the resident code."""
        self._variables.store_u32(self.machine.memory.size + self._place_of(name), value)

    @abstractmethod
    def read_linear(self, linear: int, length: int) -> bytes:
        """Guest memory. Raises `PageFault`."""

    @abstractmethod
    def write_linear(self, linear: int, data: bytes) -> None:
        """Write guest memory. Raises `PageFault`."""

    @abstractmethod
    def interrupt_flag(self) -> int:
        """The guest's IF, in its place in EFLAGS."""

    @abstractmethod
    def set_interrupt_flag(self, value: int) -> None:
        """Set the guest's IF from EFLAGS; what waits may come at the next instruction."""


class MissedSites:
    """Carries out missed instructions of one machine."""

    def __init__(self, host: SiteHost) -> None:
        self._host = host

    def carry_out(self, insn: iced_x86.Instruction) -> bool:
        """Do what `insn` (at EIP) asks; False if that is not possible here."""
        if insn.code in _PUSHES:
            return self._push_flags(insn, _PUSHES[insn.code])
        if insn.code in _POPS:
            return self._pop_flags(insn, _POPS[insn.code])
        if insn.code in _TABLES:
            return self._load_table(insn)
        if insn.code in _SELECTOR_READS or insn.code in _SELECTOR_PUSHES:
            return self._read_selector(insn)
        call = plain_call(insn, 32)
        slot = None if call is None else nearest_slot(self._host.machine, call)
        if call is None or slot is None:
            return False
        state = self._host.machine.cpu.state
        if insn.code == Code.RETFD_IMM16:
            self._move_return(insn.immediate16)
        elif insn.op_count:
            return False
        if call.kind == "call":
            self._push(insn.next_ip32, 4)
        state.rip = slot
        return True

    # -- the guest's stack -------------------------------------------------------------------------

    def _push(self, value: int, size: int) -> None:
        state = self._host.machine.cpu.state
        pointer = (state.gpr[fl.RSP] - size) & _WORD
        linear = (state.segments[fl.SS].base + pointer) & _WORD
        self._host.write_linear(linear, value.to_bytes(4, "little")[:size])
        state.gpr[fl.RSP] = pointer

    def _move_return(self, skipped: int) -> None:
        """RETF n: the far address goes up over the bytes that are dropped."""
        state, host = self._host.machine.cpu.state, self._host
        base, pointer = state.segments[fl.SS].base, state.gpr[fl.RSP]
        frame = host.read_linear((base + pointer) & _WORD, 8)
        pointer = (pointer + skipped) & _WORD
        host.write_linear((base + pointer) & _WORD, frame)
        state.gpr[fl.RSP] = pointer

    # -- tables ------------------------------------------------------------------------------------

    def _load_table(self, insn: iced_x86.Instruction) -> bool:
        """LGDT and LIDT, the form with a 24-bit base too."""
        name, mask = _TABLES[insn.code]
        operand = self._host.read_linear(self._address(insn), 6)
        self._host.store_variable(f"V_{name}_limit", int.from_bytes(operand[:2], "little"))
        self._host.store_variable(f"V_{name}_base", int.from_bytes(operand[2:], "little") & mask)
        self._host.machine.cpu.state.rip = insn.next_ip32
        return True

    # -- operands ----------------------------------------------------------------------------------

    def _address(self, insn: iced_x86.Instruction) -> int:
        """Linear address of the memory operand."""
        operands = Operands(self._host.machine.cpu, insn)
        segment = self._host.machine.cpu.state.segments[operands.segment_index(insn)]
        return (int(segment.base) + operands.offset()) & _WORD

    # -- selectors ---------------------------------------------------------------------------------

    def _read_selector(self, insn: iced_x86.Instruction) -> bool:
        """MOV from and PUSH of CS and SS: what the guest believes them to be."""
        pushes = _SELECTOR_PUSHES.get(insn.code)
        register = insn.op1_register if pushes is None else insn.op0_register
        state = self._host.machine.cpu.state
        value = self._believed(int(state.segments[SEGMENTS[register]].selector))
        if pushes is not None:
            self._push(value, pushes)
        elif insn.op0_kind == OpKind.REGISTER:
            Operands(self._host.machine.cpu, insn).set_register(insn.op0_register, value)
        else:
            self._host.write_linear(self._address(insn), value.to_bytes(2, "little"))
        state.rip = insn.next_ip32
        return True

    def _believed(self, selector: int) -> int:
        """A real selector of the kernel's as the guest knows it."""
        code, data = self._host.flat_selectors
        if selector & ~3 in (code, data):
            return self._host.load_variable("P_boot_code" if selector & ~3 == code else "P_boot_data")
        return selector & ~3 if selector & 3 == _KERNEL_PRIVILEGE else selector

    # -- flags -------------------------------------------------------------------------------------

    def _push_flags(self, insn: iced_x86.Instruction, size: int) -> bool:
        host, machine = self._host, self._host.machine
        value = machine.cpu.rflags & ~(fl.IF | fl.IOPL | fl.NT | fl.RF | fl.VM)
        value |= host.interrupt_flag() | host.load_variable("V_iopl") | host.load_variable("P_nt")
        self._push(value, size)
        machine.cpu.state.rip = insn.next_ip32
        return True

    def _pop_flags(self, insn: iced_x86.Instruction, size: int) -> bool:
        host, machine = self._host, self._host.machine
        state = machine.cpu.state
        linear = (state.segments[fl.SS].base + state.gpr[fl.RSP]) & _WORD
        value = int.from_bytes(self._host.read_linear(linear, size), "little")
        state.gpr[fl.RSP] = (state.gpr[fl.RSP] + size) & _WORD
        mask = _LOADABLE & ((1 << size * 8) - 1)
        machine.cpu.rflags = machine.cpu.rflags & ~mask | value & mask
        host.store_variable("V_iopl", value & fl.IOPL)
        host.store_variable("P_nt", value & fl.NT)
        state.rip = insn.next_ip32
        host.set_interrupt_flag(value & fl.IF)
        return True
