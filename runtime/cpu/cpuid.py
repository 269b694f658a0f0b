"""What CPUID answers: a plain 64-bit CPU without anything that is not repeatable.

The features are those that the emulated CPU (Unicorn's Haswell) really executes. Left out on
purpose: RDRAND and RDSEED (not deterministic) and AVX. The local APIC is announced where the machine
has one.
"""

from __future__ import annotations

from runtime.ports import LocalApicAccess

__all__ = ["XCR0_SUPPORTED", "CpuidAnswer", "answer"]

CpuidAnswer = tuple[int, int, int, int]
"""EAX, EBX, ECX, EDX."""

_VENDOR = b"GenuineIntel"
_BRAND = b"pvpatch virtual CPU".ljust(48, b"\0")
_SIGNATURE = 0x0000_0F61
"""Family 15, model 6, as generic virtual CPUs say. Models of family 6 promise a memory controller at the host
bridge, which memtest86+ then looks for beyond what it has mapped; this machine has no bridge."""

_FEATURES_EDX = sum(
    1 << bit
    for bit in (
        0,  # FPU
        2,  # DE
        3,  # PSE
        4,  # TSC
        5,  # MSR
        6,  # PAE
        8,  # CMPXCHG8B
        11,  # SEP
        13,  # PGE
        15,  # CMOV
        16,  # PAT
        17,  # PSE36
        19,  # CLFLUSH
        23,  # MMX
        24,  # FXSR
        25,  # SSE
        26,  # SSE2
    )
)
_FEATURES_ECX = sum(
    1 << bit
    for bit in (
        0,  # SSE3
        1,  # PCLMULQDQ
        9,  # SSSE3
        13,  # CMPXCHG16B
        19,  # SSE4.1
        20,  # SSE4.2
        22,  # MOVBE
        23,  # POPCNT
        25,  # AES
        26,  # XSAVE
    )
)
_OSXSAVE = 1 << 27
_APIC = 1 << 9
_X2APIC, _TSC_DEADLINE = 1 << 21, 1 << 24
_THREAD, _CORE = 1, 2
"""Level types of the topology leaf."""
_LEAF7_EBX = sum(1 << bit for bit in (0, 3, 7, 8, 9))
"""FSGSBASE, BMI1, SMEP, BMI2, ERMS."""
_EXTENDED_EDX = sum(1 << bit for bit in (11, 20, 27, 29))
"""SYSCALL, NX, RDTSCP, long mode."""
_EXTENDED_ECX = 1 << 0 | 1 << 5
"""LAHF in 64-bit mode, LZCNT."""
_INVARIANT_TSC = 1 << 8
XCR0_SUPPORTED = 3
_XSAVE_SIZE = 576


def _text(data: bytes) -> CpuidAnswer:
    words = [int.from_bytes(data[index : index + 4], "little") for index in range(0, 16, 4)]
    return words[0], words[1], words[2], words[3]


def answer(leaf: int, subleaf: int, cr4: int, apic: LocalApicAccess | None = None) -> CpuidAnswer:
    """The bare machine's CPUID. Leaves that do not exist read as zero.

    `cr4` matters for OSXSAVE, which mirrors CR4 bit 18; `apic` is the local APIC, if there is one.
    """
    if leaf == 0:
        ebx, edx, ecx, _ = _text(_VENDOR + bytes(4))
        return 0xD, ebx, ecx, edx
    if leaf == 1:
        return _features(cr4, apic)
    if leaf == 7 and subleaf == 0:
        return 0, _LEAF7_EBX, 0, 0
    if leaf == 0xB and apic is not None:
        return _topology(subleaf)
    if leaf == 0xD:
        return _xsave(subleaf)
    if leaf == 0x80000000:
        ebx, edx, ecx, _ = _text(_VENDOR + bytes(4))
        return 0x80000008, ebx, ecx, edx
    if leaf == 0x80000001:
        return _SIGNATURE, 0, _EXTENDED_ECX, _EXTENDED_EDX
    if 0x80000002 <= leaf <= 0x80000004:
        start = (leaf - 0x80000002) * 16
        return _text(_BRAND[start : start + 16])
    if leaf == 0x80000007:
        return 0, 0, 0, _INVARIANT_TSC
    if leaf == 0x80000008:
        return 0x3028, 0, 0, 0
    return 0, 0, 0, 0


def _features(cr4: int, apic: LocalApicAccess | None) -> CpuidAnswer:
    ecx, edx, ebx = _FEATURES_ECX, _FEATURES_EDX, 0x0800
    if cr4 & 1 << 18:
        ecx |= _OSXSAVE
    if apic is not None:
        ecx |= _X2APIC | _TSC_DEADLINE
        edx |= _APIC if apic.is_enabled else 0
        ebx |= 1 << 16
    return _SIGNATURE, ebx, ecx, edx


def _topology(subleaf: int) -> CpuidAnswer:
    """One thread in one core, whose x2APIC number is 0."""
    if subleaf < 2:
        return 0, 1, (_THREAD, _CORE)[subleaf] << 8 | subleaf, 0
    return 0, 0, subleaf & 0xFF, 0


def _xsave(subleaf: int) -> CpuidAnswer:
    if subleaf == 0:
        return XCR0_SUPPORTED, _XSAVE_SIZE, _XSAVE_SIZE, 0
    return 0, 0, 0, 0
