"""Turn a decoded instruction into a site document: text, ABI call, dialect, table membership."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from iced_x86 import Decoder, Formatter, FormatterSyntax, Instruction, Mnemonic
from numpy.typing import NDArray

from pvpatch.abi.forms import mnemonic_names
from rewriter.decode import InstructionClass, match_form
from rewriter.decode.lengths import MAX_INSTRUCTION
from rewriter.image import Image
from rewriter.scan.block import XEN_EMULATE
from rewriter.scan.codemap import CodeMap, RegionMap
from rewriter.scan.document import Site
from rewriter.scan.explore import Explorer
from rewriter.scan.kernel_tables import KernelTables
from rewriter.scan.space import Region, Space
from rewriter.scan.sweeping import Sweep, displacements

__all__ = ["SiteDescriber"]

PAGE = 4096
XEN_VECTOR = 0x82
LGUEST_VECTOR = 0x1F
NO_FORM = "no form of the ABI covers this encoding"


class _Spans:
    """Membership of address ranges, sorted by start."""

    def __init__(self, spans: list[tuple[int, int, str]]) -> None:
        self.spans = sorted(spans)
        self.keys = [span[0] for span in self.spans]
        self.longest = max((end - start for start, end, _ in self.spans), default=0)

    def over(self, start: int, end: int) -> set[str]:
        found: set[str] = set()
        index = bisect_right(self.keys, end - 1)
        while index > 0 and self.keys[index - 1] > start - self.longest:
            index -= 1
            if self.spans[index][1] > start:
                found.add(self.spans[index][2])
        return found


def _is_long_branch(built: RegionMap) -> NDArray[np.bool_]:
    """CALL and JMP rel32, and conditional jumps of that size: the ways into a hypercall page."""
    following = np.roll(built.data, -1)
    plain = (built.lengths == 5) & ((built.data == 0xE8) | (built.data == 0xE9))
    conditional = (built.lengths == 6) & (built.data == 0x0F) & (following & 0xF0 == 0x80)
    result: NDArray[np.bool_] = plain | conditional
    return result


class SiteDescriber:
    """Knows the image's tables; makes one site at a time."""

    def __init__(self, image: Image, space: Space, tables: KernelTables, codemap: CodeMap) -> None:
        self.image = image
        self.space = space
        self.codemap = codemap
        self.formatter = Formatter(FormatterSyntax.INTEL)
        self.formatter.hex_prefix, self.formatter.hex_suffix = "0x", ""
        self.formatter.uppercase_hex = False
        self.formatter.space_after_operand_separator = True
        spans = [(row.address, row.address + row.length, "alternative") for row in tables.alternatives]
        spans += [
            (row.replacement, row.replacement + row.replacement_length, "replacement")
            for row in tables.alternatives
            if row.replacement_length
        ]
        spans += [(row.address, row.address + row.length, "paravirt") for row in tables.paravirt]
        spans += [(at, at + 1, "ex_table") for at, _ in tables.exceptions]
        spans += [(fixup, fixup + 1, "fixup") for _, fixup in tables.exceptions]
        self.spans = _Spans(spans)

    def native(self, instruction: Instruction, entry: InstructionClass, region: Region, width: int) -> Site:
        """The site of one sensitive instruction."""
        following = self._following(instruction, width)
        match = match_form(instruction, width, following)
        site = self._site(instruction, region, width)
        reason = ""
        if match.call is None:
            reason = match.kept.reason if match.kept is not None else NO_FORM
        return replace(
            site,
            dialect=self._dialect(instruction),
            kind=entry.kind,
            effect=entry.effect,
            call=match.call.name if match.call is not None else "",
            reason=reason,
        )

    def call_site(
        self, instruction: Instruction, region: Region, width: int, dialect: str, detail: str
    ) -> Site:
        """The site of a call that already speaks to a hypervisor."""
        site = self._site(instruction, region, width)
        kind = "paravirt_call" if dialect == "pvops" else "hypercall"
        return replace(site, dialect=dialect, kind=kind, detail=detail)

    def _site(self, instruction: Instruction, region: Region, width: int) -> Site:
        address, length = instruction.ip, instruction.len
        offset = region.file_offset + address - region.vaddr
        return Site(
            address=address,
            file_offset=offset,
            length=length,
            code=self.image.payload[offset : offset + length],
            mnemonic=mnemonic_names()[instruction.mnemonic],
            operands=self.formatter.format_all_operands(instruction),
            section=region.name,
            width=width,
            dialect="native",
            kind="",
            effect="",
            call="",
            reason="",
            context=tuple(sorted(self.spans.over(address, address + length))),
        )

    def _following(self, instruction: Instruction, width: int) -> str:
        """Mnemonic behind an STI: `sti; hlt` is one form."""
        if instruction.mnemonic != Mnemonic.STI:
            return ""
        if self.codemap.width_at(instruction.next_ip) != width:
            return ""
        following = self.codemap.instruction_at(instruction.next_ip)
        return "" if following is None else mnemonic_names()[following.mnemonic]

    def _dialect(self, instruction: Instruction) -> str:
        if instruction.mnemonic in (Mnemonic.VMCALL, Mnemonic.VMMCALL):
            return "kvm"
        if instruction.mnemonic == Mnemonic.INT:
            if instruction.immediate8 == XEN_VECTOR:
                return "xen"
            if instruction.immediate8 == LGUEST_VECTOR:
                return "lguest"
        if instruction.mnemonic == Mnemonic.SYSCALL and self._only_xen():
            return "xen"
        return "native"

    def _only_xen(self) -> bool:
        """A pure Xen guest: SYSCALL in its kernel is a hypercall."""
        return bool(self.image.xen) and all(entry.protocol in ("xen", "elf") for entry in self.image.entries)

    def emulated(self, address: int, region: Region, width: int) -> Site:
        """The site of an instruction behind Xen's forced emulation prefix, prefix included."""
        start = region.file_offset + address - region.vaddr + len(XEN_EMULATE)
        decoder = Decoder(width, self.image.payload[start : start + MAX_INSTRUCTION], ip=address)
        instruction = decoder.decode()
        site = self.call_site(instruction, region, width, "xen", "forced emulation")
        length = len(XEN_EMULATE) + instruction.len
        code = self.image.payload[site.file_offset : site.file_offset + length]
        return replace(site, length=length, code=code)

    def hypercalls(self, explorer: Explorer, swept: Mapping[int, Sweep]) -> list[Site]:
        """Direct calls and jumps into the Xen hypercall page that the image's notes name."""
        page = self.image.xen.get("HYPERCALL_PAGE")
        if not isinstance(page, int):
            return []
        sites: list[Site] = []
        for built in self.codemap.regions:
            region = built.region
            at = np.flatnonzero(_is_long_branch(built))
            end = at + built.lengths[at]
            apart = (region.vaddr - page + (1 << 63)) % (1 << 64) - (1 << 63)  # as addresses are subtracted
            target = end + displacements(built.data, end - 4) + apart
            inside = (target >= 0) & (target < PAGE)
            for offset, slot in zip(at[inside].tolist(), target[inside].tolist(), strict=True):
                width = int(built.widths[offset])
                instruction = explorer.decoder.instruction_at(region.vaddr + offset, width, region).copy()
                sites.append(self.call_site(instruction, region, width, "xen", f"hypercall {slot // 32}"))
        return sites

    def join_pairs(self, sites: list[Site]) -> list[Site]:
        """Mark the halves of two-instruction forms with each other's address."""
        by_address = {site.address: index for index, site in enumerate(sites)}
        for index, site in enumerate(sites):
            if site.kind != "sti" or site.call in ("", "irq_enable"):
                continue
            second = by_address.get(site.address + site.length)
            if second is not None:
                sites[index] = replace(site, partner=sites[second].address)
                sites[second] = replace(sites[second], partner=site.address)
        return sites
