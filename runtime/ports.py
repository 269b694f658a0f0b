"""The small interfaces between the machine, its devices, its clock and its backends.

Everything here is a Protocol or a plain value: the devices are written against this
module only, and so is the machine; neither imports the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

__all__ = [
    "AlarmHandle",
    "Clock",
    "ConsoleSink",
    "LocalApicAccess",
    "MachineControl",
    "MemoryDevice",
    "PhysicalMemory",
    "Platform",
    "PortDevice",
]


class AlarmHandle(Protocol):
    """One scheduled callback; `cancel` through the clock that gave it."""

    @property
    def due_ns(self) -> int:
        """Virtual time in nanoseconds at which the callback runs."""


class Clock(Protocol):
    """Virtual time: a function of executed work, so that two runs agree to the nanosecond."""

    @property
    def now_ns(self) -> int:
        """Nanoseconds of virtual time since the machine started."""

    def schedule_at(self, due_ns: int, callback: Callable[[], None]) -> AlarmHandle:
        """Run `callback` once at virtual time `due_ns` (at once if that has passed).

        Callbacks run between translated blocks, never inside an instruction, in order of
        due time and then of scheduling.
        """

    def schedule_in_background(self, due_ns: int, callback: Callable[[], None]) -> AlarmHandle:
        """As `schedule_at`, for the runtime's own purposes: a halted guest does not wait for it."""

    def cancel(self, handle: AlarmHandle) -> None:
        """Forget a scheduled callback; harmless if it has run."""


class PortDevice(Protocol):
    """What the port bus calls for a claimed range of I/O ports."""

    def read(self, port: int, size: int) -> int:
        """The value of `size` bytes (1, 2, 4) at `port`."""

    def write(self, port: int, size: int, value: int) -> None:
        """Write `size` bytes (1, 2, 4) to `port`."""


class MemoryDevice(Protocol):
    """A device whose registers are guest-physical memory, above all RAM."""

    @property
    def base(self) -> int:
        """Guest-physical address, page aligned."""

    @property
    def size(self) -> int:
        """Bytes, whole pages."""

    def read(self, offset: int, size: int) -> int:
        """The value of `size` bytes (1, 2, 4, 8) at `base + offset`."""

    def write(self, offset: int, size: int, value: int) -> None:
        """Write `size` bytes (1, 2, 4, 8) at `base + offset`."""


class LocalApicAccess(Protocol):
    """What a CPU's own instructions reach of its local APIC."""

    cr8: int
    """Task priority class, 0 to 15."""

    @property
    def is_enabled(self) -> bool:
        """True while IA32_APIC_BASE has it enabled: CPUID shows that."""

    def owns(self, index: int) -> bool:
        """True for the model-specific registers that belong to it."""

    def read(self, index: int) -> int | None:
        """RDMSR of one of them; None is #GP."""

    def write(self, index: int, value: int) -> bool:
        """WRMSR of one of them; False is #GP."""


class PhysicalMemory(Protocol):
    """Guest-physical memory. Outside RAM reads give all ones and writes are ignored, as on a PC."""

    @property
    def size(self) -> int:
        """Bytes of RAM, from physical address 0."""

    def load(self, address: int, length: int) -> bytes:
        """`length` bytes from guest-physical `address`."""

    def store(self, address: int, data: bytes) -> None:
        """Write `data` at guest-physical `address`."""


class ConsoleSink(Protocol):
    """Where the guest's console bytes go (serial port, hypervisor console)."""

    def write(self, data: bytes) -> None:
        """Take bytes that the guest printed."""


class MachineControl(Protocol):
    """What a device or a backend may ask of the machine. All take effect at the next block."""

    def power_off(self, reason: str) -> None:
        """The guest asked to be switched off."""

    def reset(self, reason: str) -> None:
        """The guest asked for a reboot (which ends the run)."""

    def exit(self, code: int) -> None:
        """The guest wrote an exit code to the debug-exit port."""

    def set_interrupt_line(self, level: bool) -> None:
        """The interrupt controller's output to the CPU changed."""

    def nmi(self) -> None:
        """A non-maskable interrupt for the CPU."""


class Platform(Protocol):
    """A set of devices: the port space, registers in memory, and what interrupts the CPU.

    `runtime.devices.build_platform` builds the PC. The interrupt controller calls
    `control.set_interrupt_line` whenever its output changes; the machine calls `acknowledge` when it
    takes the interrupt.
    """

    def read_port(self, port: int, size: int) -> int:
        """IN: an unclaimed port reads as all ones."""

    def write_port(self, port: int, size: int, value: int) -> None:
        """OUT: a write to an unclaimed port is ignored."""

    def has_interrupt(self) -> bool:
        """True while the interrupt controller asserts its output."""

    def acknowledge(self) -> int:
        """The CPU takes the interrupt: the vector (0..255), moved to in-service."""

    def console_input(self, data: bytes) -> None:
        """Bytes typed at the guest's console (serial port)."""
