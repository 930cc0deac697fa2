/*
 * The guest's work: choose a page, write it, record it; and the check that every page holds what its record says.
 * Compiled twice: into the KVM guest (guest.c) and into the VMM for a guest that is plain process memory (process.c).
 * It is no header in the usual sense: the includer first defines
 *
 *   struct gv_ctx                                   whatever the functions below need
 *   void    *gv_at(ctx, gpa)                        address of guest memory (good up to the end of that page)
 *   void     gv_wrote(ctx, gpa, len)                called after every store to guest memory
 *   uint32_t gv_ask(ctx)                            "what next?": pages to write, 0 = look at the mailbox
 *   int      gv_stop(ctx)                           true: return from gv_run between two writes
 *
 * All state is in the mailbox, so a run that stopped here can go on in another process that has the same memory.
 */
#include "abi.h"

static inline uint64_t gv_random(struct gv_mailbox *mb)
{
	uint64_t x = mb->rng;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	mb->rng = x;
	return x;
}

/* A number in 0 .. n-1, from the high bits. */
static inline uint64_t gv_below(struct gv_mailbox *mb, uint64_t n)
{
	return (uint64_t)(((unsigned __int128)gv_random(mb) * n) >> 64);
}

static inline uint64_t gv_choose(struct gv_mailbox *mb, uint64_t workload)
{
	uint64_t n = mb->npages, page;

	switch (workload) {
	case GV_SWEEP:
		page = mb->pos < n ? mb->pos : 0;
		mb->pos = page + 1;
		return page;
	case GV_MIXED:
		n = n > 1 ? n / 2 : n;
		/* fall through */
	case GV_HOT:
		if (gv_random(mb) % 10 != 0 && mb->hot_pages < n)
			return gv_below(mb, mb->hot_pages);
		return gv_below(mb, n);
	default:
		return gv_below(mb, n);
	}
}

/* The page is written first, the record second, the counter third. A guest that is stopped in between has at most
 * this one page ahead of its record, and mv_verify_host can tell that. */
static inline void gv_write_page(struct gv_ctx *ctx, struct gv_mailbox *mb, uint64_t mb_gpa, uint64_t page)
{
	uint64_t gpa = mb->first_gpa + page * GV_PAGE;
	uint64_t seq = mb->writes + 1;
	uint64_t stamp = gv_stamp(gpa, seq);
	uint64_t *word = gv_at(ctx, gpa);
	uint64_t record_gpa = mb->record_gpa + page * 8;

	gv_put(&word[0], stamp);
	gv_put(&word[gv_moving_word(stamp)], gv_moving_stamp(stamp));
	gv_put(&word[GV_WORDS - 1], ~stamp);
	gv_wrote(ctx, gpa, GV_PAGE);

	gv_put(gv_at(ctx, record_gpa), seq);
	gv_wrote(ctx, record_gpa, 8);

	gv_put(&mb->writes, seq);
	if (seq % mb->npages == 0)
		gv_put(&mb->loops, mb->loops + 1);
	gv_wrote(ctx, mb_gpa, sizeof *mb);
}

/* Called only between two writes, so no page is in flight. */
static inline void gv_check(struct gv_ctx *ctx, struct gv_mailbox *mb, uint64_t mb_gpa, uint64_t request)
{
	uint64_t bad = 0, first_bad = 0, page;

	for (page = 0; page < mb->npages; page++) {
		uint64_t gpa = mb->first_gpa + page * GV_PAGE;
		uint64_t seq = gv_get(gv_at(ctx, mb->record_gpa + page * 8));

		if (gv_stop(ctx))
			return; /* asked again after the stop: check_done is still old */
		if (seq == 0 || gv_page_holds(gv_at(ctx, gpa), gpa, seq))
			continue;
		if (bad++ == 0)
			first_bad = gpa;
	}
	gv_put(&mb->check_bad, bad);
	gv_put(&mb->check_gpa, first_bad);
	gv_put(&mb->check_done, request);
	gv_wrote(ctx, mb_gpa, sizeof *mb);
}

static inline void gv_run(struct gv_ctx *ctx, uint64_t mb_gpa)
{
	struct gv_mailbox *mb = gv_at(ctx, mb_gpa);

	while (!gv_stop(ctx)) {
		uint32_t n = gv_ask(ctx);
		uint64_t request = gv_get(&mb->check_request);
		uint64_t workload = gv_get(&mb->workload);

		if (n > 0) {
			const struct gv_device *dev = gv_at(ctx, mb->device_gpa);
			uint64_t seq = mb->bursts + 1;

			if (gv_get(&dev->seq) != seq || gv_get(&dev->stamp) != gv_mix(seq))
				gv_put(&mb->device_errors, mb->device_errors + 1);
			gv_put(&mb->bursts, seq);
			gv_wrote(ctx, mb_gpa, sizeof *mb);
		}
		if (request != mb->check_done)
			gv_check(ctx, mb, mb_gpa, request);
		for (; n > 0 && workload != GV_IDLE && !gv_stop(ctx); n--)
			gv_write_page(ctx, mb, mb_gpa, gv_choose(mb, workload));
	}
}
