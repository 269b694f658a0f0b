"""What stands in the shadow of STI, MOV SS and POP SS, and must directly follow them in a thunk too.

After STI that found interrupts off, and after a load of SS by MOV or POP, the CPU takes no interrupt
(and, after a load of SS, no debug exception) before the next instruction is done: SDM vol. 3, 6.8.1 and
6.8.3. So that instruction moves with them, as a copy where its own place keeps it.
"""

from __future__ import annotations

from collections.abc import Mapping

from iced_x86 import Instruction, Mnemonic

from rewriter.emit.operands import Binding
from rewriter.emit.relocate import check, is_direct_call
from rewriter.tactics.protocol import Patchable
from rewriter.tactics.view import CodeView

__all__ = ["opens_shadow", "shadow_of", "unmoved"]


def opens_shadow(binding: Binding, instruction: Instruction) -> bool:
    """Whether the next instruction stands in the shadow of this site; LSS gives none."""
    if instruction.mnemonic == Mnemonic.STI:
        return binding.length == 1
    return binding.loads_ss and not binding.copies


def shadow_of(
    view: CodeView, sites: Mapping[int, Patchable], unpatchable: Mapping[int, str], site: Patchable
) -> tuple[int, ...] | str:
    """Addresses of the instructions in the shadow of a site, or why they cannot follow it into a thunk.

    Empty for a site without one. One that opens a shadow itself brings what stands in its own.
    """
    if site.shadowless:
        return ()
    found: list[int] = []
    opener: Patchable | None = site
    loads_ss = False
    while opener is not None and opens_shadow(opener.binding, _known(view, opener.address)):
        loads_ss = loads_ss or opener.binding.loads_ss
        address = opener.end
        reason = unmoved(view, sites, unpatchable, site, address)
        if not reason and loads_ss and is_direct_call(_known(view, address)):
            reason = "a call on the new stack"
        if reason:
            return f"what stands in its shadow cannot move with it: {reason}"
        found.append(address)
        opener = sites.get(address)
    return tuple(found)


def _known(view: CodeView, address: int) -> Instruction:
    instruction = view.at(address)
    assert instruction is not None
    return instruction


def unmoved(
    view: CodeView,
    sites: Mapping[int, Patchable],
    unpatchable: Mapping[int, str],
    site: Patchable,
    address: int,
) -> str:
    """Why the instruction at an address cannot follow a site into its thunk; empty when it can."""
    instruction = view.at(address)
    if instruction is None or view.width(address) != site.bits:
        return "no known instruction"
    if reason := unpatchable.get(address) or view.excluded(address, instruction.next_ip):
        return reason
    inside = sites.get(address)
    if inside is None:
        return check(instruction)
    if inside.stackless != site.stackless:
        return "it has no stack" if inside.stackless else "it needs a stack"
    return ""
