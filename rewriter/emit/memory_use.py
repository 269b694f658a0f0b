"""What an image shows of the memory that it takes for its own.

A kernel that is told of its memory gets a map without the resident block. One that never asks takes what it
knows from its linker: most often all from its own end up to a constant (xv6 and other teaching kernels).
"""

from __future__ import annotations

from iced_x86 import FlowControl, Instruction, InstructionInfoFactory, OpAccess, OpKind, Register, RegisterExt

from rewriter.image import EntryPoint, Image
from rewriter.image.multiboot import find_multiboot
from rewriter.tactics.view import CodeView

__all__ = ["asks_for_map", "named_addresses"]

_LIMIT = 400  # instructions followed before the answer is "it may read it"
_INFO = InstructionInfoFactory()
_IMMEDIATES = (OpKind.IMMEDIATE32, OpKind.IMMEDIATE32TO64, OpKind.IMMEDIATE64)
_WRITES = (OpAccess.WRITE,)


def asks_for_map(image: Image, view: CodeView, entries: tuple[EntryPoint, ...]) -> bool:
    """Whether the kernel can learn by each of its entries that the block's memory is taken.

    Linux and PVH always hand over a map. Multiboot does on request (flag 1, or an information request
    tag), and what is requested is read through EBX. A bare ELF entry gets nothing.
    """
    requested: dict[str, bool] = {
        header.protocol: header.wants_memory for header in find_multiboot(image.payload)
    }
    for entry in entries:
        if entry.protocol in ("pvh", "linux32", "linux64"):
            continue
        if not requested.get(entry.protocol) or not _may_read_ebx(view, entry.address):
            return False
    return True


def _may_read_ebx(view: CodeView, start: int) -> bool:
    """Whether some path from the entry reads EBX before it is written; true where that is not known."""
    todo, seen = [start], set[int]()
    while todo:
        address = todo.pop()
        while address not in seen:
            seen.add(address)
            instruction = view.at(address)
            if instruction is None or len(seen) > _LIMIT:
                return True
            use = _use_of_ebx(instruction)
            if use == "read":
                return True
            if use == "written":
                break
            if instruction.is_jmp_far:
                address = instruction.far_branch32
                continue
            flow = instruction.flow_control
            if flow in (FlowControl.CONDITIONAL_BRANCH, FlowControl.CALL):
                todo.append(instruction.near_branch_target)
            elif flow == FlowControl.UNCONDITIONAL_BRANCH:
                address = instruction.near_branch_target
                continue
            elif flow != FlowControl.NEXT:
                return True
            address = instruction.next_ip
    return False


def _use_of_ebx(instruction: Instruction) -> str:
    """What an instruction does with EBX: read, written, or neither (empty)."""
    found = ""
    for used in _INFO.info(instruction).used_registers():
        if RegisterExt.full_register(used.register) != Register.RBX or used.access == OpAccess.NONE:
            continue
        if used.access not in _WRITES or RegisterExt.size(used.register) < 4:
            return "read"
        found = "written"
    return found


def named_addresses(view: CodeView, low: int, high: int) -> tuple[int, ...]:
    """Numbers in [low, high) that known code holds as immediates or absolute displacements, sorted."""
    found: set[int] = set()
    for region in view.regions:
        for offset, length in enumerate(region.lengths):
            if length < 5:
                continue
            instruction = view.at(region.vaddr + offset)
            if instruction is None:
                continue
            found.update(value for value in _constants(instruction) if low <= value < high)
    return tuple(sorted(found))


def _constants(instruction: Instruction) -> list[int]:
    found = []
    for index in range(instruction.op_count):
        kind = instruction.op_kind(index)
        if kind in _IMMEDIATES:
            found.append(instruction.immediate(index))
        elif kind == OpKind.MEMORY and not instruction.is_ip_rel_memory_operand:
            found.append(instruction.memory_displacement)
    return found
