"""The initramfs: read back by a newc reader written from the format's description."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pvpatch.abi.errors import UsageError
from pvpatch.guests import build_initramfs


@dataclass(frozen=True)
class Member:
    mode: int
    content: bytes
    device: tuple[int, int]
    inode: int
    time: int


def read_newc(data: bytes) -> dict[str, Member]:
    """Every member by name; asserts on the format's rules."""
    members: dict[str, Member] = {}
    at = 0
    while True:
        assert data[at : at + 6] == b"070701" and at % 4 == 0
        fields = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        name_end = at + 110 + fields[11]
        name = data[at + 110 : name_end - 1].decode()
        assert data[name_end - 1] == 0
        start = (name_end + 3) & ~3
        if name == "TRAILER!!!":
            assert not data[start:].strip(b"\0") and len(data) % 512 == 0
            return members
        assert name not in members
        members[name] = Member(
            fields[1], data[start : start + fields[6]], (fields[9], fields[10]), fields[0], fields[5]
        )
        at = (start + fields[6] + 3) & ~3


def test_members(tmp_path: Path) -> None:
    busybox = tmp_path / "busybox"
    busybox.write_bytes(b"\x7fELF program!!")
    members = read_newc(build_initramfs(busybox, "echo hello\npoweroff -f"))
    assert members["dev/console"].device == (5, 1) and stat.S_ISCHR(members["dev/console"].mode)
    assert members["bin/busybox"].content == b"\x7fELF program!!"
    assert members["init"].mode == stat.S_IFREG | 0o755
    init = members["init"].content.decode()
    assert init.startswith("#!/bin/busybox sh\n") and init.endswith("\necho hello\npoweroff -f\n")
    names = list(members)
    for name in names:  # a folder comes before what it holds
        parent = name.rpartition("/")[0]
        assert not parent or names.index(parent) < names.index(name)
    assert len({member.inode for member in members.values()}) == len(members)
    assert {member.time for member in members.values()} == {0}


@given(
    program=st.binary(max_size=100),
    script=st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=50),
)
@settings(max_examples=50, deadline=None)
def test_same_input_same_bytes(program: bytes, script: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    busybox = tmp_path_factory.mktemp("b") / "busybox"
    busybox.write_bytes(program)
    data = build_initramfs(busybox, script)
    assert data == build_initramfs(busybox, script)
    assert read_newc(data)["bin/busybox"].content == program


def test_missing_busybox_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read busybox"):
        build_initramfs(tmp_path / "absent")
