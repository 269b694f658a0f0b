"""The PC: its devices on one port space, and what interrupts its CPU: the 8259s, with or without APICs."""

from __future__ import annotations

from collections.abc import Callable

from runtime.devices.apic_access import ApicAccess
from runtime.devices.apic_bus import ApicBus
from runtime.devices.debug_ports import DebugPorts
from runtime.devices.interfaces import ByteDevice, IrqLine
from runtime.devices.ioapic import TIMER_PIN, IoApic
from runtime.devices.keyboard import Keyboard8042
from runtime.devices.lapic import LocalApic
from runtime.devices.pci import PciConfig
from runtime.devices.pic import DualPic
from runtime.devices.pit import Pit8254
from runtime.devices.power import PowerManagement
from runtime.devices.rtc import Rtc
from runtime.devices.uart import Uart16550
from runtime.devices.vga import Vga
from runtime.ports import (
    Clock,
    ConsoleSink,
    LocalApicAccess,
    MachineControl,
    MemoryDevice,
    PhysicalMemory,
    PortDevice,
)

__all__ = ["PcPlatform", "build_platform"]


class ApicPair:
    """The APICs of a PC with one CPU: a local one on the bus, and an I/O APIC with the PC's lines."""

    def __init__(self, clock: Clock, control: MachineControl, on_change: Callable[[], None]) -> None:
        self.bus = ApicBus()
        self.local = LocalApic(0, clock, self.bus, control, on_change)
        self.io = IoApic(self.bus)
        self.access = ApicAccess(self.local, is_boot_cpu=True)

    def line(self, irq: int) -> IrqLine:
        """The I/O APIC's pin for a request line of the PC."""
        return self.io.line(TIMER_PIN if irq == 0 else irq)


class PcPlatform:
    """Devices by port. Wide devices see an access as it is, byte devices one byte at a time.

    Without `apics` the machine is the PC of before 1994: two 8259s and nothing else.
    """

    def __init__(
        self,
        clock: Clock,
        memory: PhysicalMemory,
        console: ConsoleSink,
        control: MachineControl,
        apics: bool = False,
    ) -> None:
        self._bytes: dict[int, ByteDevice] = {}
        self._wide: dict[int, PortDevice] = {}
        self._control = control
        self.pic = DualPic(self._pic_output)
        self.apics = ApicPair(clock, control, self._interrupt_changed) if apics else None
        self.pit = Pit8254(clock, self._line(0), self._timer_waits)
        self.pic.master.on_taken[0] = self.pit.resume
        if self.apics is not None:
            self.apics.io.on_written[TIMER_PIN] = self.pit.resume
            self.apics.bus.on_taken.append(self.pit.resume)
        self.keyboard = Keyboard8042(self._line(1), self._line(12), control.reset)
        self.uart = Uart16550(clock, self._line(4), console)
        self.rtc = Rtc(clock, self._line(8), memory.size)
        self.vga = Vga(clock, memory)
        self.power = PowerManagement(clock, control.power_off)
        self.pci = PciConfig(control.reset)
        self.debug_ports = DebugPorts(control.exit)
        byte_devices: tuple[ByteDevice, ...] = (
            self.pic, self.pit, self.keyboard, self.uart, self.rtc, self.vga,
        )  # fmt: skip
        for device in byte_devices:
            for port in device.ports:
                self._bytes[port] = device
        for wide in (self.power, self.pci, self.debug_ports):
            for port in wide.ports:
                self._wide[port] = wide

    def read_port(self, port: int, size: int) -> int:
        """IN of 1, 2 or 4 bytes; what nobody claims reads as all ones."""
        port &= 0xFFFF
        wide = self._wide.get(port)
        if wide is not None:
            return wide.read(port, size)
        value = 0
        for index in range(size):
            device = self._bytes.get(port + index & 0xFFFF)
            value |= (0xFF if device is None else device.read(port + index & 0xFFFF)) << 8 * index
        return value

    def write_port(self, port: int, size: int, value: int) -> None:
        """OUT of 1, 2 or 4 bytes; what nobody claims is ignored."""
        port &= 0xFFFF
        value &= (1 << 8 * size) - 1
        wide = self._wide.get(port)
        if wide is not None:
            wide.write(port, size, value)
            return
        for index in range(size):
            device = self._bytes.get(port + index & 0xFFFF)
            if device is not None:
                device.write(port + index & 0xFFFF, value >> 8 * index & 0xFF)

    @property
    def memory_devices(self) -> tuple[MemoryDevice, ...]:
        """The devices that answer at guest-physical addresses."""
        return (self.apics.local, self.apics.io) if self.apics is not None else ()

    @property
    def local_apic(self) -> LocalApicAccess | None:
        """What the CPU's instructions reach of its local APIC; None if it has none."""
        return self.apics.access if self.apics is not None else None

    # -- interrupts -------------------------------------------------------------------------------

    def _line(self, irq: int) -> IrqLine:
        """A request line: it goes to the 8259s, and to the I/O APIC if there is one."""
        to_pic = self.pic.line(irq)
        if self.apics is None:
            return to_pic
        to_apic = self.apics.line(irq)

        def drive(level: bool) -> None:
            to_pic(level)
            to_apic(level)

        return drive

    def _timer_waits(self) -> bool:
        """True while one more tick of the 8254 would change nothing for anybody."""
        apic_waits = self.apics is None or self.apics.io.is_indifferent(TIMER_PIN)
        return apic_waits and bool(self.pic.master.irr & 1)

    def _pic_output(self, level: bool) -> None:
        if self.apics is not None:
            self.apics.local.set_pin(0, level)
        self._interrupt_changed()

    def _interrupt_changed(self) -> None:
        self._control.set_interrupt_line(self.has_interrupt())

    def has_interrupt(self) -> bool:
        """True while the CPU is asked to take an interrupt."""
        if self.apics is None:
            return self.pic.pending
        local = self.apics.local
        return local.pending is not None or (self.pic.pending and local.passes_pic)

    def acknowledge(self) -> int:
        """The processor takes the interrupt: its vector. The local APIC's own come before the 8259s'."""
        if self.apics is not None and self.apics.local.pending is not None:
            return self.apics.local.acknowledge()
        return self.pic.acknowledge()

    def console_input(self, data: bytes) -> None:
        """Bytes typed at the serial console."""
        self.uart.receive(data)

    def screen(self) -> list[str]:
        """The text screen, 25 lines."""
        return self.vga.screen()


def build_platform(
    clock: Clock, memory: PhysicalMemory, console: ConsoleSink, control: MachineControl, apics: bool = False
) -> PcPlatform:
    """A PC with every device in the state in which firmware leaves it, with or without APICs."""
    return PcPlatform(clock, memory, console, control, apics)
