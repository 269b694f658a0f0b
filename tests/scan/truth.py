"""Ground truth for the Linux kernels: the -dbg package's vmlinux, decoded by iced from symbol to symbol."""

from __future__ import annotations

from pathlib import Path

from elftools.elf.elffile import ELFFile
from iced_x86 import Decoder, Instruction

from rewriter.decode import class_by_code

SHF_EXECINSTR = 4
CODE_SYMBOLS = ("STT_FUNC", "STT_NOTYPE")


def symbol_truth(vmlinux: Path) -> dict[int, tuple[str, int]]:
    """Address of every sensitive instruction -> its kind and length, restarting at each code symbol.

    .altinstr_replacement has no symbols; its records tell where each replacement starts.
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
            found.update(_decode(section.data(), section["sh_addr"], sorted(starts[index]), width))
        return found


def _decode(data: bytes, base: int, starts: list[int], width: int) -> dict[int, tuple[str, int]]:
    sensitive = class_by_code()
    decoder, instruction = Decoder(width, data), Instruction()
    found: dict[int, tuple[str, int]] = {}
    for start, end in zip(starts, [*starts[1:], base + len(data)], strict=True):
        decoder.position, decoder.ip = start - base, start
        while decoder.ip < end and decoder.can_decode:
            decoder.decode_out(instruction)
            entry = sensitive.get(instruction.code)
            if entry is not None and not instruction.is_invalid:
                found[instruction.ip] = (entry.kind, instruction.len)
    return found
