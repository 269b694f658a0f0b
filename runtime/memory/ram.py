"""Guest RAM: one anonymous host mapping that the emulated CPU and Python both use directly."""

from __future__ import annotations

import ctypes
import mmap

from pvpatch.abi.errors import UsageError

__all__ = ["MAX_MEMORY_MIB", "MIN_MEMORY_MIB", "GuestMemory", "MemoryRange"]

MIN_MEMORY_MIB = 2
MAX_MEMORY_MIB = 3072
"""RAM stays below the addresses where a PC has its local APIC and PCI windows."""
_ALL_ONES = b"\xff"


class MemoryRange:
    """Physical addresses 0 to `size` over a host buffer; beyond it, nothing answers."""

    def __init__(self, view: memoryview, size: int) -> None:
        self.view = view
        self._size = size
        self._words: memoryview[int] = view[: len(view) & ~7].cast("Q")

    @property
    def size(self) -> int:
        """Bytes that answer, from physical address 0."""
        return self._size

    def contains(self, address: int, length: int = 1) -> bool:
        """True if the whole range is guest RAM."""
        return address >= 0 and length >= 0 and address + length <= self._size

    def load(self, address: int, length: int) -> bytes:
        """`length` bytes from guest-physical `address`; all ones where there is no RAM."""
        if address >= 0 and address + length <= self._size:
            return bytes(self.view[address : address + length])
        if address >= self._size or address < 0:
            return _ALL_ONES * length
        have = bytes(self.view[address : self._size])
        return have + _ALL_ONES * (length - len(have))

    def store(self, address: int, data: bytes) -> None:
        """Write `data` at guest-physical `address`; what falls outside RAM is ignored."""
        if address < 0 or address >= self._size:
            return
        end = min(address + len(data), self._size)
        self.view[address:end] = data[: end - address]

    def load_u32(self, address: int) -> int:
        """The little-endian 32-bit word at guest-physical `address`."""
        return int.from_bytes(self.load(address, 4), "little")

    def load_u64(self, address: int) -> int:
        """The little-endian 64-bit word at guest-physical `address`."""
        if not address & 7 and 0 <= address <= self._size - 8:
            return self._words[address >> 3]
        return int.from_bytes(self.load(address, 8), "little")

    def store_u32(self, address: int, value: int) -> None:
        """Write a little-endian 32-bit word."""
        self.store(address, (value & 0xFFFFFFFF).to_bytes(4, "little"))

    def store_u64(self, address: int, value: int) -> None:
        """Write a little-endian 64-bit word."""
        self.store(address, (value & (1 << 64) - 1).to_bytes(8, "little"))


class GuestMemory(MemoryRange):
    """`size` bytes of RAM from guest-physical 0, then `hidden` bytes that no guest map mentions.

    The hidden part belongs to the hypervisor (shadow page tables, its own code): it is ordinary
    memory to the emulated CPU, but `load` and `store` treat it as absent, so that a wild
    guest-physical pointer cannot reach it through a hypercall. `whole` reaches both.
    """

    def __init__(self, size: int, hidden: int = 0) -> None:
        if not MIN_MEMORY_MIB << 20 <= size <= MAX_MEMORY_MIB << 20:
            raise UsageError(
                f"{size >> 20} MiB of guest memory is out of range",
                f"--memory takes {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB}",
            )
        self.total = size + hidden
        self._mapping = mmap.mmap(-1, self.total, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        super().__init__(memoryview(self._mapping), size)
        self.whole = MemoryRange(self.view, self.total)
        self.host_address = ctypes.addressof(ctypes.c_char.from_buffer(self._mapping))
