"""Descriptor tables: pointers are to the 6-byte operand of LGDT and SGDT."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.backends.vmi.calls import Handler
    from runtime.backends.vmi.model import VmiModel

__all__ = ["table_handlers"]

_OPERAND = 6


class _Tables:
    def __init__(self, model: VmiModel) -> None:
        self._model = model

    def _operand(self, pointer: int) -> tuple[int, int]:
        raw = self._model.view.read(pointer, _OPERAND)
        return int.from_bytes(raw[2:], "little"), int.from_bytes(raw[:2], "little")

    def _store(self, pointer: int, base: int, limit: int) -> None:
        self._model.view.write(pointer, limit.to_bytes(2, "little") + base.to_bytes(4, "little"))

    def set_gdt(self, pointer: int) -> None:
        """SetGDT."""
        self._model.guest_tables.flush_queue()
        self._model.tables.set_gdt(*self._operand(pointer))

    def get_gdt(self, pointer: int) -> None:
        """GetGDT: what SetGDT was given."""
        tables = self._model.tables
        self._store(pointer, tables.gdt_base, tables.gdt_limit)

    def set_idt(self, pointer: int) -> None:
        """SetIDT: gates are read when they are needed."""
        idt = self._model.machine.cpu.state.idt
        idt.base, idt.limit = self._operand(pointer)

    def get_idt(self, pointer: int) -> None:
        """GetIDT."""
        idt = self._model.machine.cpu.state.idt
        self._store(pointer, idt.base & 0xFFFFFFFF, idt.limit & 0xFFFF)

    def set_ldt(self, selector: int) -> None:
        """SetLDT."""
        self._model.guest_tables.flush_queue()
        self._model.tables.set_ldt(selector & 0xFFFF)

    def set_tr(self, selector: int) -> None:
        """SetTR."""
        self._model.guest_tables.flush_queue()
        self._model.tables.set_tr(selector & 0xFFFF)

    def write_entry(self, table: int, index: int, low: int, high: int) -> None:
        """WriteGDTEntry, WriteLDTEntry, WriteIDTEntry. May wait in lazy CPU mode."""
        model = self._model
        place = (table + (index & 0x1FFF) * 8) & 0xFFFFFFFF
        model.view.translate(place, write=True)
        model.guest_tables.later(
            lambda: model.tables.write_entry(table, index, low, high), wait=model.guest_tables.lazy_cpu
        )

    def set_stack(self, selector: int, pointer: int) -> None:
        """UpdateKernelStack. May wait in lazy CPU mode. A bad selector shows as #TS when it is used."""
        model = self._model
        model.guest_tables.later(
            lambda: model.tables.set_stack(selector, pointer), wait=model.guest_tables.lazy_cpu
        )


def table_handlers(model: VmiModel) -> dict[str, Handler]:
    """Call name -> handler."""
    tables = _Tables(model)
    return {
        "SetGDT": tables.set_gdt,
        "SetLDT": tables.set_ldt,
        "SetIDT": tables.set_idt,
        "SetTR": tables.set_tr,
        "GetGDT": tables.get_gdt,
        "GetLDT": lambda: model.tables.ldt_selector,
        "GetIDT": tables.get_idt,
        "GetTR": lambda: model.tables.tr_selector,
        "WriteGDTEntry": tables.write_entry,
        "WriteLDTEntry": tables.write_entry,
        "WriteIDTEntry": tables.write_entry,
        "UpdateKernelStack": tables.set_stack,
    }
