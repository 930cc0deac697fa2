/*
 * Who has a guest: from the header alone, whatever is tried with a guest object, one copy of the guest
 * runs or none, and brant says why it refuses. Guests are memory of this process, and a copy "runs"
 * when its VMM was told so. Not about what arrives (switchover.c), nor about kicks (kick.c).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>

#include <brant.h>

#include "tap.h"

enum { PAGES = 64, BYTES = PAGES * 4096 };
/* The hand-over's limit where it is waited out. brant adds a second. */
enum { LIMIT_MS = 1200 };

static void must_at(int32_t code, brant_error *e, const char *what, int line)
{
    if (code)
        bail("line %d: %s: %s: %s", line, what, brant_error_name(code), brant_error_message(e));
}
#define MUST(call)                              \
    do {                                        \
        brant_error *e = NULL;                  \
        int32_t must_code = (call);             \
        must_at(must_code, e, #call, __LINE__); \
    } while (0)

/* ---- copies of a guest, and their VMM ---- */

/* How many copies run, and the most that ever did. */
static atomic_int running, most;

struct copy {
    brant_guest *guest;
    brant_tracker *tracker;
    char *host;
    atomic_bool runs;
    atomic_int pauses, resumes, started;
    bool run_fails, resume_fails, load_fails;
    /* Its VMM is slow to hear of a state: see op_event. */
    bool slow_to_hear;
    /* `release` takes so long. */
    atomic_int release_ms;
    /* Waited for inside `save`, if there. */
    sem_t *in_save, *save_goes_on;
};

static void set_runs(struct copy *copy, bool runs)
{
    int now, before;

    if (atomic_exchange(&copy->runs, runs) == runs)
        return;
    now = atomic_fetch_add(&running, runs ? 1 : -1) + (runs ? 1 : -1);
    before = atomic_load(&most);
    while (now > before && !atomic_compare_exchange_weak(&most, &before, now))
        ;
}

static void wait_ms(int ms)
{
    struct timespec t = { ms / 1000, ms % 1000 * 1000000l };

    while (nanosleep(&t, &t) && errno == EINTR)
        ;
}

static void wait_for(sem_t *sem)
{
    while (sem_wait(sem))
        ;
}

static int32_t op_pause(void *opaque, brant_reason *reason)
{
    struct copy *copy = opaque;

    (void)reason;
    copy->pauses++;
    set_runs(copy, false);
    return 0;
}

static int32_t op_resume(void *opaque, brant_reason *reason)
{
    struct copy *copy = opaque;

    copy->resumes++;
    if (copy->resume_fails) {
        brant_reason_set(reason, "it does not want to");
        return -1;
    }
    set_runs(copy, true);
    return 0;
}

static int32_t op_save(void *opaque, brant_saver *saver, brant_reason *reason)
{
    struct copy *copy = opaque;

    (void)reason;
    if (copy->in_save) {
        sem_post(copy->in_save);
        wait_for(copy->save_goes_on);
    }
    return brant_saver_put(saver, "device", 0, 1, "state", 5, NULL);
}

static int32_t op_load(void *opaque, const brant_state_blob *blob, brant_reason *reason)
{
    struct copy *copy = opaque;

    (void)blob;
    brant_reason_set(reason, "not this device");
    return copy->load_fails ? -1 : 0;
}

static int32_t op_release(void *opaque, brant_reason *reason)
{
    struct copy *copy = opaque;

    (void)reason;
    wait_ms(atomic_load(&copy->release_ms));
    return 0;
}

static int32_t op_run(void *opaque, brant_reason *reason)
{
    struct copy *copy = opaque;

    copy->started++;
    if (copy->run_fails) {
        brant_reason_set(reason, "no vCPUs today");
        return -1;
    }
    set_runs(copy, true);
    return 0;
}

/* The VMM is slow to hear of a state: at the destination, that the hand-over has come; at the source,
 * that it is about to be sent. */
static void op_event(void *opaque, const brant_event *event)
{
    struct copy *copy = opaque;

    if (copy->slow_to_hear && event->kind == BRANT_EVENT_STATE &&
        (!strcmp(event->message, "starting") || !strcmp(event->message, "handing over")))
        wait_ms((int)patience(LIMIT_MS) + 100);
}

static const brant_ops ops = { .size = sizeof ops, .pause = op_pause, .resume = op_resume,
                               .save = op_save, .load = op_load, .release = op_release, .run = op_run,
                               .event = op_event };

static struct copy *copy_new(bool runs)
{
    struct copy *copy = calloc(1, sizeof *copy);
    brant_ram_block block = { .size = sizeof block, .name = "ram", .length = BYTES, .fd = -1 };

    if (!copy)
        bail("out of memory");
    copy->host = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (copy->host == MAP_FAILED)
        bail("mmap: %s", strerror(errno));
    memset(copy->host, runs ? 7 : 0, BYTES);
    block.host = copy->host;
    MUST(brant_guest_new(&ops, copy, &copy->guest, &e));
    MUST(brant_guest_add_block(copy->guest, &block, NULL, &e));
    MUST(brant_tracker_new(copy->guest, NULL, &copy->tracker, &e));
    set_runs(copy, runs);
    return copy;
}

static void copy_free(struct copy *copy)
{
    set_runs(copy, false);
    brant_tracker_free(copy->tracker);
    brant_guest_free(copy->guest);
    munmap(copy->host, BYTES);
    free(copy);
}

static uint32_t state_of(const struct copy *copy)
{
    uint32_t state = UINT32_MAX;

    MUST(brant_guest_get_state(copy->guest, &state, &e));
    return state;
}

/* ---- migrations ---- */

static brant_params limited(uint64_t ms)
{
    return (brant_params){ .size = sizeof(brant_params), .handover_timeout_ms = ms,
                           .switchover_bandwidth = 1 << 30 };
}

static brant_outgoing *out_new(struct copy *from, uint64_t limit_ms)
{
    brant_params params = limited(limit_ms);
    brant_outgoing *out;

    MUST(brant_outgoing_new(from->tracker, &params, &out, &e));
    return out;
}

static brant_incoming *in_new(struct copy *to)
{
    brant_params params = limited(0);
    brant_incoming *in;

    MUST(brant_incoming_new(to->guest, &params, &in, &e));
    return in;
}

static void pair_new(int pair[2])
{
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
        bail("socketpair: %s", strerror(errno));
}

/* What starting it comes to: its code and, in `why`, its message. The peer is silent or gone. */
static char why[512];

static int32_t told(int32_t code, brant_error *error)
{
    snprintf(why, sizeof why, "%s", brant_error_message(error));
    brant_error_free(error);
    return code;
}

static int32_t out_starts(brant_outgoing *out)
{
    brant_error *error = NULL;
    int32_t code;
    int pair[2];

    pair_new(pair);
    code = brant_outgoing_start_fd(out, pair[0], &error);
    close(pair[1]);
    return told(code, error);
}

static int32_t in_starts(brant_incoming *in)
{
    brant_error *error = NULL;
    int32_t code;
    int pair[2];

    pair_new(pair);
    code = brant_incoming_start_fd(in, pair[1], &error);
    close(pair[0]);
    return told(code, error);
}

static int32_t out_ends(brant_outgoing *out)
{
    brant_error *error = NULL;
    int32_t code = brant_outgoing_wait(out, patience(60000), &error);

    return told(code, error);
}

static int32_t in_ends(brant_incoming *in)
{
    brant_error *error = NULL;
    int32_t code = brant_incoming_wait(in, patience(60000), &error);

    return told(code, error);
}

static uint32_t in_state(const brant_incoming *in)
{
    brant_stats stats = { .size = sizeof stats };

    MUST(brant_incoming_get_stats(in, &stats, &e));
    return stats.state;
}

static uint32_t out_state(const brant_outgoing *out)
{
    brant_stats stats = { .size = sizeof stats };

    MUST(brant_outgoing_get_stats(out, &stats, &e));
    return stats.state;
}

/* A whole migration: what it comes to at both sides. */
struct result { int32_t source, destination; };

static struct result migrate(struct copy *from, struct copy *to)
{
    brant_outgoing *out = out_new(from, 0);
    brant_incoming *in = in_new(to);
    struct result result;
    int pair[2];

    pair_new(pair);
    MUST(brant_incoming_start_fd(in, pair[1], &e));
    MUST(brant_outgoing_start_fd(out, pair[0], &e));
    result.source = out_ends(out);
    result.destination = in_ends(in);
    brant_outgoing_free(out);
    brant_incoming_free(in);
    return result;
}

static bool moves(struct copy *from, struct copy *to)
{
    struct result result = migrate(from, to);

    return result.source == 0 && result.destination == 0 && !from->runs && to->runs &&
           memcmp(from->host, to->host, BYTES) == 0;
}

/* ---- a relay that holds a record ---- */

enum { READY = 15, HANDOVER = 16, RUNNING = 17 };

struct relay {
    unsigned hold;
    int source, destination; /* our ends */
    sem_t reached, go;
    bool lost; /* what is held never comes */
    pthread_t there, back;
};

static bool all_sent(int fd, const char *bytes, size_t n)
{
    while (n > 0) {
        ssize_t sent = send(fd, bytes, n, MSG_NOSIGNAL);

        if (sent <= 0)
            return false;
        bytes += sent;
        n -= (size_t)sent;
    }
    return true;
}

static void pass_on(struct relay *relay, int from, int to)
{
    static __thread char record[32 + (1 << 22)];
    uint32_t payload;
    uint16_t type;

    while (recv(from, record, 32, MSG_WAITALL) == 32) {
        memcpy(&type, record + 4, sizeof type);
        memcpy(&payload, record + 24, sizeof payload);
        if (payload > sizeof record - 32 ||
            (payload && recv(from, record + 32, payload, MSG_WAITALL) != (ssize_t)payload))
            break;
        if (type == relay->hold) {
            sem_post(&relay->reached);
            wait_for(&relay->go);
            if (relay->lost)
                continue;
        }
        /* A side that is gone does not end the other's words. */
        if (!all_sent(to, record, 32 + payload))
            continue;
    }
    shutdown(to, SHUT_WR);
}

static void *pass_there(void *arg)
{
    struct relay *relay = arg;

    pass_on(relay, relay->source, relay->destination);
    return NULL;
}

static void *pass_back(void *arg)
{
    struct relay *relay = arg;

    pass_on(relay, relay->destination, relay->source);
    return NULL;
}

static void relay_begin(struct relay *relay, unsigned hold, brant_outgoing *out, brant_incoming *in)
{
    int source[2], destination[2];

    *relay = (struct relay){ .hold = hold };
    sem_init(&relay->reached, 0, 0);
    sem_init(&relay->go, 0, 0);
    pair_new(source);
    pair_new(destination);
    relay->source = source[1];
    relay->destination = destination[1];
    if (pthread_create(&relay->there, NULL, pass_there, relay) ||
        pthread_create(&relay->back, NULL, pass_back, relay))
        bail("no thread");
    MUST(brant_incoming_start_fd(in, destination[0], &e));
    MUST(brant_outgoing_start_fd(out, source[0], &e));
}

static void relay_end(struct relay *relay)
{
    shutdown(relay->source, SHUT_RDWR);
    shutdown(relay->destination, SHUT_RDWR);
    pthread_join(relay->there, NULL);
    pthread_join(relay->back, NULL);
    close(relay->source);
    close(relay->destination);
    sem_destroy(&relay->reached);
    sem_destroy(&relay->go);
}

/* ---- the promises ---- */

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
    /* The other host has burnt down. */
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
    int pair[2];

    d->run_fails = true;
    pair_new(pair);
    MUST(brant_incoming_start_fd(in, pair[1], &e));
    MUST(brant_outgoing_start_fd(out, pair[0], &e));
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
    /* The destination's guest could not be started, and may be the only one, for all that
     * its side knows. */
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
    pair_new(pair);
    MUST(brant_incoming_start_fd(in, pair[1], &e));
    MUST(brant_outgoing_start_fd(out, pair[0], &e));
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
    int pair[2];

    sem_init(&in_save, 0, 0);
    sem_init(&go, 0, 0);
    s->in_save = &in_save;
    s->save_goes_on = &go;
    MUST(brant_tracker_new(s->guest, NULL, &other, &e));
    MUST(brant_outgoing_new(other, &params, &second, &e));
    beside = in_new(s);
    pair_new(pair);
    MUST(brant_incoming_start_fd(in, pair[1], &e));
    MUST(brant_outgoing_start_fd(out, pair[0], &e));
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
        /* There, back, and on: 0 1 0 2 0 1 and so on. */
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

/* ---- late hand-overs ---- */

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

/* The destination's clock begins before the source's: it may be over when the source's is not. */
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
    /* Its own clock, or the destination's word that it waits no longer. */
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
    plan(62);
    handed_over();
    unanswered();
    incoming_into_what_is_here();
    two_at_once();
    hops();
    overwritten();
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
