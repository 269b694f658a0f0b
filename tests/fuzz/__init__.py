"""The differential fuzzer: random small kernels, unpatched and patched, on every machine. See docs/fuzzing.md."""
