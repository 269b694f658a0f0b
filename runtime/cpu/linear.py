"""Linear-address access as the CPU itself does it while it delivers events."""

from __future__ import annotations

from runtime.cpu.vcpu import VCpu
from runtime.memory import PageFault, Translation, translate

__all__ = ["LinearMemory"]


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

    def _pieces(self, linear: int, length: int) -> list[tuple[int, int]]:
        """Split at page boundaries; below 64-bit mode addresses wrap at 4 GiB."""
        mask = 0xFFFFFFFFFFFFFFFF if self._cpu.long_mode else 0xFFFFFFFF
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
        return b"".join(
            self._physical.load(self.translate(address, user=user, mark=mark).physical, size)
            for address, size in self._pieces(linear, length)
        )

    def write(self, linear: int, data: bytes, *, user: bool = False) -> None:
        """Write `data` at `linear`, all or nothing. Raises `PageFault`."""
        places = [
            (self.translate(address, write=True, user=user).physical, size)
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
        for address, size in self._pieces(linear, length):
            try:
                out += self.read(address, size, mark=False)
            except PageFault:
                break
        return out
