/*
 * 300 migrations one after the other in one process. However they end, there are as many file
 * descriptors and threads after the last as after the first 50, and no more memory. switchover.c
 * tests what arrives. Needs no KVM: the guest is a few MiB of this process.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <malloc.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>

#include <brant.h>

#include "tap.h"

enum { MIGRATIONS = 300, WARM = 50, BYTES = 4 << 20 };
/* How much more memory the allocator may keep. It is not exact, and if each migration kept one page
 * that would be 1000 KiB. */
enum { RESIDENT_KIB = 512, HEAP_KIB = 32 };

enum end { COMPLETES, CANCELLED, REFUSED, BY_TCP, CUT, CANCELLED_THERE, BLOCKED, UNANSWERED, ENDS };
static const char *const ends[] = { "completed", "cancelled", "refused by load", "completed by tcp",
                                    "cut", "cancelled at the destination", "blocked", "unanswered" };

static char *memory[2];
static uint64_t seed = 12345;

static uint64_t below(uint64_t n)
{
    seed = seed * 6364136223846793005ull + 1442695040888963407ull;
    return (seed >> 33) % n;
}

static void sleep_us(uint64_t us)
{
    struct timespec t = { 0, (long)us * 1000 };

    nanosleep(&t, NULL);
}

static void must_at(int32_t code, const char *what, int line)
{
    if (code)
        bail("line %d: %s: %s", line, what, brant_error_name(code));
}
#define MUST(call) must_at(call, #call, __LINE__)

/* ---- what the process holds ---- */

struct held { long descriptors, threads, resident_kib, heap_kib; };

static long entries(const char *path)
{
    DIR *dir = opendir(path);
    long n = 0;

    if (!dir)
        bail("%s: %s", path, strerror(errno));
    while (readdir(dir))
        n++;
    closedir(dir);
    return n;
}

static struct held held(void)
{
    /* A thread that was joined still exists until the kernel is done with it. */
    for (unsigned ms = patience(5000); entries("/proc/self/task") > 3 && ms > 0; ms--)
        sleep_us(1000);

    struct held h = { .descriptors = entries("/proc/self/fd"), .threads = entries("/proc/self/task") };
    FILE *file = fopen("/proc/self/statm", "re");
    long size;

    if (!file || fscanf(file, "%ld %ld", &size, &h.resident_kib) != 2)
        bail("/proc/self/statm");
    fclose(file);
    h.resident_kib *= 4;
    h.heap_kib = (long)(mallinfo2().uordblks / 1024);
    return h;
}

/* ---- one migration ---- */

struct journey { enum end end; };

static int32_t nothing(void *opaque, brant_reason *reason)
{
    (void)opaque, (void)reason;
    return 0;
}

static int32_t save(void *opaque, brant_saver *saver, brant_reason *reason)
{
    static const char state[100000];

    (void)opaque, (void)reason;
    return brant_saver_put(saver, "device", 0, 1, state, sizeof state, NULL);
}

static int32_t load(void *opaque, const brant_state_blob *blob, brant_reason *reason)
{
    struct journey *j = opaque;

    (void)blob;
    if (j->end != REFUSED)
        return 0;
    brant_reason_set(reason, "not this device");
    return -1;
}

static int32_t run(void *opaque, brant_reason *reason)
{
    struct journey *j = opaque;

    (void)reason;
    return j->end == UNANSWERED ? -1 : 0;
}

static const brant_ops ops = { .size = sizeof ops, .pause = nothing, .resume = nothing,
                               .save = save, .load = load, .run = run };

static brant_guest *guest_new(char *host, struct journey *j)
{
    brant_ram_block block = { .size = sizeof block, .name = "ram", .host = host, .length = BYTES,
                              .fd = -1 };
    brant_slot slot = { .size = sizeof slot, .length = BYTES, .slot = BRANT_NO_SLOT };
    brant_guest *guest;

    MUST(brant_guest_new(&ops, j, &guest, NULL));
    MUST(brant_guest_add_block(guest, &block, &slot.block, NULL));
    MUST(brant_guest_add_slot(guest, &slot, NULL));
    return guest;
}

/* Whether it ended as expected. A cancel or a cut may come too late. */
static bool migrate(enum end end)
{
    struct journey j = { .end = end };
    brant_guest *from = guest_new(memory[0], &j), *to = guest_new(memory[1], &j);
    brant_error *error = NULL;
    brant_tracker *tracker;
    brant_outgoing *out;
    brant_incoming *in;
    brant_blocker *blocker = NULL;
    char bound[64];
    int pair[2], cut = -1;
    int32_t code;
    bool good;

    MUST(brant_tracker_new(from, NULL, &tracker, NULL));
    MUST(brant_outgoing_new(tracker, NULL, &out, NULL));
    MUST(brant_incoming_new(to, NULL, &in, NULL));
    if (end == BLOCKED)
        MUST(brant_blocker_new(from, "for now", &blocker, NULL));
    if (end == BY_TCP) {
        MUST(brant_incoming_listen(in, "tcp:127.0.0.1:0", NULL));
        MUST(brant_incoming_get_endpoint(in, bound, sizeof bound, NULL, NULL));
        MUST(brant_outgoing_start(out, bound, NULL));
    } else {
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
            bail("socketpair: %s", strerror(errno));
        if (end == CUT)
            cut = dup(pair[0]);
        MUST(brant_incoming_start_fd(in, pair[1], NULL));
        code = brant_outgoing_start_fd(out, pair[0], NULL);
        if (code != (end == BLOCKED ? BRANT_E_BLOCKED : 0))
            bail("start: %s", brant_error_name(code));
    }
    brant_tracker_mark(tracker, below(BYTES), 10000);
    if (end == CANCELLED || end == CANCELLED_THERE || end == CUT)
        sleep_us(below(4000));
    if (end == CANCELLED)
        brant_outgoing_cancel(out, NULL);
    if (end == CANCELLED_THERE)
        brant_incoming_cancel(in, NULL);
    if (end == CUT) {
        shutdown(cut, SHUT_RDWR);
        close(cut);
    }
    code = end == BLOCKED ? 1 : brant_outgoing_wait(out, patience(30000), &error);
    switch (end) {
    case COMPLETES:
    case BY_TCP:
        good = code == 0 && brant_incoming_wait(in, patience(30000), NULL) == 0 &&
               memcmp(memory[0], memory[1], BYTES) == 0;
        break;
    case REFUSED:
        good = code == BRANT_E_REFUSED || code == BRANT_E_VMM;
        break;
    case UNANSWERED:
        good = code == BRANT_E_UNANSWERED &&
               brant_outgoing_resolve(out, BRANT_RESOLVE_RESUME, NULL) == 0;
        break;
    default:
        good = true;
    }
    if (!good)
        note("%s: %s: %s", ends[end], brant_error_name(code), brant_error_message(error));
    brant_error_free(error);
    brant_blocker_free(blocker);
    /* Some are freed while they are in progress. */
    brant_incoming_free(in);
    brant_outgoing_free(out);
    brant_tracker_free(tracker);
    brant_guest_free(from);
    brant_guest_free(to);
    return good;
}

int main(void)
{
    struct held before = { 0 }, after;
    int bad = 0;

    plan(5);
    for (int side = 0; side < 2; side++) {
        memory[side] = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory[side] == MAP_FAILED)
            bail("mmap: %s", strerror(errno));
        for (size_t i = 0; i < BYTES; i++)
            memory[side][i] = (char)(i / 4096 * 7 + i);
    }
    for (int i = 0; i < MIGRATIONS; i++) {
        memory[0][below(BYTES)]++;
        bad += !migrate((enum end)(i % ENDS));
        if (i + 1 == WARM)
            before = held();
    }
    after = held();
    note("after %d: %ld descriptors, %ld threads, %ld KiB resident, %ld KiB of heap in use", WARM,
         before.descriptors, before.threads, before.resident_kib, before.heap_kib);
    note("after %d: %ld descriptors, %ld threads, %ld KiB resident, %ld KiB of heap in use", MIGRATIONS,
         after.descriptors, after.threads, after.resident_kib, after.heap_kib);
    equal(bad, 0, "%d migrations one after the other end as they should", MIGRATIONS);
    equal(after.descriptors, before.descriptors, "there are as many descriptors as after %d", WARM);
    equal(after.threads, before.threads, "there are as many threads");
    ok(after.resident_kib <= before.resident_kib + RESIDENT_KIB, "there is no more memory resident");
    ok(after.heap_kib <= before.heap_kib + HEAP_KIB, "there is no more memory allocated");
    return done();
}
