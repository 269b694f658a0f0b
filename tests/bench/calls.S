# A multiboot kernel that does one operation COUNT times and leaves by the debug-exit port.
# Assembled by the benchmark with -DCOUNT=n and one of -DOP_EMPTY, -DOP_FLAG, -DOP_CR3, -DOP_PORT, -DOP_HYPERCALL,
# -DOP_FAULT, -DOP_INT. OP_HYPERCALL is a kernel that knows the ABI: it finds the slot SLOT of its call page.
        .set    CODE, 0x08
        .set    DATA, 0x10
        .set    UNMAPPED, 0xA0000000

        .section .multiboot, "a"
        .align 4
        .long 0x1BADB002, 0, -0x1BADB002

        .text
        .globl _start
_start:
        movl    $stack_top, %esp
#ifndef PLAIN                           /* PLAIN: nothing before the loop that needs privilege */
        lgdt    gdt_pointer
        ljmp    $CODE, $1f
1:      movw    $DATA, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movl    $14, %ecx               # page faults
        movl    $on_fault, %eax
        call    set_gate
        movl    $0x80, %ecx             # system calls
        movl    $on_call, %eax
        call    set_gate
        lidt    idt_pointer

        # Identity map of the first 16 MiB with 4 MiB pages, and nothing else.
        movl    $directory, %edi
        movl    $0x83, %eax
        movl    $4, %ecx
2:      movl    %eax, (%edi)
        addl    $4, %edi
        addl    $0x400000, %eax
        loop    2b
        movl    %cr4, %eax
        orl     $0x10, %eax
        movl    %eax, %cr4
        movl    $directory, %eax
        movl    %eax, %cr3
        movl    %cr0, %eax
        orl     $0x80000000, %eax
        movl    %eax, %cr0
#endif
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
        movl    %cr3, %eax
        movl    %eax, %cr3
#endif
#ifdef OP_PORT
        inb     $0x80, %al
#endif
#ifdef OP_HYPERCALL
        call    *%ebx
#endif
#ifdef OP_FAULT
        movl    UNMAPPED, %eax          # 5 bytes (a1 moffs32); the handler steps over it
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
        leal    idt(, %ecx, 8), %edi
        movw    %ax, (%edi)
        movw    $CODE, 2(%edi)
        movw    $0xEE00, 4(%edi)
        shrl    $16, %eax
        movw    %ax, 6(%edi)
        ret

#ifdef OP_HYPERCALL
# The address of the slot SLOT in ebx: behind the image is the resident block, with its locator.
find_slot:
        movl    $_end + 15, %edi
        andl    $-16, %edi
4:      cmpl    $0x41505650, (%edi)     # PVPA
        jne     5f
        cmpl    $0x2D484354, 4(%edi)    # TCH-
        jne     5f
        cmpl    $0x41434F4C, 8(%edi)    # LOCA
        je      6f
5:      addl    $16, %edi
        jmp     4b
6:      movl    PAGE(%edi), %ebx
        addl    VIRTUAL(%edi), %ebx
        addl    $SLOT, %ebx
        ret
#endif

on_fault:
        addl    $5, 4(%esp)
        addl    $4, %esp
        iret
on_call:
        leal    4(%esp), %edi           # as long as a real one: a lone iret no scan would take for code
        iret

        .data
        .align 8
gdt:    .quad   0, 0x00CF9A000000FFFF, 0x00CF92000000FFFF
gdt_pointer:
        .word   . - gdt - 1
        .long   gdt
idt_pointer:
        .word   256 * 8 - 1
        .long   idt

        .bss
        .align 4096
directory:
        .space  4096
idt:    .space  256 * 8
        .space  4096
stack_top:
