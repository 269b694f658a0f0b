"""An interrupt waits in the 8259 while IF is 0: what stands in the shadow of STI is done before it comes in.

Each snippet begins with ECX 0 and a timer interrupt pending. The handler counts, and keeps ECX and the stack
pointer that it finds; behind the snippet all of it is sent to the serial port.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from pvpatch.abi.asm import assemble
from pvpatch.bootimage import boot_image
from rewriter.emit.produce import Produced, patch_image
from rewriter.image import parse_image
from runtime.backends import backend_named
from runtime.machine import Machine, MachineConfig
from runtime.outcome import Outcome
from tests.image.builders import Load, elf, multiboot1_header

BASE = 0x100000
ENTRY = BASE + 0x40
IDT, LOG, STACK, SIZE = BASE + 0x4000, BASE + 0x5000, BASE + 0x8000, 0x9000
BACKENDS = ("bare", "kvm", "xen", "lguest", "vmi")

SNIPPETS = {
    "sti; cli": "sti\n cli\n nop\n nop\n nop\n nop",
    "sti; plain; cli": "sti\n mov ecx, 7\n cli\n nop\n nop\n nop",
    "sti; nop; cli": "sti\n nop\n cli\n nop\n nop\n nop",
    "sti; iret": "pushfd\n or dword ptr [esp], 0x200\n push cs\n push back_here\n sti\n iretd\n"
    "back_here:\n nop\n cli",
    "sti; popf off": "pushfd\n sti\n popfd\n nop\n nop\n nop\n nop",
    "sti; popf on": "pushfd\n or dword ptr [esp], 0x200\n sti\n popfd\n nop\n nop\n cli\n nop",
}
"""Text, and what holds of it on a processor: see `WANTED`."""
WANTED = {
    "sti; cli": (0, 0),
    "sti; plain; cli": (1, 7),
    "sti; nop; cli": (1, 0),
    "sti; iret": (1, 0),
    "sti; popf off": (0, 0),
    "sti; popf on": (1, 0),
}
"""Interrupts by the end of each snippet, and ECX in the first."""


def _wait() -> str:
    """Mode 0, 1000 ticks; until the request register of the 8259 shows line 0."""
    return """
 mov al, 0x30
 out 0x43, al
 mov al, 0xe8
 out 0x40, al
 mov al, 3
 out 0x40, al
waiting_here:
 mov al, 0x0a
 out 0x20, al
 in al, 0x20
 test al, 1
 je waiting_here
"""


def _snippet(number: int, text: str) -> str:
    log = LOG + 16 * number
    body = f"""
 mov dword ptr [cursor], {log}
 mov esp, {STACK}
{_wait()}
 mov ecx, 0
 {text}
 nop
 cli
 mov dword ptr [cursor], {LOG + 0x800}
"""
    body += " sti\n nop\n nop\n cli\n nop\n nop\n"  # what still waits is taken in now
    return body.replace("_here", f"{number}")


@cache
def kernel() -> bytes:
    """The kernel of all snippets."""
    text = f"""
 lgdt [pseudo]
 ljmp 8, flat
flat:
 mov eax, 0x10
 mov ds, eax
 mov es, eax
 mov ss, eax
 mov esp, {STACK}
 mov edi, {LOG}
 mov ecx, 0x300
 mov eax, 0
 rep stosd
 mov eax, handler
 mov word ptr [{IDT}+0x100], ax
 mov word ptr [{IDT}+0x102], 8
 mov word ptr [{IDT}+0x104], 0x8e00
 shr eax, 16
 mov word ptr [{IDT}+0x106], ax
 lidt [interrupts]
 mov al, 0x11
 out 0x20, al
 mov al, 0x20
 out 0x21, al
 mov al, 4
 out 0x21, al
 mov al, 1
 out 0x21, al
 mov al, 0xfe
 out 0x21, al
{"".join(_snippet(number, text) for number, text in enumerate(SNIPPETS.values()))}
 mov esi, {LOG}
 mov ecx, {16 * len(SNIPPETS)}
 mov edx, 0x3f8
send:
 lodsb
 out dx, al
 dec ecx
 jne send
 mov al, 0
 out 0xf4, al
stay:
 jmp stay
handler:
 push ebx
 mov ebx, dword ptr [cursor]
 inc dword ptr [ebx]
 cmp dword ptr [ebx], 1
 jne later
 mov dword ptr [ebx+4], ecx
 mov dword ptr [ebx+8], esp
later:
 push eax
 mov al, 0x20
 out 0x20, al
 pop eax
 pop ebx
 iretd
 .align 8
gdt:
 .quad 0
 .quad 0x00cf9b000000ffff
 .quad 0x00cf93000000ffff
pseudo:
 .word 23
 .long gdt
interrupts:
 .word 0x7ff
 .long {IDT}
cursor:
 .long 0
"""
    code = assemble(text, 32, ENTRY).code
    content = (multiboot1_header().ljust(ENTRY - BASE, b"\0") + code).ljust(SIZE, b"\0")
    return elf(loads=(Load(BASE, BASE, content, flags=7),), entry=ENTRY)


@cache
def patched() -> Produced:
    return patch_image(parse_image(kernel(), Path("kernel")))


@cache
def seen(backend: str, *, unpatched: bool = False) -> dict[str, tuple[int, int, int]]:
    """Count, ECX and stack pointer by snippet."""
    data = kernel() if unpatched else patched().file
    config = MachineConfig(memory_mib=16, max_time_s=1.0)
    image = boot_image(parse_image(data, Path("kernel")))
    result = Machine(config, image, backend_named(backend)).run()
    assert result.outcome is Outcome.EXITED, f"{result.detail}\n{result.crash}"
    found: dict[str, tuple[int, int, int]] = {}
    for number, name in enumerate(SNIPPETS):
        record = result.transcript[16 * number : 16 * number + 12]
        count, ecx, esp = (int.from_bytes(record[at : at + 4], "little") for at in (0, 4, 8))
        found[name] = count, ecx, esp
    return found


def test_unpatched_it_is_as_on_a_processor() -> None:
    """SDM vol. 2, STI, and vol. 3, 6.8.1."""
    assert {name: record[:2] for name, record in seen("bare", unpatched=True).items()} == WANTED


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SNIPPETS)
def test_what_stands_in_a_shadow_keeps_it(name: str, backend: str) -> None:
    assert seen(backend)[name][:2] == WANTED[name]


@pytest.mark.parametrize("name", SNIPPETS)
def test_at_privilege_0_the_stack_is_the_same_too(name: str) -> None:
    assert seen("bare")[name] == seen("kvm")[name] == seen("bare", unpatched=True)[name]


def test_every_sti_is_patched() -> None:
    assert {site.tactic for site in patched().manifest.sites if site.text == "sti"}.isdisjoint({"trap"})
