/* What firmware says: ACPI's root pointer and the tables behind it, the MP tables; ACPI mode, and power-off. */
#include "check.h"
#include "kernel.h"
#include "pc.h"

#define SLEEP_ENABLE 0x2000

struct header {
	u8 signature[4];
	u32 length;
	u8 revision, checksum, oem[6], oem_table[8];
	u32 oem_revision, creator, creator_revision;
} __attribute__((packed));

struct fixed {
	struct header header;
	u32 facs, dsdt;
	u8 model, profile;
	u16 sci;
	u32 smi_command;
	u8 acpi_enable, acpi_disable, s4bios, pstate;
	u32 pm1a_event, pm1b_event, pm1a_control, pm1b_control, pm2_control, pm_timer;
} __attribute__((packed));

static const struct fixed *fadt;
static const u8 *madt;
static u32 sleep_type;

static int sums_to_zero(const u8 *bytes, u32 length)
{
	u8 sum = 0;

	while (length--)
		sum += *bytes++;
	return sum == 0;
}

static int same(const u8 *bytes, const char *text)
{
	while (*text)
		if (*bytes++ != (u8)*text++)
			return 0;
	return 1;
}

static u32 word(const u8 *bytes)
{
	return bytes[0] | bytes[1] << 8 | bytes[2] << 16 | (u32)bytes[3] << 24;
}

/* Searches where firmware may put what a kernel looks for; null if it is not there. */
static const u8 *find(const char *signature)
{
	for (u64 at = 0xe0000; at < 0x100000; at += 16)
		if (same((const u8 *)at, signature))
			return (const u8 *)at;
	return 0;
}

static void root(void)
{
	const u8 *pointer = find("RSD PTR ");
	const struct header *rsdt;

	expect_that("a root pointer", pointer != 0);
	verdict("acpi.root_pointer");
	expect_that("its checksum", sums_to_zero(pointer, 20));
	rsdt = (const struct header *)(u64)word(pointer + 16);
	expect_that("RSDT", same(rsdt->signature, "RSDT"));
	expect_that("its checksum", sums_to_zero((const u8 *)rsdt, rsdt->length));
	for (u32 at = sizeof *rsdt; at < rsdt->length; at += 4) {
		const u8 *table = (const u8 *)(u64)word((const u8 *)rsdt + at);

		expect_that("a table's checksum", sums_to_zero(table, word(table + 4)));
		if (same(table, "FACP"))
			fadt = (const struct fixed *)table;
		if (same(table, "APIC"))
			madt = table;
	}
	expect_that("a fixed description", fadt != 0);
	expect_that("a table of APICs", madt != 0);
	verdict("acpi.tables");
}

static void fixed(void)
{
	const u8 *dsdt = (const u8 *)(u64)fadt->dsdt, *end = dsdt + word(dsdt + 4), *at = dsdt;

	expect("SCI", fadt->sci, 9);
	expect("SMI command port", fadt->smi_command, 0xb2);
	expect("event block", fadt->pm1a_event, 0x600);
	expect("control block", fadt->pm1a_control, 0x604);
	expect("timer", fadt->pm_timer, 0x608);
	verdict("acpi.fixed_description");
	expect_that("DSDT", same(dsdt, "DSDT") && sums_to_zero(dsdt, word(dsdt + 4)));
	while (at < end && !same(at, "_S5_"))
		at++;
	expect_that("\\_S5", at < end);
	expect("a package", at[4], 0x12);
	at += 7; /* name, package opcode, length, number of elements */
	sleep_type = at[0] == 0x0a ? at[1] : at[0];
	expect("sleep type", sleep_type, 0);
	verdict("acpi.sleep_type");
}

static void apics(void)
{
	u32 cpus = 0, ios = 0, timer_pin = 0;

	for (const u8 *at = madt + 44; at < madt + word(madt + 4); at += at[1]) {
		cpus += at[0] == 0 && (at[4] & 1);
		if (at[0] == 1) {
			ios++;
			expect("I/O APIC", word(at + 4), 0xfec00000);
			expect("first interrupt", word(at + 8), 0);
		}
		if (at[0] == 2 && at[3] == 0)
			timer_pin = word(at + 4);
	}
	expect("local APIC", word(madt + 36), APIC_BASE);
	expect("processors", cpus, 1);
	expect("I/O APICs", ios, 1);
	expect("pin of IRQ 0", timer_pin, 2);
	verdict("acpi.apics");
}

static void multiprocessor(void)
{
	const u8 *pointer = find("_MP_"), *table;
	u32 kinds[5] = { 0 }, entries, timer_pin = 0;

	expect_that("a floating pointer", pointer && sums_to_zero(pointer, 16));
	table = (const u8 *)(u64)word(pointer + 4);
	expect_that("a table", same(table, "PCMP"));
	expect_that("its checksum", sums_to_zero(table, table[4] | table[5] << 8));
	expect("local APIC", word(table + 36), APIC_BASE);
	entries = table[34] | table[35] << 8;
	for (const u8 *at = table + 44; entries--; at += at[0] ? 8 : 20) {
		if (at[0] < ARRAY_LENGTH(kinds))
			kinds[at[0]]++;
		if (at[0] == 3 && at[1] == 0 && at[5] == 0)
			timer_pin = at[7];
	}
	expect("processors", kinds[0], 1);
	expect("I/O APICs", kinds[2], 1);
	expect("pin of IRQ 0", timer_pin, 2);
	expect("local interrupts", kinds[4], 2);
	verdict("mp.tables");
}

static void mode(void)
{
	if (!(in16((u16)fadt->pm1a_control) & 1))
		out8((u16)fadt->smi_command, fadt->acpi_enable);
	expect("SCI enable", in16((u16)fadt->pm1a_control) & 1, 1);
	verdict("acpi.mode");
}

void test_tables(void)
{
	root();
	if (!fadt || !madt)
		return;
	fixed();
	apics();
	multiprocessor();
	mode();
}

void acpi_power_off(void)
{
	out16((u16)fadt->pm1a_control, (u16)(SLEEP_ENABLE | sleep_type << 10));
	for (int i = 0; i < 1000000; i++) /* a machine may take its time to go off */
		in32(fadt->pm_timer);
	say("FAIL still on");
	for (;;)
		asm volatile("cli; hlt");
}
