"""Privileged instructions that Xen carries out for a paravirtual guest when they fault
(xen/arch/x86/pv/emul-priv-op.c)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from iced_x86 import Instruction, Mnemonic, Register

from runtime.backends.xen.domain import Domain
from runtime.backends.xen.frames import XenError
from runtime.backends.xen.hypercalls import call
from runtime.backends.xen.hypercalls.cpu import get_debugreg, set_debugreg
from runtime.backends.xen.hypercalls.tables import canonical
from runtime.backends.xen.layout import PAGE_SIZE, interface, numbers
from runtime.cpu import flags as fl
from runtime.cpu.cpuid import XCR0_SUPPORTED
from runtime.cpu.linear import LinearMemory
from runtime.cpu.vcpu import VCpu
from runtime.deprivileged.operands import Operands, decode_at, mnemonic_name

__all__ = ["FORCED_EMULATION", "MSR_HYPERCALL_PAGE", "Emulator", "Ports"]

FORCED_EMULATION = b"\x0f\x0bxen"
"""Prefix by which a guest asks for the emulated CPUID: UD2 and the letters of Xen."""
MSR_HYPERCALL_PAGE = 0x40000000
MSR_TSC = 0x10
MSR_FS_BASE, MSR_GS_BASE, MSR_KERNEL_GS_BASE = 0xC0000100, 0xC0000101, 0xC0000102
SEGMENT_BASE_OF = {MSR_FS_BASE: 0, MSR_GS_BASE: 2, MSR_KERNEL_GS_BASE: 1}
MSR_VALUES = {
    int(index, 0): value if isinstance(value, list) else [value, value]
    for index, value in interface()["msr_value"].items()
}
"""By guest width: pv32, pv64."""
MSR_IGNORED = {int(index, 0): bits for index, bits in interface()["msr_ignored"].items()}
CR0_TS = 8
X87_STATE = 1
CR4_TSD = 1 << 2
CR4_CHANGEABLE = CR4_TSD | 1 << 3 | 1 << 18
"""TSD, DE and OSXSAVE (PV_CR4_GUEST_MASK without FSGSBASE, which CPUID does not offer); the rest is Xen's."""
ARCHITECTURAL_IOPL = 1 << 4
TIMER_PORTS = frozenset({0x42, 0x43, 0x61})
"""The ports of the 8254 and the speaker, by which kernels calibrate the TSC: Xen emulates them."""
SET_SEGMENT_BASE = numbers("hypercall")["set_segment_base"]


class Ports(Protocol):
    """The machine's port space, for the few ports that a domain reaches."""

    def port_in(self, port: int, size: int) -> int: ...
    def port_out(self, port: int, size: int, value: int) -> None: ...


class Emulator:
    """Carries out what a guest may do only with Xen's help, counting each by mnemonic."""

    def __init__(
        self, domain: Domain, cpu: VCpu, ports: Ports, write_hypercall_page: Callable[[int], bool]
    ) -> None:
        self.domain = domain
        self.cpu = cpu
        self.ports = ports
        self.write_hypercall_page = write_hypercall_page
        self.linear = LinearMemory(cpu)
        self.counts: dict[str, int] = {}

    def decode(self) -> Instruction | None:
        """The instruction that RIP is on."""
        return decode_at(self.cpu, self.linear)

    @staticmethod
    def name(instruction: Instruction) -> str:
        """The mnemonic in lower case."""
        return mnemonic_name(instruction)

    def privileged(self, in_kernel: bool) -> bool:
        """#GP(0): True if the instruction was one that Xen emulates; user mode gets only what IOPL gives."""
        instruction = self.decode()
        if instruction is None:
            return False
        mnemonic = instruction.mnemonic
        if mnemonic in _BY_IOPL:
            allowed, work = self._iopl_ok(in_kernel), _BY_IOPL[mnemonic]
        elif mnemonic in _KERNEL_ONLY:
            allowed, work = in_kernel, _KERNEL_ONLY[mnemonic]
        else:
            return False
        if not allowed or not work(self, instruction):
            return False
        name = mnemonic_name(instruction)
        self.counts[name] = self.counts.get(name, 0) + 1
        Operands(self.cpu, instruction).skip()
        return True

    def _iopl_ok(self, in_kernel: bool) -> bool:
        level = 3
        if in_kernel:
            level = 0 if self.domain.vm_assist & ARCHITECTURAL_IOPL else 1
        return level <= self.domain.iopl

    def _nothing(self, _instruction: Instruction) -> bool:
        """CLI and STI are skipped, since the event mask is elsewhere; WBINVD of a domain without devices."""
        return True

    # -- ports ---------------------------------------------------------------------------------

    def _port_of(self, operands: Operands, index: int) -> int:
        return operands.value(index) & 0xFFFF

    def _reaches(self, port: int) -> bool:
        """Does the domain reach this port?"""
        return port in TIMER_PORTS

    def _port_in(self, instruction: Instruction) -> bool:
        """IN from a port that the domain does not own reads as all ones."""
        operands = Operands(self.cpu, instruction)
        register = instruction.op0_register
        size = _ACCUMULATOR_BYTES[register]
        port = self._port_of(operands, 1)
        value = (1 << 8 * size) - 1
        if self._reaches(port):
            value = self.ports.port_in(port, size)
        operands.set_register(register, value)
        return True

    def _port_out(self, instruction: Instruction) -> bool:
        operands = Operands(self.cpu, instruction)
        register = instruction.op1_register
        port = self._port_of(operands, 0)
        if self._reaches(port):
            self.ports.port_out(port, _ACCUMULATOR_BYTES[register], operands.register(register))
        return True

    # -- control and debug registers -------------------------------------------------------------

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
        domain = self.domain
        if not read:
            return self._write_control(number, operands.register(general))
        if number not in (0, 2, 3, 4):
            return False
        wide = domain.width == 64
        task_switched = int(self.cpu.state.cr[0]) & CR0_TS
        value = {
            0: domain.virtual_cr0 & ~CR0_TS | task_switched,
            2: domain.cr2,
            3: domain.kernel_root << 12 if wide else _compat_cr3(domain.kernel_root),
            4: domain.virtual_cr4,
        }[number]
        operands.set_register(general, value)
        return True

    def _write_control(self, number: int, value: int) -> bool:
        domain = self.domain
        if number == 0:
            if (value ^ domain.virtual_cr0) & ~CR0_TS & 0xFFFFFFFF:
                return False
            domain.cpu.set_task_switched(bool(value & CR0_TS))
            return True
        if number == 2:
            domain.cr2 = value
            return True
        if number == 3:
            return self._set_root(value)
        if number == 4:
            domain.virtual_cr4 = domain.virtual_cr4 & ~CR4_CHANGEABLE | value & CR4_CHANGEABLE
            self.cpu.write_control(4, int(self.cpu.state.cr[4]) & ~CR4_TSD | value & CR4_TSD)
            return True
        return False

    def _set_root(self, value: int) -> bool:
        domain = self.domain
        mfn = value >> 12 if domain.width == 64 else (value >> 12 | value << 20) & 0xFFFFFFFF
        if mfn == domain.kernel_root:
            domain.cpu.flush()
            return True
        try:
            domain.tables.get_root(mfn)
        except XenError as error:
            domain.log(str(error))
            return False
        domain.drop_ldt()
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
        except XenError as error:
            self.domain.log(str(error))
            return False
        return True

    # -- model-specific registers ----------------------------------------------------------------

    def _read_msr(self, _instruction: Instruction) -> bool:
        state = self.cpu.state
        index = int(state.gpr[fl.RCX]) & 0xFFFFFFFF
        if index in SEGMENT_BASE_OF and self.domain.width == 64:
            value = {
                MSR_FS_BASE: int(state.segments[fl.FS].base),
                MSR_GS_BASE: int(state.segments[fl.GS].base),
                MSR_KERNEL_GS_BASE: self.domain.gs_user,
            }[index]
        elif index == MSR_TSC:
            value = self._ticks()
        elif index in MSR_VALUES:
            value = MSR_VALUES[index][self.domain.width == 64]
        else:
            return False
        state.gpr[fl.RAX], state.gpr[fl.RDX] = value & 0xFFFFFFFF, value >> 32 & 0xFFFFFFFF
        return True

    def _write_msr(self, _instruction: Instruction) -> bool:
        gpr = self.cpu.state.gpr
        index = int(gpr[fl.RCX]) & 0xFFFFFFFF
        value = int(gpr[fl.RAX]) & 0xFFFFFFFF | (int(gpr[fl.RDX]) & 0xFFFFFFFF) << 32
        if index in SEGMENT_BASE_OF and self.domain.width == 64:
            return canonical(value) and not call(
                self.domain, SET_SEGMENT_BASE, (SEGMENT_BASE_OF[index], value)
            )
        if index == MSR_HYPERCALL_PAGE:
            return not value & (PAGE_SIZE - 1) and self.write_hypercall_page(value // PAGE_SIZE)
        return index in MSR_IGNORED and not value & ~MSR_IGNORED[index]

    def _ticks(self) -> int:
        """The time-stamp counter."""
        timers = self.domain.timers
        return timers.now_ns * timers.tsc_hz // 1_000_000_000

    def _read_time_stamp(self, instruction: Instruction) -> bool:
        """RDTSC and RDTSCP of a kernel that keeps them from its user mode (CR4.TSD)."""
        state, value = self.cpu.state, self._ticks()
        state.gpr[fl.RAX], state.gpr[fl.RDX] = value & 0xFFFFFFFF, value >> 32 & 0xFFFFFFFF
        if instruction.mnemonic == Mnemonic.RDTSCP:
            state.gpr[fl.RCX] = state.tsc_aux & 0xFFFFFFFF
        return True

    def _set_extended_state(self, _instruction: Instruction) -> bool:
        """XSETBV (handle_xsetbv): XCR0 with x87 state and no component that CPUID leaf 0xD does not show."""
        gpr = self.cpu.state.gpr
        value = int(gpr[fl.RAX]) & 0xFFFFFFFF | (int(gpr[fl.RDX]) & 0xFFFFFFFF) << 32
        if int(gpr[fl.RCX]) & 0xFFFFFFFF or not value & X87_STATE or value & ~XCR0_SUPPORTED:
            return False
        self.cpu.state.xcr0 = value
        return True


def _compat_cr3(mfn: int) -> int:
    """CR3 of a pv32 guest: the upper bits of a frame number above 4 GiB wrap around to the lower."""
    return (mfn << 12 | mfn >> 20) & 0xFFFFFFFF


_ACCUMULATOR_BYTES = {Register.AL: 1, Register.AX: 2, Register.EAX: 4}
_BY_IOPL: dict[int, Callable[[Emulator, Instruction], bool]] = {
    Mnemonic.CLI: Emulator._nothing,
    Mnemonic.STI: Emulator._nothing,
    Mnemonic.IN: Emulator._port_in,
    Mnemonic.OUT: Emulator._port_out,
}
_KERNEL_ONLY: dict[int, Callable[[Emulator, Instruction], bool]] = {
    Mnemonic.WBINVD: Emulator._nothing,
    Mnemonic.CLTS: Emulator._clts,
    Mnemonic.MOV: Emulator._move,
    Mnemonic.RDMSR: Emulator._read_msr,
    Mnemonic.WRMSR: Emulator._write_msr,
    Mnemonic.XSETBV: Emulator._set_extended_state,
    Mnemonic.RDTSC: Emulator._read_time_stamp,
    Mnemonic.RDTSCP: Emulator._read_time_stamp,
}
