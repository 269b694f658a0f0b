"""Kernels without a stack, patched, on every backend: the same words as unpatched, and nothing missed."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pvpatch.abi.layout import CELL_SIZE, unpack_locator
from pvpatch.abi.spec import load_spec
from pvpatch.bootimage import boot_image
from rewriter.emit.produce import Produced, patch_image
from rewriter.image import Image, parse_image
from runtime.backends import backend_named
from runtime.callpages import find_patched_image
from runtime.machine import Machine, MachineConfig
from runtime.outcome import Outcome, RunResult
from tests.stackless.kernels import UNMAPPED, WORDS, faulting32, kernel32, kernel64

NARROW = ("bare", "kvm", "lguest", "vmi", "xen")
WIDE = ("bare", "kvm", "xen")
DEPRIVILEGED = [(32, "lguest"), (32, "vmi"), (32, "xen"), (64, "xen")]


def image(data: bytes) -> Image:
    return parse_image(data, Path("kernel"))


def run(data: bytes, backend: str) -> RunResult:
    config = MachineConfig(memory_mib=16, max_time_s=1.0)
    return Machine(config, boot_image(image(data)), backend_named(backend)).run()


@cache
def original(width: int) -> bytes:
    return kernel32() if width == 32 else kernel64()


@cache
def patched(width: int) -> Produced:
    return patch_image(image(original(width)))


@cache
def ran(width: int, backend: str) -> RunResult:
    return run(patched(width).file, backend)


def words(result: RunResult) -> list[int]:
    text = result.transcript
    return [int.from_bytes(text[at : at + 4], "little") for at in range(0, len(text), 4)]


def cells(width: int) -> dict[str, int]:
    """Sites in the stackless form, by their call."""
    found: dict[str, int] = {}
    for site in patched(width).manifest.sites:
        if site.stackless:
            found[site.call] = found.get(site.call, 0) + 1
    return found


def test_the_kernels_do_what_they_are_for() -> None:
    narrow, wide = words(run(original(32), "bare")), words(run(original(64), "bare"))
    assert len(narrow) == len(wide) == WORDS
    assert narrow[0] == wide[0] == 0x18  # EAX over the load and the jump
    assert narrow[1] & 0xFF == wide[1] & 0xFF == 1  # the carry flag
    assert narrow[2] == wide[2]  # the sum of all registers
    assert (narrow[6], narrow[7], wide[3], wide[4]) == (0x20, 0x1234, 8, 0x1234)


@pytest.mark.parametrize(
    ("width", "backend"), [*((32, name) for name in NARROW), *((64, name) for name in WIDE)]
)
def test_patched_it_says_the_same_and_nothing_is_missed(width: int, backend: str) -> None:
    result = ran(width, backend)
    assert result.outcome is Outcome.EXITED, result.detail
    assert result.exit_code == 0
    assert words(result) == words(run(original(width), "bare"))
    assert result.stats["missed"] == 0, result.stats["missed_sites"]


def test_every_kind_of_call_is_among_the_cells() -> None:
    assert cells(32) == {
        "segment_load": 4, "far_jump": 2, "in8": 1, "cr0_read": 1,
        "idt_load": 1, "idt_store": 1, "irq_disable": 1, "tr_store": 1,
    }  # fmt: skip
    assert cells(64) == {"segment_load": 1, "far_jump": 1}
    assert not [site for site in patched(32).manifest.sites if site.tactic == "trap" and site.call != "verr"]


@pytest.mark.parametrize(("width", "backend"), DEPRIVILEGED)
def test_each_cell_is_an_abi_call_that_left_the_guest(width: int, backend: str) -> None:
    stats: dict[str, Any] = ran(width, backend).stats
    for name, count in cells(width).items():
        assert stats["calls"][name]["exit"] >= count, name
    assert stats["exits"]["cell"] == stats["exits"]["cell_return"] == sum(cells(width).values())
    assert "13" not in stats["exceptions"]


@pytest.mark.parametrize("backend", ["bare", "kvm"])
def test_at_privilege_0_cells_are_just_instructions(backend: str) -> None:
    stats: dict[str, Any] = ran(32, backend).stats
    assert "cell" not in stats["exits"]
    for name, count in cells(32).items():  # they count as what they stand for
        assert sum(stats["calls"][name].values()) >= count, name


@pytest.mark.parametrize("width", [32, 64])
def test_the_runtime_finds_the_cells_that_the_manifest_names(width: int) -> None:
    loaded = boot_image(image(patched(width).file))
    found = find_patched_image(loaded.segments)
    assert found is not None
    start = found.locator.resident_phys
    named = {site.cell for site in patched(width).manifest.sites if site.cell is not None}
    assert named <= {start + cell.offset for cell in found.cells}
    copies = [cell for cell in found.cells if start + cell.offset not in named]
    behind_ss = [cell for cell in found.cells if load_spec().calls[cell.call].name == "segment_load"]
    assert len(copies) <= len(behind_ss)  # of what stands in the shadow of a load of SS
    assert all(cell.length >= load_spec().cells.least for cell in found.cells)


def test_a_second_patch_of_the_bytes_is_the_same() -> None:
    assert patch_image(image(original(32))).file == patched(32).file


def test_the_table_is_a_part_of_its_own() -> None:
    parts = {item.name: bytes.fromhex(item.data) for item in patched(32).manifest.additions}
    count = unpack_locator(parts["locator"]).cell_count
    assert count >= sum(site.cell is not None for site in patched(32).manifest.sites)
    assert len(parts["cell table"]) == CELL_SIZE * count


@pytest.mark.parametrize("backend", ["lguest", "vmi", "xen"])
def test_an_operand_that_is_not_mapped_is_the_guests_page_fault(backend: str) -> None:
    """With paging on: the handler finds the address, and registers and stack as they were at the cell."""
    result = run(patch_image(image(faulting32())).file, backend)
    assert result.outcome is Outcome.EXITED, result.detail
    assert words(result)[:3] == words(run(faulting32(), "bare"))[:3] == [UNMAPPED, 0x18, 0x11111111]
    assert result.stats["missed"] == 0, result.stats["missed_sites"]


@pytest.mark.parametrize(("width", "backend"), DEPRIVILEGED)
def test_a_guest_that_jumps_into_a_cell_only_hurts_itself(width: int, backend: str) -> None:
    """The second trap means nothing before the first: it is a HLT that no patch intercepted."""
    made = patched(width)
    data = bytearray(made.file)
    first = next(site for site in made.manifest.sites if site.stackless)
    start = next(site for site in made.manifest.sites if site.call == "gdt_load")
    assert first.cell is not None and start.window is not None
    offset = image(made.file).offset_of(start.window)
    assert offset is not None
    distance = first.cell + 1 - start.window - 5
    data[offset : offset + 5] = b"\xe9" + (distance & 0xFFFFFFFF).to_bytes(4, "little")
    result = run(bytes(data), backend)
    assert result.outcome is not Outcome.EXITED
    assert "cell" not in result.stats["exits"]
