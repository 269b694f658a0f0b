"""The page-table walker in machine code: fills the emulator's TLB.

The emulator's own walker gives every page of a guest without NX execute permission, and a store
to an executable page costs it twenty times as much as another (it looks for translated code).
This one gives execute permission only to pages that have been executed, and so makes data fast in
every paging mode; the rules of translation are those of `runtime.memory.paging` (Intel SDM vol. 3
chapter 4), with which tests compare it.

A page becomes executable with its first instruction fetch; all cached translations are dropped
then, because another one may allow writing to it without notice. From then on every writable
translation of that page is executable too, even where the tables say NX: only so does the emulator
see that its code changes (a kernel writes code through a data mapping). Such a mapping is given for
the write alone, so that fetching through it still faults unless it was written just before.
"""

from __future__ import annotations

from collections.abc import Mapping

from unicorn import unicorn_const as uc_const

from runtime.cpu.layout import CpuState, SegmentCache

__all__ = ["FLUSH_TLB", "NOT_CANONICAL", "PAGE_FAULT", "walker_source"]

_READ, _WRITE, _FETCH = uc_const.UC_MEM_READ, uc_const.UC_MEM_WRITE, uc_const.UC_MEM_FETCH
FLUSH_TLB = uc_const.UC_CTL_TLB_FLUSH | uc_const.UC_CTL_IO_WRITE << 30
"""The command of `uc_ctl` that drops all cached translations."""
_FRAME = 0x000F_FFFF_FFFF_F000
_RESERVED = 0x000F_FF00_0000_0000
"""Physical addresses have 40 bits (CPUID 0x80000008)."""
_MOST_FILLS = 1 << 16
"""Fills after which all cached translations are dropped: the emulator doubles its cache when it is full."""
PAGE_FAULT, NOT_CANONICAL = 1, 2
"""What the walker leaves in `ControlBlock.fault`."""


def _state(name: str, index: int = 0) -> str:
    return f"r9 + {getattr(CpuState, name).offset + index * 8}"


def _within(table: str) -> str:
    """Goes to `supervisor` if the page of the access holds descriptors of this table."""
    cache = getattr(CpuState, table).offset
    base, limit = (getattr(SegmentCache, name).offset for name in ("base", "limit"))
    return f"""
    mov rdx, qword ptr [r9 + {cache + base}]
    mov esi, dword ptr [r9 + {cache + limit}]
    add rsi, rdx
    and rdx, -4096
    cmp rbp, rdx
    jb not_{table}
    cmp rbp, rsi
    jbe supervisor
not_{table}:
"""


def walker_source(field: Mapping[str, int]) -> str:
    """Assembly of `bool fill(uc, u64 page, int access, {u64 physical; u32 permissions} *, ControlBlock *)`.

    `field` gives the offsets in the control block. Registers: r8 control block, r9 CPU state, r10 RAM,
    r11 last valid table address, rbp linear page, edi access, r12 AND and r13 OR of the entries,
    ebx entries seen, r15 result; at `leaf` rax is the last entry and rcx the physical page.
    """
    cr0, cr3, cr4 = _state("cr", 0), _state("cr", 3), _state("cr", 4)
    efer, hflags = _state("efer"), _state("hflags")
    walk = field["walk"]
    return f"""
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    sub rsp, 8
    mov r9, qword ptr [r8 + {field["cpu"]}]
    mov r10, qword ptr [r8 + {field["ram"]}]
    mov r11, qword ptr [r8 + {field["last_entry"]}]
    mov r15, rcx
    mov rbp, rsi
    mov edi, edx
    xor r13d, r13d
    mov r12d, 6
    xor ebx, ebx
    cmp dword ptr [{cr0}], 0
    jl paging
    mov ecx, ebp
    mov eax, 64
    mov r12d, 2
    jmp permissions
paging:
    test dword ptr [{efer}], 0x400
    jne four_levels
    mov ebp, ebp
    test dword ptr [{cr4}], 0x20
    jne pae

    mov eax, dword ptr [{cr3}]
    and eax, 0xfffff000
    mov ecx, ebp
    shr ecx, 22
    lea r14, [rax + rcx*4]
    cmp r14, r11
    ja not_present
    mov eax, dword ptr [r10 + r14]
    test al, 1
    je not_present
    mov qword ptr [r8 + {walk}], r14
    inc ebx
    and r12d, eax
    test al, 128
    je second_level
    test dword ptr [{cr4}], 16
    je second_level
    mov ecx, eax
    and ecx, 0xffc00000
    mov edx, eax
    shr edx, 13
    and edx, 255
    shl rdx, 32
    or rcx, rdx
    mov edx, ebp
    and edx, 0x3ff000
    or rcx, rdx
    jmp large
second_level:
    and eax, 0xfffff000
    mov ecx, ebp
    shr ecx, 12
    and ecx, 0x3ff
    lea r14, [rax + rcx*4]
    cmp r14, r11
    ja not_present
    mov eax, dword ptr [r10 + r14]
    test al, 1
    je not_present
    mov qword ptr [r8 + {walk + 8}], r14
    inc ebx
    and r12d, eax
    mov ecx, eax
    and ecx, 0xfffff000
    jmp leaf

pae:
    mov eax, dword ptr [{cr3}]
    and eax, 0xffffffe0
    mov ecx, ebp
    shr ecx, 30
    lea r14, [rax + rcx*8]
    cmp r14, r11
    ja not_present
    mov rax, qword ptr [r10 + r14]
    test al, 1
    je not_present
    mov rdx, {_FRAME:#x}
    and rax, rdx
    mov ecx, 21
    jmp next_entry

four_levels:
    mov rax, rbp
    sar rax, 47
    inc rax
    cmp rax, 1
    ja not_canonical
    mov rax, qword ptr [{cr3}]
    mov rdx, {_FRAME:#x}
    and rax, rdx
    mov ecx, 39
next_entry:
    mov rsi, rbp
    shr rsi, cl
    and esi, 0x1ff
    lea r14, [rax + rsi*8]
    cmp r14, r11
    ja not_present
    mov rax, qword ptr [r10 + r14]
    test al, 1
    je not_present
    mov qword ptr [r8 + rbx*8 + {walk}], r14
    inc ebx
    and r12d, eax
    or r13, rax
    mov rdx, {_RESERVED:#x}
    test dword ptr [{efer}], 0x800
    jne nx_defined
    bts rdx, 63
nx_defined:
    test rax, rdx
    jne reserved_bit
    cmp ecx, 12
    je small_leaf
    cmp ecx, 30
    ja lower
    test al, 128
    jne large_leaf
lower:
    mov rdx, {_FRAME:#x}
    and rax, rdx
    sub ecx, 9
    jmp next_entry
large_leaf:
    mov edx, 1
    shl rdx, cl
    dec rdx
    mov rsi, rdx
    shr rsi, 13
    shl rsi, 13
    test rax, rsi
    jne reserved_bit
    mov rsi, rbp
    and rsi, rdx
    not rdx
    and rdx, rax
    mov rcx, {_FRAME:#x}
    and rcx, rdx
    or rcx, rsi
large:
    mov rdx, qword ptr [r8 + {field["large_marks"]}]
    xor esi, esi
    mov qword ptr [rdx], rsi
    mov qword ptr [rdx + 8], rsi
    mov rdx, qword ptr [r8 + {field["large_marks"] + 8}]
    mov qword ptr [rdx], rsi
    mov qword ptr [rdx + 8], rsi
    mov rdx, qword ptr [r8 + {field["large_marks"] + 16}]
    mov qword ptr [rdx], rsi
    mov qword ptr [rdx + 8], rsi
    jmp leaf
small_leaf:
    mov rcx, {_FRAME:#x}
    and rcx, rax

leaf:
    mov edx, dword ptr [{hflags}]
    and edx, 3
    cmp edx, 3
    jne supervisor
    cmp qword ptr [r8 + {field["supervisor"]}], 0
    jne supervisor
    cmp qword ptr [r8 + {field["descriptors"]}], 0
    jne descriptor_table
user:
    test r12d, 4
    je protection
    cmp edi, {_WRITE}
    jne user_fetch
    test r12d, 2
    je protection
    jmp granted
user_fetch:
    cmp edi, {_FETCH}
    jne granted
    bt r13, 63
    jb protection
    jmp granted
descriptor_table:
    cmp edi, {_FETCH}
    je user
{_within("gdt")}
{_within("ldt")}
    jmp user
supervisor:
    cmp edi, {_WRITE}
    jne supervisor_fetch
    test r12d, 2
    jne granted
    test dword ptr [{cr0}], 0x10000
    jne protection
    or r12d, 2
    jmp granted
supervisor_fetch:
    cmp edi, {_FETCH}
    jne granted
    bt r13, 63
    jb protection
    test dword ptr [{cr4}], 0x100000
    je granted
    test r12d, 4
    jne protection

granted:
    mov edx, ebx
accessed:
    dec edx
    js accessed_done
    mov r14, qword ptr [r8 + rdx*8 + {walk}]
    or byte ptr [r10 + r14], 32
    jmp accessed
accessed_done:
    cmp edi, {_WRITE}
    jne permissions
    mov r14, qword ptr [r8 + rbx*8 + {walk - 8}]
    or byte ptr [r10 + r14], 64
    or eax, 64

permissions:
    mov edx, 1
    test al, 64
    je executable
    test r12d, 2
    je executable
    or edx, 2
executable:
    mov rsi, rcx
    shr rsi, 12
    mov r14, qword ptr [r8 + {field["executed"]}]
    cmp edi, {_FETCH}
    je fetch
    cmp rsi, qword ptr [r8 + {field["executed_pages"]}]
    jae done
    cmp byte ptr [r14 + rsi], 0
    je done
    bt r13, 63
    jb alias
    test dword ptr [{cr4}], 0x100000
    je watched_for_code
    test r12d, 4
    je watched_for_code
alias:
    and edx, 5
    cmp edi, {_WRITE}
    jne done
    or edx, 2
watched_for_code:
    or edx, 4
    jmp done
fetch:
    or edx, 4
    cmp rsi, qword ptr [r8 + {field["executed_pages"]}]
    jae done
    cmp byte ptr [r14 + rsi], 0
    jne done
    mov byte ptr [r14 + rsi], 1
    jmp drop_all
done:
    inc dword ptr [r8 + {field["fills"]}]
    test dword ptr [r8 + {field["fills"]}], {_MOST_FILLS - 1:#x}
    jne filled
drop_all:
    mov r12, rcx
    mov r13d, edx
    mov rdi, qword ptr [r8 + {field["engine"]}]
    mov esi, {FLUSH_TLB}
    xor eax, eax
    call qword ptr [r8 + {field["uc_ctl"]}]
    mov rcx, r12
    mov edx, r13d
filled:
    mov qword ptr [r15], rcx
    mov dword ptr [r15 + 8], edx
    mov eax, 1
    jmp leave_walker

not_canonical:
    mov qword ptr [r8 + {field["fault"]}], {NOT_CANONICAL}
    xor eax, eax
    jmp leave_walker
not_present:
    xor edx, edx
    jmp fault
reserved_bit:
    mov edx, 9
    jmp fault
protection:
    mov edx, 1
fault:
    cmp edi, {_WRITE}
    jne fault_fetch
    or edx, 2
fault_fetch:
    cmp edi, {_FETCH}
    jne fault_user
    test dword ptr [{cr4}], 0x100000
    jne fault_instruction
    test dword ptr [{cr4}], 0x20
    je fault_user
    test dword ptr [{efer}], 0x800
    je fault_user
fault_instruction:
    or edx, 16
fault_user:
    mov eax, dword ptr [{hflags}]
    and eax, 3
    cmp eax, 3
    jne fault_done
    cmp qword ptr [r8 + {field["supervisor"]}], 0
    jne fault_done
    or edx, 4
fault_done:
    mov qword ptr [r8 + {field["fault_code"]}], rdx
    mov qword ptr [r8 + {field["fault_page"]}], rbp
    mov qword ptr [r8 + {field["fault"]}], {PAGE_FAULT}
    xor eax, eax
leave_walker:
    add rsp, 8
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret
"""
