"""Sites of a patched image that no tactic could take: carried out through the ABI's own slots.

Such a site keeps its instruction. In the guest's kernel it faults (privileged) or is watched
(silently sensitive); either way it arrives here, is counted as missed, and does what the patched
form would have done: a call of the slot with the registers as they are, or, for the flags, the same
on the variables that the slots use. Forms whose operands would need moving are not carried out: the
guest gets the fault.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from iced_x86 import Code, Instruction, Mnemonic, OpKind, Register

from pvpatch.abi.spec import Call, load_spec
from runtime.backends.xen.frames import XenError
from runtime.backends.xen.native.resident import place_of
from runtime.backends.xen.selectors import FLAT
from runtime.cpu import flags as fl
from runtime.cpu.segments import Descriptor, load_cache
from runtime.deprivileged.missed import nearest_slot, plain_call
from runtime.deprivileged.operands import SEGMENTS, Operands

if TYPE_CHECKING:
    from runtime.backends.xen.native.model import TranslatedDomain

__all__ = ["MissedSites", "uses_selector"]

_LOADABLE = fl.ARITHMETIC | fl.DF | fl.TF | fl.NT | fl.AC | 1 << 21
_PUSHES = {Code.PUSHFW: 2, Code.PUSHFD: 4, Code.PUSHFQ: 8}
_POPS = {Code.POPFW: 2, Code.POPFD: 4, Code.POPFQ: 8}

_FAR_POINTERS = {
    Code.JMP_M1632: ("far_jump", 4), Code.JMP_M1664: ("far_jump", 8),
    Code.CALL_M1632: ("far_call", 4), Code.CALL_M1664: ("far_call", 8),
}  # fmt: skip
"""Far transfers through memory: the call that does it, and the size of the pointer's offset."""
_FAR_IMMEDIATES = {Code.JMP_PTR1632: "far_jump", Code.CALL_PTR1632: "far_call"}


_LOADED = frozenset(SEGMENTS) - {Register.CS}
_LOADS = (Mnemonic.MOV, Mnemonic.POP)


def uses_selector(instruction: Instruction) -> bool:
    """Far transfers and segment loads fault for selectors that only the guest's own tables have."""
    if instruction.mnemonic in _LOADS and instruction.op0_kind == OpKind.REGISTER:
        return instruction.op0_register in _LOADED
    return (
        instruction.mnemonic in (Mnemonic.RETF, Mnemonic.IRETD, Mnemonic.IRETQ)
        or instruction.code in _FAR_POINTERS
        or instruction.is_jmp_far
        or instruction.is_call_far
    )


class MissedSites:
    """Carries out missed instructions of one domain's kernel."""

    def __init__(self, model: TranslatedDomain) -> None:
        self._model = model

    def carry_out(self, instruction: Instruction) -> bool:
        """Do what `instruction` (at RIP) asks; False if that is not possible here."""
        try:
            if instruction.code in _PUSHES:
                return self._push_flags(instruction, _PUSHES[instruction.code])
            if instruction.code in _POPS:
                return self._pop_flags(instruction, _POPS[instruction.code])
            if instruction.mnemonic in _LOADS and instruction.op0_register in _LOADED:
                return self._load_selector(instruction)
            if instruction.mnemonic == Mnemonic.MOV:
                return self._show_selector(instruction)
            if instruction.code in _FAR_POINTERS:
                return self._far_pointer(instruction, *_FAR_POINTERS[instruction.code])
            if instruction.code in _FAR_IMMEDIATES:
                target = instruction.far_branch_selector, instruction.far_branch32
                return self._far(instruction, _FAR_IMMEDIATES[instruction.code], *target)
            if instruction.code == Code.RETFQ_IMM16:
                self._move_return(instruction.immediate16)
            elif instruction.op_count:
                return False
            return self._enter_slot(instruction)
        except XenError:
            return False

    def _enter_slot(self, instruction: Instruction) -> bool:
        call = plain_call(instruction, self._model.machine.cpu.code_width)
        return call is not None and self._enter(call, instruction)

    def _enter(self, call: Call, instruction: Instruction) -> bool:
        """Go on in the slot of `call`, as from a call behind `instruction`."""
        machine = self._model.machine
        slot = nearest_slot(machine, call)
        if slot is None:
            return False
        if call.kind == "call":
            self._push(instruction.next_ip, machine.cpu.code_width // 8)
        machine.cpu.state.rip = slot
        return True

    def _push(self, value: int, size: int) -> None:
        state = self._model.machine.cpu.state
        pointer = int(state.gpr[fl.RSP]) - size
        self._model.domain.space.write(pointer, (value & (1 << 8 * size) - 1).to_bytes(size, "little"))
        state.gpr[fl.RSP] = pointer

    def _move_return(self, skipped: int) -> None:
        """RETF n: the far address goes up over the bytes that are dropped."""
        space, state = self._model.domain.space, self._model.machine.cpu.state
        pointer = int(state.gpr[fl.RSP])
        space.write(pointer + skipped, space.read(pointer, 16))
        state.gpr[fl.RSP] = pointer + skipped

    def _far_pointer(self, instruction: Instruction, name: str, size: int) -> bool:
        """JMP and CALL through a far pointer in memory: its parts go to the stack, as the calls want them."""
        model = self._model
        address = Operands(model.machine.cpu, instruction).offset()
        offset, selector = model.domain.space.word(address, size), model.domain.space.word(address + size, 2)
        return self._far(instruction, name, selector, offset)

    def _far(self, instruction: Instruction, name: str, selector: int, offset: int) -> bool:
        for item in (selector, offset):
            self._push(item, self._model.machine.cpu.code_width // 8)
        return self._enter(next(call for call in load_spec().calls if call.name == name), instruction)

    def _load_selector(self, instruction: Instruction) -> bool:
        """MOV or POP to a segment register: a data segment of the kernel's becomes Xen's flat one."""
        model = self._model
        cpu, state, space = model.machine.cpu, model.machine.cpu.state, model.domain.space
        index, size = SEGMENTS[instruction.op0_register], cpu.code_width // 8
        if instruction.mnemonic == Mnemonic.POP:
            selector = space.word(int(state.gpr[fl.RSP]), 2)
        elif instruction.op1_kind == OpKind.REGISTER:
            selector = Operands(cpu, instruction).register(instruction.op1_register) & 0xFFFF
        else:
            return False
        base = model.machine.memory.size
        table = model.guest.load_u64(base + place_of("V_gdt_base"))
        limit = model.guest.load_u32(base + place_of("V_gdt_limit"))
        if selector < 4 or selector & 4 or selector | 7 > limit:
            return False
        low, high = space.word(table + (selector & ~7), 4), space.word(table + (selector & ~7) + 4, 4)
        descriptor = Descriptor(low, high)
        if not descriptor.is_writable_data or not descriptor.present or selector & 3 > descriptor.dpl:
            return False
        model.guest.store_u32(base + place_of("V_segments") + 4 * index, selector)
        start = descriptor.base if index in (fl.FS, fl.GS) else 0
        load_cache(cpu, index, FLAT[64]["kernel_ss"], start, 0xFFFFFFFF, 0x00C0F300)
        if index == fl.GS:
            model.guest.store_u64(base + place_of("P_gs"), start)
        state.gpr[fl.RSP] += size if instruction.mnemonic == Mnemonic.POP else 0
        state.rip = instruction.next_ip
        return True

    def _show_selector(self, instruction: Instruction) -> bool:
        """MOV from CS or SS to a register: the virtual selector."""
        index = {Register.CS: fl.CS, Register.SS: fl.SS}.get(instruction.op1_register)
        if index is None or instruction.op0_kind != OpKind.REGISTER:
            return False
        model = self._model
        operands = Operands(model.machine.cpu, instruction)
        selector = model.guest.load_u32(model.machine.memory.size + place_of("V_segments") + 4 * index)
        operands.set_register(instruction.op0_register, selector)
        model.machine.cpu.state.rip = instruction.next_ip
        return True

    def _iopl(self) -> int:
        return self._model.machine.memory.size + place_of("V_iopl")

    def _push_flags(self, instruction: Instruction, size: int) -> bool:
        model = self._model
        value = model.machine.cpu.rflags & ~(fl.IF | fl.IOPL | fl.RF | fl.VM)
        value |= 0 if model.domain.upcall_mask else fl.IF
        self._push(value | model.guest.load_u32(self._iopl()), size)
        model.machine.cpu.state.rip = instruction.next_ip
        return True

    def _pop_flags(self, instruction: Instruction, size: int) -> bool:
        model = self._model
        cpu, state = model.machine.cpu, model.machine.cpu.state
        value = model.domain.space.word(int(state.gpr[fl.RSP]), size)
        state.gpr[fl.RSP] += size
        mask = _LOADABLE & ((1 << size * 8) - 1)
        cpu.rflags = cpu.rflags & ~mask | value & mask
        model.guest.store_u32(self._iopl(), value & fl.IOPL)
        model.domain.upcall_mask = not value & fl.IF
        state.rip = instruction.next_ip
        cpu.set_waiting(model.interrupt_waiting())
        return True
