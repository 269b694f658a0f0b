"""What code after a site still needs: dead registers, and the red zone below the stack pointer."""

from __future__ import annotations

from iced_x86 import FlowControl, Instruction, InstructionInfoFactory, OpAccess, Register, RegisterExt

from rewriter.emit.assembly import GPR64
from rewriter.emit.relocate import is_direct_branch
from rewriter.tactics.view import CodeView

__all__ = ["dead_registers", "needs_stack", "red_zone_live", "sets_stack_pointer", "stackless_after"]

RED_ZONE = 128
_LIMIT = 400  # instructions followed before the answer is the cautious one
_INFO = InstructionInfoFactory()
_FULL = tuple(getattr(Register, name) for name in GPR64)
_READ = (OpAccess.READ, OpAccess.COND_READ, OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE)
_STACK = (Register.ESP, Register.RSP)


def dead_registers(view: CodeView, address: int, bits: int) -> tuple[int, ...]:
    """Registers written before they are read on the straight way from ``address`` on."""
    unknown = set(range(8 if bits == 32 else 16)) - {4}
    dead: list[int] = []
    for _ in range(32):
        instruction = view.at(address)
        if instruction is None or not unknown:
            break
        written: set[int] = set()
        for used in _INFO.info(instruction).used_registers():
            full = RegisterExt.full_register(used.register)
            if full not in _FULL:
                continue
            number = _FULL.index(full)
            whole = RegisterExt.size(used.register) >= 4
            if used.access == OpAccess.WRITE and whole:
                written.add(number)
            elif used.access != OpAccess.NONE:
                unknown.discard(number)
        dead += sorted(written & unknown)
        unknown -= written
        if instruction.flow_control != FlowControl.NEXT:
            break
        address = instruction.next_ip
    return tuple(dead)


def stackless_after(view: CodeView, address: int) -> tuple[int, ...] | None:
    """Instructions from ``address`` (behind a load of SS) up to the one that sets the stack pointer.

    None when the guest uses its stack first: then the stack is the same as before. A far jump
    counts as one that runs without a stack, and so does the one that sets the stack pointer.
    Behind a far jump the search goes on if its target, in a flat segment, is known 32-bit code.
    """
    zone: list[int] = []
    for _ in range(32):
        instruction = view.at(address)
        if instruction is None or _uses_stack(instruction):
            return None
        zone.append(address)
        if sets_stack_pointer(instruction):
            return tuple(zone)
        if instruction.is_jmp_far or instruction.is_jmp_far_indirect:
            address = instruction.far_branch32 if instruction.is_jmp_far else 0
            if view.width(address) != 32:
                return tuple(zone)
        elif is_direct_branch(instruction) and instruction.flow_control == FlowControl.UNCONDITIONAL_BRANCH:
            address = instruction.near_branch_target
        elif instruction.flow_control in (FlowControl.NEXT, FlowControl.CONDITIONAL_BRANCH):
            address = instruction.next_ip
        else:
            return None
    return None


def needs_stack(view: CodeView, address: int) -> bool:
    """Whether the instruction at an address is itself a use of the stack."""
    instruction = view.at(address)
    return instruction is not None and _uses_stack(instruction)


def _uses_stack(instruction: Instruction) -> bool:
    """Whether an instruction needs what its stack pointer names, or moves on from there."""
    if instruction.stack_pointer_increment or instruction.memory_base in _STACK:
        return True
    return any(
        used.register in _STACK and used.access in (OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE)
        for used in _INFO.info(instruction).used_registers()
    )


def red_zone_live(view: CodeView, address: int) -> bool:
    """Whether bytes below the stack pointer may be read after ``address`` before they are written.

    Forward search over all paths; a call, a push or a change of the stack pointer ends a
    path, since no code keeps anything below the stack pointer over those.
    """
    work: list[tuple[int, frozenset[int]]] = [(address, frozenset())]
    seen: set[int] = set()
    while work:
        current, written = work.pop()
        if current in seen:
            continue
        seen.add(current)
        instruction = view.at(current)
        if instruction is None:
            continue
        if len(seen) > _LIMIT:
            return False
        below = _below(instruction)
        if below is not None:
            touched, access = below
            if access in _READ and not touched <= written:
                return True
            if access == OpAccess.WRITE:
                written |= touched
        work += [(target, written) for target in _successors(instruction)]
    return False


def _below(instruction: Instruction) -> tuple[frozenset[int], int] | None:
    """The bytes below the stack pointer that a memory operand covers, and how they are accessed."""
    if instruction.memory_base not in _STACK or instruction.memory_index != Register.NONE:
        return None
    displacement = instruction.memory_displacement
    signed = displacement - (1 << 64) if displacement >> 63 else displacement
    if instruction.memory_base == Register.ESP and signed >> 31 == 1:
        signed -= 1 << 32
    if not -RED_ZONE <= signed < 0:
        return None
    for used in _INFO.info(instruction).used_memory():
        if used.base in _STACK and used.displacement == displacement:
            from iced_x86 import MemorySizeExt

            size = max(int(MemorySizeExt.size(used.memory_size)), 1)
            return frozenset(range(signed, min(signed + size, 0))), int(used.access)
    return None


def _successors(instruction: Instruction) -> list[int]:
    if instruction.stack_pointer_increment or sets_stack_pointer(instruction):
        return []
    flow = instruction.flow_control
    if flow == FlowControl.NEXT:
        return [instruction.next_ip]
    if flow == FlowControl.CONDITIONAL_BRANCH:
        return [instruction.next_ip, instruction.near_branch_target]
    if is_direct_branch(instruction):
        return [instruction.near_branch_target]
    return []


def sets_stack_pointer(instruction: Instruction) -> bool:
    """Whether an instruction writes the stack pointer."""
    return any(
        used.register in _STACK and used.access not in (OpAccess.READ, OpAccess.NONE)
        for used in _INFO.info(instruction).used_registers()
    )
