"""Undo a patch: the original file, bit for bit, proved by its SHA-256."""

from __future__ import annotations

import hashlib

from pvpatch.abi.errors import ImageError
from rewriter.image import Image, gzip_layer
from rewriter.manifest.document import Manifest
from rewriter.manifest.store import read_manifest

__all__ = ["original_payload", "restore"]

_CHANGED = "the patched image was changed after it was patched"


def original_payload(payload: bytes, manifest: Manifest) -> bytes:
    """The payload before patching; ImageError when the record and the bytes contradict each other."""
    data = bytearray(payload[: manifest.payload_size])
    for change in manifest.changes:
        old, new = bytes.fromhex(change.old), bytes.fromhex(change.new)
        if bytes(data[change.offset : change.offset + len(new)]) != new:
            raise ImageError(
                f"{_CHANGED}: at payload offset {change.offset:#x}",
                hint="`pvpatch diff` names every such byte",
            )
        data[change.offset : change.offset + len(old)] = old
    if hashlib.sha256(data).hexdigest() != manifest.payload_sha256:
        raise ImageError(_CHANGED, hint="what would be restored is not the original")
    return bytes(data)


def restore(image: Image) -> bytes:
    """The original file of a patched image."""
    manifest = read_manifest(image.payload)
    payload = original_payload(image.payload, manifest)
    file = _rewrap(payload, manifest)
    if hashlib.sha256(file).hexdigest() != manifest.original_sha256:
        raise ImageError("what was restored is not the original file", hint="its SHA-256 differs")
    return file


def _rewrap(payload: bytes, manifest: Manifest) -> bytes:
    if not manifest.containers:
        return payload
    if manifest.kept_original:
        return manifest.kept_original
    recipe = manifest.containers[0].recipe
    if recipe is None:
        raise ImageError("the manifest does not say how to restore the container")
    try:
        found = gzip_layer.GzipRecipe(
            bytes.fromhex(recipe["header"]), recipe["level"], recipe["memory_level"]
        )
        return gzip_layer.reproduce(found, payload)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ImageError("the manifest's recipe for the container is none") from error
