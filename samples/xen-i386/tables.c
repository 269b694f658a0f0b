/* Descriptor tables by hypercall; segments have bases here, so their loads can be seen. */
#include "check.h"
#include "kernel.h"

static table gdt, ldt;
static u32 window[8] = { 0x11111111, 0x22222222, 0x33333333, 0x44444444,
			 0x55555555, 0x66666666, 0x77777777, 0x88888888 };

/* 16 bytes of data for user mode (and the kernel). */
static u64 data_segment(const void *base)
{
	u32 at = (u32)base;

	return 15 | (u64)(at & 0xffffff) << 16 | 0x0040f200ull << 32 | (u64)(at >> 24) << 56;
}

static u32 first_word(u16 selector)
{
	u32 word;

	asm volatile("mov %1, %%fs; mov %%fs:0, %0; mov %2, %%fs"
		     : "=&r"(word) : "r"(selector), "r"((u16)0) : "memory");
	return word;
}

static void global(void)
{
	ulong frames[14] = { (ulong)machine_frame(gdt) };

	gdt[1] = data_segment(window);
	returns("set_gdt.writable_page", HC2(set_gdt, frames, 512), -XEN_EINVAL);
	returns("set_gdt.read_only", map_read_only(gdt), 0);
	returns("set_gdt.good", HC2(set_gdt, frames, 512), 0);
	returns("set_gdt.too_many", HC2(set_gdt, frames, 7200), -XEN_EINVAL);
	returns("set_gdt.bad_pointer", HC2(set_gdt, WILD, 512), -XEN_EFAULT);
	expect("word", first_word(0x0b), 0x11111111);
	verdict("set_gdt.loads");

	returns("update_descriptor.good",
		update_descriptor(machine_frame(gdt) << 12 | 16, data_segment(window + 4)), 0);
	expect("word", first_word(0x13), 0x55555555);
	verdict("update_descriptor.loads");
	returns("update_descriptor.privilege_0",
		update_descriptor(machine_frame(gdt) << 12 | 24, data_segment(window) & ~(0x60ull << 40)), 0);
	expect("word", first_word(0x19), 0x11111111);
	verdict("update_descriptor.raised");
	returns("update_descriptor.system",
		update_descriptor(machine_frame(gdt) << 12 | 24, 0x00008900000000ff), -XEN_EINVAL);
	returns("update_descriptor.unaligned",
		update_descriptor(machine_frame(gdt) << 12 | 4, data_segment(window)), -XEN_EINVAL);
	returns("update_descriptor.no_such_frame",
		update_descriptor(1ull << 50, data_segment(window)), -XEN_EINVAL);
}

static void local(void)
{
	struct mmuext_op op = { SET_LDT, (ulong)ldt, 16 };

	ldt[1] = data_segment(window + 4);
	map_read_only(ldt);
	returns("set_ldt.good", HC4(mmuext_op, &op, 1, 0, DOMID_SELF), 0);
	expect("word", first_word(0x0f), 0x55555555);
	verdict("set_ldt.loads");
	op.arg1 += 8;
	returns("set_ldt.unaligned", HC4(mmuext_op, &op, 1, 0, DOMID_SELF), -XEN_EINVAL);
	op.arg1 = 0;
	op.arg2 = 9000;
	returns("set_ldt.too_many", HC4(mmuext_op, &op, 1, 0, DOMID_SELF), -XEN_EINVAL);
	op.arg2 = 0;
	returns("set_ldt.none", HC4(mmuext_op, &op, 1, 0, DOMID_SELF), 0);
}

void test_tables(void)
{
	global();
	local();
	returns("set_segment_base.none_here", HC2(set_segment_base, 0, window), -XEN_ENOSYS);
}
