"""The selectors of the flat segments in Xen's part of the GDT (include/public/arch-x86/xen-x86_{32,64}.h)."""

from __future__ import annotations

__all__ = ["FLAT"]

FLAT = {
    64: {"kernel_cs": 0xE033, "kernel_ss": 0xE02B, "user_ss": 0xE02B},
    32: {"kernel_cs": 0xE019, "kernel_ss": 0xE021, "user_ss": 0xE033},
}
