"""Machine code for the host side of the hooks."""

from __future__ import annotations

from functools import cache

from pvpatch.abi.asm import assemble

__all__ = ["assemble64"]


@cache
def assemble64(text: str) -> bytes:
    """x86-64 machine code of position-independent `text` (Intel syntax), decoded back by the assembler."""
    return assemble(text, 64).code
