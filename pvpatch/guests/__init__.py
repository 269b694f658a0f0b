"""Guest kernels: fetched with the machine's own apt, cached by package version, never stored here."""

from pvpatch.guests.apt import FetchError
from pvpatch.guests.catalogue import Guest, guest, guests
from pvpatch.guests.fetch import Fetched, cache_folder, cached, fetch
from pvpatch.guests.initramfs import build_initramfs

__all__ = [
    "FetchError",
    "Fetched",
    "Guest",
    "build_initramfs",
    "cache_folder",
    "cached",
    "fetch",
    "guest",
    "guests",
]
