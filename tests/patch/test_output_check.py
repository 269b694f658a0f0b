"""The last check before a file is written: it finds what no loader would boot, and blames pvpatch for it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from pvpatch.abi.asm import assemble
from pvpatch.abi.errors import SelfCheckError
from pvpatch.cli import build
from pvpatch.cli.failures import guarded
from rewriter.check_output import check_file, check_loaders
from rewriter.check_windows import check_windows
from rewriter.emit.patch import PatchJob
from rewriter.emit.produce import Produced, patch_image
from rewriter.image import parse_image
from rewriter.image.loaders import boot_plans
from rewriter.manifest import Change, Manifest, differences, pack
from rewriter.tactics import Window
from tests.image.builders import Load, elf, multiboot1_header
from tests.patch.boot_kernels import BASE, kernel, multiboot1_fields
from tests.patch.conftest import Patches

Tampering = Callable[[bytearray], None]
IMAGE = parse_image(kernel(multiboot1_fields()), Path("kernel"))


@cache
def patched() -> Produced:
    return patch_image(IMAGE)


def explaining(payload: bytes) -> Manifest:
    """A manifest that explains every difference: what is wrong is not a change without a record."""
    size = len(IMAGE.payload)
    runs = differences(IMAGE.payload, payload[:size])
    changes = tuple(
        Change(start, IMAGE.payload[start:end].hex(), payload[start:end].hex(), "header", "test")
        for start, end in runs
    )
    return replace(patched().manifest, changes=changes)


def _change(offset: int, data: bytes) -> Tampering:
    def tamper(payload: bytearray) -> None:
        payload[offset : offset + len(data)] = data

    return tamper


def _row(index: int, field: int, value: int) -> Tampering:
    return _change(52 + 32 * index + 4 * field, struct.pack("<I", value))


def _block_byte(payload: bytearray) -> None:
    payload[patched().job.block_offset + 0x5000] ^= 1


HEADER = 0x1000
TAMPERED = {
    "entry field": (_change(HEADER + 28, struct.pack("<I", BASE + 0xC0)), "no entry stub"),
    "ELF entry": (_change(24, struct.pack("<I", BASE + 0xC0)), "no entry stub"),
    "load end": (_change(HEADER + 20, struct.pack("<I", BASE + 0x800)), "the resident block"),
    "bss end": (
        _change(HEADER + 24, struct.pack("<I", patched().job.resident.physical)),
        "the resident block",
    ),
    "load address": (_change(HEADER + 12, struct.pack("<II", BASE + 0x800, BASE + 0x800)), "no longer"),
    "flags": (_change(HEADER + 4, struct.pack("<II", 0, -0x1BADB002 & 0xFFFFFFFF)), "loaders differ"),
    "block's address": (_row(1, 3, 0x900000), "resident block is not loaded"),
    "block on the image": (_row(1, 3, BASE), "overlap"),
    "image moved": (_row(0, 3, 0x900000), "no longer"),
    "image's bytes": (_row(0, 1, 0), "other bytes"),
    "block's bytes": (_block_byte, "other bytes"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_a_file_that_no_loader_boots_is_found(name: str) -> None:
    tamper, reason = TAMPERED[name]
    made = patched()
    payload = bytearray(made.job.payload())
    tamper(payload)
    with pytest.raises(SelfCheckError, match=reason) as caught:
        check_loaders(made.job, explaining(bytes(payload)), bytes(payload))
    assert caught.value.exit_code == 70
    assert "damaged" not in str(caught.value)


def test_a_file_that_does_not_revert_is_found() -> None:
    made = patched()
    payload = bytearray(made.job.payload())
    payload[0x1000 + 0xC0] ^= 1
    with pytest.raises(SelfCheckError, match="cannot be opened again"):
        check_file(IMAGE, bytes(payload) + pack(made.manifest))


def test_a_fault_of_ours_writes_nothing_and_ends_with_70(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rewriter.emit.patch.extended_ranges", lambda _image, _resident: [])
    path = tmp_path / "kernel"
    path.write_bytes(IMAGE.payload)
    assert guarded(lambda: build()(["patch", str(path), "-o", str(tmp_path / "out")])) == 70
    assert "a fault of pvpatch itself" in capsys.readouterr().err
    assert sorted(item.name for item in tmp_path.iterdir()) == ["kernel"]


def test_every_loader_of_a_real_image_enters_at_the_stub(subject: str, patch_of: Patches) -> None:
    image, produced = patch_of(subject)
    payload = parse_image(produced.file, image.path).payload
    names = [plan.loader for plan in boot_plans(payload)]
    assert names == [plan.loader for plan in boot_plans(image.payload)]
    assert names
    stub = next(part for part in produced.job.resident.parts if part.name == "entry stub")
    start = produced.job.resident.physical + stub.offset
    if image.kind != "flat":
        for plan in boot_plans(payload):
            assert start <= plan.entry < start + len(stub.data)


def test_a_site_inside_a_boot_header_keeps_its_bytes() -> None:
    """An entry at the header itself: the checksum's first byte is STI, and the header must stay a header."""
    header = multiboot1_header(3)
    assert header[8] == 0xFB
    code = assemble("nop\n" * 8 + "cli\nhlt\n", 32, BASE + 12).code
    data = elf(32, (Load(BASE, BASE, (header + code).ljust(0x200, b"\0"), 0, 7),), entry=BASE)
    made = patch_image(parse_image(data, Path("kernel")))
    kept = {site.address: site.reason for site in made.manifest.sites if site.tactic == "trap"}
    assert "boot loaders read these bytes" in kept[BASE + 8]
    assert {plan.loader for plan in boot_plans(made.file)} == {"elf", "multiboot1, ELF"}


def _with_windows(windows: tuple[Window, ...]) -> PatchJob:
    job = patched().job
    return replace(job, plan=replace(job.plan, windows=windows))


def test_an_instruction_that_lost_some_of_its_bytes_only_is_found() -> None:
    windows = patched().job.plan.windows
    check_windows(_with_windows(windows))
    whole = next(window for window in windows if len(window.instructions) > 1)
    for gone in whole.instructions:
        left = replace(whole, instructions=tuple(item for item in whole.instructions if item != gone))
        with pytest.raises(SelfCheckError, match="shares bytes with what is overwritten"):
            check_windows(_with_windows((left,)))
    with pytest.raises(SelfCheckError, match="share bytes"):
        check_windows(_with_windows((whole, replace(whole, start=whole.start + 1))))
