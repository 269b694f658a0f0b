"""The manifest record: it comes back as it was, and damage ends in one ImageError."""

from __future__ import annotations

import bz2
import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvpatch.abi.errors import ImageError
from rewriter.emit.edits import Edits
from rewriter.manifest import (
    Addition,
    Change,
    Manifest,
    differences,
    explain,
    find_record,
    pack,
    read_manifest,
    store,
)
from rewriter.manifest.restore import original_payload
from tests.patch.conftest import Patches

PAYLOAD = bytes(range(64))
MANIFEST = Manifest(
    original_sha256="00" * 32,
    original_size=64,
    payload_sha256="fdeab9acf3710362bd2658cdc9a29e8f9c757fcf9811603a8c447cd1d9151108",
    payload_size=64,
    format="elf32",
    reach="relative",
    resident={"physical": 0x100000, "size": 4, "memory_size": 8, "offset": 64},
    changes=(Change(4, "0405", "ffff", "header", "a test"),),
    additions=(Addition(64, "aabbccdd", "part"),),
    sites=(),
)
PATCHED = PAYLOAD[:4] + b"\xff\xff" + PAYLOAD[6:] + bytes.fromhex("aabbccdd")
SCHEMA = Path(__file__).resolve().parents[2] / "docs/schema/manifest-1.json"


def test_a_record_comes_back() -> None:
    for kept in (b"", b"original file"):
        manifest = replace(MANIFEST, kept_original=kept)
        assert read_manifest(PATCHED + pack(manifest)) == manifest
        assert read_manifest(PATCHED + pack(manifest) + bytes(100)) == manifest


def test_it_undoes_the_changes() -> None:
    assert original_payload(PATCHED + pack(MANIFEST), MANIFEST) == PAYLOAD


def test_it_explains_every_byte() -> None:
    patched = PATCHED + pack(MANIFEST)
    assert explain(PAYLOAD, patched, MANIFEST).unexplained == ()
    for at in (0, 4, 63, 64, 67):
        damaged = bytearray(patched)
        damaged[at] ^= 1
        (place,) = explain(PAYLOAD, bytes(damaged), MANIFEST).unexplained
        assert place.offset == at
        assert place.part == ("part" if at >= 64 else "")
    assert explain(PAYLOAD, patched + b"\0x", MANIFEST).unexplained


@given(st.binary(max_size=64), st.binary(max_size=64))
def test_differences_cover_exactly_the_unequal_bytes(left: bytes, right: bytes) -> None:
    covered = {at for first, last in differences(left, right) for at in range(first, last)}
    longest = max(len(left), len(right))
    assert covered == {at for at in range(longest) if left[at : at + 1] != right[at : at + 1]}


@settings(max_examples=200)
@given(st.data())
def test_damage_is_reported(data: st.DataObject) -> None:
    record = bytearray(pack(replace(MANIFEST, kept_original=b"original file")))
    at = data.draw(st.integers(0, len(record) - 1))
    record[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ImageError):
        read_manifest(PATCHED + bytes(record))


def forged(document: object) -> bytes:
    """A record with a right checksum around any document."""
    text = bz2.compress(json.dumps(document).encode())
    body = struct.pack("<8sII", b"PVMANIF1", len(text), 0) + text
    body += bytes(-len(body) % 8)
    start = struct.pack("<QI", len(body) + 24, 1)
    return body + start + struct.pack("<I8s", zlib.crc32(body + start), b"PVMANEND")


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "pvpatch/manifest/9"},
        {"changes": [{"offset": 62, "old": "0000000000", "new": "0000000000", "kind": "header", "why": ""}]},
        {"changes": [{"offset": -1, "old": "00", "new": "01", "kind": "header", "why": ""}]},
        {"changes": [{"offset": "4", "old": "00", "new": "01", "kind": "header", "why": ""}]},
        {"changes": [{"offset": 4, "old": "0", "new": "xx", "kind": "header", "why": ""}]},
        {"changes": 5},
        {"additions": [{"offset": 1 << 70, "data": "00", "name": ""}]},
        {"payload_size": -3},
        {"payload_sha256": "12"},
        {"resident": [1, 2]},
        {"surprise": 1},
    ],
)
def test_a_forged_document_is_refused(change: dict[str, Any]) -> None:
    document = json.loads(MANIFEST.to_json())
    assert read_manifest(PATCHED + forged(document)) == MANIFEST
    with pytest.raises(ImageError):
        read_manifest(PATCHED + forged(document | change))


def test_a_document_that_expands_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_LIMIT", 1 << 20)
    text = bz2.compress(bytes(4 << 20), 1)
    body = struct.pack("<8sII", b"PVMANIF1", len(text), 0) + text
    body += bytes(-len(body) % 8)
    start = struct.pack("<QI", len(body) + 24, 1)
    with pytest.raises(ImageError):
        read_manifest(PATCHED + body + start + struct.pack("<I8s", zlib.crc32(body + start), b"PVMANEND"))


def test_no_record() -> None:
    assert find_record(PATCHED) is None
    assert find_record(b"") is None
    with pytest.raises(ImageError, match="not patched"):
        read_manifest(PATCHED)


@given(st.lists(st.tuples(st.integers(0, 60), st.binary(min_size=1, max_size=4)), max_size=6))
def test_edits_overlay_what_came_before(writes: list[tuple[int, bytes]]) -> None:
    edits, expected = Edits(PAYLOAD), bytearray(PAYLOAD)
    for offset, data in writes:
        current = edits.overlay(offset, data)
        assert current == expected[offset : offset + len(data)]
        edits.change(offset, data, "header", "a test")
        expected[offset : offset + len(data)] = data
    assert edits.apply() == bytes(expected)


def test_a_real_manifest_follows_its_schema(patch_of: Patches) -> None:
    _, produced = patch_of("native-i386")
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.validate(json.loads(produced.manifest.to_json()), schema)
