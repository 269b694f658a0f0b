"""What Xen carries out beyond the usual for a translated domain that was given a PC's ports.

CR0, CR3 and CR4 are the guest's own, since Xen walks its tables in the format that they select; ports go
to the devices (a domain with I/O port access, as a driver domain has it), string I/O included.
"""

from __future__ import annotations

from collections.abc import Callable

from iced_x86 import Code, Instruction

from runtime.backends.xen.domain import Domain
from runtime.backends.xen.emulate import Emulator, Ports
from runtime.backends.xen.frames import XenError
from runtime.cpu import flags as fl
from runtime.cpu.vcpu import VCpu
from runtime.deprivileged.operands import Operands
from runtime.deprivileged.shadow import ShadowMmu

__all__ = ["TranslatedEmulator"]

GUEST_CR0 = 0x2 | 0x4 | fl.CR0_TS | 0x20
"""MP, EM, TS, NE: what takes effect on the real CPU."""
GUEST_CR4 = 0x200 | 0x400
"""OSFXSR, OSXMMEXCPT."""
CR4_PAE = 1 << 5
STRING_BATCH = 4096
"""Elements of one string instruction done in one exit; the guest comes back for the rest."""
INS = {Code.INSB_M8_DX: 1, Code.INSW_M16_DX: 2, Code.INSD_M32_DX: 4}
OUTS = {Code.OUTSB_DX_M8: 1, Code.OUTSW_DX_M16: 2, Code.OUTSD_DX_M32: 4}
WORD = 0xFFFFFFFF


class TranslatedEmulator(Emulator):
    """The emulator of one translated pv32 domain."""

    def __init__(self, domain: Domain, cpu: VCpu, ports: Ports, shadow: ShadowMmu) -> None:
        super().__init__(domain, cpu, ports, lambda _mfn: False)
        self._shadow = shadow
        self.page_fault: Callable[[int, int], None] = lambda _address, _code: None
        """Gives the guest a page fault of string I/O."""

    def privileged(self, in_kernel: bool) -> bool:
        """String I/O first; the rest as for any domain."""
        instruction = self.decode()
        if instruction is None or (instruction.code not in INS and instruction.code not in OUTS):
            return super().privileged(in_kernel)
        if not self._iopl_ok(in_kernel):
            return False
        self.counts["string io"] = self.counts.get("string io", 0) + 1
        if self._string(instruction):
            Operands(self.cpu, instruction).skip()
        return True

    # -- ports ---------------------------------------------------------------------------------

    def _reaches(self, port: int) -> bool:
        """All of them are the domain's."""
        return True

    def _string(self, instruction: Instruction) -> bool:
        """INS or OUTS; True when finished, False when the guest executes it again."""
        state = self.cpu.state
        gpr = state.gpr
        reading = instruction.code in INS
        size = INS[instruction.code] if reading else OUTS[instruction.code]
        repeats = instruction.has_rep_prefix or instruction.has_repne_prefix
        count = int(gpr[fl.RCX]) & WORD if repeats else 1
        step = -size if self.cpu.rflags & fl.DF else size
        index = fl.RDI if reading else fl.RSI
        segment = state.segments[fl.ES if reading else Operands.segment_index(instruction)]
        port = int(gpr[fl.RDX]) & 0xFFFF
        todo = min(count, STRING_BATCH)
        for _ in range(todo):
            linear = (int(segment.base) + int(gpr[index])) & WORD
            try:
                self._element(linear, port, size, reading)
            except XenError:
                self.page_fault(linear, 2 if reading else 0)
                return False
            gpr[index] = (int(gpr[index]) + step) & WORD
            if repeats:
                gpr[fl.RCX] = (int(gpr[fl.RCX]) - 1) & WORD
        return todo == count

    def _element(self, linear: int, port: int, size: int, reading: bool) -> None:
        """One element; the memory side is tried first, so that a fault loses no device data."""
        space = self.domain.space
        data = space.read(linear, size)
        if reading:
            space.write(linear, data)
            space.write(linear, self.ports.port_in(port, size).to_bytes(size, "little"))
        else:
            self.ports.port_out(port, size, int.from_bytes(data, "little"))

    # -- control registers -----------------------------------------------------------------------

    def _write_control(self, number: int, value: int) -> bool:
        domain, state = self.domain, self.cpu.state
        if number == 0:
            domain.virtual_cr0 = value
            self.cpu.write_control(0, int(state.cr[0]) & ~GUEST_CR0 | value & GUEST_CR0)
            self._set_format()
        elif number == 3:
            self._shadow.set_root(value)
        elif number == 4:
            domain.virtual_cr4 = value
            self.cpu.write_control(4, int(state.cr[4]) & ~GUEST_CR4 | value & GUEST_CR4)
            self._shadow.flush()
            self._set_format()
        else:
            return super()._write_control(number, value)
        return True

    def _set_format(self) -> None:
        domain = self.domain
        self._shadow.set_format(
            pae=bool(domain.virtual_cr4 & CR4_PAE), write_protect=bool(domain.virtual_cr0 & fl.CR0_WP)
        )
