"""Small kernels assembled from text, as ELF files that the commands take."""

from __future__ import annotations

from pvpatch.abi.asm import assemble
from tests.image.builders import Load, elf, multiboot1_header

__all__ = ["BASE", "kernel", "sp"]

BASE = 0x100000
HEADER_ROOM = 32


def sp(width: int) -> str:
    """Name of the stack pointer."""
    return "rsp" if width == 64 else "esp"


def kernel(text: str, width: int = 32, *, room: int = 0x1000) -> bytes:
    """A kernel that starts with `text` at BASE + HEADER_ROOM, followed by `room` writable bytes.

    32 bits: multiboot, protected mode without paging. 64 bits: entered in long mode with 4 GiB mapped
    one to one. Interrupts are off, there is no IDT; the stack is below BASE.
    """
    start = BASE + HEADER_ROOM
    code = assemble(f"mov {sp(width)}, {BASE - 0x1000}\n{text}\nstay: jmp stay", width, start).code
    header = multiboot1_header().ljust(HEADER_ROOM, b"\x90") if width == 32 else b"\x90" * HEADER_ROOM
    content = header + code
    return elf(width, (Load(BASE, BASE, content, len(content) + room, flags=7),), entry=start)
