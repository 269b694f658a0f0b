"""Linear-address access as the CPU itself does it while it delivers events."""

from __future__ import annotations

from runtime.cpu.vcpu import VCpu
from runtime.memory import PageFault, Translation, translate
from runtime.memory.paging import CR0_PG

__all__ = ["LinearMemory"]

_MASK_32, _MASK_64 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF


class LinearMemory:
    """Reads and writes through the page tables that the CPU uses now.

    `PageFault` comes out as from hardware. Accesses are supervisor accesses unless told otherwise.
    """

    def __init__(self, cpu: VCpu) -> None:
        self._cpu = cpu
        self._physical = cpu.memory.whole

    def translate(
        self, linear: int, *, write: bool = False, user: bool = False, fetch: bool = False, mark: bool = True
    ) -> Translation:
        """Where `linear` leads under the current control registers."""
        state = self._cpu.state
        cr = state.cr
        return translate(
            self._physical,
            linear,
            cr0=cr[0],
            cr3=cr[3],
            cr4=cr[4],
            efer=state.efer,
            write=write,
            user=user,
            fetch=fetch,
            mark=mark,
        )

    def _physical_address(self, linear: int, write: bool, user: bool, mark: bool = True) -> int:
        """As `translate`, for delivery, which is most of what a storm of exceptions costs the host."""
        if self._cpu.state.cr[0] & CR0_PG:
            return self.translate(linear, write=write, user=user, mark=mark).physical
        return linear & _MASK_32

    def _within_page(self, linear: int, length: int) -> int | None:
        """The address as far as the mode has bits, if the access lies in one page."""
        if (linear & 0xFFF) + length > 0x1000:
            return None
        return linear & (_MASK_64 if self._cpu.long_mode else _MASK_32)

    def _pieces(self, linear: int, length: int) -> list[tuple[int, int]]:
        """Split at page boundaries; below 64-bit mode addresses wrap at 4 GiB."""
        mask = _MASK_64 if self._cpu.long_mode else _MASK_32
        pieces = []
        while length > 0:
            linear &= mask
            size = min(length, 0x1000 - (linear & 0xFFF))
            pieces.append((linear, size))
            linear += size
            length -= size
        return pieces

    def read(self, linear: int, length: int, *, user: bool = False, mark: bool = True) -> bytes:
        """`length` bytes at `linear`. Raises `PageFault`."""
        whole = self._within_page(linear, length)
        if whole is not None:
            return self._physical.load(self._physical_address(whole, False, user, mark), length)
        return b"".join(
            self._physical.load(self._physical_address(address, False, user, mark), size)
            for address, size in self._pieces(linear, length)
        )

    def write(self, linear: int, data: bytes, *, user: bool = False) -> None:
        """Write `data` at `linear`, all or nothing. Raises `PageFault`."""
        whole = self._within_page(linear, len(data))
        if whole is not None:
            self._physical.store(self._physical_address(whole, True, user), data)
            return
        places = [
            (self._physical_address(address, True, user), size)
            for address, size in self._pieces(linear, len(data))
        ]
        position = 0
        for physical, size in places:
            self._physical.store(physical, data[position : position + size])
            position += size

    def read_u16(self, linear: int) -> int:
        """The 16-bit value at `linear`."""
        return int.from_bytes(self.read(linear, 2), "little")

    def read_u32(self, linear: int) -> int:
        """The 32-bit value at `linear`."""
        return int.from_bytes(self.read(linear, 4), "little")

    def read_u64(self, linear: int) -> int:
        """The 64-bit value at `linear`."""
        return int.from_bytes(self.read(linear, 8), "little")

    def try_read(self, linear: int, length: int) -> bytes:
        """As much as is mapped of `length` bytes, for reports; leaves accessed bits alone."""
        out = b""
        try:
            for address, size in self._pieces(linear, length):
                out += self.read(address, size, mark=False)
        except PageFault:
            pass
        return out
