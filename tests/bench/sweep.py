"""The plain peer of `scan`: capstone over every executable section (`python -m tests.bench.sweep FILE`)."""

from __future__ import annotations

import sys
from pathlib import Path

import capstone

from rewriter.image import open_image

__all__ = ["sweep"]


def sweep(path: Path) -> int:
    """Decode all executable bytes of an image in order; the number of instructions."""
    image = open_image(path)
    mode = capstone.CS_MODE_64 if image.bits == 64 else capstone.CS_MODE_32
    engine = capstone.Cs(capstone.CS_ARCH_X86, mode)
    engine.skipdata = True
    count = 0
    for segment in image.executable_segments():
        for _ in engine.disasm_lite(image.data_of(segment), segment.vaddr):
            count += 1
    return count


if __name__ == "__main__":
    sys.stdout.write(f"{sweep(Path(sys.argv[1]))} instructions\n")
