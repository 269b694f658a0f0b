"""A tiny guest in assembly that has called VMI_Init: for tests of single calls."""

from __future__ import annotations

from runtime.backends.vmi.interface import interface
from runtime.backends.vmi.rom import rom_text
from tests.backends.images import CODE, DATA, Ran, descriptors, run_text

__all__ = ["IDT", "RESULTS", "UNMAPPED", "run_after_init"]

IDT = DATA + 0x1000
RESULTS = DATA + 0x800
"""Words for the test's own use; the first four are: traps, vector, error code, EIP of the last trap."""
UNMAPPED = 0x4000_0000
STACK = CODE + 0x8_0000
_DIRECTORY = 0x30_0000
_GDT_POINTER, _IDT_POINTER, _RESUME, _STACK_THEN = DATA + 0x100, DATA + 0x108, DATA + 0x110, DATA + 0x114

_START = f"""
  mov esp, {STACK}
  lgdt [{_GDT_POINTER}]
  ljmp 8, flat
flat:
  mov eax, 16
  mov ds, eax
  mov es, eax
  mov ss, eax
  mov fs, eax
  mov gs, eax
  mov dword ptr [{_DIRECTORY}], 0x87
  mov dword ptr [{_DIRECTORY + 4}], 0x400087
  mov dword ptr [{_DIRECTORY + 8}], 0x800087
  mov eax, {_DIRECTORY}
  mov cr3, eax
  mov eax, 0x10
  mov cr4, eax
  mov eax, cr0
  or eax, 0x80010000
  mov cr0, eax
  lidt [{_IDT_POINTER}]
  mov ecx, 0
gates:
  mov eax, plain
  cmp ecx, 8
  je coded
  cmp ecx, 10
  jb known
  cmp ecx, 14
  ja known
coded:
  mov eax, with_code
known:
  movzx edx, ax
  or edx, 0x80000
  mov [ecx*8+{IDT}], edx
  and eax, 0xffff0000
  or eax, 0x8e00
  mov [ecx*8+{IDT + 4}], eax
  inc ecx
  cmp ecx, 32
  jne gates
  mov eax, {interface().rom_physical + 0x80}
  call eax
  cmp eax, 0
  je body
  mov al, 1
  out 0xf4, al
"""
_END = f"""
finish:
  mov al, 0
  out 0xf4, al
  jmp finish
plain:
  push 0
with_code:
  inc dword ptr [{RESULTS}]
  mov eax, [esp]
  mov [{RESULTS + 8}], eax
  mov eax, [esp+4]
  mov [{RESULTS + 12}], eax
  mov esp, [{_STACK_THEN}]
  jmp dword ptr [{_RESUME}]
signature:
  .long 0x696d5663
"""


def run_after_init(body: str, *, max_time_s: float = 0.2) -> Ran:
    """Run `body` at privilege 1 with flat segments, 12 MiB mapped to themselves and gates for all exceptions.

    `CALL_NAME` is the entry of a call. `guard(LABEL)` as a line makes traps go on at LABEL. The body ends
    by falling through.
    """
    symbols = {f"CALL_{call.name}": rom_text().entries[n] for n, call in interface().calls.items()}
    lines = []
    for line in body.splitlines():
        word = line.strip()
        if word.startswith("guard("):
            label = word[6:-1]
            line = f"  mov dword ptr [{_RESUME}], {label}\n  mov [{_STACK_THEN}], esp"
        lines.append(line)
    kinds = (0x9B, 0x93, 0xFA, 0xF2)  # code and data of privilege 0, then of 3
    table = descriptors([0, *(0x00CF_0000_0000_FFFF | kind << 40 for kind in kinds)])
    data = table.ljust(0x100, b"\0")
    data += (0x3F).to_bytes(2, "little") + DATA.to_bytes(4, "little") + bytes(2)
    data += (0x7FF).to_bytes(2, "little") + IDT.to_bytes(4, "little") + bytes(2)
    text = _START + "body:\n" + "\n".join(lines) + _END
    return run_text(text, "vmi", data=data, symbols=symbols, max_time_s=max_time_s)
