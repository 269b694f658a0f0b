"""Debian packages for the oracle, fetched and unpacked below the cache; nothing is installed."""

from __future__ import annotations

import gzip
import subprocess
from collections.abc import Iterable
from pathlib import Path

import lief

from pvpatch.guests import cache_folder, fetch
from pvpatch.guests.apt import Apt, FetchError

__all__ = ["libraries_of", "tree", "xen_image"]

TOOLS = (
    "xen-utils-4.17",
    "libxenmisc4.17",
    "libxencall1",
    "libxendevicemodel1",
    "libxenevtchn1",
    "libxenforeignmemory1",
    "libxengnttab1",
    "libxenhypfs1",
    "libxenstore4",
    "libxentoolcore1",
    "libxentoollog1",
    "libyajl2",
)
LIBRARY_PACKAGES = (
    "libc6", "libuuid1", "zlib1g", "liblzma5", "libbz2-1.0", "libzstd1", "liblzo2-2", "libnl-3-200",
    "libnl-route-3-200", "libncurses6", "libtinfo6", "libpixman-1-0", "libfdt1", "libsystemd0",
    "libcap2", "libgcrypt20", "liblz4-1", "libgpg-error0", "libgcc-s1",
)  # fmt: skip
LOADED_LATER = ("libgcc_s.so.1",)
"""Libraries that the C library loads by itself when a thread is cancelled."""
KERNEL_OF = "linux-image-amd64"


def tree() -> Path:
    """A folder with the unpacked tools, their libraries and a kernel that can be the first domain."""
    root = cache_folder() / "oracle"
    done = root / ".complete"
    wanted = " ".join((*TOOLS, *LIBRARY_PACKAGES))
    if done.exists() and done.read_text() == wanted:
        return root
    apt = Apt(cache_folder() / "apt-amd64", "amd64")
    (cache_folder() / "apt-amd64").mkdir(parents=True, exist_ok=True)
    apt.prepare()
    kernel = next(name for name in apt.show(KERNEL_OF).depends if name.startswith("linux-image-"))
    for name in (*TOOLS, *LIBRARY_PACKAGES, kernel):
        work = root / "packages" / name
        work.mkdir(parents=True, exist_ok=True)
        archive = apt.download(apt.show(name), work)
        subprocess.run(["dpkg-deb", "-x", str(archive), str(root)], check=True)
        archive.unlink()
    done.write_text(wanted)
    return root


def xen_image(target: Path) -> Path:
    """The hypervisor itself, unpacked."""
    target.write_bytes(gzip.decompress(fetch("xen-amd64").path.read_bytes()))
    return target


def libraries_of(root: Path, programs: Iterable[Path]) -> dict[str, Path]:
    """Soname -> file for all that the programs need, directly or not. Raises FetchError if one is absent."""
    wanted = list(programs)
    found: dict[str, Path] = {soname: next(root.rglob(soname)) for soname in LOADED_LATER}
    while wanted:
        binary = lief.ELF.parse(str(wanted.pop()))
        for soname in binary.libraries if binary is not None else ():
            if soname in found:
                continue
            places = [path for path in root.rglob(soname) if path.exists()]
            if not places:
                raise FetchError(f"no package of the oracle holds {soname}")
            found[soname] = places[0]
            wanted.append(places[0])
    return found
