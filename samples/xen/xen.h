/*
 * Xen's interface for paravirtualized guests of either width: names, numbers and layouts as
 * in Xen's public headers (xen/include/public). For C and for the assembler.
 */
#ifndef SAMPLES_XEN_H
#define SAMPLES_XEN_H

#ifdef __x86_64__
#define KERNEL_BASE 0xffffffff80000000
#define FLAT_KERNEL_CODE 0xe033
#define FLAT_KERNEL_STACK 0xe02b
#define FLAT_USER_CODE 0xe033
#define FLAT_USER_STACK 0xe02b
#define HOLE_START 0xffff800000000000 /* from here on the address space is Xen's */
#else
#define KERNEL_BASE 0xc0000000
#define FLAT_KERNEL_CODE 0xe019
#define FLAT_KERNEL_STACK 0xe021
#define FLAT_USER_CODE 0xe02b
#define FLAT_USER_STACK 0xe033
#define HOLE_START 0xf5800000
#endif

#define HYPERVISOR_set_trap_table 0
#define HYPERVISOR_mmu_update 1
#define HYPERVISOR_set_gdt 2
#define HYPERVISOR_stack_switch 3
#define HYPERVISOR_set_callbacks 4
#define HYPERVISOR_fpu_taskswitch 5
#define HYPERVISOR_sched_op_compat 6
#define HYPERVISOR_platform_op 7
#define HYPERVISOR_set_debugreg 8
#define HYPERVISOR_get_debugreg 9
#define HYPERVISOR_update_descriptor 10
#define HYPERVISOR_memory_op 12
#define HYPERVISOR_multicall 13
#define HYPERVISOR_update_va_mapping 14
#define HYPERVISOR_set_timer_op 15
#define HYPERVISOR_event_channel_op_compat 16
#define HYPERVISOR_xen_version 17
#define HYPERVISOR_console_io 18
#define HYPERVISOR_physdev_op_compat 19
#define HYPERVISOR_grant_table_op 20
#define HYPERVISOR_vm_assist 21
#define HYPERVISOR_update_va_mapping_otherdomain 22
#define HYPERVISOR_iret 23
#define HYPERVISOR_vcpu_op 24
#define HYPERVISOR_set_segment_base 25
#define HYPERVISOR_mmuext_op 26
#define HYPERVISOR_xsm_op 27
#define HYPERVISOR_nmi_op 28
#define HYPERVISOR_sched_op 29
#define HYPERVISOR_callback_op 30
#define HYPERVISOR_event_channel_op 32
#define HYPERVISOR_physdev_op 33
#define HYPERVISOR_hvm_op 34
#define HYPERVISOR_sysctl 35
#define HYPERVISOR_domctl 36
#define HYPERVISOR_kexec_op 37

#ifndef __ASSEMBLER__
#include "types.h"

enum xen_error {
	XEN_EPERM = 1, XEN_ENOENT = 2, XEN_ESRCH = 3, XEN_EFAULT = 14, XEN_EACCES = 13,
	XEN_EBUSY = 16, XEN_EEXIST = 17, XEN_ENODEV = 19, XEN_EINVAL = 22, XEN_ENOSYS = 38,
	XEN_EOPNOTSUPP = 95,
};

#define DOMID_SELF 0x7ff0u
#define DOMID_NONE 0x7ef0u /* no such domain */

#define SIF_PRIVILEGED 1u
#define SIF_INITDOMAIN 2u

struct start_info {
	char magic[32];
	ulong nr_pages, shared_info; /* machine address */
	u32 flags;
	ulong store_mfn;
	u32 store_evtchn;
	struct {
		ulong mfn;
		u32 evtchn;
	} console;
	ulong pt_base, nr_pt_frames, mfn_list, mod_start, mod_len;
	char cmd_line[1024];
	ulong first_p2m_pfn, nr_p2m_frames;
};

struct time_info { /* version is odd while Xen writes */
	u32 version, pad;
	u64 tsc_timestamp, system_time; /* ns */
	u32 tsc_to_system_mul;
	s8 tsc_shift;
	u8 flags, pad2[2];
};

struct vcpu_info {
	u8 upcall_pending, upcall_mask;
	ulong pending_sel, cr2;
#ifdef __x86_64__
	ulong pad;
#else
	ulong pad[5];
#endif
	struct time_info time;
};

#define EVENT_WORDS (8 * sizeof(ulong)) /* words of as many bits each */

struct shared_info {
	struct vcpu_info vcpu_info[32];
	ulong evtchn_pending[EVENT_WORDS], evtchn_mask[EVENT_WORDS];
	u32 wc_version, wc_sec, wc_nsec;
};

struct trap_info {
	u8 vector, flags; /* flags: privilege that may use INT n, EVENTS_OFF */
	u16 cs;
	ulong address;
};

#define EVENTS_OFF 4 /* the handler starts with events masked */

struct mmu_update {
	u64 ptr, val;
};

struct mmuext_op {
	u32 cmd;
	ulong arg1, arg2;
};

struct multicall_entry {
	ulong op, result, args[6];
};

enum mmuext {
	PIN_L1_TABLE = 0, PIN_L4_TABLE = 3, UNPIN_TABLE = 4, NEW_BASEPTR = 5,
	TLB_FLUSH_LOCAL = 6, INVLPG_LOCAL = 7, TLB_FLUSH_ALL = 10, INVLPG_ALL = 11,
	FLUSH_CACHE = 12, SET_LDT = 13, NEW_USER_BASEPTR = 15, CLEAR_PAGE = 16, COPY_PAGE = 17,
};

enum update_flag { UVMF_NONE = 0, UVMF_TLB_FLUSH = 1, UVMF_INVLPG = 2 };

enum sched { SCHED_YIELD = 0, SCHED_BLOCK = 1, SCHED_SHUTDOWN = 2, SCHED_POLL = 3 };

enum evtchn {
	EVTCHN_BIND_INTERDOMAIN = 0, EVTCHN_BIND_VIRQ = 1, EVTCHN_CLOSE = 3, EVTCHN_SEND = 4,
	EVTCHN_STATUS = 5, EVTCHN_ALLOC_UNBOUND = 6, EVTCHN_BIND_IPI = 7, EVTCHN_BIND_VCPU = 8,
	EVTCHN_UNMASK = 9,
};

enum { VIRQ_TIMER = 0 };

#ifdef __x86_64__
#define AT_WIDTH(i386, x86_64) (x86_64)
#else
#define AT_WIDTH(i386, x86_64) (i386)
#endif
#define LAYOUT(type, field, i386, x86_64) \
	_Static_assert(__builtin_offsetof(type, field) == AT_WIDTH(i386, x86_64), "layout")

LAYOUT(struct start_info, flags, 0x28, 0x30);
LAYOUT(struct start_info, pt_base, 0x3c, 0x58);
LAYOUT(struct start_info, cmd_line, 0x50, 0x80);
LAYOUT(struct vcpu_info, cr2, 0x08, 0x10);
LAYOUT(struct vcpu_info, time, 0x20, 0x20);
LAYOUT(struct shared_info, evtchn_mask, 0x880, 0xa00);
LAYOUT(struct shared_info, wc_version, 0x900, 0xc00);
_Static_assert(sizeof(struct vcpu_info) == 0x40, "layout");
_Static_assert(sizeof(struct trap_info) == AT_WIDTH(8, 16), "layout");
_Static_assert(sizeof(struct mmuext_op) == AT_WIDTH(12, 24), "layout");
_Static_assert(sizeof(struct multicall_entry) == AT_WIDTH(32, 64), "layout");

long hypercall(ulong number, ulong a1, ulong a2, ulong a3, ulong a4, ulong a5);

/* By number of arguments, so that calls read well. */
#define HC1(name, a) hypercall(HYPERVISOR_##name, (ulong)(a), 0, 0, 0, 0)
#define HC2(name, a, b) hypercall(HYPERVISOR_##name, (ulong)(a), (ulong)(b), 0, 0, 0)
#define HC3(name, a, b, c) \
	hypercall(HYPERVISOR_##name, (ulong)(a), (ulong)(b), (ulong)(c), 0, 0)
#define HC4(name, a, b, c, d) \
	hypercall(HYPERVISOR_##name, (ulong)(a), (ulong)(b), (ulong)(c), (ulong)(d), 0)

/* Calls with 64-bit arguments, which are pairs of registers to 32-bit guests. */
#ifdef __x86_64__
static inline long update_va_mapping(const volatile void *address, u64 entry, ulong flags)
{
	return hypercall(HYPERVISOR_update_va_mapping, (ulong)address, entry, flags, 0, 0);
}
static inline long update_descriptor(u64 machine_address, u64 value)
{
	return hypercall(HYPERVISOR_update_descriptor, machine_address, value, 0, 0, 0);
}
static inline long set_timer_op(u64 ns)
{
	return hypercall(HYPERVISOR_set_timer_op, ns, 0, 0, 0, 0);
}
#else
static inline long update_va_mapping(const volatile void *address, u64 entry, ulong flags)
{
	return hypercall(HYPERVISOR_update_va_mapping, (ulong)address, (ulong)entry,
			 (ulong)(entry >> 32), flags, 0);
}
static inline long update_descriptor(u64 machine_address, u64 value)
{
	return hypercall(HYPERVISOR_update_descriptor, (ulong)machine_address,
			 (ulong)(machine_address >> 32), (ulong)value, (ulong)(value >> 32), 0);
}
static inline long set_timer_op(u64 ns)
{
	return hypercall(HYPERVISOR_set_timer_op, (ulong)ns, (ulong)(ns >> 32), 0, 0, 0);
}
#endif
#endif
#endif
