"""Files that are no kernels, or mean harm: always ImageError, in bounded time and memory."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import struct
import time
import tracemalloc
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pvpatch.abi.errors import ImageError
from rewriter.image import codecs as codecs_module
from rewriter.image import open_image, parse_image, source
from rewriter.image.codecs import CODECS
from tests.image.builders import CODE, Load, bzimage, elf, linux_flat, multiboot1_header, note

HERE = Path("kernel")


def _refused(path: Path) -> str:
    with pytest.raises(ImageError) as caught:
        open_image(path)
    text = str(caught.value)
    assert str(path) in text and "\n" not in text and caught.value.exit_code == 3
    return text


def test_absent_empty_folder_text(tmp_path: Path) -> None:
    assert "No such file" in _refused(tmp_path / "absent")
    (tmp_path / "empty").touch()
    assert "is empty" in _refused(tmp_path / "empty")
    _refused(tmp_path)
    (tmp_path / "notes.txt").write_text("This is not a kernel.\n" * 20)
    assert "looks like text" in _refused(tmp_path / "notes.txt")
    (tmp_path / "zeros").write_bytes(bytes(5000))
    assert "starts with zeros" in _refused(tmp_path / "zeros")


def test_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in _refused(tmp_path / "pipe")


def test_huge_sparse_file_is_refused_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "huge"
    with path.open("wb") as stream:
        stream.write(b"\x7fELF")
        stream.truncate(8 << 30)
    started = time.monotonic()
    assert "more than the limit" in _refused(path)
    assert time.monotonic() - started < 2


def _bombs() -> list[tuple[str, bytes]]:
    size = 24 << 20
    lz4_block = b"\x1f\x00\x01\x00" + b"\xff" * ((8 << 20) // 255 - 1) + b"\x40" + b"\x50" + bytes(5)
    return [
        ("gzip", gzip.compress(bytes(size), 1)),
        ("bzip2", bz2.compress(bytes(size), 1)),
        ("lzma", lzma.compress(bytes(size), lzma.FORMAT_ALONE, preset=0)),
        ("xz", lzma.compress(bytes(size), preset=0)),
        ("lz4", b"\x02\x21\x4c\x18" + (struct.pack("<I", len(lz4_block)) + lz4_block) * 3),
        ("zstd", zstandard.ZstdCompressor(level=1, write_content_size=False).compress(bytes(size))),
    ]


@pytest.mark.parametrize(("name", "data"), _bombs(), ids=[name for name, _ in _bombs()])
def test_expansion_stops_at_the_cap(name: str, data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecs_module, "MAX_UNPACKED", 4 << 20)
    codec = next(codec for codec in CODECS if codec.name == name)
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match="unpacks to more than 4 MiB"):
            codec.decode(data)
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()


def test_the_real_cap_is_finite() -> None:
    assert source.MAX_UNPACKED <= 512 << 20 and source.MAX_FILE < 1 << 30


def test_gzip_in_gzip_without_end() -> None:
    data = elf(32)
    for _ in range(5):
        data = gzip.compress(data)
    with pytest.raises(ImageError, match="more than 3 containers"):
        parse_image(data, HERE)


def test_payload_of_a_wrong_kind_and_a_lying_length() -> None:
    good = bytearray(bzimage(elf(64), "xz"))
    assert parse_image(bytes(good), HERE).kind == "elf64"
    start = 0x600 + struct.unpack_from("<I", good, 0x248)[0]
    broken = bytearray(good)
    broken[start : start + 6] = b"NOPE!!"
    with pytest.raises(ImageError, match="no known codec"):
        parse_image(bytes(broken), HERE)
    end = start + struct.unpack_from("<I", good, 0x24C)[0]
    broken = bytearray(good)
    struct.pack_into("<I", broken, end - 4, 5)
    with pytest.raises(ImageError, match="but states 5"):
        parse_image(bytes(broken), HERE)
    with pytest.raises(ImageError, match="payload ends at"):
        parse_image(bytes(good[: end - 100]), HERE)


SEEDS: tuple[bytes, ...] = (
    elf(32, (Load(0xC0100000, 0x100000, CODE + multiboot1_header() + bytes(64)),)),
    elf(
        64,
        (Load(0xFFFFFFFF81000000, 0x1000000, CODE), Load(0xFFFFFFFF81002000, 0x1002000, bytes(64), 4096)),
        entry=0x1000000,
        notes=note(b"Xen", 1, struct.pack("<Q", 0xFFFFFFFF81000000)) + note(b"Xen", 18, b"\0\0\0\x01"),
        symbols=(("start", 0xFFFFFFFF81000000, 4),),
    ),
    linux_flat(),
    gzip.compress(elf(32), mtime=0),
    *(bzimage(elf(64), codec.name) for codec in CODECS),
)
HOT = 0x400  # headers stand at the start: most mutations go there


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    """A valid image with bytes overwritten, numbers made extreme, or its end cut off."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 6))):
        place = st.integers(0, min(HOT, len(data)) - 1) | st.integers(0, len(data) - 1)
        at = draw(place)
        value = draw(
            st.binary(min_size=1, max_size=8)
            | st.sampled_from((b"\xff" * 4, b"\xff" * 8, bytes(8), b"\0\0\0\x80", b"\xff\xff\xff\x7f"))
        )
        data[at : at + len(value)] = value[: len(data) - at]
    if draw(st.booleans()):
        del data[draw(st.integers(0, len(data))) :]
    return bytes(data)


@given(mutations())
@settings(max_examples=600, deadline=None)
def test_mutations_never_raise_anything_else(data: bytes) -> None:
    try:
        image = parse_image(data, HERE)
    except ImageError as error:
        assert "\n" not in str(error)
        return
    for segment in image.segments:
        assert 0 <= segment.file_size <= segment.mem_size
        assert segment.file_offset + segment.file_size <= len(image.payload)
    for entry in image.entries:
        assert image.segment_at(entry.address) is not None
        assert image.describe(entry.address)
    for section in image.sections:
        assert section.file_offset + section.file_size <= len(image.payload) or not section.file_size


@given(st.binary(max_size=2000))
@settings(max_examples=200, deadline=None)
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError):
        parse_image(data, HERE)
