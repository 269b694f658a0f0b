"""Put a changed payload back into its containers, and tell whether the original file can be made again."""

from __future__ import annotations

from pvpatch.abi.errors import ImageError
from rewriter.image import bzimage_repack, gzip_layer
from rewriter.image.gzip_layer import GzipRecipe
from rewriter.image.model import Image

__all__ = ["original_recipe", "rewrap"]


def rewrap(image: Image, payload: bytes) -> bytes:
    """The outer file with a new payload in the same containers; the same bytes for the same input.

    Raises ImageError when the new payload does not fit into a bzImage, or the container is only read.
    """
    content = payload
    for layer in reversed(image.container):
        wrap = _WRAP.get(layer.kind)
        if wrap is None:
            raise ImageError(f"{image.path}: nothing can be put back into a container of kind {layer.kind}")
        content = wrap(layer, content)
    return content


_WRAP = {"gzip": gzip_layer.wrap, "bzimage": bzimage_repack.wrap}


def original_recipe(image: Image) -> GzipRecipe | None:
    """How to make the original gzip file from the original payload, byte for byte.

    None: there is no recipe, and whoever must restore the file keeps its original bytes. (An image without
    containers needs no recipe: its payload is the file. A bzImage never has one.)
    """
    if len(image.container) != 1 or image.container[0].kind != "gzip":
        return None
    try:
        return gzip_layer.recipe(image.container[0], image.payload)
    except (IndexError, ValueError) as error:
        raise ImageError(f"{image.path}: the gzip header is damaged: {error}") from error
