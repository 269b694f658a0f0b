/* What the chapters of the Xen sample share. */
#ifndef SAMPLES_XEN_KERNEL_H
#define SAMPLES_XEN_KERNEL_H

#include "traps.h"
#include "xen.h"

enum { EVENT = 0x100, FAILSAFE = 0x101, SYSCALL = 0x102 }; /* entries that are not vectors */

typedef u64 table[512] __attribute__((aligned(4096)));

extern struct start_info *start_info;
extern volatile struct shared_info *shared;
extern u64 user_result; /* RBX of user mode at its last trap */
extern volatile u32 events; /* event upcalls so far */
extern volatile u64 event_ports; /* ports 0 to 63 that were seen pending */

/* memory.c: pseudo-physical, machine, and the entries between them */
u64 machine_frame(const volatile void *address);
u64 *table_entry(const volatile void *address); /* the level-1 entry that maps it */
s64 map_read_only(const volatile void *page);
s64 map_writable(const volatile void *page);
void shared_info_map(void);

void user_enter(u64 ip, u64 sp);
int is_initial_domain(void);

void test_boot(void);
void test_version(void);
void test_tables(void);
void test_traps(void);
void test_memory(void);
void test_mapping(void);
void test_user(void);
void test_events(void);
void test_time(void);
void test_virtual_cpu(void);
void test_others(void);

#define PRESENT 1ull
#define WRITABLE 2ull
#define USER 4ull
#define ACCESSED 0x20ull
#define DIRTY 0x40ull
#define WILD ((void *)0x123456789000) /* no page of ours */

#endif
