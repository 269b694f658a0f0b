"""The I/O APIC: 24 pins, each with an entry that says which interrupt it becomes.

Pins follow the PC: request line 0 is on pin 2, the others on the pin of their number. The polarity bit is
kept and has no effect: lines are asserted or not. Source: Intel 82093AA data sheet (order 290566-001); the
register that ends an interrupt is that of version 0x20 (ICH data sheets).
"""

from __future__ import annotations

from collections.abc import Callable

from runtime.devices.apic_bus import ApicBus, ApicMessage, Delivery

__all__ = ["IOAPIC_BASE", "IOAPIC_ID", "IOAPIC_PINS", "TIMER_PIN", "IoApic"]

IOAPIC_BASE = 0xFEC0_0000
"""Guest-physical address of its registers."""
IOAPIC_ID = 1
IOAPIC_PINS = 24
TIMER_PIN = 2
"""Where IRQ 0, the 8254's, arrives; firmware tables say so."""

_VERSION = 0x20
_INDEX, _DATA, _END = 0x00, 0x10, 0x40
_ID, _VERSION_INDEX, _ARBITRATION, _ENTRIES = 0x00, 0x01, 0x02, 0x10
_LOGICAL, _STATUS, _REMOTE_IRR, _LEVEL, _MASKED = 1 << 11, 1 << 12, 1 << 14, 1 << 15, 1 << 16
_WRITABLE = 0xFF00_0000_0001_AFFF
_DELIVERIES = frozenset(Delivery)


class IoApic:
    """The registers, the pins, and what they send on `bus`."""

    base = IOAPIC_BASE
    size = 0x1000

    def __init__(self, bus: ApicBus) -> None:
        self._bus = bus
        bus.on_end.append(self._ended)
        self._index = 0
        self._id = IOAPIC_ID
        self._lines = 0
        self.entries = [_MASKED] * IOAPIC_PINS
        self.on_written: dict[int, Callable[[], None]] = {}
        """Called when the entry of a pin was written: its line may matter again."""

    # -- pins -----------------------------------------------------------------------------------

    def set_line(self, pin: int, level: bool) -> None:
        """Drive a pin. An edge that comes while the entry is masked is lost, as the data sheet says."""
        bit = 1 << pin
        rises = level and not self._lines & bit
        self._lines = self._lines | bit if level else self._lines & ~bit
        if self.entries[pin] & _LEVEL:
            self._service(pin)
        elif rises and not self.entries[pin] & _MASKED:
            self._send(pin)

    def line(self, pin: int) -> Callable[[bool], None]:
        """The pin as a function for one device."""
        return lambda level: self.set_line(pin, level)

    def is_indifferent(self, pin: int) -> bool:
        """True if one more edge on the pin would change nothing: masked, or its vector waits already."""
        entry = self.entries[pin]
        return bool(entry & (_MASKED | _LEVEL)) or self._bus.is_requested(entry & 0xFF)

    def _service(self, pin: int) -> None:
        """A level pin that is asserted interrupts once, until its interrupt is ended."""
        entry = self.entries[pin]
        if self._lines >> pin & 1 and not entry & (_MASKED | _REMOTE_IRR) and self._send(pin):
            self.entries[pin] |= _REMOTE_IRR

    def _send(self, pin: int) -> bool:
        entry = self.entries[pin]
        mode = entry >> 8 & 7
        if mode not in _DELIVERIES:
            return False
        level = bool(entry & _LEVEL) and mode in (Delivery.FIXED, Delivery.LOWEST)
        message = ApicMessage(entry & 0xFF, Delivery(mode), entry >> 56, bool(entry & _LOGICAL), level)
        return self._bus.send(message) and level

    def _ended(self, vector: int) -> None:
        """A processor has ended a level interrupt: a pin that is still asserted interrupts again."""
        for pin, entry in enumerate(self.entries):
            if entry & _REMOTE_IRR and entry & 0xFF == vector:
                self.entries[pin] &= ~_REMOTE_IRR
                self._service(pin)

    # -- registers ------------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> int:
        """The index, or the register that it selects; anything else reads as zero."""
        if offset == _INDEX:
            return self._index
        if offset != _DATA:
            return 0
        index = self._index
        if index in (_ID, _ARBITRATION):
            return self._id << 24
        if index == _VERSION_INDEX:
            return (IOAPIC_PINS - 1) << 16 | _VERSION
        pin = index - _ENTRIES >> 1
        if not 0 <= pin < IOAPIC_PINS:
            return 0
        return self.entries[pin] >> 32 * (index & 1) & 0xFFFFFFFF

    def write(self, offset: int, size: int, value: int) -> None:
        """Choose a register, write it, or end the interrupts of a vector."""
        if offset == _INDEX:
            self._index = value & 0xFF
        elif offset == _END:
            self._ended(value & 0xFF)
        elif offset == _DATA and self._index == _ID:
            self._id = value >> 24 & 0xF
        elif offset == _DATA and 0 <= self._index - _ENTRIES < 2 * IOAPIC_PINS:
            self._write_entry(self._index - _ENTRIES >> 1, self._index & 1, value)

    def _write_entry(self, pin: int, half: int, value: int) -> None:
        entry = self.entries[pin]
        shift = 32 * half
        entry = entry & ~(_WRITABLE & 0xFFFFFFFF << shift) | value << shift & _WRITABLE
        self.entries[pin] = entry if entry & _LEVEL else entry & ~_REMOTE_IRR
        if entry & _LEVEL:
            self._service(pin)
        if pin in self.on_written:
            self.on_written[pin]()
