"""Self-patching tables: well-formed ones are understood, hostile ones are ignored at worst."""

from __future__ import annotations

import struct
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from rewriter.image import Image, Table
from rewriter.scan import scan_image
from rewriter.scan.kernel_tables import DIRECT_CALL
from tests.scan.images import BASE, sectioned_image

TABLES = (
    ".altinstructions", ".parainstructions", "__ex_table", ".smp_locks", ".retpoline_sites", ".return_sites",
    "__bug_table", ".eh_frame", ".orc_unwind_ip",
)  # fmt: skip


def image_with(text: bytes, replacement: bytes, tables: dict[str, bytes], width: int) -> Image:
    """Text, replacement code and tables one after another."""
    parts = [(".text", text, True), (".altinstr_replacement", replacement, True)]
    parts += [(name, content, False) for name, content in tables.items()]
    image = sectioned_image(parts, width)
    found = tuple(
        Table(section.name, section.vaddr, section.file_offset, section.file_size)
        for section in image.sections
        if section.name in tables
    )
    return replace(image, tables=found)


def test_alternatives_exceptions_and_paravirt() -> None:
    text = b"\x0f\x1f\x40\x00" + b"\x0f\x32" + b"\xff\x15\x00\x00\x00\x00" + b"\xf4\xeb\xfd" + b"\xc3"
    replacement = b"\x0f\x01\xca"
    alt_at = BASE + len(text) + len(replacement)
    alternatives = struct.pack(
        "<iiHBB", BASE - alt_at, BASE + len(text) - (alt_at + 4), 9 * 32 + 20, 4, len(replacement)
    )
    fixups_at = alt_at + len(alternatives)
    fixups = struct.pack("<iii", BASE + 4 - fixups_at, BASE + 12 - (fixups_at + 4), 0)
    paravirt = struct.pack("<QBB6x", BASE + 6, 3, 6)
    image = image_with(
        text,
        replacement,
        {".altinstructions": alternatives, "__ex_table": fixups, ".parainstructions": paravirt},
        64,
    )
    result = scan_image(image)
    found = {site.address - BASE: site for site in result.sites}
    assert found[len(text)].kind == "clac"
    assert found[len(text)].context == ("replacement",)
    assert found[4].kind == "rdmsr"
    assert found[4].context == ("ex_table",)
    assert (found[6].dialect, found[6].kind, found[6].detail.split()[:2]) == (
        "pvops",
        "paravirt_call",
        ["slot", "3"],
    )
    assert found[12].context == ("fixup",)
    assert result.codemap.is_target(BASE + 12)
    assert [window.kind for window in result.codemap.windows_over(BASE, BASE + 4)] == ["alternative"]
    assert {region.name: region.method for region in result.regions}[".altinstr_replacement"] == "table"


def test_paravirt_calls_without_a_table_of_their_own() -> None:
    """Linux 6.8 and later: an alternative that makes an indirect call direct is a paravirt call."""
    call = b"\xff\x15\x00\x10\x00\x00"
    text = call + b"\x0f\x1f\x40\x00\x90\x90" + b"\xc3"
    replacement = b"\xe8\x00\x00\x00\x00"
    at = BASE + len(text) + len(replacement)
    rows = [(BASE, 117 | DIRECT_CALL), (BASE + len(call), 117), (BASE, 117 | DIRECT_CALL)]
    table = b"".join(
        struct.pack(
            "<iiIBB", original - place, BASE + len(text) - place - 4, flags, len(call), len(replacement)
        )
        for place, (original, flags) in zip(range(at, at + 42, 14), rows, strict=True)
    )
    result = scan_image(image_with(text, replacement, {".altinstructions": table}, 64))
    calls = [site for site in result.sites if site.dialect == "pvops"]
    assert [(site.address, site.kind, site.detail) for site in calls] == [
        (BASE, "paravirt_call", f"slot at {BASE + len(call) + 0x1000:#x}")
    ]
    assert "pvops: .altinstructions" in result.interfaces


@settings(max_examples=80, deadline=None)
@given(
    text=st.binary(min_size=1, max_size=200),
    replacement=st.binary(min_size=1, max_size=50),
    contents=st.lists(st.binary(min_size=0, max_size=96), min_size=len(TABLES), max_size=len(TABLES)),
    width=st.sampled_from([32, 64]),
)
def test_hostile_tables(text: bytes, replacement: bytes, contents: list[bytes], width: int) -> None:
    result = scan_image(image_with(text, replacement, dict(zip(TABLES, contents, strict=True)), width))
    _ = result.codemap.windows
    _ = result.codemap.target_addresses()
