/* The rest: consoles, physical devices, grants, and calls for privileged domains. */
#include "check.h"
#include "kernel.h"

/* Other domains are refused what the initial one may do; the transcript stays the same. */
static void privileged(const char *name, s64 got, s64 for_initial_domain)
{
	expect("result", (u64)got, (u64)(s64)(is_initial_domain() ? for_initial_domain : -XEN_EPERM));
	verdict(name);
}

void test_others(void)
{
	static u8 buffer[512] __attribute__((aligned(64)));
	u32 level = 1;
	struct {
		u16 domain;
		u32 frames, max_frames;
		s32 status;
	} size = { DOMID_SELF, 0, 0, 99 };

	privileged("console_io.write_nothing", HC3(console_io, 0, 0, buffer), 0);
	privileged("console_io.read", HC3(console_io, 1, 16, buffer), 0);
	privileged("console_io.unknown", HC3(console_io, 9, 0, 0), -XEN_ENOSYS);
	privileged("console_io.bad_pointer", HC3(console_io, 0, 16, WILD), -XEN_EFAULT);

	returns("physdev_op.set_iopl", HC2(physdev_op, 6, &level), 0);
	level = 7;
	returns("physdev_op.bad_iopl", HC2(physdev_op, 6, &level), -XEN_EINVAL);
	returns("physdev_op.unknown", HC2(physdev_op, 77, 0), -XEN_ENOSYS);
	returns("physdev_op.bad_pointer", HC2(physdev_op, 6, WILD), -XEN_EFAULT);

	returns("grant_table_op.query_size", HC3(grant_table_op, 6, &size, 1), 0);
	expect("status", (u64)size.status, 0);
	expect_that("limit", size.max_frames > 0);
	verdict("grant_table_op.size");
	returns("grant_table_op.unknown", HC3(grant_table_op, 77, &size, 1), -XEN_ENOSYS);
	returns("grant_table_op.bad_pointer", HC3(grant_table_op, 6, WILD, 1), -XEN_EFAULT);

	returns("platform_op.wrong_version", HC1(platform_op, buffer), -XEN_EACCES);
	returns("platform_op.bad_pointer", HC1(platform_op, WILD), -XEN_EFAULT);
	returns("sysctl.wrong_version", HC1(sysctl, buffer), -XEN_EACCES);
	returns("domctl.wrong_version", HC1(domctl, buffer), -XEN_EACCES);
	privileged("kexec_op.unknown", HC2(kexec_op, 77, buffer), 0);
	returns("hvm_op.unknown", HC2(hvm_op, 77, buffer), -XEN_ENOSYS);
	returns("xsm_op.unknown", HC1(xsm_op, buffer), -XEN_ENOSYS);
	returns("update_va_mapping_otherdomain.no_such_domain",
		hypercall(HYPERVISOR_update_va_mapping_otherdomain, (ulong)buffer, 0, 0,
			  AT_WIDTH(0, DOMID_NONE), DOMID_NONE), -XEN_ESRCH);
}
