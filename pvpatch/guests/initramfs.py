"""A deterministic initramfs with busybox: an archive in the kernel's "newc" cpio format.

Source: Documentation/driver-api/early-userspace/buffer-format.rst of the Linux kernel.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from pvpatch.abi.errors import UsageError

__all__ = ["DEFAULT_SCRIPT", "build_initramfs"]

NEWC_MAGIC = b"070701"
BLOCK = 512
DEFAULT_SCRIPT = "uname -a\npoweroff -f\n"
PROLOGUE = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
"""
FOLDERS = ("bin", "dev", "proc", "sys", "tmp")
CONSOLE = (5, 1)  # device numbers, Documentation/admin-guide/devices.txt
NULL = (1, 3)


@dataclass(frozen=True)
class _Entry:
    name: str
    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)


def build_initramfs(
    busybox: Path, script: str = DEFAULT_SCRIPT, files: Mapping[str, bytes] = MappingProxyType({})
) -> bytes:
    """An uncompressed initramfs whose /init mounts /proc and /sys and then runs the shell commands given.

    `files` are added by their path without a leading slash, executable, with their folders. The same
    input gives the same bytes: no times, no owners but root.
    """
    try:
        program = busybox.read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot read busybox: {error}", hint="pvpatch guests fetch busybox-amd64"
        ) from error
    parents = {str(parent) for name in files for parent in PurePosixPath(name).parents} - {"."}
    folders = [*FOLDERS, *sorted(parents - set(FOLDERS))]
    entries = [_Entry(name, stat.S_IFDIR | 0o755) for name in folders]
    entries += [
        _Entry("dev/console", stat.S_IFCHR | 0o600, device=CONSOLE),
        _Entry("dev/null", stat.S_IFCHR | 0o666, device=NULL),
        _Entry("bin/busybox", stat.S_IFREG | 0o755, program),
        _Entry("init", stat.S_IFREG | 0o755, (PROLOGUE + script.rstrip("\n") + "\n").encode()),
    ]
    entries += [_Entry(name, stat.S_IFREG | 0o755, content) for name, content in sorted(files.items())]
    out = bytearray()
    for number, entry in enumerate(entries, start=1):
        out += _record(number, entry)
    out += _record(0, _Entry("TRAILER!!!", 0))
    return bytes(out + bytes(-len(out) % BLOCK))


def _record(number: int, entry: _Entry) -> bytes:
    """One archive member: 13 fields of 8 hex digits, name and content each padded to 4 bytes."""
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (
        number,
        entry.mode,
        0,  # owner
        0,  # group
        links,
        0,  # time
        len(entry.content),
        0,  # device of the archive
        0,
        *entry.device,
        len(name),
        0,  # checksum, unused in this format
    )
    head = NEWC_MAGIC + b"".join(b"%08X" % field for field in fields) + name
    return head + bytes(-len(head) % 4) + entry.content + bytes(-len(entry.content) % 4)
