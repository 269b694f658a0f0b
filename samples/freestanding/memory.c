/* The functions that the compiler may call on its own in freestanding code. */
#include "types.h"

void *memset(void *to, int value, ulong count);
void *memcpy(void *to, const void *from, ulong count);

void *memset(void *to, int value, ulong count)
{
	u8 *p = to;

	while (count--)
		*p++ = (u8)value;
	return to;
}

void *memcpy(void *to, const void *from, ulong count)
{
	u8 *p = to;
	const u8 *q = from;

	while (count--)
		*p++ = *q++;
	return to;
}
