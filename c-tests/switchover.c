/*
 * Migrations of a real guest that fail: cancelled at any moment, the peer gone at any moment,
 * refused by one side's VMM, too slow, or handed over without an answer. Each time the guest goes
 * on where it should and nowhere else, finds all of its memory as it wrote it, and can be migrated
 * afterwards with the same tracker. The same guest goes from case to case, so damage by one case
 * shows in the next.
 */
#include "support.h"

#include <poll.h>
#include <semaphore.h>

static const struct tracking trackings[] = {
    { "get-and-clear", BRANT_KVM_GET_AND_CLEAR, BRANT_CLEAR_CHUNKED, 0 },
    { "initially-set", BRANT_KVM_INITIALLY_SET, BRANT_CLEAR_CHUNKED, 8 },
};
static const struct tracking *how;

static const struct mv_config config = {
    .vcpus = 2,
    .nregions = 2,
    .regions = { { .bytes = 16 * MIB + 3 * PAGE }, { .bytes = 8 * MIB + PAGE, .memfd = true } },
    .workload = GV_RANDOM,
    .rate = 30000,
    .fill_percent = 70,
};

/* The guest, where it is now. */
static struct vm *current;

/* The VMM itself tracks before, during and after the migration, for a copy of its own. */
static bool vmm_tracks;
static struct copy backup;

static struct vm *destination(void)
{
    struct mv_config c = config;
    struct vm *vm;

    c.incoming = true;
    vm = vm_new(&c);
    vm_track(vm, how);
    return vm;
}

static void fresh_guest(void)
{
    struct mv_config c = config;

    vm_free(current);
    c.seed = random_below(UINT32_MAX);
    current = vm_new(&c);
    vm_track(current, how);
    vm_start(current);
    vm_writes(current, 1000);
}

/* ---- what goes wrong in an operation ---- */

enum trouble { CANCEL_INSIDE, CANCEL_OUTSIDE, FAIL, SLOW };

struct plot {
    struct journey j;
    enum op op;
    enum trouble trouble;
    uint64_t delay_us;
    const char *reason, *state;
    sem_t reached;
    int32_t cancelled, wait_inside, free_inside;
};

static int32_t at_operation(struct vm *vm, enum op op, brant_reason *reason)
{
    struct plot *plot = vm->at_arg;

    if (op != plot->op)
        return 0;
    switch (plot->trouble) {
    case CANCEL_INSIDE:
        plot->wait_inside = brant_outgoing_wait(plot->j.out, BRANT_NO_LIMIT, NULL);
        plot->free_inside = brant_outgoing_free(plot->j.out);
        plot->cancelled = brant_outgoing_cancel(plot->j.out, NULL);
        return 0;
    case CANCEL_OUTSIDE:
        sem_post(&plot->reached);
        sleep_us(plot->delay_us);
        return 0;
    case FAIL:
        brant_reason_set(reason, plot->reason);
        return -1;
    case SLOW:
        sleep_us(plot->delay_us);
        return 0;
    }
    return 0;
}

static void cancel_at_state(struct vm *vm, const brant_event *event)
{
    struct plot *plot = vm->at_arg;

    if (event->kind == BRANT_EVENT_STATE && strcmp(event->message, plot->state) == 0) {
        sem_post(&plot->reached);
        plot->cancelled = brant_outgoing_cancel(plot->j.out, NULL);
    }
}

static void *cancel_outside(void *arg)
{
    struct plot *plot = arg;

    while (sem_wait(&plot->reached))
        ;
    plot->cancelled = brant_outgoing_cancel(plot->j.out, NULL);
    return NULL;
}

/* ---- a man in the middle ---- */

enum { STATE_END = 11, READY = 15, HANDOVER = 16, RUNNING = 17 };

struct middle {
    int source, destination; /* our ends */
    /* The record from which on nothing is passed on. Then both connections are closed or, if
     * `silent`, stay open without a record. */
    unsigned stop_at;
    /* The same, after this many bytes of the source. */
    uint64_t stop_after;
    bool silent;
    atomic_bool seen;
    pthread_t there, back;
};

static bool move(int in, int out, size_t n)
{
    static __thread char buffer[1 << 16];

    while (n > 0) {
        ssize_t got = recv(in, buffer, n < sizeof buffer ? n : sizeof buffer, 0);

        if (got <= 0)
            return false;
        n -= (size_t)got;
        for (char *at = buffer; out >= 0 && got > 0;) {
            ssize_t put = send(out, at, (size_t)got, MSG_NOSIGNAL);

            if (put <= 0)
                return false;
            at += put;
            got -= put;
        }
    }
    return true;
}

static void pass_on(struct middle *m, int in, int out, uint64_t bytes)
{
    struct {
        uint32_t magic;
        uint16_t type, flags;
        uint32_t block, count;
        uint64_t first_page;
        uint32_t payload, checksum;
    } header;

    for (;;) {
        if (recv(in, &header, sizeof header, MSG_WAITALL) != sizeof header)
            break;
        if (header.magic != 0x544e5242)
            bail("what the two sides say is no record");
        if (header.type == m->stop_at) {
            atomic_store(&m->seen, true);
            while (m->silent && move(in, -1, 1)) /* It is heard, and not answered. */
                ;
            break;
        }
        if (bytes < sizeof header + header.payload) {
            atomic_store(&m->seen, true);
            send(out, &header, sizeof header, MSG_NOSIGNAL);
            move(in, out, header.payload / 2);
            break;
        }
        bytes -= sizeof header + header.payload;
        if (send(out, &header, sizeof header, MSG_NOSIGNAL) != sizeof header ||
            !move(in, out, header.payload))
            break;
    }
    shutdown(m->source, SHUT_RDWR);
    shutdown(m->destination, SHUT_RDWR);
}

static void *pass_there(void *arg)
{
    struct middle *m = arg;

    pass_on(m, m->source, m->destination, m->stop_after ? m->stop_after : UINT64_MAX);
    return NULL;
}

static void *pass_back(void *arg)
{
    struct middle *m = arg;

    pass_on(m, m->destination, m->source, UINT64_MAX);
    return NULL;
}

static void middle_begin(struct middle *m, struct journey *j)
{
    int source[2], destination[2];

    make_socketpair(source);
    make_socketpair(destination);
    m->source = source[1];
    m->destination = destination[1];
    if (pthread_create(&m->there, NULL, pass_there, m) ||
        pthread_create(&m->back, NULL, pass_back, m))
        bail("no thread");
    journey_begin_fds(j, source[0], destination[0]);
}

static void middle_end(struct middle *m)
{
    shutdown(m->source, SHUT_RDWR);
    shutdown(m->destination, SHUT_RDWR);
    pthread_join(m->there, NULL);
    pthread_join(m->back, NULL);
    close(m->source);
    close(m->destination);
}

/* ---- what must hold afterwards ---- */

enum { PROMISES = 3 };

static void say(const struct journey *j)
{
    note("source: %s: %s", brant_error_name(j->source.code), j->source.why);
    note("destination: %s: %s", brant_error_name(j->destination.code), j->destination.why);
}

/* The second migration of a guest whose first one failed. */
static void migrates_now(const char *name)
{
    struct vm *to = destination();
    struct journey j;
    bool good;

    journey_new(&j, current, to, NULL);
    journey_begin(&j, false);
    journey_end(&j, false);
    good = j.source.code == 0 && j.destination.code == 0 && journey_equal(&j) && vm_runs_clean(to);
    if (!ok(good, "%s, %s: it migrates afterwards, page by page", how->name, name))
        say(&j);
    if (j.source.code == 0) {
        vm_free(current);
        current = to;
    } else {
        vm_free(to);
    }
}

/* Whether the VMM's copy becomes equal to the guest by its pending pages, whatever the migration
 * took meanwhile. */
static bool completes(struct vm *from)
{
    uint64_t before = backup.taken, differs;

    vm_pause(from);
    vm_sync(from, BRANT_SYNC_STOPPED);
    copy_drain(&backup);
    differs = copy_differs(&backup);
    must(brant_tracker_stop(atomic_load(&from->tracker), &e));
    vm_resume(from);
    note("%" PRIu64 " of %" PRIu64 " pages were pending, %" PRIu64 " are missing", backup.taken - before,
         from->pages, differs);
    copy_free(&backup);
    return backup.taken > before && differs == 0;
}

/* The source kept the guest: it runs here, never ran there, and can be migrated. */
static void kept(struct plot *plot, const char *name, bool failed_as_expected)
{
    struct vm *from = plot->j.from, *to = plot->j.to;

    if (!ok(failed_as_expected, "%s, %s: the migration ends as it should", how->name, name))
        say(&plot->j);
    from->at = NULL;
    brant_outgoing_free(plot->j.out);
    ok(to->calls[OP_RUN] == 0 && from->calls[OP_RESUME] == from->calls[OP_PAUSE] &&
           vm_runs_clean(from),
       "%s, %s: the guest runs on here, and only here", how->name, name);
    if (vmm_tracks)
        ok(completes(from), "%s, %s: the VMM has what was pending for it and all written since",
           how->name, name);
    vm_free(to);
    migrates_now(name);
}

/* The source handed the guest over all the same. As many promises as kept(). */
static void gave(struct plot *plot, const char *name)
{
    if (!ok(plot->cancelled == BRANT_E_STATE && plot->j.destination.code == 0,
            "%s, %s: a cancel that came too late says so", how->name, name))
        say(&plot->j);
    plot->j.from->at = NULL;
    brant_outgoing_free(plot->j.out);
    ok(journey_equal(&plot->j) && plot->j.from->calls[OP_RESUME] < plot->j.from->calls[OP_PAUSE] &&
           vm_runs_clean(plot->j.to),
       "%s, %s: the guest runs there, and only there", how->name, name);
    vm_free(current);
    current = plot->j.to;
    migrates_now(name);
}

static struct plot *plot_new(const brant_params *params)
{
    struct plot *plot = must_alloc(1, sizeof *plot);

    sem_init(&plot->reached, 0, 0);
    plot->op = OP_COUNT;
    if (vmm_tracks) {
        backup = copy_new(current);
        must(brant_tracker_start(atomic_load(&current->tracker), BRANT_START_ALL, &e));
        copy_drain(&backup);
        vm_writes(current, 200);
        vm_sync(current, BRANT_SYNC_RUNNING);
    }
    journey_new(&plot->j, current, destination(), params);
    for (int op = 0; op < OP_COUNT; op++)
        atomic_store(&current->calls[op], 0);
    return plot;
}

static void plot_free(struct plot *plot)
{
    sem_destroy(&plot->reached);
    free(plot);
}

/* ---- the cases ---- */

static void cancelled_inside(enum op op, const char *name)
{
    struct plot *plot = plot_new(NULL);

    plot->op = op;
    plot->trouble = CANCEL_INSIDE;
    current->at = at_operation;
    current->at_arg = plot;
    journey_begin(&plot->j, false);
    journey_end(&plot->j, true);
    /* At once: no later operation is called. */
    kept(plot, name,
         plot->j.source.code == BRANT_E_CANCELLED && plot->cancelled == 0 &&
             plot->wait_inside == BRANT_E_CALLBACK && plot->free_inside == BRANT_E_CALLBACK &&
             current->calls[OP_SAVE] == (op != OP_PAUSE) &&
             current->calls[OP_RELEASE] == (op == OP_RELEASE));
    plot_free(plot);
}

/* At the very beginning of each state, which no operation can hit. The last of them are on both
 * sides of the point of no return, before and after which a cancel means the opposite. */
static void cancelled_at(const char *state, bool too_late)
{
    struct plot *plot = plot_new(NULL);
    char name[64];

    snprintf(name, sizeof name, "a cancel at `%s`", state);
    plot->state = state;
    current->on_event = cancel_at_state;
    current->at_arg = plot;
    journey_begin(&plot->j, false);
    journey_end(&plot->j, true);
    current->on_event = NULL;
    if (sem_trywait(&plot->reached))
        note("the migration never was `%s`", state);
    if (too_late && plot->j.source.code == 0)
        gave(plot, name);
    else
        kept(plot, name, !too_late && plot->j.source.code == BRANT_E_CANCELLED && plot->cancelled == 0);
    plot_free(plot);
}

static void cancelled_outside(enum op op, const char *name)
{
    struct plot *plot = plot_new(NULL);
    pthread_t thread;

    plot->op = op;
    plot->trouble = CANCEL_OUTSIDE;
    plot->delay_us = random_below(3) * random_below(1000);
    current->at = at_operation;
    current->at_arg = plot;
    if (pthread_create(&thread, NULL, cancel_outside, plot))
        bail("no thread");
    journey_begin(&plot->j, false);
    journey_end(&plot->j, true);
    sem_post(&plot->reached);
    pthread_join(thread, NULL);
    if (plot->j.source.code == 0)
        gave(plot, name);
    else
        kept(plot, name, plot->j.source.code == BRANT_E_CANCELLED && plot->cancelled == 0);
    plot_free(plot);
}

static void cancelled_any_time(uint64_t longest_us)
{
    struct plot *plot = plot_new(NULL);
    uint64_t delay = random_below(longest_us), begun, took;

    journey_begin(&plot->j, random_below(2));
    sleep_us(delay);
    begun = now_us();
    plot->cancelled = brant_outgoing_cancel(plot->j.out, NULL);
    took = now_us() - begun;
    /* It waits for a connection without a limit, and there may never have been one. */
    if (brant_incoming_wait(plot->j.in, 3000, NULL) == BRANT_E_PENDING)
        brant_incoming_cancel(plot->j.in, NULL);
    journey_end(&plot->j, true);
    note("cancelled after %" PRIu64 " us in state %u, took %" PRIu64 " us", delay,
         plot->j.stats.state, took);
    if (plot->j.source.code == 0)
        gave(plot, "a cancel at any time");
    else
        kept(plot, "a cancel at any time",
             plot->j.source.code == BRANT_E_CANCELLED && plot->cancelled == 0 &&
                 plot->j.stats.state == BRANT_SOURCE_FAILED && took < 2000000);
    plot_free(plot);
}

static void peer_gone(unsigned stop_at, uint64_t stop_after, const char *name)
{
    struct plot *plot = plot_new(NULL);
    struct middle middle = { .stop_at = stop_at, .stop_after = stop_after };

    middle_begin(&middle, &plot->j);
    journey_end(&plot->j, true);
    middle_end(&middle);
    kept(plot, name,
         plot->j.source.code == BRANT_E_PEER_GONE && plot->j.destination.code == BRANT_E_PEER_GONE &&
             middle.seen);
    plot_free(plot);
}

/* Refused by the source's own VMM, or by the destination's, whose reason is sent to the source. */
static void refused(bool there, enum op op, const char *reason, const char *name)
{
    struct plot *plot = plot_new(NULL);
    struct vm *vm = there ? plot->j.to : current;

    plot->op = op;
    plot->trouble = FAIL;
    plot->reason = reason;
    vm->at = at_operation;
    vm->at_arg = plot;
    journey_begin(&plot->j, false);
    journey_end(&plot->j, true);
    kept(plot, name,
         plot->j.source.code == (there ? BRANT_E_REFUSED : BRANT_E_VMM) &&
             plot->j.destination.code != 0 && strstr(plot->j.source.why, reason) &&
             strstr(plot->j.destination.why, reason));
    plot_free(plot);
}

static void too_slow(void)
{
    brant_params params = { .size = sizeof params, .switchover_timeout_ms = 150 };
    struct plot *plot = plot_new(&params);

    plot->op = OP_LOAD;
    plot->trouble = SLOW;
    plot->delay_us = 250000;
    plot->j.to->at = at_operation;
    plot->j.to->at_arg = plot;
    journey_begin(&plot->j, false);
    journey_end(&plot->j, true);
    kept(plot, "a destination that loads for too long", plot->j.source.code == BRANT_E_TIMEOUT);
    plot_free(plot);
}

/* Whether a guest that was handed over without an answer stands still here, and its state says so.
 */
static bool stands_still(struct plot *plot)
{
    struct vm *from = plot->j.from;
    uint64_t written = vm_written(from);

    sleep_us(20000);
    return plot->j.source.code == BRANT_E_UNANSWERED &&
           plot->j.stats.state == BRANT_SOURCE_UNANSWERED && from->calls[OP_RESUME] == 0 &&
           vm_written(from) == written && written == from->frozen.writes &&
           brant_outgoing_cancel(plot->j.out, NULL) == BRANT_E_STATE;
}

/* The hand-over is lost. The destination never runs, which the VMM knows, and so it resumes the
 * guest. */
static void unanswered_resumed(bool silent, const char *name)
{
    brant_params params = { .size = sizeof params, .handover_timeout_ms = patience(1500),
                            .switchover_timeout_ms = patience(10000) };
    struct plot *plot = plot_new(&params);
    struct middle middle = { .stop_at = HANDOVER, .silent = silent };
    bool good;

    middle_begin(&middle, &plot->j);
    brant_outgoing_wait(plot->j.out, patience(60000), NULL);
    middle_end(&middle);
    journey_end(&plot->j, true);
    good = stands_still(plot) && plot->j.destination.code != 0;
    must(brant_outgoing_resolve(plot->j.out, BRANT_RESOLVE_RESUME, &e));
    good = good && brant_outgoing_resolve(plot->j.out, BRANT_RESOLVE_RESUME, NULL) == BRANT_E_STATE &&
           !brant_outgoing_get_stats(plot->j.out, &plot->j.stats, NULL) &&
           plot->j.stats.state == BRANT_SOURCE_TAKEN_BACK;
    kept(plot, name, good);
    plot_free(plot);
}

static void unstarted_resumed(void)
{
    struct plot *plot = plot_new(NULL);
    bool good;

    plot->op = OP_RUN;
    plot->trouble = FAIL;
    plot->reason = "the lamp is out";
    plot->j.to->at = at_operation;
    plot->j.to->at_arg = plot;
    journey_begin(&plot->j, false);
    journey_end(&plot->j, true);
    good = stands_still(plot) && strstr(plot->j.source.why, plot->reason) &&
           strstr(plot->j.destination.why, plot->reason);
    must(brant_outgoing_resolve(plot->j.out, BRANT_RESOLVE_RESUME, &e));
    /* It was told to run, and did not. */
    good = good && atomic_exchange(&plot->j.to->calls[OP_RUN], 0) == 1;
    kept(plot, "a destination whose VMM cannot run the guest", good);
    plot_free(plot);
}

/* The hand-over arrives or not, and the source's VMM gives the guest up. */
static void unanswered_destroyed(bool arrives)
{
    brant_params params = { .size = sizeof params, .handover_timeout_ms = patience(1500) };
    struct plot *plot = plot_new(&params);
    struct middle middle = { .stop_at = arrives ? RUNNING : HANDOVER };
    const char *name = arrives ? "the answer to the hand-over lost, destroyed here"
                               : "the hand-over lost, destroyed here";
    bool still;

    middle_begin(&middle, &plot->j);
    journey_end(&plot->j, true);
    middle_end(&middle);
    still = stands_still(plot);
    must(brant_outgoing_resolve(plot->j.out, BRANT_RESOLVE_DESTROY, &e));
    still = still && brant_outgoing_resolve(plot->j.out, BRANT_RESOLVE_RESUME, NULL) == BRANT_E_STATE;
    brant_outgoing_free(plot->j.out);
    if (!ok(still && current->calls[OP_RESUME] == 0, "%s, %s: the guest never runs here again",
            how->name, name))
        say(&plot->j);
    if (arrives) {
        ok(plot->j.to->calls[OP_RUN] == 1 && journey_equal(&plot->j) && vm_runs_clean(plot->j.to),
           "%s, %s: the guest runs there", how->name, name);
        vm_free(current);
        current = plot->j.to;
    } else {
        ok(plot->j.to->calls[OP_RUN] == 0 && plot->j.destination.code == BRANT_E_PEER_GONE,
           "%s, %s: the guest runs nowhere", how->name, name);
        vm_free(plot->j.to);
        fresh_guest();
    }
    migrates_now(name);
    plot_free(plot);
}

enum {
    ANY_TIMES = 6,
    CUTS = 3,
    STATES = 12,
    CASES = STATES + 6 + ANY_TIMES + CUTS + 2 + 5 + 1 + 3 + 2,
    TRACKED_CASES = CUTS + 5,
};

static void tracked_cases(void)
{
    vmm_tracks = true;
    for (int i = 0; i < CUTS; i++)
        peer_gone(0, 100 + random_below(12 * MIB), "tracked, the connection lost in the middle");
    peer_gone(READY, 0, "tracked, the connection lost with the destination ready");
    cancelled_inside(OP_PAUSE, "tracked, a cancel inside pause");
    cancelled_inside(OP_RELEASE, "tracked, a cancel inside release");
    refused(false, OP_SAVE, "the ink is dry", "tracked, a save that fails");
    unanswered_resumed(false, "tracked, the hand-over lost, resumed here");
    vmm_tracks = false;
}

static void all_cases(void)
{
    static const char *const states[STATES] = {
        "connecting", "negotiating", "copying", "pausing", "saving", "last sync",
        "sending the last pages", "awaiting ready", "releasing", "committing",
        /* Too late: */
        "handing over", "awaiting running",
    };
    uint64_t bytes = 12 * MIB;

    for (int i = 0; i < STATES; i++)
        cancelled_at(states[i], i >= STATES - 2);
    cancelled_inside(OP_PAUSE, "a cancel inside pause");
    cancelled_inside(OP_SAVE, "a cancel inside save");
    cancelled_inside(OP_RELEASE, "a cancel inside release");
    cancelled_outside(OP_PAUSE, "a cancel during pause");
    cancelled_outside(OP_SAVE, "a cancel during save");
    cancelled_outside(OP_RELEASE, "a cancel during release");
    for (int i = 0; i < ANY_TIMES; i++)
        cancelled_any_time(60000);
    for (int i = 0; i < CUTS; i++)
        peer_gone(0, 100 + random_below(bytes), "the connection lost in the middle");
    peer_gone(STATE_END, 0, "the connection lost before all state was sent");
    peer_gone(READY, 0, "the connection lost with the destination ready");
    refused(true, OP_LOAD, "there is no floppy drive", "a destination that cannot load the state");
    refused(false, OP_PAUSE, "the brakes do not work", "a pause that fails");
    refused(false, OP_SAVE, "the pencil is broken", "a save that fails");
    refused(false, OP_RELEASE, "the lock is stuck", "a release that fails");
    refused(true, OP_LOAD, "no \xe2\x82\xac left", "a refusal in other letters");
    too_slow();
    unanswered_resumed(false, "the hand-over lost, resumed here");
    unanswered_resumed(true, "the hand-over met with silence, resumed here");
    unstarted_resumed();
    unanswered_destroyed(true);
    unanswered_destroyed(false);
    tracked_cases();
}

int main(void)
{
    enum { TRACKINGS = sizeof trackings / sizeof trackings[0] };

    need_kvm();
    /* The short version: a tracker that clears by itself, and not one that lets KVM do it. */
    plan((brief() ? 1 : TRACKINGS) * (CASES * PROMISES + TRACKED_CASES * (PROMISES + 1)) + brief());
    random_begin();
    if (brief())
        skip("BRANT_SHORT", "%s: all cases", trackings[0].name);
    for (int i = brief(); i < TRACKINGS; i++) {
        how = &trackings[i];
        fresh_guest();
        all_cases();
    }
    vm_free(current);
    return done();
}
