"""The ABI's guest-side code for kernels at privilege 1: what is the same on every such hypervisor.

The assembly files here ask their backend for a few words (its words32.s says which) and routines (its
host32.s); `guestside` lays it all out, `contents` fills the pages.
"""
