"""Moving a guest's own instruction into a thunk, so that it does exactly what it did.

``check`` says whether and why not; ``relocate`` appends the moved instruction where the thunk
keeps its distance to the site (relative reach). Code whose image moves is in
``rewriter.emit.relocate_absolute``.
"""

from __future__ import annotations

from iced_x86 import Code, FlowControl, Instruction, Mnemonic, OpKind, Register

from rewriter.emit.assembly import SP, Assembly, Label, Place

__all__ = [
    "call_from",
    "check",
    "ends_block",
    "is_direct_branch",
    "is_direct_call",
    "push_return",
    "relocate",
    "relocate_to",
]

_DIRECT = (OpKind.NEAR_BRANCH32, OpKind.NEAR_BRANCH64)
_ADDRESS_MATTERS = {
    Mnemonic.INT3: "a breakpoint, found by its address",
    Mnemonic.INT1: "a breakpoint, found by its address",
    Mnemonic.INT: "a software interrupt, whose frame shows its address",
    Mnemonic.INTO: "a software interrupt, whose frame shows its address",
    Mnemonic.UD0: "an undefined instruction, found by its address",
    Mnemonic.UD1: "an undefined instruction, found by its address",
    Mnemonic.UD2: "an undefined instruction, found by its address",
    Mnemonic.SYSCALL: "it saves its own address",
    Mnemonic.SYSENTER: "it leaves for another stack",
    Mnemonic.XBEGIN: "a transaction",
    Mnemonic.VMLAUNCH: "it enters a guest",
    Mnemonic.VMRESUME: "it enters a guest",
    Mnemonic.RSM: "it leaves system management mode",
}


def is_direct_call(instruction: Instruction) -> bool:
    """A near call to an address in the instruction."""
    return instruction.flow_control == FlowControl.CALL and instruction.op_kind(0) in _DIRECT


def is_direct_branch(instruction: Instruction) -> bool:
    """A near jump, conditional jump, loop or jecxz to an address in the instruction."""
    flow = instruction.flow_control
    return (
        flow in (FlowControl.CONDITIONAL_BRANCH, FlowControl.UNCONDITIONAL_BRANCH)
        and instruction.op_kind(0) in _DIRECT
    )


def ends_block(instruction: Instruction) -> bool:
    """Whether control never reaches the next instruction by falling through."""
    return instruction.flow_control in (
        FlowControl.UNCONDITIONAL_BRANCH,
        FlowControl.INDIRECT_BRANCH,
        FlowControl.RETURN,
    )


def check(instruction: Instruction) -> str:
    """Why an instruction that is no site cannot be moved; empty when it can."""
    if instruction.is_invalid:
        return "not an instruction"
    if reason := _ADDRESS_MATTERS.get(instruction.mnemonic):
        return reason
    flow = instruction.flow_control
    if flow in (FlowControl.INTERRUPT, FlowControl.EXCEPTION, FlowControl.XBEGIN_XABORT_XEND):
        return "it raises an exception at its address"
    if flow == FlowControl.INDIRECT_CALL:
        return "an indirect call"
    if instruction.op_count and instruction.op_kind(0) in (
        OpKind.NEAR_BRANCH16,
        OpKind.FAR_BRANCH16,
        OpKind.FAR_BRANCH32,
    ):
        return "a far or 16-bit branch"
    if instruction.is_ip_rel_memory_operand and instruction.memory_base == Register.EIP:
        return "an operand relative to EIP"
    return ""


def relocate(asm: Assembly, instruction: Instruction) -> None:
    """Append a moved instruction; direct calls go through ``call_from``."""
    origin = instruction.ip
    moved = instruction.copy()
    if not is_direct_branch(instruction):
        asm.add(moved, origin=origin)
        return
    if instruction.is_jmp_short_or_near or instruction.is_jcc_short_or_near:
        moved.as_near_branch()
        asm.add(moved, origin=origin)
        return
    taken, done = Label("taken"), Label("done")
    asm.add(moved, target=taken, origin=origin)  # loop and jecxz have only a short form
    asm.jump_label(done)
    asm.place(taken)
    asm.jump(instruction.near_branch_target)
    asm.place(done)


def relocate_to(asm: Assembly, instruction: Instruction, label: Label) -> None:
    """Append a moved direct branch whose target moved too."""
    moved = instruction.copy()
    if instruction.is_jmp_short_or_near or instruction.is_jcc_short_or_near:
        moved.as_near_branch()
        asm.add(moved, target=label, origin=instruction.ip)
        return
    taken, done = Label("taken"), Label("done")
    asm.add(moved, target=taken, origin=instruction.ip)
    asm.jump_label(done)
    asm.place(taken)
    asm.jump_label(label)
    asm.place(done)


def call_from(asm: Assembly, instruction: Instruction) -> None:
    """A moved direct call whose callee finds the original return address on the stack.

    Code finds itself by its return address (the i386 "get pc" idiom), and backtraces and
    unwinders look it up, so the thunk must not show there.
    """
    push_return(asm, instruction.next_ip)
    asm.jump(instruction.near_branch_target, origin=instruction.ip)


def push_return(asm: Assembly, back: int) -> None:
    """Push the address ``back`` of the guest's code, wherever the code runs; no flag changes."""
    if asm.bits == 64:
        asm.push(0)
        asm.address(0, Place(displacement=back, rip=True))
        asm.add(Instruction.create_mem_reg(Code.XCHG_RM64_R64, asm.pointer(Place(SP)), Register.RAX))
    else:
        here = Label("here")
        asm.push(0)  # becomes the return address
        asm.push(0)
        asm.call_label(here)
        asm.place(here)
        asm.pop(0)
        asm.add_relative(here, back)
        asm.store(Place(SP, displacement=asm.word), 0)
        asm.pop(0)
