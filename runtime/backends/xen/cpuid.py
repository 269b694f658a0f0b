"""CPUID as a paravirtual domain sees it: Xen's own leaves, and the host's without what a PV guest cannot use.

Sources: xen/arch/x86/cpuid.c, include/public/arch-x86/cpuid.h.
"""

from __future__ import annotations

from runtime.backends.xen.emulate import MSR_HYPERCALL_PAGE
from runtime.backends.xen.hypercalls.version import MAJOR, MINOR
from runtime.backends.xen.timers import Timers
from runtime.cpu.cpuid import CpuidAnswer

__all__ = ["pv_cpuid"]

BASE = 0x40000000
LAST = BASE + 5
HIDDEN_EDX = 1 << 3 | 1 << 12 | 1 << 13 | 1 << 17
"""PSE, MTRR, PGE, PSE36: paging features that direct paging does not offer."""
HIDDEN_LEAF7_EBX = 1 << 0 | 1 << 7 | 1 << 20
"""FSGSBASE (the kernel could not follow), SMEP, SMAP."""
HIDDEN_SEP = 1 << 11


def _signature() -> CpuidAnswer:
    text = b"XenVMMXenVMM"
    words = [int.from_bytes(text[i : i + 4], "little") for i in (0, 4, 8)]
    return LAST, words[0], words[1], words[2]


def pv_cpuid(leaf: int, subleaf: int, bare: CpuidAnswer, timers: Timers, width: int) -> CpuidAnswer:
    """The answer for a PV guest, from what the bare machine would give."""
    if leaf == BASE:
        return _signature()
    if leaf == BASE + 1:
        return MAJOR << 16 | MINOR, 0, 0, 0
    if leaf == BASE + 2:
        return 1, MSR_HYPERCALL_PAGE, 1, 0
    if leaf == BASE + 3:
        return _time(subleaf, timers)
    if BASE <= leaf <= LAST:
        return 0, 0, 0, 0
    eax, ebx, ecx, edx = bare
    if leaf == 1:
        edx &= ~HIDDEN_EDX
        if width == 64:
            edx &= ~HIDDEN_SEP
    elif leaf == 7:
        ebx &= ~HIDDEN_LEAF7_EBX
    return eax, ebx, ecx, edx


def _time(subleaf: int, timers: Timers) -> CpuidAnswer:
    """Leaf base+3: TSC mode (0: native where stable), kHz, incarnation; 1: offset and scale; 2: host kHz."""
    khz = timers.tsc_hz // 1000
    mul, shift = timers.scale()
    if subleaf == 0:
        return 1 << 0 | 1 << 1, 0, khz, 0
    if subleaf == 1:
        return 0, 0, mul, shift & 0xFFFFFFFF
    return (khz, 0, 0, 0) if subleaf == 2 else (0, 0, 0, 0)
