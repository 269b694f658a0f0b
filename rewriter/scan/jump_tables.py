"""Switch statements: from an indirect jump back to its table and the table's entries.

Forms that compilers emit (base and index in any register):

    jmp [index*scale + table]                                 absolute entries
    mov r, [index*scale + table] ; jmp r                      absolute entries
    lea b, [rip+table] ; movsxd r, [b+index*4] ; add r, b ; jmp r      entries relative to the table
    mov r, [got+index*4+table@GOTOFF] ; add r, got ; jmp r    entries relative to the GOT (i386 PIC)

The number of entries comes from what bounds the index: a comparison, a mask, a shift, the load of a byte.
Without it, entries are taken as long as they lead to plausible code near by. Where no section says what is
code, pointers to text may follow a table: there, all that an entry reaches must look like code.
"""

from __future__ import annotations

from dataclasses import dataclass

from iced_x86 import Instruction, MemorySizeExt, Mnemonic, OpKind, Register, RegisterInfo

from rewriter.scan.explore import Explorer

__all__ = ["JumpTable", "resolve_jump"]

LOOK_BACK = 16
"""Instructions before the jump that are examined."""
HOIST_BACK = 400
"""Instructions before the jump in which the table's address may have been loaded."""
MAX_ENTRIES = 1024
MAX_DISTANCE = 1 << 20
"""Bytes between a jump and its targets that an unguarded table may span."""


@dataclass(frozen=True, slots=True)
class JumpTable:
    """A resolved table: where it lies, its size in bytes and where it leads.

    `bounded`: the code before the jump says how many entries there are, and all of them lead to code.
    """

    address: int
    size: int
    targets: tuple[int, ...]
    bounded: bool


@dataclass(frozen=True, slots=True)
class _Shape:
    table: int
    entry: int
    base: int
    """Added to every entry; 0 for absolute entries."""
    signed: bool
    index: int
    """The register that holds the number of the entry."""
    at: int
    """The instruction that reads the entry."""


def _before(explorer: Explorer, address: int, width: int, limit: int = LOOK_BACK) -> list[Instruction]:
    """Up to `limit` instructions that lie before `address` without a gap, nearest first."""
    region = explorer.space.find(address)
    result: list[Instruction] = []
    if region is None:
        return result
    lengths = explorer.lengths[region.index]
    offset = address - region.vaddr
    while len(result) < limit:
        back = next((n for n in range(1, 16) if offset >= n and lengths[offset - n] == n), 0)
        if not back:
            break
        offset -= back
        result.append(explorer.decoder.instruction_at(region.vaddr + offset, width, region).copy())
    return result


def _full(register: int) -> int:
    return int(RegisterInfo(register).full_register) if register != Register.NONE else 0


def _shape(explorer: Explorer, jump: Instruction, before: list[Instruction], width: int) -> _Shape | None:
    entry = width // 8
    if jump.op0_kind == OpKind.MEMORY:
        if jump.memory_index == Register.NONE or jump.memory_index_scale != entry:
            return None
        return _absolute(jump, before, entry, width)
    if jump.op0_kind != OpKind.REGISTER:
        return None
    wanted, added = _full(jump.op0_register), 0
    for instruction in before:
        if instruction.op_count < 2 or instruction.op0_kind != OpKind.REGISTER:
            continue
        if _full(instruction.op0_register) != wanted:
            continue
        if instruction.mnemonic == Mnemonic.ADD and instruction.op1_kind == OpKind.MEMORY:
            return _relative(explorer, instruction, width)
        if instruction.mnemonic == Mnemonic.ADD and instruction.op1_kind == OpKind.REGISTER:
            added = _full(instruction.op1_register)
            continue
        if instruction.mnemonic in (Mnemonic.MOV, Mnemonic.MOVSXD) and instruction.op1_kind == OpKind.MEMORY:
            if instruction.memory_index == Register.NONE:
                return None
            if not added:
                return _absolute(instruction, before, entry, width)
            return _relative(explorer, instruction, width)
        return None
    return None


def _absolute(access: Instruction, before: list[Instruction], entry: int, width: int) -> _Shape | None:
    if access.memory_index_scale != entry:
        return None
    displacement = access.memory_displacement
    if access.memory_base == Register.NONE:
        return _Shape(displacement, entry, 0, False, _full(access.memory_index), access.ip)
    earlier = [instruction for instruction in before if instruction.ip < access.ip]
    loaded = _loaded_address(earlier, _full(access.memory_base))
    if loaded is None:
        return None
    table = (loaded + displacement) & ((1 << width) - 1)
    return _Shape(table, entry, 0, False, _full(access.memory_index), access.ip)


def _relative(explorer: Explorer, access: Instruction, width: int) -> _Shape | None:
    if access.memory_index_scale != 4 or access.memory_index == Register.NONE:
        return None
    if width == 64:
        for register in (_full(access.memory_base), _full(access.memory_index), access.ip):
            loaded = _hoisted_address(explorer, access.ip, register, width)
            if loaded is not None and not access.memory_displacement:
                return _Shape(loaded, 4, loaded, True, _full(access.memory_index), access.ip)
        return None
    if not explorer.got_bases:
        return None
    got = explorer.got_bases.most_common(1)[0][0]
    table = (got + access.memory_displacement) & 0xFFFF_FFFF
    return _Shape(table, 4, got, True, _full(access.memory_index), access.ip)


def _hoisted_address(explorer: Explorer, address: int, register: int, width: int) -> int | None:
    """The nearest `lea register, [rip+x]` before `address`: compilers hoist it out of loops."""
    for instruction in _before(explorer, address, width, HOIST_BACK):
        if (
            instruction.mnemonic == Mnemonic.LEA
            and instruction.is_ip_rel_memory_operand
            and _full(instruction.op0_register) == register
        ):
            return int(instruction.ip_rel_memory_address)
    return None


def _loaded_address(before: list[Instruction], register: int) -> int | None:
    for instruction in before:
        if instruction.op_count < 2 or instruction.op0_kind != OpKind.REGISTER:
            continue
        if _full(instruction.op0_register) != register:
            continue
        if instruction.mnemonic == Mnemonic.LEA and instruction.is_ip_rel_memory_operand:
            return int(instruction.ip_rel_memory_address)
        if instruction.mnemonic == Mnemonic.MOV and instruction.op1_kind in (
            OpKind.IMMEDIATE32,
            OpKind.IMMEDIATE32TO64,
            OpKind.IMMEDIATE64,
        ):
            return int(instruction.immediate(1))
        if instruction.mnemonic not in (Mnemonic.CMP, Mnemonic.TEST):
            return None
    return None


_Place = tuple[int, ...]
"""A register, or base, index, scale and displacement of a memory operand."""


def _place(instruction: Instruction, operand: int) -> _Place:
    """Where an operand lies; empty for an immediate."""
    kind = instruction.op_kind(operand)
    if kind == OpKind.REGISTER:
        return (_full(instruction.op_register(operand)),)
    if kind != OpKind.MEMORY:
        return ()
    return (
        _full(instruction.memory_base),
        _full(instruction.memory_index),
        instruction.memory_index_scale,
        instruction.memory_displacement,
    )


def _bound(before: list[Instruction], index: int) -> int:
    """How many values the index register of a table can have, by the code before its use; 0: that is silent.

    The register is traced back through moves; a comparison counts with the unsigned branch behind it.
    """
    behind: Instruction | None = None
    place: _Place = (index,)
    best = 0
    for instruction in before:
        following, behind = behind, instruction
        if instruction.op_count < 1 or _place(instruction, 0) != place:
            continue
        if limit := _limit(instruction, following):
            best = min(best, limit) if best else limit
        if instruction.mnemonic in _MOVES and _place(instruction, 1):
            place = _place(instruction, 1)
        elif instruction.mnemonic not in _KEEPS_INDEX:
            break
    return best


def _hint(before: list[Instruction]) -> int:
    """A number of entries that some comparison near by suggests; 0 without one."""
    for instruction in before:
        immediate = instruction.op_count == 2 and instruction.op1_kind in _IMMEDIATES
        if immediate and instruction.mnemonic == Mnemonic.CMP:
            limit = (int(instruction.immediate(1)) & 0xFFFF_FFFF) + 1
            if limit <= MAX_ENTRIES:
                return limit
    return 0


_IMMEDIATES = range(OpKind.IMMEDIATE8, OpKind.IMMEDIATE32TO64 + 1)
_MOVES = (Mnemonic.MOV, Mnemonic.MOVZX, Mnemonic.MOVSXD)
_KEEPS_INDEX = (Mnemonic.CMP, Mnemonic.TEST, Mnemonic.AND, Mnemonic.SHR)
_ABOVE = (Mnemonic.JA, Mnemonic.JBE)
_ABOVE_OR_EQUAL = (Mnemonic.JAE, Mnemonic.JB)


def _limit(instruction: Instruction, following: Instruction | None) -> int:
    """The number of values that one instruction leaves its first operand; 0 for any number."""
    mnemonic = instruction.mnemonic
    if mnemonic == Mnemonic.MOVZX:
        size = (
            MemorySizeExt.size(instruction.memory_size)
            if instruction.op1_kind == OpKind.MEMORY
            else RegisterInfo(instruction.op1_register).size
        )
        return 256 if size == 1 else 0
    if instruction.op_count != 2 or instruction.op1_kind not in _IMMEDIATES:
        return 0
    number = int(instruction.immediate(1)) & 0xFFFF_FFFF
    if mnemonic == Mnemonic.CMP and following is not None:
        limit = number + 1 if following.mnemonic in _ABOVE else 0
        limit = number if following.mnemonic in _ABOVE_OR_EQUAL else limit
    elif mnemonic == Mnemonic.AND:
        limit = number + 1
    elif mnemonic == Mnemonic.SHR:
        limit = 1 << max(_bits(instruction) - (number & 63), 0)
    else:
        limit = 0
    return limit if limit <= MAX_ENTRIES else 0


def _bits(instruction: Instruction) -> int:
    """Width of the first operand in bits."""
    if instruction.op0_kind == OpKind.MEMORY:
        return 8 * int(MemorySizeExt.size(instruction.memory_size))
    return 8 * int(RegisterInfo(instruction.op0_register).size)


def resolve_jump(explorer: Explorer, address: int, width: int) -> JumpTable | None:
    """The table behind the indirect jump at `address`, or None when its form is not understood."""
    region = explorer.space.find(address)
    if region is None:
        return None
    jump = explorer.decoder.instruction_at(address, width, region).copy()
    before = _before(explorer, address, width)
    shape = _shape(explorer, jump, before, width)
    if shape is None:
        return None
    bound = _bound([instruction for instruction in before if instruction.ip < shape.at], shape.index)
    guard = bound or _hint(before)
    targets = _entries(explorer, shape, address, width, guard) if guard else []
    bounded = len(targets) == bound > 0
    if len(targets) < max(guard, 1):  # no bound, or the index cannot reach all that it allows
        targets = _entries(explorer, shape, address, width, 0)
    if not targets:
        return None
    return JumpTable(shape.table, len(targets) * shape.entry, tuple(targets), bounded)


def _entries(explorer: Explorer, shape: _Shape, jump: int, width: int, guard: int) -> list[int]:
    targets: list[int] = []
    mask = (1 << width) - 1
    for index in range(guard or MAX_ENTRIES):
        if index and not guard and shape.table + index * shape.entry in explorer.references:
            break  # something else begins here
        data = explorer.space.read_static(shape.table + index * shape.entry, shape.entry)
        if data is None:
            break
        value = (int.from_bytes(data, "little", signed=shape.signed) + shape.base) & mask
        target = explorer.space.resolve(value)
        if target is None or not _acceptable(explorer, target, jump, width, guard > 0):
            break
        targets.append(target)
    return targets


def _acceptable(explorer: Explorer, target: int, jump: int, width: int, guarded: bool) -> bool:
    if explorer.is_start(target):
        return True
    if explorer.is_inside(target) or abs(target - jump) > MAX_DISTANCE:
        return False
    region = explorer.space.find(target)
    if region is None:
        return False
    block = explorer.decoder.block(target, width, explorer.widths[region.index], region)
    if not block.valid or block.runs_off:
        return False
    if guarded:
        return True
    likely = block.plausible and explorer.on_boundary(region, target, width)
    return likely and (region.section or explorer.leads_to_code(target, width))
