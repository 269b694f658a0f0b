# A multiboot kernel that does one operation COUNT times and leaves by the debug-exit port.
# Assembled by the benchmark with -DCOUNT=n and one of -DOP_EMPTY, -DOP_FLAG, -DOP_CR3.
        .section .multiboot, "a"
        .align 4
        .long 0x1BADB002, 0, -0x1BADB002

        .text
        .globl _start
_start:
        movl    $stack_top, %esp
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
        nop
        nop
        nop
        nop
        decl    %esi
        jnz     loop
        xorl    %eax, %eax
        movl    $0xf4, %edx
        outb    %al, %dx
1:      hlt
        jmp     1b

        .bss
        .align 16
        .space  4096
stack_top:
