/*
 * KVM's guest interface: names and numbers from the kernel's Documentation/virt/kvm/x86
 * (hypercalls.rst, msr.rst, cpuid.rst).
 */
#ifndef SAMPLES_KVM_H
#define SAMPLES_KVM_H

#include "control.h"
#include "traps.h"
#include "types.h"

/* CPUID, offset from the leaf that carries the signature */
#define KVM_CPUID_FEATURES 1

enum feature { /* bits of EAX in the feature leaf */
	CLOCKSOURCE = 0, NOP_IO_DELAY = 1, MMU_OP = 2, CLOCKSOURCE2 = 3, ASYNC_PF = 4,
	STEAL_TIME = 5, PV_EOI = 6, PV_UNHALT = 7, PV_TLB_FLUSH = 9, ASYNC_PF_VMEXIT = 10,
	PV_SEND_IPI = 11, POLL_CONTROL = 12, PV_SCHED_YIELD = 13, ASYNC_PF_INT = 14,
	MSI_EXT_DEST_ID = 15, HC_MAP_GPA_RANGE = 16, MIGRATION_CONTROL = 17,
	CLOCKSOURCE_STABLE = 24,
};
#define KNOWN_FEATURES 0x0103feffu

enum hypercall {
	HC_VAPIC_POLL_IRQ = 1, HC_FEATURES = 3, HC_PPC_MAP_MAGIC_PAGE = 4, HC_KICK_CPU = 5,
	HC_MIPS_GET_CLOCK_FREQ = 6, HC_MIPS_EXIT_VM = 7, HC_MIPS_CONSOLE_OUTPUT = 8,
	HC_CLOCK_PAIRING = 9, HC_SEND_IPI = 10, HC_SCHED_YIELD = 11, HC_MAP_GPA = 12,
};

enum error { KVM_EPERM = 1, KVM_EFAULT = 14, KVM_EINVAL = 22, KVM_EOPNOTSUPP = 95, KVM_ENOSYS = 1000 };

#define MSR_WALL_CLOCK_OLD 0x11u
#define MSR_SYSTEM_TIME_OLD 0x12u
#define MSR_WALL_CLOCK 0x4b564d00u
#define MSR_SYSTEM_TIME 0x4b564d01u
#define MSR_ASYNC_PF_EN 0x4b564d02u
#define MSR_STEAL_TIME 0x4b564d03u
#define MSR_PV_EOI_EN 0x4b564d04u
#define MSR_POLL_CONTROL 0x4b564d05u
#define MSR_ASYNC_PF_INT 0x4b564d06u
#define MSR_MIGRATION_CONTROL 0x4b564d08u
#define MSR_NO_SUCH 0x4b564dffu

struct wall_clock { /* time of day at the start of the virtual machine */
	u32 version, seconds, nanoseconds;
};

struct system_time { /* version is odd while the host writes */
	u32 version, pad;
	u64 tsc_timestamp, system_time; /* ns */
	u32 tsc_to_system_mul;
	s8 tsc_shift;
	u8 flags, pad2[2];
};

struct steal_time {
	u64 steal; /* ns */
	u32 version, flags;
	u8 preempted, pad[47];
};

struct clock_pairing {
	s64 seconds, nanoseconds;
	u64 tsc;
	u32 flags, pad[9];
};

_Static_assert(sizeof(struct system_time) == 32, "layout");
_Static_assert(sizeof(struct steal_time) == 64, "layout");
_Static_assert(sizeof(struct clock_pairing) == 64, "layout");

/* cpu.c */
u32 kvm_base(void); /* leaf of the signature, 0 without KVM */
u32 kvm_features(void);
int kvm_has(enum feature feature);
s64 hypercall(u64 number, u64 a0, u64 a1, u64 a2, u64 a3);
/* The MSR write either worked (NO_TRAP) or raised something. */
u64 msr_try_write(u32 index, u64 value);
u64 msr_try_read(u32 index, u64 *value);
s64 from_user_mode(void *program);

/* the chapters */
void test_detection(void);
void test_hypercalls(void);
void test_clocks(void);
void test_registers(void);

#endif
