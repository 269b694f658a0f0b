/* The few parts of a PC that the samples use: ports, serial line, power. */
#ifndef SAMPLES_PC_H
#define SAMPLES_PC_H

#include "types.h"

enum {
	PORT_PIC1 = 0x20, PORT_PIC1_MASK = 0x21,
	PORT_PIT_CHANNEL0 = 0x40, PORT_PIT_MODE = 0x43,
	PORT_CMOS_INDEX = 0x70, PORT_CMOS_DATA = 0x71,
	PORT_PIC2 = 0xa0, PORT_PIC2_MASK = 0xa1,
	PORT_DEBUG_EXIT = 0xf4,
	PORT_COM1 = 0x3f8, PORT_COM1_STATUS = 0x3fd, PORT_COM1_SCRATCH = 0x3ff,
	PORT_ACPI_CONTROL = 0x604,
	PORT_PCI_ADDRESS = 0xcf8,
	PORT_UNCLAIMED = 0x1230, /* no device answers here */
};

static inline u8 in8(u16 port)
{
	u8 value;

	asm volatile("inb %w1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

static inline u16 in16(u16 port)
{
	u16 value;

	asm volatile("inw %w1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

static inline u32 in32(u16 port)
{
	u32 value;

	asm volatile("inl %w1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

static inline void out8(u16 port, u8 value)
{
	asm volatile("outb %0, %w1" : : "a"(value), "Nd"(port));
}

static inline void out16(u16 port, u16 value)
{
	asm volatile("outw %0, %w1" : : "a"(value), "Nd"(port));
}

static inline void out32(u16 port, u32 value)
{
	asm volatile("outl %0, %w1" : : "a"(value), "Nd"(port));
}

/* Leave the machine for good: ACPI power-off, then a debug exit, then a halt. */
_Noreturn void power_off(void);

#endif
