"""What Xen carries out beyond the usual for a translated domain that was given a PC's ports.

CR0, CR3 and CR4 are the guest's own, since Xen walks its tables in the format that they select; ports go
to the devices (a domain with I/O port access, as a driver domain has it), string I/O included.
"""

from __future__ import annotations

from collections.abc import Callable

from runtime.backends.xen.domain import Domain
from runtime.backends.xen.emulate import Emulator, Ports
from runtime.cpu import flags as fl
from runtime.cpu.vcpu import VCpu
from runtime.deprivileged.instructions import PortInstructions
from runtime.deprivileged.shadow import ShadowMmu
from runtime.memory import PageFault

__all__ = ["TranslatedEmulator"]

GUEST_CR0 = 0x2 | 0x4 | fl.CR0_TS | 0x20
"""MP, EM, TS, NE: what takes effect on the real CPU."""
GUEST_CR4 = 0x200 | 0x400
"""OSFXSR, OSXMMEXCPT."""
CR4_PAE = 1 << 5


class TranslatedEmulator(Emulator):
    """The emulator of one translated pv32 domain."""

    def __init__(
        self, domain: Domain, cpu: VCpu, ports: Ports, shadow: ShadowMmu, string_ports: PortInstructions
    ) -> None:
        super().__init__(domain, cpu, ports, lambda _mfn: False)
        self._shadow = shadow
        self._string_ports = string_ports
        self.page_fault: Callable[[int, int], None] = lambda _address, _code: None
        """Gives the guest a page fault of string I/O."""

    def privileged(self, in_kernel: bool) -> bool:
        """String I/O first; the rest as for any domain."""
        instruction = self.decode()
        if instruction is None or not instruction.is_string_instruction:
            return super().privileged(in_kernel)
        if not self._iopl_ok(in_kernel):
            return False
        try:
            done = self._string_ports.emulate(instruction)
        except PageFault as fault:
            self.page_fault(fault.linear, fault.error_code)
            done = True
        self.counts["string io"] = self.counts.get("string io", 0) + done
        return done

    # -- ports ---------------------------------------------------------------------------------

    def _reaches(self, port: int) -> bool:
        """All of them are the domain's."""
        return True

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
