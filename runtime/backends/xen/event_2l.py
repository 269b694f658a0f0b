"""The two-level form of event channels (xen/common/event_2l.c).

A port is pending in shared_info.evtchn_pending, masked in evtchn_mask; an unmasked pending port sets its
word's bit in vcpu_info.pending_sel and then upcall_pending.
"""

from __future__ import annotations

from collections.abc import Callable

from runtime.backends.xen.frames import PhysicalMemory
from runtime.backends.xen.layout import struct

__all__ = ["TwoLevel"]


class TwoLevel:
    """Bits of one domain's shared_info, and of the vcpu_info that `vcpu_info` names when asked."""

    def __init__(
        self,
        memory: PhysicalMemory,
        shared_info: int,
        width: int,
        vcpu_info: Callable[[], int],
        mark_upcall: Callable[[], None],
    ) -> None:
        self._memory = memory
        self._shared_info = shared_info
        self._width = width
        self._vcpu_info = vcpu_info
        self._mark_upcall = mark_upcall
        self._shared = struct("shared_info", width)
        self._vcpu = struct("vcpu_info", width)

    def opened(self, port: int) -> None:
        """A port is in use from now on: nothing to do."""

    def set_pending(self, port: int) -> bool:
        """Mark a port pending and tell the vcpu unless it is masked. True where it was pending already."""
        if self._change("evtchn_pending", port, True):
            return True
        if not self._test("evtchn_mask", port):
            self._tell(port)
        return False

    def clear_pending(self, port: int) -> None:
        """The port is not pending any more."""
        self._change("evtchn_pending", port, False)

    def unmask(self, port: int) -> None:
        """Clear the mask; a pending port tells the vcpu."""
        if self._change("evtchn_mask", port, False) and self._test("evtchn_pending", port):
            self._tell(port)

    def pending(self, port: int) -> bool:
        """Is the port pending (whatever its mask)?"""
        return self._test("evtchn_pending", port)

    def busy(self, port: int) -> bool:
        """Must a closed port stay unused for now? Never here."""
        return False

    def select_all(self) -> None:
        """Have the guest look at every word."""
        offset, size = self._vcpu.place("pending_sel")
        self._memory.store(self._vcpu_info() + offset, b"\xff" * size)

    def _tell(self, port: int) -> None:
        offset, size = self._vcpu.place("pending_sel")
        address = self._vcpu_info() + offset
        word = int.from_bytes(self._memory.load(address, size), "little")
        bit = 1 << port // self._width
        if not word & bit:
            self._memory.store(address, (word | bit).to_bytes(size, "little"))
            self._mark_upcall()

    def _address(self, field: str, port: int) -> int:
        return self._shared_info + self._shared.offsets[field] + port // 8

    def _test(self, field: str, port: int) -> bool:
        return bool(self._memory.load(self._address(field, port), 1)[0] & 1 << port % 8)

    def _change(self, field: str, port: int, value: bool) -> bool:
        """Set or clear a port's bit; the old value."""
        address = self._address(field, port)
        byte = self._memory.load(address, 1)[0]
        bit = 1 << port % 8
        self._memory.store(address, bytes([byte | bit if value else byte & ~bit & 0xFF]))
        return bool(byte & bit)
