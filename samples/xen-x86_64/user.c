/* User mode has page tables of its own: another top, without the kernel in it. */
#include "check.h"
#include "kernel.h"

extern const u8 user_code[], user_syscall[], user_gate[], user_privileged[], user_code_end[];

#define USER_CODE 0x400000ull
#define USER_STACK_TOP 0x402000ull

static table top, pointers, directory, entries;
static u8 code_page[4096] __attribute__((aligned(4096)));
static u8 stack_page[4096] __attribute__((aligned(4096)));
static u8 trap_stack[8192] __attribute__((aligned(16)));

static u64 address(const u8 *program)
{
	return USER_CODE + (u64)(program - user_code);
}

static void run(const u8 *program)
{
	trap_forget();
	user_enter(address(program), USER_STACK_TOP);
}

static void expect_user_frame(u64 vector, u64 ip)
{
	expect("vector", last_trap.vector, vector);
	expect("rip", last_trap.ip, ip);
	expect("cs", last_trap.cs & 0xffff, FLAT_USER_CODE);
	expect("ss", last_trap.ss, FLAT_USER_STACK);
	expect("rsp", last_trap.sp, USER_STACK_TOP);
	expect("frame", last_trap.frame, (u64)(trap_stack + sizeof trap_stack) - 40);
}

static u64 entry(const volatile void *page)
{
	return machine_frame(page) << 12 | USER | WRITABLE | PRESENT;
}

void test_user(void)
{
	struct mmuext_op ops[2] = {
		{ PIN_L4_TABLE, machine_frame(top), 0 },
		{ NEW_USER_BASEPTR, machine_frame(top), 0 },
	};
	table *const tables[] = { &top, &pointers, &directory, &entries };
	u8 *to = code_page;

	for (const u8 *from = user_code; from < user_code_end; from++)
		*to++ = *from;
	entries[USER_CODE >> 12 & 511] = entry(code_page);
	entries[(USER_STACK_TOP - 4096) >> 12 & 511] = entry(stack_page);
	directory[USER_CODE >> 21] = entry(entries);
	pointers[0] = entry(directory);
	top[0] = entry(pointers);
	for (u32 i = 0; i < ARRAY_LENGTH(tables); i++)
		map_read_only(tables[i]);
	returns("user.page_tables", HC4(mmuext_op, ops, 2, 0, DOMID_SELF), 0);
	returns("stack_switch.good", HC2(stack_switch, FLAT_KERNEL_STACK, trap_stack + sizeof trap_stack), 0);

	run(user_syscall);
	expect("vector", last_trap.vector, SYSCALL);
	expect("rip", last_trap.ip, address(user_gate));
	expect("rsp", last_trap.sp, USER_STACK_TOP);
	expect("rbx", user_result, 0x51);
	expect("IF", last_trap.flags & FLAG_IF, FLAG_IF);
	verdict("user.syscall");
	run(user_gate);
	expect_user_frame(SYSTEM_CALL, address(user_privileged));
	expect("rbx", user_result, 0x52);
	verdict("user.gate");
	run(user_privileged);
	expect_user_frame(GENERAL_PROTECTION, address(user_privileged));
	expect("error", last_trap.error, 0);
	verdict("user.privileged");
	/* The kernel is not in these tables, nor is user memory in the kernel's. */
	PROBE("mov (%0), %%eax", (), ("r"(USER_CODE)), "eax");
	expect("vector", last_trap.vector, PAGE_FAULT);
	verdict("user.separate_tables");
	shared->vcpu_info[0].upcall_mask = 1;
}
