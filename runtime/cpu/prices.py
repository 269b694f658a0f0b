"""What code costs in virtual time besides its bytes, so that no code makes the host work for nothing.

Time is counted by bytes of code and by blocks (`runtime.cpu.native`). What would then be nearly free and is
dear to the host: translating a block, which happens anew whenever code is new or was written to; accesses to
memory; and an instruction that the emulator carries out in a routine. They are charged here, by what the
translator made of the block, never by the host's clock: the same guest pays the same everywhere.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from runtime.cpu.translator import BUFFER_SIZE, TranslatorFacts, helper_address

__all__ = ["MOST_TRANSLATED", "UNITS_PER_NS", "HelperPrices", "helper_prices", "translation_source"]

UNITS_PER_NS = 4
"""Virtual time is kept in units of executed code bytes; four bytes are one nanosecond."""
_ALIGNMENT = 16
"""Of the emulator's routines, in bytes."""
_BLOCK_NS, _OPERATION_SHIFT = 700, 5
"""Price of a translation, and of each operation in it (2**5 units are 8 ns): a block of ten instructions
costs about a microsecond, as code that is in no cache of a real CPU does."""
_ACCESS_NS = 1
"""Price of an access to memory: it may miss the emulator's cache of addresses, or meet a page with code."""
_BLOCK_ROOM = 10
"""Operations that the rest of a block needs as much room for: its header, hooks and exits."""
_MOST_BYTES = 80
"""Room that an operation takes in the buffer, at most; 15 on average, 27 where all are accesses to memory."""
MOST_TRANSLATED = BUFFER_SIZE // _MOST_BYTES
"""Operations after which all translations are dropped."""

_PRICES_NS: Mapping[int, tuple[str, ...]] = {
    40: ("fxsave", "fxrstor", "fsave", "frstor", "xsave", "xsaveopt", "xrstor", "set_dr"),
    60: ("write_crN",),
    8: (
        "fstenv",
        "fldenv",
        "lcall_protected",
        "lret_protected",
        "ljmp_protected",
        "iret_protected",
        "lldt",
        "ltr",
    ),
    4: (
        *("fsin", "fcos", "fsincos", "fptan", "fpatan", "fyl2x", "fyl2xp1", "f2xm1", "fprem", "fprem1"),
        *("fbld_ST0", "fbst_ST0", "dpps_xmm", "dppd_xmm"),
        *("pcmpestri_xmm", "pcmpestrm_xmm", "pcmpistri_xmm", "pcmpistrm_xmm"),
        *("verr", "verw", "lar", "lsl", "load_seg", "invlpg"),
        *("cmpxchg8b", "cmpxchg8b_unlocked", "cmpxchg16b", "cmpxchg16b_unlocked"),
    ),
    2: (
        *("addps", "subps", "mulps", "divps", "sqrtps", "rsqrtps", "rcpps", "maxps", "minps", "roundps_xmm"),
        *("haddps", "hsubps", "addsubps", "cvtdq2ps", "cvtps2dq", "cvttps2dq", "divpd", "sqrtpd", "haddpd"),
    ),
}
"""By nanoseconds: the routines that cost so much."""


@dataclass(frozen=True)
class HelperPrices:
    """Prices by place: `table` has a number for each 16 bytes from `base` on, in units of virtual time."""

    base: int
    count: int
    table: ctypes.Array[ctypes.c_uint16]


@cache
def helper_prices() -> HelperPrices:
    """The prices in this process's emulator. Raises `UnknownCpuLayout` if it lacks one of the routines."""
    prices = {
        helper_address(name): nanoseconds * UNITS_PER_NS
        for nanoseconds, names in _PRICES_NS.items()
        for name in names
    }
    base = min(prices) & -_ALIGNMENT
    count = (max(prices) - base) // _ALIGNMENT + 1
    table = (ctypes.c_uint16 * count)()
    for address, price in prices.items():
        table[(address - base) // _ALIGNMENT] = price
    return HelperPrices(base, count, table)


def translation_source(field: Mapping[str, int], facts: TranslatorFacts) -> str:
    """Assembly that stands in front of the hook for first runs (`runtime.cpu.inline_count`).

    Charges for the translation if this is a new one, makes the block dearer by what it accesses and calls
    (the size that it passes to the hook is what counts), and stops when it is time to drop all translations.

    The size stands in front of the call, `mov edx, size`, and between them the load of RCX. How both look
    depends on how far the buffer lies from what they name: a near call or one through memory; LEA, MOV of 64
    or of 32 bits. Anything else is counted as `unpriced`.
    """
    return f"""
    mov r8, qword ptr [rcx + {field["translator"]}]
    mov r9, qword ptr [r8 + {facts.position}]
    cmp r9, qword ptr [rcx + {field["translated_to"]}]
    je charged
    mov qword ptr [rcx + {field["translated_to"]}], r9
    mov r9d, dword ptr [r8 + {facts.operations}]
    lea r10, [r9 + {_BLOCK_ROOM}]
    add r10, qword ptr [rcx + {field["translated"]}]
    mov qword ptr [rcx + {field["translated"]}], r10
    shl r9, {_OPERATION_SHIFT}
    add r9, {_BLOCK_NS * UNITS_PER_NS}
    add qword ptr [rcx + {field["now"]}], r9
    xor r11d, r11d
    mov r8, qword ptr [r8 + {facts.first}]
    jmp operation
next:
    mov r8, qword ptr [r8 + {facts.following}]
operation:
    test r8, r8
    je priced
    movzx eax, byte ptr [r8]
    cmp al, {facts.call}
    je call
    sub al, {facts.accesses.start}
    cmp al, {len(facts.accesses)}
    jae next
    add r11d, {_ACCESS_NS * UNITS_PER_NS}
    jmp next
call:
    movzx eax, byte ptr [r8 + 1]
    mov r9d, eax
    and eax, 15
    shr r9d, 4
    add eax, r9d
    mov rax, qword ptr [r8 + rax*8 + {facts.arguments}]
    sub rax, qword ptr [rcx + {field["price_base"]}]
    shr rax, 4
    cmp rax, qword ptr [rcx + {field["price_count"]}]
    jae next
    mov r9, qword ptr [rcx + {field["price_table"]}]
    movzx eax, word ptr [r9 + rax*2]
    add r11d, eax
    jmp next
priced:
    test r11d, r11d
    je done
    mov rax, qword ptr [rsp]
    lea r8, [rax - 5]
    cmp byte ptr [r8], 0xe8
    je called
    lea r8, [rax - 6]
    cmp word ptr [r8], 0x15ff
    jne unpriced
called:
    mov eax, dword ptr [r8 - 7]
    and eax, 0xffffff
    cmp eax, 0x0d8d48
    jne not_near
    sub r8, 7
    jmp sized
not_near:
    cmp word ptr [r8 - 10], 0xb948
    jne not_far
    sub r8, 10
    jmp sized
not_far:
    cmp byte ptr [r8 - 5], 0xb9
    jne unpriced
    sub r8, 5
sized:
    cmp byte ptr [r8 - 5], 0xba
    jne unpriced
    cmp dword ptr [r8 - 4], edx
    jne unpriced
    add dword ptr [r8 - 4], r11d
    add edx, r11d
    jmp done
unpriced:
    inc qword ptr [rcx + {field["unpriced"]}]
done:
    cmp r10, {MOST_TRANSLATED}
    jb charged
    mov qword ptr [rcx + {field["force"]}], 1
    mov qword ptr [rcx + {field["limit"]}], 0
charged:
"""
