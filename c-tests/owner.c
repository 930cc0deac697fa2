/*
 * Who has a guest. By the header alone, and whatever is tried with a guest object, at most one copy
 * of the guest runs, and brant says why it refuses. Guests are memory of this process. late.c tests
 * late hand-overs, switchover.c what arrives, kick.c kicks.
 */
#include "copies.h"
#include "relay.h"

static void handed_over(void)
{
    struct copy *s = copy_new(true), *first = copy_new(false), *second = copy_new(false);
    brant_outgoing *out;
    brant_tracker *other;

    ok(moves(s, first) && state_of(s) == BRANT_GUEST_HANDED_OVER &&
           state_of(first) == BRANT_GUEST_HERE,
       "a guest that has moved is handed over here, and runs there");
    out = out_new(s, 0);
    ok(out_starts(out) == BRANT_E_STATE && strstr(why, "handed over"),
       "a guest that was handed over is not handed over again");
    brant_outgoing_free(out);
    MUST(brant_tracker_new(s->guest, NULL, &other, &e));
    brant_tracker_free(s->tracker);
    s->tracker = other;
    out = out_new(s, 0);
    ok(out_starts(out) == BRANT_E_STATE && strstr(why, "handed over"),
       "nor through another tracker of it");
    ok(brant_guest_runs_here(s->guest, NULL) == BRANT_E_STATE && s->pauses == 1 && s->resumes == 0,
       "it may not run here by anybody's word, and nothing of the VMM's was called");
    /* The other host is destroyed. */
    set_runs(first, false);
    ok(brant_guest_reclaim(s->guest, NULL) == 0 && state_of(s) == BRANT_GUEST_HERE,
       "it is here again when the VMM says that the other copy is gone");
    set_runs(s, true);
    brant_outgoing_free(out);
    ok(moves(s, second), "and then it moves");
    ok(brant_guest_reclaim(second->guest, NULL) == 0 && second->runs,
       "taking back what is here changes nothing");
    copy_free(s);
    copy_free(first);
    copy_free(second);
}

static void unanswered(void)
{
    struct copy *s = copy_new(true), *d = copy_new(false), *second = copy_new(false);
    brant_outgoing *out = out_new(s, 0), *again;
    brant_incoming *in = in_new(d), *back;

    d->run_fails = true;
    both_start(out, in);
    ok(out_ends(out) == BRANT_E_UNANSWERED && strstr(why, "no vCPUs today") && in_ends(in) != 0,
       "a guest that could not be started there is unanswered here");
    ok(state_of(s) == BRANT_GUEST_UNANSWERED && state_of(d) == BRANT_GUEST_STANDS,
       "both guest objects know");
    again = out_new(s, 0);
    ok(out_starts(again) == BRANT_E_STATE && strstr(why, "resolve"),
       "an unanswered guest is not handed over again before it is resolved");
    back = in_new(s);
    ok(in_starts(back) == BRANT_E_STATE && strstr(why, "resolve"),
       "nor overwritten: its memory may be taken back");
    brant_incoming_free(back);
    ok(brant_guest_reclaim(s->guest, NULL) == BRANT_E_STATE &&
           brant_guest_runs_here(s->guest, NULL) == BRANT_E_STATE &&
           brant_guest_give_up(s->guest, NULL) == BRANT_E_STATE,
       "nor is there another way round the decision");
    s->resume_fails = true;
    ok(brant_outgoing_resolve(out, BRANT_RESOLVE_RESUME, NULL) == BRANT_E_VMM &&
           state_of(s) == BRANT_GUEST_UNANSWERED,
       "a resume that fails leaves it to be resolved");
    s->resume_fails = false;
    MUST(brant_outgoing_resolve(out, BRANT_RESOLVE_RESUME, &e));
    ok(s->runs && state_of(s) == BRANT_GUEST_HERE, "resolved to resume, it runs here");
    brant_outgoing_free(out);
    brant_incoming_free(in);
    /* The destination's guest could not be started. As far as its side knows, it may be the only
     * one. */
    in = in_new(d);
    ok(in_starts(in) == BRANT_E_STATE, "a guest that could not be started is not overwritten");
    MUST(brant_guest_give_up(d->guest, &e));
    d->run_fails = false;
    brant_outgoing_free(again);
    brant_incoming_free(in);
    ok(moves(s, d), "until the VMM gives it up: then the next one arrives in its place");
    copy_free(s);
    copy_free(d);

    s = copy_new(true);
    second->run_fails = true;
    ok(migrate(s, second).source == BRANT_E_UNANSWERED && state_of(s) == BRANT_GUEST_HANDED_OVER,
       "an unanswered migration that is freed leaves the guest handed over");
    MUST(brant_guest_reclaim(s->guest, &e));
    set_runs(s, true);
    MUST(brant_guest_give_up(second->guest, &e));
    second->run_fails = false;
    ok(moves(s, second), "to be taken back by reclaim alone");
    copy_free(s);
    copy_free(second);

    s = copy_new(true);
    d = copy_new(false);
    d->run_fails = true;
    out = out_new(s, 0);
    in = in_new(d);
    both_start(out, in);
    out_ends(out);
    MUST(brant_outgoing_resolve(out, BRANT_RESOLVE_DESTROY, &e));
    again = out_new(s, 0);
    ok(state_of(s) == BRANT_GUEST_GIVEN_UP && out_starts(again) == BRANT_E_STATE &&
           strstr(why, "given up") && !s->runs,
       "resolved to destroy, it never leaves and never runs");
    brant_outgoing_free(again);
    brant_outgoing_free(out);
    brant_incoming_free(in);
    copy_free(s);
    copy_free(d);
}

static void incoming_into_what_is_here(void)
{
    struct copy *s = copy_new(true), *d = copy_new(false), *other = copy_new(false);
    brant_incoming *in = in_new(d), *second = in_new(d);
    brant_outgoing *out;
    int pair[2];

    pair_new(pair);
    MUST(brant_incoming_start_fd(in, pair[1], &e));
    ok(in_starts(second) == BRANT_E_BUSY && strstr(why, "incoming"),
       "a guest that is being filled takes no second incoming migration");
    out = out_new(d, 0);
    ok(out_starts(out) == BRANT_E_BUSY && strstr(why, "incoming"),
       "and none leaves meanwhile");
    ok(brant_guest_runs_here(d->guest, NULL) == BRANT_E_BUSY, "nor does it run meanwhile");
    brant_outgoing_free(out);
    out = out_new(s, 0);
    MUST(brant_outgoing_start_fd(out, pair[0], &e));
    ok(out_ends(out) == 0 && in_ends(in) == 0 && d->runs, "the first one arrives");
    brant_outgoing_free(out);
    brant_incoming_free(in);
    /* Another guest on the same host. */
    set_runs(d, false);
    memset(d->host, 9, BYTES);
    ok(in_starts(second) == BRANT_E_STATE && strstr(why, "runs here") && d->host[100] == 9 &&
           d->started == 1,
       "a guest that runs here is not overwritten, and not run again");
    brant_incoming_free(second);

    second = in_new(other);
    MUST(brant_guest_runs_here(other->guest, &e));
    ok(in_starts(second) == BRANT_E_STATE, "nor one that runs here by the VMM's word");
    brant_incoming_free(second);
    copy_free(s);
    copy_free(d);
    copy_free(other);

    /* A source that kept its guest. */
    s = copy_new(true);
    d = copy_new(false);
    d->load_fails = true;
    ok(migrate(s, d).source == BRANT_E_REFUSED && s->runs, "a source whose migration failed runs");
    in = in_new(s);
    ok(in_starts(in) == BRANT_E_STATE, "and is not overwritten");
    brant_incoming_free(in);
    d->load_fails = false;
    ok(state_of(d) == BRANT_GUEST_EMPTY && moves(s, d),
       "its destination, where nothing ran, takes the next one");
    copy_free(s);
    copy_free(d);
}

static void two_at_once(void)
{
    struct copy *s = copy_new(true), *d = copy_new(false);
    brant_tracker *other;
    brant_outgoing *out = out_new(s, 0), *second;
    brant_incoming *in = in_new(d), *beside;
    brant_params params = limited(0);
    sem_t in_save, go;

    sem_init(&in_save, 0, 0);
    sem_init(&go, 0, 0);
    s->in_save = &in_save;
    s->save_goes_on = &go;
    MUST(brant_tracker_new(s->guest, NULL, &other, &e));
    MUST(brant_outgoing_new(other, &params, &second, &e));
    beside = in_new(s);
    both_start(out, in);
    wait_for(&in_save);
    ok(out_starts(second) == BRANT_E_BUSY && strstr(why, "outgoing"),
       "a second outgoing migration through another tracker is refused while the first goes on");
    ok(in_starts(beside) == BRANT_E_BUSY && strstr(why, "outgoing"),
       "so is an incoming one beside it");
    ok(brant_guest_reclaim(s->guest, NULL) == BRANT_E_BUSY &&
           brant_guest_give_up(s->guest, NULL) == BRANT_E_BUSY &&
           brant_guest_runs_here(s->guest, NULL) == BRANT_E_BUSY &&
           state_of(s) == BRANT_GUEST_PAUSED,
       "and every word about a guest that is paused for it");
    s->in_save = NULL;
    sem_post(&go);
    ok(out_ends(out) == 0 && in_ends(in) == 0 && d->started == 1, "the first goes on as if alone");
    brant_outgoing_free(out);
    brant_outgoing_free(second);
    brant_incoming_free(in);
    brant_incoming_free(beside);
    brant_tracker_free(other);
    copy_free(s);
    copy_free(d);
    sem_destroy(&in_save);
    sem_destroy(&go);
}

enum { HOPS = 12 };

static void hops(void)
{
    struct copy *hosts[3] = { copy_new(true), copy_new(false), copy_new(false) };
    int good = 0, at = 0;

    for (int hop = 0; hop < HOPS; hop++) {
        /* To another host, back, and on to the next: 0 1 0 2 0 1 and so on. */
        int to = at ? 0 : 1 + hop / 2 % 2;

        hosts[at]->host[hop * 4096] = (char)hop;
        good += moves(hosts[at], hosts[to]);
        at = to;
    }
    equal(good, HOPS, "a guest moves to and fro between the same guest objects, %d times", HOPS);
    for (int i = 0; i < 3; i++)
        copy_free(hosts[i]);
}

static void overwritten(void)
{
    struct copy *s = copy_new(true), *d = copy_new(false), *third = copy_new(false);
    brant_outgoing *late;

    ok(moves(s, d), "a guest moves");
    s->load_fails = true;
    set_runs(d, false);
    set_runs(third, true);
    memset(third->host, 3, BYTES);
    ok(migrate(third, s).source == BRANT_E_REFUSED && third->runs,
       "another one that comes in its place is refused when its memory has arrived");
    ok(brant_guest_reclaim(s->guest, NULL) == BRANT_E_STATE && state_of(s) == BRANT_GUEST_GIVEN_UP,
       "what it overwrote is not taken back, and counts as given up");
    s->load_fails = false;
    ok(moves(third, s), "a whole one may still arrive");
    MUST(brant_guest_give_up(third->guest, &e));
    ok(state_of(third) == BRANT_GUEST_GIVEN_UP, "a guest that was handed over can be given up");
    late = out_new(third, patience(LIMIT_MS));
    ok(out_starts(late) == BRANT_E_STATE, "then none leaves");
    brant_outgoing_free(late);
    ok(brant_guest_reclaim(third->guest, NULL) == 0 && state_of(third) == BRANT_GUEST_HERE,
       "and it can be reclaimed");
    copy_free(s);
    copy_free(d);
    copy_free(third);
}

int main(void)
{
    plan(41);
    handed_over();
    unanswered();
    incoming_into_what_is_here();
    two_at_once();
    hops();
    overwritten();
    equal(atomic_load(&most), 1, "never did two copies run");
    return done();
}
