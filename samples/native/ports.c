/* Port I/O at every size, immediate and register ports, and the string forms. */
#include "check.h"
#include "pc.h"
#include "tests.h"

static u8 bytes[8] = { 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88 };
static u16 words[4];
static u32 longs[4];

/* *to and *count are left as the instruction leaves them. */
#define INPUT_STRING(size, port, to, count) \
	asm volatile("rep ins" size : "+D"(to), "+c"(count) : "d"((u16)(port)) : "memory")
#define OUTPUT_STRING(size, port, from, count) \
	asm volatile("rep outs" size : "+S"(from), "+c"(count) : "d"((u16)(port)) : "memory")

static void single(void)
{
	u8 mask = in8(PORT_PIC1_MASK);
	ulong rest;

	out8(PORT_PIC1_MASK, 0xa5);
	expect("mask", in8(PORT_PIC1_MASK), 0xa5);
	out8(PORT_PIC1_MASK, mask);
	/* An 8-bit read keeps the rest of the accumulator; only the low byte is replaced. */
	asm volatile("mov $0x12345678, %k0; in $0x21, %b0" : "=&a"(rest));
	expect("rest of eax", rest, 0x12345600 | mask);
	out8(PORT_COM1_SCRATCH, 0x3c);
	expect("scratch", in8(PORT_COM1_SCRATCH), 0x3c);
	verdict("ports.in8_out8");

	out8(PORT_CMOS_INDEX, 0x0e); /* diagnostic status byte: plain storage */
	out8(PORT_CMOS_DATA, 0x5a);
	out8(PORT_CMOS_INDEX, 0x0e);
	expect("cmos", in8(PORT_CMOS_DATA), 0x5a);
	out8(PORT_CMOS_INDEX, 0x0e);
	out8(PORT_CMOS_DATA, 0);
	verdict("ports.indexed_pair");

	out16(PORT_UNCLAIMED, 0x1234);
	asm volatile("mov $0x12345678, %k0; in %%dx, %w0" : "=&a"(rest) : "d"((u16)PORT_UNCLAIMED));
	expect("floating bus", rest, 0x1234ffff);
	expect("floating bus", in8(PORT_UNCLAIMED), 0xff);
	out32(PORT_UNCLAIMED, 0x12345678);
	expect("floating bus", in32(PORT_UNCLAIMED), 0xffffffff);
	asm volatile("out %w0, $0xe8; out %k0, $0xe8" : : "a"(0)); /* port in the instruction */
	asm volatile("mov $0x12345678, %k0; in $0xe8, %w0" : "=&a"(rest));
	expect("immediate port", rest, 0x1234ffff);
	asm volatile("in $0xe8, %k0" : "=a"(rest));
	expect("immediate port", rest, 0xffffffff);
	verdict("ports.unclaimed");

	out32(PORT_PCI_ADDRESS, 0x8000f8fc);
	expect("pci address", in32(PORT_PCI_ADDRESS), 0x8000f8fc);
	out32(PORT_PCI_ADDRESS, 0);
	verdict("ports.in32_out32");
}

static void strings(void)
{
	void *at = bytes;
	ulong count = sizeof bytes;

	OUTPUT_STRING("b", PORT_COM1_SCRATCH, at, count);
	expect("count", count, 0);
	expect("source", (ulong)at, (ulong)(bytes + sizeof bytes));
	expect("last byte", in8(PORT_COM1_SCRATCH), 0x88);
	verdict("ports.rep_outsb");

	at = bytes;
	count = 4;
	INPUT_STRING("b", PORT_COM1_SCRATCH, at, count);
	expect("count", count, 0);
	expect("target", (ulong)at, (ulong)(bytes + 4));
	expect("first", bytes[0], 0x88);
	expect("fourth", bytes[3], 0x88);
	expect("fifth untouched", bytes[4], 0x55);
	count = 0;
	INPUT_STRING("b", PORT_COM1_SCRATCH, at, count);
	expect("nothing moved", (ulong)at, (ulong)(bytes + 4));
	verdict("ports.rep_insb");

	at = bytes + 4;
	asm volatile("insb" : "+D"(at) : "d"((u16)PORT_COM1_SCRATCH) : "memory");
	expect("target", (ulong)at, (ulong)(bytes + 5));
	expect("fifth", bytes[4], 0x88);
	at = bytes + 5;
	asm volatile("outsb" : "+S"(at) : "d"((u16)PORT_COM1_SCRATCH) : "memory");
	expect("source", (ulong)at, (ulong)(bytes + 6));
	expect("scratch", in8(PORT_COM1_SCRATCH), 0x66);
	verdict("ports.insb_outsb");

	at = words;
	asm volatile("insw" : "+D"(at) : "d"((u16)PORT_UNCLAIMED) : "memory");
	expect("target", (ulong)at, (ulong)(words + 1));
	expect("word", words[0], 0xffff);
	expect("next word", words[1], 0);
	at = words;
	asm volatile("outsw" : "+S"(at) : "d"((u16)PORT_UNCLAIMED) : "memory");
	expect("source", (ulong)at, (ulong)(words + 1));
	at = words + 1;
	count = 2;
	INPUT_STRING("w", PORT_UNCLAIMED, at, count);
	expect("third word", words[2], 0xffff);
	expect("fourth word", words[3], 0);
	expect("target", (ulong)at, (ulong)(words + 3));
	at = words;
	count = 3;
	OUTPUT_STRING("w", PORT_UNCLAIMED, at, count);
	expect("source", (ulong)at, (ulong)(words + 3));
	expect("count", count, 0);
	verdict("ports.insw_outsw");

	longs[0] = 0x80000800;
	longs[1] = 0x80001000;
	at = longs;
	count = 2;
	OUTPUT_STRING("l", PORT_PCI_ADDRESS, at, count);
	expect("pci address", in32(PORT_PCI_ADDRESS), 0x80001000);
	/* Backwards: with DF set the pointer goes down. */
	at = longs + 3;
	count = 2;
	asm volatile("std; rep insl; cld" : "+D"(at), "+c"(count)
		     : "d"((u16)PORT_PCI_ADDRESS) : "memory", "cc");
	expect("target", (ulong)at, (ulong)(longs + 1));
	expect("count", count, 0);
	expect("last", longs[3], 0x80001000);
	expect("one before", longs[2], 0x80001000);
	expect("untouched", longs[1], 0x80001000);
	expect("first untouched", longs[0], 0x80000800);
	verdict("ports.insl_outsl_backwards");

	longs[0] = 0x80002000;
	at = longs;
	asm volatile("outsl" : "+S"(at) : "d"((u16)PORT_PCI_ADDRESS) : "memory");
	expect("source", (ulong)at, (ulong)(longs + 1));
	at = longs + 1;
	asm volatile("insl" : "+D"(at) : "d"((u16)PORT_PCI_ADDRESS) : "memory");
	expect("target", (ulong)at, (ulong)(longs + 2));
	expect("value", longs[1], 0x80002000);
	out32(PORT_PCI_ADDRESS, 0);
	verdict("ports.insl_outsl");
}

void test_ports(void)
{
	single();
	strings();
}
