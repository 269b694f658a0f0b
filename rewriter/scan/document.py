"""The result documents of a scan: frozen, in stable order, without a trace of how they were found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from rewriter.scan.codemap import CodeMap

__all__ = ["RegionReport", "ScanResult", "Site"]


@dataclass(frozen=True, slots=True)
class Site:
    """One instruction that must be rewritten, or that already speaks to a hypervisor."""

    address: int
    file_offset: int
    """Offset in the payload (the innermost executable image)."""
    length: int
    code: bytes
    mnemonic: str
    operands: str
    section: str
    width: int
    dialect: str
    """native, pvops, xen, kvm, lguest or vmi."""
    kind: str
    effect: str
    """What it does without privilege: faults, silent or depends; empty for calls of other dialects."""
    call: str
    """ABI call that replaces it; empty when there is none."""
    reason: str
    """Why it has no call; empty when it has."""
    context: tuple[str, ...] = ()
    """What the kernel's own tables say of its bytes: alternative, replacement, ex_table, fixup, paravirt."""
    partner: int = 0
    """Address of the other half of a two-instruction form (`sti` + `hlt`), or 0; the first has the call."""
    detail: str = ""
    """Extra fact, such as the slot of a paravirt call."""

    @property
    def faults_when_deprivileged(self) -> bool:
        """True when the processor itself reports it without privilege."""
        return self.effect == "faults"


@dataclass(frozen=True, slots=True)
class RegionReport:
    """How one region was searched. Sizes in bytes."""

    name: str
    address: int
    size: int
    method: str
    """sweep, recursion or table."""
    code_bytes: int
    instructions: int
    reason: str
    """The evidence that chose the method."""


@dataclass(frozen=True)
class ScanResult:
    """Everything found in an image. Sites are ordered by address."""

    sites: tuple[Site, ...]
    regions: tuple[RegionReport, ...]
    interfaces: tuple[str, ...]
    """Paravirtual interfaces that the image itself declares (notes, signatures, tables)."""
    complete: bool
    """False when discovery stopped at its work limit, or sure code leads into what is no instruction."""
    unknown_widths: tuple[int, ...]
    """Addresses of code that is entered in a width that the image does not tell."""
    codemap: CodeMap = field(repr=False, compare=False)

    def totals(self, key: Callable[[Site], str]) -> dict[str, int]:
        """Number of sites by a property, largest first, then by name."""
        counts = Counter(key(site) for site in self.sites)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def at(self, address: int) -> Site | None:
        """The site at an address."""
        return next((site for site in self.sites if site.address == address), None)
