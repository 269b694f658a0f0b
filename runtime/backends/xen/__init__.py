"""Xen: paravirtual domains at both widths, as Xen 4.17 shows itself to an unprivileged one."""
