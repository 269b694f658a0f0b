"""The PC: its devices on one port space with one interrupt controller."""

from __future__ import annotations

from runtime.devices.debug_ports import DebugPorts
from runtime.devices.interfaces import ByteDevice
from runtime.devices.keyboard import Keyboard8042
from runtime.devices.pci import PciConfig
from runtime.devices.pic import DualPic
from runtime.devices.pit import Pit8254
from runtime.devices.power import PowerManagement
from runtime.devices.rtc import Rtc
from runtime.devices.uart import Uart16550
from runtime.devices.vga import Vga
from runtime.ports import Clock, ConsoleSink, MachineControl, PhysicalMemory, PortDevice

__all__ = ["PcPlatform", "build_platform"]


class PcPlatform:
    """Devices by port. Wide devices see an access as it is, byte devices one byte at a time."""

    def __init__(
        self, clock: Clock, memory: PhysicalMemory, console: ConsoleSink, control: MachineControl
    ) -> None:
        self._bytes: dict[int, ByteDevice] = {}
        self._wide: dict[int, PortDevice] = {}
        self.pic = DualPic(control.set_interrupt_line)
        self.pit = Pit8254(clock, self.pic.line(0), lambda: bool(self.pic.master.irr & 1))
        self.pic.master.on_taken[0] = self.pit.resume
        self.keyboard = Keyboard8042(self.pic.line(1), self.pic.line(12), control.reset)
        self.uart = Uart16550(clock, self.pic.line(4), console)
        self.rtc = Rtc(clock, self.pic.line(8), memory.size)
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

    def has_interrupt(self) -> bool:
        """True while the interrupt controller asserts INTR."""
        return self.pic.pending

    def acknowledge(self) -> int:
        """The processor takes the interrupt: its vector."""
        return self.pic.acknowledge()

    def console_input(self, data: bytes) -> None:
        """Bytes typed at the serial console."""
        self.uart.receive(data)

    def screen(self) -> list[str]:
        """The text screen, 25 lines."""
        return self.vga.screen()


def build_platform(
    clock: Clock, memory: PhysicalMemory, console: ConsoleSink, control: MachineControl
) -> PcPlatform:
    """A PC with every device in the state in which firmware leaves it."""
    return PcPlatform(clock, memory, console, control)
