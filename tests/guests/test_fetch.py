"""Fetching, against a pretended apt: real .deb files, scripts in front of the machine's apt tools."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pvpatch.abi.errors import UsageError
from pvpatch.guests import FetchError, cache_folder, cached, fetch, guest, guests

pytestmark = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="this machine has no dpkg-deb")

APT_GET = """#!/bin/sh
echo "$@" >> "$FAKE_APT/log"
for word in "$@"; do
  case "$word" in
    Dir::State::Lists=*) lists="${word#*=}" ;;
    update) touch "$lists/x_Packages" ;;
    download) cp "$FAKE_APT"/*.deb . || exit 100 ;;
  esac
done
"""
APT_CACHE = """#!/bin/sh
for word in "$@"; do last="$word"; done
cat "$FAKE_APT/$last.show" 2>/dev/null || { echo "E: No packages found" >&2; exit 100; }
"""


class FakeApt:
    """A folder that the pretended apt serves from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def serve(self, name: str, version: str, files: dict[str, bytes], *, digest: str = "") -> None:
        """Offer one package, the only one that a download gives."""
        tree = self.folder / "tree"
        shutil.rmtree(tree, ignore_errors=True)
        for path, content in files.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_bytes(content)
        (tree / "DEBIAN").mkdir(parents=True)
        control = (
            f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: t <t@e>\nDescription: t\n"
        )
        (tree / "DEBIAN/control").write_text(control)
        deb = self.folder / f"{name}.deb"
        subprocess.run(["dpkg-deb", "-b", "--root-owner-group", tree, deb], check=True, capture_output=True)
        digest = digest or hashlib.sha256(deb.read_bytes()).hexdigest()
        (self.folder / f"{name}.show").write_text(f"{control}SHA256: {digest}\n\n")

    def depend(self, name: str, on: str) -> None:
        """Offer a package that depends on another."""
        (self.folder / f"{name}.show").write_text(f"Package: {name}\nVersion: 1\nDepends: {on}\n\n")

    def downloads(self) -> int:
        return sum("download" in line for line in (self.folder / "log").read_text().splitlines())


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeApt:
    folder = tmp_path / "apt"
    folder.mkdir()
    for name, text in (("apt-get", APT_GET), ("apt-cache", APT_CACHE)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("FAKE_APT", str(folder))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return FakeApt(folder)


FILES = {"boot/memtest86+ia32.bin": b"32", "boot/memtest86+x64.bin": b"64", "usr/share/doc/big": bytes(5000)}


def test_fetch_then_cached(apt: FakeApt) -> None:
    apt.serve("memtest86+", "1:6.10-4", FILES)
    assert cached("memtest-x64") is None
    found = fetch("memtest-x64")
    assert found.path.read_bytes() == b"64" and found.version == "1:6.10-4"
    assert found.sha256 == hashlib.sha256(b"64").hexdigest()
    assert cached("memtest-x64") == found == fetch("memtest-x64")
    assert fetch("memtest-ia32").path.read_bytes() == b"32"  # out of the same package
    assert apt.downloads() == 1
    assert cache_folder() in found.path.parents
    assert not list(cache_folder().rglob("big"))  # only the catalogue's files are kept
    record = json.loads((found.path.parents[1] / "record.json").read_text())
    assert (
        record["package_sha256"] == hashlib.sha256((apt.folder / "memtest86+.deb").read_bytes()).hexdigest()
    )


def test_a_new_version_is_fetched_and_the_newest_is_cached(apt: FakeApt) -> None:
    apt.serve("memtest86+", "1", FILES)
    old = fetch("memtest-x64")
    apt.serve("memtest86+", "2", {**FILES, "boot/memtest86+x64.bin": b"new"})
    new = fetch("memtest-x64")
    assert new.path.read_bytes() == b"new" and old.path.read_bytes() == b"64"
    os.utime(old.path.parents[1] / "record.json", (1, 1))
    assert cached("memtest-x64") == new


def test_package_by_dependency(apt: FakeApt) -> None:
    apt.depend("linux-image-cloud-amd64", "base, linux-image-9.9-cloud-amd64 (= 9.9-1), other | more")
    apt.serve("linux-image-9.9-cloud-amd64", "9.9-1", {"boot/vmlinuz-9.9-cloud-amd64": b"kernel"})
    found = fetch("linux-amd64")
    assert (found.package, found.path.name) == ("linux-image-9.9-cloud-amd64", "vmlinuz-9.9-cloud-amd64")


def test_kernels_of_one_version_are_told_apart(apt: FakeApt) -> None:
    apt.depend("linux-image-cloud-amd64", "linux-image-9-cloud-amd64")
    apt.depend("linux-image-rt-amd64", "linux-image-9-rt-amd64")
    apt.serve("linux-image-9-cloud-amd64", "9", {"boot/vmlinuz-9-cloud-amd64": b"cloud"})
    fetch("linux-amd64")
    (apt.folder / "linux-image-9-cloud-amd64.deb").unlink()
    apt.serve("linux-image-9-rt-amd64", "9", {"boot/vmlinuz-9-rt-amd64": b"real time"})
    assert cached("linux-rt-amd64") is None
    assert fetch("linux-rt-amd64").path.read_bytes() == b"real time"
    found = cached("linux-amd64")
    assert found is not None and found.path.read_bytes() == b"cloud"


def test_another_suite_has_sources_and_a_state_of_its_own(apt: FakeApt) -> None:
    apt.serve("gnumach-image-1.8-486-smp", "2", {"boot/gnumach-1.8-486-smp.gz": b"mach"})
    fetch("gnumach-smp-i386")
    sources = cache_folder() / "apt" / "i386-sid" / "sources.list"
    assert sources.read_text().endswith(" sid main\n")
    assert f"Dir::Etc::SourceList={sources}" in (apt.folder / "log").read_text()


def test_private_state_and_architecture(apt: FakeApt) -> None:
    apt.serve("busybox-static", "1", {"bin/busybox": b"b"})
    fetch("busybox-i386")
    log = (apt.folder / "log").read_text()
    state = cache_folder() / "apt" / "i386"
    assert "APT::Architectures=i386" in log and f"Dir::State::Lists={state}/lists" in log


def test_failures_are_clear(apt: FakeApt) -> None:
    with pytest.raises(FetchError, match="no package memtest86"):
        fetch("memtest-x64")
    apt.serve("memtest86+", "1", FILES, digest="0" * 64)
    with pytest.raises(FetchError, match="SHA-256 is"):
        fetch("memtest-x64")
    assert cached("memtest-x64") is None
    apt.serve("memtest86+", "2", {"boot/else": b""})
    with pytest.raises(FetchError, match="holds no file"):
        fetch("memtest-x64")
    with pytest.raises(UsageError, match="no guest is called"):
        fetch("windows")


def test_damaged_package_leaves_nothing(apt: FakeApt) -> None:
    apt.serve("memtest86+", "1", FILES)
    (apt.folder / "memtest86+.deb").write_bytes(b"!<arch>\nnonsense")
    digest = hashlib.sha256(b"!<arch>\nnonsense").hexdigest()
    show = apt.folder / "memtest86+.show"
    show.write_text(
        "\n".join(f"SHA256: {digest}" if x.startswith("SHA") else x for x in show.read_text().split("\n"))
    )
    with pytest.raises(FetchError):
        fetch("memtest-x64")
    assert cached("memtest-x64") is None


def test_machine_without_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(FetchError, match="this machine has no apt-get"):
        fetch("memtest-x64")


def test_unusable_cache_folder(apt: FakeApt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(FetchError, match="cache cannot be used"):
        fetch("memtest-x64")


def _fetch_one(name: str) -> bytes:
    return fetch(name).path.read_bytes()


def test_processes_at_once_download_once(apt: FakeApt) -> None:
    apt.serve("memtest86+", "1", FILES)
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        results = pool.map(_fetch_one, ["memtest-x64", "memtest-ia32"] * 3)
    assert results == [b"64", b"32"] * 3
    assert apt.downloads() == 1


def test_catalogue_is_consistent() -> None:
    names = [entry.name for entry in guests()]
    assert len(set(names)) == len(names)
    for entry in guests():
        assert bool(entry.package) != bool(entry.depends_of)
        assert not entry.file.startswith("/") and entry.architecture in ("amd64", "i386")
        assert guest(entry.name) is entry
