"""The local APIC of one CPU, in xAPIC mode (memory) and x2APIC mode (MSRs).

Requests come from the bus, from its own timer and from the two pins; what may be taken is decided by
priority against the task's and against what is in service. Handed over as firmware does: enabled, with the
8259s let through at LINT0. Source: Intel SDM vol. 3, chapter "Advanced Programmable Interrupt Controller".
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from runtime.devices.apic_bus import ApicBus, ApicMessage, Delivery, Shorthand
from runtime.devices.apic_timer import ApicTimer
from runtime.ports import Clock, MachineControl

__all__ = ["LAPIC_BASE", "LAPIC_VERSION", "LocalApic", "Register"]

LAPIC_BASE = 0xFEE0_0000
"""Guest-physical address of its registers; it cannot be moved."""
LAPIC_VERSION = 0x0005_0014
"""An integrated APIC with six entries in its local vector table."""


class Register(enum.IntEnum):
    """Registers by number: offset / 16 in memory, MSR 0x800 + number. ISR, TMR and IRR are eight each."""

    ID, VERSION = 0x02, 0x03
    TPR, APR, PPR, EOI, RRD, LDR, DFR, SVR = range(0x08, 0x10)
    ISR, TMR, IRR, ESR = 0x10, 0x18, 0x20, 0x28
    ICR, ICR_HIGH = 0x30, 0x31
    LVT_TIMER, LVT_THERMAL, LVT_COUNTER, LVT_LINT0, LVT_LINT1, LVT_ERROR = range(0x32, 0x38)
    INITIAL_COUNT, CURRENT_COUNT, DIVIDE = 0x38, 0x39, 0x3E
    SELF_IPI = 0x3F


_MASKED = 1 << 16
_LVT_WRITABLE: dict[int, int] = {
    Register.LVT_TIMER: 0x0007_00FF,
    Register.LVT_THERMAL: 0x0001_07FF,
    Register.LVT_COUNTER: 0x0001_07FF,
    Register.LVT_LINT0: 0x0001_A7FF,
    Register.LVT_LINT1: 0x0001_A7FF,
    Register.LVT_ERROR: 0x0001_00FF,
}
_ENABLED = 1 << 8
"""Software enable in the spurious-interrupt vector register."""
_SEND_ILLEGAL, _RECEIVE_ILLEGAL, _ILLEGAL_REGISTER = 1 << 5, 1 << 6, 1 << 7
_FIRST_LEGAL = 16
_ICR_LOGICAL, _ICR_LEVEL, _ICR_TRIGGER = 1 << 11, 1 << 14, 1 << 15
_ICR_WRITABLE = 0x000C_CFFF
_EVERYBODY = 0xFF
_BROADCAST_X2 = 0xFFFF_FFFF
_WORDS = frozenset(range(Register.ISR, Register.ESR))
_READ_ONLY = _WORDS | {
    Register.ID, Register.VERSION, Register.APR, Register.PPR, Register.RRD, Register.CURRENT_COUNT
}  # fmt: skip
_NOT_READ_BY_MSR = frozenset(
    {Register.DFR, Register.ICR_HIGH, Register.EOI, Register.SELF_IPI, Register.RRD, Register.APR}
)
_WRITABLE_BY_MSR: dict[int, int] = {
    Register.TPR: 0xFF, Register.SVR: 0x1FF, Register.EOI: 0, Register.ESR: 0,
    Register.INITIAL_COUNT: 0xFFFF_FFFF, Register.DIVIDE: 0xB, **_LVT_WRITABLE,
}  # fmt: skip
"""Bits that WRMSR may set in x2APIC mode; any other is #GP."""


class LocalApic:
    """One local APIC on `bus`. `on_change` is called when what it offers the CPU may have changed."""

    base = LAPIC_BASE
    size = 0x1000

    def __init__(
        self, number: int, clock: Clock, bus: ApicBus, control: MachineControl, on_change: Callable[[], None]
    ) -> None:
        self._number = number
        self._bus = bus
        self._control = control
        self._on_change = on_change
        self.enabled = True
        """Enabled in IA32_APIC_BASE; if not, there is none."""
        self.x2apic = False
        self._pins = 0
        self.timer = ApicTimer(clock, self._timer_expired, self._timer_waits)
        bus.agents.append(self)
        self.reset()
        self._hand_over()

    def reset(self) -> None:
        """The state at power-up."""
        self.id = self._number
        self.tpr = self.irr = self.isr = self.tmr = 0
        self.ldr, self.dfr, self.svr = 0, 0xFFFFFFFF, 0xFF
        self.esr = self._errors = 0
        self.icr = 0
        self._lvt = dict.fromkeys(_LVT_WRITABLE, _MASKED)
        self.timer.stop()

    def _hand_over(self) -> None:
        """As PC firmware leaves it: the 8259s' output at LINT0 goes through, LINT1 is NMI."""
        self.svr |= _ENABLED
        self._lvt[Register.LVT_LINT0] = Delivery.EXTINT << 8
        self._lvt[Register.LVT_LINT1] = Delivery.NMI << 8

    # -- what the CPU is offered ----------------------------------------------------------------

    @property
    def ppr(self) -> int:
        """Processor priority: the task's, or that of what is in service."""
        serving = _highest(self.isr)
        if serving is None or serving >> 4 <= self.tpr >> 4:
            return self.tpr
        return serving & 0xF0

    @property
    def arbitration(self) -> int:
        """See `BusAgent.arbitration`."""
        return self.ppr

    @property
    def pending(self) -> int | None:
        """The vector that the CPU is to take now, or None."""
        vector = _highest(self.irr)
        if vector is None or not self.svr & _ENABLED or vector >> 4 <= self.ppr >> 4:
            return None
        return vector

    @property
    def passes_pic(self) -> bool:
        """True if the 8259s' output reaches the CPU as their own interrupt."""
        lint0 = self._lvt[Register.LVT_LINT0]
        return not self.enabled or (not lint0 & _MASKED and lint0 >> 8 & 7 == Delivery.EXTINT)

    def acknowledge(self) -> int:
        """The CPU takes the interrupt: its vector, the spurious one if nothing is pending any more."""
        vector = self.pending
        if vector is None:
            return self.svr & 0xFF
        self.irr &= ~(1 << vector)
        self.isr |= 1 << vector
        self._on_change()
        self.timer.resume()
        self._bus.taken()
        return vector

    # -- what arrives -----------------------------------------------------------------------------

    def is_addressed(self, message: ApicMessage) -> bool:
        """See `BusAgent.is_addressed`: a physical or logical destination, flat or by clusters."""
        if not self.enabled:
            return False
        wanted = message.destination
        if wanted in (_EVERYBODY, _BROADCAST_X2):
            return True
        if not message.logical:
            return wanted == self.id
        if self.x2apic:
            return wanted >> 16 == self.ldr >> 16 and bool(wanted & self.ldr & 0xFFFF)
        mine = self.ldr >> 24
        if self.dfr >> 28 == 0xF:
            return bool(wanted & mine)
        return wanted >> 4 in (mine >> 4, 0xF) and bool(wanted & mine & 0xF)

    def take(self, message: ApicMessage) -> bool:
        """See `BusAgent.take`."""
        if message.delivery in (Delivery.FIXED, Delivery.LOWEST):
            return self._request(message.vector, message.level)
        if message.delivery is Delivery.NMI:
            self._control.nmi()
        elif message.delivery is Delivery.INIT:
            self._control.reset("INIT to the processor that runs")
        return True

    def expects(self, vector: int) -> bool:
        """See `BusAgent.expects`."""
        return bool(self.irr >> vector & 1)

    def _request(self, vector: int, level: bool = False) -> bool:
        if not self.svr & _ENABLED or not self.enabled:
            return False
        if vector < _FIRST_LEGAL:
            self._error(_RECEIVE_ILLEGAL)
            return False
        bit = 1 << vector
        self.irr |= bit
        self.tmr = self.tmr | bit if level else self.tmr & ~bit
        self._on_change()
        return True

    def set_pin(self, pin: int, level: bool) -> None:
        """Drive LINT0 or LINT1. A pin in ExtINT mode is looked at by `passes_pic`, not here."""
        rises = level and not self._pins >> pin & 1
        self._pins = self._pins & ~(1 << pin) | level << pin
        if rises:
            self._local(Register(Register.LVT_LINT0 + pin))

    def _local(self, source: Register) -> None:
        """Something of the local vector table wants to interrupt."""
        entry = self._entry(source)
        if entry & _MASKED or not self.enabled:
            return
        mode = entry >> 8 & 7
        if mode == Delivery.FIXED:
            self._request(entry & 0xFF)
        elif mode == Delivery.NMI:
            self._control.nmi()

    def _entry(self, source: Register) -> int:
        return self.timer.lvt if source is Register.LVT_TIMER else self._lvt[source]

    def _timer_expired(self) -> None:
        self._local(Register.LVT_TIMER)

    def _timer_waits(self) -> bool:
        return self.expects(self.timer.lvt & 0xFF)

    def _error(self, bit: int) -> None:
        if not self._errors & bit:
            self._errors |= bit
            self._local(Register.LVT_ERROR)

    # -- memory-mapped registers --------------------------------------------------------------------

    @property
    def _is_mapped(self) -> bool:
        return self.enabled and not self.x2apic

    def read(self, offset: int, size: int) -> int:
        """A register in xAPIC mode: 32 bits at each multiple of 16."""
        if not self._is_mapped:
            return (1 << 8 * size) - 1
        register = offset >> 4
        value = self._read(register)
        if value is None:
            self._error(_ILLEGAL_REGISTER)
            return 0
        return value >> 8 * (offset & 3) & (1 << 8 * size) - 1 if offset & 15 < 4 else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a register in xAPIC mode; only aligned 32-bit words are written."""
        if not self._is_mapped or offset & 15 or size != 4:
            return
        register = offset >> 4
        if register == Register.ICR_HIGH:
            self.icr = self.icr & 0xFFFFFFFF | (value & 0xFF000000) << 32
        elif register == Register.ICR:
            self.icr = self.icr & ~0xFFFFFFFF | value & _ICR_WRITABLE
            self._send()
        elif register == Register.ID:
            self.id = value >> 24
        elif register == Register.LDR:
            self.ldr = value & 0xFF000000
        elif register == Register.DFR:
            self.dfr = value | 0x0FFFFFFF
        elif register not in _READ_ONLY and not self._write(register, value):
            self._error(_ILLEGAL_REGISTER)

    # -- registers of both modes -----------------------------------------------------------------

    def _read(self, register: int) -> int | None:
        """The value of a register, None if there is no such register."""
        if register in _WORDS:
            words = (self.isr, self.tmr, self.irr)[(register >> 3) - 2]
            return words >> 32 * (register & 7) & 0xFFFFFFFF
        if register in _LVT_WRITABLE:
            return self._entry(Register(register)) | self._forced_mask
        values = {
            Register.ID: self.id if self.x2apic else self.id << 24,
            Register.VERSION: LAPIC_VERSION,
            Register.TPR: self.tpr,
            Register.APR: self.ppr,
            Register.PPR: self.ppr,
            Register.RRD: 0,
            Register.EOI: 0,
            Register.LDR: self.ldr,
            Register.DFR: self.dfr,
            Register.SVR: self.svr,
            Register.ESR: self.esr,
            Register.ICR: self.icr & 0xFFFFFFFF,
            Register.ICR_HIGH: self.icr >> 32,
            Register.INITIAL_COUNT: self.timer.initial,
            Register.CURRENT_COUNT: self.timer.current,
            Register.DIVIDE: self.timer.divide,
        }
        return values.get(Register(register)) if register in set(Register) else None

    @property
    def _forced_mask(self) -> int:
        """While disabled by software every entry of the table is masked."""
        return 0 if self.svr & _ENABLED else _MASKED

    def _write(self, register: int, value: int) -> bool:
        """Write a register that is the same in both modes; False if there is no such register."""
        if register in _LVT_WRITABLE:
            self._write_lvt(Register(register), value)
        elif register == Register.TPR:
            self.set_tpr(value & 0xFF)
        elif register == Register.EOI:
            self._end()
        elif register == Register.SVR:
            self._write_svr(value)
        elif register == Register.ESR:
            self.esr, self._errors = self._errors, 0
        elif register == Register.INITIAL_COUNT:
            self.timer.write_initial(value)
        elif register == Register.DIVIDE:
            self.timer.write_divide(value)
        else:
            return False
        return True

    def set_tpr(self, value: int) -> None:
        """Task priority, 0 to 255; CR8 is its upper half."""
        self.tpr = value
        self._on_change()

    def _write_lvt(self, register: Register, value: int) -> None:
        value = value & _LVT_WRITABLE[register] | self._forced_mask
        if register is Register.LVT_TIMER:
            self.timer.write_lvt(value)
            return
        self._lvt[register] = value
        self._on_change()

    def _write_svr(self, value: int) -> None:
        self.svr = value & 0x1FF
        if not value & _ENABLED:
            self._lvt = {register: entry | _MASKED for register, entry in self._lvt.items()}
            self.timer.write_lvt(self.timer.lvt | _MASKED)
        self._on_change()

    def _end(self) -> None:
        """End of interrupt: the highest one in service; the I/O APICs learn of a level one."""
        vector = _highest(self.isr)
        if vector is None:
            return
        self.isr &= ~(1 << vector)
        if self.tmr >> vector & 1:
            self._bus.end(vector)
        self._on_change()

    def _send(self) -> None:
        """Send what the interrupt command register says."""
        word = self.icr
        vector, mode, shorthand = word & 0xFF, word >> 8 & 7, Shorthand(word >> 18 & 3)
        if mode not in (Delivery.FIXED, Delivery.LOWEST, Delivery.NMI, Delivery.INIT, Delivery.STARTUP):
            return
        delivery = Delivery(mode)
        if delivery is Delivery.INIT and word & _ICR_TRIGGER and not word & _ICR_LEVEL:
            return  # INIT level de-assert: nothing to do since the Pentium 4
        if delivery in (Delivery.FIXED, Delivery.LOWEST) and vector < _FIRST_LEGAL:
            self._error(_SEND_ILLEGAL)
            return
        destination = word >> 32 if self.x2apic else word >> 56
        logical = bool(word & _ICR_LOGICAL)
        self._bus.send(ApicMessage(vector, delivery, destination, logical, False, shorthand), self)

    # -- x2APIC mode -------------------------------------------------------------------------------

    def enter_x2apic(self) -> None:
        """From xAPIC mode: the logical destination follows from the APIC's number."""
        self.x2apic = True
        self.id = self._number
        self.ldr = self.id >> 4 << 16 | 1 << (self.id & 15)
        self.icr = 0

    def read_register(self, number: int) -> int | None:
        """RDMSR of 0x800 + `number` in x2APIC mode; None is #GP."""
        if number in _NOT_READ_BY_MSR:
            return None
        return self.icr if number == Register.ICR else self._read(number)

    def write_register(self, number: int, value: int) -> bool:
        """WRMSR of 0x800 + `number` in x2APIC mode; False is #GP."""
        if number == Register.ICR:
            if value & 0xFFFFFFFF & ~_ICR_WRITABLE:
                return False
            self.icr = value
            self._send()
            return True
        if number == Register.SELF_IPI:
            if value >> 8:
                return False
            self._bus.send(ApicMessage(value, Delivery.FIXED, self.id, shorthand=Shorthand.SELF), self)
            return True
        allowed = _WRITABLE_BY_MSR.get(number)
        return allowed is not None and not value & ~allowed and self._write(number, value)


def _highest(vectors: int) -> int | None:
    """The highest vector of a set, None of an empty one."""
    return vectors.bit_length() - 1 if vectors else None
