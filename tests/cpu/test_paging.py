"""Two page walkers, one in Python and one in machine code, against each other and the architecture."""

from __future__ import annotations

import ctypes
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unicorn import unicorn_const as uc_const

from runtime.cpu.vcpu import VCpu
from runtime.cpu.walker_code import NOT_CANONICAL, PAGE_FAULT
from runtime.memory import GuestMemory, PageFault, translate

ACCESS = {"read": uc_const.UC_MEM_READ, "write": uc_const.UC_MEM_WRITE, "fetch": uc_const.UC_MEM_FETCH}
FILL = ctypes.CFUNCTYPE(
    ctypes.c_bool, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p
)
TABLES = 0x1000
LEVELS = 5
"""Pages that may serve as tables: TABLES and the following four."""


class _Silent:
    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"nothing runs, yet {name} was called")


class _Entry(ctypes.Structure):
    _fields_ = (("physical", ctypes.c_uint64), ("permissions", ctypes.c_uint32))


@pytest.fixture(scope="module")
def cpu() -> VCpu:
    return VCpu(GuestMemory(4 << 20), _Silent())  # type: ignore[arg-type]


def fill_tables(memory: GuestMemory, seed: int, wide: bool) -> None:
    """Tables that mostly lead somewhere: random flags, frames among the tables and a bit beyond."""
    source = random.Random(seed)
    for page in range(LEVELS):
        data = bytearray()
        for _ in range(512 if wide else 1024):
            entry = source.choice((0x27, 0x67, 0x07, 0x05, 0x03, 0x01, 0x87, 0xE7, 0x1E7, 0x25, 0x00))
            table = TABLES + 0x1000 * source.randrange(LEVELS)
            frame = source.choice((table, 0x3FF000, 0x200000, 0x7000000))
            entry |= frame
            if wide:
                entry |= source.choice((0, 0, 0, 0, 0, 1 << 63, 1 << 41))
                data += struct.pack("<Q", entry)
            else:
                data += struct.pack("<I", entry & 0xFFFFFFFF)
        memory.store(TABLES + page * 0x1000, bytes(data))


def native(cpu: VCpu, linear: int, access: str) -> tuple[str, int, int]:
    """Ask the machine code: ("page", physical, permissions), ("fault", error, 0) or ("gp", 0, 0)."""
    entry = _Entry()
    control = cpu.control
    function = FILL(cpu.native.fill_tlb)
    page = linear & ~0xFFF
    place, shared = ctypes.addressof(entry), ctypes.addressof(control)
    good = function(cpu.handle.value, page, ACCESS[access], place, shared)
    if good:
        return "page", entry.physical, entry.permissions
    kind, control.fault = control.fault, 0
    if kind == NOT_CANONICAL:
        return "gp", 0, 0
    assert kind == PAGE_FAULT
    assert control.fault_page == page
    return "fault", control.fault_code, 0


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 1 << 32),
    mode=st.sampled_from(["none", "two levels", "two levels with PSE", "PAE", "four levels"]),
    access=st.sampled_from(list(ACCESS)),
    cpl=st.sampled_from([0, 1, 3]),
    wp=st.booleans(),
    nxe=st.booleans(),
    smep=st.booleans(),
    linear=st.integers(0, (1 << 32) - 1),
    upper=st.sampled_from([0, 0, 0xFFFF8000, 0x00001234, 0x12345678]),
)
def test_both_walkers_agree(
    cpu: VCpu,
    seed: int,
    mode: str,
    access: str,
    cpl: int,
    wp: bool,
    nxe: bool,
    smep: bool,
    linear: int,
    upper: int,
) -> None:
    memory, state = cpu.memory, cpu.state
    wide = mode in ("PAE", "four levels")
    if mode == "four levels":
        linear |= upper << 32
    cr0 = (0 if mode == "none" else 1 << 31) | 0x11 | (0x10000 if wp else 0)
    cr4 = (0x20 if wide else 0x10 if "PSE" in mode else 0) | (1 << 20 if smep else 0)
    efer = (0x400 if mode == "four levels" else 0) | (0x800 if nxe else 0)
    state.cr[0], state.cr[3], state.cr[4], state.efer = cr0, TABLES, cr4, efer
    state.hflags = state.hflags & ~3 | cpl
    fill_tables(memory, seed, wide)
    ctypes.memset(cpu.control.executed, 0, cpu.control.executed_pages)
    expected: tuple[str, int, int]
    try:
        there = translate(
            memory, linear, cr0=cr0, cr3=TABLES, cr4=cr4, efer=efer,
            write=access == "write", user=cpl == 3, fetch=access == "fetch",
        )  # fmt: skip
        expected = ("page", there.physical & ~0xFFF, 0)
    except PageFault as fault:
        expected = ("fault", fault.error_code, 0)
    after_python = memory.load(TABLES, LEVELS * 0x1000)
    fill_tables(memory, seed, wide)
    got = native(cpu, linear, access)
    if mode == "four levels" and linear >> 47 not in (0, 0x1FFFF):
        assert got[0] == "gp"
        return
    assert got[:2] == expected[:2]
    assert memory.load(TABLES, LEVELS * 0x1000) == after_python, "accessed and dirty bits differ"
    if got[0] == "page":
        permissions = got[2]
        assert permissions & 1
        assert bool(permissions & 4) == (access == "fetch"), "nothing is executable before it is fetched"
        if access == "write":
            assert permissions & 2


def test_a_page_once_fetched_stays_executable_and_writable(cpu: VCpu) -> None:
    state = cpu.state
    state.cr[0] = 0x11
    ctypes.memset(cpu.control.executed, 0, cpu.control.executed_pages)
    assert native(cpu, 0x5000, "write") == ("page", 0x5000, 3)
    assert native(cpu, 0x5000, "fetch") == ("page", 0x5000, 7)
    assert native(cpu, 0x5000, "write") == ("page", 0x5000, 7)
    assert native(cpu, 0x6000, "read") == ("page", 0x6000, 3)


def test_clean_pages_are_not_writable_until_written(cpu: VCpu) -> None:
    state, memory = cpu.state, cpu.memory
    memory.store(TABLES, struct.pack("<I", TABLES + 0x1000 | 7))
    memory.store(TABLES + 0x1000, struct.pack("<I", 0x9007))
    state.cr[0], state.cr[3], state.cr[4], state.efer = 0x80010011, TABLES, 0, 0
    state.hflags &= ~3
    assert native(cpu, 0, "read") == ("page", 0x9000, 1)
    assert memory.load_u32(TABLES + 0x1000) == 0x9027
    assert native(cpu, 0, "write") == ("page", 0x9000, 3)
    assert memory.load_u32(TABLES + 0x1000) == 0x9067
    assert native(cpu, 0, "read") == ("page", 0x9000, 3)


def test_writing_code_through_a_data_mapping_is_noticed(cpu: VCpu) -> None:
    state, memory = cpu.state, cpu.memory
    memory.store(TABLES, struct.pack("<Q", TABLES + 0x1001))
    memory.store(TABLES + 0x1000, struct.pack("<Q", TABLES + 0x2007))
    memory.store(TABLES + 0x2000, struct.pack("<QQ", 0x9067, 0x9067 | 1 << 63))
    state.cr[0], state.cr[3], state.cr[4], state.efer = 0x80010011, TABLES, 0x20, 0x800
    state.hflags &= ~3
    ctypes.memset(cpu.control.executed, 0, cpu.control.executed_pages)
    assert native(cpu, 0x1000, "write") == ("page", 0x9000, 3)
    assert native(cpu, 0x0000, "fetch") == ("page", 0x9000, 7)
    assert native(cpu, 0x1000, "read") == ("page", 0x9000, 1)
    assert native(cpu, 0x1000, "write") == ("page", 0x9000, 7)
    assert native(cpu, 0x1000, "fetch") == ("fault", 0x11, 0)
