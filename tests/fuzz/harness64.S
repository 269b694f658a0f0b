/*
 * The x86_64 kernel around random snippets: see harness32.S, which does the same at the other width. It is
 * entered by PVH in 32-bit mode. All words of the log have 64 bits.
 */
	.set EVENT, 0x544e5645          /* "EVNT" */
	.set START, 0x54525453          /* "STRT" */
	.set FINAL, 0x4c4e4946          /* "FINL" */
	.set DONE, 0x454e4f44           /* "DONE" */
	.set MAX_EVENTS, 24
	.set ARMED, 1

	.set KERNEL_CODE, 0x08
	.set KERNEL_DATA, 0x10
	.set USER_CODE32, 0x1b
	.set USER_DATA, 0x23
	.set USER_CODE, 0x2b
	.set TSS, 0x30
	.set LDT, 0x40
	.set BASED, 0x50
	.set ABSENT, 0x58
	.set READ_ONLY, 0x60
	.set EXECUTE_ONLY, 0x68
	.set CALL_GATE, 0x70
	.set OTHER_CODE, 0x80
	.set CODE32, 0x88
	.set SMALL, 0x90
	.set CONFORMING, 0x98
	.set OTHER_TSS, 0xa0
	.set USER_GATE, 0xb0
	.set EXPAND_DOWN, 0xc0
	.set CODE_BASED, 0xc8
	.set USER_BASED, 0xd3
	.set LOCAL_DATA, 0x0c
	.set LOCAL_CODE, 0x14
	.set BASE, 0x1000
	.set FS_BASE, 0x123450
	.set GS_BASE, 0x234560
	.set OTHER_GS_BASE, 0x345670

	.set DATA_SIZE, 1024
	.set STACK_SIZE, 1024
	.set STACK_ROOM, 0x4000
	.set SP0, stack + 512
	.set WINDOW, 0x40000000         /* 2 MiB mapped by `page_table` */

	.section .note.pvh, "a", @note
	.p2align 2
	.long 4, 8, 18                  /* name size, description size, PHYS32_ENTRY */
	.asciz "Xen"
	.quad _start

	.text
	.code32
	.globl _start
_start:
	cli
	cld
	mov $harness_stack, %esp
	mov %ebx, %ebp                  /* start information */
	call make_pages
	lgdt boot_gdt_pointer
	mov $top_table, %eax
	mov %eax, %cr3
	mov $0x20, %eax
	mov %eax, %cr4
	mov $0xc0000080, %ecx
	mov $0x901, %eax                /* system calls, long mode, no-execute */
	xor %edx, %edx
	wrmsr
	mov $0x80010031, %eax
	mov %eax, %cr0
	ljmp $KERNEL_CODE, $1f

make_pages:
	mov $directory, %edi
	mov $0xe7, %eax                 /* 2 MiB, user, writable, accessed and dirty */
	mov $8, %ecx
2:	mov %eax, (%edi)
	movl $0, 4(%edi)
	add $0x200000, %eax
	add $8, %edi
	loop 2b
	movl $pointers + 0x67, top_table
	movl $directory + 0x67, pointers
	movl $window_directory + 0x67, pointers + 8
	movl $page_table + 0x67, window_directory
	ret

	.code64
1:	mov $KERNEL_DATA, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	mov $harness_stack, %esp
	call command_line
	call make_tables
	mov $log, %edi                  /* code gone astray ends there: FF FF is no instruction */
	mov $-1, %eax
	mov $0x21000, %ecx
	rep stosl
	call pic_reset
	in $0xe9, %al
	cmp $0xe9, %al
	sete listener
	movq $log, log_next
	movq $log, log_sent
	jmp establish

command_line:
	mov 24(%rbp), %rsi
	xor %ecx, %ecx
1:	lodsb
	test %al, %al
	jz 3f
	sub $'0', %al
	cmp $9, %al
	jbe 2f
	xor %ecx, %ecx
	jmp 1b
2:	movzbl %al, %eax
	lea (%rcx,%rcx,4), %ecx
	lea (%rax,%rcx,2), %ecx
	jmp 1b
3:	mov %rcx, index
	ret

	.macro descriptor_base selector, address
	mov \address, %eax
	mov %ax, gdt_master + (\selector & 0xf8) + 2
	shr $16, %eax
	mov %al, gdt_master + (\selector & 0xf8) + 4
	mov %ah, gdt_master + (\selector & 0xf8) + 7
	.endm
	.macro gate_offset place, address
	mov \address, %eax
	mov %ax, \place
	shr $16, %eax
	mov %ax, \place + 6
	.endm
make_tables:
	descriptor_base TSS, $tss
	descriptor_base OTHER_TSS, $other_tss
	descriptor_base LDT, $ldt
	gate_offset gdt_master + CALL_GATE, $gate_target
	gate_offset gdt_master + USER_GATE, $gate_target
	mov $idt_master, %edi
	mov $stubs, %eax
	mov $256, %ecx
1:	mov %ax, (%rdi)
	movw $KERNEL_CODE, 2(%rdi)
	movw $0x8e00, 4(%rdi)
	mov %eax, %edx
	shr $16, %edx
	mov %dx, 6(%rdi)
	add $16, %eax
	add $16, %edi
	dec %ecx
	jnz 1b
	movb $0xee, idt_master + 3 * 16 + 5
	movb $0xee, idt_master + 4 * 16 + 5
	movb $0xef, idt_master + 0x80 * 16 + 5
	movb $0x8f, idt_master + 0x31 * 16 + 5
	movb $0x0e, idt_master + 0x33 * 16 + 5
	movw $0x00f8, idt_master + 0x34 * 16 + 2
	movw $OTHER_CODE, idt_master + 0x35 * 16 + 2
	movw $CALL_GATE, idt_master + 0x36 * 16 + 2
	movb $1, idt_master + 0x37 * 16 + 4     /* on a stack of its own */
	ret

window_reset:
	mov $page_table, %edi
	mov $frames + 0x67, %eax
	call 1f
	mov $frames + 0x66, %eax
	call 1f
	mov $frames + 0x65, %eax
	call 1f
	mov $frames + 0x63, %eax
	call 1f
	xor %eax, %eax
	mov $448, %ecx
	rep stosq
	ret
1:	mov $16, %ecx
2:	stosq
	add $0x1000, %eax
	loop 2b
	ret

	.macro output port, value
	mov $\value, %al
	out %al, $\port
	.endm
pic_reset:
	output 0x43, 0x30
	output 0x20, 0x11
	output 0x21, 0x20
	output 0x21, 0x04
	output 0x21, 0x01
	output 0xa0, 0x11
	output 0xa1, 0x28
	output 0xa1, 0x02
	output 0xa1, 0x01
	output 0x21, 0xff
	output 0xa1, 0xff
	ret

timer_pending:
	output 0x21, 0xfe
	output 0x43, 0x30
	output 0x40, 0x10
	output 0x40, 0x00
	output 0x20, 0x0a
1:	in $0x20, %al
	test $1, %al
	jz 1b
	ret

/* ---- one snippet ---- */

next:
	incq index
establish:
	mov $harness_stack, %esp
	mov index, %rax
	cmp snippet_count, %rax
	jae all_done
	imul $160, %rax, %rax           /* 20 words each */
	lea snippets(%rax), %rax
	mov %rax, current
	xor %eax, %eax
	mov %rax, %dr7
	mov $0xffff0ff0, %eax
	mov %rax, %dr6
	mov $gdt_master, %esi
	mov $gdt, %edi
	mov $GDT_WORDS, %ecx
	rep movsl
	mov $idt_master, %esi
	mov $idt, %edi
	mov $1024, %ecx
	rep movsl
	mov $tss_master, %esi
	mov $tss, %edi
	mov $26, %ecx
	rep movsl
	mov $tss_master, %esi
	mov $other_tss, %edi
	mov $26, %ecx
	rep movsl
	mov $ldt_master, %esi
	mov $ldt, %edi
	mov $6, %ecx
	rep movsl
	call window_reset
	mov $stack, %edi
	mov $0x5a17c3e9, %eax
	mov $DATA_SIZE / 4 + STACK_SIZE / 4, %ecx
	call pattern
	mov $frames, %edi
	mov $0x1000, %ecx
	call pattern
	mov $0x20, %eax
	mov %rax, %cr4
	mov $top_table, %eax
	mov %rax, %cr3
	mov $0x80010031, %eax
	mov %rax, %cr0
	xor %eax, %eax
	mov %rax, %cr2
	lgdt gdt_pointer
	lidt idt_pointer
	pushq $KERNEL_CODE
	pushq $1f
	lretq
1:	mov $KERNEL_DATA, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	mov %eax, %fs
	mov %eax, %gs
	xor %eax, %eax
	lldt %ax
	mov $TSS, %eax
	ltr %ax
	mov $registers, %esi
1:	lodsl
	mov %eax, %ecx
	jrcxz 2f
	lodsl
	mov %eax, %edx
	lodsl
	wrmsr
	jmp 1b
2:
	movq $0, events
	movq $0, fixup
	mov log_next, %rdi
	cmp $log_limit, %rdi
	jae ended                       /* the next run goes on here */
	movq $START, (%rdi)
	mov index, %rax
	mov %rax, 8(%rdi)
	addq $16, log_next
	call send
	mov current, %rsi
	testl $ARMED, 16(%rsi)
	jz 2f
	call timer_pending
	mov current, %rsi
2:	movq $1, in_snippet
	mov (%rsi), %rax
	mov %rax, entry
	pushq 24(%rsi)
	popfq
	lea 32(%rsi), %rsp
	pop %rdi
	pop %rsi
	pop %rbp
	lea 8(%rsp), %rsp
	pop %rbx
	pop %rdx
	pop %rcx
	pop %rax
	pop %r8
	pop %r9
	pop %r10
	pop %r11
	pop %r12
	pop %r13
	pop %r14
	pop %r15
	mov $SP0, %esp
	jmp *entry

pattern:
	stosl
	imul $1664525, %eax
	add $1013904223, %eax
	dec %ecx
	jnz pattern
	ret

finish:
	cli
	mov $harness_stack, %esp
	mov $KERNEL_DATA, %eax
	mov %eax, %ss
	cld
	movq $0, in_snippet
	mov log_next, %rdi
	movq $FINAL, (%rdi)
	mov index, %rax
	mov %rax, 8(%rdi)
	mov %cr0, %rax
	mov %rax, 16(%rdi)
	mov %cr2, %rax
	mov %rax, 24(%rdi)
	mov %cr3, %rax
	mov %rax, 32(%rdi)
	mov %cr4, %rax
	mov %rax, 40(%rdi)
	mov %dr7, %rax
	mov %rax, 48(%rdi)
	xor %eax, %eax
	mov %rax, %dr7                  /* what follows touches the data */
	sldt %eax
	mov %rax, 56(%rdi)
	str %eax
	mov %rax, 64(%rdi)
	movq $0, 72(%rdi)
	movq $0, 80(%rdi)
	movq $0, 88(%rdi)
	movq $0, 96(%rdi)
	sgdt 72(%rdi)
	sidt 88(%rdi)
	add $104, %rdi
	mov $stack, %esi
	mov $DATA_SIZE / 4 + STACK_SIZE / 4, %ecx
	rep movsl
	mov %rdi, log_next
	mov current, %rsi
	testl $ARMED, 16(%rsi)
	jz 1f
	call pic_reset
1:	call send
	jmp next

send:
	cmpb $0, listener
	je 1f
	mov log_sent, %rsi
	mov log_next, %rcx
	sub %rsi, %rcx
	mov $0xe9, %edx
	rep outsb
1:	mov log_next, %rsi
	mov %rsi, log_sent
	ret

all_done:
	mov log_next, %rdi
	movq $DONE, (%rdi)
	movq $0, 8(%rdi)
	addq $16, log_next
	call send
ended:
	xor %eax, %eax
	out %eax, $0xf4
	cli
	hlt
	jmp ended

/* ---- what arrives ---- */

	.p2align 4
	.set vector, 0
stubs:
	.rept 256
	.p2align 4
	.if vector == 8 || (vector >= 10 && vector <= 14) || vector == 17
	.else
	pushq $0
	.endif
	pushq $vector
	jmp arrived
	.set vector, vector + 1
	.endr

/* On the stack: bases of FS and GS, SS GS FS ES DS, R15 to RAX, vector, error code, RIP CS RFLAGS RSP SS. */
	.set F_VECTOR, 176
	.set F_IP, 192
	.set F_CS, 200
	.set F_FLAGS, 208
	.p2align 4
arrived:
	push %rax
	push %rcx
	push %rdx
	push %rbx
	push %rbp
	push %rsi
	push %rdi
	push %r8
	push %r9
	push %r10
	push %r11
	push %r12
	push %r13
	push %r14
	push %r15
	.irp segment, ds, es, fs, gs, ss
	mov %\segment, %eax
	push %rax
	.endr
	.irp number, 0xc0000101, 0xc0000100
	mov $\number, %ecx
	rdmsr
	shl $32, %rdx
	or %rdx, %rax
	push %rax
	.endr
	cld
	mov log_next, %rdi
	cmp $log_limit, %rdi
	jae ended                       /* the next run goes on here */
	movq $EVENT, (%rdi)
	mov index, %rax
	mov %rax, 8(%rdi)
	add $16, %rdi
	mov %rsp, %rsi
	mov $29, %ecx
	rep movsq
	mov %cr2, %rax
	stosq
	mov %dr6, %rax
	stosq
	mov %rdi, log_next
	call send
	mov $0xffff0ff0, %eax
	mov %rax, %dr6
	cmpq $0, in_snippet
	je ended                        /* the harness itself failed */
	incq events
	cmpq $MAX_EVENTS, events
	jae finish
	mov F_VECTOR(%rsp), %rcx
	mov F_IP(%rsp), %rdx
	cmp $3, %rcx
	jne 1f
	mov current, %rsi
	lea -1(%rdx), %rax
	cmp %rax, 8(%rsi)
	je finish
	jmp resume
1:	cmp $1, %rcx
	je debugged
	cmp $4, %rcx
	je resume
	cmp $0x20, %rcx
	jb fault
	cmp $0x28, %rcx
	jae resume
	mov $0x20, %al
	out %al, $0x20
	mov $0xff, %al
	out %al, $0x21
	jmp resume
debugged:
	cmpq $MAX_EVENTS / 2, events
	jb resume
	andl $~0x100, F_FLAGS(%rsp)
	jmp resume
fault:
	cmp $14, %rcx
	jne 1f
	mov %cr2, %rax
	sub $WINDOW, %rax
	shr $12, %rax
	cmp $64, %rax
	jb 1f
	cmp $512, %rax
	jae 1f
	testl $1, page_table(,%rax,8)
	jnz 1f
	mov %eax, %edx
	and $15, %edx
	shl $12, %edx
	lea frames + 0x67(%rdx), %edx
	mov %rdx, page_table(,%rax,8)
	jmp resume
1:	mov fixup, %rax
	test %rax, %rax
	jz finish
	testb $3, F_CS(%rsp)
	jnz finish
	mov %rax, F_IP(%rsp)
	movq $0, fixup
resume:
	add $56, %rsp
	pop %r15
	pop %r14
	pop %r13
	pop %r12
	pop %r11
	pop %r10
	pop %r9
	pop %r8
	pop %rdi
	pop %rsi
	pop %rbp
	pop %rbx
	pop %rdx
	pop %rcx
	pop %rax
	add $16, %rsp
	iretq

/* ---- what gates and other segments lead to ---- */

gate_target:
	mov %cs, %eax
	mov %rsp, %rdx
	lretq
far_target:
	mov %cs, %eax
	lretl
far_target64:
	mov %cs, %eax
	lretq
	.code32
far_target32:                           /* for CODE32 */
	mov %cs, %eax
	inc %eax
	lret
	.code64

/* ---- tables ---- */

	.data
	.p2align 4
gdt_master:
	.quad 0
	.quad 0x00af9b000000ffff        /* KERNEL_CODE */
	.quad 0x00cf93000000ffff        /* KERNEL_DATA */
	.quad 0x00cffb000000ffff        /* USER_CODE32 */
	.quad 0x00cff3000000ffff        /* USER_DATA */
	.quad 0x00affb000000ffff        /* USER_CODE */
	.quad 0x0000890000000067, 0     /* TSS */
	.quad 0x0000820000000017, 0     /* LDT */
	.quad 0x00cf93001000ffff        /* BASED */
	.quad 0x00cf13000000ffff        /* ABSENT */
	.quad 0x00cf91000000ffff        /* READ_ONLY */
	.quad 0x00af99000000ffff        /* EXECUTE_ONLY */
	.quad 0x00008c0000080000, 0     /* CALL_GATE */
	.quad 0x00af9b000000ffff        /* OTHER_CODE */
	.quad 0x00cf9b000000ffff        /* CODE32 */
	.quad 0x0040930010000fff        /* SMALL */
	.quad 0x00af9f000000ffff        /* CONFORMING */
	.quad 0x0000890000000067, 0     /* OTHER_TSS */
	.quad 0x0000ec0000080000, 0     /* USER_GATE */
	.quad 0x0040970000000fff        /* EXPAND_DOWN */
	.quad 0x00af9b001000ffff        /* CODE_BASED */
	.quad 0x00cff3001000ffff        /* USER_BASED */
gdt_master_end:
	.set GDT_WORDS, (gdt_master_end - gdt_master) / 4
ldt_master:
	.quad 0
	.quad 0x00cf93000000ffff        /* LOCAL_DATA */
	.quad 0x00af9b000000ffff        /* LOCAL_CODE */
tss_master:
	.long 0
	.quad user_trap_stack, 0, 0, 0
	.quad own_stack, 0, 0, 0, 0, 0, 0
	.quad 0
	.long 0x00680000                /* no bitmap */
registers:                              /* model specific registers: number, high half, low half */
	.long 0x174, 0, 0, 0x175, 0, 0, 0x176, 0, 0, 0x277, 0x00070406, 0x00070406
	.long 0xc0000080, 0, 0x901, 0xc0000081, 0, 0, 0xc0000082, 0, 0, 0xc0000084, 0, 0
	.long 0xc0000100, 0, FS_BASE, 0xc0000101, 0, GS_BASE, 0xc0000102, 0, OTHER_GS_BASE, 0
	.p2align 3
	.word 0, 0, 0
gdt_pointer:
	.word gdt_master_end - gdt_master - 1
	.quad gdt
	.word 0, 0, 0
idt_pointer:
	.word 0xfff
	.quad idt
	.word 0, 0, 0
boot_gdt_pointer:
	.word gdt_master_end - gdt_master - 1
	.quad gdt_master

	.bss
	.p2align 12
top_table:
	.skip 4096
pointers:
	.skip 4096
directory:
	.skip 4096
window_directory:
	.skip 4096
page_table:
	.skip 4096
frames:
	.skip 0x10000
	.p2align 4
gdt:
	.skip 256
ldt:
	.skip 32
idt:
	.skip 4096
idt_master:
	.skip 4096
tss:
	.skip 128
other_tss:
	.skip 128
index:
	.skip 8
current:
	.skip 8
entry:
	.skip 8
events:
	.skip 8
fixup:
	.skip 8
in_snippet:
	.skip 8
log_next:
	.skip 8
log_sent:
	.skip 8
listener:
	.skip 8
	.p2align 4
	.skip 0x1000
harness_stack:
	.skip 0x1000
user_trap_stack:
	.skip 0x1000
own_stack:
	.skip STACK_ROOM
user_stack:
	.skip STACK_ROOM
stack:
	.skip STACK_SIZE
data:
	.skip DATA_SIZE
	.skip 0x2000            /* what a segment with a base reaches instead */
scratch:                        /* where code is copied to */
	.skip 0x1000
	.p2align 4
log:
	.skip 0x80000
log_limit:
	.skip 0x4000
	.section .note.GNU-stack, "", @progbits
