"""May this code reach that port? IOPL and the TSS's I/O permission bitmap.

The emulated CPU runs IN and OUT at any privilege, so the check (Intel SDM vol. 1, 19.5.2) is made
before such an instruction runs above privilege level 0.
"""

from __future__ import annotations

from collections.abc import Callable

import iced_x86

from runtime.cpu import flags as fl
from runtime.cpu.linear import LinearMemory
from runtime.cpu.vcpu import VCpu
from runtime.cpu.watch import Site
from runtime.memory import PageFault

__all__ = ["PORT_MNEMONICS", "bitmap_allows", "port_allowed", "port_and_size"]

PORT_MNEMONICS = frozenset({"in", "out", "insb", "insw", "insd", "outsb", "outsw", "outsd"})
_MAP_BASE = 0x66
"""Offset of the bitmap's offset, in the 32-bit and the 64-bit TSS alike."""
_SIZES = {"b": 1, "w": 2, "d": 4}


def port_and_size(cpu: VCpu, site: Site) -> tuple[int, int]:
    """Which port the instruction at `site` reaches, and how many bytes of it."""
    instruction = site.decode()
    dx = cpu.state.gpr[fl.RDX] & 0xFFFF
    if len(site.mnemonic) > 3:
        return dx, _SIZES[site.mnemonic[-1]]
    data, address = (0, 1) if site.mnemonic == "in" else (1, 0)
    size = iced_x86.RegisterExt.size(instruction.op_register(data))
    immediate = instruction.op_kind(address) == iced_x86.OpKind.IMMEDIATE8
    return (instruction.immediate8 if immediate else dx), size


def port_allowed(cpu: VCpu, memory: LinearMemory, site: Site) -> bool:
    """True if the instruction at `site` may access its port now."""
    if cpu.cpl <= cpu.rflags >> 12 & 3:
        return True
    tr = cpu.state.tr
    try:
        return bitmap_allows(memory.read_u16, tr.base, tr.limit, *port_and_size(cpu, site))
    except PageFault:
        return False


def bitmap_allows(read: Callable[[int], int], base: int, limit: int, port: int, size: int) -> bool:
    """Does the I/O permission bitmap of the TSS at `base` open all `size` ports from `port` on?

    `read` gives 16 bits of memory. Raises what it raises.
    """
    if limit < _MAP_BASE + 1:
        return False
    place = read(base + _MAP_BASE) + port // 8
    if place + 1 > limit:
        return False
    return not read(base + place) >> port % 8 & (1 << size) - 1
