/*
 * Which calls are allowed inside a callback, what threads and events report, and what blocks a
 * migration.
 */
#include "still.h"

#include <poll.h>
#include <signal.h>

struct inside {
    struct still source, destination;
    brant_outgoing *out;
    brant_incoming *in;
    bool cancel_source, cancel_destination;
    int32_t source_wait, source_free, source_cancel, source_stats, taken, second;
    size_t taken_runs;
    int32_t destination_wait, destination_free, destination_cancel;
    atomic_int threads, masked, started_first;
    atomic_int events, completed, failed;
    atomic_int load_cancel;
};

static int32_t inside_early_save(void *opaque, brant_saver *saver, brant_reason *reason)
{
    struct inside *t = opaque;
    brant_stats stats = { .size = sizeof stats };
    brant_run run;

    (void)reason;
    t->source_wait = brant_outgoing_wait(t->out, BRANT_NO_LIMIT, NULL);
    t->source_free = brant_outgoing_free(t->out);
    t->source_stats = brant_outgoing_get_stats(t->out, &stats, NULL);
    t->taken_runs = 7;
    t->taken = brant_tracker_take(t->source.tracker, &run, 1, &t->taken_runs, NULL);
    t->second = brant_outgoing_start(t->out, "tcp:127.0.0.1:1", NULL);
    if (t->cancel_source)
        t->source_cancel = brant_outgoing_cancel(t->out, NULL);
    return brant_saver_put(saver, "x", 0, 0, NULL, 0, NULL);
}

static int32_t inside_save(void *opaque, brant_saver *saver, brant_reason *reason)
{
    (void)opaque;
    (void)reason;
    return brant_saver_put(saver, "piece", 7, 3, "12345", 5, NULL);
}

static int32_t inside_early_load(void *opaque, const brant_state_blob *blob, brant_reason *reason)
{
    (void)opaque;
    (void)reason;
    return blob->length != 0;
}

static int32_t inside_load(void *opaque, const brant_state_blob *blob, brant_reason *reason)
{
    struct inside *t = opaque;

    if (t->cancel_destination)
        t->load_cancel = brant_incoming_cancel(t->in, NULL);
    if (strcmp(blob->name, "piece") || blob->instance != 7 || blob->version != 3 ||
        blob->length != 5 || memcmp(blob->data, "12345", 5)) {
        brant_reason_set(reason, "the state is not what was saved");
        return -1;
    }
    return 0;
}

static int32_t inside_run(void *opaque, brant_reason *reason)
{
    struct inside *t = opaque;

    (void)reason;
    t->destination_wait = brant_incoming_wait(t->in, BRANT_NO_LIMIT, NULL);
    t->destination_free = brant_incoming_free(t->in);
    t->destination_cancel = brant_incoming_cancel(t->in, NULL);
    return 0;
}

static void inside_thread_start(void *opaque, uint32_t role)
{
    struct inside *t = opaque;
    sigset_t mask;

    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    t->masked += sigismember(&mask, SIGTERM) == 1 && sigismember(&mask, SIGALRM) == 1 &&
                 sigismember(&mask, SIGRTMIN + 4) == 1;
    t->threads += role == BRANT_ROLE_MIGRATION;
}

static void inside_event(void *opaque, const brant_event *event)
{
    struct inside *t = opaque;

    t->events += event->message != NULL && event->size >= sizeof *event;
    t->completed += event->kind == BRANT_EVENT_COMPLETED;
    t->failed += event->kind == BRANT_EVENT_FAILED;
}

static struct inside *inside_new(void)
{
    static const brant_ops ops = {
        .size = sizeof ops,
        .pause = nothing,
        .resume = nothing,
        .save = inside_save,
        .load = inside_load,
        .early_save = inside_early_save,
        .early_load = inside_early_load,
        .run = inside_run,
        .event = inside_event,
        .thread_start = inside_thread_start,
    };
    struct inside *t = must_alloc(1, sizeof *t);

    t->source = still_with(&ops, t, 's', 2 * MIB);
    t->destination = still_with(&ops, t, 'd', 4 * MIB);
    must(brant_outgoing_new(t->source.tracker, NULL, &t->out, &e));
    must(brant_incoming_new(t->destination.guest, NULL, &t->in, &e));
    return t;
}

static void inside_begin(struct inside *t)
{
    int pair[2];

    make_socketpair(pair);
    must(brant_incoming_start_fd(t->in, pair[1], &e));
    must(brant_outgoing_start_fd(t->out, pair[0], &e));
}

static void inside_free(struct inside *t)
{
    brant_outgoing_free(t->out);
    brant_incoming_free(t->in);
    still_free(&t->source);
    still_free(&t->destination);
    free(t);
}

static void callbacks(void)
{
    struct inside *t = inside_new();
    brant_stats stats = { .size = sizeof stats };
    brant_forecast forecast = { .size = sizeof forecast };
    struct pollfd look;
    char json[BRANT_STATS_JSON_SIZE], cut[16];
    size_t needed = 0, needed_again = 0;
    int32_t code, there;

    ok(brant_outgoing_wait(t->out, 0, NULL) == BRANT_E_STATE &&
           brant_outgoing_resolve(t->out, BRANT_RESOLVE_RESUME, NULL) == BRANT_E_STATE,
       "what was not started is neither waited for nor resolved");
    look = (struct pollfd){ .fd = brant_outgoing_event_fd(t->out), .events = POLLIN };
    inside_begin(t);
    code = brant_outgoing_wait(t->out, patience(30000), NULL);
    there = brant_incoming_wait(t->in, patience(30000), NULL);
    ok(code == 0 && there == 0 && memcmp(t->source.memory, t->destination.memory, t->source.bytes) == 0,
       "memory arrives byte for byte, over what was there");
    ok(t->source_wait == BRANT_E_CALLBACK && t->source_free == BRANT_E_CALLBACK &&
           t->destination_wait == BRANT_E_CALLBACK && t->destination_free == BRANT_E_CALLBACK,
       "waiting and freeing inside a callback are errors, not deadlocks");
    ok(t->source_stats == 0, "the figures can be read inside a callback");
    ok(t->taken == 0 && t->taken_runs == 0,
       "while a migration runs the VMM takes what is pending for itself, not what it sends");
    ok(t->second != 0 && brant_outgoing_start(t->out, "tcp:127.0.0.1:1", NULL) == BRANT_E_STATE,
       "a migration is started once");
    equal(t->destination_cancel, BRANT_E_STATE, "a guest that was handed over cannot be sent back");
    ok(t->threads == 2 && t->masked == 2, "each thread announces itself, all signals masked");
    ok(t->events > 4 && t->completed == 2 && t->failed == 0, "events tell how it went at both sides");
    ok(poll(&look, 1, 0) == 1 && look.revents == POLLIN, "the event descriptor says that there is news");
    must(brant_outgoing_get_stats(t->out, &stats, &e));
    ok(stats.progress == 10000 && stats.state == BRANT_SOURCE_COMPLETED && stats.remaining_bytes == 0 &&
           stats.state_bytes == 5 && stats.data_pages >= t->source.bytes / PAGE / 2 &&
           stats.data_pages + stats.zero_pages >= t->source.bytes / PAGE,
       "the figures of a migration that completed say so");
    must(brant_outgoing_get_forecast(t->out, &forecast, &e));
    ok(forecast.converges == 1 && forecast.passes == stats.pass && forecast.bytes == stats.wire_bytes &&
           forecast.downtime_us == stats.downtime_ns / 1000 && forecast.limit_us == 0 &&
           forecast.throttle == 0 && forecast.bandwidth == 0,
       "the forecast of a migration that completed has its true figures");
    must(brant_outgoing_get_stats_json(t->out, NULL, 0, &needed, &e));
    must(brant_outgoing_get_stats_json(t->out, cut, sizeof cut, &needed_again, &e));
    must(brant_outgoing_get_stats_json(t->out, json, sizeof json, NULL, &e));
    ok(needed > sizeof cut && needed == needed_again && needed == strlen(json) + 1 &&
           strlen(cut) == sizeof cut - 1 && strncmp(cut, json, sizeof cut - 1) == 0 &&
           json[0] == '{' && json[strlen(json) - 1] == '}' && strstr(json, "\"state\":"),
       "the JSON is cut to the buffer, and how much it takes is told");
    ok(brant_outgoing_cancel(t->out, NULL) == BRANT_E_STATE, "what has completed is not cancelled");
    inside_free(t);

    t = inside_new();
    t->cancel_source = true;
    inside_begin(t);
    code = brant_outgoing_wait(t->out, patience(30000), NULL);
    there = brant_incoming_wait(t->in, patience(30000), NULL);
    ok(code == BRANT_E_CANCELLED && t->source_cancel == 0 && there != 0 && t->failed == 2,
       "cancelling inside a callback of the source ends it at both sides");
    must(brant_outgoing_cancel(t->out, &e));
    inside_free(t);

    t = inside_new();
    t->cancel_destination = true;
    inside_begin(t);
    code = brant_outgoing_wait(t->out, patience(30000), NULL);
    there = brant_incoming_wait(t->in, patience(30000), NULL);
    ok(there == BRANT_E_CANCELLED && t->load_cancel == 0 && code != 0 && t->destination_wait == 0,
       "cancelling inside a callback of the destination ends it at both sides, and it never runs");
    inside_free(t);
}

static void blockers(void)
{
    struct inside *t = inside_new();
    brant_blocker *disk, *dongle;
    brant_error *e = NULL;
    int pair[2];
    int32_t code;

    must(brant_blocker_new(t->source.guest, "a disk is local", &disk, &e));
    must(brant_blocker_new(t->source.guest, "a dongle is plugged in", &dongle, &e));
    make_socketpair(pair);
    code = brant_outgoing_start_fd(t->out, pair[0], &e);
    ok(code == BRANT_E_BLOCKED && strstr(brant_error_message(e), "a disk is local") &&
           strstr(brant_error_message(e), "a dongle is plugged in"),
       "a guest that is blocked is not migrated, and every reason is told");
    brant_error_free(e);
    e = NULL;
    close(pair[1]);
    brant_blocker_free(disk);
    brant_blocker_free(dongle);
    brant_outgoing_free(t->out);
    must(brant_outgoing_new(t->source.tracker, NULL, &t->out, &e));
    inside_begin(t);
    ok(brant_outgoing_wait(t->out, patience(30000), NULL) == 0 && brant_incoming_wait(t->in, patience(30000), NULL) == 0,
       "one that is not blocked any more is");
    inside_free(t);

    t = inside_new();
    must(brant_blocker_new(t->source.guest, "late", &disk, &e));
    brant_guest_free(t->source.guest);
    t->source.guest = NULL;
    brant_blocker_free(disk);
    ok(true, "a reason can be taken back after its guest is gone");
    inside_free(t);
}

int main(void)
{
    plan(16 + 3);
    callbacks();
    blockers();
    return done();
}
