# What the shared files leave to the backend: Xen's tables, events, time and services.

.routine switch_tables
  test dword ptr [V_cr0], 0x80000000
  je tables_off
  mov eax, [V_cr4]
  mov cr4, eax
  mov ebx, [V_cr3]
  mov cr3, ebx
  ret
tables_off:
  mov eax, [V_cr4]
  and eax, 0xffffffdf
  mov cr4, eax
  mov ebx, [P_identity]
  mov cr3, ebx
  ret

# EAX a linear address; EAX, EBX, ECX, EDX, ESI change.
.routine invalidate
  mov [P_mmuext+4], eax
  mov dword ptr [P_mmuext], MMUEXT_invlpg_local
mmuext:
  mov ebx, P_mmuext
  mov ecx, 1
  mov edx, 0
  mov esi, DOMID_SELF
  mov eax, HC_mmuext_op
  HYPERCALL
  ret

.routine flush
  push eax
  push ebx
  push ecx
  push edx
  push esi
  mov dword ptr [P_mmuext], MMUEXT_tlb_flush_local
  call mmuext
  pop esi
  pop edx
  pop ecx
  pop ebx
  pop eax
  ret

# EBX index, ECX and EDX the descriptor's words, privilege 0 becoming 1 (Xen does it for present ones only).
# A descriptor that Xen refuses (a system one) becomes empty.
.routine load_descriptor
  test edx, 0x6000
  jne descriptor_level
  or edx, 0x2000
descriptor_level:
  mov esi, edx
  mov edx, ecx
  shl ebx, 3
  add ebx, [P_gdt_machine]
  mov [P_descriptor], ebx
  mov ecx, 0
  mov eax, HC_update_descriptor
  HYPERCALL
  cmp eax, 0
  je descriptor_loaded
  mov ebx, [P_descriptor]
  mov ecx, 0
  mov edx, 0
  mov esi, 0
  mov eax, HC_update_descriptor
  HYPERCALL
descriptor_loaded:
  ret

# EBX vector, ECX and EDX the words of an IDT gate: an entry of the trap table, events not masked.
.routine load_gate
  mov [P_gate], bl
  mov eax, edx
  shr eax, 13
  and eax, 3
  mov [P_gate+1], al
  mov eax, FLAT_CS
  mov [P_gate+2], ax
  and edx, 0xffff0000
  and ecx, 0xffff
  or edx, ecx
  mov [P_gate+4], edx
  mov ebx, P_gate
  mov eax, HC_set_trap_table
  HYPERCALL
  ret

# -- events ---------------------------------------------------------------------------------------

# The upcall: [eip][cs][flags] and, from user mode, [esp][ss]. Events are masked.
.routine upcall
  test byte ptr [esp+4], 2
  jne upcall_guest
  cmp word ptr [esp+4], FLAT_CS
  jne upcall_guest
  cmp dword ptr [esp], HOLE
  jae upcall_inside
upcall_guest:
  FLAT_IN
  push eax
  call collect
  pop eax
  cmp dword ptr [LD_irq_enabled], 0
  je upcall_later
  mov byte ptr [XV_upcall_mask], 0
  FLAT_OUT
  push 0
  push EVENT_KIND
  jmp common
upcall_later:
  mov dword ptr [LD_irq_pending], 0x200
  mov byte ptr [XV_upcall_mask], 0
  FLAT_OUT
  iretd
# Our own code was interrupted, perhaps behind its look at LD_irq_pending: ask again a moment later.
upcall_inside:
  FLAT_IN
  push eax
  push ebx
  push ecx
  push edx
  call collect
  mov dword ptr [LD_irq_pending], 0x200
  cmp dword ptr [esp+20], woken
  je upcall_inside_out
  call now
  add eax, RETRY_NS
  adc edx, 0
  mov ebx, eax
  mov ecx, edx
  mov eax, HC_set_timer_op
  HYPERCALL
upcall_inside_out:
  pop edx
  pop ecx
  pop ebx
  pop eax
  mov byte ptr [XV_upcall_mask], 0
  FLAT_OUT
  iretd

# Take the pending ports into P_sources. Uses EAX.
.routine collect
  mov byte ptr [XV_upcall_pending], 0
  mov eax, 0
  xchg eax, [XV_pending_sel]
  mov eax, 0
  xchg eax, [XS_evtchn_pending]
  and eax, [P_interest]
  or [P_sources], eax
  ret

# Reached by a far call from a slot: [eip][cs] becomes the frame of an interrupt at that place.
.routine deliver
  push eax
  push eax
  pushfd
  mov eax, [esp+12]
  mov [esp+8], eax
  mov eax, [esp+16]
  mov [esp+12], eax
  mov eax, [esp]
  mov [esp+16], eax
  lea esp, [esp+4]
  pop eax
  push 0
  push EVENT_KIND
  jmp common

# At the end of `iret`: what the interrupt interrupts is the frame that IRET was to load.
.routine safe_send
  push 0
  push EVENT_KIND
  jmp common
safe_point:
  nop

# Sleep until something can be delivered. LD_blocked_interrupts is -1 where IF was clear: for ever.
.routine sleep
  pushfd
  push eax
  push ebx
  push ecx
  FLAT_IN
  cmp dword ptr [LD_blocked_interrupts], -1
  jne sleep_more
  mov dword ptr [XS_evtchn_mask], -1
sleep_more:
  mov byte ptr [XV_upcall_mask], 1
  cmp dword ptr [P_sources], 0
  jne sleep_over
  mov ebx, SCHED_block
  mov ecx, 0
  mov eax, HC_sched_op
  HYPERCALL
woken:
  jmp sleep_more
sleep_over:
  mov byte ptr [XV_upcall_mask], 0
  mov dword ptr [LD_irq_enabled], 0x200
  FLAT_OUT
  pop ecx
  pop ebx
  pop eax
  popfd
  jmp deliver

# Which interrupt is it? The pair of 8259s say which line; their pin is a physical interrupt of the domain's.
.routine host_interrupt
  call collect
  mov dword ptr [LD_irq_pending], 0
  mov eax, [P_sources]
  test eax, [P_pic_bit]
  je host_no_chip
  mov eax, [P_pic_bit]
  xor [P_sources], eax
  mov al, 0x0c
  out 0x20, al
  in al, 0x20
  test al, 0x80
  je chip_silent
  and eax, 7
  mov esi, [P_pic_base]
  cmp eax, 2
  jne chip_line
  mov al, 0x0c
  out 0xa0, al
  in al, 0xa0
  test al, 0x80
  je chip_silent
  and eax, 7
  mov esi, [P_pic_base+4]
chip_line:
  add esi, eax
  call chip_seen
  cmp dword ptr [P_sources], 0
  je chip_alone
  mov dword ptr [LD_irq_pending], 0x200
chip_alone:
  mov ebx, esi
  jmp interrupt_known
chip_silent:
  call chip_seen
host_no_chip:
  mov eax, [P_sources]
  test eax, [P_alarm_bit]
  je resume
  mov eax, [P_alarm_bit]
  xor [P_sources], eax
  jmp alarm_interrupt

# The pin was looked at: Xen may raise its event again. Uses EAX, EBX, ECX.
.routine chip_seen
  mov dword ptr [P_argument], CONTROLLER_PIRQ
  mov ebx, PHYSDEV_eoi
  mov ecx, P_argument
  mov eax, HC_physdev_op
  HYPERCALL
  ret

.routine event_mask
  pushfd
  cmp eax, 0
  jne event_wrong
  push ecx
  FLAT_IN
  mov ecx, [P_alarm_bit]
  or [XS_evtchn_mask], ecx
  FLAT_OUT
  pop ecx
  popfd
  retf

.routine event_unmask
  pushfd
  cmp eax, 0
  jne event_wrong
  push ebx
  push ecx
  FLAT_IN
  mov eax, [P_alarm_port]
  mov [P_argument], eax
  mov ebx, EVENT_unmask
  mov ecx, P_argument
  mov eax, HC_event_channel_op
  HYPERCALL
  mov eax, 0
  FLAT_OUT
  pop ecx
  pop ebx
  popfd
  retf

# -- time -----------------------------------------------------------------------------------------

# -> EDX:EAX system time in ns: ((TSC - stamp) << shift) * mul >> 32. Uses ECX, EBX; DS flat.
.routine now
  push esi
  push edi
now_again:
  mov esi, [XT_version]
  rdtsc
  sub eax, [XT_tsc_timestamp]
  sbb edx, [XT_tsc_timestamp+4]
  mov cl, [XT_tsc_shift]
  test cl, cl
  js now_right
  shld edx, eax, cl
  shl eax, cl
  jmp now_scale
now_right:
  neg cl
  shrd eax, edx, cl
  shr edx, cl
now_scale:
  mov ebx, [XT_tsc_to_system_mul]
  mov edi, edx
  mul ebx
  mov ecx, edx
  mov eax, edi
  mul ebx
  add eax, ecx
  adc edx, 0
  add eax, [XT_system_time]
  adc edx, [XT_system_time+4]
  test esi, 1
  jne now_again
  cmp esi, [XT_version]
  jne now_again
  pop edi
  pop esi
  ret

.routine wallclock_ns
  pushfd
  push ebx
  push ecx
  FLAT_IN
  call now
  add eax, [P_wall]
  adc edx, [P_wall+4]
  FLAT_OUT
  pop ecx
  pop ebx
  popfd
  retf

# set_timer_op takes absolute system time; 0 would cancel. Uses EAX, EBX, ECX; DS flat.
.routine arm_clock
  mov ebx, [P_deadline]
  mov ecx, [P_deadline+4]
  mov eax, ebx
  or eax, ecx
  jne arm_now
  mov ebx, 1
arm_now:
  mov eax, HC_set_timer_op
  HYPERCALL
  ret

.routine alarm_cancel
  pushfd
  push ebx
  push ecx
  FLAT_IN
  mov ebx, 0
  mov ecx, 0
  mov eax, HC_set_timer_op
  HYPERCALL
  mov eax, [P_armed]
  mov dword ptr [P_armed], 0
  FLAT_OUT
  pop ecx
  pop ebx
  popfd
  retf

# -- services -------------------------------------------------------------------------------------

# The console ring: bytes in, then one event to the other end; a full ring is emptied meanwhile.
.routine console_write
  pushfd
  push ebx
  push ecx
  push edx
  push esi
  FLAT_IN
  mov esi, eax
write_more:
  cmp edx, 0
  je write_done
  mov ecx, [XC_out_prod]
  mov ebx, ecx
  sub ebx, [XC_out_cons]
  cmp ebx, CONSOLE_OUT_SIZE
  jae write_full
  and ecx, CONSOLE_OUT_SIZE-1
  mov al, [esi]
  mov [ecx+XC_out], al
  inc dword ptr [XC_out_prod]
  lea esi, [esi+1]
  dec edx
  jmp write_more
write_full:
  call kick_console
  jmp write_more
write_done:
  call kick_console
  FLAT_OUT
  pop esi
  pop edx
  mov eax, edx
  pop ecx
  pop ebx
  popfd
  retf

# Uses EAX, EBX, ECX.
.routine kick_console
  mov eax, [P_console_port]
  mov [P_argument], eax
  mov ebx, EVENT_send
  mov ecx, P_argument
  mov eax, HC_event_channel_op
  HYPERCALL
  ret

# EAX: 0 off, 1 reboot, 3 crash, as Xen numbers them.
.routine shutdown
  cmp eax, 1
  jbe shutdown_known
  cmp eax, 3
  je shutdown_known
  mov eax, -22
  retf
shutdown_known:
  mov ebx, FLAT_DS
  mov ds, ebx
  mov [P_argument], eax
  mov ebx, SCHED_shutdown
  mov ecx, P_argument
  mov eax, HC_sched_op
  HYPERCALL
dead:
  jmp dead
.routine reboot
  mov eax, 1
  jmp shutdown_known

# The end: EBX says why.
.routine crash
  mov eax, FLAT_DS
  mov ds, eax
  mov [P_message], ebx
  mov eax, 3
  jmp shutdown_known
