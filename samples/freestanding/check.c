/* Self-checks and their one-line reports; see check.h. */
#include "check.h"

static u32 passed, failed, not_applicable;
static const char *wrong;        /* what was wrong first, or null */
static u64 wrong_got, wrong_want;
static int wrong_is_value;

static char line[160];
static u32 length;

static void put(const char *text)
{
	while (*text && length < sizeof line - 1)
		line[length++] = *text++;
}

static void put_hex(u64 value)
{
	int shift = 60;

	put("0x");
	while (shift > 0 && !((value >> shift) & 15))
		shift -= 4;
	for (; shift >= 0; shift -= 4) {
		char digit[2] = { "0123456789abcdef"[(value >> shift) & 15], 0 };

		put(digit);
	}
}

static void put_decimal(u32 value)
{
	char digits[11];
	u32 at = sizeof digits - 1;

	digits[at] = 0;
	do
		digits[--at] = (char)('0' + value % 10);
	while (value /= 10);
	put(digits + at);
}

static void end_line(void)
{
	line[length] = 0;
	length = 0;
	console_line(line);
}

void expect(const char *what, u64 got, u64 want)
{
	if (got == want || wrong)
		return;
	wrong = what;
	wrong_is_value = 1;
	wrong_got = got;
	wrong_want = want;
}

void expect_that(const char *what, int holds)
{
	if (holds || wrong)
		return;
	wrong = what;
	wrong_is_value = 0;
}

void verdict(const char *name)
{
	put(wrong ? "FAIL " : "PASS ");
	put(name);
	if (wrong) {
		put(": ");
		put(wrong);
		if (wrong_is_value) {
			put(" is ");
			put_hex(wrong_got);
			put(", not ");
			put_hex(wrong_want);
		} else {
			put(" does not hold");
		}
		failed++;
	} else {
		passed++;
	}
	wrong = 0;
	end_line();
}

static void put_signed(s64 value)
{
	if (value < 0)
		put("-");
	put_decimal((u32)(value < 0 ? -value : value));
}

void returns(const char *name, s64 got, s64 want)
{
	put(got == want ? "PASS " : "FAIL ");
	put(name);
	put(" = ");
	put_signed(got);
	if (got == want) {
		passed++;
	} else {
		put(", not ");
		put_signed(want);
		failed++;
	}
	end_line();
}

void skipped(const char *name, const char *why)
{
	put("SKIP ");
	put(name);
	put(": ");
	put(why);
	not_applicable++;
	end_line();
}

u32 summary(void)
{
	put("DONE passed=");
	put_decimal(passed);
	put(" failed=");
	put_decimal(failed);
	if (not_applicable) {
		put(" skipped=");
		put_decimal(not_applicable);
	}
	end_line();
	return failed;
}

void say(const char *text)
{
	put(text);
	end_line();
}

void say_value(const char *text, u64 value)
{
	put(text);
	put(" ");
	put_hex(value);
	end_line();
}
