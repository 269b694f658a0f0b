"""Interrupt shadows: from kernels with an interrupt waiting to their runs on every backend."""
