"""Instruction lengths at every offset of a byte range, computed with numpy.

`instruction_lengths` answers, for every offset of a code range, "how long would an instruction be
that starts here, and how many prefix bytes has it". The one pass over all offsets handles
opcodes without prefix; offsets that hold a prefix or an escape byte are few and are
resolved in groups. The tables come from `rewriter.decode.opcode_tables`.
"""

from dataclasses import dataclass

import numpy as np
from iced_x86 import EncodingKind, OpCodeTableKind
from numpy.typing import NDArray

from rewriter.decode.opcode_tables import (
    ESCAPE,
    EVEX,
    LENGTH_MASK,
    SIB_DISPLACEMENT,
    VEX2,
    VEX3,
    XOP,
    ByteArray,
    Context,
    legacy_table,
    modrm_lengths,
    suffix_opcodes,
    vector_table,
)

MAX_INSTRUCTION = 15
"""Longest legal instruction in bytes (SDM 2, section 2.3.11)."""

CHUNK = 1 << 19
"""Offsets handled at once: keeps the temporaries inside the processor cache."""

Positions = NDArray[np.int64]

_LEGACY_PREFIXES = (0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3)
_VEX_MAPS = {1: OpCodeTableKind.T0F, 2: OpCodeTableKind.T0F38, 3: OpCodeTableKind.T0F3A}
_EVEX_MAPS = {**_VEX_MAPS, 5: OpCodeTableKind.MAP5, 6: OpCodeTableKind.MAP6}
_XOP_MAPS = {8: OpCodeTableKind.MAP8, 9: OpCodeTableKind.MAP9, 10: OpCodeTableKind.MAP10}


@dataclass(frozen=True)
class LengthMap:
    """Result for one range: both arrays have one element per byte."""

    width: int
    lengths: ByteArray
    """Instruction length in bytes when decoding starts at this offset, 0 when invalid."""
    prefixes: ByteArray
    """Number of legacy and REX prefix bytes before the opcode."""


def _prefix_classes(width: int) -> ByteArray:
    """0 opcode, 1 legacy prefix, 2 REX."""
    classes = np.zeros(256, np.uint8)
    classes[list(_LEGACY_PREFIXES)] = 1
    if width == 64:
        classes[0x40:0x50] = 2
    return classes


class _Range:
    """One chunk under work: `data` has at least 20 readable bytes after the last offset."""

    def __init__(self, data: ByteArray, count: int, width: int) -> None:
        self.data = data
        self.count = count
        self.width = width
        pairs = data[:-1].astype(np.uint16)
        pairs |= data[1:].astype(np.uint16) << np.uint16(8)
        self.pairs = pairs

    def from_opcode(self, at: Positions, context: Context) -> ByteArray:
        """Lengths from the opcode bytes at `at`, all of them in the same prefix context."""
        result = legacy_table(OpCodeTableKind.NORMAL, context)[self.pairs[at]]
        self._finish(result, at, at, context)
        return result

    def _finish(self, result: ByteArray, at: Positions, opcode: Positions, context: Context) -> None:
        """Resolve SIB and escapes in `result`, in place; `opcode` is where the table was read."""
        special = np.flatnonzero(result >= ESCAPE)
        if not special.size:
            return
        self._add_sib(result, special[(result[special] & SIB_DISPLACEMENT) != 0], opcode)
        escapes = special[result[special] == ESCAPE]
        if not escapes.size:
            return
        first = self.data[opcode[escapes]]
        legacy = escapes[first == 0x0F]
        result[legacy] = self._map_0f(opcode[legacy] + 1, context)
        for byte in (VEX2, VEX3, EVEX, XOP):
            chosen = escapes[first == byte]
            if chosen.size:
                result[chosen] = self._vector(byte, opcode[chosen], context)

    def _add_sib(self, result: ByteArray, chosen: NDArray[np.intp], opcode: Positions) -> None:
        base = self.data[opcode[chosen] + 2] & 7
        result[chosen] = (result[chosen] & LENGTH_MASK) + (base == 5).astype(np.uint8) * np.uint8(4)

    def _map_0f(self, at: Positions, context: Context) -> ByteArray:
        """Lengths of two-byte and three-byte opcodes, `at` being the byte after 0F."""
        result = legacy_table(OpCodeTableKind.T0F, context)[self.pairs[at]]
        sib = np.flatnonzero(result & SIB_DISPLACEMENT)
        self._add_sib(result, sib, at)
        for escape, table in ((0x38, OpCodeTableKind.T0F38), (0x3A, OpCodeTableKind.T0F3A)):
            chosen = np.flatnonzero((result == ESCAPE) & (self.data[at] == escape))
            if chosen.size:
                inner = legacy_table(table, context)[self.pairs[at[chosen] + 1]]
                self._add_sib(inner, np.flatnonzero(inner & SIB_DISPLACEMENT), at[chosen] + 1)
                result[chosen] = np.where(inner > 0, inner + 1, 0)
        chosen = np.flatnonzero((result == ESCAPE) & (self.data[at] == 0x0F))
        if chosen.size:  # 3DNow: ModRM operand, then the opcode byte
            inner = modrm_lengths(context.address_size)[self.data[at[chosen] + 1]]
            self._add_sib(inner, np.flatnonzero(inner & SIB_DISPLACEMENT), at[chosen])
            known = suffix_opcodes()[self.data[at[chosen] + 1 + inner]]
            result[chosen] = np.where((known > 0) & (not context.lock), inner + 2, 0)
        return np.where(result > 0, result + 1, 0).astype(np.uint8)

    def _vector(self, byte: int, at: Positions, context: Context) -> ByteArray:
        """Lengths of VEX, EVEX and XOP instructions; `at` is the position of the first byte."""
        result = np.zeros(at.size, np.uint8)
        if context.operand_prefix or context.repeat or context.wide or context.lock:
            return result  # SDM 2.3.2: #UD
        second, third = self.data[at + 1], self.data[at + 2]
        selector: NDArray[np.uint8]
        implied: NDArray[np.uint8]
        if byte == VEX2:
            header, kind, maps = 2, EncodingKind.VEX, _VEX_MAPS
            selector, implied = np.ones(at.size, np.uint8), second & np.uint8(3)
        elif byte == EVEX:
            header, kind, maps = 4, EncodingKind.EVEX, _EVEX_MAPS
            selector, implied = second & np.uint8(7), third & np.uint8(3)
        else:
            header, kind = 3, EncodingKind.XOP if byte == XOP else EncodingKind.VEX
            maps = _XOP_MAPS if byte == XOP else _VEX_MAPS
            selector, implied = second & np.uint8(0x1F), third & np.uint8(3)
        for number, table_kind in maps.items():
            for prefix in range(4):
                chosen = np.flatnonzero((selector == number) & (implied == prefix))
                if not chosen.size:
                    continue
                opcode = at[chosen] + header
                inner = vector_table(kind, table_kind, prefix, context.width)[self.pairs[opcode]]
                self._add_sib(inner, np.flatnonzero(inner & SIB_DISPLACEMENT), opcode)
                result[chosen] = np.where(inner > 0, inner + np.uint8(header), 0)
        return result


def _resolve_prefixed(work: _Range, lengths: ByteArray, prefixes: ByteArray, classes: ByteArray) -> None:
    """Fill in the offsets of `work` that start with a prefix byte."""
    start = np.flatnonzero(classes[work.data[: work.count]])
    if not start.size:
        return
    position = start.copy()
    state = np.zeros(start.size, np.uint8)  # 1: 66, 2: 67, 4: F2, 8: F3, 16: REX.W, 32: too long, 64: F0
    active = np.arange(start.size)
    effects = np.zeros(256, np.uint8)
    effects[[0x66, 0x67, 0xF2, 0xF3, 0xF0]] = (1, 2, 4, 8, 64)
    effects[0x48:0x50] = 16
    for _ in range(MAX_INSTRUCTION):
        byte = work.data[position[active]]
        kind = classes[byte]
        active, byte, kind = active[kind > 0], byte[kind > 0], kind[kind > 0]
        if not active.size:
            break
        current = state[active] & np.uint8(0xEF)  # a REX counts only right before the opcode
        current[(byte == 0xF2) | (byte == 0xF3)] &= np.uint8(0xF3)
        state[active] = current | (effects[byte] if work.width == 64 else effects[byte] & 0x4F)
        position[active] += 1
    else:
        state[active] |= 32
    count = position - start
    for value in np.unique(state):
        chosen = np.flatnonzero(state == value)
        if value & 32:
            lengths[start[chosen]] = 0
            continue
        context = Context(
            work.width,
            operand_prefix=bool(value & 1),
            address_prefix=bool(value & 2),
            repeat=0xF3 if value & 8 else 0xF2 if value & 4 else 0,
            wide=bool(value & 16),
            lock=bool(value & 64),
        )
        inner = work.from_opcode(position[chosen], context)
        total = inner + count[chosen]
        lengths[start[chosen]] = np.where((inner > 0) & (total <= MAX_INSTRUCTION), total, 0)
    prefixes[start] = count


def instruction_lengths(code: bytes | memoryview | ByteArray, width: int) -> LengthMap:
    """Lengths at every offset of `code`, decoded as `width`-bit code (16, 32 or 64).

    An instruction that would reach beyond the end of `code` counts as invalid (0).
    """
    source = np.frombuffer(code, np.uint8)
    size = source.size
    lengths = np.zeros(size, np.uint8)
    prefixes = np.zeros(size, np.uint8)
    classes = _prefix_classes(width)
    context = Context(width)
    table = legacy_table(OpCodeTableKind.NORMAL, context)
    for begin in range(0, size, CHUNK):
        count = min(CHUNK, size - begin)
        data = np.zeros(count + 2 * MAX_INSTRUCTION + 2, np.uint8)
        available = source[begin : begin + data.size]
        data[: available.size] = available
        work = _Range(data, count, width)
        result = table[work.pairs[:count]]
        special = np.flatnonzero(result >= ESCAPE)
        resolved = result[special]
        work._finish(resolved, special, special, context)
        result[special] = resolved
        _resolve_prefixed(work, result, prefixes[begin : begin + count], classes)
        lengths[begin : begin + count] = result
    tail = max(0, size - MAX_INSTRUCTION)
    overrun = tail + np.flatnonzero(np.arange(tail, size) + lengths[tail:] > size)
    lengths[overrun] = 0
    return LengthMap(width, lengths, prefixes)
