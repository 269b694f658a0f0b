"""Mutations of valid images through scan, patch, diff, revert and a short run, with a fixed budget.

Each example runs in a forked process with hard limits, so that even a crash of the emulator is a failing
example and not the end of the tests. The choice is derandomized: the same examples every time. A longer hunt:
`PVPATCH_FUZZ=2000 pytest tests/hostile/test_fuzz.py`.
"""

from __future__ import annotations

import gzip
import os
import struct
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cli.command import files_below
from tests.hostile.guests import BASE, kernel
from tests.hostile.isolation import Isolated, isolated
from tests.image.builders import CODE, Load, bzimage, elf, linux_flat, multiboot1_header, note
from tests.samples.images import image

EXAMPLES = int(os.environ.get("PVPATCH_FUZZ", "30"))
SETTINGS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="PVPATCH_FUZZ" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)
BUSY = """
    mov edi, 0x200000
    mov ecx, 40
again:
    pushfd
    cli
    mov eax, cr0
    out 0x80, al
    popfd
    cpuid
    loop again
    cli
    hlt
"""
EXTREMES = (
    b"\xff" * 4,
    b"\xff" * 8,
    bytes(8),
    b"\0\0\0\x80",
    b"\xff\xff\xff\x7f",
    b"\x0f\x0b",
    b"\xf4",
    b"\xcc",
)


@cache
def seeds() -> tuple[bytes, ...]:
    """Small valid images of every kind."""
    xen = note(b"Xen", 1, struct.pack("<Q", 0xFFFFFFFF81000000)) + note(
        b"Xen", 18, struct.pack("<I", 0x1000000)
    )
    symbols = (("start", BASE + 32, 40), ("next", BASE + 72, 8))
    busy = kernel(BUSY)
    return (
        busy,
        busy,
        kernel("mov rax, cr0; cli; hlt", 64),
        elf(32, (Load(0xC0100000, 0x100000, multiboot1_header() + CODE + bytes(64)),), symbols=symbols),
        elf(64, (Load(0xFFFFFFFF81000000, 0x1000000, CODE), Load(0xFFFFFFFF81002000, 0x1002000, CODE, 4096)),
            entry=0x1000000, notes=xen),
        linux_flat(),
        gzip.compress(busy, mtime=0),
        bzimage(elf(64), "lz4"),
    )  # fmt: skip


@st.composite
def mutations(draw: st.DrawFn, choices: tuple[bytes, ...], hot: int) -> bytes:
    """A valid image with bytes overwritten or numbers made extreme, mostly in front, or cut off."""
    data = bytearray(draw(st.sampled_from(choices)))
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, min(hot, len(data)) - 1) | st.integers(0, len(data) - 1))
        value = draw(st.binary(min_size=1, max_size=8) | st.sampled_from(EXTREMES))
        data[at : at + len(value)] = value[: len(data) - at]
    if draw(st.integers(0, 4)) == 0:
        del data[draw(st.integers(0, len(data))) :]
    return bytes(data)


def one_answer(ended: Isolated, *codes: int) -> Isolated:
    """A defined exit code, and for a refusal exactly one line."""
    assert ended.code in codes, ended
    if ended.code == 3:
        assert ended.err.count("\n") == 1 and ended.err.startswith("pvpatch: "), ended.err
        assert ended.out == b""
    return ended


def whole_path(folder: Path, data: bytes, backend: str) -> None:
    """scan, run; and where it can be patched: diff, revert to the same bytes, run again."""
    path, patched, back = folder / "image", folder / "patched", folder / "back"
    path.write_bytes(data)
    short = ("--max-time", "0.0005", "--memory", "8")
    scanned = one_answer(isolated("scan", path), 0, 3)
    one_answer(isolated("run", path, *short), 0, 3, 4, 5)
    made = one_answer(isolated("patch", path, "-o", patched), 0, 3)
    if made.code:
        assert files_below(folder) == ["image"]
        return
    assert scanned.code == 0
    one_answer(isolated("diff", path, patched), 0)
    assert isolated("revert", patched, "-o", back).code == 0
    assert back.read_bytes() == data, "revert gives the original file"
    one_answer(isolated("run", patched, "--backend", backend, *short), 0, 2, 3, 4, 5)


@given(st.data())
@SETTINGS
def test_small_images(data: st.DataObject) -> None:
    mutated = data.draw(mutations(seeds(), 0x200))
    backend = data.draw(st.sampled_from(("bare", "kvm", "lguest")))
    with TemporaryDirectory() as folder:
        whole_path(Path(folder), mutated, backend)


@given(st.data())
@settings(SETTINGS, max_examples=max(6, EXAMPLES // 8))
def test_samples(data: st.DataObject) -> None:
    names = ("native-i386", "native-x86_64", "kvm-x86_64", "lguest-i386")
    mutated = data.draw(mutations(tuple(image(name).read_bytes() for name in names), 0x100))
    with TemporaryDirectory() as folder:
        whole_path(Path(folder), mutated, "bare")


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """A kernel and its patched image."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "image").write_bytes(kernel(BUSY))
    assert isolated("patch", folder / "image", "-o", folder / "patched").code == 0
    return (folder / "image").read_bytes(), (folder / "patched").read_bytes()


@given(st.data())
@SETTINGS
def test_patched_images(patched: tuple[bytes, bytes], data: st.DataObject) -> None:
    """Whatever is changed by hand: diff says no or refuses, revert gives the original or nothing."""
    original, good = patched
    mutated = data.draw(mutations((good,), 0x100))
    with TemporaryDirectory() as name:
        folder = Path(name)
        path, first, back = folder / "patched", folder / "image", folder / "back"
        path.write_bytes(mutated)
        first.write_bytes(original)
        one_answer(isolated("diff", first, path), 0 if mutated == good else 1, 3)
        if one_answer(isolated("revert", path, "-o", back), 0, 3).code == 0:
            assert back.read_bytes() == original
        one_answer(isolated("run", path, "--max-time", "0.0005", "--memory", "8"), 0, 3, 4, 5)
