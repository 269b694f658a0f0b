/*
 * VMware's VMI, API 3.0, as Linux 2.6.21 .. 2.6.36 used it (arch/x86/kernel/vmi_32.c,
 * include/asm-i386/vmi.h, vmi_time.h). Calls take their arguments in EAX, EDX, ECX and on the
 * stack, answer in EAX or EDX:EAX, and may destroy EAX, ECX, EDX and the flags.
 *
 * For C and for the assembler.
 */
#ifndef SAMPLES_VMI_H
#define SAMPLES_VMI_H

#define SEL_KERNEL_CODE 0x08 /* SYSENTER wants these four in this order */
#define SEL_KERNEL_DATA 0x10
#define SEL_USER_CODE 0x1b
#define SEL_USER_DATA 0x23
#define SEL_TSS 0x28
#define SEL_LDT 0x30
#define SEL_FREE 0x38
#define GDT_FREE_ENTRY 7
#define GDT_ENTRIES 8
#define KERNEL_RPL 1 /* after VMI_Init */

#define USER_CODE 0x08048000
#define USER_STACK_TOP 0x0804a000
#define ALIAS 0x40000000
#define UNMAPPED 0x40001000

#define SYS_EXIT 0 /* ebx: result */
#define SYS_ADD 1  /* eax = ebx + ecx */

#define VMI_SIGNATURE 0x696d5663 /* "cVmi" */
#define VMI_CALLS 74

#define RELOCATION_NONE 0
#define RELOCATION_CALL 1
#define RELOCATION_JUMP 2
#define RELOCATION_NOP 3

#ifndef __ASSEMBLER__
#include "types.h"

enum vmi_call {
	VMI_CPUID, VMI_WRMSR, VMI_RDMSR, VMI_SetGDT, VMI_SetLDT, VMI_SetIDT, VMI_SetTR,
	VMI_GetGDT, VMI_GetLDT, VMI_GetIDT, VMI_GetTR, VMI_WriteGDTEntry, VMI_WriteLDTEntry,
	VMI_WriteIDTEntry, VMI_UpdateKernelStack, VMI_SetCR0, VMI_SetCR2, VMI_SetCR3,
	VMI_SetCR4, VMI_GetCR0, VMI_GetCR2, VMI_GetCR3, VMI_GetCR4, VMI_WBINVD, VMI_SetDR,
	VMI_GetDR, VMI_RDPMC, VMI_RDTSC, VMI_CLTS, VMI_EnableInterrupts,
	VMI_DisableInterrupts, VMI_GetInterruptMask, VMI_SetInterruptMask, VMI_IRET,
	VMI_SYSEXIT, VMI_Halt, VMI_Reboot, VMI_Shutdown, VMI_SetPxE, VMI_SetPxELong,
	VMI_UpdatePxE, VMI_UpdatePxELong, VMI_MachineToPhysical, VMI_PhysicalToMachine,
	VMI_AllocatePage, VMI_ReleasePage, VMI_InvalPage, VMI_FlushTLB, VMI_SetLinearMapping,
	VMI_INL, VMI_INB, VMI_INW, VMI_INSL, VMI_INSB, VMI_INSW, VMI_OUTL, VMI_OUTB,
	VMI_OUTW, VMI_OUTSL, VMI_OUTSB, VMI_OUTSW, VMI_SetIOPLMask, VMI_SetInitialAPState,
	VMI_APICWrite, VMI_APICRead, VMI_IODelay, VMI_GetCycleFrequency,
	VMI_GetCycleCounter, VMI_SetAlarm, VMI_CancelAlarm, VMI_GetWallclockTime,
	VMI_WallclockUpdated, VMI_SetCallbacks, VMI_SetLazyMode,
};
_Static_assert(VMI_SetLazyMode + 1 == VMI_CALLS, "numbers");

enum { /* MMU flags */
	VMI_PAGE_PT = 1, VMI_PAGE_PD = 2, VMI_PAGE_PDP = 4, VMI_PAGE_PAE = 0x10,
	VMI_PAGE_CLONE = 0x20, VMI_PAGE_ZEROED = 0x40,
	VMI_PAGE_CURRENT_AS = 0x10, VMI_PAGE_DEFER = 0x20,
};

enum { /* counters, alarms */
	VMI_REAL = 0, VMI_AVAILABLE = 1, VMI_STOLEN = 2,
	VMI_PERIODIC = 0x100, VMI_WIRED_LVTT = 0x10000,
};

struct vrom_header {
	u16 rom_signature;
	u8 rom_length;
	u8 rom_entry[4];
	u8 rom_pad0;
	u32 vrom_signature;
	u8 api_version_min, api_version_maj;
	u8 jump_slots;
	u8 reserved1;
	u32 virtual_top;
	u16 reserved2;
	u16 license_offset;
	u16 pci_header_offset;
	u16 pnp_header_offset;
	u32 rom_pad3;
	u8 reserved[96];
	u8 vmi_init[8];
	u8 get_reloc[8];
} __attribute__((packed));
_Static_assert(__builtin_offsetof(struct vrom_header, vmi_init) == 0x80, "layout");

extern const struct vrom_header *vrom;
extern u32 vmi_entry[VMI_CALLS];
extern u8 vmi_type[VMI_CALLS];

/* C calls: three arguments in registers, two more on the stack. */
u64 vmi_call(u32 entry, u32 a, u32 b, u32 c, u32 d, u32 e);

static inline u64 vmi(enum vmi_call n, u32 a, u32 b, u32 c)
{
	return vmi_call(vmi_entry[n], a, b, c, 0, 0);
}

static inline u64 vmi5(enum vmi_call n, u32 a, u32 b, u32 c, u32 d, u32 e)
{
	return vmi_call(vmi_entry[n], a, b, c, d, e);
}
#endif
#endif
