"""ACPI and MP tables, read back as a kernel finds them."""

from __future__ import annotations

import itertools
import struct

import pytest

from runtime.boot.firmware import RSDP_ADDRESS, write_firmware
from tests.devices.board import Memory

BOTH = pytest.mark.parametrize("apics", [False, True])


def firmware(apics: bool) -> Memory:
    memory = Memory()
    write_firmware(memory, apics=apics)
    return memory


def table(memory: Memory, address: int) -> bytes:
    length = struct.unpack("<I", memory.load(address + 4, 4))[0]
    return memory.load(address, length)


def tables(memory: Memory) -> dict[bytes, bytes]:
    """Every table that the root pointer leads to, by signature."""
    root = memory.load(RSDP_ADDRESS, 36)
    rsdt, xsdt = struct.unpack("<I", root[16:20])[0], struct.unpack("<Q", root[24:32])[0]
    narrow, wide = table(memory, rsdt), table(memory, xsdt)
    listed = struct.unpack(f"<{(len(narrow) - 36) // 4}I", narrow[36:])
    assert listed == struct.unpack(f"<{(len(wide) - 36) // 8}Q", wide[36:])
    found = {one[:4]: one for one in (narrow, wide, *(table(memory, address) for address in listed))}
    facs, dsdt = struct.unpack("<II", found[b"FACP"][36:44])
    found[b"DSDT"] = table(memory, dsdt)
    assert memory.load(facs, 4) == b"FACS" and not facs % 64
    return found


@BOTH
def test_every_table_sums_to_zero(apics: bool) -> None:
    memory = firmware(apics)
    root = memory.load(RSDP_ADDRESS, 36)
    assert sum(root[:20]) & 0xFF == 0 and sum(root) & 0xFF == 0
    for signature, content in tables(memory).items():
        assert sum(content) & 0xFF == 0, signature


def test_no_two_tables_overlap() -> None:
    memory = firmware(True)
    spans = []
    root = struct.unpack("<I", memory.load(RSDP_ADDRESS + 16, 4))[0]
    listed = [root, struct.unpack("<Q", memory.load(RSDP_ADDRESS + 24, 8))[0]]
    listed += struct.unpack("<2I", table(memory, root)[36:44])
    fadt = next(table(memory, one) for one in listed if memory.load(one, 4) == b"FACP")
    listed += struct.unpack("<II", fadt[36:44])
    spans = sorted((one, one + len(table(memory, one))) for one in listed)
    assert spans[0][0] >= RSDP_ADDRESS + 36
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))


@BOTH
def test_the_fixed_description(apics: bool) -> None:
    fadt = tables(firmware(apics))[b"FACP"]
    assert len(fadt) == 244 and fadt[8] == 3
    assert struct.unpack_from("<HIBB", fadt, 46) == (9, 0xB2, 0xF1, 0xF0)
    assert struct.unpack_from("<I", fadt, 56) == struct.unpack_from("<Q", fadt, 152) == (0x600,)
    assert struct.unpack_from("<I", fadt, 64) == struct.unpack_from("<Q", fadt, 176) == (0x604,)
    assert struct.unpack_from("<I", fadt, 76) == struct.unpack_from("<Q", fadt, 212) == (0x608,)
    assert tuple(fadt[88:96]) == (4, 2, 0, 4, 0, 0, 0, 0)
    assert struct.unpack_from("<H", fadt, 109) == (3,)
    assert struct.unpack_from("<BBBBQB", fadt, 116) == (1, 8, 0, 0, 0xCF9, 6)


def test_the_apics_are_described() -> None:
    madt = tables(firmware(True))[b"APIC"]
    assert struct.unpack_from("<II", madt, 36) == (0xFEE00000, 1)
    entries, at = [], 44
    while at < len(madt):
        entries.append(madt[at : at + madt[at + 1]])
        at += madt[at + 1]
    assert at == len(madt)
    assert [entry[0] for entry in entries] == [0, 1, 2, 2, 4]
    assert entries[0][2:] == bytes([0, 0, 1, 0, 0, 0])
    assert struct.unpack("<BBII", entries[1][2:]) == (1, 0, 0xFEC00000, 0)
    assert struct.unpack("<BBIH", entries[2][2:]) == (0, 0, 2, 0)
    assert struct.unpack("<BBIH", entries[3][2:]) == (0, 9, 9, 0xD)


def test_the_multiprocessor_tables() -> None:
    memory = firmware(True)
    area = memory.load(0xF0000, 0x10000)
    at = next(at for at in range(0, len(area), 16) if area[at : at + 4] == b"_MP_")
    pointer = area[at : at + 16]
    assert sum(pointer) & 0xFF == 0 and pointer[8:10] == b"\x01\x04"
    where = struct.unpack_from("<I", pointer, 4)[0]
    length = struct.unpack("<H", memory.load(where + 4, 2))[0]
    config = memory.load(where, length)
    assert config[:4] == b"PCMP" and sum(config) & 0xFF == 0
    count, apic = struct.unpack_from("<HI", config, 34)
    assert apic == 0xFEE00000
    kinds, at = [], 44
    while at < length:
        kinds.append(config[at])
        at += 20 if config[at] == 0 else 8
    assert at == length and len(kinds) == count
    assert [kinds.count(kind) for kind in range(5)] == [1, 1, 1, 15, 2]


def test_a_machine_without_apics_tells_of_none() -> None:
    memory = firmware(False)
    assert b"APIC" not in tables(memory)
    assert b"_MP_" not in memory.load(0xF0000, 0x10000)
