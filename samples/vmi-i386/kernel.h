/* What the chapters of the VMI sample share. */
#ifndef SAMPLES_VMI_KERNEL_H
#define SAMPLES_VMI_KERNEL_H

#include "check.h"
#include "traps.h"
#include "vmi.h"

extern u64 gdt[GDT_ENTRIES], idt[256];
extern u32 multiboot_info;
extern volatile u32 ticks, tick_vector; /* interrupts from IRQ_BASE on */
extern volatile struct trap_record tick_trap;
extern volatile u32 *tick_word; /* set to 1 by the next one, if not null */
extern u32 user_result, sysenter_cs, sysenter_esp;
extern u8 trap_stack[8192];
extern u32 entry_size; /* of page tables: 4, or 8 with PAE */

enum { LVTT_VECTOR = 0x60 };

/* boot.S, trap_entry.S */
void irq_disable(void);
void irq_enable(void);
u32 irq_save(void);
void irq_restore(u32 flags);
void io_delay(void);
void user_enter(u32 ip, u32 sp, u32 flags);
void user_sysexit(u32 ip, u32 sp);
void sysenter_entry(void);
void vmi_registers(u32 entry, u32 *registers);

/* paging.c */
void paging_init(void);
void *leaf(u32 linear);          /* the entry that maps it, 0 if there is no table */
void set_leaf(u32 linear, u32 value, u32 flags);
void add_table(u32 linear);
u32 root_of_copy(void);
extern u32 root;

/* trap.c */
void gate(u64 *table, u32 vector, u32 kind);
void pic_init(void);
void pic_mask(u8 mask);

void find_rom(void);
void start_vmi(void);
void test_registers(void);
void test_tables(void);
void test_interrupts(void);
void test_memory(void);
void test_user(void);
void test_ports(void);
void test_time(void);
void test_conventions(void);

static inline u64 vmi0(enum vmi_call n)
{
	return vmi(n, 0, 0, 0);
}

#endif
