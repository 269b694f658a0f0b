"""Native guests on Xen: a translated domain, and the ABI's guest-side code for it."""
