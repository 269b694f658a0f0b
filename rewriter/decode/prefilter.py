"""From instruction boundaries to the few places where a sensitive instruction may be."""

import numpy as np
from numpy.typing import NDArray

from rewriter.decode.classification import candidate_filter
from rewriter.decode.opcode_tables import ByteArray
from rewriter.decode.sweep import Marks

CHUNK = 1 << 20


def candidates(code: ByteArray, marks: Marks, prefixes: ByteArray, width: int) -> NDArray[np.int64]:
    """Offsets of marked instructions whose opcode may be a sensitive one, in order.

    No sensitive instruction is lost; what remains (below one in a hundred) is for a full decoder to confirm.
    """
    table = candidate_filter(width)
    parts: list[NDArray[np.int64]] = []
    last = code.size - 1
    for begin in range(0, code.size, CHUNK):
        start = begin + np.flatnonzero(marks[begin : begin + CHUNK])
        opcode = start + prefixes[start]
        inside = opcode < last
        if not inside.all():
            edge = start[~inside]  # no byte follows the opcode: let the decoder look
            parts.append(edge)
            start, opcode = start[inside], opcode[inside]
        verdict = table.first[code[opcode]]
        plain = np.flatnonzero(verdict == 1)
        at = opcode[plain]
        kept = table.pair[code[at] | (code[at + 1].astype(np.uint16) << np.uint16(8))] > 0
        parts.append(start[plain[kept]])
        escaped = np.flatnonzero(verdict == 2)
        escaped = escaped[table.second[code[opcode[escaped] + 1]] > 0]
        at_end = opcode[escaped] >= last - 1
        parts.append(start[escaped[at_end]])
        escaped = escaped[~at_end]
        at = opcode[escaped] + 1
        kept = table.escaped_pair[code[at] | (code[at + 1].astype(np.uint16) << np.uint16(8))] > 0
        parts.append(start[escaped[kept]])
    joined: NDArray[np.int64] = np.unique(np.concatenate(parts)) if parts else np.zeros(0, np.int64)
    return joined
