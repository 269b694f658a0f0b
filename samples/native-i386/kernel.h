/* What the chapters of the i386 native sample share. */
#ifndef SAMPLES_NATIVE_I386_KERNEL_H
#define SAMPLES_NATIVE_I386_KERNEL_H

#include "layout.h"
#include "types.h"

struct table_pointer {
	u16 limit;
	u32 base;
} __attribute__((packed));

struct tss {
	u32 back, esp0, ss0, others[22];
	u16 trap, io_map;
} __attribute__((packed));

extern u64 gdt[GDT_ENTRIES];
extern struct table_pointer gdt_pointer, idt_pointer;
extern u64 idt[0x81];
extern struct tss tss;
extern u8 trap_stack[8192]; /* where traps from user mode arrive */

u64 descriptor(u32 base, u32 limit, u8 access, u8 attributes);

void user_enter(u32 ip, u32 sp, u32 flags, u32 argument);
void user_enter_lret(u32 ip, u32 sp);
extern u32 user_result; /* what user mode passed to SYS_EXIT */
extern u32 sysenter_seen[4]; /* CS, SS, ESP, flags */
void sysenter_entry(void);

#endif
