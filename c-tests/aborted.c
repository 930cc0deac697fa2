/*
 * A pause that is aborted, because the guest wrote more in it than the downtime limit allows: what
 * the VMM is called for, what the statistics and events say, and who runs in the end.
 */
#include "copies.h"

/* Of a migration that counts with a link on which all of the guest takes four seconds. */
enum { LINK = BYTES / 4 };

/* How many pauses find all of the guest written. */
static int written;

static void write_all(struct copy *copy)
{
    if (copy->pauses > written)
        return;
    for (int page = 0; page < PAGES; page++)
        copy->host[page * 4096]++;
    brant_tracker_mark_block(copy->tracker, copy->block, 0, BYTES);
}

struct ended {
    struct copy *s, *d;
    struct result code;
    brant_stats stats;
};

/* A migration, in whose first `pauses` pauses all of the guest is written. */
static struct ended migrate_written(int pauses, uint64_t slack_ms, uint32_t overrun)
{
    brant_params params = { .size = sizeof params,
                            .switchover_bandwidth = LINK,
                            .downtime_limit_ms = patience(300),
                            .downtime_slack_ms = slack_ms,
                            .overrun = overrun };
    struct ended ended = { .s = copy_new(true), .d = copy_new(false), .stats = { .size = sizeof ended.stats } };
    brant_outgoing *out;
    brant_incoming *in = in_new(ended.d);

    written = pauses;
    ended.s->at_pause = write_all;
    MUST(brant_outgoing_new(ended.s->tracker, &params, &out, &e));
    both_start(out, in);
    ended.code.source = out_ends(out);
    MUST(brant_outgoing_get_stats(out, &ended.stats, &e));
    /* After a failure the destination's error says that the source has gone. */
    ended.code.destination = in_ends(in);
    brant_outgoing_free(out);
    brant_incoming_free(in);
    return ended;
}

static void over(struct ended *ended)
{
    copy_free(ended->s);
    copy_free(ended->d);
}

static bool arrived(const struct ended *ended)
{
    return ended->code.source == 0 && ended->code.destination == 0 && !ended->s->runs && ended->d->runs &&
           memcmp(ended->s->host, ended->d->host, BYTES) == 0;
}

static void aborted_twice(void)
{
    struct ended m = migrate_written(2, 0, BRANT_OVERRUN_FAIL);

    ok(arrived(&m), "a guest whose first two pauses are aborted arrives with what it wrote in them");
    ok(m.s->pauses == 3 && m.s->resumes == 2 && m.d->started == 1,
       "it was paused three times, ran on twice, and then ran there");
    ok(m.stats.aborted_pauses == 2 && m.stats.aborted_pause_ns[0] > 0 && m.stats.aborted_pause_ns[1] > 0 &&
           m.stats.aborted_pause_ns[2] == 0,
       "the statistics have both and how long each took");
    ok(m.s->events[BRANT_EVENT_DOWNTIME] >= 2 && strstr(m.s->messages[BRANT_EVENT_DOWNTIME], "aborted"),
       "and an event tells each");
    ok(m.stats.promised_downtime_ns < 1000000000 && m.stats.promised_memory_ns <= m.stats.promised_downtime_ns,
       "the promise is that of the last pause, and not of a pause with all pages to be sent");
    over(&m);
}

static void aborted_too_often(void)
{
    struct ended m = migrate_written(100, 0, BRANT_OVERRUN_FAIL);

    ok(m.code.source == BRANT_E_NOT_CONVERGED && m.stats.aborted_pauses == 3,
       "after three pauses that were aborted the migration fails");
    ok(m.s->runs && m.s->resumes == m.s->pauses && !m.d->runs && m.d->started == 0 &&
           state_of(m.s) == BRANT_GUEST_HERE,
       "the guest runs on at the source, and never ran at the destination");
    m.s->at_pause = NULL;
    ok(moves(m.s, m.d), "and it moves when it writes less");
    over(&m);
}

static void carried_on(void)
{
    struct ended m = migrate_written(100, 0, BRANT_OVERRUN_CARRY_ON);

    ok(arrived(&m) && m.s->pauses == 4 && m.stats.aborted_pauses == 3,
       "who carries on is moved by the fourth pause, whatever was written in it");
    over(&m);
}

static void allowed(void)
{
    struct ended m = migrate_written(100, 60000, BRANT_OVERRUN_FAIL);

    ok(arrived(&m) && m.s->pauses == 1 && m.s->resumes == 0 && m.stats.aborted_pauses == 0,
       "a slack above what the pages take lets the first pause be the last");
    over(&m);
}

int main(void)
{
    plan(11);
    aborted_twice();
    aborted_too_often();
    carried_on();
    allowed();
    equal(atomic_load(&most), 1, "never did two copies run");
    return done();
}
