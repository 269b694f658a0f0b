/* What the chapters of the Xen samples share; `frame.h` is the width's own. */
#ifndef SAMPLES_XEN_KERNEL_H
#define SAMPLES_XEN_KERNEL_H

#include "traps.h"
#include "xen.h"

enum { EVENT = 0x100, FAILSAFE = 0x101, SYSCALL = 0x102 }; /* entries that are not vectors */

struct trap_frame;

typedef u64 table[512] __attribute__((aligned(4096)));

extern struct start_info *start_info;
extern volatile struct shared_info *shared;
extern ulong user_result; /* RBX or EBX of user mode at its last trap */
extern volatile u32 events; /* event upcalls so far */
extern volatile ulong event_ports; /* ports of the first word that were seen pending */

/* memory.c: pseudo-physical, machine, and the entries between them */
u64 machine_frame(const volatile void *address);
void *frame_address(ulong machine_frame); /* where a frame of ours is mapped */
u64 *table_entry(const volatile void *address); /* the level-1 entry that maps it */
long map_page(const volatile void *page, u64 flags); /* at its own place */
long map_read_only(const volatile void *page);
long map_writable(const volatile void *page);
void shared_info_map(void);

/* frame.c: the width's part of trap delivery */
long callbacks_register(void);
/* Go on at trap_resume, with its stack pointer. */
struct trap_frame *trap_resume_at(struct trap_frame *f);
/* The frame is what hardware pushes for a trap at `ip` in the kernel. */
void expect_kernel_frame(ulong vector, const u8 *ip);

/* events.c: what interrupts on and off are on Xen */
void events_enable(void);
void events_disable(void);

void user_enter(ulong ip, ulong sp);
int is_initial_domain(void);

void test_boot(void);
void test_version(void);
void test_tables(void); /* the width's own */
void test_traps(void);
void test_memory(void);
void test_mapping(void);
void test_user(void); /* the width's own */
void test_events(void);
void test_time(void);
void test_virtual_cpu(void);
void test_others(void);
void test_entries(void);
void test_grants(void);
void test_queues(void);

#define PRESENT 1ull
#define WRITABLE 2ull
#define USER 4ull
#define ACCESSED 0x20ull
#define DIRTY 0x40ull
#define WILD ((void *)AT_WIDTH(0x20000000, 0x123456789000)) /* no page of ours */

#endif
