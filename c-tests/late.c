/*
 * A hand-over, or a message that belongs to it, that comes late or never. The guest runs on one
 * side or stands still, and the VMM learns which. owner.c tests who may begin what.
 */
#include "copies.h"
#include "relay.h"

/* A guest at the source, nothing at the destination, and a migration of it that is not started. */
struct late {
    struct copy *s, *d;
    brant_outgoing *out;
    brant_incoming *in;
};

/* Its hand-over counts for so many milliseconds; 0: the default. */
static struct late late_new(uint64_t handover_ms)
{
    struct copy *s = copy_new(true), *d = copy_new(false);

    return (struct late){ s, d, out_new(s, handover_ms), in_new(d) };
}

/* The migration is freed, and the guests stay. */
static void late_is_over(struct late *l)
{
    brant_outgoing_free(l->out);
    brant_incoming_free(l->in);
    l->out = NULL;
    l->in = NULL;
}

static void late_free(struct late *l)
{
    late_is_over(l);
    copy_free(l->s);
    copy_free(l->d);
}

static void late_handover(void)
{
    struct late l = late_new(patience(LIMIT_MS));
    struct relay relay;

    relay_begin(&relay, HANDOVER, l.out, l.in);
    wait_for(&relay.reached);
    ok(out_ends(l.out) == BRANT_E_UNANSWERED && l.s->resumes == 0,
       "a hand-over that the network holds is unanswered, and the guest stands");
    ok(in_state(l.in) == BRANT_DESTINATION_FAILED && l.d->started == 0,
       "by then the destination says that it never will run it");
    MUST(brant_outgoing_resolve(l.out, BRANT_RESOLVE_RESUME, &e));
    sem_post(&relay.go);
    ok(in_ends(l.in) == BRANT_E_TIMEOUT && l.s->runs && l.d->started == 0,
       "the hand-over that comes then runs nothing: one copy runs, the source's");
    relay_end(&relay);
    late_is_over(&l);
    ok(moves(l.s, l.d), "and it can move afterwards");
    late_free(&l);
}

static void late_at_the_last_moment(void)
{
    struct late l = late_new(patience(LIMIT_MS));

    l.d->slow_to_hear = true;
    both_start(l.out, l.in);
    ok(out_ends(l.out) == BRANT_E_UNANSWERED && in_ends(l.in) == BRANT_E_TIMEOUT && l.d->started == 0 &&
           in_state(l.in) == BRANT_DESTINATION_FAILED,
       "the clock is looked at as the last thing before run");
    ok(brant_incoming_cancel(l.in, NULL) == 0, "and a cancel of such a one succeeds: it never runs");
    MUST(brant_outgoing_resolve(l.out, BRANT_RESOLVE_RESUME, &e));
    late_is_over(&l);
    ok(l.s->runs && !l.d->runs, "the guest runs where it was");
    late_free(&l);
}

static void late_before_the_first_byte(void)
{
    struct late l = late_new(patience(LIMIT_MS));

    l.s->slow_to_hear = true;
    both_start(l.out, l.in);
    ok(out_ends(l.out) == BRANT_E_TIMEOUT && strstr(why, "the guest stays here") && l.s->resumes == 1 &&
           l.s->runs && state_of(l.s) == BRANT_GUEST_HERE && in_ends(l.in) != 0 && l.d->started == 0,
       "a source that comes to its hand-over too late sends none and keeps the guest");
    ok(brant_outgoing_cancel(l.out, NULL) == 0, "as if it had been cancelled in time");
    late_free(&l);
}

static void held_for_a_while(void)
{
    struct late l = late_new(0);
    struct relay relay;

    relay_begin(&relay, HANDOVER, l.out, l.in);
    wait_for(&relay.reached);
    ok(brant_incoming_wait(l.in, 100, NULL) == BRANT_E_PENDING &&
           brant_outgoing_cancel(l.out, NULL) == BRANT_E_STATE &&
           state_of(l.s) == BRANT_GUEST_HANDING_OVER,
       "while a hand-over is on its way nobody runs and nobody can cancel");
    sem_post(&relay.go);
    ok(out_ends(l.out) == 0 && in_ends(l.in) == 0 && !l.s->runs && l.d->runs,
       "a hand-over that comes within its limit hands over");
    relay_end(&relay);
    late_free(&l);
}

static void cancelled_there(void)
{
    struct late l = late_new(patience(LIMIT_MS));
    struct relay relay;

    relay_begin(&relay, HANDOVER, l.out, l.in);
    wait_for(&relay.reached);
    ok(brant_incoming_cancel(l.in, NULL) == 0, "an incoming that waits for the hand-over is cancelled");
    sem_post(&relay.go);
    ok(out_ends(l.out) == BRANT_E_UNANSWERED && l.d->started == 0,
       "which proves that the hand-over under way runs nothing");
    MUST(brant_outgoing_resolve(l.out, BRANT_RESOLVE_RESUME, &e));
    relay_end(&relay);
    late_is_over(&l);
    ok(l.s->runs && !l.d->runs, "and the source's copy runs");
    late_free(&l);
}

static void answer_lost(void)
{
    struct late l = late_new(patience(LIMIT_MS));
    struct relay relay;

    relay_begin(&relay, RUNNING, l.out, l.in);
    relay.lost = true;
    wait_for(&relay.reached);
    ok(out_ends(l.out) == BRANT_E_UNANSWERED && in_state(l.in) == BRANT_DESTINATION_RUNNING && l.d->runs,
       "an answer that is lost: unanswered here, and the destination says that it runs");
    MUST(brant_outgoing_resolve(l.out, BRANT_RESOLVE_DESTROY, &e));
    ok(!l.s->runs && state_of(l.s) == BRANT_GUEST_GIVEN_UP, "the VMM gives it up here");
    sem_post(&relay.go);
    relay_end(&relay);
    late_free(&l);
}

/* The destination's clock begins before the source's, so it may end before. */
static void ready_held(void)
{
    struct late l = late_new(patience(LIMIT_MS));
    struct relay relay;

    relay_begin(&relay, READY, l.out, l.in);
    wait_for(&relay.reached);
    ok(in_ends(l.in) == BRANT_E_TIMEOUT && strstr(why, "hand-over"),
       "a destination whose READY the network holds gives up when its hand-over's limit is over");
    sem_post(&relay.go);
    ok(out_ends(l.out) != 0 && l.s->runs + l.d->runs <= 1 && l.d->started == 0,
       "and runs nothing on the hand-over that READY brings");
    if (out_state(l.out) == BRANT_SOURCE_UNANSWERED)
        MUST(brant_outgoing_resolve(l.out, BRANT_RESOLVE_RESUME, &e));
    ok(l.s->runs, "the source's copy runs");
    relay_end(&relay);
    late_free(&l);
}

static void slow_release(void)
{
    struct late l = late_new(200);

    atomic_store(&l.s->release_ms, 400);
    both_start(l.out, l.in);
    /* The source ends by its own clock, or by the destination's message that it no longer waits. */
    ok(out_ends(l.out) != 0 && out_state(l.out) == BRANT_SOURCE_FAILED && l.s->resumes == 1 && l.s->runs &&
           in_ends(l.in) != 0 && l.d->started == 0,
       "a source whose release outlasts the hand-over's limit hands nothing over and runs on");
    late_is_over(&l);
    atomic_store(&l.s->release_ms, 0);
    ok(moves(l.s, l.d), "and moves the next time");
    late_free(&l);
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
