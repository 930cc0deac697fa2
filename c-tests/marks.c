/*
 * Eight threads write to memory and mark their writes as fast as they can, while another one syncs,
 * takes, copies and puts back. In the end every write is in the copy, and no mark ever waited. The
 * longest mark's time is reported and not judged: with more threads than processors it is the time
 * for which the kernel ran another thread. Needs no KVM.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>

#include <brant.h>

#include "tap.h"

enum { SETTERS = 8, PAGE = 4096, PAGES = 6000, MILLISECONDS = 2000 };
#define GUEST_ADDRESS (1ull << 32)

static char *memory, *copy;
static brant_tracker *tracker;
static atomic_bool stop;

struct setter {
    pthread_t thread;
    unsigned number;
    uint64_t seed, marks, longest_ns, over_100us;
    long waits;
    /* The last value written to each page, at this thread's own place there. */
    uint64_t last[PAGES];
};
static struct setter setters[SETTERS];

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static uint64_t next(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005ull + 1442695040888963407ull;
    return *seed >> 33;
}

static _Atomic(uint64_t) *place(char *in, uint64_t page, unsigned number)
{
    return (_Atomic(uint64_t) *)(void *)(in + page * PAGE + number * 512);
}

static long waits(void)
{
    struct rusage usage;

    getrusage(RUSAGE_THREAD, &usage);
    return usage.ru_nvcsw;
}

static void *set(void *arg)
{
    struct setter *s = arg;
    long before = waits();

    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        uint64_t page = next(&s->seed) % PAGES, begun, took;
        /* A write to one page, or across three. */
        uint64_t pages = s->marks % 16 == 0 && page + 3 <= PAGES ? 3 : 1;

        s->marks++;
        for (uint64_t i = page; i < page + pages; i++) {
            s->last[i] = s->marks;
            atomic_store_explicit(place(memory, i, s->number), s->marks, memory_order_relaxed);
        }
        begun = now_ns();
        if (s->number % 3 == 1)
            brant_tracker_mark(tracker, GUEST_ADDRESS + page * PAGE, pages * PAGE);
        else if (s->number % 3 == 2)
            brant_tracker_mark_host(tracker, memory + page * PAGE, pages * PAGE);
        else
            brant_tracker_mark_block(tracker, 0, page * PAGE, pages * PAGE);
        took = now_ns() - begun;
        if (took > s->longest_ns)
            s->longest_ns = took;
        s->over_100us += took > 100000;
    }
    s->waits = waits() - before;
    return NULL;
}

static void must_at(int32_t code, const char *what, int line)
{
    if (code)
        bail("line %d: %s: %s", line, what, brant_error_name(code));
}
#define MUST(call) must_at(call, #call, __LINE__)

/* Takes pending pages to the end of the walk, and copies them. One run in `back` is put back. */
static uint64_t take(unsigned back, uint64_t *seed)
{
    brant_run runs[64];
    uint64_t taken = 0;
    size_t count;

    do {
        MUST(brant_tracker_take(tracker, runs, 64, &count, NULL));
        for (size_t i = 0; i < count; i++) {
            if (back && next(seed) % back == 0) {
                MUST(brant_tracker_put_back(tracker, runs[i].block, runs[i].first_page,
                                            runs[i].pages, NULL));
                continue;
            }
            for (uint64_t page = runs[i].first_page; page < runs[i].first_page + runs[i].pages; page++)
                for (unsigned n = 0; n < SETTERS; n++)
                    *place(copy, page, n) = *place(memory, page, n);
            taken += runs[i].pages;
        }
    } while (count);
    return taken;
}

static char *mapped(void)
{
    char *at = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

    if (at == MAP_FAILED)
        bail("mmap: %s", strerror(errno));
    return at;
}

int main(void)
{
    brant_ram_block block = { .size = sizeof block, .name = "ram", .length = PAGES * PAGE, .fd = -1 };
    brant_slot slot = { .size = sizeof slot, .length = PAGES * PAGE,
                        .guest_address = GUEST_ADDRESS, .slot = BRANT_NO_SLOT };
    uint64_t seed = 1, marks = 0, longest = 0, over = 0, syncs = 0, taken = 0, lost = 0, until;
    brant_tracker_stats stats = { .size = sizeof stats };
    brant_guest *guest;
    long waited = 0;

    plan(4);
    memory = mapped();
    copy = mapped();
    block.host = memory;
    MUST(brant_guest_new(NULL, NULL, &guest, NULL));
    MUST(brant_guest_add_block(guest, &block, &slot.block, NULL));
    MUST(brant_guest_add_slot(guest, &slot, NULL));
    MUST(brant_tracker_new(guest, NULL, &tracker, NULL));
    MUST(brant_tracker_start(tracker, BRANT_START_CLEAN, NULL));
    for (unsigned i = 0; i < SETTERS; i++) {
        setters[i].number = i;
        setters[i].seed = i * 7919 + 1;
        /* Touched before, because a first touch may wait in the kernel. */
        memset(setters[i].last, 0, sizeof setters[i].last);
        if (pthread_create(&setters[i].thread, NULL, set, &setters[i]))
            bail("no thread");
    }
    until = now_ns() + MILLISECONDS * 1000000ull;
    while (now_ns() < until) {
        MUST(brant_tracker_sync(tracker, BRANT_SYNC_RUNNING, NULL, NULL));
        syncs++;
        taken += take(8, &seed);
    }
    atomic_store(&stop, true);
    for (unsigned i = 0; i < SETTERS; i++) {
        pthread_join(setters[i].thread, NULL);
        marks += setters[i].marks;
        over += setters[i].over_100us;
        waited += setters[i].waits;
        if (setters[i].longest_ns > longest)
            longest = setters[i].longest_ns;
    }
    MUST(brant_tracker_sync(tracker, BRANT_SYNC_STOPPED, NULL, NULL));
    do {
        taken += take(0, &seed);
        MUST(brant_tracker_get_stats(tracker, &stats, NULL));
    } while (stats.pending_pages);
    for (unsigned i = 0; i < SETTERS; i++)
        for (uint64_t page = 0; page < PAGES; page++)
            if (*place(copy, page, i) != setters[i].last[page] && lost++ < 5)
                note("thread %u wrote %" PRIu64 " to page %" PRIu64 ", the copy has %" PRIu64, i,
                     setters[i].last[page], page, (uint64_t)*place(copy, page, i));
    note("%" PRIu64 " marks, %" PRIu64 " syncs, %" PRIu64 " pages taken", marks, syncs, taken);
    note("longest mark %.3f ms, %" PRIu64 " over 0.1 ms; %ld waits", (double)longest / 1e6, over,
         waited);
    ok(marks > 10000 && syncs > 10, "marks and syncs go on beside each other");
    equal(lost, 0, "every write that was marked is found");
    /* A mark that took a lock would wait thousands of times. A few waits are the kernel's own. */
    ok(waited <= SETTERS * 4, "no mark ever waits");
    MUST(brant_tracker_stop(tracker, NULL));
    brant_tracker_free(tracker);
    brant_guest_free(guest);
    ok(memcmp(memory, copy, PAGES * PAGE) == 0, "the copy is the memory, byte for byte");
    return done();
}
