"""The parallel sweep equals the plain chain, byte for byte."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from iced_x86 import Decoder, Instruction

from rewriter.decode import candidates, class_by_code, instruction_lengths, sweep
from rewriter.decode.opcode_tables import ByteArray
from tests.decode.streams import random_instructions, reference_lengths


def chain(lengths: ByteArray) -> list[int]:
    """Boundaries of a sweep, one by one."""
    position, found = 0, []
    while position < lengths.size:
        found.append(position)
        position += int(lengths[position]) or 1
    return found


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(0, 15), max_size=300), lane=st.sampled_from([1, 2, 7, 16, 64]))
def test_any_lengths(lengths: list[int], lane: int) -> None:
    array = np.array(lengths, np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["rewriter.decode.sweep"], "LANE", lane)
        assert np.flatnonzero(sweep(array)).tolist() == chain(array)


def test_lanes_that_never_meet_the_chain() -> None:
    array = np.full(8192, 2, np.uint8)
    array[0] = 1  # every lane starts on an even offset, the true chain runs on odd ones
    assert np.flatnonzero(sweep(array)).tolist() == chain(array)


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("seed", range(3))
def test_boundaries_of_encoded_streams(width: int, seed: int) -> None:
    stream = random_instructions(seed, width, 3000)
    code = b"".join(stream)
    expected, position = [], 0
    for encoded in stream:
        expected.append(position)
        position += len(encoded)
    found = np.flatnonzero(sweep(instruction_lengths(code, width).lengths)).tolist()
    assert found == expected


@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("seed", range(4))
def test_prefilter_loses_no_sensitive_instruction(width: int, seed: int) -> None:
    code = b"".join(random_instructions(seed + 100, width, 3000))
    lengths = instruction_lengths(code, width)
    marks = lengths.lengths > 0  # every offset at which anything decodes, not only the chain
    kept = set(candidates(np.frombuffer(code, np.uint8), marks, lengths.prefixes, width).tolist())
    decoder, instruction = Decoder(width, code), Instruction()
    sensitive = class_by_code()
    for offset, length in enumerate(reference_lengths(code, width)):
        if length:
            decoder.position = offset
            decoder.decode_out(instruction)
            if instruction.code in sensitive:
                assert offset in kept, code[offset : offset + length].hex()
