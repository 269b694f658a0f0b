"""The record, inside a patched image, of every change."""

from rewriter.manifest.document import SCHEMA, Addition, Change, Container, Manifest, Site
from rewriter.manifest.store import find_record, pack, read_manifest

__all__ = ["SCHEMA", "Addition", "Change", "Container", "Manifest", "Site", "find_record", "pack", "read_manifest"]
