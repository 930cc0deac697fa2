/*
 * Postcopy through the C interface: the guest runs at the destination before its memory is there.
 * Threads, as vCPUs, and system calls touch pages that are missing, in every order. Connections are
 * lost and replaced; a source is gone for good.
 */
#include "copies.h"
#include <pthread.h>
#include <signal.h>

enum { CONNECTIONS = 2, SLOW = 64 * 1024 };

/* Both sides of a migration, and the source's ends of its connections once more. */
struct sides {
    struct copy *s, *d;
    brant_outgoing *out;
    brant_incoming *in;
    int near[CONNECTIONS], far[CONNECTIONS], ends[CONNECTIONS];
};

/* New connections for both sides. */
static void connect_sides(struct sides *x)
{
    for (int i = 0; i < CONNECTIONS; i++) {
        int pair[2];

        pair_new(pair);
        x->near[i] = pair[0];
        x->far[i] = pair[1];
        x->ends[i] = dup(pair[0]);
    }
}

static void close_ends(struct sides *x)
{
    for (int i = 0; i < CONNECTIONS; i++)
        close(x->ends[i]);
}

/* Cuts every connection. */
static void cut(struct sides *x)
{
    for (int i = 0; i < CONNECTIONS; i++)
        shutdown(x->ends[i], SHUT_RDWR);
    close_ends(x);
}

/* A byte of each page that differs from page to page. */
static char mark_of(int page)
{
    return (char)(page * 7 + 1);
}

/* The guest runs at the destination, and most of its memory is still at the source: the link carries
 * 16 pages a second. */
static struct sides handed_over(void)
{
    struct sides x = { .s = copy_new(true), .d = copy_new(false) };
    brant_params params = limited(0);

    for (int page = 0; page < PAGES; page++)
        memset(x.s->host + page * 4096, mark_of(page), 4096);
    params.postcopy = BRANT_POSTCOPY_ALLOWED;
    params.max_bandwidth = SLOW;
    params.downtime_limit_ms = 60000;
    MUST(brant_outgoing_new(x.s->tracker, &params, &x.out, &e));
    x.in = in_new(x.d);
    connect_sides(&x);
    MUST(brant_incoming_start_fds(x.in, x.far, CONNECTIONS, &e));
    MUST(brant_outgoing_start_fds(x.out, x.near, CONNECTIONS, &e));
    MUST(brant_outgoing_start_postcopy(x.out, &e));
    while (in_state(x.in) != BRANT_DESTINATION_COMPLETING) {
        if (brant_incoming_wait(x.in, 5, NULL) != BRANT_E_PENDING)
            bail("the guest was not handed over ahead of its memory: state %u", in_state(x.in));
    }
    return x;
}

static void sides_free(struct sides *x)
{
    brant_outgoing_free(x->out);
    brant_incoming_free(x->in);
    copy_free(x->s);
    copy_free(x->d);
}

/* Touches pages of the destination's memory, and finds what the source had there. */
struct toucher {
    struct copy *copy;
    int first, step, count;
    int wrong;
    pthread_t thread;
};

static void *touch(void *opaque)
{
    struct toucher *t = opaque;

    for (int i = 0, page = t->first; i < t->count; i++, page = (page + t->step) % PAGES) {
        volatile char *at = t->copy->host + page * 4096 + i * 61 % 4096;

        if (*at != mark_of(page))
            t->wrong++;
    }
    return NULL;
}

static void everything_moves(void)
{
    struct sides x = handed_over();
    /* In order, backwards, here and there, and one hot page. */
    struct toucher touchers[] = { { .first = 0, .step = 1, .count = PAGES },
                                  { .first = PAGES - 1, .step = PAGES - 1, .count = PAGES },
                                  { .first = 5, .step = 37, .count = PAGES },
                                  { .first = 40, .step = 0, .count = 1000 } };
    enum { TOUCHERS = sizeof touchers / sizeof *touchers };
    brant_stats stats = { .size = sizeof stats };
    brant_missing_run runs[PAGES];
    brant_blocked blocked[16];
    size_t missing = 0, threads = 0;
    int wrong = 0;

    MUST(brant_incoming_get_missing(x.in, runs, PAGES, &missing, &e));
    ok(missing > 0 && runs[0].block == x.d->block && runs[0].pages > 0,
       "the pages that are missing are known");
    ok(state_of(x.d) == BRANT_GUEST_INCOMPLETE && x.d->runs && !x.s->runs,
       "the guest runs at the destination, and its memory is not whole");
    ok(brant_tracker_start(x.d->tracker, BRANT_START_CLEAN, NULL) == BRANT_E_BUSY,
       "nothing else may begin with it");
    ok(brant_incoming_cancel(x.in, NULL) == BRANT_E_STATE &&
           brant_outgoing_cancel(x.out, NULL) == BRANT_E_STATE,
       "a cancel is refused on both sides");
    ok(brant_incoming_give_up(x.in, NULL) == BRANT_E_STATE, "nothing is given up that may still come");
    for (int i = 0; i < TOUCHERS; i++) {
        touchers[i].copy = x.d;
        if (pthread_create(&touchers[i].thread, NULL, touch, &touchers[i]))
            bail("no thread");
    }
    for (int i = 0; i < TOUCHERS; i++) {
        pthread_join(touchers[i].thread, NULL);
        wrong += touchers[i].wrong;
    }
    ok(wrong == 0, "four threads find what the source had, in whatever order they touch pages");
    ok(out_ends(x.out) == 0 && in_ends(x.in) == 0 && memcmp(x.s->host, x.d->host, BYTES) == 0,
       "all of the memory arrives, and is the source's");
    MUST(brant_incoming_get_stats(x.in, &stats, &e));
    ok(stats.faults > 0 && stats.urgent_pages > 0 && stats.missing_pages == 0 &&
           stats.fault_p50_ns <= stats.fault_p99_ns && stats.fault_max_ns > 0 &&
           stats.fault_blocked_ns >= stats.fault_max_ns,
       "the figures tell of faults and of waits");
    MUST(brant_incoming_get_blocked(x.in, blocked, 16, &threads, &e));
    ok(threads >= 1 && threads <= 16 && blocked[0].thread != 0 && blocked[0].faults > 0,
       "each thread that waited is known by its number");
    ok(state_of(x.d) == BRANT_GUEST_HERE, "and the guest is whole");
    close_ends(&x);
    sides_free(&x);
}

static void the_kernel_waits_too(void)
{
    struct sides x = handed_over();
    char page[4096];
    int pipes[2], last = PAGES - 1;

    if (pipe(pipes))
        bail("pipe: %s", strerror(errno));
    ok(write(pipes[1], x.d->host + last * 4096, 4096) == 4096 && read(pipes[0], page, 4096) == 4096 &&
           page[0] == mark_of(last) && page[4095] == mark_of(last),
       "a write() from a page that is missing takes what the source had");
    last--;
    ok(write(pipes[1], "new", 3) == 3 && read(pipes[0], x.d->host + last * 4096, 3) == 3 &&
           memcmp(x.d->host + last * 4096, "new", 3) == 0 && x.d->host[last * 4096 + 3] == mark_of(last),
       "a read() into a part of a missing page keeps the rest of it");
    ok(out_ends(x.out) == 0 && in_ends(x.in) == 0 && memcmp(x.d->host + last * 4096, "new", 3) == 0,
       "and what was written stays");
    close(pipes[0]);
    close(pipes[1]);
    close_ends(&x);
    sides_free(&x);
}

static bool interrupted(struct sides *x)
{
    for (int i = 0; i < 2000; i++) {
        if (in_state(x->in) == BRANT_DESTINATION_INTERRUPTED && out_state(x->out) == BRANT_SOURCE_INTERRUPTED)
            return true;
        wait_ms(5);
    }
    return false;
}

static void connections_are_lost_and_replaced(void)
{
    struct sides x = handed_over();
    struct toucher toucher = { .copy = x.d, .first = PAGES - 1, .step = PAGES - 1, .count = PAGES };

    ok(brant_incoming_recover(x.in, "tcp:127.0.0.1:0", NULL) == BRANT_E_STATE &&
           brant_outgoing_recover(x.out, "tcp:127.0.0.1:1", NULL) == BRANT_E_STATE,
       "nothing is recovered while nothing is lost");
    for (int times = 1; times <= 2; times++) {
        cut(&x);
        ok(interrupted(&x), "both sides wait for the VMM when all connections are lost, time %d", times);
        if (times == 1 && pthread_create(&toucher.thread, NULL, touch, &toucher))
            bail("no thread");
        connect_sides(&x);
        MUST(brant_incoming_recover_fds(x.in, x.far, CONNECTIONS, &e));
        MUST(brant_outgoing_recover_fds(x.out, x.near, CONNECTIONS, &e));
        /* The second cut comes at some point of the first recovery. */
        while (out_state(x.out) == BRANT_SOURCE_INTERRUPTED)
            wait_ms(1);
    }
    pthread_join(toucher.thread, NULL);
    ok(toucher.wrong == 0, "a thread that waited meanwhile finds what the source had");
    ok(out_ends(x.out) == 0 && in_ends(x.in) == 0 && memcmp(x.s->host, x.d->host, BYTES) == 0,
       "all of the memory arrives over the new connections");
    ok(x.d->started == 1 && !x.s->runs && most == 1, "and one guest ran, once");
    close_ends(&x);
    sides_free(&x);
}

static void the_source_recovers_first(void)
{
    struct sides x = handed_over();
    char directory[] = "/tmp/brant-postcopy-XXXXXX", path[64], endpoint[80];

    if (!mkdtemp(directory))
        bail("mkdtemp: %s", strerror(errno));
    snprintf(path, sizeof path, "%s/socket", directory);
    snprintf(endpoint, sizeof endpoint, "unix:%s", path);
    cut(&x);
    ok(interrupted(&x), "both sides wait for the VMM once more");
    MUST(brant_outgoing_recover(x.out, endpoint, &e));
    ok(out_state(x.out) == BRANT_SOURCE_RECOVERING &&
           brant_outgoing_recover(x.out, endpoint, NULL) == BRANT_E_BUSY,
       "a source that recovers first waits for the destination to listen");
    MUST(brant_incoming_recover(x.in, endpoint, &e));
    ok(out_ends(x.out) == 0 && in_ends(x.in) == 0 && memcmp(x.s->host, x.d->host, BYTES) == 0,
       "and all of the memory arrives");
    ok(brant_incoming_recover(x.in, endpoint, NULL) == 0,
       "a guest that is whole waits for a source that does not know it, until it is freed");
    sides_free(&x);
    unlink(path);
    rmdir(directory);
}

static void the_source_is_gone_for_good(void)
{
    struct sides x = handed_over();
    brant_missing_run runs[PAGES];
    size_t missing = 0;
    int pipes[2];

    if (pipe(pipes))
        bail("pipe: %s", strerror(errno));
    cut(&x);
    ok(interrupted(&x), "a source that is gone interrupts");
    MUST(brant_outgoing_resolve(x.out, BRANT_RESOLVE_DESTROY, &e));
    MUST(brant_incoming_get_missing(x.in, runs, PAGES, &missing, &e));
    ok(missing > 0, "what will not come is known");
    MUST(brant_incoming_give_up(x.in, &e));
    ok(in_ends(x.in) != 0 && in_state(x.in) == BRANT_DESTINATION_INCOMPLETE && x.d->runs,
       "the guest runs on without it");
    ok(write(pipes[1], x.d->host + runs[0].first_page * 4096, 4096) == -1 && errno == EFAULT,
       "and an access of a lost page is an error");
    close(pipes[0]);
    close(pipes[1]);
    sides_free(&x);
}

int main(void)
{
    plan(27);
    everything_moves();
    the_kernel_waits_too();
    connections_are_lost_and_replaced();
    the_source_recovers_first();
    the_source_is_gone_for_good();
    return done();
}
