"""VGA text mode: the registers that kernels set, and the screen as text.

The text memory at 0xB8000 is ordinary guest RAM here, so drawing costs nothing; only the
registers are a device. Source: IBM VGA technical reference (FreeVGA's register numbering).
"""

from __future__ import annotations

from runtime.ports import Clock, PhysicalMemory

__all__ = ["TEXT_MEMORY", "Vga"]

TEXT_MEMORY = 0xB8000
"""Physical address of colour text memory: 32 KiB of (character, attribute) pairs."""

_TEXT_BYTES = 0x8000
_COLUMNS, _ROWS = 80, 25
_FRAME_NS = 14_285_714  # 70 Hz
_RETRACE_NS = 70_000
_LINE_NS = 31_778
_LINE_BLANK_NS = 6_356

_ATTRIBUTE, _ATTRIBUTE_READ, _MISC_WRITE, _SEQUENCER = 0x3C0, 0x3C1, 0x3C2, 0x3C4
_DAC_MASK, _DAC_READ, _DAC_WRITE, _DAC_DATA = 0x3C6, 0x3C7, 0x3C8, 0x3C9
_MISC_READ, _GRAPHICS = 0x3CC, 0x3CE
_CRTC, _CRTC_DATA, _STATUS = 0x3D4, 0x3D5, 0x3DA

_MODE_3 = (
    0x5F, 0x4F, 0x50, 0x82, 0x55, 0x81, 0xBF, 0x1F, 0x00, 0x4F, 0x0D, 0x0E, 0x00, 0x00, 0x00, 0x00,
    0x9C, 0x8E, 0x8F, 0x28, 0x1F, 0x96, 0xB9, 0xA3, 0xFF,
)  # fmt: skip
"""CRTC registers of BIOS mode 3: 80 columns, 25 rows, 9x16 characters, colour."""

_PRINTABLE = bytes(0x20 if code in (0x00, 0xFF) else 0x3F if code < 0x20 or code == 0x7F else code
                   for code in range(256))  # fmt: skip
"""Blank cells are spaces; the pictures at control codes have no text form."""


class Vga:
    """The adapter in mode 3."""

    ports: tuple[int, ...] = tuple(range(0x3C0, 0x3E0))

    def __init__(self, clock: Clock, memory: PhysicalMemory) -> None:
        self._clock = clock
        self._memory = memory
        self._crtc_index = 0
        self._crtc = bytearray(256)
        self._crtc[: len(_MODE_3)] = bytes(_MODE_3)
        self._indexed = {_SEQUENCER: bytearray(256), _GRAPHICS: bytearray(256)}
        self._indexed[_SEQUENCER][:5] = bytes((0x03, 0x00, 0x03, 0x00, 0x02))
        self._indexed[_GRAPHICS][:9] = bytes((0, 0, 0, 0, 0, 0x10, 0x0E, 0x00, 0xFF))
        self._index = {_SEQUENCER: 0, _GRAPHICS: 0}
        self._attributes = bytearray(32)
        self._attribute_index = 0x20
        self._attribute_data = False
        self._misc = 0x67
        self._dac = bytearray(768)
        self._dac_mask = 0xFF
        self._dac_position = 0
        self._dac_reading = False

    # -- the screen -------------------------------------------------------------------------------

    @property
    def cursor(self) -> tuple[int, int]:
        """(row, column) of the hardware cursor on the visible page."""
        offset = (self._crtc[0x0E] << 8 | self._crtc[0x0F]) - (self._crtc[0x0C] << 8 | self._crtc[0x0D])
        return divmod(offset % (_TEXT_BYTES // 2), _COLUMNS)

    def screen(self) -> list[str]:
        """The 25 visible lines, without trailing blanks; code page 437 as the font has it."""
        start = (self._crtc[0x0C] << 8 | self._crtc[0x0D]) * 2 % _TEXT_BYTES
        memory = self._memory.load(TEXT_MEMORY, _TEXT_BYTES)
        visible = (memory[start:] + memory[:start])[: 2 * _COLUMNS * _ROWS : 2]
        text = visible.translate(_PRINTABLE).decode("cp437")
        return [text[row * _COLUMNS : (row + 1) * _COLUMNS].rstrip() for row in range(_ROWS)]

    # -- registers --------------------------------------------------------------------------------

    def read(self, port: int) -> int:
        """Read a register. The status register also resets the attribute flip-flop."""
        if port == _STATUS:
            self._attribute_data = False
            return self._status()
        if port == _CRTC:
            return self._crtc_index
        if port == _CRTC_DATA:
            return self._crtc[self._crtc_index]
        if port in self._index:
            return self._index[port]
        if port - 1 in self._indexed:
            return self._indexed[port - 1][self._index[port - 1]]
        if port == _ATTRIBUTE:
            return self._attribute_index
        if port == _ATTRIBUTE_READ:
            return self._attributes[self._attribute_index & 0x1F]
        if port == _DAC_DATA:
            return self._dac_step(None)
        return {
            _MISC_READ: self._misc,
            _MISC_WRITE: 0x10,  # input status 0: a monitor is attached
            _DAC_MASK: self._dac_mask,
            _DAC_READ: 3 if self._dac_reading else 0,
            _DAC_WRITE: self._dac_position // 3,
        }.get(port, 0xFF)

    def _status(self) -> int:
        """Input status 1: vertical retrace in bit 3, any blanking in bit 0."""
        in_frame = self._clock.now_ns % _FRAME_NS
        vertical = in_frame >= _FRAME_NS - _RETRACE_NS
        blank = vertical or in_frame % _LINE_NS >= _LINE_NS - _LINE_BLANK_NS
        return vertical << 3 | int(blank)

    def write(self, port: int, value: int) -> None:
        """Write a register; CRTC registers 0 to 7 obey the write protection of register 0x11."""
        if port == _CRTC:
            self._crtc_index = value
        elif port == _CRTC_DATA:
            self._write_crtc(value)
        elif port in self._index:
            self._index[port] = value
        elif port - 1 in self._indexed:
            self._indexed[port - 1][self._index[port - 1]] = value
        elif port == _ATTRIBUTE:
            self._write_attribute(value)
        elif port == _MISC_WRITE:
            self._misc = value
        elif port == _DAC_MASK:
            self._dac_mask = value
        elif port in (_DAC_READ, _DAC_WRITE):
            self._dac_position = 3 * value
            self._dac_reading = port == _DAC_READ
        elif port == _DAC_DATA:
            self._dac_step(value)

    def _write_crtc(self, value: int) -> None:
        index = self._crtc_index
        if index < 7 and self._crtc[0x11] & 0x80:
            return
        if index == 7 and self._crtc[0x11] & 0x80:
            value = self._crtc[7] & ~0x10 | value & 0x10
        self._crtc[index] = value

    def _write_attribute(self, value: int) -> None:
        if self._attribute_data:
            self._attributes[self._attribute_index & 0x1F] = value
        else:
            self._attribute_index = value & 0x3F
        self._attribute_data = not self._attribute_data

    def _dac_step(self, value: int | None) -> int:
        position = self._dac_position
        self._dac_position = (position + 1) % len(self._dac)
        if value is not None:
            self._dac[position] = value & 0x3F
        return self._dac[position]
