"""What a Xen guest says of itself: ELF notes of owner "Xen", or the older __xen_guest string.

Source: xen/include/public/elfnote.h; the fallback order is that of Xen's own domain builder (libelf).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rewriter.image.model import Note

__all__ = ["NOTE_NAMES", "PHYS32_ENTRY", "xen_parameters"]

OWNER = "Xen"
SECTION_STRING = "__xen_guest"
SECTION_NOTES = ".note.Xen"
PHYS32_ENTRY = 18
PAGE = 4096

NOTE_NAMES = {
    0: "INFO",
    1: "ENTRY",
    2: "HYPERCALL_PAGE",
    3: "VIRT_BASE",
    4: "PADDR_OFFSET",
    5: "XEN_VERSION",
    6: "GUEST_OS",
    7: "GUEST_VERSION",
    8: "LOADER",
    9: "PAE_MODE",
    10: "FEATURES",
    11: "BSD_SYMTAB",
    12: "HV_START_LOW",
    13: "L1_MFN_VALID",
    14: "SUSPEND_CANCEL",
    15: "INIT_P2M",
    16: "MOD_START_PFN",
    17: "SUPPORTED_FEATURES",
    18: "PHYS32_ENTRY",
    19: "PHYS32_RELOC",
}
TEXT_NOTES = frozenset({5, 6, 7, 8, 9, 10, 11})
# __xen_guest key: name of the note that says the same
STRING_KEYS = {
    "GUEST_OS": "GUEST_OS",
    "GUEST_VERSION": "GUEST_VERSION",
    "XEN_VER": "XEN_VERSION",
    "VIRT_BASE": "VIRT_BASE",
    "VIRT_ENTRY": "ENTRY",
    "ELF_PADDR_OFFSET": "PADDR_OFFSET",
    "HYPERCALL_PAGE": "HYPERCALL_PAGE",
    "PAE": "PAE_MODE",
    "LOADER": "LOADER",
    "FEATURES": "FEATURES",
    "BSD_SYMTAB": "BSD_SYMTAB",
}
NUMBER_KEYS = frozenset({"VIRT_BASE", "ENTRY", "PADDR_OFFSET", "HYPERCALL_PAGE"})


def xen_parameters(notes: Iterable[Note], guest_string: bytes, entry: int) -> Mapping[str, int | str]:
    """The guest's parameters by note name, all addresses virtual; empty when it is no Xen guest.

    Notes of owner "Xen" win; without any the __xen_guest string counts; notes in .note.Xen with a
    foreign owner only when there is nothing else. `entry` is the ELF entry: a paravirtual guest that names
    no other starts there.
    """
    notes = tuple(notes)
    found = _from_notes(note for note in notes if note.owner == OWNER)
    if not found and guest_string:
        found = _from_string(guest_string)
    elif not found:
        found = _from_notes(note for note in notes if note.section == SECTION_NOTES)
    if _is_paravirtual(found):
        found.setdefault("ENTRY", entry)
    return found


def _is_paravirtual(found: Mapping[str, int | str]) -> bool:
    """Would the toolstack load the image as a PV guest (elf_xen_note_check)? One whose only entry is PVH's
    is meant for that."""
    loader, system = str(found.get("LOADER", "")), str(found.get("GUEST_OS", ""))
    version = str(found.get("XEN_VERSION", ""))
    known = loader.startswith("generic") or system.startswith("linux")
    return known and version.startswith("xen-3.0") and "PHYS32_ENTRY" not in found


def _from_notes(notes: Iterable[Note]) -> dict[str, int | str]:
    found: dict[str, int | str] = {}
    for note in notes:
        name = NOTE_NAMES.get(note.type)
        if name is None:
            continue
        if note.type in TEXT_NOTES:
            found[name] = note.description.split(b"\0")[0].decode("latin-1")
        elif len(note.description) > 0:
            found[name] = int.from_bytes(note.description[:8], "little")
    return found


def _from_string(text: bytes) -> dict[str, int | str]:
    found: dict[str, int | str] = {}
    for item in text.split(b"\0")[0].decode("latin-1").split(","):
        key, _, value = item.partition("=")
        name = STRING_KEYS.get(key.strip())
        if name is None:
            continue
        if name in NUMBER_KEYS:
            try:
                found[name] = int(value, 0)
            except ValueError:
                continue
        else:
            found[name] = value
    found.setdefault("PADDR_OFFSET", found.get("VIRT_BASE", 0))
    page, base = found.get("HYPERCALL_PAGE"), found.get("VIRT_BASE", 0)
    if isinstance(page, int) and isinstance(base, int):
        found["HYPERCALL_PAGE"] = base + page * PAGE  # the string form gives a page number
    return found
