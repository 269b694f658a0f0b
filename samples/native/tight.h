/* Code in tight places, by hand; see tight.S. */
#ifndef SAMPLES_TIGHT_H
#define SAMPLES_TIGHT_H

#include "types.h"

ulong tight_loop(void);
ulong tight_save(void);
void tight_restore(void);
void tight_off(void);
void tight_on(void);
ulong tight_flags(void);
ulong tight_packed(void);
ulong tight_switch(ulong index);
ulong tight_compare(void);
ulong tight_after_call(void);
ulong tight_branch_into(ulong skip);
ulong tight_own_address(void);
ulong tight_relative(void);
ulong tight_counted(void);
ulong tight_immediate(void);
ulong tight_status(void);

extern const u8 tight_table[16];
extern ulong tight_saved;

#endif
