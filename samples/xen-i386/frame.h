/* What trap() finds: saved registers, then the frame that Xen made. */
#ifndef SAMPLES_XEN_FRAME_H
#define SAMPLES_XEN_FRAME_H

#include "types.h"

struct trap_frame {
	u32 es, ds;
	u32 di, si, bp, unused, bx, dx, cx, ax;
	u32 vector, error;
	u32 ip, cs, flags; /* above CS's 16 bits: the event mask before the trap */
	u32 sp, ss;        /* only from user mode */
};

#endif
