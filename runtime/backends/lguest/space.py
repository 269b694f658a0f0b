"""Guest-physical memory as the host reads and writes it: every address is checked, a bad one kills."""

from __future__ import annotations

from runtime.backends.lguest.errors import GuestKilled
from runtime.memory import MemoryRange

__all__ = ["GuestSpace"]


class GuestSpace:
    """`physical` is what guest-physical addresses may name."""

    def __init__(self, physical: MemoryRange) -> None:
        self.physical = physical

    def check(self, address: int, length: int) -> None:
        """Kill unless [address, address+length) is the guest's."""
        if not self.physical.contains(address, length):
            raise GuestKilled(f"bad guest-physical address {address:#x} len {length}")

    def load(self, address: int, length: int) -> bytes:
        """Bytes at a guest-physical address."""
        self.check(address, length)
        return self.physical.load(address, length)

    def store(self, address: int, data: bytes) -> None:
        """Write at a guest-physical address."""
        self.check(address, len(data))
        self.physical.store(address, data)
