"""Deliveries into a paravirtual guest and the way back: bounce frames, event upcalls, HYPERVISOR_iret.

Frames are those of create_bounce_frame (xen/arch/x86/x86_64/entry.S, compat/entry.S; 4.2's x86_32/entry.S)
and do_iret (pv/iret.c). The guest's saved upcall mask travels beside CS; IF in the frame is its opposite.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from runtime.backends.xen.domain import Callback, Domain
from runtime.backends.xen.frames import XenError
from runtime.backends.xen.selectors import FLAT
from runtime.cpu import flags as fl
from runtime.cpu.linear import LinearMemory
from runtime.cpu.segments import load_cache, read_descriptor, update_modes
from runtime.cpu.vcpu import VCpu
from runtime.memory import PageFault

__all__ = ["DomainCrashError", "Traps"]

SEGMENT_NAMES = ("ES", "CS", "SS", "DS", "FS", "GS")
VGCF_IN_SYSCALL = 1 << 8
ARCHITECTURAL_IOPL = 1 << 4
CLEARED_ON_ENTRY = fl.AC | fl.VM | fl.RF | fl.NT | fl.TF
MASK64 = (1 << 64) - 1
NMI = 2


class DomainCrashError(Exception):
    """Xen ends the domain; the text is what its console says."""


class BadSelectorError(Exception):
    """A selector that the CPU would not take."""


@dataclass(frozen=True)
class _Context:
    """The interrupted state that a frame tells the guest."""

    rip: int
    cs: int
    rflags: int
    rsp: int
    ss: int


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
        """Load CS or SS from the real GDT or LDT. Raises BadSelectorError where the CPU would fault."""
        if register == fl.SS and self.domain.width == 64 and selector < 4:
            load_cache(self.cpu, register, selector, 0, 0xFFFFFFFF, 0x00CFF300)
            return
        try:
            descriptor = read_descriptor(self.cpu, self.linear, selector)
        except PageFault:
            descriptor = None
        kind = descriptor is not None and (
            descriptor.is_code if register == fl.CS else descriptor.is_writable_data
        )
        if descriptor is None or not descriptor.present or not kind or selector < 4:
            raise BadSelectorError(f"selector {selector:#06x} for {SEGMENT_NAMES[register]}")
        if register == fl.SS and descriptor.dpl != selector & 3:
            raise BadSelectorError(f"SS {selector:#06x} of level {descriptor.dpl}")
        load_cache(self.cpu, register, selector, descriptor.base, descriptor.limit, descriptor.high)

    # -- into the guest ------------------------------------------------------------------------

    def exception(
        self, vector: int, error_code: int, pushes_error: bool, is_fault: bool | None = None
    ) -> None:
        """Bounce an exception through the guest's trap table; `is_fault` says of a #DB that it is none of the
        traps that most are. Raises DomainCrashError without a handler."""
        trap = self.domain.traps.get(vector)
        if trap is None or not trap.address:
            name = fl.EXCEPTION_NAMES.get(vector, "unknown")
            raise DomainCrashError(f"Unhandled {name} fault/trap [#{vector}, ec={error_code:04x}]")
        self._count(f"trap {vector}")
        code = error_code if pushes_error else None
        context = self._context()
        is_fault = vector not in (fl.DB, fl.BP, fl.OV) if is_fault is None else is_fault
        if is_fault:  # the processor had set RF in the frame that Xen passes on
            context = replace(context, rflags=context.rflags | fl.RF)
        self._bounce(trap.cs, trap.address, code, trap.mask_events, context)

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
        callback = self._callback("event")
        self._count("event upcall")
        self._bounce(callback.cs, callback.address, None, True)

    def nmi(self) -> None:
        """A pending NMI, if the guest registered a handler (a trap-table entry like any other)."""
        self.domain.nmi_pending = False
        trap = self.domain.traps.get(NMI)
        if trap is not None and trap.address:
            self._count("nmi")
            self._bounce(trap.cs, trap.address, None, True)

    def syscall(self) -> None:
        """SYSCALL from pv64 user mode: the syscall callback, with the hardware's RCX and R11."""
        callback = self._callback("syscall")
        state = self.cpu.state
        state.gpr[fl.RCX], state.gpr[11] = state.rip, self.cpu.rflags
        self._count("syscall")
        self._bounce(callback.cs, callback.address, None, callback.mask_events)

    def sysenter(self) -> bool:
        """SYSENTER from user mode: the sysenter callback with a frame that says nothing of the caller,
        since the instruction does not (entry.S: sysenter_entry). False: a #GP is due."""
        callback = self.domain.callbacks.get("sysenter")
        if callback is None or not callback.address or self.in_kernel:
            return False
        self._count("sysenter")
        context = _Context(0, 3, self._frame_flags(), 0, FLAT[self.domain.width]["user_ss"])
        self._bounce(callback.cs, callback.address, None, callback.mask_events, context)
        return True

    def _callback(self, name: str) -> Callback:
        callback = self.domain.callbacks.get(name)
        if callback is None or not callback.address:
            raise DomainCrashError(f"no {name} callback is registered: the address to call is 0")
        return callback

    def _count(self, name: str) -> None:
        self.delivered[name] = self.delivered.get(name, 0) + 1

    def _frame_flags(self) -> int:
        """RFLAGS for a frame: IF is the opposite of the mask, IOPL the virtual one where asked for."""
        value = self.cpu.rflags & ~(fl.IF | fl.IOPL | fl.RF)
        if not self.domain.upcall_mask:
            value |= fl.IF
        if self.domain.vm_assist & ARCHITECTURAL_IOPL:
            value |= self.domain.iopl << 12
        return value

    def _context(self) -> _Context:
        state = self.cpu.state
        return _Context(
            state.rip,
            state.segments[fl.CS].selector,
            self._frame_flags(),
            state.gpr[fl.RSP],
            state.segments[fl.SS].selector,
        )

    def _bounce(
        self,
        cs: int,
        address: int,
        error_code: int | None,
        mask_events: bool,
        context: _Context | None = None,
        with_segments: bool = False,
    ) -> None:
        """create_bounce_frame: push what was interrupted, then go to the guest's handler."""
        selectors = [int(self.cpu.state.segments[i].selector) for i in (fl.DS, fl.ES, fl.FS, fl.GS)]
        extra = selectors if with_segments else []
        if error_code is not None:
            extra = [error_code]
        enter = self._enter64 if self.domain.width == 64 else self._enter32
        try:
            enter(cs, address, extra, mask_events, context or self._context())
        except BadSelectorError as error:
            raise DomainCrashError(f"bad {error} of a trap handler") from None

    def _store(self, address: int, words: list[int], size: int) -> None:
        mask = (1 << 8 * size) - 1
        try:
            self.domain.space.write(address, b"".join((w & mask).to_bytes(size, "little") for w in words))
        except XenError:
            raise DomainCrashError(f"fault while writing a bounce frame at {address:#x}") from None

    def _enter64(
        self, _cs: int, address: int, extra: list[int], mask_events: bool, context: _Context
    ) -> None:
        domain, state = self.domain, self.cpu.state
        masked = domain.upcall_mask
        if domain.kernel_mode:
            stack, cs = context.rsp, context.cs & ~3
        else:
            stack, cs = domain.kernel_sp, context.cs
            self.toggle()
        words = [state.gpr[fl.RCX], state.gpr[11], *extra, context.rip, cs | (1 << 32 if masked else 0)]
        words += [context.rflags, context.rsp, context.ss]
        stack = ((stack & ~15) - 8 * len(words)) & MASK64
        self._store(stack, words, 8)
        domain.upcall_mask = masked or mask_events
        self.load(fl.CS, FLAT[64]["kernel_cs"])
        self.load(fl.SS, FLAT[64]["kernel_ss"])
        self._arrive(3, stack, address)

    def _enter32(self, cs: int, address: int, extra: list[int], mask_events: bool, context: _Context) -> None:
        domain, state = self.domain, self.cpu.state
        masked = domain.upcall_mask
        words = [*extra, context.rip, context.cs & 0xFFFF | (1 << 16 if masked else 0), context.rflags]
        if context.cs & 3 == 1:
            stack = context.rsp
        else:
            words += [context.rsp, context.ss]
            self.load(fl.SS, domain.kernel_ss)
            stack = domain.kernel_sp
        stack = (stack - 4 * len(words)) & 0xFFFFFFFF
        self._store((state.segments[fl.SS].base + stack) & 0xFFFFFFFF, words, 4)
        domain.upcall_mask = masked or mask_events
        self.load(fl.CS, cs)
        self._arrive(1, stack, address & 0xFFFFFFFF)

    def _arrive(self, cpl: int, stack: int, address: int) -> None:
        state = self.cpu.state
        self.cpu.rflags = self.cpu.rflags & ~CLEARED_ON_ENTRY | fl.IF
        update_modes(self.cpu, cpl)
        state.gpr[fl.RSP], state.rip = stack, address

    # -- out of the guest ----------------------------------------------------------------------

    def iret(self) -> None:
        """HYPERVISOR_iret: leave through the frame on the guest's stack. Raises DomainCrashError."""
        try:
            if self.domain.width == 64:
                self._iret64()
            else:
                self._iret32()
        except XenError:
            at = int(self.cpu.state.gpr[fl.RSP])
            raise DomainCrashError(f"Fault while reading IRET context from guest stack {at:#x}") from None

    def _iret64(self) -> None:
        domain, state = self.domain, self.cpu.state
        raw = domain.space.read(state.gpr[fl.RSP], 72)
        rax, r11, rcx, how, rip, cs, rflags, rsp, ss = (
            int.from_bytes(raw[i : i + 8], "little") for i in range(0, 72, 8)
        )
        if cs & 3 == 3:
            if not domain.user_root:
                raise DomainCrashError("Guest switching to user mode with no user page tables")
            self.toggle()
        if domain.vm_assist & ARCHITECTURAL_IOPL:
            domain.iopl = rflags >> 12 & 3
        state.gpr[fl.RAX] = rax
        if not how & VGCF_IN_SYSCALL:
            state.gpr[fl.RCX], state.gpr[11] = rcx, r11
        domain.upcall_mask = not rflags & fl.IF
        self._leave(_Context(rip, cs & 0xFFFF | 3, rflags & ~(fl.IOPL | fl.VM) | fl.IF, rsp, ss & 0xFFFF | 3))

    def _iret32(self) -> None:
        domain, state = self.domain, self.cpu.state
        base, esp = state.segments[fl.SS].base, state.gpr[fl.RSP] & 0xFFFFFFFF
        raw = domain.space.read((base + esp) & 0xFFFFFFFF, 16)
        eax, eip, cs, eflags = (int.from_bytes(raw[i : i + 4], "little") for i in range(0, 16, 4))
        cs, esp, ss = cs & 0xFFFF, esp + 16, state.segments[fl.SS].selector
        if eflags & fl.VM or cs & 3 == 0:
            raise DomainCrashError(f"IRET to ring 0 or to virtual-8086 mode (CS {cs:#06x})")
        if cs & 3 != 1:
            raw = domain.space.read((base + esp) & 0xFFFFFFFF, 8)
            esp, ss = int.from_bytes(raw[:4], "little"), int.from_bytes(raw[4:6], "little")
        if domain.vm_assist & ARCHITECTURAL_IOPL:
            domain.iopl = eflags >> 12 & 3
        state.gpr[fl.RAX] = eax
        domain.upcall_mask = not eflags & fl.IF
        flags = eflags & ~(fl.IOPL | fl.VM) & 0x3FFFFF | fl.IF
        self._leave(_Context(eip, cs, flags, esp & 0xFFFFFFFF, ss))

    def _leave(self, context: _Context) -> None:
        """What IRET does at the end; a context that the CPU refuses goes to the failsafe callback."""
        state = self.cpu.state
        old = [(s.selector, s.base, s.limit, s.flags) for s in (state.segments[fl.CS], state.segments[fl.SS])]
        try:
            if self.domain.width == 64 and context.rip >> 47 not in (0, 0x1FFFF):
                raise BadSelectorError(f"instruction pointer {context.rip:#x}")
            self.load(fl.CS, context.cs)
            self.load(fl.SS, context.ss)
        except BadSelectorError as error:
            for index, values in zip((fl.CS, fl.SS), old, strict=True):
                load_cache(self.cpu, index, *values)
            self._failsafe(context, str(error))
            return
        self.cpu.rflags = context.rflags
        update_modes(self.cpu, context.cs & 3)
        state.rip, state.gpr[fl.RSP] = context.rip, context.rsp

    def _failsafe(self, context: _Context, why: str) -> None:
        """The failsafe callback: DS, ES, FS, GS below the frame of what could not be returned to."""
        callback = self.domain.callbacks.get("failsafe")
        if callback is None or not callback.address:
            raise DomainCrashError(f"IRET with bad {why} and no failsafe callback")
        self._count("failsafe")
        flags = context.rflags & ~fl.IF | (0 if self.domain.upcall_mask else fl.IF)
        told = _Context(context.rip, context.cs, flags, context.rsp, context.ss)
        self._bounce(callback.cs, callback.address, None, callback.mask_events, told, with_segments=True)
