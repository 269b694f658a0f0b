"""The ABI on Xen for native guests: page code, start, missed sites, and who made which hypercall."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from runtime.backends.xen.layout import PAGE_SIZE
from runtime.backends.xen.native.cellhost import NativeHost, trap_variables
from runtime.backends.xen.native.model import HOST_PAGES, Placement, TranslatedDomain
from runtime.backends.xen.native.resident import (
    CODE_PAGES,
    CONSOLE_PORT,
    HOLE,
    LINE_PORT,
    LOW_HOLE,
    RESIDENT_PAGES,
    call_page,
    caller_of,
    identity_root,
    page_of,
    resident,
    write_identity,
    write_resident,
)
from runtime.cpu import flags as fl
from runtime.cpu.delivery import Event
from runtime.deprivileged.cells import Cells
from runtime.deprivileged.frames import TrapFrames
from runtime.deprivileged.guestcode import GuestCode
from runtime.deprivileged.missed import SELECTOR_FAULTS, SILENT, MissedSites, uses_selector
from runtime.deprivileged.operands import decode_at, mnemonic_name
from runtime.deprivileged.usermode import UserMode

if TYPE_CHECKING:
    from runtime.boot.model import EntryState
    from runtime.cpu.watch import Site
    from runtime.machine import Machine

__all__ = ["NATIVE_HIDDEN", "NativeHypervisor"]

NATIVE_HIDDEN = (RESIDENT_PAGES + HOST_PAGES) * PAGE_SIZE
"""Bytes above RAM that a native guest needs."""
_SELECTOR_READS = frozenset(f"{insn} {name}" for insn in ("mov", "push") for name in ("es", "ds", "fs", "gs"))
"""All of the kernel's selectors are virtual ones."""


class NativeHypervisor(TranslatedDomain):
    """A native guest, patched or not."""

    def __init__(self, machine: Machine) -> None:
        self._patched = machine.patched is not None
        placement = Placement(
            pages=RESIDENT_PAGES,
            linear=(HOLE, LOW_HOLE) if self._patched else (),
            code_pages=CODE_PAGES,
            descriptor_page=page_of("gdt") // PAGE_SIZE,
            shared_page=page_of("shared") // PAGE_SIZE,
            line_port=LINE_PORT,
            console_page=page_of("console") // PAGE_SIZE,
            console_port=CONSOLE_PORT,
        )
        machine.capabilities = replace(machine.capabilities, watched=SILENT | _SELECTOR_READS)
        super().__init__(machine, placement)
        size = RESIDENT_PAGES * PAGE_SIZE
        self._code = GuestCode(machine, (HOLE, HOLE + size), (LOW_HOLE, LOW_HOLE + size))
        host = NativeHost(self)
        self._cells = Cells(machine, host, self._code.exited)
        self._missed = MissedSites(machine, host)
        self._frames = TrapFrames(machine, host, trap_variables(), self._cells, self._missed)
        self._user = UserMode(machine, host, self._set_flag, PAGE_SIZE // 8)

    def page_code(self, width: int) -> bytes | None:
        """Slots that lead to the resident code."""
        return call_page(width)

    def start(self, entry: EntryState) -> EntryState:
        """A patched image begins in the resident code, which asks Xen for what it needs; any other at its own
        entry, as far as it gets."""
        base = self.machine.memory.size
        if self._patched:
            self._cells.install()
            self._missed.install()
            write_resident(self.guest, base, entry)
            entry = replace(entry, rip=resident().labels["boot"], long_mode=True)
        else:
            write_identity(self.guest, base)
        root = identity_root(base)
        if entry.long_mode and not self._patched:
            root = entry.cr3 // PAGE_SIZE
        return self.enter_at(entry, root)

    # -- missed sites ----------------------------------------------------------------------------

    def is_own_code(self, address: int) -> bool:
        """The resident code and the call pages."""
        return self._code.owns(address)

    def on_event(self, event: Event) -> bool:
        """Cells, missed sites and traps under way first; the rest as for any domain."""
        own = (self._cells, self._missed, self._frames, self._user)
        answered = any(part.answered(event) for part in own)
        return answered or super().on_event(self._missed.as_defined(event))

    def _answered(self, event: Event) -> bool:
        """Count privileged instructions of the guest's kernel that no patch intercepted."""
        if event.vector in SELECTOR_FAULTS and self.traps.in_kernel and self._missed_here(event):
            return True
        return super()._answered(event)

    def _missed_here(self, event: Event) -> bool:
        """A missed site? True when it has been carried out."""
        cpu = self.machine.cpu
        base = 0 if cpu.code_width == 64 else int(cpu.state.segments[fl.CS].base)
        linear = base + int(cpu.state.rip)
        instruction = None if self.is_own_code(linear) else decode_at(cpu, self.emulator.linear)
        privileged = event.vector == fl.GP and not event.error_code
        if instruction is None or not (
            uses_selector(instruction) or (instruction.is_privileged and privileged)
        ):
            return False
        self.machine.stats.miss(mnemonic_name(instruction), linear)
        return self._patched and self._missed.carry_out(instruction)

    def on_watched(self, site: Site) -> bool:
        """A silently sensitive instruction of the guest's kernel: nothing stops it."""
        if self.traps.in_kernel:
            self.machine.stats.miss(site.mnemonic, site.address)
            instruction = decode_at(self.machine.cpu, self.emulator.linear)
            return self._patched and instruction is not None and self._missed.carry_out(instruction)
        return False

    # -- user mode -------------------------------------------------------------------------------

    def port_allowed(self, site: Site) -> bool:
        """By what the guest's kernel believes that it has set."""
        return self._patched and self._user.port_allowed(site)

    def _set_flag(self, on: bool) -> None:
        """CLI or STI of user mode: the flag is the event mask, seen from the other side."""
        self.domain.upcall_mask = not on
        self.machine.cpu.set_waiting(self.interrupt_waiting())

    # -- figures ---------------------------------------------------------------------------------

    def _begin(self, mask: int) -> int:
        state = self.machine.cpu.state
        self._code.exited(caller_of(int(state.rip) - 2) if self.traps.in_kernel else None)
        return super()._begin(mask)

    def call_exits(self) -> dict[str, int]:
        """ABI calls that reached Xen, by name: hypercalls as they came, port I/O always."""
        return self._code.call_exits()
