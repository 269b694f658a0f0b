"""Nothing emitted is believed: every thunk and every site is decoded again and compared with the plan.

iced decodes what iced encoded, instruction by instruction, against the intent; capstone, which
shares no code with it, must see the same boundaries; and every relocated instruction must be
the operation it was at its old place.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import capstone
from iced_x86 import Decoder, Instruction, Mnemonic, Register

from pvpatch.abi.errors import SelfCheckError
from rewriter.emit.assembly import Encoded, Item
from rewriter.emit.operation import operation
from rewriter.emit.patch import PatchJob
from rewriter.emit.relocate import is_direct_branch, is_direct_call
from rewriter.emit.thunk import BODY
from rewriter.tactics import Window
from rewriter.verify_windows import check_windows

__all__ = ["VerificationError", "same_operation", "verify"]


class VerificationError(SelfCheckError):
    """The emitted code is not what was meant: a fault of this program, found before anything is written."""


def verify(job: PatchJob, payload: bytes) -> int:
    """Check all thunks and sites of a finished payload; returns the number of instructions compared."""
    check_windows(job.view, job.reach, job.plan)
    count = 0
    entries = [change.offset for change in job.edits.changes if change.kind == "entry"]
    for window in job.plan.windows:
        encoded = job.resident.thunks[window.start]
        start = job.block_offset + job.resident.thunk_offsets[window.start]
        data = payload[start : start + len(encoded.data)]
        count += check_encoded(encoded, data, window.bits)
        _check_origins(job, window, encoded)
        _check_site(job, window, payload, entries)
    return count


def check_encoded(encoded: Encoded, data: bytes, bits: int) -> int:
    """Decode what was written and compare it with the intended instructions."""
    if data != encoded.data:
        raise VerificationError(f"the thunk at {encoded.address:#x} was overwritten")
    decoder = Decoder(bits, data, ip=encoded.address)
    for start, item in zip(encoded.starts, encoded.items, strict=True):
        if decoder.position != start:
            raise VerificationError(f"an instruction of the thunk at {encoded.address:#x} is misplaced")
        found = decoder.decode()
        if not _equal(found, item):
            raise VerificationError(f"'{item.instruction}' was encoded as '{found}' at {found.ip:#x}")
    if decoder.position != len(data):
        raise VerificationError(f"the thunk at {encoded.address:#x} has bytes left over")
    _check_boundaries(encoded, data, bits)
    return len(encoded.items)


def _equal(found: Instruction, item: Item) -> bool:
    return operation(found) == operation(item.instruction)


@cache
def _engine(bits: int) -> capstone.Cs:
    return capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64 if bits == 64 else capstone.CS_MODE_32)


def _check_boundaries(encoded: Encoded, data: bytes, bits: int) -> None:
    decoded = _engine(bits).disasm_lite(data, encoded.address)
    starts = {address - encoded.address for address, *_ in decoded}
    end = max(starts, default=0)
    wanted = {start for start in encoded.starts if start <= end}
    if starts != wanted:
        raise VerificationError(f"capstone sees other instructions in the thunk at {encoded.address:#x}")


def _check_origins(job: PatchJob, window: Window, encoded: Encoded) -> None:
    """Every instruction that moved does what it did, and all of the window's are there in their order."""
    shift = window.bits // 8 if job.reach.kind == "absolute" else 0
    homes = {origin: home for origin, home in encoded.homes.items() if origin != window.start}
    order = []
    for item in encoded.items:
        if item.origin is None:
            continue
        original = job.view.at(item.origin)
        if original is None or not same_operation(original, item.instruction, shift, homes):
            raise VerificationError(f"'{original}' at {item.origin:#x} became '{item.instruction}'")
        order.append(item.origin)
    mainline = order[: len(order) - _copies(encoded)]
    once = list(dict.fromkeys(mainline))  # what stands in a shadow and is a branch target is there twice
    if once != sorted(once):
        raise VerificationError(f"the window at {window.start:#x} lost its order")
    if job.reach.kind == "relative" and not set(window.instructions) <= set(mainline):
        raise VerificationError(f"the window at {window.start:#x} lost an instruction")


def _copies(encoded: Encoded) -> int:
    """Moved instructions in the bodies of cells, which stand behind the mainline."""
    first = min(
        (offset for label, offset in encoded.labels.items() if label.name == BODY),
        default=len(encoded.data),
    )
    return sum(
        item.origin is not None and start >= first
        for start, item in zip(encoded.starts, encoded.items, strict=True)
    )


def same_operation(
    original: Instruction, moved: Instruction, shift: int = 0, homes: Mapping[int, int] | None = None
) -> bool:
    """Whether a moved instruction is the original one: same opcode, operands and absolute targets.

    Branches may have grown; a direct call may have become the jump of a call whose return
    address was pushed before; ``shift`` is what a return address on the stack adds to
    operands based on the stack pointer; ``homes`` gives the new place of targets that moved too.
    """
    if is_direct_call(original):
        same_target = moved.near_branch_target == original.near_branch_target
        return bool(moved.mnemonic == Mnemonic.JMP and same_target)
    if is_direct_branch(original):
        target = original.near_branch_target
        near = original.is_jcc_short_or_near or original.is_jmp_short_or_near
        aimed = moved.near_branch_target in (target, (homes or {}).get(target, target))
        return moved.mnemonic == original.mnemonic and (aimed or not near)
    if operation(moved) == operation(original):
        return True
    back = moved.copy()
    if original.len == 1 and moved.segment_prefix == Register.DS:  # no such instruction uses another
        back.segment_prefix = Register.NONE
        return operation(back) == operation(original)
    back.memory_displacement = (moved.memory_displacement - shift) & (2**64 - 1)
    return (
        bool(shift)
        and moved.memory_base in (Register.ESP, Register.RSP)
        and operation(back) == operation(original)
    )


def _check_site(job: PatchJob, window: Window, payload: bytes, entries: list[int]) -> None:
    """The site's jump leads to its thunk (a flat image's entry window is overlaid by the entry jump)."""
    offset = job.image.offset_of(window.entry)
    assert offset is not None
    if any(entry < offset + 7 and offset < entry + 5 for entry in entries):
        return
    code = Decoder(window.bits, payload[offset : offset + 15], ip=window.entry).decode()
    if job.reach.kind == "absolute":
        reached = code.memory_displacement == job.resident.pointers[window.start]
    else:
        address = job.resident.thunks[window.start].address
        mask = (1 << window.bits) - 1
        reached = code.near_branch_target & mask == address & mask
    if not reached:
        raise VerificationError(f"the jump at {window.entry:#x} leads to {code}")
