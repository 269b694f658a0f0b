"""Guest memory as the host reads and writes it: every address is checked, a bad one kills."""

from __future__ import annotations

from runtime.backends.lguest.errors import GuestKilled
from runtime.deprivileged.shadow import PAGE, ShadowMmu
from runtime.memory import MemoryRange, PageFault

__all__ = ["GuestSpace"]

_WORD = 0xFFFFFFFF


class GuestSpace:
    """`physical` is what guest-physical addresses may name; linear ones go through the guest's tables."""

    def __init__(self, physical: MemoryRange, shadow: ShadowMmu) -> None:
        self.physical = physical
        self._shadow = shadow

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

    def _place(self, linear: int, *, write: bool, user: bool) -> int:
        """Physical address behind a linear one, a page of the host's included. Raises `PageFault`."""
        if self._shadow.is_host(linear):
            physical = self._shadow.host_physical(linear)
            if physical is None or user or not self.physical.contains(physical):
                raise PageFault(linear, write << 1 | user << 2)
            return physical
        return self._shadow.walk(linear, write=write, user=user).physical

    def _pieces(self, linear: int, length: int) -> list[tuple[int, int]]:
        pieces = []
        while length > 0:
            size = min(length, PAGE - (linear & (PAGE - 1)))
            pieces.append((linear & _WORD, size))
            linear += size
            length -= size
        return pieces

    def read_linear(self, linear: int, length: int, *, user: bool = False) -> bytes:
        """Bytes at a linear address. Raises `PageFault`."""
        return b"".join(
            self.physical.load(self._place(at, write=False, user=user), size)
            for at, size in self._pieces(linear, length)
        )

    def write_linear(self, linear: int, data: bytes, *, user: bool = False) -> None:
        """Write at a linear address, all or nothing. Raises `PageFault`."""
        pieces = self._pieces(linear, len(data))
        places = [(self._place(at, write=True, user=user), size) for at, size in pieces]
        position = 0
        for physical, size in places:
            if self.physical.contains(physical, size):
                self.physical.store(physical, data[position : position + size])
            position += size
