"""Guest kernels: fetched with the machine's own apt, cached by package version, never stored here."""

from pvpatch.guests.apt import FetchError
from pvpatch.guests.catalogue import Guest, guest, guests
from pvpatch.guests.fetch import Fetched, cache_folder, cached, fetch

__all__ = ["FetchError", "Fetched", "Guest", "cache_folder", "cached", "fetch", "guest", "guests"]
