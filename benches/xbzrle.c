/*
 * What brant's encoding of changed pages is held against: XBZRLE as hypervisors have it that encode
 * one machine word at a time, written from the format (docs/wire.md, DELTA). A run of given bytes
 * ends at each byte that has not changed. Built into a shared object by scripts/bench and called by
 * benches/figures/delta.rs.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define WORD sizeof(uint64_t)

static uint64_t word(const unsigned char *at)
{
	uint64_t value;

	memcpy(&value, at, WORD);
	return value;
}

static size_t put_length(unsigned char *out, size_t length)
{
	if (length < 0x80) {
		out[0] = (unsigned char)length;
		return 1;
	}
	out[0] = (unsigned char)(length | 0x80);
	out[1] = (unsigned char)(length >> 7);
	return 2;
}

/* Where bytes that are alike end, from `at` on. */
static size_t alike(const unsigned char *base, const unsigned char *page, size_t at, size_t size)
{
	while (at < size && at % WORD != 0 && base[at] == page[at])
		at++;
	if (at % WORD != 0)
		return at;
	while (at < size && word(base + at) == word(page + at))
		at += WORD;
	while (at < size && base[at] == page[at])
		at++;
	return at;
}

/* Where bytes that differ end, from `at` on. */
static size_t different(const unsigned char *base, const unsigned char *page, size_t at, size_t size)
{
	const uint64_t ones = UINT64_MAX / 0xff;

	while (at < size && at % WORD != 0 && base[at] != page[at])
		at++;
	if (at % WORD != 0)
		return at;
	while (at < size) {
		uint64_t x = word(base + at) ^ word(page + at);

		/* A byte of x is 0. */
		if (((x - ones) & ~x & (ones << 7)) != 0)
			break;
		at += WORD;
	}
	while (at < size && base[at] != page[at])
		at++;
	return at;
}

/* The length of the encoding; -1 if it takes more than `room` bytes. */
long xbzrle_encode(const unsigned char *base, const unsigned char *page, size_t size, unsigned char *out,
		   size_t room)
{
	size_t used = 0, end = 0;

	for (;;) {
		size_t start = alike(base, page, end, size);
		size_t skipped = start - end;

		if (start == size)
			return (long)used;
		end = different(base, page, start, size);
		if (used + 4 + (end - start) > room)
			return -1;
		used += put_length(out + used, skipped);
		used += put_length(out + used, end - start);
		memcpy(out + used, page + start, end - start);
		used += end - start;
	}
}
