"""The numpy length decoder against iced, at every offset of anything."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewriter.decode import instruction_lengths
from tests.decode.streams import random_instructions, reference_lengths

LENIENT = {0x62, 0xC4, 0xC5, 0x8F}
"""First bytes of vector encodings: reserved bits inside them (vvvv, L, W) are not checked."""


def disagreements(code: bytes, width: int) -> list[tuple[int, int, int]]:
    """(offset, ours, iced's), leaving out what the length decoder promises not to judge."""
    ours = instruction_lengths(code, width)
    result = []
    for offset, expected in enumerate(reference_lengths(code, width)):
        found = int(ours.lengths[offset])
        if found == expected:
            continue
        opcode = offset + int(ours.prefixes[offset])
        lenient = code[opcode] in LENIENT or code[opcode : opcode + 2] in (
            b"\x0f\x21",
            b"\x0f\x23",
            b"\x0f\xa6",
        )
        if not (expected == 0 and found and lenient):
            result.append((offset, found, expected))
    return result


@pytest.mark.parametrize("width", [16, 32, 64])
@settings(max_examples=60, deadline=None)
@given(code=st.binary(min_size=1, max_size=400))
def test_random_bytes(width: int, code: bytes) -> None:
    assert disagreements(code, width) == []


@pytest.mark.parametrize("width", [16, 32, 64])
@settings(max_examples=40, deadline=None)
@given(
    prefixes=st.lists(
        st.sampled_from([0x66, 0x67, 0xF0, 0xF2, 0xF3, 0x2E, 0x3E, 0x65, 0x48, 0x4C, 0x41]), max_size=14
    ),
    rest=st.binary(min_size=16, max_size=16),
    escape=st.sampled_from([b"", b"\x0f", b"\x0f\x38", b"\x0f\x3a", b"\x0f\x0f"]),
)
def test_prefixes_and_escapes(width: int, prefixes: list[int], rest: bytes, escape: bytes) -> None:
    assert disagreements(bytes(prefixes) + escape + rest, width) == []


@pytest.mark.parametrize("width", [16, 32, 64])
def test_every_opcode_and_modrm(width: int) -> None:
    cells = [
        escape + bytes([opcode, modrm]) + bytes.fromhex("2511223344556677889900aabb")
        for escape in (b"", b"\x0f", b"\x66\x0f", b"\xf3\x0f", b"\xf2\x0f", b"\x66")
        for opcode in range(256)
        for modrm in (0x00, 0x05, 0x0C, 0x3D, 0x44, 0x94, 0xC0, 0xCA, 0xF9)
    ]
    for cell in cells:
        ours = instruction_lengths(cell, width).lengths[0]
        expected = reference_lengths(cell, width)[0]
        if ours != expected:
            assert expected == 0, cell.hex()
            opcode = cell.lstrip(b"\x66\xf2\xf3")
            assert opcode[0] in LENIENT or opcode[:2] in (b"\x0f\xa6", b"\x0f\x21", b"\x0f\x23"), cell.hex()


@pytest.mark.parametrize("width", [16, 32, 64])
@pytest.mark.parametrize("seed", range(3))
def test_encoded_instructions(width: int, seed: int) -> None:
    for encoded in random_instructions(seed, width, 400):
        assert instruction_lengths(encoded, width).lengths[0] == len(encoded), encoded.hex()


def test_an_instruction_that_runs_past_the_end_is_invalid() -> None:
    whole = bytes.fromhex("48b81122334455667788")
    assert instruction_lengths(whole, 64).lengths[0] == 10
    for cut in range(1, 10):
        assert instruction_lengths(whole[:cut], 64).lengths[0] == 0


def test_sixteen_bytes_are_too_long() -> None:
    assert instruction_lengths(b"\x66" * 14 + b"\x90", 64).lengths[0] == 15
    assert instruction_lengths(b"\x66" * 15 + b"\x90", 64).lengths[0] == 0


def test_chunk_borders_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    code = b"".join(random_instructions(7, 64, 300))
    whole = instruction_lengths(code, 64)
    monkeypatch.setattr("rewriter.decode.lengths.CHUNK", 37)
    split = instruction_lengths(code, 64)
    assert np.array_equal(whole.lengths, split.lengths)
    assert np.array_equal(whole.prefixes, split.prefixes)


def test_empty() -> None:
    assert instruction_lengths(b"", 32).lengths.size == 0
