"""The emulated CPU's own register structure, laid over with ctypes.

Unicorn's register API has no error code, no "exception being delivered", cannot raise the
privilege level, and costs microseconds per register. Its saved context is a plain copy of the
emulator's CPU structure (QEMU 5's `CPUX86State`), so this module describes the fields that
the runtime needs, finds the live structure in the process, and proves by experiment that every
offset holds before it is used. An unknown layout is refused, never guessed.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

from unicorn.x86_const import (
    UC_X86_REG_CR2,
    UC_X86_REG_CR4,
    UC_X86_REG_EFLAGS,
    UC_X86_REG_FS_BASE,
    UC_X86_REG_R15,
    UC_X86_REG_RAX,
    UC_X86_REG_RIP,
    UC_X86_REG_RSP,
)

from pvpatch.abi.errors import PvpatchError

__all__ = ["CpuState", "SegmentCache", "UnknownCpuLayout", "locate_state"]


class UnknownCpuLayout(PvpatchError):
    """This build of Unicorn does not have the structure that the runtime knows."""

    exit_code = 2


class SegmentCache(ctypes.Structure):
    """One segment register: selector and descriptor cache (`SegmentCache` of QEMU)."""

    _fields_ = (
        ("selector", ctypes.c_uint32),
        ("_pad", ctypes.c_uint32),
        ("base", ctypes.c_uint64),
        ("limit", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
    )
    selector: int
    base: int
    limit: int
    flags: int


_KNOWN_FIELDS: tuple[tuple[str, Any, int], ...] = (
    ("gpr", ctypes.c_uint64 * 16, 0),
    ("rip", ctypes.c_uint64, 128),
    ("eflags", ctypes.c_uint64, 136),
    ("cc_dst", ctypes.c_uint64, 144),
    ("cc_src", ctypes.c_uint64, 152),
    ("cc_src2", ctypes.c_uint64, 160),
    ("cc_op", ctypes.c_uint32, 168),
    ("df", ctypes.c_int32, 172),
    ("hflags", ctypes.c_uint32, 176),
    ("hflags2", ctypes.c_uint32, 180),
    ("segments", SegmentCache * 6, 184),
    ("ldt", SegmentCache, 328),
    ("tr", SegmentCache, 352),
    ("gdt", SegmentCache, 376),
    ("idt", SegmentCache, 400),
    ("cr", ctypes.c_uint64 * 5, 424),
    ("efer", ctypes.c_uint64, 592),
    ("sysenter_cs", ctypes.c_uint32, 4800),
    ("sysenter_esp", ctypes.c_uint64, 4808),
    ("sysenter_eip", ctypes.c_uint64, 4816),
    ("star", ctypes.c_uint64, 4824),
    ("lstar", ctypes.c_uint64, 4840),
    ("cstar", ctypes.c_uint64, 4848),
    ("fmask", ctypes.c_uint64, 4856),
    ("kernel_gs_base", ctypes.c_uint64, 4864),
    ("tsc_aux", ctypes.c_uint64, 4896),
    ("xcr0", ctypes.c_uint64, 4904),
    ("error_code", ctypes.c_int32, 5384),
    ("exception_is_int", ctypes.c_int32, 5388),
    ("exception_next_rip", ctypes.c_uint64, 5392),
    ("dr", ctypes.c_uint64 * 8, 5400),
    ("old_exception", ctypes.c_int32, 5496),
)
"""(name, type, offset) in Unicorn 2.1.4, x86: proved by `locate_state` at every start."""


def _with_padding(fields: tuple[tuple[str, Any, int], ...]) -> list[tuple[str, Any]]:
    """Turn (name, type, offset) rows into ctypes fields with explicit gaps."""
    out: list[tuple[str, Any]] = []
    position = 0
    for name, kind, offset in fields:
        if offset > position:
            out.append((f"_gap{position}", ctypes.c_uint8 * (offset - position)))
        out.append((name, kind))
        position = offset + ctypes.sizeof(kind)
    return out


class CpuState(ctypes.Structure):
    """The emulator's CPU, field by field. Reading and writing it *is* reading and writing the CPU.

    Arithmetic flags are kept lazily by the emulator (`cc_*`); use `VCpu.rflags`.
    """

    _pack_ = 1
    _fields_ = _with_padding(_KNOWN_FIELDS)
    gpr: Any
    rip: int
    eflags: int
    cc_src: int
    cc_op: int
    df: int
    hflags: int
    hflags2: int
    segments: Any
    ldt: SegmentCache
    tr: SegmentCache
    gdt: SegmentCache
    idt: SegmentCache
    cr: Any
    efer: int
    sysenter_cs: int
    sysenter_esp: int
    sysenter_eip: int
    star: int
    lstar: int
    cstar: int
    fmask: int
    kernel_gs_base: int
    tsc_aux: int
    xcr0: int
    error_code: int
    exception_is_int: int
    exception_next_rip: int
    dr: Any
    old_exception: int


_PROBES = (0x1D872B41_5A96C3E1, 0x76C3A90E_18F4D25B)
"""Values for RAX and R15 that memory holds together nowhere else, but for copies of the structure."""
_OTHER_VALUES = ((0x2C5A_71E9, 0x5F13_0B86), (0, 0))
"""What the live structure, and no copy of it, shows when the registers change."""
_R15 = 15 * 8
_ENGINE_SCAN = 0x1000
_CPU_SCAN = 0x20000


def _set_pair(uc: Any, values: tuple[int, int]) -> None:
    uc.reg_write(UC_X86_REG_RAX, values[0])
    uc.reg_write(UC_X86_REG_R15, values[1])


def _pair_at(handle: int, address: int) -> tuple[int, int]:
    """RAX and R15, if the structure begins at `address`; (-1, -1) where no memory is."""
    try:
        raw = os.pread(handle, _R15 + 8, address)
    except OSError:
        return -1, -1
    return int.from_bytes(raw[:8], "little"), int.from_bytes(raw[_R15:], "little")


def _candidates(handle: int, engine_address: int) -> set[int]:
    """Where the probes lie in what the engine points to."""
    needle, second = (value.to_bytes(8, "little") for value in _PROBES)
    found: set[int] = set()
    engine = os.pread(handle, _ENGINE_SCAN, engine_address)
    for offset in range(0, len(engine) - 7, 8):
        pointer = int.from_bytes(engine[offset : offset + 8], "little")
        if pointer < 0x10000 or pointer >= 1 << 47:
            continue
        try:
            block = os.pread(handle, _CPU_SCAN, pointer)
        except OSError:
            continue
        position = block.find(needle)
        while position >= 0:
            if block[position + _R15 : position + _R15 + 8] == second:
                found.add(pointer + position)
            position = block.find(needle, position + 1)
    return found


def _find_live_structure(uc: Any) -> int:
    """Host address of the live CPU structure: follow the engine's pointers to probe values in RAX and R15.

    Reads go through /proc/self/mem, which fails politely where plain access would end the process.
    """
    try:
        handle = os.open("/proc/self/mem", os.O_RDONLY)
    except OSError as error:
        raise UnknownCpuLayout(f"cannot inspect the emulator: {error}") from error
    try:
        _set_pair(uc, _PROBES)
        live = _candidates(handle, uc._uch.value)
        for values in _OTHER_VALUES:
            _set_pair(uc, values)
            live = {address for address in live if _pair_at(handle, address) == values}
    except OSError as error:
        raise UnknownCpuLayout(f"cannot inspect the emulator: {error}") from error
    finally:
        os.close(handle)
    if len(live) != 1:
        raise UnknownCpuLayout(
            f"this Unicorn keeps its CPU in {len(live)} places, not in one", "install unicorn==2.1.4"
        )
    return live.pop()


def _check_registers(uc: Any, state: CpuState) -> list[str]:
    """Fields that the register API can write: each must change at our offset and nowhere else of ours."""
    wrong: list[str] = []

    def expect(name: str, actual: int, wanted: int) -> None:
        if actual != wanted:
            wrong.append(name)

    for name, register, read in (
        ("gpr[15]", UC_X86_REG_R15, lambda: state.gpr[15]),
        ("rsp", UC_X86_REG_RSP, lambda: state.gpr[4]),
        ("rip", UC_X86_REG_RIP, lambda: state.rip),
        ("fs.base", UC_X86_REG_FS_BASE, lambda: state.segments[4].base),
        ("cr2", UC_X86_REG_CR2, lambda: state.cr[2]),
    ):
        before = uc.reg_read(register)
        uc.reg_write(register, 0x1234_5678_9ABC)
        expect(name, read(), 0x1234_5678_9ABC)
        uc.reg_write(register, before)
    for name, index in (
        ("sysenter_esp", 0x175),
        ("sysenter_eip", 0x176),
        ("star", 0xC0000081),
        ("lstar", 0xC0000082),
        ("cstar", 0xC0000083),
        ("fmask", 0xC0000084),
        ("kernel_gs_base", 0xC0000102),
    ):
        uc.msr_write(index, 0x7654_3210 + index)
        expect(name, getattr(state, name), 0x7654_3210 + index)
        uc.msr_write(index, 0)
    expect("efer", state.efer, uc.msr_read(0xC0000080))
    expect("cr4", state.cr[4], uc.reg_read(UC_X86_REG_CR4))
    for flags in (0x8D7, 0x602):
        uc.reg_write(UC_X86_REG_EFLAGS, flags)
        expect("cc_op", state.cc_op, 1)
        expect("cc_src", state.cc_src, flags & 0x8D5)
        expect("df", state.df, -1 if flags & 0x400 else 1)
    expect("old_exception", state.old_exception, -1)
    return wrong


def locate_state(uc: Any) -> CpuState:
    """The live structure of a freshly opened engine, with every offset checked.

    Raises `UnknownCpuLayout` if any field is not where it was when this module was written.
    The fields that only an exception changes are proved by `runtime.cpu.calibrate`.
    """
    state = CpuState.from_address(_find_live_structure(uc))
    wrong = _check_registers(uc, state)
    if wrong:
        raise UnknownCpuLayout(
            f"this Unicorn's CPU structure differs from the known one at {', '.join(wrong)}",
            "install unicorn==2.1.4",
        )
    return state
