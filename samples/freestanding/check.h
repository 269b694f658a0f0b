/*
 * Self-checks: every sample proves its points one named item at a time.
 *
 *     expect("cs", frame.cs, 0x08);
 *     expect("ss", frame.ss, 0x10);
 *     verdict("trap.frame");        -> "PASS trap.frame"
 *                                   or "FAIL trap.frame: cs is 0x9, not 0x8"
 *
 * Nothing that changes from run to run (times, counts of ticks) is ever printed,
 * so that a transcript can be compared byte for byte.
 */
#ifndef SAMPLES_CHECK_H
#define SAMPLES_CHECK_H

#include "types.h"

/* Supplied by the sample: show one line, without the newline, to the outside. */
void console_line(const char *text);

/* Remember the first value of this item that is not as it should be. */
void expect(const char *what, u64 got, u64 want);
/* The same for a condition. */
void expect_that(const char *what, int holds);
/* Print the item's PASS or FAIL line and start the next item. */
void verdict(const char *name);
/* An item that is one result: it is printed, so that two hosts can be compared by it. */
void returns(const char *name, s64 got, s64 want);
/* An item that does not apply here: neither passed nor failed. */
void skipped(const char *name, const char *why);
/* Print "DONE passed=N failed=M"; the number of failures is returned. */
u32 summary(void);

/* One line of a text and up to two hexadecimal values, for a report. */
void say(const char *text);
void say_value(const char *text, u64 value);

#endif
