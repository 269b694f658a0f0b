/* Finding the ROM, VMI_Init, and the relocations of calls and of the sites in boot.S. */
#include "kernel.h"

const struct vrom_header *vrom;
u32 vmi_entry[VMI_CALLS];
u8 vmi_type[VMI_CALLS];

static u32 start_cs;

static const char *text_at(u32 offset)
{
	return (const char *)vrom + offset;
}

static int same(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

/* As Linux searches, and the specification's checks besides. */
void find_rom(void)
{
	u32 sum = 0;

	for (u32 at = 0xc0000; at < 0xe0000 && !vrom; at += 2048) {
		const struct vrom_header *found = (const struct vrom_header *)at;

		if (found->rom_signature == 0xaa55 && found->vrom_signature == VMI_SIGNATURE)
			vrom = found;
	}
	expect_that("a ROM with the signature", vrom != 0);
	if (vrom) {
		for (u32 i = 0; i < vrom->rom_length * 512u; i++)
			sum += ((const u8 *)vrom)[i];
		expect("checksum", sum & 0xff, 0);
		expect("api major", vrom->api_version_maj, 3);
		expect("api minor", vrom->api_version_min, 0);
		expect_that("virtual top", vrom->virtual_top >= 0xf0000000);
		expect_that("licence", same(text_at(vrom->license_offset), "GPL"));
		expect_that("pci header", vrom->pci_header_offset != 0);
		expect("pci vendor", *(const u16 *)text_at(vrom->pci_header_offset + 4), 0x15ad);
		expect("pci device", *(const u16 *)text_at(vrom->pci_header_offset + 6), 0x0801);
	}
	verdict("rom.header");
}

/* EAX = number -> EAX = address, DL = type. */
static void relocation(u32 number, u32 *address, u8 *type)
{
	u32 eax = number, edx = 0, ecx;

	asm volatile("call *%3" : "+a"(eax), "+d"(edx), "=c"(ecx) : "r"(vrom->get_reloc) : "memory", "cc");
	*address = eax;
	*type = (u8)edx;
}

static void patch(u8 *site, u32 length, u32 number)
{
	u8 type = vmi_type[number];
	u32 target = vmi_entry[number] - (u32)site - 5;

	if (type == RELOCATION_NONE)
		return;
	for (u32 i = 0; i < length; i++)
		site[i] = 0x90;
	if (type == RELOCATION_NOP)
		return;
	site[0] = type == RELOCATION_CALL ? 0xe8 : 0xe9;
	for (u32 i = 0; i < 4; i++)
		site[1 + i] = (u8)(target >> 8 * i);
}

static u32 initialise(void)
{
	u32 eax, edx, ecx;

	asm volatile("call *%3" : "=a"(eax), "=d"(edx), "=c"(ecx) : "r"(vrom->vmi_init) : "memory", "cc");
	return eax;
}

static void relocate(void)
{
	extern u8 site_irq_disable[], site_irq_enable[], site_irq_save[], site_irq_restore[],
		site_io_delay[], site_iret[], site_sysexit[];
	static u8 *const sites[] = { site_irq_disable, site_irq_enable, site_irq_save,
		site_irq_restore, site_io_delay, site_iret, site_sysexit };
	static const u8 numbers[] = { VMI_DisableInterrupts, VMI_EnableInterrupts,
		VMI_GetInterruptMask, VMI_SetInterruptMask, VMI_IODelay, VMI_IRET, VMI_SYSEXIT };
	u32 address;
	u8 type;

	for (u32 n = 0; n < VMI_CALLS; n++) {
		relocation(n, &vmi_entry[n], &vmi_type[n]);
		expect_that("a known type", vmi_type[n] <= RELOCATION_NOP);
		if (vmi_type[n] == RELOCATION_CALL || vmi_type[n] == RELOCATION_JUMP)
			expect_that("an address in the hole", vmi_entry[n] >= vrom->virtual_top);
	}
	expect_that("IRET is not native", vmi_type[VMI_IRET] == RELOCATION_JUMP ||
		    vmi_type[VMI_IRET] == RELOCATION_CALL);
	relocation(VMI_CALLS, &address, &type);
	expect("type of call 74", type, RELOCATION_NONE);
	relocation(0xffffffff, &address, &type);
	expect("type of call -1", type, RELOCATION_NONE);
	for (u32 i = 0; i < ARRAY_LENGTH(sites); i++)
		patch(sites[i], i < 5 ? 5 : 7, numbers[i]);
	verdict("rom.relocation");
}

void start_vmi(void)
{
	u32 cs, ss, ds, result;

	asm volatile("mov %%cs, %0" : "=r"(start_cs));
	expect("cs before", start_cs, SEL_KERNEL_CODE);
	expect("result", initialise(), 0);
	asm volatile("mov %%cs, %0; mov %%ss, %1; mov %%ds, %2" : "=r"(cs), "=r"(ss), "=r"(ds));
	expect("cs", cs, SEL_KERNEL_CODE | KERNEL_RPL);
	expect("ss", ss, SEL_KERNEL_DATA | KERNEL_RPL);
	expect("ds", ds & ~3u, SEL_KERNEL_DATA);
	relocate();
	verdict("rom.vmi_init");

	result = initialise(); /* the second time it is refused, and nothing happens */
	expect_that("refused", result != 0);
	asm volatile("mov %%cs, %0" : "=r"(cs));
	expect("cs", cs, SEL_KERNEL_CODE | KERNEL_RPL);
	verdict("rom.vmi_init_once");
}
