"""What a machine does for its CPU: instructions that the emulator runs otherwise than a CPU of the PC does.

The watcher brings each here before it runs: the local APIC's MSRs and CR8, MOV to CR4 and to debug
registers, INT1, and ports that user code may not reach. All but the ports only where the guest's kernel has
privilege 0: a deprivileging hypervisor sees the others by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import iced_x86

from runtime.cpu import flags as fl
from runtime.cpu.apic_instructions import APIC_MNEMONICS, ApicInstruction, apic_instruction
from runtime.cpu.control_registers import CONTROL_MNEMONICS, refuses_cr4
from runtime.cpu.delivery import Event
from runtime.cpu.ports import PORT_MNEMONICS
from runtime.cpu.watch import Site

if TYPE_CHECKING:
    from runtime.machine import Machine

__all__ = ["INTERCEPT_COST_NS", "Intercepts"]

INTERCEPT_COST_NS = 1000
"""Virtual time of an instruction that is answered here."""
_ICEBP, _DEBUG = "int1", "mov dr"


class Intercepts:
    """The interceptions of one machine."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        privileged = 0 in machine.capabilities.privilege.values()
        apic = APIC_MNEMONICS if machine.platform.local_apic is not None else frozenset()
        self.mnemonics = apic | (CONTROL_MNEMONICS | {_ICEBP, _DEBUG} if privileged else frozenset())
        self.outer = PORT_MNEMONICS
        """Those that matter above privilege level 0 only: the emulator ignores IOPL."""

    def reached(self, site: Site) -> bool:
        """One of them is about to run; True if it is done."""
        if site.mnemonic in APIC_MNEMONICS:
            return self._apic(site)
        machine = self._machine
        if site.mnemonic in CONTROL_MNEMONICS:
            return not machine.cpu.cpl and refuses_cr4(machine.cpu, site) and self._fault()
        if site.mnemonic == _ICEBP:
            return self._icebp(site)
        if site.mnemonic == _DEBUG:
            return self._debug_register(site)
        return not machine.hypervisor.port_allowed(site) and self._fault()

    def _fault(self) -> bool:
        self._machine.exception(fl.GP, 0, False)
        return True

    def _debug_register(self, site: Site) -> bool:
        """MOV to DR0 to DR3 or DR7: the CPU does it; data breakpoints are looked after here."""
        machine, instruction = self._machine, site.decode()
        if not machine.cpu.cpl:
            number = instruction.op0_register - iced_x86.Register.DR0
            value = machine.cpu.state.gpr[iced_x86.RegisterExt.number(instruction.op1_register)]
            machine.watchpoints.written(number, int(value))
        return False

    def _icebp(self, site: Site) -> bool:
        """INT1: a trap by vector 1 for which no gate's privilege is checked (SDM vol. 2, INT1)."""
        machine = self._machine
        machine.cpu.state.rip += len(site.code)
        machine.stats.exceptions[fl.DB] += 1
        machine.deliver(Event(fl.DB))
        return True

    def _apic(self, site: Site) -> bool:
        """One by which the CPU may reach its local APIC."""
        machine = self._machine
        apic = machine.platform.local_apic
        outcome = ApicInstruction.OTHER if apic is None else apic_instruction(machine.cpu, apic, site)
        if outcome is ApicInstruction.OTHER:
            return False
        machine.clock.spend_ns(INTERCEPT_COST_NS)
        machine.stats.exits["apic"] += 1
        return outcome is ApicInstruction.DONE or self._fault()
