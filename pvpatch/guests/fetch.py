"""Fetch guests with apt into a cache by package version, and find what is already there.

Layout below the cache folder ($XDG_CACHE_HOME/pvpatch/guests):
  apt/<architecture>/                     private apt state
  packages/<package>_<version>_<arch>/    the files of the catalogue out of that package, and record.json
Several processes may fetch at once: a lock file per architecture and per package serialises them.
"""

from __future__ import annotations

import fcntl
import fnmatch
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pvpatch.guests.apt import Apt, FetchError, Package
from pvpatch.guests.catalogue import Guest, guest, guests

__all__ = ["Fetched", "cache_folder", "cached", "fetch"]

RECORD = "record.json"


@dataclass(frozen=True)
class Fetched:
    """A guest file in the cache."""

    guest: Guest
    path: Path
    package: str
    version: str
    sha256: str  # of the guest file itself


def cache_folder() -> Path:
    """Where guests are kept: $XDG_CACHE_HOME/pvpatch/guests, else ~/.cache/pvpatch/guests."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if base.startswith("/") else Path.home() / ".cache"
    return root / "pvpatch" / "guests"


def cached(name: str) -> Fetched | None:
    """The copy fetched last, without asking apt; None when there is none."""
    wanted = guest(name)
    found: list[tuple[float, Fetched]] = []
    for record in (cache_folder() / "packages").glob(f"*/{RECORD}"):
        entry = _from_record(wanted, record.parent)
        if entry is not None:
            found.append((record.stat().st_mtime, entry))
    return max(found, key=lambda item: (item[0], str(item[1].path)))[1] if found else None


def fetch(name: str, *, refresh: bool = False) -> Fetched:
    """The guest in the version that apt serves now; downloads it when it is not in the cache.

    `refresh` gets new package lists first. Raises UsageError for an unknown name and FetchError when apt
    cannot serve it, after a second try with new lists: old lists name versions that are gone.
    """
    wanted = guest(name)
    try:
        try:
            return _fetch(wanted, refresh=refresh)
        except FetchError:
            if refresh or shutil.which("apt-get") is None:
                raise
            return _fetch(wanted, refresh=True)
    except OSError as error:
        place = cache_folder()
        raise FetchError(f"the guest cache cannot be used: {error}", hint=f"cache folder: {place}") from error


def _fetch(wanted: Guest, *, refresh: bool) -> Fetched:
    root = cache_folder()
    state = root / "apt" / "-".join(filter(None, (wanted.architecture, wanted.suite)))
    state.mkdir(parents=True, exist_ok=True)
    apt = Apt(state, wanted.architecture, wanted.suite)
    with _lock(state / "lock"):
        apt.prepare(force=refresh)
        package = _resolve(apt, wanted)
    label = f"{package.name}_{package.version}_{package.architecture}".replace(":", "%3a")
    folder = root / "packages" / label
    folder.parent.mkdir(exist_ok=True)
    with _lock(folder.with_name(label + ".lock")):
        entry = _from_record(wanted, folder)
        if entry is None:
            _download(apt, package, folder)
            entry = _from_record(wanted, folder)
        else:
            (folder / RECORD).touch()  # `cached` gives the copy fetched last
    if entry is None:
        raise FetchError(f"package {package.name} {package.version} holds no file {wanted.file}")
    return entry


def _resolve(apt: Apt, wanted: Guest) -> Package:
    name = wanted.package
    if not name:
        meta = apt.show(wanted.depends_of)
        matching = [item for item in meta.depends if _is_wanted(wanted, item)]
        if not matching:
            pattern = f"{wanted.depends_prefix}*{wanted.depends_suffix}"
            raise FetchError(f"{wanted.depends_of} depends on no {pattern} package")
        name = matching[0]
    return apt.show(name + wanted.suffix)


def _download(apt: Apt, package: Package, folder: Path) -> None:
    """Download, check against apt's SHA-256, unpack the catalogue's files; the folder appears complete."""
    patterns = {entry.file for entry in guests() if entry.architecture == package.architecture}
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as work_name:
        work = Path(work_name)
        archive = apt.download(package, work)
        with archive.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if package.sha256 and digest != package.sha256:
            raise FetchError(f"{package.name}: SHA-256 is {digest}, apt says {package.sha256}")
        tree = work / "tree"
        tree.mkdir()
        files = _unpack(archive, tree, patterns)
        record = {
            "schema": "pvpatch/guest/1",
            "package": package.name,
            "version": package.version,
            "architecture": package.architecture,
            "package_sha256": digest,
            "files": files,
        }
        (tree / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        tree.rename(folder)


def _unpack(archive: Path, target: Path, patterns: set[str]) -> dict[str, str]:
    """Write the files of a .deb that match a pattern below target; returns {path: SHA-256}."""
    files: dict[str, str] = {}
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
                for member in tar:
                    name = member.name.removeprefix("./")
                    if not member.isfile() or ".." in name.split("/"):
                        continue
                    if not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
                        continue
                    source = tar.extractfile(member)
                    assert source is not None
                    path = target / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with path.open("wb") as out:
                        shutil.copyfileobj(source, out, 1 << 20)
                    with path.open("rb") as stream:
                        files[name] = hashlib.file_digest(stream, "sha256").hexdigest()
            process.stdout.read()
        except tarfile.TarError as error:
            raise FetchError(f"{archive.name} is not a package that dpkg-deb can unpack: {error}") from error
    return files


def _from_record(wanted: Guest, folder: Path) -> Fetched | None:
    """The guest's file in a package folder, if its record says that it is complete."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        package, version = str(record["package"]), str(record["version"])
        architecture, files = str(record["architecture"]), dict(record["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if architecture != wanted.architecture or not _same_package(wanted, package):
        return None
    for name in sorted(files):
        path = folder / name
        if fnmatch.fnmatchcase(name, wanted.file) and path.is_file():
            return Fetched(wanted, path, package, version, str(files[name]))
    return None


def _same_package(wanted: Guest, package: str) -> bool:
    if wanted.package:
        return package == wanted.package + wanted.suffix
    return package.endswith(wanted.suffix) and _is_wanted(wanted, package.removesuffix(wanted.suffix))


def _is_wanted(wanted: Guest, dependency: str) -> bool:
    return dependency.startswith(wanted.depends_prefix) and dependency.endswith(wanted.depends_suffix)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; it is left behind, so that no two processes lock different files."""
    with path.open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(stream, fcntl.LOCK_UN)
