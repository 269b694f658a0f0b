/*
 * The i386 kernel around random snippets. Each snippet starts from the same state (descriptor tables, page
 * tables, control registers, PIC, data, stack), runs, and ends in an INT3 behind it. Whatever arrives at a
 * gate is written to `log` with all registers; a last record holds tables, control registers, data and stack.
 *
 * The number at the end of the command line is the first snippet to run. The log stays in memory; where port
 * E9 answers (QEMU's debug console) it is also sent there.
 */
	.set EVENT, 0x544e5645          /* "EVNT" */
	.set START, 0x54525453          /* "STRT" */
	.set FINAL, 0x4c4e4946          /* "FINL" */
	.set DONE, 0x454e4f44           /* "DONE" */
	.set MAX_EVENTS, 24
	.set ARMED, 1                   /* snippet flag: a timer interrupt waits in the 8259 */

	.set KERNEL_CODE, 0x08
	.set KERNEL_DATA, 0x10
	.set USER_CODE, 0x1b
	.set USER_DATA, 0x23
	.set TSS, 0x28
	.set LDT, 0x30
	.set BASED, 0x38                /* data with a base */
	.set ABSENT, 0x40
	.set READ_ONLY, 0x48
	.set EXECUTE_ONLY, 0x50
	.set CALL_GATE, 0x58
	.set TASK_GATE, 0x60
	.set OTHER_TSS, 0x68
	.set OTHER_CODE, 0x70
	.set CODE16, 0x78
	.set SMALL, 0x80                /* base as BASED, but a limit of 4 KiB (which the emulator does not check) */
	.set EXPAND_DOWN, 0x88
	.set CONFORMING, 0x90
	.set USER_GATE, 0x98
	.set ABSENT_GATE, 0xa0
	.set CODE_BASED, 0xa8           /* code with a base */
	.set USER_BASED, 0xb3
	.set LOCAL_DATA, 0x0c           /* in the LDT */
	.set LOCAL_CODE, 0x14
	.set BASE, 0x1000

	.set DATA_SIZE, 1024
	.set STACK_SIZE, 1024
	.set STACK_ROOM, 0x4000         /* below the part of the stack that is recorded */
	.set SP0, stack + 512           /* stack pointer at the start of a snippet */
	.set WINDOW, 0x40000000         /* 4 MiB mapped by `page_table` */

	.section .multiboot, "a"
	.p2align 2
	.long 0x1badb002, 0, -0x1badb002

	.text
	.globl _start
_start:
	cli
	cld
	mov $harness_stack, %esp
	mov %ebx, %ebp                  /* multiboot information */
	lgdt boot_gdt_pointer
	ljmp $KERNEL_CODE, $1f
1:	mov $KERNEL_DATA, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	lcall $KERNEL_CODE, $far_target /* its width is known, whatever selectors snippets use */
	call command_line
	call make_tables
	call make_pages
	mov $log, %edi                  /* code gone astray ends there: FF FF is no instruction */
	mov $-1, %eax
	mov $0x21000, %ecx
	rep stosl
	call pic_reset
	in $0xe9, %al
	cmp $0xe9, %al
	sete listener
	movl $log, log_next
	movl $log, log_sent
	jmp establish

/* The last number of the command line. */
command_line:
	mov 16(%ebp), %esi
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
	lea (%ecx,%ecx,4), %ecx
	lea (%eax,%ecx,2), %ecx
	jmp 1b
3:	mov %ecx, index
	ret

/* Gates and the fields of descriptors that no assembler can split an address into. */
	.macro descriptor_base selector, address
	mov \address, %eax
	mov %ax, gdt_master + (\selector & 0xf8) + 2
	shr $16, %eax
	mov %al, gdt_master + (\selector & 0xf8) + 4
	mov %ah, gdt_master + (\selector & 0xf8) + 7
	.endm
	.macro gate_offset table, number, address
	mov \address, %eax
	mov %ax, \table + \number * 8
	shr $16, %eax
	mov %ax, \table + \number * 8 + 6
	.endm
make_tables:
	descriptor_base TSS, $tss
	descriptor_base OTHER_TSS, $other_tss
	descriptor_base LDT, $ldt
	descriptor_base CODE16, $far_target16-0x10
	gate_offset gdt_master, CALL_GATE / 8, $gate_target
	gate_offset gdt_master, USER_GATE / 8, $gate_target
	gate_offset gdt_master, ABSENT_GATE / 8, $gate_target
	mov $idt_master, %edi
	mov $stubs, %eax
	mov $256, %ecx
1:	mov %ax, (%edi)
	movw $KERNEL_CODE, 2(%edi)
	movw $0x8e00, 4(%edi)
	mov %eax, %edx
	shr $16, %edx
	mov %dx, 6(%edi)
	add $16, %eax
	add $8, %edi
	dec %ecx
	jnz 1b
	movb $0xee, idt_master + 3 * 8 + 5      /* user code may use these */
	movb $0xee, idt_master + 4 * 8 + 5
	movb $0xef, idt_master + 0x80 * 8 + 5
	movb $0x8f, idt_master + 0x31 * 8 + 5   /* trap gate */
	movb $0x0e, idt_master + 0x33 * 8 + 5   /* absent */
	movw $0x00f0, idt_master + 0x34 * 8 + 2 /* a selector behind the GDT's end */
	movw $OTHER_CODE, idt_master + 0x35 * 8 + 2
	movw $TASK_GATE, idt_master + 0x36 * 8 + 2
	movb $0x85, idt_master + 0x37 * 8 + 5   /* task gate */
	movw $OTHER_TSS, idt_master + 0x37 * 8 + 2
	ret

make_pages:
	mov $page_directory, %edi
	mov $0xe7, %eax                 /* 4 MiB, user, writable, accessed and dirty */
	mov $4, %ecx
1:	stosl
	add $0x400000, %eax
	loop 1b
	movl $page_table + 0x67, page_directory + (WINDOW >> 22) * 4
	ret

/*
 * The window: pages 0 to 15 writable, 16 to 31 absent, 32 to 47 read-only, 48 to 63 the supervisor's, all
 * others absent until their first use.
 */
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
	mov $960, %ecx
	rep stosl
	ret
1:	mov $16, %ecx
2:	stosl
	add $0x1000, %eax
	loop 2b
	ret

/* The PIC pair at vectors 20 and 28, all masked; no timer. */
	.macro output port, value
	mov $\value, %al
	out %al, $\port
	.endm
pic_reset:
	output 0x43, 0x30               /* counter 0, mode 0, no count yet: output low */
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

/* Returns when the timer's request waits in the first PIC. */
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
	incl index
establish:
	mov $harness_stack, %esp
	mov index, %eax
	cmp snippet_count, %eax
	jae all_done
	shl $4, %eax
	lea snippets(%eax,%eax,2), %eax /* 48 bytes each */
	mov %eax, current
	xor %eax, %eax
	mov %eax, %dr7
	mov $0xffff0ff0, %eax
	mov %eax, %dr6
	mov $gdt_master, %esi
	mov $gdt, %edi
	mov $GDT_WORDS, %ecx
	rep movsl
	mov $idt_master, %esi
	mov $idt, %edi
	mov $512, %ecx
	rep movsl
	mov $tss_master, %esi
	mov $tss, %edi
	mov $26, %ecx
	rep movsl
	mov $other_tss_master, %esi
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
	mov $0x10, %eax
	mov %eax, %cr4
	mov $page_directory, %eax
	mov %eax, %cr3
	mov $0x80010031, %eax
	mov %eax, %cr0
	xor %eax, %eax
	mov %eax, %cr2
	lgdt gdt_pointer
	lidt idt_pointer
	ljmp $KERNEL_CODE, $1f
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
	jecxz 2f
	lodsl
	mov %eax, %edx
	lodsl
	wrmsr
	jmp 1b
2:
	movl $0, events
	movl $0, fixup
	mov log_next, %edi
	cmp $log_limit, %edi
	jae ended                       /* the next run goes on here */
	movl $START, (%edi)
	mov index, %eax
	mov %eax, 4(%edi)
	addl $8, log_next
	call send
	mov current, %esi
	testl $ARMED, 8(%esi)
	jz 2f
	call timer_pending
	mov current, %esi
2:	movl $1, in_snippet
	mov (%esi), %eax
	mov %eax, entry
	pushl 12(%esi)
	popf
	lea 16(%esi), %esp
	popa
	mov $SP0, %esp
	jmp *entry

/* ECX words from EDI on, EAX the first. */
pattern:
	stosl
	imul $1664525, %eax
	add $1013904223, %eax
	dec %ecx
	jnz pattern
	ret

finish:
	cli
	mov $KERNEL_DATA, %eax
	mov %eax, %ss
	mov $harness_stack, %esp
	mov %eax, %ds
	mov %eax, %es
	cld
	movl $0, in_snippet
	mov log_next, %edi
	movl $FINAL, (%edi)
	mov index, %eax
	mov %eax, 4(%edi)
	mov %cr0, %eax
	mov %eax, 8(%edi)
	mov %cr2, %eax
	mov %eax, 12(%edi)
	mov %cr3, %eax
	mov %eax, 16(%edi)
	mov %cr4, %eax
	mov %eax, 20(%edi)
	mov %dr7, %eax
	mov %eax, 24(%edi)
	xor %eax, %eax
	mov %eax, %dr7                  /* what follows touches the data */
	sldt %eax
	mov %eax, 28(%edi)
	str %eax
	mov %eax, 32(%edi)
	movl $0, 36(%edi)
	movl $0, 44(%edi)
	sgdt 36(%edi)
	sidt 44(%edi)
	add $52, %edi
	mov $stack, %esi
	mov $DATA_SIZE / 4 + STACK_SIZE / 4, %ecx
	rep movsl
	mov %edi, log_next
	mov current, %esi
	testl $ARMED, 8(%esi)
	jz 1f
	call pic_reset
1:	call send
	jmp next

/* What is new in the log, to whoever listens. */
send:
	cmpb $0, listener
	je 1f
	mov log_sent, %esi
	mov log_next, %ecx
	sub %esi, %ecx
	mov $0xe9, %edx
	rep outsb
1:	mov log_next, %esi
	mov %esi, log_sent
	ret

all_done:
	mov log_next, %edi
	movl $DONE, (%edi)
	movl $0, 4(%edi)
	addl $8, log_next
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
	push $0
	.endif
	push $vector
	jmp arrived
	.set vector, vector + 1
	.endr

/* On the stack: SS GS FS ES DS, PUSHA's eight, vector, error code, EIP CS EFLAGS and, from user code, ESP SS. */
	.set F_VECTOR, 52
	.set F_IP, 60
	.set F_CS, 64
	.set F_FLAGS, 68
	.p2align 4
arrived:
	pusha
	push %ds
	push %es
	push %fs
	push %gs
	mov %ss, %eax
	push %eax
	mov $KERNEL_DATA, %eax
	mov %eax, %ds
	mov %eax, %es
	cld
	mov log_next, %edi
	cmp $log_limit, %edi
	jae ended                       /* the next run goes on here */
	movl $EVENT, (%edi)
	mov index, %eax
	mov %eax, 4(%edi)
	add $8, %edi
	mov %esp, %esi
	mov $20, %ecx
	rep movsl %ss:(%esi), %es:(%edi)
	mov %cr2, %eax
	stosl
	mov %dr6, %eax
	stosl
	mov %edi, log_next
	call send
	mov $0xffff0ff0, %eax
	mov %eax, %dr6
	cmpl $0, in_snippet
	je ended                        /* the harness itself failed */
	incl events
	cmpl $MAX_EVENTS, events
	jae finish
	mov %ss:F_VECTOR(%esp), %ecx
	mov %ss:F_IP(%esp), %edx
	cmp $3, %ecx
	jne 1f
	mov current, %esi
	lea -1(%edx), %eax
	cmp %eax, 4(%esi)
	je finish
	jmp resume
1:	cmp $1, %ecx
	je debugged
	cmp $4, %ecx
	je resume
	cmp $0x20, %ecx
	jb fault
	cmp $0x28, %ecx
	jae resume
	mov $0x20, %al                  /* end of interrupt */
	out %al, $0x20
	mov $0xff, %al
	out %al, $0x21
	jmp resume
debugged:
	cmpl $MAX_EVENTS / 2, events
	jb resume
	andl $~0x100, %ss:F_FLAGS(%esp)
	jmp resume
/* Pages of the window from 64 on appear on first use; else a snippet may name a place to go on at. */
fault:
	cmp $14, %ecx
	jne 1f
	mov %cr2, %eax
	sub $WINDOW, %eax
	shr $12, %eax
	cmp $64, %eax
	jb 1f
	cmp $1024, %eax
	jae 1f
	testl $1, page_table(,%eax,4)
	jnz 1f
	mov %eax, %edx
	and $15, %edx
	shl $12, %edx
	lea frames + 0x67(%edx), %edx
	mov %edx, page_table(,%eax,4)
	jmp resume
1:	mov fixup, %eax
	test %eax, %eax
	jz finish
	testb $3, %ss:F_CS(%esp)
	jnz finish
	mov %eax, %ss:F_IP(%esp)
	movl $0, fixup
resume:
	add $4, %esp
	pop %gs
	pop %fs
	pop %es
	pop %ds
	popa
	add $8, %esp
	iret

/* ---- what gates and other segments lead to ---- */

gate_target:
	mov %cs, %eax
	mov %esp, %edx
	lret
far_target:
	mov %cs, %eax
	lret
far_target16:                           /* for CODE16: decoded as 16-bit code */
	.code16
	pop %ax
	pop %dx
	ud2
	.code32
task_target:
	mov %cs, %eax
	pushf
	pop %edx
	iret
	jmp task_target

/* ---- tables ---- */

	.data
	.p2align 4
gdt_master:
	.quad 0
	.quad 0x00cf9b000000ffff        /* KERNEL_CODE */
	.quad 0x00cf93000000ffff        /* KERNEL_DATA */
	.quad 0x00cffb000000ffff        /* USER_CODE */
	.quad 0x00cff3000000ffff        /* USER_DATA */
	.quad 0x0000890000000067        /* TSS */
	.quad 0x0000820000000017        /* LDT */
	.quad 0x00cf93001000ffff        /* BASED */
	.quad 0x00cf13000000ffff        /* ABSENT */
	.quad 0x00cf91000000ffff        /* READ_ONLY */
	.quad 0x00cf99000000ffff        /* EXECUTE_ONLY */
	.quad 0x00008c0000080000        /* CALL_GATE */
	.quad 0x0000850000680000        /* TASK_GATE */
	.quad 0x0000890000000067        /* OTHER_TSS */
	.quad 0x00cf9b000000ffff        /* OTHER_CODE */
	.quad 0x008f9b000000ffff        /* CODE16 */
	.quad 0x0040930010000fff        /* SMALL */
	.quad 0x0040970000000fff        /* EXPAND_DOWN */
	.quad 0x00cf9f000000ffff        /* CONFORMING */
	.quad 0x0000ec0000080000        /* USER_GATE */
	.quad 0x00000c0000080000        /* ABSENT_GATE */
	.quad 0x00cf9b001000ffff        /* CODE_BASED */
	.quad 0x00cff3001000ffff        /* USER_BASED */
gdt_master_end:
	.set GDT_WORDS, (gdt_master_end - gdt_master) / 4
ldt_master:
	.quad 0
	.quad 0x00cf93000000ffff        /* LOCAL_DATA */
	.quad 0x00cf9b000000ffff        /* LOCAL_CODE */
tss_master:
	.long 0, user_trap_stack, KERNEL_DATA, 0, 0, 0, 0
	.long page_directory            /* a switch does not store CR3 */
	.fill 17, 4, 0
	.long 0x00680000                /* no bitmap */
other_tss_master:
	.long 0, user_trap_stack, KERNEL_DATA, 0, 0, 0, 0
	.long page_directory, task_target, 2
	.long 0x101, 0x102, 0x103, 0x104
	.long other_stack, 0x106, 0x107, 0x108
	.long KERNEL_DATA, KERNEL_CODE, KERNEL_DATA, KERNEL_DATA, KERNEL_DATA, KERNEL_DATA
	.long 0, 0x00680000
registers:                              /* model specific registers: number, high half, low half */
	.long 0x174, 0, 0, 0x175, 0, 0, 0x176, 0, 0, 0x277, 0x00070406, 0x00070406, 0
	.p2align 2
	.word 0
gdt_pointer:
	.word gdt_master_end - gdt_master - 1
	.long gdt
	.word 0
idt_pointer:
	.word 0x7ff
	.long idt
	.word 0
boot_gdt_pointer:
	.word gdt_master_end - gdt_master - 1
	.long gdt_master

	.bss
	.p2align 12
page_directory:
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
	.skip 2048
idt_master:
	.skip 2048
tss:
	.skip 128
other_tss:
	.skip 128
index:
	.skip 4
current:
	.skip 4
entry:
	.skip 4
events:
	.skip 4
fixup:
	.skip 4
in_snippet:
	.skip 4
log_next:
	.skip 4
log_sent:
	.skip 4
listener:
	.skip 4
	.p2align 4
	.skip 0x1000
harness_stack:
	.skip 0x1000
user_trap_stack:
	.skip 0x1000
other_stack:
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
	.globl log
log:
	.skip 0x80000
log_limit:
	.skip 0x4000
	.section .note.GNU-stack, "", @progbits
