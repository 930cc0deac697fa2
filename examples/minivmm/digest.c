/*
 * Page digests (digest.h): a multiply-mix hash over eight independent lanes, and a walk over guest memory that never
 * reads an untouched page. Reading a hole of a memfd through its mapping allocates the page. In private memory it
 * fills page tables with the zero page. Either would change what a later migration finds, and cost more than the
 * digest.
 */
#define _GNU_SOURCE
#include "digest.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "internal.h"

#define LANES 8
#define PAGEMAP_PRESENT (1ull << 63)
#define PAGEMAP_SWAPPED (1ull << 62)

static inline uint64_t rotate(uint64_t x, unsigned by)
{
	return (x << by) | (x >> (64 - by));
}

uint64_t mv_digest_page(const void *page)
{
	static const uint64_t k = 0xa0761d6478bd642full;
	const unsigned char *p = page;
	uint64_t lane[LANES], digest = 0;

	for (unsigned i = 0; i < LANES; i++)
		lane[i] = (i + 1) * 0xe7037ed1a0b428dbull;
	/* Unrolled, so that the lanes are registers and eight products are computed at once. */
	for (unsigned at = 0; at < MV_PAGE; at += LANES * 8)
#pragma GCC unroll 8
		for (unsigned i = 0; i < LANES; i++) {
			uint64_t word;

			memcpy(&word, p + at + i * 8, 8);
			/* A product only moves bits upwards. The rotation brings the high bits back down, where they count. */
			lane[i] = rotate((lane[i] ^ word) * k, 29);
		}
	for (unsigned i = 0; i < LANES; i++)
		digest = gv_mix(digest ^ lane[i]);
	return digest;
}

static void digest_run(const unsigned char *host, uint64_t pages, uint64_t *out)
{
	for (uint64_t i = 0; i < pages; i++)
		out[i] = mv_digest_page(host + i * MV_PAGE);
}

static int digest_memfd(struct mv_machine *m, const struct mv_region *r, uint64_t *out)
{
	off_t at = 0;

	while ((uint64_t)at < r->bytes) {
		off_t data = lseek(r->fd, at, SEEK_DATA), hole;

		if (data < 0 && errno == ENXIO)
			return 0; /* nothing but a hole up to the end */
		if (data < 0 || (hole = lseek(r->fd, data, SEEK_HOLE)) < 0)
			return mvi_error(m, "%s: cannot find the holes of the memfd: %s", r->name, strerror(errno));
		data -= data % MV_PAGE;
		digest_run((unsigned char *)r->host + data, ((uint64_t)(hole - data) + MV_PAGE - 1) / MV_PAGE,
			   out + (uint64_t)data / MV_PAGE);
		at = hole;
	}
	return 0;
}

static int digest_anonymous(struct mv_machine *m, const struct mv_region *r, uint64_t *out)
{
	uint64_t entry[512], pages = r->bytes / MV_PAGE;
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return mvi_error(m, "cannot open /proc/self/pagemap: %s", strerror(errno));
	for (uint64_t page = 0; page < pages;) {
		uint64_t want = pages - page < 512 ? pages - page : 512;
		off_t at = (off_t)(((uintptr_t)r->host / MV_PAGE + page) * 8);
		ssize_t got = pread(fd, entry, want * 8, at);

		if (got < 8) {
			mvi_error(m, "cannot read /proc/self/pagemap: %s", got < 0 ? strerror(errno) : "short read");
			close(fd);
			return -1;
		}
		for (uint64_t i = 0; i < (uint64_t)got / 8; i++, page++)
			if (entry[i] & (PAGEMAP_PRESENT | PAGEMAP_SWAPPED))
				out[page] = mv_digest_page((unsigned char *)r->host + page * MV_PAGE);
	}
	close(fd);
	return 0;
}

long long mv_digest_pages(struct mv_machine *m, uint64_t *out)
{
	static const unsigned char zeros[MV_PAGE];
	uint64_t zero = mv_digest_page(zeros), done = 0;
	unsigned n;
	const struct mv_region *r = mv_regions(m, &n);

	for (unsigned i = 0; i < n; i++) {
		uint64_t pages = r[i].bytes / MV_PAGE;

		for (uint64_t p = 0; p < pages; p++)
			out[done + p] = zero;
		if ((r[i].fd >= 0 ? digest_memfd : digest_anonymous)(m, &r[i], out + done) < 0)
			return -1;
		done += pages;
	}
	return (long long)done;
}
