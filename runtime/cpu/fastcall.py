"""SYSCALL and SYSENTER, which the emulated CPU leaves to its hooks.

Intel SDM vol. 2, SYSCALL and SYSENTER. The emulator adds the instruction's length (2) to RIP after
the hook, so the target is stored two bytes low. SYSRET and SYSEXIT run natively.
"""

from __future__ import annotations

from runtime.cpu import flags as fl
from runtime.cpu.segments import load_cache, update_modes
from runtime.cpu.vcpu import VCpu

__all__ = ["FAST_CALL_LENGTH", "enter_syscall", "enter_sysenter"]

FAST_CALL_LENGTH = 2
_FLAT_CODE32, _FLAT_CODE64, _FLAT_DATA = 0x00C09B00, 0x00A09B00, 0x00C09300
_MASK64 = (1 << 64) - 1


def enter_syscall(cpu: VCpu) -> bool:
    """Go to the kernel through LSTAR or CSTAR; False means #UD (EFER.SCE clear)."""
    state = cpu.state
    if not state.efer & fl.EFER_SCE:
        return False
    selector = state.star >> 32 & 0xFFFC
    rflags = cpu.rflags
    following = state.rip + FAST_CALL_LENGTH
    if cpu.long_mode:
        state.gpr[fl.RCX] = following
        state.gpr[11] = rflags & ~fl.RF
        target = state.lstar if state.hflags & fl.HF_CS64 else state.cstar
        cpu.rflags = rflags & ~state.fmask & ~fl.RF
        load_cache(cpu, fl.CS, selector, 0, 0xFFFFFFFF, _FLAT_CODE64)
    else:
        state.gpr[fl.RCX] = following & 0xFFFFFFFF
        target = state.star & 0xFFFFFFFF
        cpu.rflags = rflags & ~(fl.IF | fl.RF | fl.VM)
        load_cache(cpu, fl.CS, selector, 0, 0xFFFFFFFF, _FLAT_CODE32)
    load_cache(cpu, fl.SS, selector + 8, 0, 0xFFFFFFFF, _FLAT_DATA)
    state.rip = (target - FAST_CALL_LENGTH) & _MASK64
    update_modes(cpu, 0)
    return True


def enter_sysenter(cpu: VCpu) -> bool:
    """Go to the kernel through the SYSENTER MSRs; False means #GP(0) (no code segment set)."""
    state = cpu.state
    selector = state.sysenter_cs & 0xFFFC
    if selector == 0:
        return False
    cpu.rflags = cpu.rflags & ~(fl.IF | fl.RF | fl.VM)
    wide = cpu.long_mode
    load_cache(cpu, fl.CS, selector, 0, 0xFFFFFFFF, _FLAT_CODE64 if wide else _FLAT_CODE32)
    load_cache(cpu, fl.SS, selector + 8, 0, 0xFFFFFFFF, _FLAT_DATA)
    state.gpr[fl.RSP] = state.sysenter_esp if wide else state.sysenter_esp & 0xFFFFFFFF
    state.rip = (state.sysenter_eip - FAST_CALL_LENGTH) & _MASK64
    update_modes(cpu, 0)
    return True
