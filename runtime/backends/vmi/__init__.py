"""VMware's VMI, API 3.0: an option ROM whose calls run an i386 kernel at privilege 1."""
