"""User mode of a patched kernel: ports by IOPL and by bitmap, CLI and STI; GDT entries out of reach."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.machine.test_run_command import kernel, run

BACKENDS = ("bare", "lguest", "vmi", "xen")
CLOSED, OPEN = 0xFF, 0x00
TABLES = """
    mov esp, stack
    lgdt [pointer]
    ljmp 8, flat
flat:
    mov eax, 16
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov eax, task
    mov [gdt+0x2a], ax
    shr eax, 16
    mov [gdt+0x2c], al
    mov ecx, 0
gates:
    mov eax, fault
    cmp ecx, 0x21
    jne placed
    mov eax, done
placed:
    movzx edx, ax
    or edx, 0x80000
    mov [ecx*8+idt], edx
    and eax, 0xffff0000
    or eax, 0xee00
    mov [ecx*8+idt+4], eax
    inc ecx
    cmp ecx, 0x22
    jne gates
    lidt [idt_pointer]
    mov dword ptr [task+4], stack
    mov dword ptr [task+8], 16
    mov word ptr [task+102], 104
    mov ecx, 0
fill:
    mov byte ptr [ecx+task+104], BITMAP
    inc ecx
    cmp ecx, 200
    jne fill
    mov eax, 0x28
    ltr ax
"""
USER = """
    push 0x23
    push user_stack
    push FLAGS
    push 0x1b
    mov eax, user
    push eax
    iretd
user:
    BODY
    int 0x21
fault:
    mov al, 1
    out 0xf4, al
done:
    test dword ptr [esp+8], 0x10000
    jne fault
    mov al, 0
    out 0xf4, al
    hlt
"""
DATA = """
    .align 8
pointer: .word 0xffff
    .long gdt
idt_pointer: .word 0x10f
    .long idt
    .align 8
gdt: .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0x00cffb000000ffff, 0x00cff3000000ffff
    .quad 0x0000890000000130
    .quad ROOM
idt: .quad IDT
task: .quad TASK
    .quad STACK
user_stack: .quad STACK
stack: .long 0
"""
for _name, _size in (("ROOM", 0x2100), ("IDT", 0x110), ("TASK", 0x140), ("STACK", 0x400)):
    _zeroes = ", ".join(["0"] * (_size // 8))
    DATA = DATA.replace(f".quad {_name}", f".quad {_zeroes}")
PRINT = "mov edx, 0x3f8\n mov al, 33\n out dx, al\n"


def patched(tmp_path: Path, text: str) -> Path:
    image, result = kernel(tmp_path / "k", text), tmp_path / "patched"
    command = [sys.executable, "-m", "pvpatch", "patch", str(image), "-o", str(result)]
    subprocess.run(command, capture_output=True, check=True)
    return result


@pytest.mark.parametrize(
    ("iopl", "bitmap", "body", "expected"),
    [
        (3, CLOSED, PRINT, 0),
        (0, OPEN, PRINT, 0),
        (0, CLOSED, PRINT, 1),
        (3, CLOSED, "cli\n sti\n nop\n", 0),
        (0, OPEN, "cli\n", 1),
    ],
    ids=["iopl-3", "bitmap", "neither", "flag", "no-flag"],
)
def test_user_mode_has_the_rights_that_its_kernel_gave_it(
    tmp_path: Path, iopl: int, bitmap: int, body: str, expected: int
) -> None:
    text = TABLES.replace("BITMAP", str(bitmap)) + USER.replace("FLAGS", str(0x202 | iopl << 12))
    image = patched(tmp_path, text.replace("BODY", body) + DATA)
    for backend in BACKENDS:
        found = run(image, "--backend", backend, "--max-time", "1")
        assert found.returncode == expected, f"{backend}: {found.stderr}"
        if body == PRINT:
            assert found.stdout == ("!" if not expected else "")


OWN_SITES = """
    pushfd
    push 0x1b
    mov eax, behind
    push eax
    iretd
behind:
    sgdt [user_stack-16]
    cmp word ptr [user_stack-16], 0x20ff
    jne wrong
    cmp dword ptr [user_stack-14], gdt
    jne wrong
    str eax
    cmp ax, 0x28
    jne wrong
    sldt eax
    cmp ax, 0
    jne wrong
    mov ecx, 0x10
    lar eax, ecx
    je wrong
    mov eax, cs
    cmp ax, 0x1b
    jne wrong
    pushfd
    pop eax
    test eax, 0x3000
    je right
wrong:
    hlt
right:
"""


@pytest.mark.parametrize("found", [True, False], ids=["patched", "not-found"])
def test_sites_of_user_code_do_what_the_instruction_does_at_its_privilege(
    tmp_path: Path, found: bool
) -> None:
    """IRET at its own level, SGDT, STR, SLDT, LAR of a segment that is not its own, reads of CS, PUSHF.

    A pushed address is a way in for a scan, one that is moved to a register first is not.
    """
    text = TABLES.replace("BITMAP", "0") + USER.replace("FLAGS", "0x202").replace("BODY", OWN_SITES)
    if found:
        text = text.replace("    mov eax, user\n    push eax\n", "    .byte 0x68\n    .long user\n")
    image = patched(tmp_path, text + DATA.replace(".word 0xffff", ".word 0x20ff"))
    for backend in BACKENDS:
        done = run(image, "--backend", backend, "--max-time", "1")
        assert done.returncode == 0, f"{backend}: {done.stderr}"


@pytest.mark.parametrize("index", [40, 1030])
def test_a_gdt_entry_that_has_no_copy_ends_the_guest_in_words(tmp_path: Path, index: int) -> None:
    load = f"""
    mov dword ptr [gdt+{8 * index}], 0xffff
    mov dword ptr [gdt+{8 * index + 4}], 0x00cf9300
    mov eax, {8 * index}
    mov gs, eax
    mov al, 0
    out 0xf4, al
    hlt
fault:
done:
    hlt
    """
    image = patched(tmp_path, TABLES.replace("BITMAP", "0") + load + DATA)
    assert run(image).returncode == 0
    for backend in ("lguest", "vmi", "xen"):
        found = run(image, "--backend", backend, "--max-time", "1")
        assert found.returncode == 4
        assert f"GDT entry {index} cannot be used: the backend {backend} keeps entries 1 to" in found.stderr
