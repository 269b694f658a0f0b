"""Images without an inner file format: Linux boot protocol or multiboot header in front of bare code."""

from __future__ import annotations

from pathlib import Path

from pvpatch.abi.errors import ImageError
from rewriter.image.codecs import holds_gzip_kernel
from rewriter.image.linux_header import has_setup_header, linux_entries, parse_setup_header
from rewriter.image.model import EntryPoint, Image, Segment, SetupHeader
from rewriter.image.multiboot import MultibootHeader, find_multiboot, load_range
from rewriter.image.pe import PeFacts, pe_facts

__all__ = ["matches_linux", "matches_multiboot", "parse_linux", "parse_multiboot"]

MAX_FLAT_MEMORY = 1 << 30  # bytes; init_size or bss of a flat image beyond this is a damaged header
SURELY_32_BIT = 0x204
"""Boot images of protocol 2.03 may be entered at code32_start or not (GRUB's `linux` and `linux16` commands):
a compressed kernel inside tells Linux from other programs, such as memdisk. iPXE states address 0."""
DAMAGED = "the file is damaged or truncated"


def matches_linux(data: bytes) -> bool:
    """Whether this starts with a Linux boot sector (a bzImage with a payload was taken by its container)."""
    return has_setup_header(data)


def parse_linux(data: bytes, path: Path) -> Image:
    """A Linux boot protocol image whose protected-mode part is the program itself, such as memtest86+."""
    header = parse_setup_header(data)
    base = header.code32_start
    if not base or (header.version < SURELY_32_BIT and not holds_gzip_kernel(data)):
        raise ImageError(
            "this Linux boot image is entered in real mode, through the BIOS: its setup header "
            f"(protocol {header.version >> 8}.{header.version & 0xFF:02}) promises no 32-bit entry",
            hint="pvpatch has no BIOS",
        )
    size = len(data) - header.setup_size
    memory = max(header.init_size, size)
    if memory > MAX_FLAT_MEMORY or base + memory > 1 << 32:
        raise ImageError(f"the setup header asks for {memory:#x} bytes at {base:#x}", hint=DAMAGED)
    entries = linux_entries(header, base) + _efi_entries(pe_facts(data), header, base)
    if any(entry.physical - base >= size for entry in entries):
        raise ImageError("an entry point lies behind the end of the file", hint=DAMAGED)
    wide = any(entry.width == 64 and entry.protocol == "linux64" for entry in entries)
    segment = Segment(header.setup_size, size, base, base, memory, True, True, True, "code")
    return Image(
        path=path,
        container=(),
        payload=data,
        kind="flat",
        bits=64 if wide else 32,
        segments=(segment,),
        entries=entries,
        setup_header=header,
    )


def _efi_entries(facts: PeFacts | None, header: SetupHeader, base: int) -> tuple[EntryPoint, ...]:
    if facts is None or facts.entry_offset < header.setup_size:
        return ()
    address = base + facts.entry_offset - header.setup_size
    return (EntryPoint(address, address, facts.width, "efi"),)


def _addressed(data: bytes) -> MultibootHeader | None:
    return next((item for item in find_multiboot(data) if item.load_addr is not None), None)


def matches_multiboot(data: bytes) -> bool:
    """Whether a multiboot header gives the load addresses itself, as a non-ELF image needs."""
    return _addressed(data) is not None


def parse_multiboot(data: bytes, path: Path) -> Image:
    """A non-ELF multiboot image: where it is loaded stands in its multiboot header."""
    item = _addressed(data)
    span = None if item is None else load_range(item, len(data))
    if item is None or span is None:
        raise ImageError("the multiboot header gives no load address", hint=DAMAGED)
    if span.mem_size > MAX_FLAT_MEMORY:
        raise ImageError("the load addresses of the multiboot header contradict the file", hint=DAMAGED)
    entry = item.entry
    if entry is None or not 0 <= entry - span.address < span.file_size:
        raise ImageError("the multiboot header's entry point lies outside the image", hint=DAMAGED)
    segment = Segment(
        span.file_offset, span.file_size, span.address, span.address, span.mem_size, True, True, True, "code"
    )
    return Image(
        path=path,
        container=(),
        payload=data,
        kind="flat",
        bits=32,
        segments=(segment,),
        entries=(EntryPoint(entry, entry, 32, item.protocol),),
    )
