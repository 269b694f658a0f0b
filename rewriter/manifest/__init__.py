"""The record, inside a patched image, of every change."""

from rewriter.manifest.document import SCHEMA, UNPATCHED, Addition, Change, Container, Manifest, Site
from rewriter.manifest.explain import Explanation, Unexplained, differences, explain
from rewriter.manifest.store import find_record, pack, read_manifest

__all__ = [
    "SCHEMA",
    "UNPATCHED",
    "Addition",
    "Change",
    "Container",
    "Explanation",
    "Manifest",
    "Site",
    "Unexplained",
    "differences",
    "explain",
    "find_record",
    "pack",
    "read_manifest",
]
