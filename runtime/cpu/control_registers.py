"""What MOV to CR4 refuses: bits of features that CPUID does not offer.

The emulated CPU keeps bits that it knows nothing of; a guest would believe in a protection that it does not
have. Source: Intel SDM vol. 3, 2.5 (reserved bits of CR4 give #GP) and the CPUID bits named there.
"""

from __future__ import annotations

import iced_x86

from runtime.cpu.vcpu import VCpu
from runtime.cpu.watch import Site

__all__ = ["CONTROL_MNEMONICS", "refuses_cr4"]

CONTROL_MNEMONICS = frozenset({"mov cr4"})

_ALWAYS = 0x7FF
"""VME to OSXMMEXCPT: bits 0 to 10, which every CPU of long mode has."""
_FSGSBASE, _OSXSAVE, _SMEP = 1 << 16, 1 << 18, 1 << 20
_OFFERED = _ALWAYS | _FSGSBASE | _OSXSAVE | _SMEP
"""Not among them: UMIP, LA57, VMXE, SMXE, PCIDE, SMAP, PKE, CET and what came later."""


def refuses_cr4(cpu: VCpu, site: Site) -> bool:
    """True if the MOV to CR4 at `site` gives #GP(0) for the value that it would write."""
    source = site.decode().op1_register
    value = int(cpu.state.gpr[iced_x86.RegisterExt.number(source)])
    if site.width != 64:
        value &= 0xFFFFFFFF
    return bool(value & ~_OFFERED)
