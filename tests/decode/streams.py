"""Instruction streams for the decoder tests, made with iced: random, but every boundary is known."""

from __future__ import annotations

import random

from iced_x86 import Decoder, Encoder, Instruction


def reference_lengths(code: bytes, width: int) -> list[int]:
    """Length that iced decodes at every offset, 0 where it decodes nothing."""
    decoder = Decoder(width, code)
    instruction = Instruction()
    result = []
    for offset in range(len(code)):
        decoder.position = offset
        decoder.decode_out(instruction)
        result.append(0 if instruction.is_invalid else instruction.len)
    return result


def random_instructions(seed: int, width: int, count: int) -> list[bytes]:
    """`count` valid instructions, each encoded anew by iced from a decoded random one."""
    generator = random.Random(seed)
    encoder = Encoder(width)
    result: list[bytes] = []
    while len(result) < count:
        raw = generator.randbytes(16)
        if generator.random() < 0.3:
            raw = b"\x0f" + raw[:15]
        instruction = Decoder(width, raw).decode()
        if instruction.is_invalid:
            continue
        try:
            encoder.encode(instruction, 0)
        except ValueError:
            continue
        encoded = encoder.take_buffer()
        if not Decoder(width, encoded).decode().is_invalid:
            result.append(encoded)
    return result
