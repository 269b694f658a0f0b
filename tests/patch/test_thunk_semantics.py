"""A thunk does what its instructions did, as they are and as calls: all run on the same CPU from the same
random state."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from unicorn import UcError

from rewriter.emit.reach import Reach
from tests.patch.bench import CODE, DATA, TOP, Bench, run_original, run_patched, window_of

BOTH = [
    "fa", "fb", "9c", "9d", "669c", "669d",  # cli sti pushf popf
    "0fa2", "0f06",  # cpuid clts
    "ec", "ed", "66ed", "e460", "e571", "66e571",  # in
    "ee", "ef", "66ef", "e680", "e770", "66e770",  # out
    "0f20c3", "0f20c1", "0f20c0", "0f20e7", "0f20d6", "0f22d3",  # mov from and to cr
    "0f21c3", "0f21f8", "0f23c1",  # debug registers
    "0f0103", "0f0109", "0f014604", "0f014c2404",  # sgdt sidt with several addresses
    "0f01e1", "660f01e1", "0f0127",  # smsw
    "0f00c3", "660f00c3", "0f0006", "0f00ca", "0f000c24",  # sldt str
    "0f02cb", "660f02d3", "0f03d3", "0f020e", "0f00e3", "0f00eb",  # lar lsl verr verw
    "8cd8", "668cc1", "8ccb", "8c07", "8c542404",  # mov from segments
    "8ec3", "8ee3", "8ee9", "8e07",  # mov to segments
    "0fa0", "0fa8",  # push fs gs
    "0fa1", "0fa9",  # pop fs gs
    "0f013b", "0f017c2408",  # invlpg
    "6c", "6d", "666f", "f36c", "f36f",  # ins outs
]  # fmt: skip
NARROW = ["06", "0e", "16", "1e", "07", "1f", "63c8", "630f", "c407", "c53e", "0fb41e"]
TABLE_LOADS = ["0f0113", "660f0113", "660f015e04"]
WIDE = ["450f20c4", "410f22d7", "410f00c1", "4d0f02c9", "418cd8", "480f02cb", "66410f03c8"]

NEIGHBOURS = {
    32: [
        "40",
        "01d8",
        "8b07",
        "8903",
        "31f6",
        "0fc8",
        "8d4c2410",
        "8b442404",
        "89542408",
        "0fb6c3",
        "f8",
        "f9",
    ],
    64: [
        "ffc0",
        "4801d8",
        "488b07",
        "488903",
        "31f6",
        "0fc8",
        "488d4c2410",
        "488b442408",
        "4c89542408",
        "f8",
        "f9",
    ],
}
STACKED = {
    32: ["50", "5b", "6a12", "83c408"],
    64: ["50", "5b", "4150", "6a12", "4883c408"],
}
SEGMENT_TARGETS = ("8ec3", "8ee3", "8ee9", "8e07", "0fa1", "0fa9", "07", "1f", "c407", "c53e", "0fb41e")
FORMS = [(32, code) for code in BOTH + NARROW + TABLE_LOADS] + [(64, code) for code in BOTH + WIDE]


def random_state(bits: int, seed: int, code: str) -> tuple[list[int], int, bytes, bytes]:
    """Registers that point into the data area (any of them may be an address), flags, memory, stack."""
    source = random.Random(seed)
    memory = bytearray(source.randbytes(4096))
    stack = bytearray(source.randbytes(512))
    registers = [DATA + 1024 + source.randrange(2048) for _ in range(8 if bits == 32 else 16)]
    registers[4] = TOP
    if any(code.endswith(target) for target in SEGMENT_TARGETS):
        _offer_selectors(source, registers, memory, stack)
    if code.endswith(("6c", "6d", "6f")):
        registers[1] = source.randrange(1, 5)
    flags = 0x202 | source.choice((0, 0x8D5, 0x400, 0x55, 0x880, 0x2000C1))
    if code in ("9d", "669d"):
        stack[256:260] = (0x202 | source.choice((0, 0x8D5, 0x400, 0x3000, 0x200000))).to_bytes(4, "little")
        stack[260:264] = bytes(4)
    return registers, flags, bytes(memory), bytes(stack)


def _offer_selectors(
    source: random.Random, registers: list[int], memory: bytearray, stack: bytearray
) -> None:
    """Selectors that can be loaded, wherever an instruction may take one from."""
    selector = source.choice((0, 0x10, 0x20, 0x13))
    selector = 0x10 if selector == 0x13 else selector
    registers[1] = registers[1] & ~0xFFFF | selector
    registers[3] = source.choice((DATA, DATA & ~0xFFFF)) | 0
    registers[3] = registers[3] & ~0xFFFF | selector
    registers[6] = DATA + 64
    registers[7] = DATA + 128
    for at in range(0, len(memory) - 1, 2):
        memory[at : at + 2] = selector.to_bytes(2, "little")
    stack[256:260] = selector.to_bytes(4, "little")
    stack[260:264] = bytes(4)


def compare(bits: int, code: bytes, sites: set[int], reach: str, seed: int, hint: str) -> None:
    window = window_of(code, bits, sites, Reach("relative" if reach == "relative" else "absolute"))
    arguments = random_state(bits, seed, hint)
    try:
        expected = run_original(Bench(bits), window, arguments)
    except UcError:
        reject()  # the code itself faults from this state
    for calls in (False, True):
        found = run_patched(Bench(bits), window, reach, arguments, calls=calls)
        assert found.registers == expected.registers
        assert found.flags == expected.flags
        assert found.memory == expected.memory
        assert found.stack == expected.stack
        assert found.ports == expected.ports
        assert found.system == expected.system


@pytest.mark.parametrize("reach", ["relative", "absolute"])
@pytest.mark.parametrize(("bits", "code"), FORMS, ids=lambda value: str(value))
def test_a_call_does_what_its_instruction_did(bits: int, code: str, reach: str) -> None:
    for seed in range(6):  # none of these faults
        compare(bits, bytes.fromhex(code), {0}, reach, seed, code)


@pytest.mark.parametrize("reach", ["relative", "absolute"])
@pytest.mark.parametrize("code", ["0f011402", "660f011402", "660f011c10"])
def test_a_table_whose_address_is_in_the_registers_of_the_call(code: str, reach: str) -> None:
    """lgdt [edx+eax]: limit and base go where their own address comes from."""
    registers, flags, memory, stack = random_state(32, 3, "")
    registers[2] = 20
    window = window_of(bytes.fromhex(code), 32, {0}, Reach("relative" if reach == "relative" else "absolute"))
    expected = run_original(Bench(32), window, (registers, flags, memory, stack))
    found = run_patched(Bench(32), window, reach, (registers, flags, memory, stack))
    assert (found.registers, found.system, found.stack) == (
        expected.registers,
        expected.system,
        expected.stack,
    )


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_neighbours_keep_their_meaning(data: st.DataObject) -> None:
    bits = data.draw(st.sampled_from((32, 64)))
    reach = data.draw(st.sampled_from(("relative", "absolute")))
    pool = NEIGHBOURS[bits] + STACKED[bits]
    sites = ["fa", "ec", "ee", "0f20c3", "0fa2", "9c", "0f22d3"]
    before = data.draw(st.lists(st.sampled_from(pool), max_size=3))
    after = data.draw(st.lists(st.sampled_from(pool), max_size=3))
    site = data.draw(st.sampled_from(sites))
    code = bytes.fromhex("".join([*before, site, *after]))
    compare(bits, code, {len(before)}, reach, data.draw(st.integers(0, 1 << 32)), "")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32), st.sampled_from((32, 64)), st.sampled_from(("relative", "absolute")),
       st.integers(0, 15))  # fmt: skip
def test_conditional_branches_go_where_they_went(seed: int, bits: int, reach: str, condition: int) -> None:
    """cli; jcc over an increment; the branch leads behind the window's last instruction or falls through."""
    increment = "40" if bits == 32 else "ffc0"
    code = bytes.fromhex("fa" + f"{0x70 + condition:02x}{len(increment) // 2:02x}" + increment)
    compare(bits, code, {0}, reach, seed, "")


def test_a_moved_call_leaves_the_return_address_of_its_old_place() -> None:
    for bits in (32, 64):
        for reach in ("relative", "absolute"):
            # cli; call +0: the callee is the end of the window, its stack holds the window's end
            code = bytes.fromhex("fae800000000")
            window = window_of(code, bits, {0}, Reach("relative" if reach == "relative" else "absolute"))
            arguments = random_state(bits, 1, "")
            expected = run_original(Bench(bits), window, arguments)
            found = run_patched(Bench(bits), window, reach, arguments)
            assert found.registers == expected.registers
            assert found.stack == expected.stack
            word = bits // 8
            assert int.from_bytes(found.stack[:word], "little") == CODE + len(code)


@pytest.mark.parametrize("reach", ["relative", "absolute"])
@pytest.mark.parametrize(
    ("bits", "code"), [(32, "fa83ec10"), (64, "fa4883ec10"), (32, "83ec10fa"), (32, "fa81ec00010000")]
)
def test_room_on_the_stack_is_made_with_the_same_flags(bits: int, code: str, reach: str) -> None:
    """What lies in the new room is nobody's: only registers and flags are compared."""
    site = 0 if code.startswith("fa") else 1
    window = window_of(
        bytes.fromhex(code), bits, {site}, Reach("relative" if reach == "relative" else "absolute")
    )
    for seed in range(8):
        arguments = random_state(bits, seed, "")
        expected = run_original(Bench(bits), window, arguments)
        found = run_patched(Bench(bits), window, reach, arguments)
        assert (found.registers, found.flags) == (expected.registers, expected.flags)
