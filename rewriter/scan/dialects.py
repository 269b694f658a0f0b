"""Interfaces that an image speaks besides plain instructions: Linux paravirt calls, declared hypervisors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from iced_x86 import Code, Instruction, Mnemonic, OpKind, Register

from pvpatch.abi.forms import register_names
from rewriter.image import Image
from rewriter.scan.block import BlockDecoder
from rewriter.scan.describe import SiteDescriber
from rewriter.scan.document import Site
from rewriter.scan.kernel_tables import KernelTables
from rewriter.scan.space import Space

__all__ = ["declared_interfaces", "paravirt_sites"]

VMI_SIGNATURE = b"cVmi"
"""The signature of a VMI ROM (0x696d5663): a kernel that probes for one holds it as an immediate."""
KVM_SIGNATURE = b"KVMKVMKVM\0\0\0"
XEN_SIGNATURE = b"XenVMMXenVMM"


def paravirt_sites(image: Image, space: Space, tables: KernelTables, describer: SiteDescriber) -> list[Site]:
    """The calls that the kernel's tables list (one site each, at the call instruction itself)."""
    decoder = BlockDecoder(space)
    sites: list[Site] = []
    for row in tables.paravirt:
        region = space.find(row.address)
        if region is None:
            continue
        for instruction in decoder.instructions(row.address, row.address + row.length, image.bits):
            if _is_slot_call(instruction):
                slot = "slot" if row.slot is None else f"slot {row.slot}"
                detail = f"{slot} at {_slot_operand(instruction)}"
                sites.append(describer.call_site(instruction, region, image.bits, "pvops", detail))
                break
    return sites


def _is_slot_call(instruction: Instruction) -> bool:
    if instruction.mnemonic not in (Mnemonic.CALL, Mnemonic.JMP) or not instruction.op_count:
        return False
    return bool(
        instruction.op0_kind == OpKind.MEMORY and instruction.code not in (Code.CALL_M1616, Code.JMP_M1616)
    )


def _slot_operand(instruction: Instruction) -> str:
    if instruction.is_ip_rel_memory_operand:
        return f"{instruction.ip_rel_memory_address:#x}"
    if instruction.memory_base == Register.NONE:
        return f"{instruction.memory_displacement:#x}"
    return f"{register_names()[instruction.memory_base]}+{instruction.memory_displacement:#x}"


def declared_interfaces(image: Image, tables: KernelTables, sites: Iterable[Site]) -> tuple[str, ...]:
    """What the image says of itself, in words, sorted."""
    found: set[str] = set()
    if image.xen:
        found.add("xen: notes or __xen_guest")
    if any(entry.protocol == "pvh" for entry in image.entries):
        found.add("xen: PVH entry note")
    if tables.paravirt:
        table = ".parainstructions" if ".parainstructions" in tables.present else ".altinstructions"
        found.add(f"pvops: {table}")
    for name, signature in (("vmi", VMI_SIGNATURE), ("kvm", KVM_SIGNATURE), ("xen", XEN_SIGNATURE)):
        if signature in image.payload:
            found.add(f"{name}: signature in the image")
    for dialect, count in Counter(site.dialect for site in sites).items():
        if dialect != "native":
            found.add(f"{dialect}: {count} sites")
    return tuple(sorted(found))
