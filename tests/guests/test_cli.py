"""`pvpatch guests` as a person calls it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from pvpatch.abi.errors import ImageError, UsageError
from pvpatch.cli.guests import guests_app
from pvpatch.guests import build_initramfs, guests


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _pretend_cached(tmp_path: Path) -> Path:
    folder = tmp_path / "cache/pvpatch/guests/packages/busybox-static_1_amd64"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/busybox").write_bytes(b"busybox!")
    (folder / "record.json").write_text(
        '{"package": "busybox-static", "version": "1", "architecture": "amd64",'
        ' "files": {"bin/busybox": "00"}}'
    )
    return folder / "bin/busybox"


def test_list_is_plain_text_in_a_pipe() -> None:
    result = CliRunner().invoke(guests_app, ["list"])
    assert result.exit_code == 0
    assert [line.split("\t")[0] for line in result.stdout.splitlines()] == [entry.name for entry in guests()]


def test_path_of_a_cached_guest(tmp_path: Path) -> None:
    busybox = _pretend_cached(tmp_path)
    result = CliRunner().invoke(guests_app, ["path", "busybox-amd64"])
    assert result.exit_code == 0 and result.stdout == f"{busybox}\n"


def test_path_of_a_missing_or_unknown_guest() -> None:
    result = CliRunner().invoke(guests_app, ["path", "busybox-amd64"])
    assert isinstance(result.exception, ImageError) and "guests fetch busybox-amd64" in str(result.exception)
    result = CliRunner().invoke(guests_app, ["path", "nothing"])
    assert isinstance(result.exception, UsageError)


def test_initramfs_file(tmp_path: Path) -> None:
    busybox = _pretend_cached(tmp_path)
    (tmp_path / "script").write_text("echo hi\n")
    out = tmp_path / "out.cpio"
    result = CliRunner().invoke(
        guests_app, ["initramfs", "-o", str(out), "--script", str(tmp_path / "script")]
    )
    assert result.exit_code == 0
    assert out.read_bytes() == build_initramfs(busybox, "echo hi\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "out.cpio", "script"]


def test_initramfs_to_an_unwritable_place(tmp_path: Path) -> None:
    _pretend_cached(tmp_path)
    result = CliRunner().invoke(guests_app, ["initramfs", "-o", str(tmp_path / "no/such/out")])
    assert isinstance(result.exception, UsageError) and "cannot write" in str(result.exception)
