"""The plain peer of `scan`: capstone over every executable section (`python -m tests.bench.sweep FILE`)."""

from __future__ import annotations

import sys
from pathlib import Path

import capstone

from rewriter.image import Image, Section, open_image

__all__ = ["executable_sections", "sweep"]


def executable_sections(image: Image) -> list[Section]:
    """What `objdump -d` disassembles: the sections that hold code and have bytes in the file."""
    return [section for section in image.sections if section.executable and section.file_size]


def sweep(path: Path) -> int:
    """Decode all executable bytes of an image in order; the number of instructions."""
    image = open_image(path)
    mode = capstone.CS_MODE_64 if image.bits == 64 else capstone.CS_MODE_32
    engine = capstone.Cs(capstone.CS_ARCH_X86, mode)
    engine.skipdata = True
    count = 0
    for section in executable_sections(image):
        for _ in engine.disasm_lite(image.data_of(section), section.vaddr):
            count += 1
    return count


if __name__ == "__main__":
    sys.stdout.write(f"{sweep(Path(sys.argv[1]))} instructions\n")
