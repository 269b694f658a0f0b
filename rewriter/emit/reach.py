"""How a site gets to its thunk: by distance, or by address where the image copies itself.

Relative: ``jmp rel32`` (5 bytes); the thunk jumps back. Absolute: ``call [address]`` through
a table in the resident block (6 bytes at 32 bits, 7 at 64), and the thunk returns; where
control does not come back, ``jmp [address]`` of the same size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pvpatch.abi.errors import SelfCheckError

__all__ = ["FILL", "Reach", "enter_absolute", "enter_relative", "enter_short"]

FILL = 0xCC  # INT3: what is left over of a window is never executed


@dataclass(frozen=True)
class Reach:
    """The way from sites to thunks, for a whole image."""

    kind: Literal["relative", "absolute"] = "relative"

    def size(self, bits: int) -> int:
        """Bytes that a site needs."""
        if self.kind == "relative":
            return 5
        return 6 if bits == 32 else 7


def enter_relative(bits: int, address: int, target: int) -> bytes:
    """JMP rel32 from ``address`` to ``target``; at 32 bits the distance wraps."""
    distance = target - address - 5
    if bits == 64 and not -(1 << 31) <= distance < 1 << 31:
        raise ValueError(f"{target:#x} is out of relative reach of {address:#x}")
    return b"\xe9" + (distance & 0xFFFFFFFF).to_bytes(4, "little")


def enter_absolute(bits: int, pointer: int, *, jump: bool) -> bytes:
    """CALL or JMP through the pointer at an absolute address below 2 GiB."""
    if not 0 <= pointer < 1 << 31:
        raise ValueError(f"pointer at {pointer:#x} is out of absolute reach")
    if bits == 32:
        return (b"\xff\x25" if jump else b"\xff\x15") + pointer.to_bytes(4, "little")
    return (b"\xff\x24\x25" if jump else b"\xff\x14\x25") + pointer.to_bytes(4, "little")


def enter_short(address: int, target: int) -> bytes:
    """JMP rel8."""
    distance = target - address - 2
    if not -128 <= distance <= 127:
        raise SelfCheckError("a cave is out of reach of a short jump")
    return b"\xeb" + (distance & 0xFF).to_bytes(1, "little")
