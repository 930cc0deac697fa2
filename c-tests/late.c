/*
 * A hand-over, or a message that belongs to it, that comes late or never. The guest runs on one
 * side or stands still, and the VMM learns which. owner.c tests who may begin what.
 */
#include "copies.h"
#include "relay.h"

static void late_handover(void)
{
    struct copy *s = copy_new(true), *d = copy_new(false);
    brant_outgoing *out = out_new(s, patience(LIMIT_MS));
    brant_incoming *in = in_new(d);
    struct relay relay;

    relay_begin(&relay, HANDOVER, out, in);
    wait_for(&relay.reached);
    ok(out_ends(out) == BRANT_E_UNANSWERED && s->resumes == 0,
       "a hand-over that the network holds is unanswered, and the guest stands");
    ok(in_state(in) == BRANT_DESTINATION_FAILED && d->started == 0,
       "by then the destination says that it never will run it");
    MUST(brant_outgoing_resolve(out, BRANT_RESOLVE_RESUME, &e));
    sem_post(&relay.go);
    ok(in_ends(in) == BRANT_E_TIMEOUT && s->runs && d->started == 0,
       "the hand-over that comes then runs nothing: one copy runs, the source's");
    relay_end(&relay);
    brant_outgoing_free(out);
    brant_incoming_free(in);
    ok(moves(s, d), "and it can move afterwards");
    copy_free(s);
    copy_free(d);
}

static void late_at_the_last_moment(void)
{
    struct copy *s = copy_new(true), *d = copy_new(false);
    brant_outgoing *out = out_new(s, patience(LIMIT_MS));
    brant_incoming *in = in_new(d);
    int pair[2];

    d->slow_to_hear = true;
    pair_new(pair);
    MUST(brant_incoming_start_fd(in, pair[1], &e));
    MUST(brant_outgoing_start_fd(out, pair[0], &e));
    ok(out_ends(out) == BRANT_E_UNANSWERED && in_ends(in) == BRANT_E_TIMEOUT && d->started == 0 &&
           in_state(in) == BRANT_DESTINATION_FAILED,
       "the clock is looked at as the last thing before run");
    ok(brant_incoming_cancel(in, NULL) == 0, "and a cancel of such a one succeeds: it never runs");
    MUST(brant_outgoing_resolve(out, BRANT_RESOLVE_RESUME, &e));
    brant_outgoing_free(out);
    brant_incoming_free(in);
    ok(s->runs && !d->runs, "the guest runs where it was");
    copy_free(s);
    copy_free(d);
}

static void late_before_the_first_byte(void)
{
    struct copy *s = copy_new(true), *d = copy_new(false);
    brant_outgoing *out = out_new(s, patience(LIMIT_MS));
    brant_incoming *in = in_new(d);
    int pair[2];

    s->slow_to_hear = true;
    pair_new(pair);
    MUST(brant_incoming_start_fd(in, pair[1], &e));
    MUST(brant_outgoing_start_fd(out, pair[0], &e));
    ok(out_ends(out) == BRANT_E_TIMEOUT && strstr(why, "the guest stays here") && s->resumes == 1 &&
           s->runs && state_of(s) == BRANT_GUEST_HERE && in_ends(in) != 0 && d->started == 0,
       "a source that comes to its hand-over too late sends none and keeps the guest");
    ok(brant_outgoing_cancel(out, NULL) == 0, "as if it had been cancelled in time");
    brant_outgoing_free(out);
    brant_incoming_free(in);
    copy_free(s);
    copy_free(d);
}

static void held_for_a_while(void)
{
    struct copy *s = copy_new(true), *d = copy_new(false);
    brant_outgoing *out = out_new(s, 0);
    brant_incoming *in = in_new(d);
    struct relay relay;

    relay_begin(&relay, HANDOVER, out, in);
    wait_for(&relay.reached);
    ok(brant_incoming_wait(in, 100, NULL) == BRANT_E_PENDING &&
           brant_outgoing_cancel(out, NULL) == BRANT_E_STATE &&
           state_of(s) == BRANT_GUEST_HANDING_OVER,
       "while a hand-over is on its way nobody runs and nobody can cancel");
    sem_post(&relay.go);
    ok(out_ends(out) == 0 && in_ends(in) == 0 && !s->runs && d->runs,
       "a hand-over that comes within its limit hands over");
    relay_end(&relay);
    brant_outgoing_free(out);
    brant_incoming_free(in);
    copy_free(s);
    copy_free(d);
}

static void cancelled_there(void)
{
    struct copy *s = copy_new(true), *d = copy_new(false);
    brant_outgoing *out = out_new(s, patience(LIMIT_MS));
    brant_incoming *in = in_new(d);
    struct relay relay;

    relay_begin(&relay, HANDOVER, out, in);
    wait_for(&relay.reached);
    ok(brant_incoming_cancel(in, NULL) == 0, "an incoming that waits for the hand-over is cancelled");
    sem_post(&relay.go);
    ok(out_ends(out) == BRANT_E_UNANSWERED && d->started == 0,
       "which proves that the hand-over under way runs nothing");
    MUST(brant_outgoing_resolve(out, BRANT_RESOLVE_RESUME, &e));
    relay_end(&relay);
    brant_outgoing_free(out);
    brant_incoming_free(in);
    ok(s->runs && !d->runs, "and the source's copy runs");
    copy_free(s);
    copy_free(d);
}

static void answer_lost(void)
{
    struct copy *s = copy_new(true), *d = copy_new(false);
    brant_outgoing *out = out_new(s, patience(LIMIT_MS));
    brant_incoming *in = in_new(d);
    struct relay relay;

    relay_begin(&relay, RUNNING, out, in);
    relay.lost = true;
    wait_for(&relay.reached);
    ok(out_ends(out) == BRANT_E_UNANSWERED && in_state(in) == BRANT_DESTINATION_RUNNING && d->runs,
       "an answer that is lost: unanswered here, and the destination says that it runs");
    MUST(brant_outgoing_resolve(out, BRANT_RESOLVE_DESTROY, &e));
    ok(!s->runs && state_of(s) == BRANT_GUEST_GIVEN_UP, "the VMM gives it up here");
    sem_post(&relay.go);
    relay_end(&relay);
    brant_outgoing_free(out);
    brant_incoming_free(in);
    copy_free(s);
    copy_free(d);
}

/* The destination's clock begins before the source's, so it may end before. */
static void ready_held(void)
{
    struct copy *s = copy_new(true), *d = copy_new(false);
    brant_outgoing *out = out_new(s, patience(LIMIT_MS));
    brant_incoming *in = in_new(d);
    struct relay relay;

    relay_begin(&relay, READY, out, in);
    wait_for(&relay.reached);
    ok(in_ends(in) == BRANT_E_TIMEOUT && strstr(why, "hand-over"),
       "a destination whose READY the network holds gives up when its hand-over's limit is over");
    sem_post(&relay.go);
    ok(out_ends(out) != 0 && s->runs + d->runs <= 1 && d->started == 0,
       "and runs nothing on the hand-over that READY brings");
    if (out_state(out) == BRANT_SOURCE_UNANSWERED)
        MUST(brant_outgoing_resolve(out, BRANT_RESOLVE_RESUME, &e));
    ok(s->runs, "the source's copy runs");
    relay_end(&relay);
    brant_outgoing_free(out);
    brant_incoming_free(in);
    copy_free(s);
    copy_free(d);
}

static void slow_release(void)
{
    struct copy *s = copy_new(true), *d = copy_new(false);
    brant_outgoing *out = out_new(s, 200);
    brant_incoming *in = in_new(d);
    int pair[2];

    atomic_store(&s->release_ms, 400);
    pair_new(pair);
    MUST(brant_incoming_start_fd(in, pair[1], &e));
    MUST(brant_outgoing_start_fd(out, pair[0], &e));
    /* The source ends by its own clock, or by the destination's message that it no longer waits. */
    ok(out_ends(out) != 0 && out_state(out) == BRANT_SOURCE_FAILED && s->resumes == 1 && s->runs &&
           in_ends(in) != 0 && d->started == 0,
       "a source whose release outlasts the hand-over's limit hands nothing over and runs on");
    brant_outgoing_free(out);
    brant_incoming_free(in);
    atomic_store(&s->release_ms, 0);
    ok(moves(s, d), "and moves the next time");
    copy_free(s);
    copy_free(d);
}

int main(void)
{
    plan(22);
    late_handover();
    late_at_the_last_moment();
    late_before_the_first_byte();
    held_for_a_while();
    cancelled_there();
    answer_lost();
    ready_held();
    slow_release();
    equal(atomic_load(&most), 1, "never did two copies run");
    return done();
}
