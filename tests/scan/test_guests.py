"""Scans of real kernels: agreement with symbols, with a second decoder, and between builds of one source.

No figure of one package version is expected here: the relations hold for every version.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pvpatch.guests import cached
from rewriter.decode.crosscheck import second_opinion
from rewriter.image import Image, open_image
from rewriter.scan import ScanResult, scan_image
from rewriter.scan.block import XEN_EMULATE
from tests.scan.truth import symbol_truth

GuestPath = Callable[[str], Path]

pytestmark = pytest.mark.guest

NATIVE = ["gnumach-i386", "gnumach-amd64", "memtest-ia32", "memtest-x64", "linux-amd64", "linux-i386"]
OTHERS = ["gnumach-xen-i386", "gnumach-xen-amd64", "grub-xen-i386", "grub-xen-amd64", "grub-pvh-i386"]

_scanned: dict[str, tuple[Image, ScanResult]] = {}


def scanned(guest_path: GuestPath, name: str) -> tuple[Image, ScanResult]:
    """Open and scan a guest, once per process."""
    if name not in _scanned:
        image = open_image(guest_path(name))
        _scanned[name] = image, scan_image(image)
    return _scanned[name]


def by_kind(result: ScanResult) -> Counter[str]:
    """Native sites by kind."""
    return Counter(site.kind for site in result.sites if site.dialect == "native")


@pytest.mark.parametrize("name", [*NATIVE, *OTHERS])
def test_capstone_confirms_every_site(guest_path: GuestPath, name: str) -> None:
    image, result = scanned(guest_path, name)
    assert result.complete
    assert result.sites
    for site in result.sites:
        assert image.payload[site.file_offset : site.file_offset + site.length] == site.code
        verdict = second_opinion(site.code.removeprefix(XEN_EMULATE), site.width, site.mnemonic)
        assert verdict.explained, (hex(site.address), site.code.hex(), verdict)
        assert site.call or site.reason or site.dialect != "native"


@pytest.mark.parametrize("name", ["linux-amd64", "linux-i386"])
def test_linux_sites_equal_those_found_by_symbols(guest_path: GuestPath, name: str) -> None:
    found = cached(f"{name}-dbg")
    if found is None and os.environ.get("PVPATCH_DBG") != "1":
        pytest.skip(
            f"{name}-dbg (hundreds of MB) is not cached: `pvpatch guests fetch {name}-dbg` or PVPATCH_DBG=1"
        )
    vmlinux = found.path if found is not None else guest_path(f"{name}-dbg")
    image, result = scanned(guest_path, name)
    islands = tuple((entry.address, entry.width) for entry in image.entries if entry.width != image.bits)
    truth = symbol_truth(vmlinux, islands)
    sites = {site.address: (site.kind, site.length) for site in result.sites if site.kind != "paravirt_call"}
    assert {hex(address): sites[address] for address in sites.keys() - truth.keys()} == {}  # false positives
    assert {hex(address): truth[address] for address in truth.keys() - sites.keys()} == {}  # false negatives
    assert sites == truth


@pytest.mark.parametrize("name", ["linux-amd64", "linux-i386"])
def test_linux_is_swept_and_its_tables_are_found(guest_path: GuestPath, name: str) -> None:
    _, result = scanned(guest_path, name)
    methods = {region.name: region.method for region in result.regions}
    assert methods[".text"] == "sweep"
    assert methods[".altinstr_replacement"] == "table"
    kinds = Counter(window.kind for window in result.codemap.windows)
    for kind in ("alternative", "paravirt", "ex_table", "smp_lock", "jump_label", "static_call", "mcount"):
        assert kinds[kind] > 100, kind
    assert all(site.dialect == "pvops" for site in result.sites if site.kind == "paravirt_call")


def test_linux_pvh_entry_is_32_bit_code(guest_path: GuestPath) -> None:
    image, result = scanned(guest_path, "linux-amd64")
    entry = next(entry for entry in image.entries if entry.protocol == "pvh")
    assert result.codemap.width_at(entry.address) == 32
    island = [site for site in result.sites if site.width == 32]
    assert {"lgdt", "far_jump", "mov_to_cr", "wrmsr"} <= {site.kind for site in island}
    assert all(abs(site.address - entry.address) < 4096 for site in island)


@pytest.mark.parametrize("name", ["gnumach-i386", "gnumach-amd64", "memtest-ia32", "memtest-x64"])
def test_no_known_instruction_overlaps_another(guest_path: GuestPath, name: str) -> None:
    """Where data was taken for code, readings overlap; in these kernels only real code does not."""
    _, result = scanned(guest_path, name)
    for region in result.codemap.regions:
        end = 0
        for offset in region.lengths.nonzero()[0].tolist():
            assert offset >= end, hex(region.region.vaddr + offset)
            end = offset + int(region.lengths[offset])


def test_both_builds_of_memtest_hold_the_same_work(guest_path: GuestPath) -> None:
    """One source, two widths: what is compiled from the same lines must be found equally often."""
    narrow = by_kind(scanned(guest_path, "memtest-ia32")[1])
    wide = by_kind(scanned(guest_path, "memtest-x64")[1])
    for kind in ("rdtsc", "wbinvd", "hlt", "in", "rdmsr", "wrmsr"):
        assert narrow[kind] == wide[kind], kind
    assert abs(narrow["out"] - wide["out"]) <= 2
    assert abs(narrow["cpuid"] - wide["cpuid"]) <= 4
    for counts in (narrow, wide):
        assert not {"ins", "outs", "arpl"} & counts.keys()  # that is what text decodes to


def test_gnumach_code_is_covered(guest_path: GuestPath) -> None:
    _, result = scanned(guest_path, "gnumach-amd64")
    text = next(region for region in result.regions if region.name == ".text")
    assert text.code_bytes > 0.95 * text.size


def test_xen_guests_show_their_hypercalls(guest_path: GuestPath) -> None:
    for name in ("gnumach-xen-i386", "gnumach-xen-amd64", "grub-xen-amd64"):
        _, result = scanned(guest_path, name)
        assert result.totals(lambda site: site.dialect).get("xen", 0) > 0, name


def test_grub_text_yields_no_sites(guest_path: GuestPath) -> None:
    for name in ("grub-xen-i386", "grub-xen-amd64", "grub-pvh-i386"):
        counts = by_kind(scanned(guest_path, name)[1])
        assert not {"ins", "outs", "arpl", "int", "push_seg"} & counts.keys(), name


def test_scanning_linux_stays_small(guest_path: GuestPath) -> None:
    """Peak memory of a whole scan below 500 MB, in a process of its own."""
    program = (
        "import re, sys\nfrom pathlib import Path\n"
        "from rewriter.image import open_image\nfrom rewriter.scan import scan_image\n"
        "scan_image(open_image(Path(sys.argv[1])))\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
    )
    path = guest_path("linux-amd64")
    command = [sys.executable, "-c", program, path]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert int(done.stdout) < 500 * 1024
