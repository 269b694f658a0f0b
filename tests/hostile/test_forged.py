"""Forged records of patched files: refused with one line, or harmless; never a fault of this program."""

from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path

import pytest

from rewriter.manifest import read_manifest
from tests.cli.command import complaint, inside
from tests.hostile.files import HEADS
from tests.hostile.forged import forged_fields, with_document
from tests.hostile.guests import kernel
from tests.hostile.isolation import isolated

KERNEL = "pushfd; cli; mov eax, cr0; popfd; sti; nop; nop; nop; nop; cli; hlt"
BOMBS = {
    "2000 brackets": b"[" * 2000 + b"]" * 2000,
    "nested objects": b'{"a":' * 3000 + b"1" + b"}" * 3000,
    "nested objects with long names": (b'{"%s":' % (b"a" * 60)) * 5000 + b"1" + b"}" * 5000,
    "many brackets": b'{"changes":[' + b"[]," * (8 << 20) + b"[]]}",
    "many objects": b'{"changes":[' + b"{}," * (8 << 20) + b"{}]}",
    "many numbers": b'{"notes":[' + b"1," * (16 << 20) + b"1]}",
    "one long number": b'{"payload_size":' + b"9" * 100_000 + b"}",
    "a lone surrogate": b'{"schema":"\\ud800"}',
    "no JSON": b"\xff\xfe" * 100,
    "nothing": b"",
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A kernel and its patched file."""
    folder = tmp_path_factory.mktemp("forged")
    original, patched = folder / "kernel", folder / "patched"
    original.write_bytes(kernel(KERNEL))
    assert inside("patch", original, "-o", patched).code == 0
    return original, patched


@pytest.mark.parametrize("name", BOMBS)
def test_3_a_document_that_is_none(name: str, pair: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "forged"
    path.write_bytes(with_document(pair[1].read_bytes(), BOMBS[name]))
    for words in (("diff", pair[0], path), ("revert", path, "-o", tmp_path / "out")):
        ended = isolated(*words)
        assert ended.code == 3 and "the manifest" in complaint(ended)
        assert ended.peak < 200 << 20 and ended.seconds < 20
    assert sorted(tmp_path.iterdir()) == [path]


def test_3_a_bomb_of_bzip2(pair: tuple[Path, Path], tmp_path: Path) -> None:
    squeezer = bz2.BZ2Compressor(9)
    piece = b"[" * (8 << 20)
    bomb = b"".join(squeezer.compress(piece) for _ in range(64)) + squeezer.flush()
    path = tmp_path / "forged"
    path.write_bytes(with_document(pair[1].read_bytes(), b"", compressed=bomb))
    ended = isolated("diff", pair[0], path)
    assert ended.code == 3 and "the manifest" in complaint(ended)
    assert ended.peak < 200 << 20 and ended.seconds < 20


def test_a_field_that_is_none(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Each field with each wrong kind of value."""
    patched = pair[1].read_bytes()
    document = json.loads(read_manifest(patched).to_json())
    path, out = tmp_path / "forged", tmp_path / "out"
    wrong = forged_fields(document)
    assert len(wrong) > 200
    for name, made in wrong.items():
        path.write_bytes(with_document(patched, json.dumps(made).encode()))
        for words in (("diff", pair[0], path, "--html", "/dev/null"), ("revert", path, "-o", out)):
            ended = inside(*words)
            assert ended.code in (0, 1, 3), f"{name}: {ended}"
            if ended.code == 3:
                complaint(ended)
            out.unlink(missing_ok=True)


@pytest.mark.parametrize("recipe", [{}, {"header": 1, "level": 9, "memory_level": 8},
                                    {"header": "1f", "level": 99, "memory_level": 8},
                                    {"header": "1f", "level": 9, "memory_level": 1 << 40}])  # fmt: skip
def test_3_a_recipe_that_is_none(recipe: dict[str, object], tmp_path: Path) -> None:
    original, patched = tmp_path / "kernel.gz", tmp_path / "patched"
    original.write_bytes(HEADS["gzip"]())
    assert inside("patch", original, "-o", patched).code == 0
    whole = gzip.decompress(patched.read_bytes())
    document = json.loads(read_manifest(whole).to_json())
    document["containers"][0]["recipe"] = recipe
    path = tmp_path / "forged"
    path.write_bytes(with_document(whole, json.dumps(document).encode()))
    ended = inside("revert", path, "-o", tmp_path / "out")
    assert ended.code == 3, ended
    complaint(ended)
