"""Properties of a patch, on samples and real images: explained, reversible, deterministic, complete."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pvpatch.abi.errors import ImageError
from pvpatch.abi.layout import find_locators
from pvpatch.diffing import compare_files
from rewriter.emit.entries import stub_entries
from rewriter.emit.produce import patch_image
from rewriter.image import parse_image
from rewriter.manifest import explain, read_manifest
from rewriter.manifest.restore import restore
from rewriter.verify import operation, verify
from tests.patch.conftest import SAMPLES, Patches


def test_every_byte_is_explained(subject: str, patch_of: Patches) -> None:
    image, produced = patch_of(subject)
    patched = parse_image(produced.file, Path("patched"))
    result = explain(image.payload, patched.payload, read_manifest(patched.payload))
    assert result.unexplained == ()
    assert result.changed > 0
    windows = {window.start for window in produced.job.plan.windows}
    for change in produced.manifest.changes:
        assert change.why
        assert change.kind in ("window", "cave", "entry", "header")
        assert (change.window in windows) == (change.kind in ("window", "cave"))


def test_revert_restores_the_file_bit_for_bit(subject: str, patch_of: Patches) -> None:
    image, produced = patch_of(subject)
    restored = restore(parse_image(produced.file, Path("patched")))
    assert hashlib.sha256(restored).digest() == hashlib.sha256(image.original).digest()


def test_patching_twice_gives_the_same_file(subject: str, patch_of: Patches) -> None:
    image, produced = patch_of(subject)
    assert patch_image(parse_image(image.original, image.path)).file == produced.file


def test_the_file_does_not_depend_on_the_process(tmp_path: Path) -> None:
    """Sets iterate in another order under another hash seed: it must not show."""
    outputs = []
    for seed in ("1", "2"):
        out = tmp_path / f"out{seed}"
        command = [
            sys.executable,
            "-m",
            "pvpatch",
            "patch",
            str(SAMPLES / "native-i386/native-i386.elf"),
            "-o",
            str(out),
        ]
        subprocess.run(command, check=True, capture_output=True, env=os.environ | {"PYTHONHASHSEED": seed})
        outputs.append(out.read_bytes())
    assert outputs[0] == outputs[1]


def test_no_site_is_missed_silently(subject: str, patch_of: Patches) -> None:
    _, produced = patch_of(subject)
    decided = {site.address: site for site in produced.manifest.sites}
    assert set(decided) == {site.address for site in produced.scan.sites}
    for site in decided.values():
        if site.tactic in ("trap", "kept"):
            assert site.reason
        else:
            assert site.window is not None
            assert site.thunk is not None
            assert site.call


def test_most_sites_find_room(subject: str, patch_of: Patches) -> None:
    _, produced = patch_of(subject)
    sites = produced.manifest.sites
    patched = sum(site.tactic not in ("trap", "kept") for site in sites)
    assert patched >= 0.97 * len(sites)


def test_windows_keep_their_rules(subject: str, patch_of: Patches) -> None:
    _, produced = patch_of(subject)
    view = produced.job.view
    end = 0
    for window in produced.job.plan.windows:
        assert window.start >= end
        end = window.end
        assert not view.excluded(window.start, window.end)
        for target in view.targets_inside(window.start, window.end):
            assert view.only_from(target, window.start, window.end)
            assert target in window.instructions


def test_relocated_instructions_are_the_same_operations(subject: str, patch_of: Patches) -> None:
    image, produced = patch_of(subject)
    assert verify(produced.job, produced.job.payload()) == produced.instructions_checked > 0
    moved = 0
    for thunk in produced.job.resident.thunks.values():
        for item in thunk.items:
            if item.origin is None or item.instruction.op_count == 0:
                continue
            original = produced.job.view.at(item.origin)
            assert original is not None
            assert original.mnemonic == item.instruction.mnemonic or original.is_call_near
            moved += operation(item.instruction) == operation(original)
    assert moved > 0
    assert image.payload[:4] == produced.job.payload()[:4]


def test_the_locator_is_found_in_the_loaded_segments(subject: str, patch_of: Patches) -> None:
    _, produced = patch_of(subject)
    patched = parse_image(produced.file, Path("patched"))
    found = [
        at for segment in patched.segments for at in find_locators(patched.data_of(segment), segment.paddr)
    ]
    assert len(found) == 1


def test_a_patched_image_is_not_patched_again(subject: str, patch_of: Patches) -> None:
    _, produced = patch_of(subject)
    with pytest.raises(ImageError, match="already patched"):
        patch_image(parse_image(produced.file, Path("patched")))


def test_an_image_without_executable_segments_is_refused_in_words(patch_of: Patches) -> None:
    """memtest86.elf of memtest86 4: one segment, readable and writable."""
    image, _ = patch_of("native-i386")
    inert = replace(image, segments=tuple(replace(part, executable=False) for part in image.segments))
    with pytest.raises(ImageError, match="no segment of the image is executable"):
        stub_entries(inert)


def test_an_unpatched_image_is_not_reverted(subject: str, patch_of: Patches) -> None:
    image, _ = patch_of(subject)
    with pytest.raises(ImageError, match="not patched"):
        restore(image)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_byte_changed_by_hand_is_named(data: st.DataObject, patch_of: Patches, tmp_path: Path) -> None:
    image, produced = patch_of("native-i386")
    damaged = bytearray(produced.file)
    at = data.draw(st.integers(0, len(damaged) - 1))
    damaged[at] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "damaged"
    path.write_bytes(damaged)
    difference = compare_files(image.path, path)
    assert not difference.explained
    assert any(
        place.offset <= at < place.offset + max(len(place.expected), len(place.found)) // 2
        for place in difference.unexplained
    )


def test_a_byte_changed_by_hand_is_named_by_part_and_symbol(patch_of: Patches, tmp_path: Path) -> None:
    image, produced = patch_of("native-i386")
    window = produced.job.plan.windows[40]
    offset = image.offset_of(window.start)
    assert offset is not None
    inside = [(offset + 1, image.describe(window.start + 1))]
    call_page = next(item for item in produced.manifest.additions if item.name.startswith("call page"))
    inside.append((call_page.offset + 100, f"{call_page.name}+0x64"))
    for at, words in inside:
        damaged = bytearray(produced.file)
        damaged[at] ^= 1
        path = tmp_path / "damaged"
        path.write_bytes(damaged)
        (place,) = compare_files(image.path, path).unexplained
        assert place.offset == at
        assert place.where == words
        assert place.address is not None


@pytest.mark.guest
def test_a_damaged_container_is_named(patch_of: Patches, tmp_path: Path) -> None:
    image, produced = patch_of("gnumach-amd64")
    for at in (5, len(produced.file) // 2, len(produced.file) - 1):
        damaged = bytearray(produced.file)
        damaged[at] ^= 1
        path = tmp_path / "damaged"
        path.write_bytes(damaged)
        places = compare_files(image.path, path).unexplained
        assert any(place.space == "file" and place.offset == at for place in places)
