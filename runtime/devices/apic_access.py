"""What the CPU's own instructions reach of its local APIC: its MSRs, and CR8.

The MSRs are IA32_APIC_BASE, IA32_TSC_DEADLINE and, in x2APIC mode, the APIC's registers.

Source: Intel SDM vol. 3, chapter "Advanced Programmable Interrupt Controller", section on x2APIC state
transitions; vol. 4 for the register numbers.
"""

from __future__ import annotations

from runtime.devices.lapic import LAPIC_BASE, LocalApic

__all__ = ["ApicAccess"]

_APIC_BASE, _TSC_DEADLINE, _X2APIC = 0x1B, 0x6E0, 0x800
_X2APIC_END = _X2APIC + 0x100
_BOOT_CPU, _EXTENDED, _ENABLE = 1 << 8, 1 << 10, 1 << 11


class ApicAccess:
    """RDMSR, WRMSR and MOV to and from CR8 as far as they concern one local APIC."""

    def __init__(self, apic: LocalApic, *, is_boot_cpu: bool) -> None:
        self._apic = apic
        self._boot_cpu = _BOOT_CPU if is_boot_cpu else 0

    @property
    def is_enabled(self) -> bool:
        """What CPUID says: whether IA32_APIC_BASE has the APIC enabled."""
        return self._apic.enabled

    @property
    def cr8(self) -> int:
        """The upper half of the task priority."""
        return self._apic.tpr >> 4

    @cr8.setter
    def cr8(self, value: int) -> None:
        self._apic.set_tpr(value << 4)

    def owns(self, index: int) -> bool:
        """True for the registers that are answered here."""
        return index in (_APIC_BASE, _TSC_DEADLINE) or _X2APIC <= index < _X2APIC_END

    def read(self, index: int) -> int | None:
        """The register's value; None is #GP."""
        if index == _APIC_BASE:
            mode = (_ENABLE if self._apic.enabled else 0) | (_EXTENDED if self._apic.x2apic else 0)
            return LAPIC_BASE | mode | self._boot_cpu
        if index == _TSC_DEADLINE:
            return self._apic.timer.deadline
        return self._apic.read_register(index - _X2APIC) if self._apic.x2apic else None

    def write(self, index: int, value: int) -> bool:
        """Write the register; False is #GP."""
        if index == _APIC_BASE:
            return self._write_base(value)
        if index == _TSC_DEADLINE:
            self._apic.timer.write_deadline(value)
            return True
        return self._apic.x2apic and self._apic.write_register(index - _X2APIC, value)

    def _write_base(self, value: int) -> bool:
        """Change the mode; the address and the boot-processor bit stay as they are."""
        enable, extended = bool(value & _ENABLE), bool(value & _EXTENDED)
        apic = self._apic
        if value & 0x2FF or value >> 40 or (extended and not enable):
            return False
        if (extended and not apic.enabled) or (apic.x2apic and enable and not extended):
            return False
        if not enable:
            apic.reset()
            apic.enabled = apic.x2apic = False
        elif extended and not apic.x2apic:
            apic.enter_x2apic()
        apic.enabled = enable
        apic.set_tpr(apic.tpr)
        return True
