"""What `scan`, `patch` and `diff` say of a patched image: true, grouped, and whole in the JSON document."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from pvpatch.abi.spec import load_spec
from tests.cli.command import inside
from tests.cli.test_streams import check


def test_a_scan_says_that_an_image_is_patched_and_whose_the_sites_are(patched: Path) -> None:
    text = inside("scan", patched).text
    found = json.loads(inside("scan", patched, "--json", "-").text)
    check("scan", found)
    spec, state = load_spec(), found["image"]["patched"]
    assert state["abi"] == f"{spec.major}.{spec.minor}"
    start, size = state["resident"]["address"], state["resident"]["size"]
    own = [site for site in found["sites"] if start <= site["address"] < start + size]
    assert 0 < len(own) == state["own_sites"]
    assert f"patched by pvpatch for ABI {state['abi']}: {len(own)} of the sites" in text


def test_a_scan_of_an_original_says_nothing_of_the_kind(native: Path) -> None:
    assert "patched" not in inside("scan", native).text
    assert json.loads(inside("scan", native, "--json", "-").text)["image"]["patched"] is None


def test_a_diff_groups_what_was_appended_and_what_was_refused(native: Path, patched: Path) -> None:
    lines = inside("diff", native, patched).text.splitlines()
    document = json.loads(inside("diff", native, patched, "--json", "-").text)
    check("diff", document)
    assert sum(line.startswith("appended") and "padding inside" in line for line in lines) == 1
    thunks = [item for item in document["additions"] if item["name"].startswith("thunk of ")]
    size = sum(item["size"] for item in thunks)
    assert any(
        line.startswith(f"appended {size:,} bytes") and line.endswith(f": thunk, {len(thunks):,} of them")
        for line in lines
    )
    total, refused = sum(document["tactics"].values()), document["refused"]
    assert any(line.startswith(f"{total - len(refused):,} of {total:,} sites are calls") for line in lines)
    for reason, count in Counter(site["reason"] for site in refused).items():
        assert any(line.startswith(f"  {count:,}  {reason}: ") for line in lines)


def test_a_heading_names_each_tactic_once(native: Path, patched: Path) -> None:
    document = json.loads(inside("diff", native, patched, "--json", "-").text)
    for line in inside("diff", native, patched).text.splitlines():
        if line.startswith("0x"):
            assert not any(
                line.count(f"{tactic}:") + line.count(f"({tactic})") > 1 for tactic in document["tactics"]
            )


def test_the_closing_block_of_a_patch_counts_refused_sites_by_reason(native: Path, tmp_path: Path) -> None:
    ended = inside("patch", native, "-o", tmp_path / "patched", "--json", tmp_path / "json")
    document = json.loads((tmp_path / "json").read_text())
    reasons = Counter(site["reason"] for site in document["sites"] if site["tactic"] in ("trap", "kept"))
    for reason, count in reasons.items():
        assert f"    {reason}: {count}" in ended.text.splitlines()
