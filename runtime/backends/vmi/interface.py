"""VMI's interface as data, loaded from `interface.toml` (sources there)."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Alarms", "VmiCall", "VmiInterface", "interface"]


@dataclass(frozen=True)
class VmiCall:
    """One call: its number and its register convention."""

    name: str
    number: int
    arguments: tuple[str, ...]
    """Registers, or `s0` .. for words above the return address."""
    result: tuple[str, ...]
    clobbers: str
    """`c`: EAX, ECX, EDX and the flags; `flags`: the flags."""
    relocation: str
    bad: str
    """What wild arguments meet: `fault`, `killed`, `ignored`, `masked`, `later`, or nothing."""


@dataclass(frozen=True)
class Alarms:
    """Bits of the alarm calls' flags."""

    counters: tuple[str, ...]
    counter_mask: int
    periodic: int
    wired_lvtt: int


@dataclass(frozen=True)
class VmiInterface:
    """The published interface, and what this hypervisor chose where the interface leaves a choice."""

    virtual_top: int
    kernel_privilege: int
    cycles_per_second: int
    minimal_period_ns: int
    rom_physical: int
    rom_vendor: str
    rom_product: str
    header: Mapping[str, tuple[int, int]]
    relocations: Mapping[str, int]
    calls: Mapping[int, VmiCall]
    mmu: Mapping[str, int]
    lazy: Mapping[str, int]
    alarm: Alarms
    lvtt: int
    lvtt_masked: int
    ap_state: Mapping[str, tuple[int, int]]

    def number(self, name: str) -> int:
        """The number of the call called `name`."""
        return next(call.number for call in self.calls.values() if call.name == name)


@functools.cache
def interface() -> VmiInterface:
    """The interface, parsed once."""
    raw: dict[str, Any] = tomllib.loads(Path(__file__).with_name("interface.toml").read_text())
    calls = {
        row["number"]: VmiCall(
            name,
            row["number"],
            tuple(row["arguments"]),
            tuple(row.get("result", ())),
            row.get("clobbers", "c"),
            row.get("relocation", "call_rel"),
            row["bad"],
        )
        for name, row in raw["call"].items()
    }
    alarm = raw["alarm"]
    return VmiInterface(
        virtual_top=raw["virtual_top"],
        kernel_privilege=raw["kernel_privilege"],
        cycles_per_second=raw["cycles_per_second"],
        minimal_period_ns=raw["minimal_period_ns"],
        rom_physical=raw["rom"]["physical"],
        rom_vendor=raw["rom"]["vendor"],
        rom_product=raw["rom"]["product"],
        header={name: (row[0], row[1]) for name, row in raw["rom"]["header"].items()},
        relocations=raw["relocation"],
        calls=calls,
        mmu=raw["mmu"],
        lazy=raw["lazy"],
        alarm=Alarms(tuple(alarm["counters"]), alarm["counter_mask"], alarm["periodic"], alarm["wired_lvtt"]),
        lvtt=raw["apic"]["lvtt"],
        lvtt_masked=raw["apic"]["lvtt_masked"],
        ap_state={name: (row[0], row[1]) for name, row in raw["ap_state"].items()},
    )
