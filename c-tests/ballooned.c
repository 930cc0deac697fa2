/*
 * A balloon and free-page hints on a guest that runs while it is migrated, under KVM and as a
 * process. The guest works in the lower half of its memory. The upper half, which it has not
 * touched, is in the balloon or free. At the end or in the middle of the migration the guest
 * deflates the balloon and uses all of its memory. It records each write, so it knows which
 * contents it must find.
 */
#include "support.h"

#include <poll.h>

enum { PROMISES = 14, VCPUS = 2 };

struct range {
    uint64_t gpa, pages;
};

static struct vm *make(enum mv_kind kind, bool memfd, bool incoming)
{
    const struct mv_config c = {
        .kind = kind,
        .vcpus = VCPUS,
        .memory_bytes = 64 * MIB,
        .memfd = memfd,
        .workload = GV_MIXED,
        .rate = 4000,
        /* So that no page is a hole, and pages are left out only because they are ballooned. */
        .fill_percent = 100,
        .seed = 11,
        .incoming = incoming,
    };

    return vm_new(&c);
}

static void track(struct vm *vm, enum mv_kind kind)
{
    static const struct tracking how = { "initially-set", BRANT_KVM_AUTO, BRANT_CLEAR_CHUNKED, 10 };
    brant_tracker *tracker;

    if (kind == MV_KVM) {
        vm_track(vm, &how);
        return;
    }
    must(brant_tracker_new(vm->guest, NULL, &tracker, &e));
    atomic_store(&vm->tracker, tracker);
}

/* The part of vCPU `i`'s memory that it has never touched. */
static struct range upper_half(struct vm *vm, unsigned i)
{
    uint64_t gpa, n = mv_record(vm->machine, i, &gpa, NULL, 0);

    return (struct range){ gpa + (n / 2 + 1) * PAGE, n - n / 2 - 1 };
}

/* How many pages of the range take memory in this process. */
static uint64_t resident(struct vm *vm, struct range r)
{
    uint8_t *in = must_alloc(r.pages, 1);
    uint64_t count = 0;

    if (mincore(mv_host(vm->machine, r.gpa, r.pages * PAGE), r.pages * PAGE, in))
        bail("mincore: %s", strerror(errno));
    for (uint64_t i = 0; i < r.pages; i++)
        count += in[i] & 1;
    free(in);
    return count;
}

/* The VMM's balloon device: the guest inflates the balloon with these pages. */
static void inflate(struct vm *vm, struct range r, bool memfd)
{
    void *host = mv_host(vm->machine, r.gpa, r.pages * PAGE);

    /* 256 pages at a time, as they come over the queue. */
    for (uint64_t at = 0; at < r.pages; at += 256) {
        uint64_t n = r.pages - at < 256 ? r.pages - at : 256;

        if (madvise((char *)host + at * PAGE, n * PAGE, memfd ? MADV_REMOVE : MADV_DONTNEED))
            bail("madvise: %s", strerror(errno));
        brant_guest_mark_ballooned(vm->guest, r.gpa + at * PAGE, n * PAGE);
    }
}

static void deflate(struct vm *vm, struct range r)
{
    for (uint64_t at = 0; at < r.pages; at++)
        brant_guest_clear_ballooned(vm->guest, r.gpa + at * PAGE, PAGE);
}

static uint64_t ballooned(struct vm *vm)
{
    uint64_t pages = 0;

    must(brant_guest_count_ballooned(vm->guest, 0, vm->pages * PAGE, &pages, &e));
    return pages;
}

/* The guest uses all of its memory from now on. */
static void use_all(struct vm *vm)
{
    mv_set_rate(vm->machine, 0);
    if (mv_set_workload(vm->machine, GV_SWEEP))
        bail("workload: %s", mv_error(vm->machine));
}

/* The resident pages of the balloon: at the source in the end, and at the destination just before
 * the guest runs. */
static struct range balloon[VCPUS];
static uint64_t looked_at, cost;

static int32_t at_source(struct vm *vm, enum op op, brant_reason *reason)
{
    (void)reason;
    if (op == OP_SAVE)
        for (int i = 0; i < VCPUS; i++)
            looked_at += resident(vm, balloon[i]);
    return 0;
}

static int32_t at_destination(struct vm *vm, enum op op, brant_reason *reason)
{
    (void)reason;
    if (op == OP_LOAD)
        return brant_guest_must_tell_host(vm->guest, 1, NULL);
    if (op == OP_RUN)
        for (int i = 0; i < VCPUS; i++)
            cost += resident(vm, balloon[i]);
    return 0;
}

/* Waits until the source's figures show this pass. */
static void until(struct journey *j, uint32_t pass)
{
    struct pollfd changed = { brant_outgoing_event_fd(j->out), POLLIN, 0 };
    brant_stats s = { .size = sizeof s };
    uint64_t count;

    do {
        if (poll(&changed, 1, 30000) != 1)
            bail("no news of the migration");
        if (read(changed.fd, &count, sizeof count) < 0 && errno != EAGAIN)
            bail("eventfd: %s", strerror(errno));
        must(brant_outgoing_get_stats(j->out, &s, &e));
    } while (s.pass < pass && s.state < BRANT_SOURCE_COMPLETED);
}

static void inflated_long_before(enum mv_kind kind, bool memfd, const char *name)
{
    struct vm *from = make(kind, memfd, false), *to = make(kind, memfd, true);
    uint64_t given = 0;
    struct journey j;

    track(from, kind);
    must(brant_guest_must_tell_host(from->guest, 1, &e));
    vm_start(from);
    vm_writes(from, 500);
    for (unsigned i = 0; i < VCPUS; i++) {
        balloon[i] = upper_half(from, i);
        inflate(from, balloon[i], memfd);
        given += balloon[i].pages;
    }
    looked_at = cost = 0;
    from->at = at_source;
    to->at = at_destination;
    journey_new(&j, from, to, NULL);
    journey_begin(&j, true);
    journey_end(&j, false);
    ok(j.source.code == 0 && j.destination.code == 0, "%s: a guest with a balloon moves%s%s", name,
       j.source.code ? ": " : "", j.source.why);
    ok(journey_equal(&j), "%s: all of it arrives, the balloon as zeros", name);
    ok(j.stats.ballooned_pages >= given && j.stats.data_pages < from->pages,
       "%s: what is in the balloon is not sent", name);
    equal(looked_at, 0, "%s: nor looked at", name);
    note("%" PRIu64 " pages in the balloon, %" PRIu64 " named, %" PRIu64 " sent", given,
         j.stats.ballooned_pages, j.stats.data_pages);
    equal(cost, 0, "%s: it costs no memory at the destination", name);
    equal(ballooned(to), given, "%s: the destination knows all of it", name);
    deflate(to, balloon[0]);
    deflate(to, balloon[1]);
    equal(ballooned(to), 0, "%s: deflated at the destination, none is", name);
    use_all(to);
    vm_writes(to, to->pages);
    ok(vm_runs_clean(to), "%s: the guest uses it there and finds what it wrote", name);
    vm_free(from);
    vm_free(to);
}

static void used_again_meanwhile(enum mv_kind kind, bool memfd, const char *name)
{
    const brant_params params = { .size = sizeof params, .max_bandwidth = 48 * MIB,
                                  .downtime_limit_ms = 50 };
    struct vm *from = make(kind, memfd, false), *to = make(kind, memfd, true);
    struct range half[VCPUS], hinted;
    uint64_t round = 0, stale, tries = 0;
    brant_tracker_stats t = { .size = sizeof t };
    brant_tracker *tracker;
    struct journey j;

    track(from, kind);
    tracker = atomic_load(&from->tracker);
    must(brant_guest_must_tell_host(from->guest, 1, &e));
    vm_start(from);
    vm_writes(from, 500);
    for (unsigned i = 0; i < VCPUS; i++)
        half[i] = upper_half(from, i);
    /* The first vCPU's half is in the balloon; half of the other one's is free. */
    inflate(from, half[0], memfd);
    hinted = (struct range){ half[1].gpa, half[1].pages / 2 };
    must(brant_guest_must_tell_host(to->guest, 1, &e));
    journey_new(&j, from, to, &params);
    journey_begin(&j, false);
    until(&j, 1);
    while (brant_tracker_begin_hints(tracker, &round, NULL) && tries++ < 100000)
        sleep_us(10);
    ok(brant_tracker_hint_free(tracker, round, hinted.gpa, hinted.pages * PAGE, NULL) == 0,
       "%s: a hint is taken in its round", name);
    until(&j, 2);
    stale = round;
    equal(brant_tracker_hint_free(tracker, stale, hinted.gpa, hinted.pages * PAGE, NULL),
          BRANT_E_STATE, "%s: and refused after the next sync", name);
    brant_tracker_end_hints(tracker, round);
    /* The balloon's pages are used after a word to the VMM, the free ones without one. */
    deflate(from, half[0]);
    if (mv_set_workload(from->machine, GV_SWEEP))
        bail("workload: %s", mv_error(from->machine));
    journey_end(&j, false);
    must(brant_tracker_get_stats(tracker, &t, &e));
    note("%" PRIu64 " pages named as ballooned, %" PRIu64 " hinted, %" PRIu64 " sent in %u passes",
         j.stats.ballooned_pages, j.stats.hinted_pages, j.stats.data_pages, j.stats.pass);
    ok(j.source.code == 0 && j.stats.ballooned_pages > 0 && j.stats.hinted_pages > 0 &&
           t.stale_hints == 1,
       "%s: a guest that uses it again while it moves moves%s%s", name,
       j.source.code ? ": " : "", j.source.why);
    equal(ballooned(to), 0, "%s: no page is ballooned any more", name);
    /* A slow guest may have made only half a sweep. It goes on with the sweep at the destination.
     */
    ok(vm_runs_clean(to), "%s: the guest finds what it wrote before, meanwhile and since", name);
    mv_set_rate(to->machine, 0);
    vm_writes(to, to->pages);
    ok(vm_runs_clean(to), "%s: and after using all of it", name);
    vm_free(from);
    vm_free(to);
}

int main(void)
{
    static const struct {
        enum mv_kind kind;
        bool memfd;
        const char *name;
    } cases[] = {
        { MV_PROCESS, false, "process" },
        { MV_PROCESS, true, "process, memfd" },
        { MV_KVM, false, "KVM" },
        { MV_KVM, true, "KVM, memfd" },
    };
    char why[200];
    bool kvm = mv_kvm_available(why, sizeof why) == 0;

    if (!kvm)
        note("only as a process: %s", why);
    plan((kvm ? 4 : 2) * PROMISES);
    random_begin();
    for (int i = 0; i < (kvm ? 4 : 2); i++) {
        inflated_long_before(cases[i].kind, cases[i].memfd, cases[i].name);
        used_again_meanwhile(cases[i].kind, cases[i].memfd, cases[i].name);
    }
    return done();
}
