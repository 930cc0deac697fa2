/*
 * When connections are lost behind a postcopy, the guest runs at the destination without a part of its memory, and the
 * source has that part. Neither side ends by itself. Both VMMs make new connections: the destination listens again where it
 * listened before, the source connects again. Either may be the first: the source's engine tries for some seconds, and what fails
 * leaves the migration interrupted, so the next attempt follows.
 */
#include "recover.h"

#include <time.h>

/* Between two attempts. */
#define PAUSE_MS 100

enum step { NOTHING, TRY, GIVE_UP };

static uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

bool is_interrupted(uint32_t state)
{
	return state == BRANT_SOURCE_INTERRUPTED || state == BRANT_SOURCE_RECOVERING || state == BRANT_DESTINATION_INTERRUPTED;
}

static enum step step(struct recovery *r, const brant_stats *s, const char *endpoint)
{
	uint64_t now = now_ms();

	/* The time counts over all attempts: while one is made, the destination is not interrupted. */
	if (s->recoveries != r->recoveries)
		r->since_ms = 0;
	r->recoveries = s->recoveries;
	if (!is_interrupted(s->state))
		return NOTHING;
	if (r->since_ms == 0)
		r->since_ms = r->next_ms = now;
	if (!endpoint || r->give_up || now - r->since_ms >= r->limit_ms)
		return GIVE_UP;
	if (s->state == BRANT_SOURCE_RECOVERING || now < r->next_ms)
		return NOTHING;
	r->next_ms = now + PAUSE_MS;
	return TRY;
}

/* An attempt that is refused because one is in progress is no harm. */

void recover_outgoing(struct recovery *r, brant_outgoing *out, const char *endpoint)
{
	brant_stats s = BRANT_INIT(brant_stats);

	brant_outgoing_get_stats(out, &s, NULL);
	switch (step(r, &s, endpoint)) {
	case TRY: brant_outgoing_recover(out, endpoint, NULL); break;
	case GIVE_UP: brant_outgoing_resolve(out, BRANT_RESOLVE_DESTROY, NULL); break;
	case NOTHING: break;
	}
}

void recover_incoming(struct recovery *r, brant_incoming *in, const char *endpoint)
{
	brant_stats s = BRANT_INIT(brant_stats);

	brant_incoming_get_stats(in, &s, NULL);
	switch (step(r, &s, endpoint)) {
	case TRY: brant_incoming_recover(in, endpoint, NULL); break;
	case GIVE_UP: brant_incoming_give_up(in, NULL); break;
	case NOTHING: break;
	}
}
