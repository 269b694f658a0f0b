"""vmlinux.relocs: the KASLR relocation list that follows the ELF file inside a bzImage's payload.

Layout, all u32 little endian, addresses sign-extended to 64 bits (arch/x86/tools/relocs.c):
64-bit kernels: 0, 64-bit relocs..., 0, inverse 32-bit relocs..., 0, 32-bit relocs...  (newer kernels have
no inverse list); 32-bit kernels: 0, 32-bit relocs....
"""

from __future__ import annotations

import struct

from rewriter.image.model import RelocationTail

__all__ = ["parse_relocation_tail"]

PARTS_64, PARTS_64_WITHOUT_INVERSE, PARTS_32 = 3, 2, 1
KERNEL_HALF = 0xFFFF_FFFF_0000_0000


def parse_relocation_tail(payload: bytes, start: int, bits: int) -> RelocationTail | None:
    """The tail that begins at `start` (end of the ELF file); None when what is there is no such list."""
    size = len(payload) - start
    if size < 8 or size % 4:
        return None
    words = struct.unpack_from(f"<{size // 4}I", payload, start)
    if words[0] != 0:
        return None
    lists: list[list[int]] = []
    for word in words:
        if word == 0:
            lists.append([])
            if len(lists) > PARTS_64:
                return None
        else:
            lists[-1].append(word)
    if bits == 32:
        return RelocationTail(start, (), (), tuple(lists[0])) if len(lists) == PARTS_32 else None
    wide = [tuple(word | KERNEL_HALF if word & 0x8000_0000 else word for word in part) for part in lists]
    if len(wide) == PARTS_64:
        return RelocationTail(start, wide[0], wide[1], wide[2])
    if len(wide) == PARTS_64_WITHOUT_INVERSE:
        return RelocationTail(start, wide[0], (), wide[1])
    return None
