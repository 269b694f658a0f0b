"""RDMSR, WRMSR and MOV to and from CR8: the instructions by which a CPU reaches its local APIC.

The emulated CPU has no APIC: it would read zeros and keep CR8 to itself. Where the machine has one, the
watcher brings these instructions here before they run; what does not concern the APIC runs as it is.
"""

from __future__ import annotations

import enum

import iced_x86

from runtime.cpu import flags as fl
from runtime.cpu.vcpu import VCpu
from runtime.cpu.watch import Site
from runtime.ports import LocalApicAccess

__all__ = ["APIC_MNEMONICS", "ApicInstruction", "apic_instruction"]

APIC_MNEMONICS = frozenset({"rdmsr", "wrmsr", "mov cr8"})
_MASK32 = (1 << 32) - 1


class ApicInstruction(enum.Enum):
    """Outcomes of `apic_instruction`."""

    OTHER = "not the APIC's: let it run"
    DONE = "emulated"
    FAULT = "#GP(0)"


def apic_instruction(cpu: VCpu, apic: LocalApicAccess, site: Site) -> ApicInstruction:
    """Do what the instruction at `site` does to the APIC; one of the outcomes of `ApicInstruction`."""
    if cpu.cpl:
        return ApicInstruction.OTHER  # the CPU itself refuses it
    if site.mnemonic == "mov cr8":
        return _move_cr8(cpu, apic, site.decode())
    gpr = cpu.state.gpr
    index = gpr[fl.RCX] & _MASK32
    if not apic.owns(index):
        return ApicInstruction.OTHER
    if site.mnemonic == "wrmsr":
        value = (gpr[fl.RDX] & _MASK32) << 32 | gpr[fl.RAX] & _MASK32
        return ApicInstruction.DONE if apic.write(index, value) else ApicInstruction.FAULT
    read = apic.read(index)
    if read is None:
        return ApicInstruction.FAULT
    gpr[fl.RAX], gpr[fl.RDX] = read & _MASK32, read >> 32
    return ApicInstruction.DONE


def _move_cr8(cpu: VCpu, apic: LocalApicAccess, instruction: iced_x86.Instruction) -> ApicInstruction:
    gpr = cpu.state.gpr
    if instruction.op1_register == iced_x86.Register.CR8:
        gpr[iced_x86.RegisterExt.number(instruction.op0_register)] = apic.cr8
        return ApicInstruction.DONE
    value = int(gpr[iced_x86.RegisterExt.number(instruction.op1_register)])
    if value > 0xF:
        return ApicInstruction.FAULT
    apic.cr8 = value
    return ApicInstruction.DONE
