/* Integer names of the samples: sizes are part of every interface shown here. */
#ifndef SAMPLES_TYPES_H
#define SAMPLES_TYPES_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char s8;
typedef short s16;
typedef int s32;
typedef long long s64;
typedef unsigned long ulong; /* as wide as a general register */

#define ARRAY_LENGTH(a) (sizeof(a) / sizeof((a)[0]))

#endif
