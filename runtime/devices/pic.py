"""Two cascaded 8259A interrupt controllers with the PC's edge/level registers.

Source: Intel 8259A data sheet (order 231468-003) and the 82371SB (PIIX3) data sheet, which
replaces ICW1's LTIM bit by the ELCR at ports 0x4D0 and 0x4D1.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["CASCADE_LINE", "DualPic", "Pic8259"]

CASCADE_LINE = 2
"""The master's input that the slave's output drives."""

_ICW1 = 0x10
_ICW1_IC4 = 0x01
_ICW1_SNGL = 0x02
_ICW4_AEOI = 0x02
_ICW4_SFNM = 0x10
_OCW3 = 0x08
_SPURIOUS = 7


class Pic8259:
    """One 8259A. Lines are 0 to 7; `output` is the level of its INT pin."""

    def __init__(self, elcr_writable: int, is_master: bool, on_output: Callable[[bool], None]) -> None:
        self.is_master = is_master
        self.elcr_writable = elcr_writable
        self.elcr = 0
        self.lines = 0
        self.output = False
        self._on_output = on_output
        self.imr = 0xFF
        self.irr = 0
        self.isr = 0
        self.base = 0
        self.cascade = 0
        self.lowest = 7
        self.auto_eoi = False
        self.rotate_auto = False
        self.fully_nested = False
        self.special_mask = False
        self.poll = False
        self.read_isr = False
        self.on_taken: dict[int, Callable[[], None]] = {}
        """Called when the request latched for a line is taken or forgotten."""
        self._awaiting = 0
        self._single = False
        self._wants_icw4 = False

    # -- lines and priority ---------------------------------------------------------------

    def set_line(self, line: int, level: bool) -> None:
        """Drive an input. Edge inputs latch a rise and forget it when the line falls unserved."""
        bit = 1 << line
        if not level and not (self.lines | self.irr) & bit:
            return
        if level:
            if not self.lines & bit or self.elcr & bit:
                self.irr |= bit
            self.lines |= bit
        else:
            self.lines &= ~bit
            self.irr &= ~bit
        self._update()

    def _rank(self, line: int) -> int:
        """0 for the line of highest priority now, 7 for the lowest."""
        return (line - self.lowest - 1) & 7

    def _best(self, mask: int) -> int | None:
        """The line of highest priority in `mask`."""
        lines = [line for line in range(8) if mask >> line & 1]
        return min(lines, key=self._rank) if lines else None

    def request(self) -> int | None:
        """The line that would be served now, or None when nothing may interrupt."""
        line = self._best(self.irr & ~self.imr)
        if line is None:
            return None
        in_service = self.isr
        if self.special_mask:
            in_service &= ~self.imr
        if self.fully_nested and self.is_master:
            in_service &= ~(1 << CASCADE_LINE)
        serving = self._best(in_service)
        if serving is not None and self._rank(line) >= self._rank(serving):
            return None
        return line

    def _update(self) -> None:
        level = self.request() is not None
        if level != self.output:
            self.output = level
            self._on_output(level)

    def acknowledge(self) -> int | None:
        """One interrupt acknowledge cycle: the line now in service, None for a spurious one."""
        line = self.request()
        if line is None:
            return None
        bit = 1 << line
        if not self.elcr & bit or not self.lines & bit:
            self.irr &= ~bit
        if not self.auto_eoi:
            self.isr |= bit
        elif self.rotate_auto:
            self.lowest = line
        if self.output:  # INT falls with INTA, so that a second request is a new edge for a cascade
            self.output = False
            self._on_output(False)
        self._update()
        if line in self.on_taken:
            self.on_taken[line]()
        return line

    # -- registers --------------------------------------------------------------------------

    def read(self, offset: int) -> int:
        """Read A0=0 (IRR, ISR or the poll word) or A0=1 (the mask or the poll word)."""
        if self.poll:
            self.poll = False
            line = self.acknowledge()
            return 0x00 if line is None else 0x80 | line
        if offset:
            return self.imr
        return self.isr if self.read_isr else self.irr

    def write(self, offset: int, value: int) -> None:
        """Write an initialisation or operation command word."""
        if offset:
            self._write_data(value)
        elif value & _ICW1:
            self._icw1(value)
        elif value & _OCW3:
            self._ocw3(value)
        else:
            self._ocw2(value)
        self._update()
        if not offset and value & _ICW1:
            for forgotten in self.on_taken.values():
                forgotten()

    def _icw1(self, value: int) -> None:
        """Start initialisation: clears the mask, the edge latches and every operating mode."""
        self.irr = self.lines & self.elcr
        self.imr = self.isr = 0
        self.lowest = 7
        self.special_mask = self.poll = self.read_isr = False
        self.auto_eoi = self.rotate_auto = self.fully_nested = False
        self._single = bool(value & _ICW1_SNGL)
        self._wants_icw4 = bool(value & _ICW1_IC4)
        self._awaiting = 2

    def _write_data(self, value: int) -> None:
        if self._awaiting == 2:
            self.base = value & 0xF8
            self._awaiting = 3 if not self._single else (4 if self._wants_icw4 else 0)
        elif self._awaiting == 3:
            self.cascade = value
            self._awaiting = 4 if self._wants_icw4 else 0
        elif self._awaiting == 4:
            self.fully_nested = bool(value & _ICW4_SFNM)
            self.auto_eoi = bool(value & _ICW4_AEOI)
            self._awaiting = 0
        else:
            self.imr = value

    def _ocw3(self, value: int) -> None:
        if value & 0x04:
            self.poll = True
        if value & 0x02:
            self.read_isr = bool(value & 0x01)
        if value & 0x40:
            self.special_mask = bool(value & 0x20)

    def _ocw2(self, value: int) -> None:
        """End of interrupt and rotation: R, SL and EOI are bits 7 to 5."""
        rotate, specific, eoi = value & 0x80, value & 0x40, value & 0x20
        line: int | None = value & 7
        if not specific:
            if not eoi:
                self.rotate_auto = bool(rotate)
                return
            served = self.isr & ~self.imr if self.special_mask else self.isr
            line = self._best(served)
        if line is None:
            return
        if eoi:
            self.isr &= ~(1 << line)
        if rotate:
            self.lowest = line

    def write_elcr(self, value: int) -> None:
        """Choose level (1) or edge (0) for the lines that the chip set lets be chosen."""
        self.elcr = value & self.elcr_writable
        self.irr |= self.lines & self.elcr
        self._update()


class DualPic:
    """The PC's pair: master at 0x20, slave at 0xA0 on the master's line 2, ELCR at 0x4D0."""

    ports: tuple[int, ...] = (0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1)

    def __init__(self, on_output: Callable[[bool], None] = lambda level: None) -> None:
        self.master = Pic8259(0xF8, True, on_output)
        self.slave = Pic8259(0xDE, False, lambda level: self.master.set_line(CASCADE_LINE, level))
        self._hand_over()

    def _hand_over(self) -> None:
        """The state in which PC firmware leaves the pair, with every line masked."""
        for chip, base, cascade in ((self.master, 0x08, 1 << CASCADE_LINE), (self.slave, 0x70, CASCADE_LINE)):
            chip.write(0, _ICW1 | _ICW1_IC4)
            for word in (base, cascade, 0x01, 0xFF):
                chip.write(1, word)

    @property
    def pending(self) -> bool:
        """Level of the INTR line to the processor."""
        return self.master.output

    def set_irq(self, irq: int, level: bool) -> None:
        """Drive request line 0 to 15; line 2 is the cascade and cannot be driven."""
        if irq == CASCADE_LINE or not 0 <= irq < 16:
            raise ValueError(f"no such interrupt line: {irq}")
        chip = self.master if irq < 8 else self.slave
        chip.set_line(irq & 7, level)

    def line(self, irq: int) -> Callable[[bool], None]:
        """The line as a function for one device."""
        return lambda level: self.set_irq(irq, level)

    def acknowledge(self) -> int:
        """The processor's INTA cycle: the vector, which is line 7's for a spurious request."""
        line = self.master.acknowledge()
        if line is None:
            return self.master.base | _SPURIOUS
        if line != CASCADE_LINE or not self.master.cascade & (1 << CASCADE_LINE):
            return self.master.base | line
        inner = self.slave.acknowledge()
        return self.slave.base | (_SPURIOUS if inner is None else inner)

    def read(self, port: int) -> int:
        """Read a command, mask or ELCR register."""
        if port >= 0x4D0:
            return self._chip(port == 0x4D1).elcr
        return self._chip(port >= 0xA0).read(port & 1)

    def write(self, port: int, value: int) -> None:
        """Write a command, mask or ELCR register."""
        if port >= 0x4D0:
            self._chip(port == 0x4D1).write_elcr(value)
        else:
            self._chip(port >= 0xA0).write(port & 1, value)

    def _chip(self, slave: bool) -> Pic8259:
        return self.slave if slave else self.master
