"""Ground truth for the Linux kernels: the -dbg package's vmlinux, decoded by iced from symbol to symbol."""

from __future__ import annotations

from pathlib import Path

from elftools.elf.elffile import ELFFile
from iced_x86 import Decoder, Instruction

from rewriter.decode import class_by_code

SHF_EXECINSTR = 4
EMULATE = b"\x0f\x0bxen"
"""Xen's forced emulation prefix (public/arch-x86/xen.h)."""
CODE_SYMBOLS = ("STT_FUNC", "STT_NOTYPE")


def symbol_truth(vmlinux: Path, islands: tuple[tuple[int, int], ...] = ()) -> dict[int, tuple[str, int]]:
    """Address of every sensitive instruction -> its kind and length, restarting at each code symbol.

    `islands` are (address, width) of symbols whose code has another width than the file, up to and
    with their first far jump (`pvh_start_xen` is assembled as .code32 in arch/x86/platform/pvh/head.S).
    """
    with vmlinux.open("rb") as stream:
        elf = ELFFile(stream)
        width = elf.elfclass
        sections = {
            index: section
            for index, section in enumerate(elf.iter_sections())
            if section["sh_flags"] & SHF_EXECINSTR and section["sh_size"]
        }
        starts: dict[int, set[int]] = {index: {section["sh_addr"]} for index, section in sections.items()}
        for symbol in elf.get_section_by_name(".symtab").iter_symbols():
            if symbol["st_shndx"] in starts and symbol["st_info"]["type"] in CODE_SYMBOLS:
                starts[symbol["st_shndx"]].add(symbol["st_value"])
        found: dict[int, tuple[str, int]] = {}
        for index, section in sections.items():
            data, base = section.data(), section["sh_addr"]
            found.update(_decode(data, base, sorted(starts[index]), width))
            for address, own in islands:
                if base <= address < base + len(data):
                    end = _far_jump_end(data, base, address, own)
                    found = {at: site for at, site in found.items() if not address <= at < end}
                    found.update(_decode(data[: end - base], base, [address], own))
        return found


def _far_jump_end(data: bytes, base: int, address: int, width: int) -> int:
    decoder = Decoder(width, data, ip=base)
    decoder.position, decoder.ip = address - base, address
    return next(instruction.next_ip for instruction in decoder if instruction.is_jmp_far)


def _decode(data: bytes, base: int, starts: list[int], width: int) -> dict[int, tuple[str, int]]:
    sensitive = class_by_code()
    decoder, instruction = Decoder(width, data), Instruction()
    found: dict[int, tuple[str, int]] = {}
    for start, end in zip(starts, [*starts[1:], base + len(data)], strict=True):
        decoder.position, decoder.ip = start - base, start
        while decoder.ip < end and decoder.can_decode:
            decoder.decode_out(instruction)
            if data.startswith(EMULATE, instruction.ip - base):  # one instruction with the one behind it
                first = instruction.ip
                decoder.position, decoder.ip = first - base + len(EMULATE), first + len(EMULATE)
                decoder.decode_out(instruction)
                found[first] = ("hypercall", instruction.next_ip - first)
                continue
            entry = sensitive.get(instruction.code)
            if entry is not None and not instruction.is_invalid:
                found[instruction.ip] = (entry.kind, instruction.len)
    return found
