/* Grants, given to ourselves: there is nobody else. */
#include "check.h"
#include "kernel.h"

enum grant_command {
	MAP = 0, UNMAP = 1, SETUP_TABLE = 2, COPY = 5, UNMAP_AND_REPLACE = 7, SET_VERSION = 8,
	GET_STATUS_FRAMES = 9, GET_VERSION = 10, SWAP = 11,
};
enum map_flag { DEVICE_MAP = 1, HOST_MAP = 2, READ_ONLY = 4, BY_ENTRY = 16 };
enum entry_flag { PERMIT = 1, TRANSITIVE = 3, ENTRY_READ_ONLY = 4, READING = 8, WRITING = 16, SUB_PAGE = 256 };
enum status {
	OKAY = 0, GENERAL_ERROR = -1, BAD_DOMAIN = -2, BAD_REF = -3, BAD_HANDLE = -4, BAD_PAGE = -9,
	BAD_BUS = -6, BAD_COPY = -10, EAGAIN = -12,
};

#define REF 9 /* the first 8 entries are the toolstack's */

struct map_op {
	u64 host;
	u32 flags, ref;
	u16 domain;
	s16 status;
	u32 handle;
	u64 bus;
};
struct unmap_op {
	u64 host, bus; /* of unmap_and_replace: bus is the address whose entry is taken */
	u32 handle;
	s16 status;
};
struct copy_end {
	ulong frame; /* or reference */
	u16 domain, offset;
};
struct copy_op {
	struct copy_end from, to;
	u16 length, flags;
	s16 status;
};
struct entry_1 {
	u16 flags, domain;
	u32 frame;
};
struct entry_2 {
	u16 flags, domain, offset, length;
	u64 frame;
};

static u8 table_window[4096] __attribute__((aligned(4096)));
static u8 status_window[4096] __attribute__((aligned(4096)));
static u8 given[4096] __attribute__((aligned(4096)));
static u8 target[4096] __attribute__((aligned(4096)));
static u8 spare[4096] __attribute__((aligned(4096)));
static u8 other[4096] __attribute__((aligned(4096)));
static volatile struct entry_1 *const entries = (void *)table_window;
static volatile struct entry_2 *const wide_entries = (void *)table_window;
static u16 self;

/* Our own number: a port that waits for ourselves knows it. */
static u16 own_domain(void)
{
	struct {
		u16 domain, remote;
		u32 port;
	} unbound = { DOMID_SELF, DOMID_SELF, 0 };
	struct {
		u16 domain;
		u32 port, status, vcpu;
		u16 remote, pad;
		u32 u;
	} state = { DOMID_SELF, 0, 0, 0, 0, 0, 0 };

	HC2(event_channel_op, EVTCHN_ALLOC_UNBOUND, &unbound);
	state.port = unbound.port;
	HC2(event_channel_op, EVTCHN_STATUS, &state);
	HC2(event_channel_op, EVTCHN_CLOSE, &unbound.port);
	return state.remote;
}

static void says(const char *name, s16 got, enum status wanted)
{
	returns(name, got, wanted);
}

static struct map_op map(void *at, u32 flags, u32 ref, u16 domain)
{
	struct map_op op = { (ulong)at, flags, ref, domain, 99, 0, 0 };

	if (HC3(grant_table_op, MAP, &op, 1))
		op.status = 98;
	return op;
}

static s16 unmap(u32 command, u32 handle, void *at, u64 bus)
{
	struct unmap_op op = { (ulong)at, bus, handle, 99 };

	if (HC3(grant_table_op, command, &op, 1))
		op.status = 98;
	return op.status;
}

static s16 copy_from(u32 ref, u16 offset, u16 length)
{
	struct copy_op op = { { ref, self, offset }, { machine_frame(other), DOMID_SELF, 0 }, length, 1, 99 };

	if (HC3(grant_table_op, COPY, &op, 1))
		op.status = 98;
	return op.status;
}

static long set_version(u32 version)
{
	return HC3(grant_table_op, SET_VERSION, &version, 1);
}

static s16 swap(u32 a, u32 b)
{
	struct {
		u32 a, b;
		s16 status;
	} op = { a, b, 99 };

	HC3(grant_table_op, SWAP, &op, 1);
	return op.status;
}

static s16 status_frames(u32 count, u64 *frames)
{
	struct {
		u32 count;
		u16 domain;
		s16 status;
		u64 *frames;
	} op = { count, DOMID_SELF, 99, frames };

	HC3(grant_table_op, GET_STATUS_FRAMES, &op, 1);
	return op.status;
}

static void show(u8 *window, u64 frame)
{
	update_va_mapping(window, frame << 12 | PRESENT | WRITABLE, UVMF_INVLPG);
}

static void table_get(void)
{
	ulong frame = 0;
	struct {
		u16 domain;
		u32 count;
#ifdef __x86_64__
		s16 status;
		ulong *frames;
#else
		s16 status;
		ulong *frames;
#endif
	} setup = { DOMID_SELF, 1, 99, &frame };

	returns("setup_table.good", HC3(grant_table_op, SETUP_TABLE, &setup, 1), 0);
	says("setup_table.status", setup.status, OKAY);
	show(table_window, frame);
	expect("console", entries[0].flags & 3, is_initial_domain() ? 0 : PERMIT);
	verdict("setup_table.reserved_entries");
	returns("setup_table.two", HC3(grant_table_op, SETUP_TABLE, &setup, 2), -XEN_EINVAL);
	setup.count = 100000;
	HC3(grant_table_op, SETUP_TABLE, &setup, 1);
	says("setup_table.too_many", setup.status, GENERAL_ERROR);
}

static void give(u16 flags, u16 domain)
{
	entries[REF].frame = (u32)machine_frame(given);
	entries[REF].domain = domain;
	entries[REF].flags = flags;
}

static void refusals(void)
{
	struct map_op op;

	give(0, self);
	op = map(target, 0, REF, self);
	says("map_grant_ref.no_flags", op.status, BAD_REF);
	op = map(target, HOST_MAP, REF, DOMID_NONE);
	says("map_grant_ref.no_such_domain", op.status, BAD_DOMAIN);
	op = map(target, HOST_MAP, REF, DOMID_SELF);
	says("map_grant_ref.self_by_name", op.status, BAD_DOMAIN);
	op = map(target, HOST_MAP, 1 << 20, self);
	says("map_grant_ref.no_such_entry", op.status, BAD_REF);
	op = map(target, HOST_MAP, REF, self);
	says("map_grant_ref.not_given", op.status, GENERAL_ERROR);
	give(PERMIT, self + 1);
	op = map(target, HOST_MAP, REF, self);
	says("map_grant_ref.given_to_another", op.status, GENERAL_ERROR);
	give(PERMIT | ENTRY_READ_ONLY, self);
	op = map(target, HOST_MAP, REF, self);
	says("map_grant_ref.for_reading_only", op.status, GENERAL_ERROR);
	give(PERMIT, self);
	op = map((void *)HOLE_START, HOST_MAP, REF, self);
	says("map_grant_ref.in_the_hole", op.status, GENERAL_ERROR);
	entries[REF].frame = (u32)machine_frame((void *)start_info->pt_base);
	op = map(target, HOST_MAP, REF, self);
	says("map_grant_ref.page_table", op.status, GENERAL_ERROR);
	entries[REF].frame = 0xfffffff;
	op = map(target, HOST_MAP, REF, self);
	says("map_grant_ref.no_such_frame", op.status, BAD_PAGE);
	says("unmap_grant_ref.no_such_handle", unmap(UNMAP, 77777, target, 0), BAD_HANDLE);
	returns("map_grant_ref.bad_pointer", HC3(grant_table_op, MAP, WILD, 1), -XEN_EFAULT);
	returns("map_grant_ref.nothing", HC3(grant_table_op, MAP, 0, 0), 0);
}

static void mappings(void)
{
	struct map_op first, second;
	u64 bus = machine_frame(given) << 12;

	give(PERMIT, self);
	given[5] = 0x5a;
	first = map(target, HOST_MAP | READ_ONLY, REF, self);
	says("map_grant_ref.reading", first.status, OKAY);
	expect("byte", ((volatile u8 *)target)[5], 0x5a);
	expect("bus", first.bus, bus);
	expect("flags", entries[REF].flags, PERMIT | READING);
	verdict("map_grant_ref.shows_reading");
	second = map(spare, HOST_MAP | DEVICE_MAP, REF, self);
	says("map_grant_ref.writing_and_device", second.status, OKAY);
	expect("flags", entries[REF].flags, PERMIT | READING | WRITING);
	verdict("map_grant_ref.shows_writing");
	says("swap_grant_ref.in_use", swap(REF, REF + 1), EAGAIN);
	says("unmap_grant_ref.elsewhere", unmap(UNMAP, first.handle, spare, 0), GENERAL_ERROR);
	says("unmap_grant_ref.of_nothing", unmap(UNMAP, first.handle, 0, 0), OKAY);
	says("unmap_grant_ref.good", unmap(UNMAP, first.handle, target, 0), OKAY);
	says("unmap_grant_ref.twice", unmap(UNMAP, first.handle, target, 0), BAD_HANDLE);
	says("unmap_grant_ref.other_bus_address", unmap(UNMAP, second.handle, 0, bus + 4096), BAD_BUS);
	says("unmap_grant_ref.host_part", unmap(UNMAP, second.handle, spare, 0), OKAY);
	expect("flags", entries[REF].flags, PERMIT | READING | WRITING);
	verdict("unmap_grant_ref.device_part_stays");
	says("unmap_grant_ref.device_part", unmap(UNMAP, second.handle, 0, bus), OKAY);
	expect("flags", entries[REF].flags, PERMIT);
	verdict("unmap_grant_ref.shows_nothing");

	first = map((void *)(ulong)0, DEVICE_MAP, REF, self);
	says("map_grant_ref.device_alone", first.status, OKAY);
	says("unmap_grant_ref.device_alone", unmap(UNMAP, first.handle, 0, bus), OKAY);

	map_page(spare, PRESENT | WRITABLE);
	spare[1] = 0x11;
	first = map(target, HOST_MAP, REF, self);
	says("map_grant_ref.again", first.status, OKAY);
	says("unmap_and_replace.no_such_address",
	     unmap(UNMAP_AND_REPLACE, first.handle, target, (ulong)WILD), GENERAL_ERROR);
	says("unmap_and_replace.good",
	     unmap(UNMAP_AND_REPLACE, first.handle, target, (ulong)spare), OKAY);
	expect("byte", ((volatile u8 *)target)[1], 0x11);
	expect("entry", *table_entry(spare) & PRESENT, 0);
	verdict("unmap_and_replace.moves");
	says("unmap_and_replace.twice",
	     unmap(UNMAP_AND_REPLACE, first.handle, target, (ulong)spare), BAD_HANDLE);
	map_page(target, PRESENT | WRITABLE);
	map_page(spare, PRESENT | WRITABLE);
	says("swap_grant_ref.good", swap(REF, REF + 1), OKAY);
	expect("flags", entries[REF].flags, 0);
	expect("flags of the other", entries[REF + 1].flags, PERMIT);
	verdict("swap_grant_ref.swaps");
	says("swap_grant_ref.itself", swap(REF, REF), OKAY);
	says("swap_grant_ref.no_such_entry", swap(REF, 1 << 20), BAD_REF);
}

static void copies(void)
{
	give(PERMIT | ENTRY_READ_ONLY, self);
	given[100] = 0x77;
	says("copy.good", copy_from(REF, 100, 4), OKAY);
	expect("byte", other[0], 0x77);
	verdict("copy.copied");
	says("copy.beyond_the_page", copy_from(REF, 4095, 2), BAD_COPY);
	says("copy.no_such_entry", copy_from(1 << 20, 0, 4), BAD_REF);
	says("copy.not_given", copy_from(REF + 5, 0, 4), GENERAL_ERROR);
}

static void second_version(void)
{
	volatile u16 *const use = (volatile u16 *)status_window;
	u64 frame = 0;
	struct {
		u16 domain, pad;
		u32 version;
	} version = { DOMID_SELF, 0, 99 };
	struct map_op op;

	returns("set_version.unknown", set_version(3), -XEN_EINVAL);
	says("get_status_frames.version_1", status_frames(1, &frame), GENERAL_ERROR);
	give(PERMIT, self);
	op = map(target, HOST_MAP, REF, self);
	returns("set_version.in_use", set_version(2), -XEN_EBUSY);
	unmap(UNMAP, op.handle, target, 0);
	map_page(target, PRESENT | WRITABLE);
	returns("set_version.good", set_version(2), 0);
	returns("get_version.good", HC3(grant_table_op, GET_VERSION, &version, 1), 0);
	expect("version", version.version, 2);
	verdict("get_version.version");
	expect("flags", wide_entries[REF].flags, 0);
	verdict("set_version.clears");
	says("get_status_frames.good", status_frames(1, &frame), OKAY);
	says("get_status_frames.too_many", status_frames(9, &frame), GENERAL_ERROR);
	status_frames(1, &frame);
	show(status_window, frame);

	wide_entries[REF].frame = machine_frame(given);
	wide_entries[REF].domain = self;
	wide_entries[REF].flags = PERMIT;
	op = map(target, HOST_MAP, REF, self);
	says("map_grant_ref.version_2", op.status, OKAY);
	expect("flags", wide_entries[REF].flags, PERMIT);
	expect("status", use[REF], READING | WRITING);
	verdict("map_grant_ref.shows_in_status");
	says("unmap_grant_ref.version_2", unmap(UNMAP, op.handle, target, 0), OKAY);
	expect("status", use[REF], 0);
	verdict("unmap_grant_ref.shows_in_status");
	map_page(target, PRESENT | WRITABLE);

	wide_entries[REF].offset = 0x100;
	wide_entries[REF].length = 0x20;
	wide_entries[REF].flags = PERMIT | ENTRY_READ_ONLY | SUB_PAGE;
	op = map(target, HOST_MAP | READ_ONLY, REF, self);
	says("map_grant_ref.part_of_a_page", op.status, GENERAL_ERROR);
	given[0x100] = 0x33;
	says("copy.part_of_a_page", copy_from(REF, 0x100, 0x20), OKAY);
	expect("byte", other[0], 0x33);
	verdict("copy.part_copied");
	says("copy.before_the_part", copy_from(REF, 0xff, 4), GENERAL_ERROR);
	says("copy.behind_the_part", copy_from(REF, 0x11e, 4), GENERAL_ERROR);
	returns("set_version.status_is_mapped", set_version(1), -XEN_EBUSY);
	update_va_mapping(status_window, 0, UVMF_INVLPG);
	returns("set_version.back", set_version(1), 0);
	says("get_status_frames.back", status_frames(1, &frame), GENERAL_ERROR);
}

void test_grants(void)
{
	self = own_domain();
	table_get();
	refusals();
	mappings();
	copies();
	second_version();
}
