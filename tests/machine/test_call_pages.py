"""A patched image as the runtime sees it: locator found, page filled, slots counted, newer ABI refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pvpatch.abi.asm import assemble
from pvpatch.abi.errors import ImageError
from pvpatch.abi.layout import (
    CALL_PAGE_SIZE,
    LOCATOR_SIZE,
    Cell,
    Header,
    Locator,
    pack_cells,
    pack_header,
    pack_locator,
    slot_offset,
    unpack_header,
    unpack_locator,
)
from pvpatch.abi.page import build_bare_page
from pvpatch.abi.spec import load_spec
from runtime.backends import Capabilities, Hypervisor
from runtime.backends.bare.backend import BACKEND
from runtime.boot.model import BootSegment
from runtime.callpages import find_patched_image
from tests.cpu.world import World

RESIDENT = 0x300000
PAGE = RESIDENT + 0x1000


def resident(width: int, page: bytes | None = None) -> BootSegment:
    """Locator, padding, one bare call page."""
    offset = PAGE - RESIDENT
    locator = Locator(
        offset + CALL_PAGE_SIZE,
        RESIDENT,
        RESIDENT,
        off_page32=offset if width == 32 else 0,
        off_page64=offset if width == 64 else 0,
    )
    if page is None:
        page = build_bare_page(width, self_phys=PAGE, self_virt=PAGE)
    data = pack_locator(locator).ljust(offset, b"\0") + page
    return BootSegment(RESIDENT, RESIDENT, data, len(data))


def slot(name: str) -> int:
    """Address of a call's slot."""
    return PAGE + slot_offset(next(call.number for call in load_spec().calls if call.name == name))


def calling(width: int) -> str:
    """Calls irq_disable seven times and cr0_read three times."""
    word = "r12" if width == 64 else "esi"
    return f"""
        mov ecx, 7
    first:
        mov {word}, {slot("irq_disable")}
        call {word}
        dec ecx
        jnz first
        mov ecx, 3
    second:
        mov {word}, {slot("cr0_read")}
        call {word}
        dec ecx
        jnz second
        mov ebp, eax
        ud2
    """


@pytest.mark.parametrize("width", [32, 64])
def test_slots_run_and_are_counted(width: int) -> None:
    world = World(width, calling(width), extra=(resident(width),)).run()
    assert world.vector == 6
    assert world.machine.cpu.state.gpr[5] & 1
    calls = world.result.stats["calls"]
    assert calls == {"irq_disable": {"in_guest": 7, "exit": 0}, "cr0_read": {"in_guest": 3, "exit": 0}}
    assert world.result.stats["sites_executed"] == 10
    assert world.result.stats["patched"] is True


class _Filling(Hypervisor):
    def page_code(self, width: int) -> bytes | None:
        page = bytearray(build_bare_page(width, self_phys=0, self_virt=0))
        page[: len(self.header(width))] = self.header(width)
        code = assemble("mov eax, 0x77; ret", width).code
        at = slot("cr0_read") - PAGE
        page[at : at + len(code)] = code
        return bytes(page)

    def header(self, width: int) -> bytes:
        return pack_header(Header(width, len(load_spec().calls), backend_id=99))

    def call_exits(self) -> dict[str, int]:
        return {"cr0_read": 2}


class _FillingBackend:
    capabilities: Capabilities = replace(BACKEND.capabilities, name="filling", backend_id=99)

    def hidden_memory(self, memory_size: int) -> int:
        return 0

    def attach(self, machine: object) -> Hypervisor:
        return _Filling(machine)  # type: ignore[arg-type]


@pytest.mark.parametrize("width", [32, 64])
def test_the_backend_fills_the_page_and_its_address_stays(width: int) -> None:
    world = World(width, calling(width), extra=(resident(width),), instance=_FillingBackend()).run()
    assert world.machine.cpu.state.gpr[5] == 0x77
    header = unpack_header(world.machine.memory.load(PAGE, 64))
    assert (header.backend_id, header.self_phys, header.self_virt) == (99, PAGE, PAGE)
    calls = world.result.stats["calls"]
    assert isinstance(calls, dict)
    assert calls["cr0_read"] == {"in_guest": 1, "exit": 2}


def test_an_unpatched_image_has_no_pages() -> None:
    assert find_patched_image((BootSegment(0, 0, bytes(4096), 4096),)) is None


def test_a_newer_abi_is_refused_before_the_first_instruction() -> None:
    spec = load_spec()
    page = bytearray(build_bare_page(32, self_phys=PAGE, self_virt=PAGE))
    page[10:12] = (spec.minor + 1).to_bytes(2, "little")
    with pytest.raises(ImageError, match="ABI"):
        World(32, "ud2", extra=(resident(32, bytes(page)),)).run()


@pytest.mark.parametrize("position", [16, 20, 33, LOCATOR_SIZE - 1])
def test_a_damaged_locator_is_refused(position: int) -> None:
    segment = resident(32)
    data = bytearray(segment.data)
    data[position] ^= 0x40
    with pytest.raises(ImageError):
        find_patched_image((replace(segment, data=bytes(data)),))


def test_a_cell_table_that_is_not_loaded_is_refused() -> None:
    segment = resident(32)
    locator = replace(unpack_locator(segment.data), off_cells=0x5000, cell_count=1, resident_size=0x9000)
    with pytest.raises(ImageError, match="cell table"):
        find_patched_image((replace(segment, data=pack_locator(locator) + segment.data[LOCATOR_SIZE:]),))


def test_cells_need_a_call_page_of_their_width() -> None:
    segment = resident(64)
    table = pack_cells([Cell(0x4000, load_spec().call("irq_disable").number, 0, 2)])
    at = len(segment.data)
    locator = unpack_locator(segment.data)
    locator = replace(locator, off_cells=at, cell_count=1, resident_size=at + len(table))
    with pytest.raises(ImageError, match="no call page of their width"):
        find_patched_image(
            (replace(segment, data=pack_locator(locator) + segment.data[LOCATOR_SIZE:] + table),)
        )


def test_a_guest_that_overwrites_its_call_page_only_hurts_itself() -> None:
    code = f"mov edi, {PAGE}; mov ecx, {CALL_PAGE_SIZE // 4}; xor eax, eax; cld; rep stosd;" + calling(32)
    world = World(32, code, extra=(resident(32),), max_time_s=0.01).run()
    assert world.result.exit_code in (0, 4, 5)
