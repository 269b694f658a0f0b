"""CPUID, MSRs, control and debug registers, and what goes with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.cpu import flags as fl
from runtime.cpu.cpuid import CpuidAnswer, answer

if TYPE_CHECKING:
    from runtime.backends.vmi.calls import Handler
    from runtime.backends.vmi.model import VmiModel

__all__ = ["cpu_handlers", "offered"]

_TSC, _SYSENTER_CS, _SYSENTER_ESP, _SYSENTER_EIP, _PAT = 0x10, 0x174, 0x175, 0x176, 0x277
_PAT_RESET = 0x0007_0406_0007_0406
_DR6, _DR7 = 6, 7
_DR6_FIXED, _DR6_BITS = 0xFFFF0FF0, 0xE00F
_DR7_FIXED, _DR7_BITS = 0x400, 0xFFFF27FF
_TICKS_PER_NS = 2
_MASK64 = (1 << 64) - 1
_NO_FEATURES_ECX = 1 << 26 | 1 << 27
"""XSAVE, OSXSAVE: there is no call for XSETBV."""
_NO_STRUCTURED_EBX = 1 << 0 | 1 << 7
"""FSGSBASE, SMEP: SetCR4 has no effect on them."""
_NO_EXTENDED_EDX = 1 << 11 | 1 << 20 | 1 << 29
"""SYSCALL, NX, long mode: there is no EFER."""
_XSAVE_LEAF = 0xD


def offered(leaf: int, subleaf: int, bare: CpuidAnswer) -> CpuidAnswer:
    """CPUID, from what the bare machine would give: nothing that the calls do not carry out."""
    eax, ebx, ecx, edx = bare
    if leaf == 1:
        ecx &= ~_NO_FEATURES_ECX
    elif leaf == 7 and subleaf == 0:
        ebx &= ~_NO_STRUCTURED_EBX
    elif leaf == 0x80000001:
        edx &= ~_NO_EXTENDED_EDX
    elif leaf == _XSAVE_LEAF:
        return 0, 0, 0, 0
    return eax, ebx, ecx, edx


class _Cpu:
    def __init__(self, model: VmiModel) -> None:
        self._model = model
        self._pat = _PAT_RESET
        self._debug = [0, 0, 0, 0, 0, 0, _DR6_FIXED, _DR7_FIXED]

    def cpuid(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        """As the instruction."""
        return offered(leaf, subleaf, answer(leaf, subleaf, self._model.machine.cpu.state.cr[4]))

    def wrmsr(self, low: int, high: int, index: int) -> None:
        """SYSENTER's registers and PAT are kept, the others are not the guest's."""
        state = self._model.machine.cpu.state
        if index == _SYSENTER_CS:
            state.sysenter_cs = low
        elif index == _SYSENTER_ESP:
            state.sysenter_esp = low
        elif index == _SYSENTER_EIP:
            state.sysenter_eip = low
        elif index == _PAT:
            self._pat = high << 32 | low

    def rdmsr(self, index: int) -> tuple[int, int]:
        """What WRMSR keeps and the TSC; 0 for all else."""
        machine = self._model.machine
        state = machine.cpu.state
        value = {
            _TSC: machine.clock.now_ns * _TICKS_PER_NS & _MASK64,
            _SYSENTER_CS: state.sysenter_cs,
            _SYSENTER_ESP: state.sysenter_esp,
            _SYSENTER_EIP: state.sysenter_eip,
            _PAT: self._pat,
        }.get(index, 0)
        return value & 0xFFFFFFFF, value >> 32

    def set_cr2(self, value: int) -> None:
        """SetCR2."""
        self._model.write_shared("cr2", value)

    def set_dr(self, number: int, value: int) -> None:
        """SetDR: 4 and 5 are 6 and 7; other numbers do not exist. Breakpoints do not fire."""
        if number > _DR7:
            return
        if number in (4, 5):
            number += 2
        if number == _DR6:
            value = value & _DR6_BITS | _DR6_FIXED
        elif number == _DR7:
            value = value & _DR7_BITS | _DR7_FIXED
        self._debug[number] = value

    def get_dr(self, number: int) -> int:
        """GetDR; 0 for a register that does not exist."""
        if number > _DR7:
            return 0
        return self._debug[number + 2 if number in (4, 5) else number]

    def clts(self) -> None:
        """CLTS."""
        self._model.set_cr0(self._model.read_shared("cr0") & ~fl.CR0_TS)

    def set_ap_state(self, pointer: int, apic_id: int) -> None:
        """SetInitialAPState: there is no other processor; the structure must be there all the same."""
        self._model.view.read(pointer, self._model.known.ap_state["size"][0])

    def set_iopl(self, mask: int) -> None:
        """SetIOPLMask: who may use ports; the IOPL bits of the mask."""
        self._model.iopl = mask & fl.IOPL


def cpu_handlers(model: VmiModel) -> dict[str, Handler]:
    """Call name -> handler."""
    cpu = _Cpu(model)
    return {
        "CPUID": cpu.cpuid,
        "WRMSR": cpu.wrmsr,
        "RDMSR": cpu.rdmsr,
        "RDPMC": lambda counter: (0, 0),
        "SetCR0": model.set_cr0,
        "SetCR2": cpu.set_cr2,
        "SetCR3": model.set_cr3,
        "SetCR4": model.set_cr4,
        "SetDR": cpu.set_dr,
        "GetDR": cpu.get_dr,
        "CLTS": cpu.clts,
        "SetIOPLMask": cpu.set_iopl,
        "SetInitialAPState": cpu.set_ap_state,
    }
