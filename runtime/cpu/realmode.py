"""Interrupts in real mode: through the vector table, as Intel SDM vol. 3, chapter "8086 Emulation" says.

The machine has no BIOS, so a vector that the guest has not set itself leads nowhere; that ends the run with a
sentence.
"""

from __future__ import annotations

from runtime.cpu import flags as fl
from runtime.cpu.delivery import Event
from runtime.cpu.linear import LinearMemory
from runtime.cpu.segments import load_cache
from runtime.cpu.vcpu import VCpu

__all__ = ["deliver_real", "in_real_mode", "no_bios"]

_REAL_CODE, _LIMIT = 0x9B00, 0xFFFF
_BIOS = {
    0x10: "video", 0x11: "equipment list", 0x12: "memory size", 0x13: "disk", 0x14: "serial port",
    0x15: "system services, as the memory map", 0x16: "keyboard", 0x1A: "time of day and PCI",
}  # fmt: skip


def in_real_mode(cpu: VCpu) -> bool:
    """True while CR0.PE is clear."""
    return not cpu.state.cr[0] & fl.CR0_PE


def no_bios(cpu: VCpu, event: Event) -> str:
    """Why an event that no vector is set for ends the run."""
    ax = cpu.state.gpr[fl.RAX] & 0xFFFF
    if event.software and event.vector in _BIOS:
        what = f"{event.vector:02X}h, {_BIOS[event.vector]}"
        return f"the guest calls the BIOS in real mode (INT {what}; AX {ax:04X}): this machine has none"
    return f"{event.name} in real mode, where no handler is set for it"


def deliver_real(cpu: VCpu, memory: LinearMemory, event: Event) -> bool:
    """Push FLAGS, CS and IP and go to the vector's handler; False if the table holds none."""
    state = cpu.state
    if event.vector * 4 + 3 > state.idt.limit:
        return False
    vector = memory.read(state.idt.base + event.vector * 4, 4)
    if not any(vector):
        return False
    stack, code = state.segments[fl.SS], state.segments[fl.CS]
    sp = state.gpr[fl.RSP] & 0xFFFF
    for word in (cpu.rflags, code.selector, state.rip):
        sp = sp - 2 & 0xFFFF
        memory.write(stack.base + sp, (word & 0xFFFF).to_bytes(2, "little"))
    state.gpr[fl.RSP] = state.gpr[fl.RSP] & ~0xFFFF | sp
    cpu.rflags &= ~(fl.IF | fl.TF | fl.AC | fl.RF)
    state.rip, selector = int.from_bytes(vector[:2], "little"), int.from_bytes(vector[2:], "little")
    load_cache(cpu, fl.CS, selector, selector << 4, _LIMIT, _REAL_CODE)
    return True
