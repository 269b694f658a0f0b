"""Where a call's arguments come from and where its results go, as data.

A ``Binding`` is what one instruction means in terms of one ABI call: it is made by
``rewriter.emit.binding`` from the specification's operand bindings and turned into code by
``rewriter.emit.marshal``. Registers are architectural numbers 0-15.
"""

from __future__ import annotations

from dataclasses import dataclass

from rewriter.emit.assembly import Place

__all__ = [
    "Address",
    "Binding",
    "Destination",
    "HalfOfResult",
    "Immediate",
    "InMemory",
    "InRegister",
    "OnStack",
    "Source",
]


@dataclass(frozen=True)
class InRegister:
    """The low ``size`` bytes of a register."""

    number: int
    size: int


@dataclass(frozen=True)
class InMemory:
    """``size`` bytes at a place, the stack pointer being the one at the site."""

    place: Place
    size: int


@dataclass(frozen=True)
class OnStack:
    """``size`` bytes at ``offset`` from the stack pointer: what the instruction pops or has pushed."""

    offset: int
    size: int


@dataclass(frozen=True)
class Immediate:
    """An unsigned 32-bit constant."""

    value: int


@dataclass(frozen=True)
class Address:
    """The effective address of a place (LEA), without its segment's base."""

    place: Place


@dataclass(frozen=True)
class HalfOfResult:
    """16 bits at ``offset`` from the stack pointer, and above them what call ``number`` returns.

    That call takes nothing and returns in the register that the argument is passed in.
    """

    number: int
    offset: int


Source = InRegister | InMemory | OnStack | Immediate | Address | HalfOfResult
Destination = InRegister | InMemory | OnStack


@dataclass(frozen=True)
class Binding:
    """One instruction (or fused pair) as one ABI call.

    ``pushes`` and ``pops`` are the bytes by which the instruction moves the stack pointer.
    ``copies`` are values that it moves beside the call (the offset that LDS loads): read
    before the call, delivered after it. ``stack_arguments`` wait on the stack for the slot,
    the first on top; the slot takes them off. ``length`` is what the binding covers in the
    guest's code, in instructions.
    """

    call: str
    number: int
    jump: bool = False
    inputs: tuple[tuple[int, Source], ...] = ()
    outputs: tuple[tuple[int, Destination], ...] = ()
    discards: frozenset[int] = frozenset()
    copies: tuple[tuple[Source, Destination], ...] = ()
    stack_arguments: tuple[Source, ...] = ()
    pushes: int = 0
    pops: int = 0
    loads_ss: bool = False
    length: int = 1
