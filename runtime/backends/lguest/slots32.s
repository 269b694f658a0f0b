# The ABI on lguest: code of the guest's side, at the top of the linear address space.
#
# An lguest guest runs at privilege 1 and sees the host's segments, flags and tables. This code stands
# between a native guest and that: ABI calls arrive by a far call into a flat segment of ours, traps
# arrive through gates of ours, and what the guest believes (its IF and IOPL, CR0, CR3, its tables and
# selectors) is kept in the vCPU page. It speaks to the host only through lguest's own interface:
# INT 0x1F, struct lguest_data, and port instructions that fault.
#
# The host delivers no interrupt while EIP is in [HOLE, quiet_end). S_* is the state of the trap
# that is being delivered; nothing that runs then can trap visibly.
# V_* are fields of the vCPU page, LD_* of lguest_data, P_* of our private page.
#
# This file: the words all files use, and the slots that stay in the image. The rest is in flags32.s,
# registers32.s, tables32.s, segments32.s, transfers32.s, io32.s, time32.s, traps32.s and boot32.s.

.define FLAT_IN push ds; push FLAT_DS; pop ds
.define FLAT_OUT pop ds
.define HYPERCALL int 0x1f

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
