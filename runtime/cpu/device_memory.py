"""Devices whose registers are memory: guest-physical pages on which each access is a call.

Everything above RAM is an open bus; a device takes its pages out of it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from runtime.cpu.vcpu import VCpu
from runtime.ports import MemoryDevice

__all__ = ["map_device"]

_READ = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint, ctypes.c_void_p)
_WRITE = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint, ctypes.c_uint64, ctypes.c_void_p
)


def map_device(
    cpu: VCpu, device: MemoryDevice, accessed: Callable[[str, int, int, int], None]
) -> None:
    """Let `device` answer at its addresses, which lie in the CPU's `DEVICE_WINDOW`.

    `accessed(kind, address, size, value)` is told of each access, `kind` being "read" or "write". It runs
    inside the emulator, before a write and after a read.
    """

    def read(offset: int, size: int) -> int:
        value = device.read(offset, size)
        accessed("read", device.base + offset, size, value)
        return value

    def write(offset: int, size: int, value: int) -> None:
        accessed("write", device.base + offset, size, value)
        device.write(offset, size, value)

    guarded_read, guarded_write = cpu.guarded(read, 0), cpu.guarded(write, None)
    on_read = _READ(lambda _uc, offset, size, _data: guarded_read(offset, size))
    on_write = _WRITE(lambda _uc, offset, size, value, _data: guarded_write(offset, size, value))
    cpu.uc.mem_unmap(device.base, device.size)
    cpu.map_registers(device.base, device.size, on_read, on_write)
