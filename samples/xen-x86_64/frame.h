/* What trap() finds: saved registers, then the frame that Xen made. */
#ifndef SAMPLES_XEN_FRAME_H
#define SAMPLES_XEN_FRAME_H

#include "types.h"

struct trap_frame {
	u64 r15, r14, r13, r12, r11, r10, r9, r8, di, si, bp, bx, dx, cx, ax;
	u64 vector, error;
	u64 ip, cs, flags, sp, ss;
};

#endif
