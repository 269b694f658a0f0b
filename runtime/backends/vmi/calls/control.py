"""Calls that go somewhere else than to the instruction after their VMCALL."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from runtime.backends.vmi.errors import GuestKilled
from runtime.backends.vmi.tables import KERNEL_PRIVILEGE
from runtime.cpu import flags as fl
from runtime.cpu.delivery import CpuFault
from runtime.cpu.segments import load_cache, update_modes

if TYPE_CHECKING:
    from runtime.backends.vmi.model import VmiModel

__all__ = ["control_handlers", "enter_sysenter"]

_WORD = 0xFFFFFFFF
_HARD = 1
_FLAT_CODE, _FLAT_DATA = 0x00C0BB00, 0x00C0B300
_USER_DPL = 0x6000
_USER = 3


class _Control:
    def __init__(self, model: VmiModel) -> None:
        self._model = model

    def enabled(self) -> None:
        """EnableInterrupts and SetInterruptMask with something pending."""
        self._model.return_from_call()
        self._model.interrupts.deliver_pending()

    def iret(self) -> None:
        """IRET to interrupts on with something pending: it comes first, and the IRET is done again."""
        model = self._model
        flags = model.stack_word(2)
        if flags & fl.VM:
            raise GuestKilled("IRET to virtual-8086 mode, which this hypervisor does not have")
        model.machine.cpu.state.rip = model.text.entries[model.known.number("IRET")]
        model.write_shared("pending", int(model.interrupts.pending()))
        model.enable_interrupts(True)
        model.interrupts.deliver_pending()

    def sysexit(self) -> None:
        """SYSEXIT to EDX with stack ECX, interrupts on."""
        cpu = self._model.machine.cpu
        state = cpu.state
        base = state.sysenter_cs & 0xFFFC
        if not base:
            raise CpuFault(fl.GP, 0)
        self._model.enable_interrupts(True)
        load_cache(cpu, fl.CS, base + 16 | _USER, 0, _WORD, _FLAT_CODE | _USER_DPL)
        load_cache(cpu, fl.SS, base + 24 | _USER, 0, _WORD, _FLAT_DATA | _USER_DPL)
        state.rip, state.gpr[fl.RSP] = state.gpr[fl.RDX] & _WORD, state.gpr[fl.RCX] & _WORD
        update_modes(cpu, _USER)

    def halt(self) -> None:
        """Halt: returns when an interrupt has come."""
        self._model.return_from_call()
        self._model.halt()

    def reboot(self) -> None:
        """Reboot: 1 is hard, all else INIT; both end the run."""
        hard = self._model.machine.cpu.state.gpr[fl.RAX] & _WORD == _HARD
        self._model.machine.reset(f"Reboot ({'hard' if hard else 'soft'})")

    def shutdown(self) -> None:
        """Shutdown."""
        self._model.machine.power_off("Shutdown")


def control_handlers(model: VmiModel) -> dict[str, Callable[[], None]]:
    """Call name -> handler, which sets EIP itself."""
    control = _Control(model)
    return {
        "EnableInterrupts": control.enabled,
        "IRET": control.iret,
        "SYSEXIT": control.sysexit,
        "Halt": control.halt,
        "Reboot": control.reboot,
        "Shutdown": control.shutdown,
    }


def enter_sysenter(model: VmiModel) -> bool:
    """SYSENTER: to the kernel at privilege 1, interrupts off. False means #GP (no code segment set)."""
    cpu = model.machine.cpu
    state = cpu.state
    base = state.sysenter_cs & 0xFFFC
    if not base:
        return False
    model.enable_interrupts(False)
    dpl = KERNEL_PRIVILEGE << 13
    load_cache(cpu, fl.CS, base | KERNEL_PRIVILEGE, 0, _WORD, _FLAT_CODE & ~_USER_DPL | dpl)
    load_cache(cpu, fl.SS, base + 8 | KERNEL_PRIVILEGE, 0, _WORD, _FLAT_DATA & ~_USER_DPL | dpl)
    state.rip, state.gpr[fl.RSP] = state.sysenter_eip & _WORD, state.sysenter_esp & _WORD
    cpu.rflags = cpu.rflags & ~(fl.RF | fl.VM)
    update_modes(cpu, KERNEL_PRIVILEGE)
    return True
