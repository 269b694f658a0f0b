"""A 16550A serial port with FIFOs and interrupts: COM1, the console of every guest here.

Source: National PC16550D data sheet. Transmission takes no time, so a guest that polls for the
empty transmitter never waits; reception keeps to the programmed character time only for the
FIFO timeout. The other end never overruns the FIFO, and waits until the guest listens: it raises RTS,
or leaves its receive interrupt enabled, or polls for data. So text typed before the guest has opened
its port is not lost. As in QEMU's port, interrupts come whatever OUT2 says.
"""

from __future__ import annotations

from collections import deque

from runtime.devices.interfaces import NANOSECONDS, IrqLine
from runtime.ports import AlarmHandle, Clock, ConsoleSink

__all__ = ["COM1", "Uart16550"]

COM1 = 0x3F8
"""First port of COM1; its request line is IRQ4."""

_RBR, _IER, _IIR, _LCR, _MCR, _LSR, _MSR, _SCR = range(8)
_IER_RX, _IER_THRE, _IER_LINE, _IER_MODEM = 1, 2, 4, 8
_IIR_NONE, _IIR_MODEM, _IIR_THRE, _IIR_RX, _IIR_LINE, _IIR_TIMEOUT = 1, 0, 2, 4, 6, 12
_LCR_DLAB = 0x80
_MCR_RTS, _MCR_LOOP = 0x02, 0x10
_LSR_DATA, _LSR_THRE, _LSR_IDLE = 0x01, 0x20, 0x40
_MSR_CONNECTED = 0xB0  # DCD, DSR, CTS
_MSR_TERI = 0x04
_FIFO_SIZE = 16
_TRIGGERS = (1, 4, 8, 14)
_CLOCK_HZ = 1_843_200
_POLLS_OF_A_LISTENER = 16
"""So many readings of LSR in a row are no check before sending: the guest waits for data."""


class Uart16550:
    """One port at `base`. `sink` takes what the guest sends, `receive` gives it what is typed."""

    def __init__(self, clock: Clock, irq: IrqLine, sink: ConsoleSink, base: int = COM1) -> None:
        self.ports: tuple[int, ...] = tuple(range(base, base + 8))
        self._clock = clock
        self._irq = irq
        self._sink = sink
        self._base = base
        self._divisor = 12
        self._ier = 0
        self._fcr = 0
        self._lcr = 0x03
        self._mcr = 0
        self._scratch = 0
        self._msr = _MSR_CONNECTED
        self._thre_pending = False
        self._timed_out = False
        self._timeout: AlarmHandle | None = None
        self._listens = False
        """The guest has shown, without RTS, that it takes what comes."""
        self._look: AlarmHandle | None = None
        self._polls = 0
        self._fifo: deque[int] = deque()
        self._typed: deque[int] = deque()

    # -- receiving ----------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Bytes are typed at the other end; they wait there until the guest is ready and has room."""
        self._typed.extend(data)
        self._fill()

    def _fill(self) -> None:
        capacity = _FIFO_SIZE if self._fcr & 1 else 1
        ready = not self._mcr & _MCR_LOOP and (self._listens or bool(self._mcr & _MCR_RTS))
        while ready and self._typed and len(self._fifo) < capacity:
            self._fifo.append(self._typed.popleft())
        self._restart_timeout()
        self._update()

    @property
    def _trigger(self) -> int:
        return _TRIGGERS[self._fcr >> 6] if self._fcr & 1 else 1

    def _restart_timeout(self) -> None:
        """The FIFO timeout: four character times without a read or an arrival."""
        if self._timeout is not None:
            self._clock.cancel(self._timeout)
            self._timeout = None
        self._timed_out = False
        if self._fifo and len(self._fifo) < self._trigger:
            self._timeout = self._clock.schedule_at(self._clock.now_ns + 4 * self._character_ns, self._expire)

    @property
    def _character_ns(self) -> int:
        """Time of ten bits at the programmed rate."""
        return 10 * 16 * max(self._divisor, 1) * NANOSECONDS // _CLOCK_HZ

    def _look_for_listener(self) -> None:
        """A receive interrupt that is still enabled one character later was no probing of the register."""
        self._look = None
        if self._ier & _IER_RX and not self._listens:
            self._listens = True
            if self._typed:
                self._fill()

    def _expire(self) -> None:
        self._timeout = None
        self._timed_out = bool(self._fifo)
        self._update()

    # -- interrupts -----------------------------------------------------------------------------

    def _identify(self) -> int:
        """The pending interrupt of highest priority, as the IIR shows it."""
        if self._ier & _IER_RX and len(self._fifo) >= self._trigger:
            return _IIR_RX
        if self._ier & _IER_RX and self._timed_out:
            return _IIR_TIMEOUT
        if self._ier & _IER_THRE and self._thre_pending:
            return _IIR_THRE
        if self._ier & _IER_MODEM and self._msr & 0x0F:
            return _IIR_MODEM
        return _IIR_NONE

    def _update(self) -> None:
        """Drive the request line."""
        self._irq(self._identify() != _IIR_NONE)

    # -- registers --------------------------------------------------------------------------------

    def read(self, port: int) -> int:
        """Read a register; reading data, IIR, LSR or MSR has the chip's effects."""
        register = port - self._base
        self._polls = self._polls + 1 if register == _LSR else 0
        if self._polls == _POLLS_OF_A_LISTENER:
            self._listens = True
            self._fill()
        if self._lcr & _LCR_DLAB and register < 2:
            return self._divisor >> 8 * register & 0xFF
        if register == _RBR:
            return self._read_data()
        if register == _IIR:
            return self._read_iir()
        if register == _MSR:
            return self._read_msr()
        if register == _LSR:
            return (_LSR_DATA if self._fifo else 0) | _LSR_THRE | _LSR_IDLE
        return {_IER: self._ier, _LCR: self._lcr, _MCR: self._mcr, _SCR: self._scratch}[register]

    def _read_data(self) -> int:
        value = self._fifo.popleft() if self._fifo else 0
        self._fill()
        return value

    def _read_iir(self) -> int:
        value = self._identify()
        if value == _IIR_THRE:
            self._thre_pending = False
            self._update()
        return value | (0xC0 if self._fcr & 1 else 0)

    def _read_msr(self) -> int:
        value = self._msr
        self._msr &= 0xF0
        self._update()
        return value

    def write(self, port: int, value: int) -> None:
        """Write a register. LSR and MSR are read only here, as programs must treat them."""
        register = port - self._base
        self._polls = 0
        if self._lcr & _LCR_DLAB and register < 2:
            shift = 8 * register
            self._divisor = self._divisor & ~(0xFF << shift) | value << shift
        elif register == _RBR:
            self._send(value)
        elif register == _IER:
            self._thre_pending |= bool(value & ~self._ier & _IER_THRE)
            self._ier = value & 0x0F
            if value & _IER_RX and not self._listens and self._look is None:
                due = self._clock.now_ns + self._character_ns
                self._look = self._clock.schedule_at(due, self._look_for_listener)
        elif register == _IIR:
            self._write_fcr(value)
        elif register == _LCR:
            self._lcr = value
        elif register == _MCR:
            self._write_mcr(value & 0x1F)
        elif register == _SCR:
            self._scratch = value
        self._update()

    def _send(self, value: int) -> None:
        """The transmitter is empty again at once: the line drops and rises, a new edge for the 8259."""
        self._thre_pending = False
        self._update()
        if self._mcr & _MCR_LOOP:
            if len(self._fifo) < (_FIFO_SIZE if self._fcr & 1 else 1):
                self._fifo.append(value)
            self._restart_timeout()
        else:
            self._sink.write(bytes([value]))
        self._thre_pending = True

    def _write_fcr(self, value: int) -> None:
        if (value ^ self._fcr) & 1 or value & 0x02:
            self._fifo.clear()
        self._fcr = value & 0xC9 if value & 1 else 0
        self._fill()

    def _write_mcr(self, value: int) -> None:
        """Modem outputs; in loop-back they appear as the modem inputs."""
        self._mcr = value
        if value & _MCR_LOOP:
            inputs = (value & 0x0C) << 4 | (value & 0x02) << 3 | (value & 0x01) << 5
        else:
            inputs = _MSR_CONNECTED
        changed = (inputs ^ self._msr) >> 4
        deltas = changed & 0x0B | (_MSR_TERI if self._msr & ~inputs & 0x40 else 0)
        self._msr = inputs | self._msr & 0x0F | deltas
        self._fill()
