/* Descriptor tables and segment bases by hypercall. */
#include "check.h"
#include "kernel.h"

static table gdt, ldt;
static u32 window[4] = { 0x11111111, 0x22222222, 0x33333333, 0x44444444 };

#define DATA_SEGMENT 0x0040f20000000fffull /* user data, 4 KiB from 0 */

static void global(void)
{
	u64 frames[14] = { machine_frame(gdt) };
	u16 selector;

	gdt[1] = DATA_SEGMENT;
	returns("set_gdt.writable_page", HC2(set_gdt, frames, 512), -XEN_EINVAL);
	returns("set_gdt.read_only", map_read_only(gdt), 0);
	returns("set_gdt.good", HC2(set_gdt, frames, 512), 0);
	returns("set_gdt.too_many", HC2(set_gdt, frames, 7200), -XEN_EINVAL);
	returns("set_gdt.bad_pointer", HC2(set_gdt, WILD, 512), -XEN_EFAULT);
	asm volatile("mov %1, %%ds; mov %%ds, %0; mov %2, %%ds"
		     : "=&r"(selector) : "r"((u16)0x0b), "r"((u16)0) : "memory");
	expect("selector", selector, 0x0b);
	verdict("set_gdt.loads");

	returns("update_descriptor.good",
		update_descriptor(machine_frame(gdt) << 12 | 16, DATA_SEGMENT), 0);
	expect("written", gdt[2] & ~(1ull << 40), DATA_SEGMENT);
	verdict("update_descriptor.written");
	returns("update_descriptor.privilege_0",
		update_descriptor(machine_frame(gdt) << 12 | 24, 0x0040920000000fff), 0);
	returns("update_descriptor.system",
		update_descriptor(machine_frame(gdt) << 12 | 24, 0x00008900000000ff), -XEN_EINVAL);
	returns("update_descriptor.unaligned",
		update_descriptor(machine_frame(gdt) << 12 | 4, DATA_SEGMENT), -XEN_EINVAL);
	returns("update_descriptor.no_such_frame",
		update_descriptor(1ull << 50, DATA_SEGMENT), -XEN_EINVAL);
}

static void local(void)
{
	struct mmuext_op op = { SET_LDT, (ulong)ldt, 16 };
	u16 selector;

	ldt[1] = DATA_SEGMENT;
	map_read_only(ldt);
	returns("set_ldt.good", HC4(mmuext_op, &op, 1, 0, DOMID_SELF), 0);
	asm volatile("mov %1, %%ds; mov %%ds, %0; mov %2, %%ds"
		     : "=&r"(selector) : "r"((u16)0x0f), "r"((u16)0) : "memory");
	expect("selector", selector, 0x0f);
	verdict("set_ldt.loads");
	op.arg1 += 8;
	returns("set_ldt.unaligned", HC4(mmuext_op, &op, 1, 0, DOMID_SELF), -XEN_EINVAL);
	op.arg1 = 0;
	op.arg2 = 9000;
	returns("set_ldt.too_many", HC4(mmuext_op, &op, 1, 0, DOMID_SELF), -XEN_EINVAL);
	op.arg2 = 0;
	returns("set_ldt.none", HC4(mmuext_op, &op, 1, 0, DOMID_SELF), 0);
}

static void bases(void)
{
	u32 word;

	returns("set_segment_base.fs", HC2(set_segment_base, 0, window), 0);
	asm volatile("mov %%fs:4, %0" : "=r"(word));
	expect("through fs", word, 0x22222222);
	verdict("set_segment_base.fs_used");
	returns("set_segment_base.user_gs", HC2(set_segment_base, 1, 0), 0);
	returns("set_segment_base.kernel_gs", HC2(set_segment_base, 2, window), 0);
	asm volatile("mov %%gs:8, %0" : "=r"(word));
	expect("through gs", word, 0x33333333);
	verdict("set_segment_base.gs_used");
	returns("set_segment_base.selector", HC2(set_segment_base, 3, 0), 0);
	returns("set_segment_base.not_canonical",
		HC2(set_segment_base, 0, 0x8000000000000000), -XEN_EINVAL);
	returns("set_segment_base.unknown", HC2(set_segment_base, 9, 0), -XEN_EINVAL);
	HC2(set_segment_base, 0, 0);
	HC2(set_segment_base, 2, 0);
}

void test_tables(void)
{
	global();
	local();
	bases();
}
