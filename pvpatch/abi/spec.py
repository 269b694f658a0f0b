"""The ABI specification as typed, frozen documents, loaded from `abi.toml` and validated.

Registers
    The data names registers by their i386 names (`eax` .. `edi`); `register(role, width)` gives
    the register of a width (`eax` at 32, `rax` at 64). Argument `bits` say how much of the register
    counts: 8, 16, 32, 64 or "n" (the native width); a callee must ignore the bits above.
    A 64-bit value with a `pair` is RAX at 64 bits and pair:reg (EDX:EAX) at 32 bits.
    `stackN` is the Nth native word of the stack at the entry of a jump, or above the return address
    of a call. Stack arguments are *consumed by the callee* (no live register is touched).

Kinds
    `call`: reached by CALL, returns behind it. `jump`: reached by JMP, never returns.
    Everything but the documented results is preserved, RFLAGS too, except what `flags` says:
    preserved | if (only IF) | zf (only ZF) | ac (only AC) | loaded (all, from the argument) |
    frame (from the frame or registers the instruction consumes) | handler (what the guest's
    handler leaves).

`replaces`: which instruction forms a call stands for, and how a thunk binds their operands
    insn      mnemonic as iced-x86 names it, lower case (`pushfd`, `iretq`, `sysretq`, `insd`)
    next      the following instruction is part of the form (`sti` + `hlt`); prefer such a form
    ops       operand patterns, one per explicit operand; absent or empty = none looked at:
              r (general register), m (memory), rm (either), imm, far (immediate far pointer),
              mfar (far pointer in memory), sreg, dr, r16, or one register by name (cr0, al, dx)
    widths    code bitness the form exists in (absent: both)
    opsize    operand size in bits (absent: any)
    rep       true: with a repeat prefix, false: without, absent: either
    args      ABI argument -> source        (every argument of the call is bound, or, for stack
                                             arguments, all of them or none: none = already there)
    results   ABI result -> destination     (every result is bound)
    also      further moves: destination operand -> source. The source is read *before* the call;
              the destination is written last (LSS ESP: as the very last step, and it may be read
              again then, since the load of SS does not change DS)
    pops, pops_plus   bytes of the guest's stack that the form consumes before its stack arguments
              are put in place, so that after the callee took them SP is site SP + pops (+ immediate)

Sources
    opN             register (low part), memory (loaded with the site's own addressing) or immediate,
                    zero-extended from its size
    reg:NAME        the site's value of that register
    const:INT       a constant
    index[opN]      the number of a segment (ES 0 CS 1 SS 2 DS 3 FS 4 GS 5), debug or control register
    ea[opN]         linear address of the memory operand (LEA; FS and GS overrides add their base:
                    a generator that cannot must refuse the site)
    memB[opN+D]     B in 16 24 32 64 bits at the operand's address + D, zero-extended
    offset[opN], selector[opN]   the parts of an immediate far pointer
    pop             a native word popped off the guest's stack (16-bit operand size: refuse)
    pop16[CALL]     16 bits popped off the guest's stack; the bits above are those of CALL's result,
                    which the thunk asks first and which has the argument's register (POPF with a
                    16-bit operand leaves the upper half of the flags, SDM 2B, POPF)
    stack32[D], stack64[D]       bits at guest SP + D, read before `pops` are taken off

Destinations
    opN             register or memory at the operand's own size (32-bit registers clear the upper
                    half at 64 bits, 8 and 16-bit ones keep it)
    reg:NAME        32 bits or native as the result says; 32-bit results clear the upper half
    memB[opN+D]     B in 16 32 64 bits at the operand's address + D
    push, push16    a native word, or its low 16 bits, pushed on the guest's stack
    discard         the register keeps the site's value

Stackless form
    A form whose sources and destinations are neither the stack's nor a pair of instructions can be left
    as it is, at a place that the image declares (a *cell*, `Spec.is_stackless`). Forms are numbered in the
    order of their call's `replaces`; that number is part of the ABI, so new forms come last.

Thunk recipe (all forms): save the call's registers that are not destinations, bind the sources
(reading saved copies), CALL the slot, store the results (into saved copies where the destination
is one of them), restore. MOV, LEA, PUSH, POP and XCHG only: flags stay untouched.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import resources
from typing import Any

from pvpatch.abi.errors import PvpatchError

__all__ = [
    "REGISTERS",
    "SEGMENT_INDEX",
    "Argument",
    "Call",
    "CellRules",
    "Feature",
    "Form",
    "Group",
    "Kept",
    "Spec",
    "SpecError",
    "load_spec",
    "parse_spec",
    "register",
]

REGISTERS = ("eax", "edx", "ecx", "ebx", "esi", "edi")
SEGMENT_INDEX = {"es": 0, "cs": 1, "ss": 2, "ds": 3, "fs": 4, "gs": 5}
WIDTHS = (32, 64)
FLAG_EFFECTS = ("preserved", "if", "zf", "ac", "loaded", "frame", "handler")
FAULTS = ("db", "ud", "np", "ss", "gp", "pf")
OPERAND = re.compile(r"r|m|rm|imm|far|mfar|sreg|dr|r16|cr[0-8]|[a-d]l|[abcd]x|e[abcd]x|dx")
SOURCE = re.compile(
    r"op[0-3]|reg:e(ax|dx|cx|bx|si|di)|const:-?\d+|index\[op[01]\]|ea\[op[0-3]\]"
    r"|mem(16|24|32|64)\[op[0-3]\+\d+\]|offset\[op0\]|selector\[op0\]|pop|pop16\[\w+\]|stack(32|64)\[\d+\]"
)
DESTINATION = re.compile(
    r"op[0-3]|reg:e(ax|dx|cx|bx|si|di)|mem(16|32|64)\[op[0-3]\+\d+\]|push|push16|discard"
)
STACK_ROLE = re.compile(r"stack(\d)")


class SpecError(PvpatchError):
    """The specification contradicts itself: a fault of this program, found when it is loaded."""


def register(role: str, width: int) -> str:
    """Name of the register that `role` (an i386 name) is at `width` bits."""
    if role not in REGISTERS:
        raise SpecError(f"{role!r} is no register of the ABI")
    return role if width == 32 else "r" + role[1:]


@dataclass(frozen=True)
class Group:
    """A family of calls."""

    name: str
    title: str
    why: str


@dataclass(frozen=True)
class Feature:
    """One bit of the header's `features` word."""

    bit: int
    name: str
    why: str


@dataclass(frozen=True)
class Argument:
    """An argument or a result. `bits` is 0 for the native width."""

    name: str
    reg: str
    bits: int
    unit: str
    pair: str = ""

    @property
    def stack_index(self) -> int | None:
        """Which stack word it is, or None for a register."""
        match = STACK_ROLE.fullmatch(self.reg)
        return int(match[1]) if match else None

    def registers(self, width: int) -> tuple[str, ...]:
        """The registers it occupies at `width`, low part first; none for a stack word."""
        if self.stack_index is not None:
            return ()
        names = (self.reg, self.pair) if self.pair and width == 32 else (self.reg,)
        return tuple(register(name, width) for name in names)


@dataclass(frozen=True)
class Form:
    """One instruction form that a call replaces, with the binding of its operands."""

    insn: str
    next: str = ""
    ops: tuple[str, ...] = ()
    widths: tuple[int, ...] = WIDTHS
    opsize: tuple[int, ...] = ()
    rep: bool | None = None
    args: tuple[tuple[str, str], ...] = ()
    results: tuple[tuple[str, str], ...] = ()
    also: tuple[tuple[str, str], ...] = ()
    pops: int = 0
    pops_plus: str = ""


@dataclass(frozen=True)
class Call:
    """One call of the ABI.

    `bare` holds (width, assembly text or "enosys"); a width that is missing has no such call.
    """

    number: int
    name: str
    group: str
    kind: str
    since: tuple[int, int]
    why: str
    args: tuple[Argument, ...]
    results: tuple[Argument, ...]
    stack: int
    stack_in: tuple[str, ...]
    flags: str
    clobbers: tuple[str, ...]
    faults: tuple[str, ...]
    feature: str
    absent: str
    bare: tuple[tuple[int, str], ...]
    replaces: tuple[Form, ...]

    def bare_code(self, width: int) -> str | None:
        """Assembly text for `width`, "enosys", or None where the width has no such call."""
        return dict(self.bare).get(width)

    def touched(self, width: int) -> tuple[str, ...]:
        """Registers that carry arguments or results at `width`, each once, in ABI order."""
        names = [name for item in (*self.args, *self.results) for name in item.registers(width)]
        return tuple(dict.fromkeys(names))


@dataclass(frozen=True)
class Kept:
    """A sensitive instruction that stays as it is, and why.

    With `rest` only the forms that no call replaces stay: look for a form first.
    """

    insn: str
    reason: str
    widths: tuple[int, ...] = WIDTHS
    rest: bool = False


@dataclass(frozen=True)
class CellRules:
    """What a cell of the stackless form must be.

    Code width in bits, least size in bytes, and which calls of kind `jump` have the form.
    """

    width: int
    least: int
    jumps: tuple[str, ...]


@dataclass(frozen=True)
class Spec:
    """The whole specification."""

    major: int
    minor: int
    magic: bytes
    page_size: int
    header_size: int
    slot_size: int
    cells: CellRules
    errors: tuple[tuple[str, int], ...]
    groups: tuple[Group, ...]
    features: tuple[Feature, ...]
    calls: tuple[Call, ...]
    kept: tuple[Kept, ...]
    retired: tuple[int, ...]

    @property
    def version(self) -> int:
        """Version as one word: major << 16 | minor."""
        return self.major << 16 | self.minor

    def call(self, name: str) -> Call:
        """The call of that name; SpecError if there is none."""
        for call in self.calls:
            if call.name == name:
                return call
        raise SpecError(f"no call is named {name!r}")

    def by_number(self, number: int) -> Call:
        """The call with that number; SpecError if there is none."""
        if 0 <= number < len(self.calls):
            return self.calls[number]
        raise SpecError(f"no call has number {number}")

    def is_stackless(self, call: Call, form: Form) -> bool:
        """Whether a form can be a cell: one instruction that touches no stack, alone or as its call."""
        words = (*form.args, *form.results, *form.also)
        stacked = any(text.startswith(("pop", "push", "stack")) for _, text in words)
        if form.next or form.pops or form.pops_plus or stacked or self.cells.width not in form.widths:
            return False
        if call.kind == "jump":
            return call.name in self.cells.jumps and bool(form.args)
        return all(item.stack_index is None for item in call.args)

    def in_group(self, group: str) -> tuple[Call, ...]:
        """The calls of a group, by number."""
        return tuple(call for call in self.calls if call.group == group)

    def feature_mask(self, *names: str) -> int:
        """Features word with the named bits set."""
        bits = {feature.name: feature.bit for feature in self.features}
        unknown = set(names) - set(bits)
        if unknown:
            raise SpecError(f"no such feature: {', '.join(sorted(unknown))}")
        return sum(1 << bits[name] for name in set(names))

    def forms_of(self, insn: str) -> tuple[tuple[Call, Form], ...]:
        """Every (call, form) whose first instruction is `insn`, the most particular first.

        That is: forms with `next`, then forms that look at operands, then the others.
        """
        return self._forms.get(insn, ())

    @cached_property
    def _forms(self) -> dict[str, tuple[tuple[Call, Form], ...]]:
        """What `forms_of` answers, by instruction: it is asked for each one that a hypervisor carries out."""
        found: dict[str, list[tuple[Call, Form]]] = {}
        for call in self.calls:
            for form in call.replaces:
                found.setdefault(form.insn, []).append((call, form))
        return {
            insn: tuple(sorted(pairs, key=lambda pair: (not pair[1].next, not pair[1].ops)))
            for insn, pairs in found.items()
        }


def _argument(data: dict[str, Any]) -> Argument:
    bits = 0 if data["bits"] == "n" else int(data["bits"])
    return Argument(data["name"], data["reg"], bits, data["unit"], data.get("pair", ""))


def _form(data: dict[str, Any]) -> Form:
    return Form(
        insn=data["insn"],
        next=data.get("next", ""),
        ops=tuple(data.get("ops", ())),
        widths=tuple(data.get("widths", WIDTHS)),
        opsize=tuple(data.get("opsize", ())),
        rep=data.get("rep"),
        args=tuple(data.get("args", {}).items()),
        results=tuple(data.get("results", {}).items()),
        also=tuple(data.get("also", {}).items()),
        pops=data.get("pops", 0),
        pops_plus=data.get("pops_plus", ""),
    )


def _bare(code: str | dict[str, str]) -> tuple[tuple[int, str], ...]:
    if isinstance(code, str):
        return tuple((width, code) for width in WIDTHS)
    names = {"i386": 32, "x86_64": 64}
    return tuple((names[name], text) for name, text in code.items())


def _call(data: dict[str, Any], stack: dict[str, int], default_since: tuple[int, int]) -> Call:
    kind = data.get("kind", "call")
    since = data.get("since")
    return Call(
        number=data["number"],
        name=data["name"],
        group=data["group"],
        kind=kind,
        since=(since[0], since[1]) if since else default_since,
        why=data["why"],
        args=tuple(_argument(item) for item in data.get("args", ())),
        results=tuple(_argument(item) for item in data.get("results", ())),
        stack=data.get("stack", stack[kind]),
        stack_in=tuple(data.get("stack_in", ())),
        flags=data.get("flags", "preserved"),
        clobbers=tuple(data.get("clobbers", ())),
        faults=tuple(data.get("faults", ())),
        feature=data.get("feature", ""),
        absent=data.get("absent", ""),
        bare=_bare(data["bare"]),
        replaces=tuple(_form(item) for item in data.get("replaces", ())),
    )


def parse_spec(text: str) -> Spec:
    """Specification from TOML text; SpecError if it is incomplete or contradicts itself."""
    try:
        data = tomllib.loads(text)
        spec = Spec(
            major=data["abi"]["major"],
            minor=data["abi"]["minor"],
            magic=data["page"]["magic"].encode("ascii"),
            page_size=data["page"]["size"],
            header_size=data["page"]["header_size"],
            slot_size=data["page"]["slot_size"],
            cells=CellRules(data["cells"]["width"], data["cells"]["least"], tuple(data["cells"]["jumps"])),
            errors=tuple(data["errors"].items()),
            groups=tuple(Group(**item) for item in data["group"]),
            features=tuple(Feature(**item) for item in data["feature"]),
            calls=tuple(_call(item, data["stack"], (1, 0)) for item in data["call"]),
            kept=tuple(
                Kept(item["insn"], item["reason"], tuple(item.get("widths", WIDTHS)), item.get("rest", False))
                for item in data["kept"]
            ),
            retired=tuple(data["retired"]),
        )
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        raise SpecError(f"the ABI specification cannot be read: {error!r}") from error
    _validate(spec)
    return spec


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise SpecError(f"the ABI specification is wrong: {message}")


def _validate(spec: Spec) -> None:
    numbers = sorted([*(call.number for call in spec.calls), *spec.retired])
    _require(numbers == list(range(len(numbers))), "numbers must be dense and used once")
    _require([call.number for call in spec.calls] == sorted(call.number for call in spec.calls), "order")
    for what, names in (
        ("call", [call.name for call in spec.calls]),
        ("group", [group.name for group in spec.groups]),
        ("feature", [feature.name for feature in spec.features]),
    ):
        _require(len(names) == len(set(names)), f"a {what} name is used twice")
    jumps = {call.name for call in spec.calls if call.kind == "jump"}
    _require(set(spec.cells.jumps) <= jumps, "a cell's jump is none")
    groups = {group.name for group in spec.groups}
    features = {feature.name for feature in spec.features} | {""}
    for call in spec.calls:
        _validate_call(call, groups, features)


def _validate_call(call: Call, groups: set[str], features: set[str]) -> None:
    where = f"call {call.name}"
    _require(call.kind in ("call", "jump"), f"{where}: kind {call.kind}")
    _require(call.group in groups, f"{where}: group {call.group}")
    _require(call.feature in features, f"{where}: feature {call.feature}")
    _require(call.flags in FLAG_EFFECTS, f"{where}: flags {call.flags}")
    _require(set(call.faults) <= set(FAULTS), f"{where}: faults")
    _require(bool(call.absent) == (len(call.bare) < len(WIDTHS)), f"{where}: absent and bare disagree")
    for item in (*call.args, *call.results):
        stacked = item.stack_index is not None
        _require(stacked or item.reg in REGISTERS, f"{where}: register {item.reg}")
        _require(not item.pair or (item.pair in REGISTERS and item.bits == 64), f"{where}: pair {item.name}")
    stacked_args = [item.stack_index for item in call.args if item.stack_index is not None]
    _require(stacked_args == list(range(len(stacked_args))), f"{where}: stack words")
    for form in call.replaces:
        _validate_form(call, form)


def _validate_form(call: Call, form: Form) -> None:
    where = f"call {call.name}, form {form.insn} {','.join(form.ops)}"
    names = {item.name for item in call.args}
    in_place = all(item.stack_index is not None for item in call.args)
    bound = {name for name, _ in form.args}
    _require(bound == names or (in_place and not bound), f"{where}: arguments {bound ^ names}")
    _require({name for name, _ in form.results} == {item.name for item in call.results}, f"{where}: results")
    available = {width for width, _ in call.bare}
    _require(set(form.widths) <= available if form.widths != WIDTHS else bool(available), f"{where}: widths")
    for pattern in form.ops:
        _require(OPERAND.fullmatch(pattern) is not None, f"{where}: operand pattern {pattern}")
    for _, source in (*form.args, *form.also):
        _require(SOURCE.fullmatch(source) is not None, f"{where}: source {source}")
    for _, destination in form.results:
        _require(DESTINATION.fullmatch(destination) is not None, f"{where}: destination {destination}")
    for destination, _ in form.also:
        _require(DESTINATION.fullmatch(destination) is not None, f"{where}: destination {destination}")


@lru_cache(maxsize=1)
def load_spec() -> Spec:
    """The specification of this release."""
    return parse_spec(resources.files("pvpatch.abi").joinpath("abi.toml").read_text(encoding="utf-8"))
