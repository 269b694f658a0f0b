/* Registers: what a call must preserve, for every call that returns and has no lasting effect. */
#include "kernel.h"
#include "pc.h"

static u8 ap_state[0x5c];

/* eax and edx are chosen so that the call is harmless; the others are marked. */
struct harmless {
	u8 number;
	u32 eax, edx;
};

static const struct harmless c_calls[] = {
	{ VMI_RDMSR, 0, 0 }, { VMI_GetLDT, 0, 0 }, { VMI_GetTR, 0, 0 },
	{ VMI_GetCR0, 0, 0 }, { VMI_GetCR2, 0, 0 }, { VMI_GetCR3, 0, 0 }, { VMI_GetCR4, 0, 0 },
	{ VMI_GetDR, 0, 0 }, { VMI_RDPMC, 0, 0 }, { VMI_CLTS, 0, 0 }, { VMI_SetCR2, 0, 0 },
	{ VMI_MachineToPhysical, 0, 0 }, { VMI_PhysicalToMachine, 0, 0 }, { VMI_ReleasePage, 0, 0 },
	{ VMI_InvalPage, ALIAS, 0 }, { VMI_FlushTLB, 3, 0 }, { VMI_SetIOPLMask, 0, 0 },
	{ VMI_SetInitialAPState, (u32)ap_state, 1 }, { VMI_APICRead, 0, 0 }, { VMI_APICWrite, 0, 0 },
	{ VMI_GetCycleFrequency, 0, 0 }, { VMI_GetCycleCounter, 0, 0 }, { VMI_CancelAlarm, 0, 0 },
	{ VMI_GetWallclockTime, 0, 0 }, { VMI_WallclockUpdated, 0, 0 }, { VMI_SetLazyMode, 0, 0 },
};

static const struct harmless narrow_calls[] = { /* only the flags may change */
	{ VMI_EnableInterrupts, 0x5a, 0x5b }, { VMI_DisableInterrupts, 0x5a, 0x5b },
	{ VMI_SetInterruptMask, 0, 0x5b },
	{ VMI_OUTB, 0x5a, PORT_COM1_SCRATCH }, { VMI_OUTW, 0x5a, PORT_UNCLAIMED },
	{ VMI_OUTL, 0x5a, PORT_UNCLAIMED },
};

static void fill(u32 *r, const struct harmless *call)
{
	r[0] = call->eax;
	r[1] = 0xc0c0c0c0;
	r[2] = call->edx;
	r[3] = 0xb0b0b0b0;
	r[4] = 0x51515151;
	r[5] = 0xd1d1d1d1;
	r[6] = FLAG_ONE;
}

void test_conventions(void)
{
	u32 r[7];

	pic_mask(0xff);
	for (u32 i = 0; i < ARRAY_LENGTH(c_calls); i++) {
		fill(r, c_calls + i);
		vmi_registers(vmi_entry[c_calls[i].number], r);
		expect("ebx", r[3], 0xb0b0b0b0);
		expect("esi", r[4], 0x51515151);
		expect("edi", r[5], 0xd1d1d1d1);
		expect("direction flag", r[6] & FLAG_DF, 0);
	}
	verdict("conventions.c_calls");

	for (u32 i = 0; i < ARRAY_LENGTH(narrow_calls); i++) {
		fill(r, narrow_calls + i);
		vmi_registers(vmi_entry[narrow_calls[i].number], r);
		expect("eax", r[0], narrow_calls[i].eax);
		expect("ecx", r[1], 0xc0c0c0c0);
		expect("edx", r[2], narrow_calls[i].edx);
		expect("ebx", r[3], 0xb0b0b0b0);
	}
	irq_disable();
	verdict("conventions.narrow_calls");
}
