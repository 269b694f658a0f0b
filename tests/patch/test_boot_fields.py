"""Boot headers with addresses of their own: what a loader that follows them makes of a patched file."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from pvpatch.abi.errors import ImageError
from pvpatch.bootimage import boot_image
from rewriter.emit.produce import patch_image
from rewriter.image import parse_image
from rewriter.image.loaders import BootPlan, boot_plans
from rewriter.image.multiboot import find_multiboot
from runtime.backends import backend_named
from runtime.machine import Machine, MachineConfig
from runtime.outcome import Outcome, RunResult
from tests.patch.boot_kernels import BASE, BSS, END, kernel, multiboot1_fields, multiboot2_tags

ADDRESS, ENTRY_TAG, ENTRY = 2, 3, BASE + 0xC0
TAGS2 = ((ADDRESS, (BASE, BASE, BSS, END)), (ENTRY_TAG, (ENTRY,)))
EFI = ((7, ()), (8, (BASE + 0x200,)), (9, (BASE + 0x300,)))
RELOCATABLE = (10, (BASE, 0x8000000, 4096, 2))
BACKENDS = [(32, name) for name in ("bare", "kvm", "lguest", "vmi", "xen")]
BACKENDS += [(64, name) for name in ("bare", "kvm", "xen")]


def patched(data: bytes) -> bytes:
    return patch_image(parse_image(data, Path("kernel"))).file


def run(data: bytes, backend: str = "bare") -> RunResult:
    config = MachineConfig(memory_mib=16, max_time_s=1.0)
    return Machine(config, boot_image(parse_image(data, Path("kernel"))), backend_named(backend)).run()


def qemu(data: bytes, place: Path, width: str = "i386") -> tuple[bytes, int]:
    """Serial output, and what was written to the exit port."""
    program = shutil.which(f"qemu-system-{width}")
    if program is None:
        pytest.skip(f"qemu-system-{width} is not installed")
    path = place / "kernel"
    path.write_bytes(data)
    command = [program, "-display", "none", "-no-reboot", "-nic", "none", "-m", "32", "-serial", "stdio",
               "-device", "isa-debug-exit,iobase=0xf4", "-kernel", str(path)]  # fmt: skip
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
    return done.stdout, done.returncode >> 1


def plan_of(data: bytes, loader: str) -> BootPlan:
    return next(plan for plan in boot_plans(data) if plan.loader == loader)


@pytest.mark.parametrize(("bits", "backend"), BACKENDS)
@pytest.mark.parametrize("header", [multiboot1_fields(), multiboot2_tags(*TAGS2)], ids=["mb1", "mb2"])
def test_a_patched_kernel_runs_on_every_backend(header: bytes, bits: int, backend: str) -> None:
    result = run(patched(kernel(header, bits)), backend)
    assert (result.outcome, result.transcript, result.exit_code) == (Outcome.EXITED, b"ok", 0)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [32, 64])
def test_qemu_follows_the_fields(bits: int, tmp_path: Path) -> None:
    original = kernel(multiboot1_fields(), bits)
    assert qemu(original, tmp_path, "x86_64") == (b"ok", 0)
    assert qemu(patched(original), tmp_path, "x86_64") == (b"ok", 0)


@pytest.mark.parametrize("header", [multiboot1_fields(), multiboot2_tags(*TAGS2)], ids=["mb1", "mb2"])
def test_the_range_holds_image_and_block(header: bytes) -> None:
    """A loader that follows the fields, played by hand: entry at the stub, symbols cleared away by it."""
    original = kernel(header)
    file = patched(original)
    loader = f"{find_multiboot(original)[0].protocol}, address fields"
    before, after = plan_of(original, loader), plan_of(file, loader)
    (old,), (new,) = before.ranges, after.ranges
    assert (new.address, new.file_offset) == (old.address, old.file_offset)
    assert new.file_size > old.mem_size
    assert old.address + old.mem_size <= after.entry < new.address + new.file_size
    assert file[old.file_offset + old.file_size : old.file_offset + old.mem_size].strip(b"\0")
    alone = file[new.file_offset : new.file_offset + new.file_size]  # a flat file: nothing else is loaded
    result = run(alone)
    assert (result.outcome, result.transcript, result.exit_code) == (Outcome.EXITED, b"ok", 0)


def test_the_whole_file_may_be_loaded() -> None:
    """load_end 0: to the end of the file; bss_end 0: nothing is cleared."""
    file = patched(kernel(multiboot1_fields(load_end=0, bss_end=0)))
    (header,) = find_multiboot(file)
    assert 0 < header.load_end < header.bss_end
    assert header.load_end <= BASE + len(file)


def test_an_entry_tag_without_addresses_leads_to_the_stub() -> None:
    data = kernel(multiboot2_tags((ENTRY_TAG, (ENTRY,))))
    file = patched(data)
    assert plan_of(file, "multiboot2, ELF").entry == plan_of(file, "elf").entry != ENTRY
    assert run(file).transcript == b"ok"


def test_tags_that_lead_past_the_stub_are_taken_out() -> None:
    data = kernel(multiboot2_tags(*TAGS2, *EFI))
    file = patched(data)
    (before,), (after,) = find_multiboot(data), find_multiboot(file)
    assert {tag.kind for tag in before.tags} - {tag.kind for tag in after.tags} == {7, 8, 9}
    assert after.entry_efi64 is None and after.entry == plan_of(file, "elf").entry
    assert run(file).transcript == b"ok"


def test_an_image_that_may_be_moved_is_refused() -> None:
    with pytest.raises(ImageError, match="declares that it may be moved"):
        patched(kernel(multiboot2_tags(*TAGS2, RELOCATABLE)))


def test_two_headers_grow_together() -> None:
    both = multiboot1_fields() + multiboot2_tags((ADDRESS, (BASE + 32, BASE, BSS, END)), TAGS2[1])
    file = patched(kernel(both))
    one, two = find_multiboot(file)
    assert (one.load_end, one.bss_end, one.entry) == (two.load_end, two.bss_end, two.entry)


@pytest.mark.parametrize(
    "header",
    [
        multiboot1_fields(load_end=BASE + 0xC8),
        multiboot2_tags((ADDRESS, (BASE + 0x1000, BASE + 0x1000, BSS + 0x1000, END)), (ENTRY_TAG, (ENTRY,))),
    ],
    ids=["too short", "elsewhere"],
)
def test_fields_that_contradict_the_program_headers_are_refused(header: bytes) -> None:
    with pytest.raises(ImageError, match="address fields of its multiboot header do not load"):
        patched(kernel(header))
