"""The differential fuzzer: random kernels, unpatched and patched, on every machine: docs/fuzzing.md."""
