"""What every number of another paravirtual interface is in the unified ABI: data, loaded and checked.

One TOML file per interface; a row either names the call (or the sequence of calls, in order) it
corresponds to, or says why there is none. Checked on loading: names exist, numbers are used once.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

from pvpatch.abi.spec import Spec, SpecError, load_spec

__all__ = ["INTERFACES", "Mapping", "MappingRow", "MappingTable", "load_mapping", "load_mappings"]

INTERFACES = ("vmi", "lguest", "kvm", "xen", "pvops")


@dataclass(frozen=True)
class MappingRow:
    """One number of the other interface: `calls` (in order) or `reason`, never both."""

    number: int
    name: str
    calls: tuple[str, ...] = ()
    reason: str = ""
    note: str = ""


@dataclass(frozen=True)
class MappingTable:
    """One number space of the other interface."""

    name: str
    title: str
    rows: tuple[MappingRow, ...]


@dataclass(frozen=True)
class Mapping:
    """All number spaces of one interface."""

    interface: str
    title: str
    source: str
    tables: tuple[MappingTable, ...]

    def table(self, name: str) -> MappingTable:
        """The table of that name; SpecError if there is none."""
        for table in self.tables:
            if table.name == name:
                return table
        raise SpecError(f"the {self.interface} mapping has no table {name!r}")

    def users_of(self, call: str) -> tuple[tuple[MappingTable, MappingRow], ...]:
        """Rows that map to `call`."""
        return tuple((table, row) for table in self.tables for row in table.rows if call in row.calls)


def _row(data: dict[str, Any]) -> MappingRow:
    return MappingRow(
        number=data["number"],
        name=data["name"],
        calls=tuple(data.get("calls", ())),
        reason=data.get("reason", ""),
        note=data.get("note", ""),
    )


def _check(mapping: Mapping, spec: Spec) -> None:
    known = {call.name for call in spec.calls}
    for table in mapping.tables:
        numbers = [row.number for row in table.rows]
        if len(numbers) != len(set(numbers)):
            raise SpecError(f"{mapping.interface} {table.name}: a number is mapped twice")
        for row in table.rows:
            where = f"{mapping.interface} {table.name} {row.number} ({row.name})"
            if bool(row.calls) == bool(row.reason):
                raise SpecError(f"{where}: needs calls or a reason, and not both")
            if set(row.calls) - known:
                raise SpecError(f"{where}: unknown call {', '.join(set(row.calls) - known)}")


@lru_cache(maxsize=len(INTERFACES))
def load_mapping(interface: str) -> Mapping:
    """Mapping of one interface of INTERFACES; SpecError if it is not one or its data is wrong."""
    if interface not in INTERFACES:
        raise SpecError(f"no mapping for the interface {interface!r}", f"known: {', '.join(INTERFACES)}")
    text = resources.files("pvpatch.abi.mappings").joinpath(f"{interface}.toml").read_text(encoding="utf-8")
    try:
        data = tomllib.loads(text)
        tables = tuple(
            MappingTable(table["name"], table["title"], tuple(_row(row) for row in table["rows"]))
            for table in data["table"]
        )
        mapping = Mapping(data["interface"], data["title"], data["source"], tables)
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise SpecError(f"the {interface} mapping cannot be read: {error!r}") from error
    _check(mapping, load_spec())
    return mapping


def load_mappings() -> tuple[Mapping, ...]:
    """Mappings of all interfaces, in the order of INTERFACES."""
    return tuple(load_mapping(interface) for interface in INTERFACES)
