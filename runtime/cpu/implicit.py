"""Which user instructions touch supervisor memory on their own account?

Loading a segment register, a far transfer or LAR reads descriptors, a call gate writes the inner
stack: the CPU checks these accesses as supervisor accesses whatever the privilege level (Intel SDM
vol. 3, 4.6). The TLB hook does not say which accesses those are, so such an instruction is run
once more with all of its accesses checked that way.
"""

from __future__ import annotations

import iced_x86

from runtime.cpu.vcpu import VCpu

__all__ = ["reads_descriptors"]

_MNEMONICS = frozenset(
    getattr(iced_x86.Mnemonic, name)
    for name in (
        "LDS", "LES", "LFS", "LGS", "LSS", "LAR", "LSL", "VERR", "VERW", "IRET", "IRETD", "IRETQ", "RETF",
    )
)  # fmt: skip
_SEGMENTS = frozenset(
    getattr(iced_x86.Register, name) for name in ("ES", "CS", "SS", "DS", "FS", "GS")
)
_FAR_CODES = frozenset(
    value
    for name, value in vars(iced_x86.Code).items()
    if isinstance(value, int) and name.startswith(("CALL_PTR", "JMP_PTR", "CALL_M16", "JMP_M16"))
)


def reads_descriptors(code: bytes, cpu: VCpu) -> bool:
    """True if the instruction at the start of `code` makes supervisor accesses by itself."""
    if not code:
        return False
    instruction = iced_x86.Decoder(cpu.code_width, code).decode()
    if instruction.mnemonic in _MNEMONICS or instruction.code in _FAR_CODES:
        return True
    if instruction.mnemonic in (iced_x86.Mnemonic.MOV, iced_x86.Mnemonic.POP):
        return instruction.op0_kind == iced_x86.OpKind.REGISTER and instruction.op0_register in _SEGMENTS
    return False
