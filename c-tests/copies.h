/*
 * Copies of a guest in this process, and migrations between them, for owner.c, late.c, aborted.c and
 * verify.c. A copy "runs" when its VMM was told so. How many copies run at once is counted.
 */
#ifndef COPIES_H
#define COPIES_H

#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <brant.h>
#include "tap.h"

enum { PAGES = 64, BYTES = PAGES * 4096 };
/* The hand-over's time limit where it runs out. brant adds a second. */
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

/* How many copies run, and the most that ever ran at once. */
static atomic_int running, most;

struct copy {
    brant_guest *guest;
    brant_tracker *tracker;
    char *host;
    atomic_bool runs;
    atomic_int pauses, resumes, started;
    bool run_fails, resume_fails, load_fails;
    /* The copy's VMM takes long to hear of a state: see op_event. */
    bool slow_to_hear;
    /* How long `release` takes. */
    atomic_int release_ms;
    /* If set, called at the end of `pause` and of `release`. */
    void (*at_pause)(struct copy *), (*at_release)(struct copy *);
    /* Events of each kind, and the last message of each. */
    atomic_int events[16];
    char messages[16][512];
    uint32_t block;
    /* If set, waited for inside `save`. */
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
    if (copy->at_pause)
        copy->at_pause(copy);
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
    if (copy->at_release)
        copy->at_release(copy);
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

/* The VMM takes long to hear of a state: at the destination, that the hand-over has come; at the
 * source, that it will be sent now. */
static void op_event(void *opaque, const brant_event *event)
{
    struct copy *copy = opaque;

    if (event->kind < sizeof copy->messages / sizeof *copy->messages) {
        snprintf(copy->messages[event->kind], sizeof *copy->messages, "%s", event->message);
        copy->events[event->kind]++;
    }
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
    MUST(brant_guest_add_block(copy->guest, &block, &copy->block, &e));
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

__attribute__((unused)) static uint32_t state_of(const struct copy *copy)
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

__attribute__((unused)) static brant_outgoing *out_new(struct copy *from, uint64_t limit_ms)
{
    brant_params params = limited(limit_ms);
    brant_outgoing *out;

    MUST(brant_outgoing_new(from->tracker, &params, &out, &e));
    return out;
}

__attribute__((unused)) static brant_incoming *in_new(struct copy *to)
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

/* The result of a start: its code and, in `why`, its message. The peer is silent or gone. */
static char why[512];

static int32_t told(int32_t code, brant_error *error)
{
    snprintf(why, sizeof why, "%s", brant_error_message(error));
    brant_error_free(error);
    return code;
}

__attribute__((unused)) static int32_t out_starts(brant_outgoing *out)
{
    brant_error *error = NULL;
    int32_t code;
    int pair[2];

    pair_new(pair);
    code = brant_outgoing_start_fd(out, pair[0], &error);
    close(pair[1]);
    return told(code, error);
}

__attribute__((unused)) static int32_t in_starts(brant_incoming *in)
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

__attribute__((unused)) static uint32_t in_state(const brant_incoming *in)
{
    brant_stats stats = { .size = sizeof stats };

    MUST(brant_incoming_get_stats(in, &stats, &e));
    return stats.state;
}

__attribute__((unused)) static uint32_t out_state(const brant_outgoing *out)
{
    brant_stats stats = { .size = sizeof stats };

    MUST(brant_outgoing_get_stats(out, &stats, &e));
    return stats.state;
}

/* Both sides start, over a pair of sockets. */
static void both_start(brant_outgoing *out, brant_incoming *in)
{
    int pair[2];

    pair_new(pair);
    MUST(brant_incoming_start_fd(in, pair[1], &e));
    MUST(brant_outgoing_start_fd(out, pair[0], &e));
}

/* A whole migration's results on both sides. */
struct result { int32_t source, destination; };

__attribute__((unused)) static struct result migrate(struct copy *from, struct copy *to)
{
    brant_outgoing *out = out_new(from, 0);
    brant_incoming *in = in_new(to);
    struct result result;

    both_start(out, in);
    result.source = out_ends(out);
    result.destination = in_ends(in);
    brant_outgoing_free(out);
    brant_incoming_free(in);
    return result;
}

__attribute__((unused)) static bool moves(struct copy *from, struct copy *to)
{
    struct result result = migrate(from, to);

    return result.source == 0 && result.destination == 0 && !from->runs && to->runs &&
           memcmp(from->host, to->host, BYTES) == 0;
}

#endif
