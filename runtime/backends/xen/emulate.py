"""Instructions that Xen carries out for a paravirtual kernel when they fault as pv/emul-priv-op.c
and pv/ro-page-fault.c of xen/arch/x86 do: privileged ones, and writes to read-only page tables."""

from __future__ import annotations

from collections.abc import Callable

from iced_x86 import Instruction, Mnemonic, Register

from runtime.backends.xen.domain import Domain
from runtime.backends.xen.frames import XenError
from runtime.backends.xen.hypercalls import call
from runtime.backends.xen.hypercalls.cpu import get_debugreg, set_debugreg
from runtime.backends.xen.hypercalls.tables import canonical
from runtime.backends.xen.layout import PAGE_SIZE, numbers
from runtime.backends.xen.operands import Operands, decode_at
from runtime.cpu import flags as fl
from runtime.cpu.linear import LinearMemory
from runtime.cpu.vcpu import VCpu

__all__ = ["FORCED_EMULATION", "MSR_HYPERCALL_PAGE", "Emulator"]

FORCED_EMULATION = b"\x0f\x0bxen"
"""Prefix by which a guest asks for the emulated CPUID: UD2 and the letters of Xen."""
MSR_HYPERCALL_PAGE = 0x40000000
MSR_FS_BASE, MSR_GS_BASE, MSR_KERNEL_GS_BASE, MSR_EFER = 0xC0000100, 0xC0000101, 0xC0000102, 0xC0000080
MSR_APIC_BASE, MSR_MISC_ENABLE, MSR_PAT = 0x1B, 0x1A0, 0x277
READABLE = {MSR_EFER: 0xD01, MSR_APIC_BASE: 0xFEE00800, MSR_MISC_ENABLE: 1, MSR_PAT: 0x0000050100070406}
"""MSRs with a fixed value for the guest; EFER has SCE, LME, LMA and NXE."""
CR0_TS = 8
ARCHITECTURAL_IOPL = 1 << 4


class Emulator:
    """Carries out what a guest kernel may do only with Xen's help, counting each by mnemonic."""

    def __init__(self, domain: Domain, cpu: VCpu) -> None:
        self.domain = domain
        self.cpu = cpu
        self.linear = LinearMemory(cpu)
        self.counts: dict[str, int] = {}
        self.write_hypercall_page: Callable[[int], None] = lambda _address: None

    # -- privileged instructions ---------------------------------------------------------------

    def privileged(self) -> bool:
        """#GP(0) in the guest's kernel: True if the instruction was one that Xen emulates."""
        instruction = decode_at(self.cpu, self.linear)
        if instruction is None:
            return False
        work = _PRIVILEGED.get(instruction.mnemonic)
        if work is None or not work(self, instruction):
            return False
        name = MNEMONICS[instruction.mnemonic]
        self.counts[name] = self.counts.get(name, 0) + 1
        Operands(self.cpu, instruction).skip()
        return True

    def _iopl_ok(self) -> bool:
        level = 0 if self.domain.vm_assist & ARCHITECTURAL_IOPL else 1
        return level <= self.domain.iopl

    def _flag(self, _instruction: Instruction) -> bool:
        """CLI and STI: allowed by IOPL they are skipped; the event mask does not change."""
        return self._iopl_ok()

    def _port_in(self, instruction: Instruction) -> bool:
        """IN from a port that the domain does not own reads as all ones."""
        if not self._iopl_ok():
            return False
        operands = Operands(self.cpu, instruction)
        register = instruction.op0_register
        operands.set_register(register, (1 << 8 * _ACCUMULATOR_BYTES[register]) - 1)
        return True

    def _port_out(self, _instruction: Instruction) -> bool:
        return self._iopl_ok()

    def _nothing(self, _instruction: Instruction) -> bool:
        """WBINVD of a domain without devices."""
        return True

    def _clts(self, _instruction: Instruction) -> bool:
        self.domain.cpu.set_task_switched(False)
        return True

    def _move(self, instruction: Instruction) -> bool:
        operands = Operands(self.cpu, instruction)
        for index, read in ((1, True), (0, False)):
            register = instruction.op_register(index)
            general = instruction.op_register(1 - index)
            if Register.CR0 <= register <= Register.CR15:
                return self._control(operands, operands.number(register), general, read)
            if Register.DR0 <= register <= Register.DR15:
                return self._debug(operands, operands.number(register), general, read)
        return False

    def _control(self, operands: Operands, number: int, general: int, read: bool) -> bool:
        domain, state = self.domain, self.cpu.state
        if read:
            if number not in (0, 2, 3, 4):
                return False
            value = {
                0: domain.virtual_cr0 & ~CR0_TS | (CR0_TS if state.cr[0] & CR0_TS else 0),
                2: self._guest_cr2(),
                3: domain.kernel_root << 12 if domain.width == 64 else self._cr3_32(domain.kernel_root),
                4: domain.virtual_cr4,
            }[number]
            operands.set_register(general, value)
            return True
        value = operands.register(general)
        if number == 0:
            if (value ^ domain.virtual_cr0) & ~CR0_TS & 0xFFFFFFFF:
                return False
            domain.cpu.set_task_switched(bool(value & CR0_TS))
            return True
        if number == 2:
            domain.set_cr2(value)
            return True
        if number == 3:
            return self._set_root(value)
        return number == 4

    def _cr3_32(self, mfn: int) -> int:
        return (mfn << 12 | mfn >> 20) & 0xFFFFFFFF

    def _guest_cr2(self) -> int:
        size = self.domain.width // 8
        at = self.domain.vcpu_info + (0x10 if self.domain.width == 64 else 8)
        return int.from_bytes(self.domain.memory.load(at, size), "little")

    def _set_root(self, value: int) -> bool:
        domain = self.domain
        mfn = value >> 12 if domain.width == 64 else (value >> 12 | value << 20) & 0xFFFFFFFF
        if mfn == domain.kernel_root:
            domain.cpu.flush()
            return True
        try:
            domain.tables.get_root(mfn)
        except XenError:
            return False
        old, domain.kernel_root = domain.kernel_root, mfn
        domain.cpu.set_page_table(mfn * PAGE_SIZE)
        domain.tables.put_type(old)
        return True

    def _debug(self, operands: Operands, number: int, general: int, read: bool) -> bool:
        try:
            if read:
                operands.set_register(general, get_debugreg(self.domain, (number,)))
            else:
                set_debugreg(self.domain, (number, operands.register(general)))
        except XenError:
            return False
        return True

    def _set_edx_eax(self, value: int) -> None:
        self.cpu.state.gpr[fl.RAX] = value & 0xFFFFFFFF
        self.cpu.state.gpr[fl.RDX] = value >> 32 & 0xFFFFFFFF

    def _read_msr(self, _instruction: Instruction) -> bool:
        index = int(self.cpu.state.gpr[fl.RCX]) & 0xFFFFFFFF
        bases = {
            MSR_FS_BASE: self.cpu.state.segments[fl.FS].base,
            MSR_GS_BASE: self.cpu.state.segments[fl.GS].base,
            MSR_KERNEL_GS_BASE: self.domain.gs_user,
        }
        if self.domain.width == 64 and index in bases:
            self._set_edx_eax(int(bases[index]))
            return True
        if index not in READABLE:
            return False
        self._set_edx_eax(READABLE[index])
        return True

    def _write_msr(self, _instruction: Instruction) -> bool:
        gpr = self.cpu.state.gpr
        index = int(gpr[fl.RCX]) & 0xFFFFFFFF
        value = int(gpr[fl.RAX]) & 0xFFFFFFFF | (int(gpr[fl.RDX]) & 0xFFFFFFFF) << 32
        segment = {MSR_FS_BASE: 0, MSR_GS_BASE: 2, MSR_KERNEL_GS_BASE: 1}.get(index)
        if self.domain.width == 64 and segment is not None:
            return (
                canonical(value)
                and call(self.domain, numbers("hypercall")["set_segment_base"], (segment, value)) == 0
            )
        if index == MSR_HYPERCALL_PAGE:
            self.write_hypercall_page(value)
            return True
        return index in READABLE


MNEMONICS = {
    value: name.lower()
    for name, value in vars(Mnemonic).items()
    if isinstance(value, int) and not name.startswith("_")
}
_ACCUMULATOR_BYTES = {Register.AL: 1, Register.AX: 2, Register.EAX: 4}


_PRIVILEGED: dict[int, Callable[[Emulator, Instruction], bool]] = {
    Mnemonic.CLI: Emulator._flag,
    Mnemonic.STI: Emulator._flag,
    Mnemonic.IN: Emulator._port_in,
    Mnemonic.OUT: Emulator._port_out,
    Mnemonic.WBINVD: Emulator._nothing,
    Mnemonic.CLTS: Emulator._clts,
    Mnemonic.MOV: Emulator._move,
    Mnemonic.RDMSR: Emulator._read_msr,
    Mnemonic.WRMSR: Emulator._write_msr,
}
