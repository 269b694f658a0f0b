"""What is not patched is said, with the reason, by what the image declares."""

from __future__ import annotations

import gzip
import random
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pvpatch.abi.errors import ImageError
from rewriter.emit.produce import patch_image
from rewriter.image import Image, Section, open_image, parse_image
from rewriter.image.codecs import holds_gzip_kernel
from rewriter.image.linux_kernel import is_linux
from tests.image.builders import CODE, Load, elf, linux_flat, multiboot1_header, note
from tests.patch.conftest import SAMPLES

PLAIN = (Load(0x100000, 0x100000, CODE + bytes(0x200), 0, 7),)
MULTIBOOT = (Load(0x100000, 0x100000, multiboot1_header(3) + CODE + bytes(0x200), 0, 7),)


def understood(data: bytes) -> Image:
    return parse_image(data, Path("kernel"))


def xen_note(kind: int, value: bytes) -> bytes:
    return note(b"Xen", kind, value)


GUEST = xen_note(6, b"NetBSD\0") + xen_note(5, b"xen-3.0\0")
GENERIC = GUEST + xen_note(8, b"generic\0")
PAGE = xen_note(2, struct.pack("<I", 0x101000))
PVH = xen_note(18, struct.pack("<I", 0x100000))


@pytest.mark.parametrize(
    ("notes", "reason"),
    [
        (GENERIC, "has a Xen entry"),  # entered at e_entry: Xen's own default
        (GENERIC + PAGE, "has a Xen entry"),
        (GUEST, "declares itself a paravirtual guest of Xen"),
        (PAGE, "declares itself a paravirtual guest of Xen"),
        (xen_note(3, bytes(4)), "declares itself a paravirtual guest of Xen"),
    ],
)
def test_a_paravirtual_guest_of_xen_is_refused(notes: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        patch_image(understood(elf(32, PLAIN, notes=notes)))
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    "data", [elf(32, PLAIN, notes=PVH), elf(32, PLAIN, notes=GUEST + PVH), elf(32, MULTIBOOT, entry=0x10000C)]
)
def test_native_entries_are_patched(data: bytes) -> None:
    assert patch_image(understood(data)).manifest.sites


def test_a_guest_that_makes_its_hypervisors_calls_is_refused() -> None:
    with pytest.raises(ImageError, match="a guest of lguest") as caught:
        patch_image(open_image(SAMPLES / "lguest-i386" / "lguest-i386.elf"))
    assert caught.value.exit_code == 3


def test_a_native_kernel_that_can_speak_to_one_is_patched() -> None:
    for name in ("vmi-i386", "kvm-x86_64"):
        assert patch_image(open_image(SAMPLES / name / f"{name}.elf")).manifest.changes


def _with_sections(*names: str) -> Image:
    image = understood(elf(32, PLAIN))
    return replace(image, sections=tuple(Section(name, 0, 0, 0, 0, False, False, False) for name in names))


@pytest.mark.parametrize(
    ("names", "linux"),
    [
        (("__ex_table", "__param"), True),
        ((".altinstructions", ".parainstructions"), True),
        ((".altinstructions", ".ex_table"), False),  # the Xen hypervisor has these
        (("__param",), False),
        ((), False),
    ],
)
def test_linux_is_known_by_its_tables(names: tuple[str, ...], linux: bool) -> None:
    image = _with_sections(*names)
    assert is_linux(image) is linux
    if linux:
        with pytest.raises(ImageError, match="a Linux kernel"):
            patch_image(image)


def test_linux_is_known_by_its_notes() -> None:
    with pytest.raises(ImageError, match="a Linux kernel"):
        patch_image(understood(elf(32, PLAIN, notes=note(b"Linux", 0x100, b"6.1.0\0"))))


def _old_boot_image(content: bytes) -> bytes:
    data = bytearray(linux_flat((CODE + bytes(0x200)).ljust(0x400, b"\0") + content))
    struct.pack_into("<H", data, 0x206, 0x204)  # older than the fields that tell where the payload is
    return bytes(data)


def test_an_old_boot_image_with_a_kernel_inside_is_linux() -> None:
    kernel = random.Random(1).randbytes(300 << 10)
    with pytest.raises(ImageError, match="a Linux kernel"):
        patch_image(understood(_old_boot_image(gzip.compress(kernel))))
    assert not holds_gzip_kernel(b"\x1f\x8b\x08" * 1000)
    assert not holds_gzip_kernel(gzip.compress(b"a small thing"))
    assert patch_image(understood(_old_boot_image(b"\x1f\x8b\x08" + bytes(100)))).manifest.sites


@pytest.mark.guest
@pytest.mark.parametrize("name", ["linux-i386", "linux-amd64"])
def test_a_raw_vmlinux_is_refused(name: str, guest_path: Callable[[str], Path]) -> None:
    image = understood(open_image(guest_path(name)).payload)
    assert is_linux(image)
    with pytest.raises(ImageError, match="a Linux kernel"):
        patch_image(image)


@pytest.mark.guest
@pytest.mark.parametrize(
    "name", ["gnumach-i386", "gnumach-amd64", "memtest-ia32", "memtest-x64", "grub-pvh-i386", "xen-amd64"]
)
def test_others_are_not_taken_for_linux(name: str, guest_path: Callable[[str], Path]) -> None:
    assert not is_linux(open_image(guest_path(name)))


@pytest.mark.guest
def test_an_image_that_moves_itself_is_refused(guest_path: Callable[[str], Path]) -> None:
    """The Xen hypervisor copies itself to the top of memory, and drops what lies behind its own end."""
    with pytest.raises(ImageError, match="may be moved as a whole"):
        patch_image(open_image(guest_path("xen-amd64")))
