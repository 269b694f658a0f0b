"""Call pages: header, fixed-size slots, and a body for what is longer than a slot.

A backend gives assembly text by call name; text that fits stays in its slot, longer text goes to the
body behind a `jmp`. `body` holds further routines; slots and routines may name each other by the symbols
`call_NAME` (a slot's entry) and the routines' own names. All code must be position independent: the
page is assembled at address 0 and used wherever it is put.

Text may hold @ABI_VERSION@, @BACKEND_ID@, @FEATURES_LOW@, @FEATURES_HIGH@, @SLOT_COUNT@, @SLOT_SIZE@.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pvpatch.abi.asm import AsmError, Assembly, assemble
from pvpatch.abi.layout import CALL_PAGE_SIZE, HEADER_SIZE, SLOT_SIZE, Header, pack_header, slot_offset
from pvpatch.abi.spec import Call, Spec, load_spec

__all__ = [
    "BARE_BACKEND_ID",
    "PageLayout",
    "bare_slots",
    "build_bare_page",
    "build_page",
    "enosys_text",
    "lay_out_page",
]

BARE_BACKEND_ID = 0
FILL = b"\xcc"
BODY_ALIGN = 16


@dataclass(frozen=True)
class PageLayout:
    """A built page and where its parts are (offsets from the start of the page)."""

    page: bytes
    slots: Mapping[str, int]
    body: Mapping[str, int]
    listings: Mapping[str, Assembly]

    @property
    def used(self) -> int:
        """Bytes up to the end of the last routine."""
        ends = [item.address + len(item.code) for item in self.listings.values()]
        return max([HEADER_SIZE + len(self.slots) * SLOT_SIZE, *ends])


def enosys_text(call: Call, width: int) -> str:
    """Code of a call that a backend does not implement: -ENOSYS, or #UD where no result could say so."""
    if call.kind == "jump" or not call.results:
        return "ud2"
    error = -dict(load_spec().errors)["ENOSYS"]
    if width == 64:
        return f"mov rax, {error}; ret"
    wide = f"mov edx, {-1}; " if call.results[0].pair == "edx" else ""
    return f"mov eax, {error}; {wide}ret"


def bare_slots(width: int, spec: Spec | None = None) -> dict[str, str]:
    """Assembly text of every slot of the bare page: each runs the architecture's own instruction."""
    result = {}
    for call in (spec or load_spec()).calls:
        text = call.bare_code(width)
        result[call.name] = enosys_text(call, width) if text in (None, "enosys") else str(text)
    return result


def _constants(spec: Spec, backend_id: int, features: int) -> dict[str, int]:
    return {
        "@ABI_VERSION@": spec.version,
        "@BACKEND_ID@": backend_id,
        "@FEATURES_LOW@": features & 0xFFFFFFFF,
        "@FEATURES_HIGH@": features >> 32,
        "@SLOT_COUNT@": len(spec.calls),
        "@SLOT_SIZE@": spec.slot_size,
    }


def _place(
    texts: Mapping[str, str], width: int, spec: Spec, symbols: Mapping[str, int]
) -> dict[str, Assembly]:
    """Put every text at its slot if it fits, else in the body; iterate until the body's addresses settle."""
    known = dict(symbols)
    body_start = -(-(spec.header_size + len(spec.calls) * spec.slot_size) // BODY_ALIGN) * BODY_ALIGN
    homes = {call.name: slot_offset(call.number, spec) for call in spec.calls}
    for name in texts:
        known.setdefault(name if name not in homes else f"call_{name}", homes.get(name, body_start))
    long: set[str] = {name for name in texts if name not in homes}
    for _ in range(16):
        placed: dict[str, Assembly] = {}
        before = dict(known)
        at = body_start
        for name, text in texts.items():
            if name not in long:
                placed[name] = assemble(text, width, homes[name], known)
                if len(placed[name].code) <= spec.slot_size:
                    continue
                long.add(name)
            routine = name if name not in homes else f"body_{name}"
            known[routine] = at
            placed[routine] = assemble(text, width, at, known)
            if name in homes:
                placed[name] = assemble(f"jmp {routine}", width, homes[name], known)
            at = -(-(at + len(placed[routine].code)) // BODY_ALIGN) * BODY_ALIGN
        if before == known:
            return placed
    raise AsmError("the call page does not settle")


def lay_out_page(
    width: int,
    backend_id: int,
    slot_code: Mapping[str, str],
    body: Mapping[str, str] | None = None,
    *,
    features: int = 0,
    self_phys: int = 0,
    self_virt: int = 0,
    symbols: Mapping[str, int] | None = None,
    spec: Spec | None = None,
) -> PageLayout:
    """Build a page and say where everything in it is; see `build_page`."""
    spec = spec or load_spec()
    unknown = set(slot_code) - {call.name for call in spec.calls}
    if unknown:
        raise AsmError(f"slot code for calls that do not exist: {', '.join(sorted(unknown))}")
    constants = _constants(spec, backend_id, features)

    def filled(text: str) -> str:
        for token, value in constants.items():
            text = text.replace(token, str(value))
        return text

    texts = {call.name: filled(slot_code.get(call.name) or enosys_text(call, width)) for call in spec.calls}
    texts |= {name: filled(text) for name, text in (body or {}).items()}
    placed = _place(texts, width, spec, symbols or {})
    header = Header(width, len(spec.calls), backend_id, features, self_phys, self_virt)
    page = bytearray(pack_header(header).ljust(CALL_PAGE_SIZE, FILL))
    for item in placed.values():
        end = item.address + len(item.code)
        if end > CALL_PAGE_SIZE:
            raise AsmError(f"the call page is full: {end} bytes, {CALL_PAGE_SIZE} available")
        page[item.address : end] = item.code
    slots = {call.name: slot_offset(call.number, spec) for call in spec.calls}
    bodies = {name: item.address for name, item in placed.items() if name not in slots}
    return PageLayout(bytes(page), slots, bodies, placed)


def build_page(
    width: int,
    backend_id: int,
    slot_code: Mapping[str, str],
    body: Mapping[str, str] | None = None,
    *,
    features: int = 0,
    self_phys: int = 0,
    self_virt: int = 0,
    symbols: Mapping[str, int] | None = None,
) -> bytes:
    """A call page of CALL_PAGE_SIZE bytes.

    `slot_code` maps call names to assembly text (a missing call answers -ENOSYS), `body` names further
    routines, `symbols` are absolute numbers the text may use, `self_phys` and `self_virt` the page's
    guest-physical and linear addresses for the header. AsmError if it does not fit or does not verify.
    """
    return lay_out_page(
        width,
        backend_id,
        slot_code,
        body,
        features=features,
        self_phys=self_phys,
        self_virt=self_virt,
        symbols=symbols,
    ).page


def build_bare_page(width: int, self_phys: int, self_virt: int) -> bytes:
    """The page as it lies in a patched file: every slot runs the architecture's own instruction."""
    return build_page(width, BARE_BACKEND_ID, bare_slots(width), self_phys=self_phys, self_virt=self_virt)
