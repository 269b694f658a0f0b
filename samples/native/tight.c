/* What the code in tight places must still compute; see tight.S. */
#include "check.h"
#include "tests.h"
#include "tight.h"
#include "traps.h"

static void one_byte(void)
{
	expect("iterations", tight_loop(), 1000);
	verdict("tight.loop_head");

	tight_on();
	expect("IF on", tight_flags() & FLAG_IF, FLAG_IF);
	tight_saved = tight_save();
	expect("IF saved", tight_saved & FLAG_IF, FLAG_IF);
	expect("IF off", tight_flags() & FLAG_IF, 0);
	tight_restore();
	expect("IF restored", tight_flags() & FLAG_IF, FLAG_IF);
	tight_off();
	expect("IF off", tight_flags() & FLAG_IF, 0);
	verdict("tight.two_byte_functions");

	expect("on, off", tight_packed(), 1);
	verdict("tight.no_gaps");
}

static void branches(void)
{
	expect("case off", tight_switch(0), 0);
	expect("case on", tight_switch(1), 1);
	expect("case nothing", tight_switch(2), 0);
	verdict("tight.jump_table");

	expect("skipped", tight_branch_into(1), 0);
	expect("not skipped", tight_branch_into(0), FLAG_IF);
	verdict("tight.branch_into");

	expect("sum", tight_counted(), 6);
	verdict("tight.short_branches");

	expect("changed flags", tight_after_call() & FLAG_IF, FLAG_IF);
	verdict("tight.return_address");
}

static void neighbours(void)
{
	u32 sum = 0;

	expect("result", tight_compare(), 5);
	verdict("tight.flags_alive");

	expect("distance", tight_own_address(), 0);
	expect("sum", tight_relative(), 0x2468);
	verdict("tight.position_dependent");

	expect("value", tight_immediate(), 0x9dfbf4fb);
	verdict("tight.bytes_in_operand");

	for (u32 i = 0; i < sizeof tight_table; i++)
		sum = sum * 31 + tight_table[i];
	expect("PE", tight_status(), 1);
	expect("data in code", sum, 0xc5d0649e);
	verdict("tight.data_in_code");
}

void test_tight(void)
{
	one_byte();
	branches();
	neighbours();
}
