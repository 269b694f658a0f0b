/* Who is there: versions, features, and how refusals look. */
#include "check.h"
#include "kernel.h"

void test_version(void)
{
	static char text[1024];
	struct {
		u32 index, submap;
	} features = { 0, 0 };
	ulong place = 0;
	long version = HC2(xen_version, 0, 0);

	expect_that("3.0 or later", version >> 16 >= 3 && version >> 16 < 100);
	verdict("xen_version.version");
	returns("xen_version.extraversion", HC2(xen_version, 1, text), 0);
	returns("xen_version.capabilities", HC2(xen_version, 3, text), 0);
	expect_that("offers xen-3", text[0] == 'x' && text[4] == '3');
	verdict("xen_version.capability");
	returns("xen_version.changeset", HC2(xen_version, 4, text), 0);
	returns("xen_version.platform_parameters", HC2(xen_version, 5, &place), 0);
	expect("start of the hole", place, HOLE_START);
	verdict("xen_version.hole");
	returns("xen_version.get_features", HC2(xen_version, 6, &features), 0);
	expect("update_preserve_ad", features.submap >> 5 & 1, 1);
	expect("not translated", features.submap >> 2 & 1, 0);
	verdict("xen_version.features");
	features.index = 77;
	returns("xen_version.no_such_features", HC2(xen_version, 6, &features), -XEN_EINVAL);
	returns("xen_version.pagesize", HC2(xen_version, 7, 0), 4096);
	returns("xen_version.guest_handle", HC2(xen_version, 8, text), 0);
	returns("xen_version.unknown", HC2(xen_version, 77, text), -XEN_ENOSYS);
	returns("xen_version.bad_pointer", HC2(xen_version, 1, WILD), -XEN_EFAULT);

	returns("hypercall.unused", hypercall(11, 0, 0, 0, 0, 0), -XEN_ENOSYS);
	returns("hypercall.beyond", hypercall(60, 0, 0, 0, 0, 0), -XEN_ENOSYS);
	returns("hypercall.last", hypercall(127, 0, 0, 0, 0, 0), -XEN_ENOSYS);
}
