"""Guests that call at random: every run ends in a defined way, and nothing escapes from the model."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.outcome import Outcome
from tests.backends.images import CODE, DATA, run_text, words
from tests.backends.test_lguest_model import shared_page

DEFINED = frozenset(Outcome) - {Outcome.INTERRUPTED, Outcome.UNTIL}
INTERESTING = st.one_of(
    st.integers(0, 64),
    st.sampled_from([
        0xFFFFFFFF, 0xFFFFF000, 0xFFC00000, 0xFFBFFFFF, 0x80000000, 0x7FFFFFFF, CODE, DATA, DATA + 1,
        (16 << 20) - 4, 16 << 20, 0x0100B000, 0x0100AFFC, 0xE7, 0x8E00, 0x8F00, 0x00CF9A00, 0x00CF9200,
    ]),
    st.integers(0, 0xFFFFFFFF),
)  # fmt: skip
CALLS = st.lists(st.tuples(st.integers(0, 20), *[INTERESTING] * 4), min_size=1, max_size=12)
LOOP = f"""
mov esp, {CODE - 0x1000}
lea edi, [DATA+0x1000]
next: mov eax, [edi]
cmp eax, -1
je done
mov ebx, [edi+4]
mov ecx, [edi+8]
mov edx, [edi+12]
mov esi, [edi+16]
add edi, 20
TRAP
jmp next
done: jmp done
"""


def table(calls: list[tuple[int, ...]]) -> bytes:
    return b"".join(words(*entry) for entry in calls) + words(-1)


FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@FUZZ
@given(CALLS, st.binary(max_size=64))
def test_lguest(calls: list[tuple[int, ...]], ring: bytes) -> None:
    shared = bytearray(shared_page())
    shared[0x58 : 0x58 + len(ring)] = ring
    shared[0x18 : 0x18 + len(ring) // 20] = bytes(len(ring) // 20)
    init = (1, DATA, 0, 0, 0)
    data = bytes(shared).ljust(0x1000, b"\0") + table([init, *calls])
    ran = run_text(LOOP.replace("TRAP", "int 0x1f"), "lguest", data=data, max_time_s=0.01)
    assert ran.result.outcome in DEFINED
    assert ran.result.exit_code in (0, 4, 5)


@FUZZ
@given(CALLS)
def test_kvm(calls: list[tuple[int, ...]]) -> None:
    ran = run_text(LOOP.replace("TRAP", "vmcall"), "kvm", data=bytes(0x1000) + table(calls), max_time_s=0.01)
    assert ran.result.outcome in DEFINED
    assert ran.result.exit_code in (0, 4, 5)


REGISTERS = st.sampled_from([0x11, 0x12, *range(0x4B564D00, 0x4B564D0A)])
WRITE = "mov ecx, eax\nmov eax, ebx\nwrmsr"


@FUZZ
@given(st.lists(st.tuples(REGISTERS, INTERESTING, INTERESTING), min_size=1, max_size=12))
def test_kvm_registers(writes: list[tuple[int, ...]]) -> None:
    text = LOOP.replace("TRAP", WRITE).replace("mov ecx, [edi+8]\n", "").replace("[edi+12]", "[edi+8]")
    entries = [(index, low, high, 0, 0) for index, low, high in writes]
    ran = run_text(text, "kvm", data=bytes(0x1000) + table(entries), max_time_s=0.01)
    assert ran.result.outcome in DEFINED
