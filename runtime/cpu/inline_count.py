"""Counting a block's time inside its translation, instead of by a call from it.

The emulator translates a block with a call of the block hook in front, and a call of its own check for a
stop behind that. Both return at once nearly always, and together they cost more than many a block. The
first time that a translation calls the hook, the hook looks at the code around its return address. If that
is the known sequence, byte by byte (build 2.1.4 for x86-64 hosts), it puts a shorter one in its place:
add the block's time to the counter, compare with the limit, and call the hook only from there on. Any
other sequence stays, and works as before.

    movabs rdi, engine                  lea rcx, [rip + control]
    mov rsi, address                    mov rax, [now]; add rax, time
    mov edx, size                       cmp rax, [limit]; jae closer
    lea rcx, [rip + control]      ->    mov [now], rax; inc [blocks]
    call hook                           jmp end
    movabs rdi, engine                  closer: mov edx, size
    xor esi, esi                                call hook
    call check                          end:
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["first_run_source", "shorter_sequence"]

_PARTS = (
    ("control", "48 8d 0d {0:08x}"),  # lea rcx, [rip + control]
    ("", "48 8b 41 {now:02x}"),  # mov rax, [rcx + now]
    ("time", "48 05 {0:08x}"),  # add rax, time
    ("", "48 3b 41 {limit:02x}"),  # cmp rax, [rcx + limit]
    ("", "73 0a"),  # jae closer
    ("", "48 89 41 {now:02x}"),  # mov [rcx + now], rax
    ("", "48 ff 41 {blocks:02x}"),  # inc qword ptr [rcx + blocks]
    ("inner end", "eb {0:02x}"),  # jmp end
    ("size", "ba {0:08x}"),  # closer: mov edx, size
    ("hook", "e8 {0:08x}"),  # call hook
    ("end", "eb {0:02x}"),  # jmp end
)
"""The replacement: each instruction with the name of the gap at its end that depends on the block."""
_CHECK_CODE = 17
"""Bytes of the emulator's check: movabs, xor, call."""
_BEFORE_ADDRESS, _AFTER_ADDRESS = 10, 5 + 7 + 5
"""Bytes of what precedes and follows the load of the block's address, up to the hook's return address."""
_ADDRESS_LOADS = ((7, 0xFFFFFF, 0xC6C748), (5, 0xFF, 0xBE), (10, 0xFFFF, 0xBE48))
"""Its encodings: length, and the opcode bytes under a mask."""


def shorter_sequence(field: Mapping[str, int]) -> bytes:
    """The replacement with empty gaps; `field` gives the offsets in the control block, all below 128."""
    return b"".join(bytes.fromhex(code.format(0, **field)) for _, code in _PARTS)


def _behind(name: str, field: Mapping[str, int]) -> int:
    """Offset of the end of the instruction with this gap."""
    index = [gap for gap, _ in _PARTS].index(name) + 1
    return sum(len(bytes.fromhex(code.format(0, **field))) for _, code in _PARTS[:index])


def first_run_source(field: Mapping[str, int], place: int, hook: int, check: int, units: int) -> str:
    """Assembly of the hook for first runs; it goes on in `hook`.

    The replacement lies at host address `place`; `check` is the emulator's check for a stop; `units` are
    charged for a block besides its bytes.
    """
    control, time, inner_end, size, call, end = (
        _behind(name, field) for name in ("control", "time", "inner end", "size", "hook", "end")
    )
    candidates = "".join(
        f"""
    lea r8, [rax - {_AFTER_ADDRESS + length + _BEFORE_ADDRESS}]
    mov r9d, dword ptr [r8 + {_BEFORE_ADDRESS}]
    and r9d, {mask:#x}
    cmp r9d, {opcode:#x}
    je found
"""
        for length, mask, opcode in _ADDRESS_LOADS
    )
    return f"""
    mov rax, qword ptr [rsp]
    cmp byte ptr [rax - 5], 0xe8
    jne as_it_is
    cmp word ptr [rax - 12], 0x8d48
    jne as_it_is
    cmp byte ptr [rax - 17], 0xba
    jne as_it_is
    cmp dword ptr [rax - 16], edx
    jne as_it_is
{candidates}
    jmp as_it_is
found:
    cmp word ptr [r8], 0xbf48
    jne as_it_is
    cmp qword ptr [r8 + 2], rdi
    jne as_it_is
    cmp word ptr [rax], 0xbf48
    jne as_it_is
    cmp qword ptr [rax + 2], rdi
    jne as_it_is
    cmp word ptr [rax + 10], 0xf633
    jne as_it_is
    cmp byte ptr [rax + 12], 0xe8
    jne as_it_is
    movsxd r9, dword ptr [rax + 13]
    lea r9, [rax + r9 + {_CHECK_CODE}]
    movabs r10, {check:#x}
    cmp r9, r10
    jne as_it_is
    mov r9, rcx
    sub r9, r8
    sub r9, {control}
    movsxd r10, r9d
    cmp r10, r9
    jne as_it_is
    movabs r11, {hook:#x}
    sub r11, r8
    sub r11, {call}
    movsxd r10, r11d
    cmp r10, r11
    jne as_it_is
    push rcx
    mov rdi, r8
    movabs rsi, {place:#x}
    mov ecx, {end}
    rep movsb
    pop rcx
    mov dword ptr [r8 + {control - 4}], r9d
    mov dword ptr [r8 + {call - 4}], r11d
    mov dword ptr [r8 + {size - 4}], edx
    lea r9d, [rdx + {units}]
    mov dword ptr [r8 + {time - 4}], r9d
    lea r9, [rax + {_CHECK_CODE}]
    sub r9d, r8d
    lea r10d, [r9 - {inner_end}]
    mov byte ptr [r8 + {inner_end - 1}], r10b
    lea r10d, [r9 - {end}]
    mov byte ptr [r8 + {end - 1}], r10b
    lea rax, [r8 + {call}]
    mov qword ptr [rsp], rax
as_it_is:
    movabs rax, {hook:#x}
    jmp rax
"""
