"""The guest's address space as hypercalls see it: copy_from_guest and copy_to_guest with Xen's checks."""

from __future__ import annotations

from collections.abc import Callable

from runtime.backends.xen.frames import PhysicalMemory, XenError
from runtime.backends.xen.layout import ERRNO, PAGE_SIZE, Struct
from runtime.backends.xen.paging import PageTables

__all__ = ["GuestSpace"]


class GuestSpace:
    """Reads and writes at guest virtual addresses under the current page tables.

    Every address comes from an untrusted guest: one inside Xen's hole, one that is not mapped and a
    write to a read-only page all give XenError(EFAULT), and nothing outside the domain is touched.
    """

    def __init__(
        self, memory: PhysicalMemory, tables: PageTables, root: Callable[[], int], hole: tuple[int, int]
    ) -> None:
        self.memory = memory
        self.tables = tables
        self.root = root
        self.hole = hole
        self.mask = (1 << tables.width) - 1

    def accessible(self, address: int, size: int) -> bool:
        """Xen's access_ok: canonical, not wrapping, and not in the hypervisor's hole."""
        first, last = self.hole
        end = address + max(size, 1) - 1
        if end > self.mask:
            return False
        if self.tables.width == 64 and (end >= 1 << 47 and address < (1 << 64) - (1 << 47)):
            return False
        return end < first or address > last

    def _place(self, address: int, write: bool) -> int:
        """Machine address behind a virtual one. Raises XenError(EFAULT)."""
        found = self.tables.walk(self.root(), address)
        if found is None or (write and not found.writable):
            raise XenError(ERRNO.EFAULT, f"guest address {address:#x} is not mapped")
        return found.address

    def _pieces(self, address: int, size: int, write: bool) -> list[tuple[int, int]]:
        """Machine address and length in bytes of each page's part."""
        address &= self.mask
        if not self.accessible(address, size):
            raise XenError(ERRNO.EFAULT, f"guest address {address:#x} is out of reach")
        pieces = []
        while size:
            here = min(size, PAGE_SIZE - address % PAGE_SIZE)
            pieces.append((self._place(address, write), here))
            address += here
            size -= here
        return pieces

    def read(self, address: int, size: int) -> bytes:
        """`size` bytes at a guest virtual address. Raises XenError(EFAULT)."""
        if size <= PAGE_SIZE - address % PAGE_SIZE and self.accessible(address, size):
            return self.memory.load(self._place(address, False), size)
        return b"".join(self.memory.load(at, length) for at, length in self._pieces(address, size, False))

    def write(self, address: int, data: bytes) -> None:
        """Write bytes at a guest virtual address; all of it or none. Raises XenError(EFAULT)."""
        done = 0
        for at, length in self._pieces(address, len(data), True):
            self.memory.store(at, data[done : done + length])
            done += length

    def word(self, address: int, size: int) -> int:
        """An unsigned little-endian number."""
        return int.from_bytes(self.read(address, size), "little")

    def fields(self, address: int, layout: Struct) -> dict[str, int]:
        """The integer fields of a structure."""
        return layout.unpack(self.read(address, layout.size))

    def set_field(self, address: int, layout: Struct, field: str, value: int) -> None:
        """Write one field of a structure."""
        offset, size = layout.place(field)
        self.write(address + offset, (value & ((1 << 8 * size) - 1)).to_bytes(size, "little"))
