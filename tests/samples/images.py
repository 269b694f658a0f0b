"""Where the samples are, and how their code is taken apart here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import iced_x86
from elftools.elf.elffile import ELFFile

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
NAMES = (
    "native-i386", "native-x86_64", "pc-x86_64", "kvm-x86_64", "lguest-i386", "xen-x86_64", "xen-i386",
    "vmi-i386",
)  # fmt: skip


def image(name: str, root: Path = SAMPLES) -> Path:
    """The built image of a sample."""
    return root / name / f"{name}.elf"


def expected(name: str) -> str:
    """The transcript that a sample must give."""
    return (SAMPLES / name / "expected.txt").read_text(encoding="ascii")


def code_sections(name: str) -> Iterator[tuple[int, int, bytes]]:
    """(width, address, bytes) of executable sections; mixed ones once for each width."""
    with image(name).open("rb") as stream:
        elf = ELFFile(stream)
        for section in elf.iter_sections("SHT_PROGBITS"):
            if not section["sh_flags"] & 4:  # SHF_EXECINSTR
                continue
            widths = (32, 64) if section.name == ".boot" else (elf.elfclass,)
            for width in widths:
                yield width, section["sh_addr"], section.data()


def instructions(name: str) -> Iterator[tuple[int, iced_x86.Instruction, iced_x86.Instruction | None]]:
    """(width, instruction, the next one) of a plain sweep over a sample's code."""
    for width, address, code in code_sections(name):
        decoded = list(iced_x86.Decoder(width, code, ip=address))
        for at, instruction in enumerate(decoded):
            if not instruction.is_invalid:
                yield width, instruction, decoded[at + 1] if at + 1 < len(decoded) else None
