"""Sites that keep their instruction, below privilege 0: carried out as on hardware, operands and all."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.outcome import Outcome
from tests.backends.images import DATA, Ran, descriptors, run_text

NARROW = ("lguest", "vmi", "xen")
GDT = descriptors(
    (
        0,
        0x00CF9B000000FFFF,
        0x00CF93000000FFFF,
        0x00409300_00000FFF,
        0x00CF93120000FFFF,
        0x00008900_00000067,
        0,
    )
)
LONG_CODE = 0x00AF9B000000FFFF
LIMIT = len(GDT) - 1
RESULTS = DATA + 0x400
STACK = DATA + 0x3000
WORDS = 32
POINTERS = DATA + 0x200
"""A table operand, then far pointers."""

_SETUP_NARROW = f"""
 mov esp, {STACK}
 mov ebp, {RESULTS}
 lgdt [{POINTERS}]
 mov eax, 0x11111111
 mov ecx, 0x22222222
 mov edx, 0x33333333
 mov ebx, 0x44444444
 mov esi, 0x55555555
 mov edi, 0x66666666
 .byte 0xea
 .long flat
 .word 8
flat:
"""
_SETUP_WIDE = f"""
 mov rsp, {STACK}
 mov rbp, {RESULTS}
 mov r8d, {POINTERS}
 lgdt [r8]
 mov rax, 0x1111111111111111
 mov rcx, 0x2222222222222222
 mov rdx, 0x3333333333333333
 mov rbx, 0x4444444444444444
 mov rsi, 0x5555555555555555
 mov rdi, 0x6666666666666666
"""
_END = """
 mov al, 0
 out 0xf4, al
stay:
 jmp stay
"""
_EVERY_REGISTER = "\n".join(
    f" mov [ebp+{4 * index}], {name}"
    for index, name in enumerate(("eax", "ecx", "edx", "ebx", "esi", "edi", "esp"))
)
_LOADS = {
    "mov ss": "mov esi, 0x10\n mov ss, si",
    "mov ss, memory": f"mov word ptr [{RESULTS + 96}], 0x10\n mov ss, [{RESULTS + 96}]",
    "pop ss": "push 0x10\n pop ss",
    "pop ds": "push 0x18\n pop ds\n mov eax, ds\n push 0x10\n pop ds",
    "mov ds": "mov edi, 0x18\n mov ds, di\n mov eax, ds\n mov di, 0x10\n mov ds, di",
    "mov fs": f"mov esi, 0x20\n mov fs, si\n mov ebx, fs:[{POINTERS - 0x120000}]\n mov eax, fs",
    "lfs": f"lfs ebx, [{POINTERS + 16}]\n mov eax, fs",
    "lss": f"lss esp, [{POINTERS + 24}]\n push 0x1234\n pop eax",
    "les": f"les edx, [{POINTERS + 16}]\n mov eax, es",
    "far jump": ".byte 0xea\n .long there\n .word 8\nthere:\n mov eax, cs",
    "far call": "call far\n jmp there\nfar:\n push cs\n push there\n retf\nthere:\n mov eax, cs",
    "push cs, retf": "push cs\n push there\n retf\nthere:\n mov ecx, cs",
    "retf n": "push 7\n push cs\n push there\n .byte 0xca, 4, 0\nthere:\n mov ecx, cs",
    "push ss": "push ss\n pop ebx",
}  # fmt: skip
_OTHERS = {
    "smsw": "smsw ebx\n and ebx, 1",
    "smsw, memory": "mov dword ptr [ebp+64], -1\n smsw [ebp+64]\n and byte ptr [ebp+64], 1",
    "sgdt": "sgdt [ebp+64]",
    "lidt, sidt": "mov dword ptr [ebp+64], 0x300007ff\n mov word ptr [ebp+68], 0x12\n lidt [ebp+64]\n"
    " sidt [ebp+72]",
    "ltr, str": "mov ecx, 0x28\n ltr cx\n str edi",
    "lldt, sldt": "mov esi, 0\n lldt si\n mov eax, -1\n sldt eax",
    "lar": "mov ecx, 0x18\n lar ebx, ecx\n setz [ebp+64]\n mov cx, 0x7000\n lar esi, ecx\n setz [ebp+65]",
    "lsl": "mov ecx, 0x18\n lsl edi, ecx\n setz [ebp+64]",
    "verr": "mov ebx, 0x18\n verr bx\n setz [ebp+64]\n verw bx\n setz [ebp+65]",
    "cr2": "mov esi, 0x12345678\n mov cr2, esi\n mov edi, cr2",
    "cr0": "mov ebx, cr0\n and ebx, 1\n clts",
    "cr3": f"mov ebx, {DATA}\n mov cr3, ebx\n mov edi, cr3",
    "dr": "mov ecx, 0x7654\n mov dr0, ecx\n mov edi, dr0",
    "invlpg": f"invlpg [{DATA}]\n wbinvd",
    "in": "in al, 0x64\n mov al, 5",
    "pushf": "cli\n stc\n pushfd\n pop ebx\n and ebx, 0x201\n sti\n pushfd\n pop ecx\n and ecx, 0x201\n cli",
    "popf": "cli\n push 0x205\n popfd\n pushfd\n pop ebx\n and ebx, 0x205\n push 0x2\n popfd\n pushfd\n"
    " pop ecx\n and ecx, 0x201",
    "popf 16": "cli\n push 0x201\n .byte 0x66, 0x9d, 0x66, 0x9c, 0x66, 0x9d\n pop ecx\n pushfd\n pop ebx\n"
    " and ebx, 0x201\n cli",
}  # fmt: skip
_WIDE = {
    "mov ss": "mov esi, 0x10\n mov ss, si",
    "mov ds": "mov edi, 0x10\n mov ds, di\n mov eax, ds",
    "pop fs": "push 0x10\n pop fs\n mov ebx, fs",
    "mov gs, memory": "mov word ptr [rbp+96], 0x10\n mov gs, [rbp+96]\n mov eax, gs",
    "lss": f"mov r8d, {POINTERS + 24}\n lss esp, [r8]\n push 0x1234\n pop rax",
    "retf": "push 8\n lea rax, [rip+there]\n push rax\n retfq\nthere:\n mov ecx, cs",
    "smsw": "smsw ebx\n and ebx, 1",
    "sgdt": "sgdt [rbp+64]",
    "ltr, str": "mov ecx, 0x28\n ltr cx\n str edi",
    "lar": "mov ecx, 0x18\n lar ebx, ecx\n setz [rbp+64]",
    "cr2": "mov rsi, 0x123456789abcdef0\n mov cr2, rsi\n mov rdi, cr2\n shr rdi, 32",
    "cr0": "mov rbx, cr0\n and ebx, 1\n clts",
    "dr": "mov ecx, 0x7654\n mov dr0, rcx\n mov r9, dr0\n mov rdi, r9",
    "msr": "mov ecx, 0xc0000102\n mov eax, 0x7000\n mov edx, 0\n wrmsr\n mov eax, 0\n rdmsr",
    "invlpg": f"mov r8d, {DATA}\n invlpg [r8]\n wbinvd",
    "in": "in al, 0x64\n mov al, 5",
    "pushf": "cli\n stc\n pushfq\n pop rbx\n and ebx, 0x201\n sti\n pushfq\n pop rcx\n and ecx, 0x201\n cli",
    "popf": "cli\n push 0x205\n popfq\n pushfq\n pop rbx\n and ebx, 0x205\n push 0x2\n popfq\n pushfq\n"
    " pop rcx\n and ecx, 0x201",
}  # fmt: skip


def data(width: int) -> bytes:
    content = bytearray(GDT.ljust(POINTERS - DATA, b"\0"))
    content += LIMIT.to_bytes(2, "little") + DATA.to_bytes(14, "little")
    content += (0x7654).to_bytes(4, "little") + (0x20).to_bytes(4, "little")
    content += STACK.to_bytes(4, "little") + (0x10).to_bytes(4, "little")
    if width == 64:
        content[8:16] = LONG_CODE.to_bytes(8, "little")
    return bytes(content)


def carried_out(body: str, backend: str, width: int) -> Ran:
    setup = _SETUP_NARROW if width == 32 else _SETUP_WIDE
    report = _EVERY_REGISTER if width == 32 else _EVERY_REGISTER.replace("[ebp", "[rbp")
    text = f"{setup}{body}\n{report}{_END}"
    return run_text(text, backend, width=width, patched=True, data=data(width), max_time_s=0.05)


def words(ran: Ran) -> list[int]:
    assert ran.result.outcome is Outcome.EXITED, ran.result.detail
    return [ran.dword(RESULTS + 4 * index) for index in range(WORDS)]


@pytest.mark.parametrize("backend", NARROW)
@pytest.mark.parametrize("name", [*_LOADS, *_OTHERS])
def test_a_missed_site_does_what_hardware_does(name: str, backend: str) -> None:
    body = (_LOADS | _OTHERS)[name]
    ran = carried_out(body, backend, 32)
    assert words(ran) == words(carried_out(body, "bare", 32))
    missed: Any = ran.result.stats["missed"]
    assert missed > 1


@pytest.mark.parametrize("name", _WIDE)
def test_a_missed_site_of_64_bits_does_what_hardware_does(name: str) -> None:
    ran = carried_out(_WIDE[name], "xen", 64)
    assert words(ran) == words(carried_out(_WIDE[name], "bare", 64))


_RED_ZONE_SITES = {
    "operand moved": "invlpg gs:[rax]",
    "nothing moved": "mov ecx, 0xc0000102\n rdmsr",
    "result moved": "mov r9, cr2",
    "interrupts": "sti\n cli",
    "pushes and pops": "popfq",
    "memory": "sgdt [rbp+64]",
}  # fmt: skip
_FILL = f"""
 mov eax, {DATA}
 mov rbx, -16
fill:
 mov [rsp+rbx*8], rbx
 inc rbx
 jnz fill
"""
_DIGEST = """
 mov rbx, -16
 mov esi, 0
digest:
 rol esi, 3
 add esi, [rsp+rbx*8]
 inc rbx
 jnz digest
"""


@pytest.mark.parametrize("name", _RED_ZONE_SITES)
def test_a_missed_site_leaves_the_red_zone_alone(name: str) -> None:
    body = f"{_FILL}{_RED_ZONE_SITES[name]}\n{_DIGEST}"
    if name == "pushes and pops":
        body = f" push 2\n{body}"
    ran = carried_out(body, "xen", 64)
    assert words(ran) == words(carried_out(body, "bare", 64))
    missed: Any = ran.result.stats["missed"]
    assert missed > 1
