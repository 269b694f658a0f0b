"""Where the resident block lies: out of reach of kernels that own memory, on no segment, or as asked."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from pvpatch.abi.asm import assemble
from pvpatch.abi.errors import ImageError
from rewriter.emit.memory_use import asks_for_map, named_addresses
from rewriter.emit.produce import Produced, patch_image
from rewriter.image import EntryPoint, parse_image
from rewriter.scan import scan_image
from rewriter.tactics.adapter import view_of
from runtime.outcome import Outcome
from tests.cli.command import complaint, inside
from tests.image.builders import Load, elf, multiboot1_header
from tests.patch.boot_kernels import BASE, END, OWNED, kernel, multiboot1_fields, multiboot2_tags
from tests.patch.conftest import SAMPLES
from tests.patch.test_boot_fields import BACKENDS, qemu, run

ASKING = "mov [0x120000], ebx\n"
SILENT = multiboot1_header(0)
REQUEST = multiboot2_tags((1, (6,)))


def patch(data: bytes, block_at: int | None = None) -> Produced:
    return patch_image(parse_image(data, Path("kernel")), block_at=block_at)


def block(produced: Produced) -> tuple[int, int]:
    start = produced.job.resident.physical
    return start, start + produced.job.resident.memory_size


def text_kernel(header: bytes, text: str) -> bytes:
    code = assemble(text + "cli\nhlt\n", 32, BASE + 0x40).code
    content = (header.ljust(0x40, b"\0") + code).ljust(0x400, b"\0")
    return elf(32, (Load(BASE, BASE, content, 0x1000, 7),), entry=BASE + 0x40)


@pytest.mark.parametrize(("bits", "backend"), BACKENDS)
def test_a_kernel_that_takes_all_behind_its_end_runs(bits: int, backend: str) -> None:
    produced = patch(kernel(SILENT, bits, owns=True))
    start, end = block(produced)
    assert end <= BASE or start >= OWNED
    (warning,) = produced.job.warnings
    assert f"{start:#x}..{end:#x}" in warning and "--block-at" in warning
    result = run(produced.file, backend)
    assert (result.outcome, result.transcript, result.exit_code) == (Outcome.EXITED, b"ok", 0)


@pytest.mark.slow
def test_it_runs_in_qemu(tmp_path: Path) -> None:
    original = kernel(SILENT, owns=True)
    assert qemu(original, tmp_path) == (b"ok", 0)
    assert qemu(patch(original).file, tmp_path) == (b"ok", 0)


@pytest.mark.parametrize(
    ("header", "text", "asks"),
    [
        (multiboot1_header(3), ASKING, True),
        (multiboot1_header(3), "push ebx\n", True),
        (
            multiboot1_header(3),
            "mov eax, 1\ncall eax\n",
            True,
        ),
        (multiboot1_header(3), "mov ebx, 1\n" + ASKING, False),
        (
            multiboot1_header(3),
            "jmp over\nover:\ntest eax, eax\nje other\nmov ebx, 1\nother:\nmov ebx, 2\n",
            False,
        ),
        (multiboot1_header(1), ASKING, False),
        (REQUEST, ASKING, True),
        (multiboot2_tags((1, (1,))), ASKING, False),
    ],
)
def test_who_asks_for_a_memory_map(header: bytes, text: str, asks: bool) -> None:
    image = parse_image(text_kernel(header, text), Path("kernel"))
    view = view_of(scan_image(image).codemap, moves=False)
    assert asks_for_map(image, view, image.entries) is asks
    pvh = replace(image.entries[0], protocol="pvh")
    assert asks_for_map(image, view, (pvh,))
    assert not asks_for_map(image, view, (EntryPoint(BASE + 0x40, BASE + 0x40, 32, "elf"),))
    produced = patch(text_kernel(header, text))
    assert bool(produced.job.warnings) is not asks
    assert (block(produced)[0] >= BASE + 0x1000) is asks


@pytest.mark.parametrize("address", [0x90000, 0x88000, 0x80000])
def test_a_place_that_the_code_names_is_left_alone(address: int) -> None:
    data = kernel(SILENT, name_address=address)
    image = parse_image(data, Path("kernel"))
    assert address in named_addresses(view_of(scan_image(image).codemap, moves=False), 0x10000, 0x100000)
    start, end = block(patch(data))
    assert end <= address - 0x4000 or start > address
    assert end <= BASE


def test_the_place_can_be_chosen(tmp_path: Path) -> None:
    path, out = tmp_path / "kernel", tmp_path / "patched"
    path.write_bytes(kernel(SILENT, owns=True))
    done = inside("patch", path, "-o", out, "--block-at", "0x600000")
    assert done.code == 0 and "warning" not in done.text
    assert "in memory at 0x600000" in done.text
    result = run(out.read_bytes())
    assert (result.transcript, result.exit_code) == (b"ok", 0)


@pytest.mark.parametrize(
    ("place", "code", "reason"),
    [
        ("0x600800", 3, "must begin on a page"),
        ("0x7fffc000", 3, "must end below 2 GiB"),
        (hex(BASE), 3, "segment 0 is loaded"),
        ("0x98000", 3, "adapters"),
        ("0", 3, "BIOS"),
        ("here", 2, "no physical address"),
        ("-4096", 2, "no physical address"),
        (str(1 << 70), 2, "no physical address"),
    ],
)
def test_a_wrong_place_is_refused_in_words(place: str, code: int, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(kernel(SILENT))
    done = inside("patch", path, "-o", tmp_path / "patched", f"--block-at={place}")
    assert done.code == code
    assert reason in complaint(done)
    assert not (tmp_path / "patched").exists()


def test_a_range_that_is_loaded_in_one_piece_keeps_the_block_behind_it() -> None:
    data = kernel(multiboot1_fields())
    start, _ = block(patch(data))
    assert start >= END
    assert block(patch(data, start + 0x10000))[0] == start + 0x10000
    for wrong in (0x80000, start + (65 << 20)):
        with pytest.raises(ImageError, match="loaded in one piece"):
            patch(data, wrong)


def test_the_block_never_shares_virtual_addresses_with_a_segment() -> None:
    """A segment whose physical address is 0 leaves only its virtual range to collide with."""
    data = bytearray((SAMPLES / "kvm-x86_64" / "kvm-x86_64.elf").read_bytes())
    data[144:148] = bytes(4)
    produced = patch(bytes(data))
    image = parse_image(produced.file, Path("patched"))
    spans = sorted((item.vaddr, item.vaddr + item.mem_size) for item in image.segments)
    assert all(one[1] <= two[0] for one, two in pairwise(spans))


def test_an_image_without_room_is_refused() -> None:
    whole = Load(0x1000, 0x1000, b"\xfa\xf4" * 64, (1 << 31) - 0x2000, 7)
    with pytest.raises(ImageError, match="no place for the resident block"):
        patch(elf(32, (whole,)))


def test_a_damaged_file_is_compared_with_a_patch_at_the_same_place(tmp_path: Path) -> None:
    original, out = tmp_path / "kernel", tmp_path / "patched"
    original.write_bytes(kernel(SILENT))
    assert inside("patch", original, "-o", out, "--block-at", "0x600000").code == 0
    data = bytearray(out.read_bytes())
    data[-1] ^= 1  # the manifest's last magic
    out.write_bytes(data)
    shown = inside("diff", original, out)
    assert shown.code == 1
    assert "where the file cannot be read any more" in shown.text
