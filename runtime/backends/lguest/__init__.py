"""lguest's guest interface: i386 kernels at privilege 1, shadow paging, INT 0x1F."""
