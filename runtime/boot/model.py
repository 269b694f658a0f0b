"""The image as the runtime sees it: what to load where, and how to enter it.

`pvpatch.bootimage` fills this in from the rewriter's `Image`; nothing in `runtime` parses files.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["BootImage", "BootKind", "BootRequest", "BootSegment", "EntryState", "FlatSegment"]


class BootKind(enum.Enum):
    """The boot protocol through which an image is entered."""

    MULTIBOOT1 = "multiboot1"
    MULTIBOOT2 = "multiboot2"
    LINUX32 = "linux32"
    LINUX64 = "linux64"
    PVH = "pvh"
    XEN_PV = "xen-pv"
    FLAT = "flat"


@dataclass(frozen=True)
class BootSegment:
    """One piece of memory: `data` at guest-physical `paddr`, zero-filled up to `memsz` bytes."""

    paddr: int
    vaddr: int
    data: bytes
    memsz: int
    flags: int = 7
    """ELF permission bits: 1 execute, 2 write, 4 read."""


@dataclass(frozen=True)
class BootImage:
    """A loadable kernel.

    `entries` maps a protocol to the guest-physical (for `XEN_PV` and ELF `FLAT`: virtual)
    address where it enters; `kind` is the protocol to use unless the person asks for another.
    `setup_header` is the Linux setup header (bytes from offset 0x1f1 of the bzImage, empty
    for others).
    """

    name: str
    kind: BootKind
    width: int
    segments: tuple[BootSegment, ...]
    entries: dict[BootKind, int]
    setup_header: bytes = b""
    xen: Mapping[str, int | str] = field(default_factory=dict)
    """What the image says of itself to Xen, by the names of elfnote.h in capitals; addresses are virtual."""
    symbols: tuple[tuple[int, int, str], ...] = field(default=(), repr=False)
    """(virtual address, size, name), sorted by address; for reports only."""


@dataclass(frozen=True)
class BootRequest:
    """What the person asked for, as far as a boot protocol is concerned."""

    cmdline: str = ""
    initrd: bytes = b""
    modules: tuple[tuple[str, bytes], ...] = ()
    """(command line of the module, content), in order."""


@dataclass(frozen=True)
class FlatSegment:
    """A segment register's value at entry. `attributes` are bits 40..55 of a descriptor, packed as
    (high dword & 0x00f0ff00), the form in which the CPU's segment cache holds them."""

    selector: int
    base: int = 0
    limit: int = 0xFFFFFFFF
    attributes: int = 0


@dataclass(frozen=True)
class EntryState:
    """The CPU at the guest's first instruction. Boot protocols return it after filling memory.

    `registers` uses 64-bit names (`rax` .. `r15`), absent ones are zero. `long_mode` means that
    CR3 holds a valid 4-level tree and EFER.LME/LMA are set. `gdt` is (physical base, limit):
    a protocol that promises a GDT has written one to memory.
    """

    rip: int
    long_mode: bool = False
    registers: dict[str, int] = field(default_factory=dict)
    rflags: int = 0x2
    cr0: int = 0x11
    cr3: int = 0
    cr4: int = 0
    gdt: tuple[int, int] = (0, 0)
    code: FlatSegment = FlatSegment(0x10, attributes=0x00C09B00)
    data: FlatSegment = FlatSegment(0x18, attributes=0x00C09300)
