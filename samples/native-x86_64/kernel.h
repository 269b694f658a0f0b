/* What the chapters of the x86-64 native sample share. */
#ifndef SAMPLES_NATIVE_X86_64_KERNEL_H
#define SAMPLES_NATIVE_X86_64_KERNEL_H

#include "layout.h"
#include "types.h"

struct table_pointer {
	u16 limit;
	u64 base;
} __attribute__((packed));

struct tss {
	u32 reserved;
	u64 rsp[3], reserved2, ist[7], reserved3;
	u16 reserved4, io_map;
} __attribute__((packed));

struct gate {
	u64 low, high;
};

/* What GS points to in the kernel. */
struct cpu {
	u64 kernel_sp, user_sp;
};

extern u64 gdt[GDT_ENTRIES];
extern struct table_pointer gdt_pointer, idt_pointer;
extern struct gate idt[0x81];
extern struct tss tss;
extern struct cpu cpu;
extern u8 trap_stack[8192]; /* where traps from user mode arrive */
extern u8 ist_stack[4096];  /* where vector IST_INTERRUPT arrives */

#define IST_INTERRUPT 0x33

u64 descriptor(u32 base, u32 limit, u8 access, u8 attributes);
/* A 16-byte descriptor of a TSS or LDT: two entries of the GDT. */
void system_descriptor(u32 selector, u64 base, u32 limit, u8 access);

static inline u64 physical(const volatile void *address)
{
	return (u64)address - KERNEL_BASE;
}

void user_enter(u64 ip, u64 sp, u64 flags, u64 argument, u64 code_selector);
void user_enter_lret(u64 ip, u64 sp);
extern u64 user_result; /* what user mode passed to SYS_EXIT */
extern u64 syscall_seen[6]; /* RCX, R11, CS, SS, flags, RSP */
void syscall_entry(void);
void sysenter_entry(void);
void long_mode_round_trip(ulong by_return);

#endif
