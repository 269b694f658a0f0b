"""KVM's interface as data, loaded from `interface.toml` (sources there)."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["KvmInterface", "interface"]


@dataclass(frozen=True)
class KvmInterface:
    """Numbers and layouts."""

    signature: bytes
    leaf_base: int
    leaf_features: int
    feature_bits: Mapping[str, int]
    offered: frozenset[str]
    hypercalls: Mapping[int, tuple[str, str]]
    """Number -> (name, the feature it needs, "" for none)."""
    errors: Mapping[str, int]
    registers: Mapping[int, tuple[str, str]]
    """MSR index -> (name, the feature it needs)."""
    register_range: tuple[int, int]
    structures: Mapping[str, Mapping[str, int]]

    @property
    def feature_word(self) -> int:
        """EAX of the feature leaf: what is offered."""
        return sum(1 << self.feature_bits[name] for name in self.offered)

    def register_index(self, name: str) -> int:
        """The MSR called `name`."""
        return next(index for index, (known, _) in self.registers.items() if known == name)

    def has_hypercall(self, number: int) -> bool:
        """True if the number exists and its feature is offered."""
        name, feature = self.hypercalls.get(number, ("", "none"))
        return bool(name) and (not feature or feature in self.offered)

    def has_register(self, index: int) -> bool:
        """True if the MSR exists and its feature is offered."""
        return index in self.registers and self.registers[index][1] in self.offered

    def is_ours(self, index: int) -> bool:
        """True for MSRs whose meaning is KVM's, offered or not."""
        low, high = self.register_range
        return index in self.registers or low <= index <= high


@functools.cache
def interface() -> KvmInterface:
    """The interface, parsed once."""
    raw: dict[str, Any] = tomllib.loads(Path(__file__).with_name("interface.toml").read_text())
    low, high = raw["msr"]["range"]
    return KvmInterface(
        signature=raw["signature"].encode().ljust(12, b"\0"),
        leaf_base=raw["leaf_base"],
        leaf_features=raw["leaf_features"],
        feature_bits={name: row["bit"] for name, row in raw["feature"].items()},
        offered=frozenset(name for name, row in raw["feature"].items() if row["offered"]),
        hypercalls={row["number"]: (name, row["feature"]) for name, row in raw["hypercall"].items()},
        errors=raw["error"],
        registers={row["index"]: (name, row["feature"]) for name, row in raw["msr"]["register"].items()},
        register_range=(low, high),
        structures=raw["structure"],
    )
