# Slots that stay in the image: what a kernel at privilege 1 may do itself, or what no such kernel has.

.slot tsc_read
  rdtsc
  ret
.slot tscp_read
  rdtscp
  ret
.slot pmc_read
  rdpmc
  ret
.slot arpl
  arpl ax, dx
  ret
.slot cache_writeback
  ret
.slot cache_invalidate
  ret
.slot kernel_stack_set
  ret
.slot yield
  pause
  ret
.slot console_read
  mov eax, 0
  ret
.slot xcr_read
  ud2
.slot xcr_write
  ud2
.slot monitor
  ud2
.slot mwait
  ud2
.slot safe_mwait
  ud2
.slot sysexit
  ud2
.slot sysret_compat
  ud2
.slot pcid_invalidate
  ud2
.slot user_access_allow
  ud2
.slot user_access_forbid
  ud2
.slot xsaves
  ud2
.slot xrstors
  ud2
