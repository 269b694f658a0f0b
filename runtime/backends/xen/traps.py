"""Deliveries into a paravirtual guest and the way back: bounce frames, event upcalls, HYPERVISOR_iret.

Frames are those of create_bounce_frame (xen/arch/x86/x86_64/entry.S, compat/entry.S; 4.2's x86_32/entry.S)
and do_iret (pv/iret.c). The guest's saved upcall mask travels beside CS; IF in the frame is its opposite.
"""

from __future__ import annotations

from runtime.backends.xen.domain import Domain
from runtime.backends.xen.frames import XenError
from runtime.cpu import flags as fl
from runtime.cpu.linear import LinearMemory
from runtime.cpu.segments import load_cache, read_descriptor, update_modes
from runtime.cpu.vcpu import VCpu

__all__ = ["FLAT", "DomainCrashError", "Traps"]

FLAT = {
    64: {"kernel_cs": 0xE033, "kernel_ss": 0xE02B, "cs32": 0xE023},
    32: {"kernel_cs": 0xE019, "kernel_ss": 0xE021, "user_cs": 0xE02B, "user_ds": 0xE033},
}
SEGMENT_NAMES = ("ES", "CS", "SS", "DS", "FS", "GS")
VGCF_IN_SYSCALL = 1 << 8
ARCHITECTURAL_IOPL = 1 << 4
CLEARED_ON_ENTRY = fl.AC | fl.VM | fl.RF | fl.NT | fl.TF
MASK64 = (1 << 64) - 1


class DomainCrashError(Exception):
    """Xen ends the domain; the text is what its console says."""


class Traps:
    """Entries into the guest kernel and returns from it, for one domain on one CPU."""

    def __init__(self, domain: Domain, cpu: VCpu) -> None:
        self.domain = domain
        self.cpu = cpu
        self.linear = LinearMemory(cpu)
        self.delivered: dict[str, int] = {}

    # -- modes ---------------------------------------------------------------------------------

    @property
    def in_kernel(self) -> bool:
        """Is the guest's kernel running (pv64: Xen's own flag; pv32: ring 1)?"""
        if self.domain.width == 64:
            return self.domain.kernel_mode
        return self.cpu.cpl == 1

    def toggle(self) -> None:
        """Switch between the guest's kernel and user mode: page tables and GS base (toggle_guest_mode)."""
        domain, state = self.domain, self.cpu.state
        gs = state.segments[fl.GS]
        if domain.kernel_mode:
            domain.gs_kernel, gs.base = gs.base, domain.gs_user
        else:
            domain.gs_user, gs.base = gs.base, domain.gs_kernel
        domain.kernel_mode = not domain.kernel_mode
        domain.cpu.set_page_table((domain.kernel_root if domain.kernel_mode else domain.user_root) << 12)

    def load(self, register: int, selector: int) -> None:
        """Load a segment register from the real GDT. Raises DomainCrashError if that cannot be."""
        if register not in (fl.CS, fl.SS) and selector < 4:
            load_cache(self.cpu, register, selector, 0, 0, 0)
            return
        if register == fl.SS and self.domain.width == 64 and selector < 4:
            load_cache(self.cpu, register, selector, 0, 0xFFFFFFFF, 0x00CFF300)
            return
        descriptor = read_descriptor(self.cpu, self.linear, selector)
        if descriptor is None or not descriptor.present:
            raise DomainCrashError(f"bad selector {selector:#06x} for {SEGMENT_NAMES[register]}")
        load_cache(self.cpu, register, selector, descriptor.base, descriptor.limit, descriptor.high)

    # -- into the guest ------------------------------------------------------------------------

    def exception(self, vector: int, error_code: int, pushes_error: bool) -> None:
        """Bounce an exception through the guest's trap table. Raises DomainCrashError without a handler."""
        trap = self.domain.traps.get(vector)
        if trap is None or not trap.address:
            raise DomainCrashError(
                f"unhandled {fl.EXCEPTION_NAMES.get(vector, f'trap {vector}')} fault/trap"
                f" [ec={error_code:04x}] at {self.cpu.state.rip:#x}"
            )
        self._count(f"trap {vector}")
        code = error_code if pushes_error else None
        self._bounce(trap.cs, trap.address, code, trap.mask_events)

    def software(self, vector: int) -> bool:
        """INT n: through the trap table if its DPL allows. False: a #GP is due."""
        trap = self.domain.traps.get(vector)
        level = (1 if self.in_kernel else 3) if self.domain.width == 32 else (0 if self.in_kernel else 3)
        if trap is None or not trap.address or trap.dpl < level:
            return False
        self._count(f"trap {vector}")
        self._bounce(trap.cs, trap.address, None, trap.mask_events)
        return True

    def event(self) -> None:
        """The event upcall; it masks further ones."""
        callback = self.domain.callbacks.get("event")
        if callback is None or not callback.address:
            raise DomainCrashError("an event is pending and no event callback is registered")
        self._count("event upcall")
        self._bounce(callback.cs, callback.address, None, True)

    def syscall(self) -> None:
        """SYSCALL from pv64 user mode: the syscall callback, with the hardware's RCX and R11."""
        callback = self.domain.callbacks.get("syscall")
        if callback is None or not callback.address:
            raise DomainCrashError("SYSCALL from user mode and no syscall callback")
        state = self.cpu.state
        state.gpr[fl.RCX], state.gpr[11] = state.rip, self.cpu.rflags
        self._count("syscall")
        self._bounce(0, callback.address, None, callback.mask_events)

    def _count(self, name: str) -> None:
        self.delivered[name] = self.delivered.get(name, 0) + 1

    def _frame_flags(self) -> int:
        """RFLAGS for a frame: IF is the opposite of the mask, IOPL the virtual one where asked for."""
        value = self.cpu.rflags & ~(fl.IF | fl.IOPL)
        if not self.domain.upcall_mask:
            value |= fl.IF
        if self.domain.vm_assist & ARCHITECTURAL_IOPL:
            value |= self.domain.iopl << 12
        return value

    def _bounce(self, cs: int, address: int, error_code: int | None, mask_events: bool) -> None:
        if self.domain.width == 64:
            self._bounce64(address, error_code, mask_events)
        else:
            self._bounce32(cs, address, error_code, mask_events)

    def _store(self, address: int, words: list[int], size: int) -> None:
        mask = (1 << 8 * size) - 1
        try:
            self.domain.space.write(address, b"".join((w & mask).to_bytes(size, "little") for w in words))
        except XenError:
            raise DomainCrashError(f"fault while writing a bounce frame at {address:#x}") from None

    def _bounce64(self, address: int, error_code: int | None, mask_events: bool) -> None:
        domain, state = self.domain, self.cpu.state
        kernel = domain.kernel_mode
        masked, rflags = domain.upcall_mask, self._frame_flags()
        cs, ss, rsp = state.segments[fl.CS].selector, state.segments[fl.SS].selector, state.gpr[fl.RSP]
        if not kernel:
            self.toggle()
        else:
            cs &= ~3
        words = [state.gpr[fl.RCX], state.gpr[11]]
        if error_code is not None:
            words.append(error_code)
        words += [state.rip, cs | (1 << 32 if masked else 0), rflags, rsp, ss]
        stack = (rsp if kernel else domain.kernel_sp) & ~15
        stack -= 8 * len(words)
        self._store(stack & MASK64, words, 8)
        if mask_events:
            domain.upcall_mask = True
        self.load(fl.CS, FLAT[64]["kernel_cs"])
        self.load(fl.SS, FLAT[64]["kernel_ss"])
        update_modes(self.cpu, 3)
        state.gpr[fl.RSP], state.rip = stack & MASK64, address
        self.cpu.rflags = self.cpu.rflags & ~CLEARED_ON_ENTRY | fl.IF

    def _bounce32(self, cs: int, address: int, error_code: int | None, mask_events: bool) -> None:
        domain, state = self.domain, self.cpu.state
        old_cs = state.segments[fl.CS].selector
        kernel = self.cpu.cpl == 1 and not self.cpu.rflags & fl.VM
        words = [state.rip, old_cs | (1 << 16 if domain.upcall_mask else 0), self._frame_flags()]
        if error_code is not None:
            words.insert(0, error_code)
        if kernel:
            base, stack = state.segments[fl.SS].base, state.gpr[fl.RSP] & 0xFFFFFFFF
        else:
            words += [state.gpr[fl.RSP], state.segments[fl.SS].selector]
            self.load(fl.SS, domain.kernel_ss)
            base, stack = state.segments[fl.SS].base, domain.kernel_sp
        stack = (stack - 4 * len(words)) & 0xFFFFFFFF
        self._store((base + stack) & 0xFFFFFFFF, words, 4)
        if mask_events:
            domain.upcall_mask = True
        self.load(fl.CS, cs)
        update_modes(self.cpu, 1)
        state.gpr[fl.RSP], state.rip = stack, address & 0xFFFFFFFF
        self.cpu.rflags = self.cpu.rflags & ~CLEARED_ON_ENTRY | fl.IF

    # -- out of the guest ----------------------------------------------------------------------

    def iret(self) -> None:
        """HYPERVISOR_iret: leave through the frame on the guest's stack. Raises DomainCrashError."""
        try:
            if self.domain.width == 64:
                self._iret64()
            else:
                self._iret32()
        except XenError:
            raise DomainCrashError(
                f"fault while reading the iret frame at {self.cpu.state.gpr[fl.RSP]:#x}"
            ) from None

    def _iret64(self) -> None:
        domain, state = self.domain, self.cpu.state
        raw = domain.space.read(state.gpr[fl.RSP], 72)
        rax, r11, rcx, how, rip, cs, rflags, rsp, ss = (
            int.from_bytes(raw[i : i + 8], "little") for i in range(0, 72, 8)
        )
        if cs & 3 == 3:
            if not domain.user_root:
                raise DomainCrashError("return to user mode without a user page-table base")
            self.toggle()
        if domain.vm_assist & ARCHITECTURAL_IOPL:
            domain.iopl = rflags >> 12 & 3
        self.load(fl.CS, cs & 0xFFFF | 3)
        self.load(fl.SS, ss & 0xFFFF | 3)
        update_modes(self.cpu, 3)
        state.rip, state.gpr[fl.RSP], state.gpr[fl.RAX] = rip, rsp, rax
        if not how & VGCF_IN_SYSCALL:
            state.gpr[fl.RCX], state.gpr[11] = rcx, r11
        self.cpu.rflags = rflags & ~(fl.IOPL | fl.VM) | fl.IF
        domain.upcall_mask = not rflags & fl.IF

    def _iret32(self) -> None:
        domain, state = self.domain, self.cpu.state
        base, esp = state.segments[fl.SS].base, state.gpr[fl.RSP] & 0xFFFFFFFF
        raw = domain.space.read((base + esp) & 0xFFFFFFFF, 16)
        eax, eip, cs, eflags = (int.from_bytes(raw[i : i + 4], "little") for i in range(0, 16, 4))
        cs &= 0xFFFF
        if cs & 3 == 0:
            raise DomainCrashError("iret to ring 0")
        esp += 16
        if cs & 3 != 1:
            raw = domain.space.read((base + esp) & 0xFFFFFFFF, 8)
            esp, ss = int.from_bytes(raw[:4], "little"), int.from_bytes(raw[4:6], "little")
            self.load(fl.SS, ss)
        self.load(fl.CS, cs)
        update_modes(self.cpu, cs & 3)
        state.rip, state.gpr[fl.RSP], state.gpr[fl.RAX] = eip, esp & 0xFFFFFFFF, eax
        self.cpu.rflags = eflags & ~(fl.IOPL | fl.VM) & 0x3FFFFF | fl.IF
        domain.upcall_mask = not eflags & fl.IF
