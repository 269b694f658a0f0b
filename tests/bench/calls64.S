# The x86_64 twin of calls.S: entered by a PVH loader, it goes to long mode first.
        .set    CODE, 0x08
        .set    DATA, 0x10
        .set    UNMAPPED, 0x80000000    /* sign-extended: far from everything that is mapped */

        .section .note.pvh, "a", @note
        .p2align 2
        .long   4, 8, 18                # name size, description size, PHYS32_ENTRY
        .asciz  "Xen"
        .quad   _start

        .text
        .code32
        .globl _start
_start:
        cli
        lgdt    gdt_pointer
        movl    $stack_top, %esp

        # Identity map of the first 16 MiB with 2 MiB pages, and nothing else.
        movl    $directory, %edi
        movl    $0x83, %eax
        movl    $8, %ecx
1:      movl    %eax, (%edi)
        addl    $8, %edi
        addl    $0x200000, %eax
        loop    1b
        movl    $directory + 3, pointers
        movl    $pointers + 3, top
        movl    $top, %eax
        movl    %eax, %cr3
        movl    %cr4, %eax
        orl     $0x20, %eax             # PAE
        movl    %eax, %cr4
        movl    $0xC0000080, %ecx       # EFER.LME
        rdmsr
        orl     $0x100, %eax
        wrmsr
        movl    %cr0, %eax
        orl     $0x80000001, %eax
        movl    %eax, %cr0
        ljmp    $CODE, $2f

        .code64
2:      movl    $DATA, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        movl    $stack_top, %esp
        movl    $14, %ecx               # page faults
        movl    $on_fault, %eax
        call    set_gate
        movl    $0x80, %ecx             # system calls
        movl    $on_call, %eax
        call    set_gate
        lidt    idt_pointer
#ifdef OP_HYPERCALL
        call    find_slot
#endif

        movl    $COUNT, %esi
        .p2align 4
loop:
#ifdef OP_FLAG
        cli
#endif
#ifdef OP_CR3
        movq    %cr3, %rax
        movq    %rax, %cr3
#endif
#ifdef OP_PORT
        inb     $0x80, %al
#endif
#ifdef OP_HYPERCALL
        call    *%rbx
#endif
#ifdef OP_FAULT
        movl    UNMAPPED, %eax          # 7 bytes (8b 04 25 disp32); the handler steps over it
#endif
#ifdef OP_INT
        int     $0x80
#endif
        nop
        nop
        nop
        nop
        decl    %esi
        jnz     loop
        xorl    %eax, %eax
        movl    $0xf4, %edx
        outb    %al, %dx
3:      hlt
        jmp     3b

# Vector in ecx, handler in eax: an interrupt gate of privilege 3.
set_gate:
        shll    $4, %ecx
        leaq    idt(%rcx), %rdi
        movw    %ax, (%rdi)
        movw    $CODE, 2(%rdi)
        movw    $0xEE00, 4(%rdi)
        shrl    $16, %eax
        movw    %ax, 6(%rdi)
        movq    $0, 8(%rdi)
        ret

#ifdef OP_HYPERCALL
# The address of the slot SLOT in rbx: behind the image is the resident block, with its locator.
find_slot:
        movl    $_end + 15, %edi
        andl    $-16, %edi
4:      cmpl    $0x41505650, (%rdi)     # PVPA
        jne     5f
        cmpl    $0x2D484354, 4(%rdi)    # TCH-
        jne     5f
        cmpl    $0x41434F4C, 8(%rdi)    # LOCA
        je      6f
5:      addl    $16, %edi
        jmp     4b
6:      movl    PAGE(%rdi), %ebx
        addq    VIRTUAL(%rdi), %rbx
        addq    $SLOT, %rbx
        ret
#endif

on_fault:
        addq    $7, 8(%rsp)
        addq    $8, %rsp
        iretq
on_call:
        leaq    8(%rsp), %rdi           # as long as a real one: a lone iretq no scan would take for code
        iretq

        .data
        .align 8
gdt:    .quad   0, 0x00AF9A000000FFFF, 0x00CF92000000FFFF
gdt_pointer:
        .word   . - gdt - 1
        .long   gdt
        .long   0
idt_pointer:
        .word   256 * 16 - 1
        .quad   idt

        .bss
        .align 4096
top:    .space  4096
pointers:
        .space  4096
directory:
        .space  4096
idt:    .space  256 * 16
        .space  4096
stack_top:
