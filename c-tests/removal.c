/*
 * A block with taken runs. Its removal is BRANT_E_BUSY at once and changes nothing. The message
 * names who has the runs, and how that ends. Each end of the use that the header names ends it: the
 * next take, a take of 0 runs, a take without room, stop, free. A migration's pages never refuse a
 * removal. Also what a sync reports of pages that were pending already. Needs no KVM.
 */
#include "still.h"

#include <poll.h>
#include <pthread.h>
#include <sys/wait.h>

enum { MORE_PAGES = 64 };

/* A still guest with one more block, all of whose pages are pending for the VMM. */
struct two {
    struct still still;
    char *more;
    uint32_t number;
};

static void plug(struct two *t)
{
    brant_ram_block block = { .size = sizeof block, .name = "more", .host = t->more,
                              .length = MORE_PAGES * PAGE, .fd = -1 };

    must(brant_guest_add_block(t->still.guest, &block, &t->number, &e));
}

static struct two two_new(void)
{
    struct two t = { .still = still_new() };

    t.more = mmap(NULL, MORE_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (t.more == MAP_FAILED)
        bail("mmap: %s", strerror(errno));
    plug(&t);
    return t;
}

static void two_free(struct two *t)
{
    still_free(&t->still);
    munmap(t->more, MORE_PAGES * PAGE);
}

static int32_t unplug(struct two *t, brant_error **e)
{
    return brant_guest_remove_block(t->still.guest, t->number, e);
}

/* Whether the removal is refused as busy, with all of these words. */
static bool is_busy(struct two *t, const char *who)
{
    static const char ends[] = "until it takes again, is stopped or is freed";
    brant_error *e = NULL;
    int32_t code = unplug(t, &e);
    bool good = code == BRANT_E_BUSY && strstr(brant_error_message(e), who) &&
                strstr(brant_error_message(e), ends) && strstr(brant_error_message(e), "`more`");

    if (!good)
        note("%s: %s", brant_error_name(code), brant_error_message(e));
    brant_error_free(e);
    return good;
}

static uint64_t pending(struct two *t)
{
    brant_tracker_stats s = { .size = sizeof s };

    must(brant_tracker_get_stats(t->still.tracker, &s, &e));
    return s.pending_pages;
}

/* Takes until it has a run of the block. Returns the number of runs. */
static size_t take_of_more(struct two *t, brant_consumer *consumer, brant_run *runs, size_t capacity)
{
    size_t count;

    do {
        if (consumer)
            must(brant_consumer_take(consumer, runs, capacity, &count, &e));
        else
            must(brant_tracker_take(t->still.tracker, runs, capacity, &count, &e));
        if (!count)
            bail("nothing of the block is pending");
    } while (runs[count - 1].block != t->number);
    return count;
}

static void refused(void)
{
    struct two t = two_new();
    brant_consumer_stats stats = { .size = sizeof stats };
    brant_consumer *consumer;
    brant_run run, other[4];
    uint64_t before;
    char who[64];
    bool same;

    must(brant_tracker_start(t.still.tracker, BRANT_START_ALL, &e));
    must(brant_consumer_new(t.still.tracker, BRANT_START_ALL, &consumer, &e));
    must(brant_consumer_get_stats(consumer, &stats, &e));
    snprintf(who, sizeof who, "consumer %" PRIu64 " of the tracker", stats.number);
    take_of_more(&t, NULL, &run, 1);
    before = pending(&t);
    ok(is_busy(&t, "the VMM itself"), "a block whose runs the VMM has taken is not removed, and it is told so");
    /* The block still works: it can be marked, taken and named. */
    brant_tracker_mark_block(t.still.tracker, t.number, 0, PAGE);
    must(brant_tracker_sync(t.still.tracker, BRANT_SYNC_RUNNING, NULL, &e));
    same = pending(&t) == before + 1;
    ok(same && run.block == t.number && memcmp(run.host, t.more + run.first_page * PAGE, PAGE) == 0,
       "nothing has changed, and the runs can be read");
    must(brant_tracker_put_back(t.still.tracker, run.block, run.first_page, run.pages, &e));
    ok(is_busy(&t, "the VMM itself"), "putting pages back does not end the use of a run");
    take_of_more(&t, consumer, other, 4);
    must(brant_tracker_take(t.still.tracker, NULL, 0, &(size_t){ 1 }, &e));
    ok(is_busy(&t, who), "one of several who have runs of it is named by its number");
    brant_consumer_free(consumer);
    ok(unplug(&t, NULL) == 0, "and when the last of them is done with them the block is removed");
    before = pending(&t);
    ok(brant_tracker_put_back(t.still.tracker, run.block, run.first_page, run.pages, NULL) == 0 &&
           pending(&t) == before,
       "pages of it that come back then are passed over");
    two_free(&t);
}

enum ends { NEXT, NO_RUNS, NO_ROOM, STOP, FREE, ENDS };

static const char *const ends[ENDS] = { "the next take", "a take of 0 runs", "a take with room for none",
                                        "a stop", "a free" };

static bool ends_it(enum ends how, bool own)
{
    struct two t = two_new();
    brant_consumer *consumer = NULL;
    brant_run runs[64];
    size_t count = 1;
    bool good;

    must(brant_tracker_start(t.still.tracker, own ? BRANT_START_CLEAN : BRANT_START_ALL, &e));
    if (!own)
        must(brant_consumer_new(t.still.tracker, BRANT_START_CLEAN, &consumer, &e));
    /* The block's last page, and none behind it. */
    brant_tracker_mark_block(t.still.tracker, t.number, (MORE_PAGES - 1) * PAGE, PAGE);
    must(brant_tracker_sync(t.still.tracker, BRANT_SYNC_RUNNING, NULL, &e));
    take_of_more(&t, consumer, runs, 64);
    good = is_busy(&t, own ? "the VMM itself" : "consumer");
    if (how == NEXT) {
        /* Runs of the other block. */
        brant_tracker_mark_block(t.still.tracker, 0, 0, PAGE);
        must(brant_tracker_sync(t.still.tracker, BRANT_SYNC_RUNNING, NULL, &e));
        if (own)
            must(brant_tracker_take(t.still.tracker, runs, 64, &count, &e));
        else
            must(brant_consumer_take(consumer, runs, 64, &count, &e));
        /* The walk was at its end. */
        if (!count && own)
            must(brant_tracker_take(t.still.tracker, runs, 64, &count, &e));
        else if (!count)
            must(brant_consumer_take(consumer, runs, 64, &count, &e));
        good = good && count == 1 && runs[0].block == 0;
    } else if (how == NO_RUNS || how == NO_ROOM) {
        size_t capacity = how == NO_RUNS ? 64 : 0;

        if (own)
            must(brant_tracker_take(t.still.tracker, runs, capacity, &count, &e));
        else
            must(brant_consumer_take(consumer, capacity ? runs : NULL, capacity, &count, &e));
        good = good && count == 0;
    } else if (how == STOP) {
        if (own)
            must(brant_tracker_stop(t.still.tracker, &e));
        else
            must(brant_consumer_stop(consumer, &e));
    } else if (own) {
        brant_tracker_free(t.still.tracker);
        t.still.tracker = NULL;
    } else {
        brant_consumer_free(consumer);
        consumer = NULL;
    }
    good = good && unplug(&t, NULL) == 0;
    brant_consumer_free(consumer);
    two_free(&t);
    return good;
}

/* A take without room ends the use, takes nothing, and leaves the walk where it is. */
static void no_room(void)
{
    struct two t = two_new();
    brant_run first, next;
    size_t count = 9;
    brant_error *e = NULL;

    must(brant_tracker_start(t.still.tracker, BRANT_START_ALL, &e));
    must(brant_tracker_take(t.still.tracker, &first, 1, &count, &e));
    must(brant_tracker_take(t.still.tracker, NULL, 0, &count, &e));
    must(brant_tracker_take(t.still.tracker, &next, 1, &(size_t){ 0 }, &e));
    ok(count == 0 && next.first_page == first.first_page + first.pages,
       "a take with room for none takes none, and the next goes on where the walk was");
    ok(brant_tracker_take(t.still.tracker, NULL, 1, &count, &e) == BRANT_E_INVALID,
       "room that is said to be there has an address");
    brant_error_free(e);
    two_free(&t);
}

/* A child made by fork has copies, and ends nothing here. */
static void forked(void)
{
    struct two t = two_new();
    brant_run run;
    pid_t child;
    int status;

    must(brant_tracker_start(t.still.tracker, BRANT_START_ALL, &e));
    take_of_more(&t, NULL, &run, 1);
    child = fork();
    if (child == 0)
        _exit(brant_tracker_take(t.still.tracker, NULL, 0, &(size_t){ 0 }, NULL) ? 1 : 0);
    if (child < 0 || waitpid(child, &status, 0) != child)
        bail("fork: %s", strerror(errno));
    ok(status == 0 && is_busy(&t, "the VMM itself"), "what a child of fork does ends no use of runs here");
    two_free(&t);
}

/* ---- beside others ---- */

static void beside_a_migration(void)
{
    struct two t = two_new(), to = two_new();
    brant_params params = { .size = sizeof params, .max_bandwidth = 64 * 1024 };
    brant_stats s = { .size = sizeof s };
    uint64_t limit = now_us() + (uint64_t)patience(30000) * 1000;
    brant_outgoing *out;
    brant_incoming *in;
    int pair[2];

    memset(t.still.memory, 7, t.still.bytes);
    memset(t.more, 7, MORE_PAGES * PAGE);
    must(brant_outgoing_new(t.still.tracker, &params, &out, &e));
    must(brant_incoming_new(to.still.guest, NULL, &in, &e));
    make_socketpair(pair);
    must(brant_incoming_start_fd(in, pair[1], &e));
    must(brant_outgoing_start_fd(out, pair[0], &e));
    do {
        if (now_us() > limit)
            bail("the migration sends nothing");
        poll(&(struct pollfd){ .fd = brant_outgoing_event_fd(out), .events = POLLIN }, 1, 10);
        must(brant_outgoing_get_stats(out, &s, &e));
    } while (s.data_pages == 0);
    ok(unplug(&t, NULL) == 0, "a migration that sends the guest is in no removal's way");
    must(brant_outgoing_cancel(out, &e));
    brant_outgoing_wait(out, patience(30000), NULL);
    brant_incoming_wait(in, patience(30000), NULL);
    brant_outgoing_free(out);
    brant_incoming_free(in);
    two_free(&t);
    two_free(&to);
}

static void *frees(void *consumer)
{
    brant_consumer_free(consumer);
    return NULL;
}

/* One thread frees the consumer that has the runs, another removes the block. */
static void beside_a_free(void)
{
    struct two t = two_new();
    unsigned refused = 0;
    bool good = true;

    must(brant_tracker_start(t.still.tracker, BRANT_START_CLEAN, &e));
    for (int round = 0; round < 200 && good; round++) {
        brant_consumer *consumer;
        brant_run runs[64];
        pthread_t thread;
        int32_t code;

        must(brant_consumer_new(t.still.tracker, BRANT_START_ALL, &consumer, &e));
        take_of_more(&t, consumer, runs, 64);
        if (pthread_create(&thread, NULL, frees, consumer))
            bail("pthread_create");
        code = unplug(&t, NULL);
        refused += code == BRANT_E_BUSY;
        good = code == 0 || code == BRANT_E_BUSY;
        pthread_join(thread, NULL);
        /* The consumer is freed, so nobody has a run. */
        good = good && (code == 0 || unplug(&t, NULL) == 0);
        plug(&t);
    }
    note("%u of 200 removals came before the free", refused);
    ok(good, "a block whose consumer is freed meanwhile is removed, or busy until it is freed");
    two_free(&t);
}

/* ---- what a sync says ---- */

static void written(void)
{
    struct still still = still_new();
    brant_sync first = { .size = sizeof first }, again = { .size = sizeof again };

    must(brant_tracker_start(still.tracker, BRANT_START_CLEAN, &e));
    brant_tracker_mark_block(still.tracker, 0, 0, 3 * PAGE);
    must(brant_tracker_sync(still.tracker, BRANT_SYNC_RUNNING, &first, &e));
    brant_tracker_mark_block(still.tracker, 0, PAGE, 3 * PAGE);
    must(brant_tracker_sync(still.tracker, BRANT_SYNC_RUNNING, &again, &e));
    ok(first.found_pages == 3 && first.written_pages == 3 && again.found_pages == 1 &&
           again.written_pages == 3 && again.pending_pages == 4,
       "a sync tells pages that were written apart from those that are pending anew");
    ok(first.observed_pages == still.bytes / PAGE && again.observed_pages == still.bytes / PAGE,
       "and of how many pages that could be seen");
    still_free(&still);
}

int main(void)
{
    plan(6 + 2 * ENDS + 2 + 1 + 1 + 1 + 2);
    random_begin();
    refused();
    for (int how = 0; how < ENDS; how++)
        for (int own = 0; own < 2; own++)
            ok(ends_it(how, own), "%s ends the use of %s runs", ends[how], own ? "the VMM's" : "a consumer's");
    no_room();
    forked();
    beside_a_migration();
    beside_a_free();
    written();
    return done();
}
