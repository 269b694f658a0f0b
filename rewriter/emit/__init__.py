"""Everything that is written into a patched image: thunks, the resident block, the entry stub, containers."""
