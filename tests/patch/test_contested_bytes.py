"""Bytes that are more than one thing: a patch leaves them alone, and the kernel does what it did.

Each kernel works with bytes of its own text: it enters them twice, reads them, or copies and runs them.
What it sends, patched, must be what it sends unpatched on bare hardware.
"""

from __future__ import annotations

import struct
from functools import cache
from pathlib import Path

import pytest

from pvpatch.abi.asm import assemble
from pvpatch.abi.errors import ImageError
from pvpatch.bootimage import boot_image
from rewriter.emit.produce import Produced, patch_image
from rewriter.image import parse_image
from runtime.backends import backend_named
from runtime.machine import Machine, MachineConfig
from runtime.outcome import Outcome
from tests.image.builders import Load, elf, multiboot1_header

BASE, ENTRY, STACK, SCRATCH = 0x100000, 0x100010, 0x180000, 0x181000
SIZE = 0x90000

SEND = """
send:
 push edx
 push ecx
 mov ecx, 4
 mov edx, 0x3f8
next_byte:
 out dx, al
 shr eax, 8
 dec ecx
 jne next_byte
 pop ecx
 pop edx
 ret
done:
 xor eax, eax
 out 0xf4, al
 hlt
"""
SUM = """
 mov eax, 0
 mov ebx, 0
more:
 mov bl, [esi]
 inc esi
 add eax, ebx
 test bl, bl
 jne more
"""
FLAG = " pushfd\n pop eax\n and eax, 0x200\n call send\n"
CODE_LIKE = ".byte 0xfa, 0xfb, 0x0f, 0x06, 0x9c, 0x9d, 0xf4, 0xc3, 0"
"""CLI, STI, CLTS, PUSHF, POPF, HLT, RET, and the end of a string."""
CASES = (
    "case0:\n mov eax, 7\n cli\n jmp sent\ncase1:\n mov eax, 9\n rdpmc\n nop\nsent:\n call send\n jmp done\n"
)

KERNELS = {
    "two entries a byte apart": f"""
 call first
 call send
 {FLAG} call second
 {FLAG} jmp done
first:
 .byte 0xb8
second:
 .byte 0xfa, 0x90, 0x90, 0xc3
 nop
 nop
 ret
""",
    "a site behind both readings": f"""
 call first
 call send
 call second
 call send
 {FLAG} jmp done
first:
 .byte 0xb8
second:
 .byte 0x0f, 0x20, 0xc0, 0x90
 cli
 nop
 nop
 nop
 ret
""",
    "a table bounded by a mask": "mov eax, 4\n and eax, 1\n jmp [table+eax*4]\n"
    f"table: .long case0, case1\n push edx\n pop edx\n{CASES}",
    "a table bounded by a byte": "mov eax, 0x100\n movzx eax, al\n jmp [table+eax*4]\n"
    f"table: .long case0, case1\n{CASES}",
    "a table bounded by a shift": "mov eax, 0x7fffffff\n shr eax, 31\n jmp [table+eax*4]\n"
    f"table: .long case0, case1\n{CASES}",
    "a table without a bound": "mov eax, 0\n jmp [table+eax*4]\n"
    f"table: .long case0, case1, 0xf490fbfa, 0x900f06fa\n{CASES}",
    "a table through a register": "mov eax, 0\n mov ebx, table\n mov ebx, [ebx+eax*4]\n jmp ebx\n"
    f"table: .long case0, case1\n{CASES}",
    "a string in text": f"mov esi, text\n{SUM} call send\n jmp done\ntext: {CODE_LIKE}\n",
    "a string whose address is pushed": f"""
 push text
 call sum
 call send
 jmp done
sum:
 mov esi, [esp+4]
 {SUM} ret 4
text: {CODE_LIKE}
""",
    "a string behind a call": f"call behind\n{CODE_LIKE}\nbehind:\n pop esi\n{SUM} call send\n jmp done\n",
    "words read by their address": "jmp over\nwords: .long 0xf490fbfa, 0xf490fbfa\nover:\n"
    " mov eax, [words]\n add eax, [words+4]\n call send\n jmp done\n",
    "bytes read by address and index": "jmp over\nwords: .long 0xf490fbfa, 0xc3fb90fa\nover:\n mov ecx, 5\n"
    " movzx eax, byte ptr [words+ecx]\n call send\n jmp done\n",
    "a function that is copied": f"""
 sti
 mov esi, body
 mov edi, {SCRATCH}
 mov ecx, 8
 rep movsb
 mov eax, {SCRATCH}
 call eax
 {FLAG} call body
 jmp done
 nop
body:
 cli
 nop
 nop
 nop
 nop
 nop
 nop
 ret
""",
    "a function that another copies": f"""
 sti
 push 8
 push body
 push {SCRATCH}
 call copy
 mov eax, {SCRATCH}
 call eax
 {FLAG} jmp done
copy:
 mov edi, [esp+4]
 mov esi, [esp+8]
 mov ecx, [esp+12]
copy_on:
 mov al, [esi]
 mov [edi], al
 inc esi
 inc edi
 dec ecx
 jne copy_on
 ret 12
body:
 cli
 nop
 nop
 nop
 nop
 nop
 nop
 ret
""",
    "a site that a loop copies, behind the first byte": f"""
 sti
body:
 mov eax, 5
 cli
 mov esi, body
 mov edi, {SCRATCH}
 mov ecx, 6
copy_loop:
 mov al, [esi]
 mov [edi], al
 inc esi
 inc edi
 loop copy_loop
 mov byte ptr [edi], 0xc3
 sti
 mov eax, {SCRATCH}
 call eax
 {FLAG} jmp done
""",
    "an instruction that one decoder lacks": "test eax, eax\n je fence\nfence:\n .byte 0x0f, 0xae, 0xf1\n"
    f" cli\n nop\n nop\n nop\n {FLAG} jmp done\n",
}


@cache
def kernel(name: str) -> bytes:
    text = f" mov esp, {STACK}\n{KERNELS[name]}{SEND}"
    code = multiboot1_header().ljust(ENTRY - BASE, b"\0") + assemble(text, 32, ENTRY).code
    return elf(32, (Load(BASE, BASE, code, SIZE, flags=7),), entry=ENTRY)


@cache
def patched(name: str) -> Produced:
    return patch_image(parse_image(kernel(name), Path("kernel")))


def sent(data: bytes, backend: str) -> bytes:
    image = boot_image(parse_image(data, Path("kernel")))
    result = Machine(MachineConfig(memory_mib=16, max_time_s=1.0), image, backend_named(backend)).run()
    assert result.outcome is Outcome.EXITED, f"{result.detail}\n{result.crash}"
    return result.transcript


@pytest.mark.parametrize("backend", ["bare", "lguest"])
@pytest.mark.parametrize("name", KERNELS)
def test_the_kernel_does_what_it_did(name: str, backend: str) -> None:
    expected = sent(kernel(name), "bare")
    assert len(expected) >= 4
    assert sent(patched(name).file, backend) == expected


@pytest.mark.parametrize("name", KERNELS)
def test_most_sites_are_patched_all_the_same(name: str) -> None:
    decisions = patched(name).job.plan.decisions
    kept = [decision for decision in decisions if decision.tactic == "trap"]
    assert all(decision.reason for decision in kept)
    assert len(decisions) - len(kept) >= 2  # those of `send` and `done`


LONG_MODE = """
 mov eax, 0x182000
 mov dword ptr [eax], 0x183003
 mov dword ptr [0x183000], 0x184003
 mov dword ptr [0x184000], 0x83
 mov cr3, eax
 mov eax, 0x20
 mov cr4, eax
 mov ecx, 0xc0000080
 rdmsr
 or eax, 0x100
 wrmsr
 mov eax, cr0
 or eax, 0x80000001
 mov cr0, eax
"""
LONG = """
 call long_work
 mov edx, 0x3f8
 out dx, al
 xor eax, eax
 out 0xf4, al
 hlt
long_work:
 mov ecx, 0x12345678
 movsxd rcx, ecx
 mov rax, cr4
 cli
 add rax, rcx
 ret
"""
GDT = struct.pack("<QQQ", 0, 0x00209B0000000000, 0x00CF93000000FFFF)
DATA, TARGET = 0x101000, 0x100100


def long_kernel(descriptor: bytes) -> bytes:
    """64-bit code in an ELF32 file; the GDT is loaded by code in a writable section, which text calls."""
    pointer = DATA + 0x200
    text = assemble(f" mov esp, {STACK}\n call setup\n ljmp 8, {TARGET}", 32, ENTRY, {"setup": DATA}).code
    setup = assemble(f" lgdt [{pointer}]\n{LONG_MODE} ret", 32, DATA).code
    code = multiboot1_header().ljust(ENTRY - BASE, b"\0") + text
    code = code.ljust(TARGET - BASE, b"\0") + assemble(LONG, 64, TARGET).code
    data = setup.ljust(0x200, b"\0") + descriptor
    return elf(32, (Load(BASE, BASE, code, flags=5), Load(DATA, DATA, data, SIZE, flags=6)), entry=ENTRY)


def test_64_bit_code_in_a_32_bit_file_by_a_gdt_that_writable_code_loads() -> None:
    pointer = struct.pack("<HIH", len(GDT) - 1, DATA + 0x208, 0)
    data = long_kernel(pointer + GDT)
    produced = patch_image(parse_image(data, Path("kernel")))
    widths = {site.address: site.width for site in produced.scan.sites}
    assert {width for address, width in widths.items() if TARGET <= address < DATA} == {64}
    assert {width for address, width in widths.items() if address >= DATA} == {32}
    assert sum(address >= DATA for address in widths) >= 5
    assert sent(produced.file, "bare") == sent(data, "bare") != b""


def test_where_nothing_tells_the_width_the_patch_is_refused() -> None:
    pointer = struct.pack("<HIH", len(GDT) - 1, 0x185000, 0)  # a table that is made at run time
    with pytest.raises(ImageError, match="width"):
        patch_image(parse_image(long_kernel(pointer + GDT), Path("kernel")))
