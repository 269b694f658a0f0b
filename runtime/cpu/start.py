"""Puts the CPU into the state in which a boot protocol enters the guest."""

from __future__ import annotations

from runtime.boot.model import EntryState, FlatSegment
from runtime.cpu import flags as fl
from runtime.cpu.segments import load_cache, update_modes
from runtime.cpu.vcpu import VCpu

__all__ = ["GPR_NAMES", "enter_guest"]

GPR_NAMES = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip
_LONG_CODE = 0x00A09B00


def enter_guest(cpu: VCpu, entry: EntryState) -> None:
    """Set every register from `entry`; the IDT is empty and TR, LDT are null, as after reset."""
    cpu.reset()
    state = cpu.state
    for index, name in enumerate(GPR_NAMES):
        state.gpr[index] = entry.registers.get(name, 0)
    state.gdt.base, state.gdt.limit = entry.gdt
    state.idt.base, state.idt.limit = 0, 0
    if entry.long_mode:
        state.efer = fl.EFER_LME
        cpu.write_control(4, entry.cr4 | fl.CR4_PAE)
        cpu.write_control(3, entry.cr3)
        cpu.write_control(0, entry.cr0 | fl.CR0_PG | fl.CR0_PE)
    else:
        cpu.write_control(4, entry.cr4)
        cpu.write_control(3, entry.cr3)
        cpu.write_control(0, entry.cr0 | fl.CR0_PE)
    code = entry.code
    if entry.long_mode and not code.attributes & fl.DESC_LONG:
        code = FlatSegment(code.selector, code.base, code.limit, _LONG_CODE)
    load_cache(cpu, fl.CS, code.selector, code.base, code.limit, code.attributes)
    data = entry.data
    for index in (fl.ES, fl.SS, fl.DS, fl.FS, fl.GS):
        load_cache(cpu, index, data.selector, data.base, data.limit, data.attributes)
    update_modes(cpu, code.selector & 3)
    cpu.rflags = entry.rflags
    state.rip = entry.rip
