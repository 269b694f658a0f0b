"""The two jump points of the ROM's header, and the change to privilege 1 that VMI_Init makes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.backends.vmi.tables import KERNEL_PRIVILEGE
from runtime.boot.model import EntryState, FlatSegment
from runtime.cpu import flags as fl
from runtime.cpu.segments import load_cache, update_modes
from runtime.deprivileged.shadow import PAGE
from runtime.memory import PageFault

if TYPE_CHECKING:
    from runtime.backends.vmi.model import VmiModel

__all__ = ["Activation"]

_VMCALL_LENGTH = 3
_FAILED = 1
_DPL_1 = KERNEL_PRIVILEGE << 13
_DPL = 0x6000
_WORD = 0xFFFFFFFF


class Activation:
    """VMI_Init, GetReloc, and the start of guests that know nothing of either."""

    def __init__(self, model: VmiModel) -> None:
        self._model = model

    def jump_point(self) -> bool:
        """A VMCALL outside the mapped ROM: is it one of the header's two?"""
        model = self._model
        view = model.view if model.active else model.machine.linear
        try:
            physical = view.translate(model.code_linear(), mark=False).physical
        except PageFault:
            return False
        offset = physical - model.known.rom_physical
        gpr = model.machine.cpu.state.gpr
        if offset == model.known.header["vmi_init"][0]:
            gpr[fl.RAX] = 0 if self._initialise() else _FAILED
        elif offset == model.known.header["get_reloc"][0]:
            gpr[fl.RAX], gpr[fl.RDX] = self._relocation(gpr[fl.RAX] & _WORD)
        else:
            return False
        model.machine.cpu.state.rip += _VMCALL_LENGTH
        return True

    def _relocation(self, number: int) -> tuple[int, int]:
        """EIP and type; a number that does not exist keeps its native code."""
        model = self._model
        model.count("get_reloc")
        call = model.known.calls.get(number)
        if call is None:
            return 0, model.known.relocations["none"]
        return model.text.entries[number], model.known.relocations[call.relocation]

    def _initialise(self) -> bool:
        """VMI_Init. False when the guest is not in a state for it; nothing has changed then."""
        model, cpu = self._model, self._model.machine.cpu
        state = cpu.state
        model.count("vmi_init")
        flat = all(state.segments[index].base == 0 for index in (fl.CS, fl.SS, fl.DS, fl.ES))
        ready = not model.active and cpu.cpl == 0 and state.cr[0] & fl.CR0_PG and not cpu.long_mode
        if not ready or not flat or cpu.code_width != 32 or cpu.rflags & fl.VM:
            return False
        if not model.guest.contains(state.cr[3] & ~(PAGE - 1), PAGE):
            return False
        gdt, ldt, tr = state.gdt, state.ldt, state.tr
        old_gdt, old_ldt, old_tr = (gdt.base, gdt.limit), ldt.selector, tr.selector
        enabled, iopl = bool(cpu.rflags & fl.IF), cpu.rflags & fl.IOPL
        self._take_registers(state.cr[0], state.cr[3], state.cr[4])
        self._lower_segments()
        try:
            model.tables.set_gdt(*old_gdt)
            if old_ldt & ~3:
                model.tables.set_ldt(old_ldt)
            if old_tr & ~3:
                model.tables.set_tr(old_tr)
        except PageFault as fault:
            model.machine.crash(f"VMI_Init: the guest's descriptor tables need {fault.linear:#x}")
            return True
        self._finish(enabled, iopl)
        return True

    def _take_registers(self, cr0: int, cr3: int, cr4: int) -> None:
        """The control registers are the guest's beliefs from now on; the CPU walks the shadow."""
        model, cpu = self._model, self._model.machine.cpu
        model.write_shared("cr3", cr3)
        model.write_shared("cr4", cr4)
        model.write_shared("cr2", cpu.state.cr[2] & _WORD)
        model.shadow.set_root(cr3)
        cpu.state.efer |= fl.EFER_NXE
        model.set_cr4(cr4)
        cpu.write_control(3, model.shadow.pointer_table)
        model.set_cr0(cr0)

    def _lower_segments(self) -> None:
        """Segments of privilege 0 become segments of privilege 1, code and stack with that RPL."""
        cpu = self._model.machine.cpu
        for index in range(6):
            segment = cpu.state.segments[index]
            selector, flags = segment.selector, segment.flags
            if index in (fl.CS, fl.SS):
                selector = selector & ~3 | KERNEL_PRIVILEGE
            if not flags & _DPL:
                flags |= _DPL_1
            load_cache(cpu, index, selector, segment.base, segment.limit, flags)
        update_modes(cpu, KERNEL_PRIVILEGE)
        self._model.tables.use()

    def _finish(self, enabled: bool, iopl: int) -> None:
        model, cpu = self._model, self._model.machine.cpu
        model.iopl = iopl
        model.enable_interrupts(enabled)
        cpu.rflags = cpu.rflags & ~fl.IOPL | fl.IF
        model.activate()

    def deprivileged(self, entry: EntryState, root: int) -> EntryState:
        """The start of a guest that will never call VMI_Init: at privilege 1 from its first instruction,
        on the page table at `root`, which maps everything to itself."""
        model = self._model
        model.shadow.set_root(root)
        model.tables.gdt_limit = 0

        def lowered(segment: FlatSegment) -> FlatSegment:
            selector = segment.selector & ~3 | KERNEL_PRIVILEGE
            return FlatSegment(selector, segment.base, segment.limit, segment.attributes | _DPL_1)

        return EntryState(
            rip=entry.rip,
            registers=entry.registers,
            rflags=entry.rflags & ~fl.IOPL | fl.IF,
            cr0=entry.cr0 | fl.CR0_PG,
            cr3=root,
            cr4=entry.cr4,
            gdt=entry.gdt,
            code=lowered(entry.code),
            data=lowered(entry.data),
        )

    def entered_deprivileged(self, entry: EntryState) -> None:
        """The CPU is as `deprivileged` said: let the shadow tables take over."""
        cpu = self._model.machine.cpu
        self._take_registers(entry.cr0 | fl.CR0_PG, entry.cr3, entry.cr4)
        self._model.tables.use()
        update_modes(cpu, KERNEL_PRIVILEGE)
        self._finish(False, 0)
