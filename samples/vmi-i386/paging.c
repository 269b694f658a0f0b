/* Page tables of either format: the first 4 MiB map to themselves, the rest is made by calls. */
#include "kernel.h"

#define POOL 8

u32 root, entry_size;

static u32 directory[1024] __attribute__((aligned(4096)));
static u64 directory_pointers[4] __attribute__((aligned(4096)));
static u64 pae_directory[4][512] __attribute__((aligned(4096)));
static u8 pool[POOL][4096] __attribute__((aligned(4096)));
static u32 used;

/* "pae" on the command line chooses 8-byte entries. */
static int wants_pae(void)
{
	const u32 *info = (const u32 *)multiboot_info;
	const char *words = info && (info[0] & 4) ? (const char *)info[4] : "";

	for (; *words; words++)
		if (words[0] == 'p' && words[1] == 'a' && words[2] == 'e')
			return 1;
	return 0;
}

static void *directory_entry(u32 linear)
{
	if (entry_size == 8)
		return &pae_directory[linear >> 30][linear >> 21 & 511];
	return &directory[linear >> 22];
}

void *leaf(u32 linear)
{
	u32 entry = *(u32 *)directory_entry(linear);
	u32 index = entry_size == 8 ? linear >> 12 & 511 : linear >> 12 & 1023;

	return entry & 1 ? (u8 *)(entry & ~0xfffu) + index * entry_size : 0;
}

static void *new_table(void)
{
	return pool[used++];
}

void paging_init(void)
{
	entry_size = wants_pae() ? 8 : 4;
	root = entry_size == 8 ? (u32)directory_pointers : (u32)directory;
	for (u32 i = 0; i < 4; i++)
		directory_pointers[i] = (u32)pae_directory[i] | 1;
	for (u32 at = 0; at < 0x400000; at += 4096) {
		if (!leaf(at))
			*(u32 *)directory_entry(at) = (u32)new_table() | 7;
		*(u32 *)leaf(at) = at | 3;
	}
	if (entry_size == 8)
		asm volatile("mov %%cr4, %%eax; or $0x20, %%eax; mov %%eax, %%cr4" : : : "eax");
	asm volatile("mov %0, %%cr3; mov %%cr0, %%eax; or $0x80010000, %%eax; mov %%eax, %%cr0"
		     : : "r"(root) : "eax", "memory");
}

static void set_entry(u32 value, void *entry, u32 flags)
{
	if (entry_size == 8)
		vmi5(VMI_SetPxELong, value, 0, (u32)entry, flags, 0);
	else
		vmi(VMI_SetPxE, value, (u32)entry, flags);
}

void set_leaf(u32 linear, u32 value, u32 flags)
{
	set_entry(value, leaf(linear), VMI_PAGE_PT | flags);
}

/* As Linux: the page becomes a table first, then an entry points to it. */
void add_table(u32 linear)
{
	u32 table;

	if (leaf(linear))
		return;
	table = (u32)new_table();
	vmi5(VMI_AllocatePage, table >> 12, VMI_PAGE_PT | VMI_PAGE_ZEROED |
	     (entry_size == 8 ? VMI_PAGE_PAE : 0), 0, 0, 0);
	set_entry(table | 7, directory_entry(linear), VMI_PAGE_PD);
}

/* Another top table with the same contents. */
u32 root_of_copy(void)
{
	u32 *copy = new_table();
	const u32 *from = (const u32 *)root;

	for (u32 i = 0; i < 1024; i++)
		copy[i] = from[i];
	vmi5(VMI_AllocatePage, (u32)copy >> 12, (entry_size == 8 ? VMI_PAGE_PDP | VMI_PAGE_PAE :
	     VMI_PAGE_PD) | VMI_PAGE_CLONE, root >> 12, 0, entry_size == 8 ? 4 : 1024);
	return (u32)copy;
}
