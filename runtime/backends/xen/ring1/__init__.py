"""Native i386 guests on Xen: a translated domain, and the ABI's guest-side code at privilege 1."""
