/* User mode at privilege 3, in the kernel's own address space. */
#include "check.h"
#include "kernel.h"

extern const u8 user_code[], user_gate[], user_read[], user_privileged[], user_code_end[];

static u8 code_page[4096] __attribute__((aligned(4096)));
static u8 stack_page[4096] __attribute__((aligned(4096)));
static u8 trap_stack[8192] __attribute__((aligned(16)));

static u32 address(const u8 *program)
{
	return (u32)code_page + (u32)(program - user_code);
}

static void run(const u8 *program)
{
	trap_forget();
	user_enter(address(program), (u32)(stack_page + sizeof stack_page));
}

/* The five words that hardware pushes, on the stack of stack_switch. */
static void expect_user_frame(u32 vector, u32 ip)
{
	expect("vector", last_trap.vector, vector);
	expect("eip", last_trap.ip, ip);
	expect("cs", last_trap.cs & 0xffff, FLAT_USER_CODE);
	expect("ss", last_trap.ss, FLAT_USER_STACK);
	expect("esp", last_trap.sp, (u32)(stack_page + sizeof stack_page));
	expect("frame", last_trap.frame, (u32)(trap_stack + sizeof trap_stack) - 20);
}

void test_user(void)
{
	u8 *to = code_page;

	for (const u8 *from = user_code; from < user_code_end; from++)
		*to++ = *from;
	returns("user.code_page", map_page(code_page, USER | PRESENT), 0);
	returns("user.stack_page", map_page(stack_page, USER | WRITABLE | PRESENT), 0);
	returns("stack_switch.good",
		HC2(stack_switch, FLAT_KERNEL_STACK, trap_stack + sizeof trap_stack), 0);

	run(user_gate);
	expect_user_frame(SYSTEM_CALL, address(user_read));
	expect("ebx", user_result & 0xffff, FLAT_USER_CODE);
	expect("IF", last_trap.flags & FLAG_IF, FLAG_IF);
	verdict("user.gate");
	run(user_read);
	expect_user_frame(PAGE_FAULT, address(user_read));
	expect("error", last_trap.error, 5);
	expect("cr2", last_trap.cr2, KERNEL_BASE + 0x100000);
	verdict("user.page_fault");
	run(user_privileged);
	expect_user_frame(GENERAL_PROTECTION, address(user_privileged));
	expect("error", last_trap.error, 0);
	verdict("user.privileged");
	shared->vcpu_info[0].upcall_mask = 1;
}
