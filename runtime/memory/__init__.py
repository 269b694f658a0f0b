"""Guest-physical memory and the page tables over it."""

from runtime.memory.paging import PageFault, PagingMode, Translation, paging_mode, translate
from runtime.memory.ram import GuestMemory, MemoryRange

__all__ = ["GuestMemory", "MemoryRange", "PageFault", "PagingMode", "Translation", "paging_mode", "translate"]
