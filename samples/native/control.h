/* Control register bits and accessors. */
#ifndef SAMPLES_CONTROL_H
#define SAMPLES_CONTROL_H

#include "types.h"

#define CR0_PE (1ul << 0)
#define CR0_MP (1ul << 1)
#define CR0_EM (1ul << 2)
#define CR0_TS (1ul << 3)
#define CR0_NE (1ul << 5)
#define CR0_WP (1ul << 16)
#define CR0_AM (1ul << 18)
#define CR0_PG (1ul << 31)
#define CR4_TSD (1ul << 2)
#define CR4_DE (1ul << 3)
#define CR4_PSE (1ul << 4)
#define CR4_PAE (1ul << 5)
#define CR4_PGE (1ul << 7)
#define CR4_OSFXSR (1ul << 9)
#define CR4_FSGSBASE (1ul << 16)
#define CR4_PCIDE (1ul << 17)
#define CR4_OSXSAVE (1ul << 18)
#define CR4_SMAP (1ul << 21)

#ifdef __x86_64__
#define WORD_REG(name) "r" name
#else
#define WORD_REG(name) "e" name
#endif

#define CONTROL_REGISTER(n)                                                    \
	static inline ulong cr##n##_read(void)                                 \
	{                                                                      \
		ulong value;                                                   \
		asm volatile("mov %%cr" #n ", %0" : "=r"(value) : : "memory"); \
		return value;                                                  \
	}                                                                      \
	static inline void cr##n##_write(ulong value)                          \
	{                                                                      \
		asm volatile("mov %0, %%cr" #n : : "r"(value) : "memory");     \
	}

CONTROL_REGISTER(0)
CONTROL_REGISTER(2)
CONTROL_REGISTER(3)
CONTROL_REGISTER(4)

static inline void page_invalidate(ulong address)
{
	asm volatile("invlpg (%0)" : : "r"(address) : "memory");
}

struct cpuid {
	u32 eax, ebx, ecx, edx;
};

static inline struct cpuid cpuid(u32 leaf, u32 subleaf)
{
	struct cpuid r;

	asm volatile("cpuid" : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx)
		     : "a"(leaf), "c"(subleaf));
	return r;
}

static inline u64 msr_read(u32 index)
{
	u32 low, high;

	asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(index));
	return (u64)high << 32 | low;
}

static inline void msr_write(u32 index, u64 value)
{
	asm volatile("wrmsr" : : "c"(index), "a"((u32)value), "d"((u32)(value >> 32)) : "memory");
}

static inline u64 tsc_read(void)
{
	u32 low, high;

	asm volatile("rdtsc" : "=a"(low), "=d"(high));
	return (u64)high << 32 | low;
}

enum {
	MSR_SYSENTER_CS = 0x174, MSR_SYSENTER_SP = 0x175,
	MSR_SYSENTER_IP = 0x176,
};
#define MSR_EFER 0xc0000080u
#define MSR_STAR 0xc0000081u
#define MSR_LSTAR 0xc0000082u
#define MSR_CSTAR 0xc0000083u
#define MSR_SYSCALL_MASK 0xc0000084u
#define MSR_FS_BASE 0xc0000100u
#define MSR_GS_BASE 0xc0000101u
#define MSR_KERNEL_GS_BASE 0xc0000102u
#define EFER_SCE 1ull
#define EFER_LME (1ull << 8)
#define EFER_LMA (1ull << 10)
#define EFER_NXE (1ull << 11)

#endif
