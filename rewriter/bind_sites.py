"""Bind every site of an image to its call, or say why it keeps its instruction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from iced_x86 import Instruction

from pvpatch.abi.forms import match_form, mnemonic_names
from pvpatch.abi.spec import load_spec
from rewriter.emit.binding import Refused, bind
from rewriter.emit.marshal import refusal, spares_stack
from rewriter.emit.operands import Binding
from rewriter.emit.reach import Reach
from rewriter.emit.thunk import moves_as_one
from rewriter.tactics import Patchable
from rewriter.tactics.liveness import dead_registers, needs_stack, stackless_after
from rewriter.tactics.view import CodeView

__all__ = ["Bound", "bind_sites"]


@dataclass(frozen=True)
class Bound:
    """``kept``: sites without a binding and why; ``paired``: sites that another's binding covers."""

    sites: Mapping[int, Patchable]
    kept: Mapping[int, str]
    calls: Mapping[int, str]
    paired: Mapping[int, int]


def bind_sites(view: CodeView, reach: Reach, addresses: Iterable[int], foreign: Mapping[int, str]) -> Bound:
    """Bind the sites at ``addresses``; ``foreign`` are those that stay for a reason known before."""
    sites: dict[int, Patchable] = {}
    kept: dict[int, str] = {}
    calls: dict[int, str] = {}
    paired: dict[int, int] = {}
    for address in sorted(addresses):
        if address in paired:
            continue
        if address in foreign:
            kept[address] = foreign[address]
            continue
        found = _bind_one(view, reach, address)
        if isinstance(found, str):
            kept[address] = found
            continue
        sites[address] = found
        calls[address] = found.binding.call
        if found.binding.length == 2:
            instruction = view.at(address)
            assert instruction is not None
            paired[instruction.next_ip] = address
            calls[instruction.next_ip] = found.binding.call
    for address in _without_stack(view, sites):
        if reason := _no_cell(sites[address], reach):
            del sites[address]
            kept[address] = reason
        else:
            sites[address] = replace(sites[address], stackless=True)
    return Bound(sites, kept, calls, paired)


def _bind_one(view: CodeView, reach: Reach, address: int) -> Patchable | str:
    instruction = view.at(address)
    if instruction is None:
        return "not on a known instruction boundary"
    bits = view.width(address)
    if bits not in (32, 64):
        return "16-bit code: no backend runs it"
    following = view.at(instruction.next_ip)
    next_name = mnemonic_names()[following.mnemonic] if following is not None else ""
    found = match_form(instruction, bits, next_name)
    call, form = found.call, found.form
    if call is None or form is None:
        return found.kept.reason if found.kept is not None else "no form of the ABI covers this encoding"
    if form.next and view.is_target(instruction.next_ip):
        return f"the {form.next.upper()} behind it is a branch target, and the two must act as one"
    try:
        binding = bind(call, form, instruction, bits)
    except Refused as refused:
        return str(refused)
    if reason := refusal(binding, bits, called=reach.kind == "absolute"):
        return reason
    end = instruction.next_ip
    if binding.length == 2:
        assert following is not None
        end = following.next_ip
    lone = _shadowless(view.at(end), binding, bits, reach)
    return Patchable(address, bits, binding, end, call.replaces.index(form), shadowless=lone)


def _shadowless(following: Instruction | None, binding: Binding, bits: int, reach: Reach) -> bool:
    """Whether a load of SS goes without its shadow: what follows depends on its place, in code that moves.

    At 64 bits RSP alone is the stack (SDM vol. 3, 3.4.4): an interrupt between the two finds it whole.
    """
    if not binding.loads_ss or bits != 64 or reach.kind != "absolute" or following is None:
        return False
    return not moves_as_one(following, bits)


def _without_stack(view: CodeView, sites: Mapping[int, Patchable]) -> list[int]:
    """Sites that run when SS is new and the stack pointer is still the old one.

    The new segment may have another base, or no room at all, so no thunk may touch the stack
    there, not even to give back a register. In 64-bit mode SS has neither (SDM vol. 3, 3.4.4).
    """
    found: set[int] = set()
    for address, site in sites.items():
        if not site.binding.loads_ss or site.bits == 64:
            continue
        if site.binding.copies:  # LSS: it makes a stack where there may have been none
            found |= set() if needs_stack(view, address) else {address}
            continue
        zone = stackless_after(view, site.end)
        if zone is None:
            continue
        if not spares_stack(site.binding, site.bits, dead_registers(view, site.end, site.bits)):
            found.add(address)
        found |= {inside for inside in zone if inside in sites}
    return sorted(found)


def _no_cell(site: Patchable, reach: Reach) -> str:
    """Why a site without a stack cannot have the stackless form; empty when it can."""
    spec = load_spec()
    call = spec.call(site.binding.call)
    if reach.kind == "absolute":
        return "no stack is known to exist, and its thunk is reached by a call"
    if call.flags == "if" and call.replaces[site.form].insn == "sti":
        return "no stack is known to exist, and what stands in its shadow would lose it"
    if not spec.is_stackless(call, call.replaces[site.form]):
        return "no stack is known to exist, and what it does needs one"
    return ""
