"""The interface as data: offsets and numbers against the facts of the original headers."""

from __future__ import annotations

import struct

import pytest

from pvpatch.abi.mappings import load_mapping
from runtime.backends.vmi.interface import interface
from runtime.backends.vmi.rom import PAGE, option_rom, rom_text

HEADER = struct.Struct("<HB4sBI4BIHHHHI96s8s8s")
"""struct vrom_header of include/asm-i386/vmi.h: packed."""


def test_the_header_is_the_packed_structure() -> None:
    known = interface()
    assert HEADER.size == 0x90
    fields = HEADER.unpack(option_rom()[: HEADER.size])
    assert fields[0] == 0xAA55
    assert fields[1] * 512 == len(option_rom())
    assert fields[4] == 0x696D5663
    assert fields[5:8] == (0, 3, 2)
    assert fields[9] == known.virtual_top == 0xFC00_0000
    assert known.header["vmi_init"] == (0x80, 8)
    assert known.header["get_reloc"] == (0x88, 8)


def test_the_rom_passes_every_check_that_guests_make() -> None:
    rom = option_rom()
    fields = HEADER.unpack(rom[: HEADER.size])
    licence, pci, pnp = fields[11], fields[12], fields[13]
    assert sum(rom) & 0xFF == 0
    assert rom[licence : licence + 4] == b"GPL\0"
    assert rom[pci : pci + 8] == b"PCIR\xad\x15\x01\x08"
    assert rom[pci + 0x12 : pci + 0x14] == b"\x00\x03"
    assert sum(rom[pnp : pnp + rom[pnp + 5] * 16]) & 0xFF == 0
    for offset in (0x0E, 0x10):
        text = int.from_bytes(rom[pnp + offset : pnp + offset + 2], "little")
        assert rom[text : rom.index(b"\0", text)].decode().isprintable()
    assert interface().rom_physical in range(0xC0000, 0xE0000, 2048)


def test_there_are_74_calls() -> None:
    known = interface()
    assert sorted(known.calls) == list(range(74))
    assert [known.calls[n].name for n in (0, 33, 48)] == ["CPUID", "IRET", "SetLinearMapping"]


def test_names_and_numbers_agree_with_the_abi_mapping() -> None:
    rows = next(table for table in load_mapping("vmi").tables if table.name == "calls").rows
    assert {row.number: row.name for row in rows} == {n: call.name for n, call in interface().calls.items()}


def test_every_call_has_its_own_entry_in_the_hole() -> None:
    text, top = rom_text(), interface().virtual_top
    assert len(set(text.entries.values())) == 74
    assert all(top + PAGE <= entry < top + PAGE + len(text.code) for entry in text.entries.values())
    for place in text.exits:
        at = place - top - PAGE
        assert text.code[at : at + 3] == b"\x0f\x01\xc1"


def test_the_inline_sites_get_what_linux_can_patch_in() -> None:
    known = interface()
    kinds = {call.name: call.relocation for call in known.calls.values()}
    assert kinds["IRET"] == kinds["SYSEXIT"] == "jump_rel"
    for name in ("EnableInterrupts", "DisableInterrupts", "GetInterruptMask", "SetInterruptMask"):
        assert kinds[name] == "call_rel"
    assert set(kinds.values()) == set(known.relocations)


@pytest.mark.parametrize(
    ("field", "offset"),
    [("efer", 0x10), ("eip", 0x18), ("ebx", 0x24), ("esp", 0x30), ("cs", 0x40), ("idtr_limit", 0x58)],
)
def test_the_state_of_another_processor(field: str, offset: int) -> None:
    assert interface().ap_state[field][0] == offset
    assert interface().ap_state["size"][0] == 0x5C
