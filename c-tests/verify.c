/*
 * A migration that is verified: the destination's memory is compared with the source's, and the VMM
 * hears what differs.
 */
#include "copies.h"

enum { WRONG = 9 };

struct ended {
    struct copy *s, *d;
    struct result code;
    brant_stats source, destination;
};

static struct ended migrate_verified(struct copy *s, struct copy *d)
{
    brant_params params = { .size = sizeof params, .verify = BRANT_VERIFY_ON, .switchover_bandwidth = 1 << 30 };
    struct ended ended = { .s = s,
                           .d = d,
                           .source = { .size = sizeof ended.source },
                           .destination = { .size = sizeof ended.destination } };
    brant_outgoing *out;
    brant_incoming *in = in_new(d);

    MUST(brant_outgoing_new(s->tracker, &params, &out, &e));
    both_start(out, in);
    ended.code.source = out_ends(out);
    ended.code.destination = in_ends(in);
    MUST(brant_outgoing_get_stats(out, &ended.source, &e));
    MUST(brant_incoming_get_stats(in, &ended.destination, &e));
    brant_outgoing_free(out);
    brant_incoming_free(in);
    return ended;
}

static bool succeeded(const struct ended *ended)
{
    return ended->code.source == 0 && ended->code.destination == 0 && !ended->s->runs && ended->d->runs;
}

static void over(struct ended *ended)
{
    copy_free(ended->s);
    copy_free(ended->d);
}

static void equal_memory(void)
{
    struct ended m = migrate_verified(copy_new(true), copy_new(false));

    ok(succeeded(&m) && m.source.verified_pages == PAGES && m.source.unverified_pages == 0 &&
           m.source.mismatched_pages == 0,
       "all pages of a guest that has arrived are verified, and none differs");
    ok(m.source.first_mismatch_block == BRANT_UNKNOWN && m.source.first_mismatch_page == BRANT_UNKNOWN &&
           m.s->events[BRANT_EVENT_MISMATCH] == 0,
       "no page is named and no event comes");
    ok(m.destination.digest_ns > 0 && m.source.digest_ns > 0,
       "the time for the destination's checksums is told on both sides");
    over(&m);
}

/* Breaks the promise that nothing writes memory from `release` on. */
static void writes_late(struct copy *copy)
{
    copy->host[WRONG * 4096 + 17] ^= 1;
    copy->host[(WRONG + 4) * 4096] ^= 1;
}

static void different_memory(void)
{
    struct copy *s = copy_new(true);
    struct ended m;

    s->at_release = writes_late;
    m = migrate_verified(s, copy_new(false));
    ok(succeeded(&m), "a guest of which a page differs runs at the destination all the same");
    ok(m.source.mismatched_pages == 2 && m.source.first_mismatch_block == s->block &&
           m.source.first_mismatch_page == WRONG && m.source.verified_pages == PAGES,
       "the statistics have how many pages differ, and name the first");
    ok(s->events[BRANT_EVENT_MISMATCH] == 1 && strstr(s->messages[BRANT_EVENT_MISMATCH], "ram"),
       "one event for the block names it");
    over(&m);
}

static void not_compared(void)
{
    struct copy *s = copy_new(true);
    brant_slot slot = { .size = sizeof slot, .block = s->block, .slot = BRANT_NO_SLOT, .length = BYTES };
    struct ended m;

    MUST(brant_guest_add_slot(s->guest, &slot, &e));
    MUST(brant_guest_must_tell_host(s->guest, 1, &e));
    /* Its contents stay here, and count for nothing. */
    brant_guest_mark_ballooned(s->guest, WRONG * 4096, 3 * 4096);
    m = migrate_verified(s, copy_new(false));
    ok(succeeded(&m) && m.source.unverified_pages == 3 && m.source.verified_pages == PAGES - 3 &&
           m.source.mismatched_pages == 0,
       "ballooned pages are left out, and counted");
    over(&m);
}

int main(void)
{
    plan(8);
    equal_memory();
    different_memory();
    not_compared();
    equal(atomic_load(&most), 1, "never did two copies run");
    return done();
}
