"""gzip and bzImage: every codec in, the same payload out, and back into the container."""

from __future__ import annotations

import gzip
import hashlib
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvpatch.abi.errors import ImageError
from rewriter.image import open_image, original_recipe, parse_image, rewrap
from rewriter.image.codecs import CODECS, codec_of
from rewriter.image.gzip_layer import reproduce
from tests.image.builders import Load, bzimage, elf

HERE = Path("kernel")
VMLINUX = elf(64, (Load(0xFFFFFFFF81000000, 0x1000000, b"\x90\xf4" * 30000),), entry=0x1000000)
TAIL = struct.pack("<9I", 0, 0x81000010, 0x81000020, 0, 0x10, 0, 0x81000004, 0x81000008, 0x8100000C)
NAMES = [codec.name for codec in CODECS]
# made by lzop 1.04 -9 from b"pvpatch lzop sample " * 30
LZOP = bytes.fromhex(
    "894c5a4f000d0a1a0a104020a0094003090300000d000000006b0333430000000000269c025a000002580000001e8edce467"
    "2570767061746368206c7a6f702073616d706c6520200000254c0011000000000000"
)


@pytest.mark.parametrize("name", NAMES)
def test_bzimage_of_every_codec(name: str) -> None:
    image = parse_image(bzimage(VMLINUX, name), HERE)
    (layer,) = image.container
    assert (layer.kind, layer.codec) == ("bzimage", name)
    assert image.payload == VMLINUX
    assert image.kind == "elf64" and image.setup_header is not None
    assert layer.stub is not None and len(layer.stub.length_pair_offsets) == 1
    assert [(entry.width, entry.protocol) for entry in layer.stub.entries] == [
        (32, "linux32"),
        (64, "linux64"),
    ]


@pytest.mark.parametrize("name", NAMES)
@given(content=st.binary(max_size=3000))
@settings(max_examples=15, deadline=None)
def test_codecs_round_trip(name: str, content: bytes) -> None:
    codec = next(codec for codec in CODECS if codec.name == name)
    packed = codec.encode(content)
    assert codec_of(packed) is codec
    assert codec.decode(packed) == content
    assert codec.encode(content) == packed


def test_lzop_file_of_the_real_program() -> None:
    codec = codec_of(LZOP)
    assert codec is not None and codec.decode(LZOP) == b"pvpatch lzop sample " * 30


def test_relocation_tail_behind_the_elf_file() -> None:
    image = parse_image(bzimage(VMLINUX + TAIL, "lz4"), HERE)
    tail = image.relocations
    assert tail is not None and tail.file_offset == len(VMLINUX)
    assert tail.abs64 == (0xFFFFFFFF81000010, 0xFFFFFFFF81000020)
    assert tail.inverse32 == (0x10,)
    assert tail.abs32 == (0xFFFFFFFF81000004, 0xFFFFFFFF81000008, 0xFFFFFFFF8100000C)


@pytest.mark.parametrize("name", NAMES)
def test_repack_keeps_everything_but_the_payload(name: str) -> None:
    image = parse_image(bzimage(VMLINUX, name), HERE)
    changed = VMLINUX[:0x2000] + b"\xcc" * 64 + VMLINUX[0x2040:-64] + bytes(64)
    changed = changed[: len(VMLINUX) - 4096] + VMLINUX[len(VMLINUX) - 4096 :]
    try:
        again = rewrap(image, changed)
    except ImageError as error:
        assert "there is room for" in str(error)
        return
    assert rewrap(image, changed) == again
    second = parse_image(again, HERE)
    assert second.payload == changed
    assert second.entries == image.entries


def test_repack_of_the_same_payload_fits_and_ends_with_the_build_crc() -> None:
    image = parse_image(bzimage(VMLINUX, "gzip"), HERE)
    again = rewrap(image, VMLINUX)
    header = image.setup_header
    assert header is not None
    end = header.syssize * 16 + header.setup_size
    assert struct.unpack_from("<I", again, end - 4)[0] == zlib.crc32(again[: end - 4]) ^ 0xFFFFFFFF


def test_repack_says_when_there_is_no_room() -> None:
    image = parse_image(bzimage(VMLINUX, "gzip"), HERE)
    noise = b"".join(hashlib.sha256(bytes((n & 0xFF, n >> 8))).digest() for n in range(len(VMLINUX) // 32))
    with pytest.raises(ImageError, match="there is room for"):
        rewrap(image, noise + bytes(len(VMLINUX) - len(noise)))
    with pytest.raises(ImageError, match="the decompressor expects"):
        rewrap(image, VMLINUX + b"more")


def test_gzip_by_zlib_is_made_again_bit_for_bit(tmp_path: Path) -> None:
    for level in (1, 6, 9):
        path = tmp_path / f"kernel{level}.gz"
        path.write_bytes(gzip.compress(elf(32), level, mtime=77))
        image = open_image(path)
        recipe = original_recipe(image)
        assert recipe is not None
        assert reproduce(recipe, image.payload) == path.read_bytes() == image.original


def test_gzip_of_unknown_origin_says_so() -> None:
    stored = struct.pack("<BHH", 1, len(elf(32)), len(elf(32)) ^ 0xFFFF) + elf(32)
    trailer = struct.pack("<II", zlib.crc32(elf(32)), len(elf(32)))
    image = parse_image(b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + stored + trailer, HERE)
    assert image.payload == elf(32)
    assert original_recipe(image) is None


def test_gzip_header_fields_survive(tmp_path: Path) -> None:
    body = gzip.compress(elf(32), 9, mtime=5)
    named = body[:3] + bytes([8]) + body[4:10] + b"vmlinux\0" + body[10:]
    image = parse_image(named, HERE)
    again = rewrap(image, image.payload)
    assert again[:18] == named[:18] and gzip.decompress(again) == elf(32)
    assert rewrap(image, image.payload) == again


def test_a_bare_elf_has_no_container() -> None:
    image = parse_image(elf(32), HERE)
    assert image.container == () and image.original == elf(32)
    assert rewrap(image, b"changed") == b"changed"
