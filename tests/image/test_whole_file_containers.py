"""Kernels compressed as a whole, and kernels in EFI programs: opened as what they hold."""

from __future__ import annotations

import bz2
import lzma
import struct
from pathlib import Path

import lz4.frame
import pytest
import zstandard

from pvpatch.abi.errors import ImageError
from rewriter.image import codecs, parse_image
from rewriter.image.codecs import CODECS
from tests.cli.command import complaint, inside
from tests.conftest import GuestPath
from tests.image.builders import bzimage, elf, linux_flat, multiboot1_header
from tests.patch.boot_kernels import kernel

HERE = Path("kernel")
KERNEL = kernel(multiboot1_header(0))
PACKED = {codec.name: codec.encode(KERNEL) for codec in CODECS if codec.name != "gzip"}
PACKED |= {  # as the programs write them, not as kernels' build files call them
    "xz": lzma.compress(KERNEL),
    "bzip2": bz2.compress(KERNEL, 1),
    "lzma": lzma.compress(KERNEL, lzma.FORMAT_ALONE),
    "zstd": zstandard.ZstdCompressor().compress(KERNEL),
    "lz4 frame": lz4.frame.compress(KERNEL, block_linked=False, content_checksum=True),
}


def uki(content: bytes, name: bytes = b".linux", size: int | None = None) -> bytes:
    """A PE program of one section."""
    head = bytearray(0x400)
    head[:2] = b"MZ"
    struct.pack_into("<I", head, 0x3C, 0x80)
    struct.pack_into("<4sHHIIIHH", head, 0x80, b"PE\0\0", 0x8664, 1, 0, 0, 0, 0xF0, 0x22E)
    raw = content + bytes(-len(content) % 512)
    stated = len(content) if size is None else size
    section = 0x80 + 24 + 0xF0
    struct.pack_into("<8sIIII", head, section, name, stated, 0x1000, max(stated, len(raw)), 0x400)
    return bytes(head) + raw


def zboot(content: bytes, name: bytes = b"gzip", size: int | None = None) -> bytes:
    """An EFI zboot image."""
    head = struct.pack("<2s2x4sII8x32s", b"MZ", b"zimg", 64, size or len(content), name)
    return head.ljust(64, b"\0") + content


def gzipped(data: bytes) -> bytes:
    return codecs.codec_named("gzip").encode(data)


@pytest.mark.parametrize("name", PACKED)
def test_a_kernel_compressed_as_a_whole(name: str) -> None:
    image = parse_image(PACKED[name], HERE)
    assert image.payload == KERNEL
    assert [(layer.kind, layer.codec) for layer in image.container] == [("compressed", name)]
    assert image.original == PACKED[name]


@pytest.mark.parametrize(
    ("data", "kinds"),
    [
        (uki(KERNEL), ["uki"]),
        (uki(gzipped(KERNEL)), ["uki", "gzip"]),
        (zboot(gzipped(KERNEL)), ["zboot"]),
        (zboot(PACKED["zstd"], b"zstd"), ["zboot"]),
        (PACKED["xz"], ["compressed"]),
    ],
)
def test_it_runs_and_a_patch_is_refused_in_words(data: bytes, kinds: list[str], tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(data)
    image = parse_image(data, path)
    assert [layer.kind for layer in image.container] == kinds and image.payload == KERNEL
    assert inside("scan", path).code == 0
    ran = inside("run", path)
    assert (ran.code, ran.out[:2]) == (0, b"ok")
    refused = inside("patch", path, "-o", tmp_path / "out")
    assert refused.code == 3
    assert "not supported yet" in complaint(refused) and "damaged" not in refused.err
    assert not (tmp_path / "out").exists()


def test_a_boot_image_in_a_unified_kernel_image() -> None:
    whole = parse_image(uki(bzimage(elf(64), "xz")), HERE)
    assert [layer.kind for layer in whole.container] == ["uki", "bzimage"]
    assert whole.setup_header is not None
    flat = parse_image(uki(linux_flat()), HERE)
    assert flat.kind == "flat" and flat.payload.startswith(linux_flat())


@pytest.mark.parametrize(
    ("data", "reason", "damaged"),
    [
        (uki(KERNEL, b".text"), "a PE program without a kernel", False),
        (uki(KERNEL, size=len(KERNEL) + 4096), "section .linux ends", True),
        (uki(b"no kernel at all"), "no kernel image of a known format", False),
        (zboot(gzipped(KERNEL), size=1 << 30), "payload of the EFI zboot image ends", True),
        (zboot(b"abcdefgh" * 8, b"newest"), "of no known codec; it states 'newest'", False),
        (PACKED["xz"][:-20], "the xz data cannot be unpacked", True),
        (b"\x5d\0\0" + bytes(100), "no kernel image of a known format", False),
        (b"BZhello, this is a text", "no kernel image of a known format", False),
    ],
)
def test_what_is_refused_says_why(data: bytes, reason: str, damaged: bool) -> None:
    with pytest.raises(ImageError) as caught:
        parse_image(data, HERE)
    assert reason in str(caught.value)
    assert ("damaged" in str(caught.value)) is damaged


@pytest.mark.parametrize("name", ["lz4 frame", "zstd", "xz", "bzip2", "lzma", "lz4"])
def test_expansion_is_bounded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = next(codec for codec in CODECS if codec.name == name).encode(bytes(64 << 20))
    monkeypatch.setattr(codecs, "MAX_UNPACKED", 16 << 20)
    for data in (bomb, uki(bomb), zboot(bomb)):
        with pytest.raises(ImageError, match="unpacks to more than 16 MiB"):
            parse_image(data, HERE)


def _boot_image(version: int, code32_start: int, content: bytes = b"") -> bytes:
    data = bytearray(linux_flat((b"\x90" * 0x300) + content))
    struct.pack_into("<H", data, 0x206, version)
    struct.pack_into("<I", data, 0x214, code32_start)
    return bytes(data)


@pytest.mark.parametrize(("version", "start"), [(0x203, 0x100000), (0x207, 0)])
def test_a_boot_image_for_real_mode_is_refused_before_it_runs(
    version: int, start: int, tmp_path: Path
) -> None:
    """As memdisk and iPXE state themselves."""
    path = tmp_path / "kernel.lkrn"
    path.write_bytes(_boot_image(version, start))
    for command in ("scan", "run"):
        refused = inside(command, path)
        assert refused.code == 3 and refused.out == b""
        assert "entered in real mode" in complaint(refused) and "damaged" not in refused.err


def test_an_old_linux_is_entered_at_32_bits() -> None:
    noise = gzipped(bytes(range(256)) * 2048)
    assert parse_image(_boot_image(0x203, 0x100000, noise), HERE).entries[0].protocol == "linux32"


@pytest.mark.guest
@pytest.mark.parametrize("name", ["ipxe", "memdisk"])
def test_real_boot_images_for_real_mode_are_refused(name: str, guest_path: GuestPath) -> None:
    refused = inside("run", guest_path(name))
    assert refused.code == 3
    assert "entered in real mode" in complaint(refused) and "damaged" not in refused.err
