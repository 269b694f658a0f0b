"""Control flow of a swept region, computed with numpy: branch targets, block ends, addresses taken."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rewriter.decode.opcode_tables import ByteArray
from rewriter.scan.sweeping import Sweep, displacements

__all__ = ["Flow", "sweep_flow"]

CHUNK = 1 << 20

_REL8 = [*range(0x70, 0x80), 0xE0, 0xE1, 0xE2, 0xE3, 0xEB]
_REL32 = [0xE8, 0xE9]
_ENDS = [*_REL8, *_REL32, 0xC2, 0xC3, 0xCA, 0xCB, 0xCC, 0xCD, 0xCF, 0xF1, 0xEA, 0x9A]
_ENDS_0F = [0x05, 0x07, 0x0B, 0x34, 0x35, 0xAA, 0xB9, 0xFF, *range(0x80, 0x90)]
_PLAIN, _SHORT, _NEAR, _ESCAPE, _GROUP5, _END, _LEA = range(7)


@dataclass(frozen=True)
class Flow:
    """Offsets are relative to the region; targets may lie outside it."""

    ends: ByteArray
    """1 at instructions that transfer control."""
    branch_targets: NDArray[np.int64]
    call_targets: NDArray[np.int64]
    taken: NDArray[np.int64]
    """Targets of RIP-relative LEA."""
    immediates: NDArray[np.int64]
    """Last four bytes, sign-extended, of instructions long enough to hold an address."""
    unresolved: NDArray[np.int64]
    """Indirect jumps through a register or an indexed table."""


def _classes() -> ByteArray:
    table = np.zeros(256, np.uint8)
    table[_ENDS] = _END
    table[_REL8] = _SHORT
    table[_REL32] = _NEAR
    table[0x0F] = _ESCAPE
    table[0xFF] = _GROUP5
    table[0x8D] = _LEA
    return table


def sweep_flow(swept: Sweep) -> Flow:
    """Control flow of all instructions of a sweep."""
    code, classes = swept.code, _classes()
    escaped = np.zeros(256, np.bool_)
    escaped[_ENDS_0F] = True
    ends = np.zeros(code.size, np.uint8)
    targets: list[NDArray[np.int64]] = []
    calls: list[NDArray[np.int64]] = []
    taken: list[NDArray[np.int64]] = []
    immediates: list[NDArray[np.int64]] = []
    unresolved: list[NDArray[np.int64]] = []
    limit = code.size - 6
    for begin in range(0, code.size, CHUNK):
        start = begin + np.flatnonzero(swept.lengths[begin : begin + CHUNK])
        length = swept.lengths[start].astype(np.int64)
        opcode = start + swept.map.prefixes[start]
        after = start + length
        byte = code[opcode]
        kind = classes[byte]
        ends[start[(kind == _SHORT) | (kind == _NEAR) | (kind == _END)]] = 1
        short = kind == _SHORT
        targets.append(after[short] + code[after[short] - 1].view(np.int8))
        near = (kind == _NEAR) & (after - opcode == 5)
        where = after[near] + displacements(code, after[near] - 4)
        is_call = byte[near] == 0xE8
        targets.append(where)
        calls.append(where[is_call])
        two = np.flatnonzero((kind == _ESCAPE) & (opcode < limit))
        second = code[opcode[two] + 1]
        ends[start[two[escaped[second]]]] = 1
        jcc = two[((second & 0xF0) == 0x80) & (after[two] - opcode[two] == 6)]
        targets.append(after[jcc] + displacements(code, after[jcc] - 4))
        group = np.flatnonzero((kind == _GROUP5) & (opcode < limit))
        modrm = code[opcode[group] + 1]
        register = (modrm >> 3) & 7
        ends[start[group[(register >= 2) & (register <= 5)]]] = 1
        unresolved.append(start[group[(register == 4) & ((modrm & 0xC7) != 5)]])
        if swept.map.width == 64:
            lea = np.flatnonzero((kind == _LEA) & (opcode < limit))
            lea = lea[(code[opcode[lea] + 1] & 0xC7) == 5]
            taken.append(after[lea] + displacements(code, after[lea] - 4))
        wide = after[length >= 5]
        immediates.append(np.unique(displacements(code, wide - 4)))
    return Flow(
        ends,
        np.unique(np.concatenate(targets)) if targets else np.zeros(0, np.int64),
        np.unique(np.concatenate(calls)) if calls else np.zeros(0, np.int64),
        np.unique(np.concatenate(taken)) if taken else np.zeros(0, np.int64),
        np.unique(np.concatenate(immediates)) if immediates else np.zeros(0, np.int64),
        np.concatenate(unresolved) if unresolved else np.zeros(0, np.int64),
    )
