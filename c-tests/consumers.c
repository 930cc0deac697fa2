/*
 * What other users of a tracker keep, whatever happens to a migration on it: a real guest that
 * writes, with each of KVM's logs. A backup (a consumer of its own) and the VMM itself each keep a
 * copy of the guest. At least 100 pages are pending for both when a migration begins. The migration
 * is refused at once, or in the last callback of either side; cancelled; cut off after thousands of
 * pages were delivered; handed over without an answer; or completed. Each time both copies become
 * equal to the guest by their pending pages and later writes.
 */
#include "support.h"

#include <poll.h>

struct kind { const char *name; uint32_t mode; uint64_t ring_bytes; };

static const struct kind kinds[] = {
    { "get-and-clear", BRANT_KVM_GET_AND_CLEAR, 0 },
    { "manual-protect", BRANT_KVM_MANUAL_PROTECT, 0 },
    { "initially-set", BRANT_KVM_INITIALLY_SET, 0 },
    { "ring", BRANT_KVM_RING, RING_DEFAULT },
};
static const struct kind *kind;

/* 8,000 pages, most of them touched. */
static const struct mv_config config = {
    .vcpus = 2,
    .nregions = 2,
    .regions = { { .bytes = 24 * MIB + 3 * PAGE }, { .bytes = 8 * MIB + PAGE, .memfd = true } },
    .workload = GV_RANDOM,
    .rate = 20000,
    .fill_percent = 80,
};

/* The keeper of a copy of the guest: the backup, or with NULL the VMM itself. */
struct keeper {
    const char *name;
    brant_consumer *consumer;
    struct copy copy;
    uint64_t had;
};
static struct keeper keepers[2];
static struct vm *from;

enum { KEEPERS = 2 };

static brant_sync keeper_sync(struct keeper *k, uint32_t when)
{
    brant_sync sync = { .size = sizeof sync };

    if (k->consumer)
        must(brant_consumer_sync(k->consumer, when, &sync, &e));
    else
        must(brant_tracker_sync(atomic_load(&from->tracker), when, &sync, &e));
    return sync;
}

static uint64_t keeper_pending(struct keeper *k)
{
    brant_tracker_stats own = { .size = sizeof own };
    brant_consumer_stats stats = { .size = sizeof stats };

    if (k->consumer) {
        must(brant_consumer_get_stats(k->consumer, &stats, &e));
        return stats.pending_pages;
    }
    must(brant_tracker_get_stats(atomic_load(&from->tracker), &own, &e));
    return own.pending_pages;
}

/* Takes at most `most` runs, and copies them. */
static size_t keeper_take(struct keeper *k, size_t most)
{
    brant_run runs[64];
    size_t count = 0;

    if (k->consumer)
        must(brant_consumer_take(k->consumer, runs, most < 64 ? most : 64, &count, &e));
    else
        must(brant_tracker_take(atomic_load(&from->tracker), runs, most < 64 ? most : 64, &count, &e));
    for (size_t i = 0; i < count; i++)
        copy_run(&k->copy, &runs[i]);
    return count;
}

static void keeper_drain(struct keeper *k)
{
    while (keeper_pending(k))
        while (keeper_take(k, 64))
            ;
}

/* ---- the guest and its keepers ---- */

static struct vm *machine(const struct mv_config *c)
{
    struct vm *vm = vm_new_with_rings(c, kind->ring_bytes);
    struct tracking how = { kind->name, kind->mode, BRANT_CLEAR_CHUNKED, 8 };

    vm_track(vm, &how);
    return vm;
}

static struct vm *destination(uint64_t less)
{
    struct mv_config c = config;

    c.incoming = true;
    c.regions[1].bytes -= less;
    return machine(&c);
}

static void begin(void)
{
    struct mv_config c = config;

    c.seed = random_below(UINT32_MAX);
    from = machine(&c);
    keepers[0] = (struct keeper){ .name = "the backup", .copy = copy_new(from) };
    keepers[1] = (struct keeper){ .name = "the VMM", .copy = copy_new(from) };
    vm_start(from);
    vm_writes(from, 1000);
    /* One keeper has copied the guest and is told of changes, the other takes every page. */
    vm_pause(from);
    copy_all(&keepers[0].copy);
    must(brant_consumer_new(atomic_load(&from->tracker), BRANT_START_CLEAN, &keepers[0].consumer, &e));
    vm_resume(from);
    must(brant_tracker_start(atomic_load(&from->tracker), BRANT_START_ALL, &e));
    keeper_drain(&keepers[1]);
}

static void end(void)
{
    brant_consumer_free(keepers[0].consumer);
    for (int i = 0; i < KEEPERS; i++)
        copy_free(&keepers[i].copy);
    vm_free(from);
}

/* Makes at least 100 pages pending for both, which they stay. */
static void have_pages(void)
{
    do {
        vm_writes(from, 200);
        keeper_sync(&keepers[random_below(KEEPERS)], BRANT_SYNC_RUNNING);
    } while (keeper_pending(&keepers[0]) < 100 || keeper_pending(&keepers[1]) < 100);
    for (int i = 0; i < KEEPERS; i++)
        keepers[i].had = keeper_pending(&keepers[i]);
}

/* ---- the migrations ---- */

enum ending { REFUSED_AT_ONCE, REFUSED_IN_LOAD, REFUSED_IN_RELEASE, CANCELLED, CUT, UNANSWERED, COMPLETED,
              ENDINGS };

static const struct { const char *name; int32_t code; } endings[ENDINGS] = {
    { "refused by the destination at once", BRANT_E_LAYOUT },
    { "refused in the destination's last callback", BRANT_E_REFUSED },
    { "refused in the source's last callback", BRANT_E_VMM },
    { "cancelled", BRANT_E_CANCELLED },
    { "cut after thousands of pages were delivered", BRANT_E_PEER_GONE },
    { "handed over without an answer, resumed here", BRANT_E_UNANSWERED },
    { "completed", 0 },
};

static int32_t fails_in(struct vm *vm, enum op op, brant_reason *reason)
{
    if (op != *(enum op *)vm->at_arg)
        return 0;
    brant_reason_set(reason, "not today");
    return -1;
}

/* Waits until this many pages are at the destination. Meanwhile the keepers go on: both sync, and
 * the VMM takes. */
static void until_delivered(struct journey *j, uint64_t pages)
{
    uint64_t limit = now_us() + (uint64_t)patience(30000) * 1000;
    brant_stats s = { .size = sizeof s };

    for (unsigned round = 0;; round++) {
        must(brant_outgoing_get_stats(j->out, &s, &e));
        if (s.data_pages + s.zero_pages - s.unacknowledged_pages >= pages)
            return;
        if (s.state >= BRANT_SOURCE_COMPLETED || now_us() > limit)
            bail("the migration did not get there: state %u", s.state);
        /* The keepers and the migration do not disturb each other. */
        if (round % 8 == 0) {
            keeper_sync(&keepers[random_below(KEEPERS)], BRANT_SYNC_RUNNING);
            keeper_take(&keepers[1], 1 + random_below(3));
        }
        poll(&(struct pollfd){ .fd = brant_outgoing_event_fd(j->out), .events = POLLIN }, 1, 1);
    }
}

static bool migrate(enum ending how)
{
    /* Slow, so that the migration can be caught in the middle. */
    brant_params params = { .size = sizeof params,
                            .max_bandwidth = how == CANCELLED || how == CUT ? 40 * MIB : 0 };
    struct vm *to = destination(how == REFUSED_AT_ONCE ? PAGE : 0);
    enum op op = how == REFUSED_IN_LOAD ? OP_LOAD : how == REFUSED_IN_RELEASE ? OP_RELEASE : OP_RUN;
    struct vm *fails = how == REFUSED_IN_RELEASE ? from : to;
    struct journey j;
    int pair[2], ours;
    bool good;

    journey_new(&j, from, to, &params);
    if (how == REFUSED_IN_LOAD || how == REFUSED_IN_RELEASE || how == UNANSWERED) {
        fails->at = fails_in;
        fails->at_arg = &op;
    }
    make_socketpair(pair);
    ours = dup(pair[0]);
    journey_begin_fds(&j, pair[0], pair[1]);
    if (how == CANCELLED || how == CUT) {
        until_delivered(&j, 3000);
        if (how == CUT)
            shutdown(ours, SHUT_RDWR);
        else
            must(brant_outgoing_cancel(j.out, &e));
    }
    journey_end(&j, true);
    if (how == UNANSWERED)
        must(brant_outgoing_resolve(j.out, BRANT_RESOLVE_RESUME, &e));
    good = j.source.code == endings[how].code;
    if (!good)
        note("%s: %s: %s", endings[how].name, brant_error_name(j.source.code), j.source.why);
    from->at = NULL;
    brant_outgoing_free(j.out);
    close(ours);
    vm_free(to);
    return good;
}

/* ---- what is promised ---- */

enum { PROMISES = 1 + KEEPERS * 2 };

static void one(enum ending how)
{
    bool good;

    have_pages();
    for (int i = 0; i < KEEPERS; i++)
        keepers[i].copy.taken = 0;
    good = migrate(how);
    ok(good, "%s, %s: it ends so", kind->name, endings[how].name);
    for (int i = 0; i < KEEPERS; i++) {
        struct keeper *k = &keepers[i];
        uint64_t pending = keeper_pending(k);

        note("%s: %" PRIu64 " pages were pending, %" PRIu64 " are, %" PRIu64 " were taken", k->name,
             k->had, pending, k->copy.taken);
        ok(pending + k->copy.taken >= k->had, "%s, %s: %s has all that it had", kind->name,
           endings[how].name, k->name);
    }
    if (how != COMPLETED)
        vm_pause(from);
    /* One sync serves all consumers, whoever makes it. */
    keeper_sync(&keepers[random_below(KEEPERS)], BRANT_SYNC_STOPPED);
    for (int i = 0; i < KEEPERS; i++) {
        struct keeper *k = &keepers[i];

        keeper_drain(k);
        equal(copy_differs(&k->copy), 0, "%s, %s: %s takes that and all written since", kind->name,
              endings[how].name, k->name);
    }
    if (how != COMPLETED)
        vm_resume(from);
}

int main(void)
{
    enum { KINDS = sizeof kinds / sizeof kinds[0] };
    char why[256];

    need_kvm();
    plan(KINDS * ENDINGS * PROMISES);
    random_begin();
    for (int i = 0; i < KINDS; i++) {
        kind = &kinds[i];
        if (kind->ring_bytes && rings_available(kind->ring_bytes, why, sizeof why)) {
            for (int p = 0; p < ENDINGS * PROMISES; p++)
                skip(why, "%s", kind->name);
            continue;
        }
        begin();
        for (int how = 0; how < ENDINGS; how++)
            one(how);
        end();
    }
    return done();
}
