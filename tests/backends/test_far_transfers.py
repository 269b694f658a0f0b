"""Far transfers below privilege 0 that are no calls of the ABI: 16-bit ones, and those to a gate or a TSS."""

from __future__ import annotations

import pytest

from pvpatch.abi.asm import assemble
from runtime.outcome import Outcome
from tests.backends.images import CODE, DATA, Ran, descriptors, run_text

NARROW = ("lguest", "vmi", "xen")
RESULTS, IDT, OTHER, STACK = DATA + 0x400, DATA + 0x800, DATA + 0x600, DATA + 0x3000
GDT_POINTER, IDT_POINTER, FAR_POINTER = DATA + 0x200, DATA + 0x210, DATA + 0x220
BASED = 0x18
"""A code segment whose base is DATA: what runs there has offsets of 16 bits."""
CALL_GATE, GATE_16, TASK_GATE, TSS, TSS_16 = 0x20, 0x28, 0x30, 0x38, 0x40
BUSY, ABSENT, EMPTY, USER_GATE, LDT = 0x48, 0x50, 0x58, 0x60, 0x68
LDT_AT = 0x100


def _gate(kind: int) -> int:
    return (CODE & 0xFFFF) | 8 << 16 | kind << 40 | CODE >> 16 << 48


GDT = descriptors(
    (
        0,
        0x00CF9B000000FFFF,
        0x00CF93000000FFFF,
        0x00409B000000FFFF | DATA << 16,
        _gate(0x8C),
        _gate(0x84),
        TSS << 16 | 0x85 << 40,
        0x0000890000000067,
        0x0000810000000067,
        0x00008B0000000067,
        _gate(0x0C),
        0,
        _gate(0xEC),
        0x0000820000000007 | DATA + LDT_AT << 16,
    )
)
_SETUP = f"""
 mov esp, {STACK}
 mov ebp, {RESULTS}
 lgdt [{GDT_POINTER}]
 lidt [{IDT_POINTER}]
 mov eax, fault
 mov [{IDT + 13 * 8}], ax
 mov [{IDT + 11 * 8}], ax
 shr eax, 16
 mov [{IDT + 13 * 8 + 6}], ax
 mov [{IDT + 11 * 8 + 6}], ax
 mov dword ptr [{IDT + 13 * 8 + 2}], 0x8e000008
 mov dword ptr [{IDT + 11 * 8 + 2}], 0x8f000008
 mov ax, 0x10
 mov ds, ax
 mov es, ax
 mov ss, ax
 mov ax, {LDT}
 lldt ax
 mov eax, 0x11111111
 mov ebx, 0x44444444
 .byte 0xea
 .long flat
 .word 8
flat:
"""
_END = """
done:
 mov [ebp], eax
 mov [ebp+4], ebx
 mov [ebp+8], ecx
 mov [ebp+12], edx
 mov [ebp+16], esp
 mov al, 0
 out 0xf4, al
stay:
 jmp stay
fault:
 mov ebx, [esp]
 mov ecx, [esp+4]
 mov edx, [esp+8]
 jmp done
"""
_WORD = ".byte 0x66, 0x68\n .word"
"""PUSH of an immediate of 16 bits."""
_SIXTEEN = {
    "call": f".byte 0x66, 0x9a\n .word callee, {BASED}",
    "call through memory": f".byte 0x66, 0xff, 0x1d\n .long {FAR_POINTER}",
    "jump": f".byte 0x66, 0xea\n .word there, {BASED}\n mov edx, 5\nthere:",
    "return": f"push 7\n {_WORD} {BASED}\n {_WORD} there\n .byte 0x66, 0xca, 4, 0\nthere:\n mov ecx, cs",
}  # fmt: skip


def _ran(body: str, backend: str, beside: str = "") -> Ran:
    content = bytearray(0x1000)
    content[: len(GDT)] = GDT
    content[LDT_AT : LDT_AT + 8] = descriptors((_gate(0x8C),))
    for place, value in (
        (GDT_POINTER, (len(GDT) - 1).to_bytes(2, "little") + DATA.to_bytes(4, "little")),
        (IDT_POINTER, (0x7F).to_bytes(2, "little") + IDT.to_bytes(4, "little")),
    ):
        content[place - DATA : place - DATA + 6] = value
    if beside:
        built = assemble(beside, 32, OTHER - DATA)
        content[OTHER - DATA : OTHER - DATA + len(built.code)] = built.code
        pointer = built.labels["callee"].to_bytes(2, "little") + BASED.to_bytes(2, "little")
        content[FAR_POINTER - DATA : FAR_POINTER - DATA + 4] = pointer
    return run_text(f"{_SETUP}{body}{_END}", backend, patched=True, data=bytes(content), max_time_s=0.05)


def _words(ran: Ran) -> list[int]:
    assert ran.result.outcome is Outcome.EXITED, ran.result.detail
    return [ran.dword(RESULTS + 4 * index) for index in range(5)]


@pytest.mark.parametrize("backend", NARROW)
@pytest.mark.parametrize("name", _SIXTEEN)
def test_a_transfer_of_16_bits_moves_words_of_two_bytes(name: str, backend: str) -> None:
    beside = f"""
 mov edx, esp
 {_SIXTEEN[name]}
 mov eax, esp
 retf
callee:
 mov ebx, [esp]
 mov ecx, esp
 .byte 0x66, 0xcb
"""
    body = f" push cs\n push done\n .byte 0xea\n .long {OTHER - DATA}\n .word {BASED}\n"
    ran = _ran(body, backend, beside)
    bare = _words(_ran(body, "bare", beside))
    assert _words(ran) == bare
    assert bare[4] == STACK
    if "call" in name:
        assert bare[3] - bare[2] == 4
        assert bare[1] >> 16 == BASED


@pytest.mark.parametrize("backend", NARROW)
def test_a_return_of_16_bits_to_user_mode_ends_the_run(backend: str) -> None:
    ran = _ran(f" push 0\n {_WORD} 0x1b\n {_WORD} 0\n .byte 0x66, 0xcb\n", backend)
    assert ran.result.outcome is Outcome.CRASHED
    assert f"another privilege level, which is not offered on {backend}" in ran.result.detail


@pytest.mark.parametrize("backend", NARROW)
@pytest.mark.parametrize("opcode", [0x9A, 0xEA])
@pytest.mark.parametrize(
    ("selector", "what"),
    [
        (CALL_GATE, "call gate"),
        (GATE_16, "16-bit call gate"),
        (TASK_GATE, "task gate"),
        (TSS, "task state segment"),
        (TSS_16, "16-bit task state segment"),
        (USER_GATE | 3, "call gate"),
        (4, "call gate"),
    ],
)
def test_a_gate_or_a_task_ends_the_run(selector: int, what: str, opcode: int, backend: str) -> None:
    ran = _ran(f"site:\n .byte {opcode}\n .long 0\n .word {selector}\n", backend)
    assert ran.result.outcome is Outcome.CRASHED, ran.result.detail
    assert ran.result.exit_code == 4
    assert f" names a {what} ({selector:#x}), which is not offered on {backend}" in ran.result.detail
    assert "far transfer at 0x1000" in ran.result.detail


@pytest.mark.parametrize("backend", NARROW)
@pytest.mark.parametrize("opcode", [0x9A, 0xEA])
@pytest.mark.parametrize(
    "selector", [0, 0x10, BUSY, ABSENT, EMPTY, CALL_GATE | 3, LDT, 0x70, 0xC], ids=lambda value: f"{value:#x}"
)
def test_a_bad_selector_is_the_fault_of_the_architecture(selector: int, opcode: int, backend: str) -> None:
    body = f" .byte {opcode}\n .long 0\n .word {selector}\n"
    assert _words(_ran(body, backend)) == _words(_ran(body, "bare"))
