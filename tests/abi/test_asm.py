"""The assembler wrapper: right code comes out, and keystone's silent errors cannot."""

from __future__ import annotations

import iced_x86
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pvpatch.abi import asm
from pvpatch.abi.asm import AsmError, assemble
from pvpatch.abi.statement import matches, parse_statement

RIGHT = [
    ("lgdt [esp]", 32, "0f011424"),
    ("sidt [0x1234]", 32, "0f010d34120000"),
    ("push ds", 32, "1e"),
    ("pop es", 32, "07"),
    ("ljmp 0x8, 0x12345678", 32, "ea785634120800"),
    ("lcall 0x61, 0xfff00010", 32, "9a1000f0ff6100"),
    ("lcall [0x100]", 32, "ff1d00010000"),
    ("call dword ptr [0x100]", 32, "ff1500010000"),
    ("iretd", 32, "cf"),
    ("iretq", 64, "48cf"),
    ("retfq", 64, "48cb"),
    ("sysretd", 64, "0f07"),
    ("sysretq", 64, "480f07"),
    ("sysexitq", 64, "480f35"),
    ("mov rax, -38", 64, "48c7c0daffffff"),
    ("xchg eax, [esp]", 32, "870424"),
    ("mov eax, [esp+4*2]", 32, "8b442408"),
    ("int 3", 32, "cd03"),
    ("mov eax, [ebx+4-8]", 32, "8b43fc"),
    ("rep movsd", 32, "f3a5"),
    ("endbr64", 64, "f30f1efa"),
]


@pytest.mark.parametrize(("text", "width", "code"), RIGHT)
def test_right_code(text: str, width: int, code: str) -> None:
    assert assemble(text, width).code.hex() == code


@pytest.mark.parametrize(
    ("text", "width"),
    [
        ("iret", 32),
        ("iret", 64),
        ("pushf", 32),
        ("popf", 64),
        ("sysret", 64),
        ("nop dword ptr [eax]", 32),
        ("ljmp 0x8, 0x1234", 64),
        ("frobnicate eax", 32),
        ("mov eax, nowhere", 32),
        ("push rax", 32),
        ("pushfd", 64),
        (".rept 3", 32),
        (".include x", 32),
        ("a: nop; a: nop", 32),
        ("edx: nop", 32),
        ("mov rax, [rip+8]", 64),
        ("mov rax, [rip]", 64),
        ("mov eax, [eax+", 32),
        ("jmp 0x10,", 32),
    ],
)
def test_refused(text: str, width: int) -> None:
    with pytest.raises(AsmError):
        assemble(text, width)


def test_no_other_width() -> None:
    with pytest.raises(AsmError, match="16 bits"):
        assemble("nop", 16)


# What keystone 0.9.2 gives for the source on the left, with no error: the check must see each.
SILENT = [
    ("lgdt [esp]", 32, "660f011424"),
    ("push cs", 32, "660e"),
    ("ljmp 0x8, 0x12345678", 32, "66ea78560800"),
    ("iretd", 32, "66cf"),
    ("pushfd", 32, "669c"),
    ("popfq", 64, "669d"),
    ("lcall [0x100]", 32, "66ff1d00010000"),
    ("mov rcx, gs:[0xffffffffff5fb000]", 64, "65488b0d00b05fff"),
    ("sysretd", 64, "480f07"),
    ("sysexitd", 64, "480f35"),
    ("mov eax, [ecx]", 32, "8b01cc"),
    ("mov eax, 5", 32, "b806000000"),
    ("mov eax, [ebx+4]", 32, "8b4308"),
    ("mov eax, [ebx+ecx*4]", 32, "8b048b90"),
    ("mov eax, [ebx+ecx*4]", 32, "8b044b"),
    ("in al, dx", 32, "ed"),
    ("out 0x80, al", 32, "e681"),
    ("mov cr0, eax", 32, "0f22d8"),
    ("mov ds, eax", 32, "8ec0"),
    ("mov eax, fs:[0x28]", 32, "65a128000000"),
    ("rep insb", 32, "6c"),
    ("lock cmpxchg8b qword ptr [edi]", 32, "0fc70f"),
    ("test byte ptr [eax], 2", 32, "f70002000000"),
]


@pytest.mark.parametrize(("text", "width", "code"), SILENT)
def test_the_check_sees_wrong_code(text: str, width: int, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asm, "_encode", lambda *_: bytes.fromhex(code))
    asm._instruction.cache_clear()
    with pytest.raises(AsmError, match="became"):
        assemble(text, width)
    asm._instruction.cache_clear()


def test_labels_sums_and_tables() -> None:
    text = "call here; here: pop eax; lea eax, [eax+table-here]; jmp table; .align 8; table: ret"
    done = assemble(text, 32, 0x1000)
    assert done.labels == {"here": 0x1005, "table": 0x1010}
    assert done.code.hex() == "e800000000" + "58" + "8d400b" + "eb05" + "9090909090" + "c3"
    assert b"".join(line.code for line in done.lines) == done.code
    assert [line.offset for line in done.lines][:3] == [0, 5, 6]


def test_rip_relative_labels() -> None:
    done = assemble("nop; lea rdx, [rip+table]; ret; table: .quad 1, -1", 64, 0x2000)
    assert done.code.hex() == "90" + "488d1501000000" + "c3" + "01" + "00" * 7 + "ff" * 8


def test_outside_symbols_and_long_branches() -> None:
    done = assemble("jmp far_away; je far_away; call far_away", 64, 0x1000, {"far_away": 0x9000})
    targets = [item.near_branch_target for item in iced_x86.Decoder(64, done.code, ip=0x1000)]
    assert targets == [0x9000] * 3


def test_branches_grow_until_they_reach() -> None:
    done = assemble("jmp end; .rept 100; nop; nop; .endr; end: ret", 32)
    assert len(done.code) == 5 + 200 + 1
    done = assemble("jmp end; .rept 60; nop; nop; .endr; end: ret", 32)
    assert len(done.code) == 2 + 120 + 1


@given(st.integers(1, 140), st.integers(1, 140))
def test_interlocked_branches_settle(one: int, two: int) -> None:
    text = f"a: jmp b; .rept {one}; nop; .endr; jmp a; .rept {two}; nop; .endr; b: ret"
    done = assemble(text, 32, 0x100)
    code = list(iced_x86.Decoder(32, done.code, ip=0x100))
    assert code[0].near_branch_target == done.labels["b"]
    assert code[1 + one].near_branch_target == done.labels["a"]


def test_repeat_counts() -> None:
    assert assemble(".rept 3; .byte 0xcd, \\+; .endr", 32).code.hex() == "cd00cd01cd02"


REGISTERS = ("eax", "ecx", "edx", "ebx", "ebp", "esi", "edi")


@given(
    st.sampled_from(["mov", "add", "cmp", "xchg", "lea", "and"]),
    st.sampled_from(REGISTERS),
    st.sampled_from((*REGISTERS, "esp")),
    st.sampled_from(REGISTERS),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(-(2**31), 2**31 - 1),
)
def test_memory_operands_come_out_as_written(
    mnemonic: str, register: str, base: str, index: str, scale: int, displacement: int
) -> None:
    code = assemble(f"{mnemonic} {register}, [{base}+{index}*{scale}{displacement:+d}]", 32).code
    decoded = iced_x86.Decoder(32, code).decode()
    assert decoded.len == len(code)
    assert decoded.memory_displacement & 0xFFFFFFFF == displacement & 0xFFFFFFFF


def test_the_comparison_is_not_fooled_by_spelling() -> None:
    def same(one: str, two: str, width: int = 32) -> bool:
        return matches(parse_statement(one), parse_statement(two), width, "iced-x86")

    assert same("je 0x10", "jz 0x10")
    assert same("mov eax, -1", "mov eax,0xFFFFFFFF")
    assert same("mov eax, [ebx+eax*1]", "mov eax,dword ptr [eax+ebx]")
    assert not same("mov eax, [ebx+8]", "mov eax,dword ptr [ebx-8]")
    assert not same("mov eax, [ebx]", "mov eax,dword ptr fs:[ebx]")
    assert not same("mov al, [ebx]", "mov eax,dword ptr [ebx]")
    assert not same("mov byte ptr [ebx], 1", "mov dword ptr [ebx],1")
    assert not same("cmp eax, edx", "cmp edx,eax")
    assert same("test eax, edx", "test edx,eax")
    assert not same("push 0x100", "push 0")
