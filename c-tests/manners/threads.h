/*
 * Calls from several threads at once, and frees beside them.
 */
#ifndef MANNERS_THREADS_H
#define MANNERS_THREADS_H

#include "manners/world.h"

struct hammer {
    struct world *w;
    /* Called in turn; NULL: every function that any thread may call, at random. */
    const struct row *const *some;
    atomic_bool *stop;
    atomic_ullong calls;
    uint64_t seed;
};

static void *hammer_run(void *arg)
{
    struct hammer *h = arg;
    struct args a;

    while (!atomic_load(h->stop)) {
        const struct row *row;

        if (h->some) {
            size_t n = 0;

            while (h->some[n])
                n++;
            row = h->some[h->calls % n];
        } else {
            h->seed = h->seed * 6364136223846793005ull + 1442695040888963407ull;
            row = &rows[(h->seed >> 33) % FUNCTIONS];
        }
        if (!row->any_thread) {
            h->seed++;
            continue;
        }
        args_fill(&a);
        call(h->w, row, &a, true, ANYTHING);
        h->calls++;
    }
    return NULL;
}

static void hammered(enum state state, const struct row *const *one, const struct row *const *two,
                     unsigned ms)
{
    struct timespec t = { 0, (long)ms * 1000000 };
    atomic_bool stop = false;
    struct world w;
    struct hammer h[2] = { { &w, one, &stop, 0, 1 }, { &w, two, &stop, 0, 99 } };
    pthread_t ids[2];

    world_begin(&w, state);
    world_enter(&w, state);
    w.threads = true;
    for (int i = 0; i < 2; i++)
        if (pthread_create(&ids[i], NULL, hammer_run, &h[i]))
            bail("no thread");
    /* On a busy machine a thread may not have begun yet. */
    do
        nanosleep(&t, NULL);
    while (h[0].calls == 0 || h[1].calls == 0);
    atomic_store(&stop, true);
    for (int i = 0; i < 2; i++)
        pthread_join(ids[i], NULL);
    world_end(&w);
}

static void try_threads(const struct row *row)
{
    const struct row *const one[] = { row, NULL };

    if (!row->any_thread)
        return;
    for (enum state state = FRESH; state <= RUNNING; state++) {
        trying("%s beside all others, %s", row->name, states[state]);
        hammered(state, one, NULL, 10);
    }
    ok(nothing_wrong(), "%s: beside all others on another thread", row->name);
}

static const struct row *named(const char *name)
{
    for (int i = 0; i < FUNCTIONS; i++)
        if (strcmp(rows[i].name, name) == 0)
            return &rows[i];
    bail("there is no %s", name);
}

/* The most frequent pairs of calls by a VMM's threads, for longer. */
static void try_pairs(void)
{
    const struct row *const marks[] = { named("brant_tracker_mark"),
                                        named("brant_tracker_mark_block"), NULL };
    const struct row *const syncs[] = { named("brant_tracker_sync"), named("brant_tracker_take"),
                                        named("brant_tracker_put_back"),
                                        named("brant_tracker_get_stats"), NULL };
    const struct row *const figures[] = { named("brant_outgoing_get_stats"),
                                          named("brant_outgoing_get_stats_json"),
                                          named("brant_incoming_get_stats"), NULL };
    const struct row *const ends[] = { named("brant_outgoing_wait"), named("brant_outgoing_cancel"),
                                       named("brant_incoming_wait"), named("brant_incoming_cancel"),
                                       NULL };
    const struct row *const blocks[] = { named("brant_guest_add_block"),
                                         named("brant_guest_remove_block"),
                                         named("brant_guest_add_slot"),
                                         named("brant_guest_remove_slot"), NULL };

    trying("marks beside syncs");
    hammered(TRACKING, marks, syncs, 200);
    ok(nothing_wrong(), "marks beside syncs, takes and put-backs");
    trying("figures beside cancels and waits");
    for (int i = 0; i < 20; i++)
        hammered(RUNNING, figures, ends, 10);
    ok(nothing_wrong(), "figures beside cancels and waits");
    trying("blocks that come and go beside marks");
    for (int i = 0; i < 20; i++)
        hammered(TRACKING, blocks, marks, 10);
    ok(nothing_wrong(), "blocks and slots that come and go beside marks");
}

#endif
