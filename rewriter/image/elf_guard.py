"""Checks of ELF headers before a full parser sees them: untrusted files end here with one clear line.

Only the header tables are read. Source: System V ABI, chapters 4 and 5; x86-64 psABI.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise

from pvpatch.abi.errors import ImageError

__all__ = ["ElfHeader", "check_elf"]

MAGIC = b"\x7fELF"
EM_386, EM_X86_64 = 3, 62
ET_REL, ET_EXEC, ET_DYN, ET_CORE = 1, 2, 3, 4
PT_LOAD, PT_INTERP = 1, 3
SHT_NULL, SHT_SYMTAB, SHT_STRTAB, SHT_NOBITS, SHT_DYNSYM = 0, 2, 3, 8, 11
SYMBOL_SIZE = {32: 16, 64: 24}
MAX_SEGMENTS = 1024
MAX_MEMORY = 4 << 30  # bytes of all loaded segments together
PHYSICAL_LIMIT = 1 << 52  # architectural maximum of MAXPHYADDR
MACHINES = {
    2: "SPARC",
    8: "MIPS",
    20: "PowerPC",
    21: "PowerPC 64",
    22: "S/390",
    40: "ARM",
    50: "IA-64",
    183: "AArch64",
    243: "RISC-V",
    258: "LoongArch",
}
KINDS = {ET_REL: "a relocatable object or kernel module", ET_CORE: "a core dump"}
OVERLAP = "a boot loader would write one over the other"
DAMAGED = "the file is damaged or truncated"


@dataclass(frozen=True)
class ElfHeader:
    """The checked header; `end` is the file offset behind everything that the headers describe."""

    bits: int
    type: int
    entry: int
    segments: int
    sections: int
    end: int


@dataclass(frozen=True)
class _Raw:
    bits: int
    type: int
    entry: int
    phoff: int
    phnum: int
    shoff: int
    shnum: int
    shstrndx: int


def check_elf(data: bytes) -> ElfHeader:
    """Check an ELF file's identity, program headers and section headers; ImageError says what is wrong."""
    raw = _identity(data)
    end = max(_check_segments(data, raw), _check_sections(data, raw))
    return ElfHeader(raw.bits, raw.type, raw.entry, raw.phnum, raw.shnum, end)


def _identity(data: bytes) -> _Raw:
    if len(data) < 52 or data[:4] != MAGIC:
        raise ImageError("the ELF header is cut short", hint=DAMAGED)
    if data[4] not in (1, 2) or data[5] not in (1, 2):
        raise ImageError("the ELF class or byte order is not one that exists", hint=DAMAGED)
    order = "<" if data[5] == 1 else ">"
    kind, machine = struct.unpack_from(order + "HH", data, 16)
    bits = 32 if data[4] == 1 else 64
    if machine not in (EM_386, EM_X86_64) or order == ">":
        name = MACHINES.get(machine, f"machine {machine}")
        raise ImageError(
            f"this ELF file is for {name}, which is not supported", hint="i386 and x86-64 kernels are"
        )
    if (bits == 64) != (machine == EM_X86_64):
        raise ImageError(
            f"an ELF{bits} file for machine {machine} is no kernel", hint="x32 programs look like this"
        )
    if bits == 64 and len(data) < 64:
        raise ImageError("the ELF header is cut short", hint=DAMAGED)
    if kind not in (ET_EXEC, ET_DYN):
        what = KINDS.get(kind, f"an ELF file of type {kind}")
        raise ImageError(f"this is {what}, not a kernel", hint="pvpatch needs a linked kernel image")
    layout = "<IIIIHHHHHH" if bits == 32 else "<QQQIHHHHHH"
    fields = struct.unpack_from(layout, data, 24)
    entry, phoff, shoff, _, _, phentsize, phnum, shentsize, shnum, shstrndx = fields
    if phnum == 0:
        raise ImageError("the ELF file has no program headers", hint="it was not linked to be loaded")
    if phnum > MAX_SEGMENTS or phentsize != (32 if bits == 32 else 56):
        raise ImageError(f"{phnum} program headers of {phentsize} bytes each make no sense", hint=DAMAGED)
    if shnum and shentsize != (40 if bits == 32 else 64):
        raise ImageError(f"section headers of {shentsize} bytes make no sense", hint=DAMAGED)
    if phoff + phnum * phentsize > len(data):
        raise ImageError("the program headers lie behind the end of the file", hint=DAMAGED)
    if shnum and shoff + shnum * shentsize > len(data):
        raise ImageError("the section headers lie behind the end of the file", hint=DAMAGED)
    if shnum and shstrndx >= shnum:
        raise ImageError(f"section {shstrndx} with the section names does not exist", hint=DAMAGED)
    return _Raw(bits, kind, entry, phoff, phnum, shoff, shnum, shstrndx)


def _check_segments(data: bytes, raw: _Raw) -> int:
    end = raw.phoff + raw.phnum * (32 if raw.bits == 32 else 56)
    loads: list[tuple[int, int, int, int]] = []
    for index in range(raw.phnum):
        if raw.bits == 32:
            kind, offset, vaddr, paddr, file_size, mem_size, _, _ = struct.unpack_from(
                "<8I", data, raw.phoff + index * 32
            )
        else:
            kind, _, offset, vaddr, paddr, file_size, mem_size, _ = struct.unpack_from(
                "<II6Q", data, raw.phoff + index * 56
            )
        if kind == PT_INTERP:
            raise ImageError("this is a program for an operating system, not a kernel", hint="PT_INTERP")
        if file_size and offset + file_size > len(data):
            raise ImageError(
                f"segment {index} ends at file offset {offset + file_size:#x}, the file at {len(data):#x}",
                hint=DAMAGED,
            )
        if file_size:
            end = max(end, offset + file_size)
        if kind == PT_LOAD and mem_size:
            _check_load(raw.bits, index, vaddr, paddr, file_size, mem_size)
            loads.append((vaddr, paddr, mem_size, index))
    if not loads:
        raise ImageError("the ELF file has no segment to load", hint="is it a debug file without code?")
    if sum(load[2] for load in loads) > MAX_MEMORY:
        raise ImageError("the segments ask for more than 4 GiB of memory", hint="the limit is 4 GiB")
    for column, word in ((0, "virtual"), (1, "physical")):
        ordered = sorted(loads, key=lambda load: load[column])
        for one, two in pairwise(ordered):
            if one[column] + one[2] > two[column]:
                raise ImageError(f"segments {one[3]} and {two[3]} overlap in {word} memory", hint=OVERLAP)
    return end


def _check_load(bits: int, index: int, vaddr: int, paddr: int, file_size: int, mem_size: int) -> None:
    if file_size > mem_size:
        raise ImageError(f"segment {index} is larger in the file than in memory", hint=DAMAGED)
    if mem_size > MAX_MEMORY:
        raise ImageError(f"segment {index} asks for {mem_size:#x} bytes of memory", hint=DAMAGED)
    # A guest of a hypervisor that places it may state no physical address and repeat the virtual one.
    physical_limit = 1 << bits if bits == 32 or paddr == vaddr else PHYSICAL_LIMIT
    if vaddr + mem_size > 1 << bits or paddr + mem_size > physical_limit:
        raise ImageError(f"segment {index} runs over the end of the address space", hint=DAMAGED)


def _check_sections(data: bytes, raw: _Raw) -> int:
    if not raw.shnum:
        return 0
    size_of_header = 40 if raw.bits == 32 else 64
    end = raw.shoff + raw.shnum * size_of_header
    for index in range(raw.shnum):
        at = raw.shoff + index * size_of_header
        if raw.bits == 32:
            _, kind, _, _, offset, size, link, _, _, entry_size = struct.unpack_from("<10I", data, at)
        else:
            _, kind, _, _, offset, size, link, _, _, entry_size = struct.unpack_from("<IIQQQQIIQQ", data, at)
        if index == raw.shstrndx and kind not in (SHT_STRTAB, SHT_NULL):
            raise ImageError("the section of the section names is no string table", hint=DAMAGED)
        if kind in (SHT_NULL, SHT_NOBITS):
            continue
        if offset + size > len(data):
            raise ImageError(
                f"section {index} ends at file offset {offset + size:#x}, the file at {len(data):#x}",
                hint=DAMAGED,
            )
        if kind in (SHT_SYMTAB, SHT_DYNSYM) and (entry_size != SYMBOL_SIZE[raw.bits] or link >= raw.shnum):
            raise ImageError(f"symbol table {index} has a damaged header", hint=DAMAGED)
        end = max(end, offset + size)
    return end
