/*
 * A migration that does not converge, and what is done about it: policies, the operation
 * `throttle`, and changes while it runs. On real guests. A cap makes the link slow, and is said to be
 * the link (`switchover_bandwidth`), so no guest that writes fast converges by itself.
 */
#include "support.h"

#include <pthread.h>

static const struct mv_config config = {
    .vcpus = 2,
    .nregions = 1,
    .regions = { { .bytes = 16 * MIB } },
    .workload = GV_RANDOM,
    .rate = 20000,
    .fill_percent = 30,
};

static const brant_params params = {
    .size = sizeof params,
    .downtime_limit_ms = 100,
    .max_bandwidth = 16 << 20,
    .switchover_bandwidth = 16 << 20,
};

/* What the VMM was told. */
static struct {
    atomic_uint throttle, most, calls;
    /* Pauses of a guest that was slowed, and a throttle that makes no sense. */
    atomic_int wrong;
    bool fails;
    atomic_int throttled, stalled, downtime, warnings;
    char message[300];
} told;

static int32_t throttle(void *opaque, uint32_t vcpu, uint32_t percent, brant_reason *reason)
{
    struct vm *vm = opaque;

    atomic_fetch_add(&told.calls, 1);
    if (vcpu != BRANT_ALL_VCPUS || percent > 99)
        atomic_fetch_add(&told.wrong, 1);
    if (told.fails) {
        brant_reason_set(reason, "no cgroup to slow vCPUs in");
        return -1;
    }
    mv_set_throttle(vm->machine, -1, percent);
    atomic_store(&told.throttle, percent);
    if (percent > atomic_load(&told.most))
        atomic_store(&told.most, percent);
    return 0;
}

static int32_t at(struct vm *vm, enum op op, brant_reason *reason)
{
    (void)vm;
    (void)reason;
    if (op == OP_PAUSE && atomic_load(&told.throttle))
        atomic_fetch_add(&told.wrong, 1);
    return 0;
}

static void on_event(struct vm *vm, const brant_event *event)
{
    (void)vm;
    switch (event->kind) {
    case BRANT_EVENT_THROTTLE: atomic_fetch_add(&told.throttled, 1); break;
    case BRANT_EVENT_STALLED: atomic_fetch_add(&told.stalled, 1); break;
    case BRANT_EVENT_DOWNTIME: atomic_fetch_add(&told.downtime, 1); break;
    case BRANT_EVENT_WARNING:
        if (strstr(event->message, "`throttle`")) {
            snprintf(told.message, sizeof told.message, "%s", event->message);
            atomic_fetch_add(&told.warnings, 1);
        }
        break;
    default: break;
    }
}

/* A guest here, with the operation `throttle` or without, and one that waits for it. */
static void pair_new(struct vm **from, struct vm **to, bool slows, uint64_t ring_bytes)
{
    struct tracking how = { "log", ring_bytes ? BRANT_KVM_RING : BRANT_KVM_AUTO, 0, 0 };
    struct mv_config c = config;
    brant_ops ops = vm_ops;

    memset(&told, 0, sizeof told);
    ops.throttle = slows ? throttle : NULL;
    c.seed = random_below(UINT32_MAX);
    *from = vm_new_with(&c, ring_bytes, &ops, NULL);
    (*from)->at = at;
    (*from)->on_event = on_event;
    vm_track(*from, &how);
    vm_start(*from);
    c.incoming = true;
    *to = vm_new(&c);
}

static void pair_free(struct vm *from, struct vm *to)
{
    vm_free(from);
    vm_free(to);
}

static brant_stats stats_of(struct journey *j)
{
    brant_stats stats = BRANT_INIT(brant_stats);

    must(brant_outgoing_get_stats(j->out, &stats, &e));
    return stats;
}

/* Waits until a figure is not 0. */
static bool comes(struct journey *j, const char *what, uint64_t (*figure)(const brant_stats *))
{
    uint64_t until = now_us() + patience(30000) * 1000ull;
    brant_error *e = NULL;

    while (now_us() < until) {
        brant_stats stats = stats_of(j);

        if (figure(&stats))
            return true;
        sleep_us(2000);
    }
    brant_outgoing_wait(j->out, 0, &e);
    note("never came: %s; %s", what, brant_error_message(e));
    brant_error_free(e);
    return false;
}

static uint64_t slowed(const brant_stats *s)
{
    return s->throttle;
}

static uint64_t limited(const brant_stats *s)
{
    return s->limited_vcpus;
}

static uint64_t passes(const brant_stats *s)
{
    return s->pass > 2;
}

static void *switch_over(void *arg)
{
    struct journey *j = arg;

    must(brant_outgoing_switch_over(j->out, &e));
    return NULL;
}

static bool arrived(struct journey *j)
{
    journey_end(j, true);
    if (j->source.code || j->destination.code)
        note("%s / %s", j->source.why, j->destination.why);
    return j->source.code == 0 && j->destination.code == 0 && journey_equal(j) && vm_runs_clean(j->to);
}

static void test_slowed_and_switched_over(void)
{
    brant_policy policy = { .size = sizeof policy, .slowing = BRANT_SLOWING_ALL, .sync_ms = 100 };
    struct vm *from, *to;
    struct journey j;
    pthread_t thread;
    brant_stats stats;
    bool was;

    pair_new(&from, &to, true, 0);
    journey_new(&j, from, to, &params);
    must(brant_outgoing_set_policy(j.out, &policy, &e));
    journey_begin(&j, false);
    was = comes(&j, "a throttle", slowed);
    ok(was && atomic_load(&told.throttle) > 0 && atomic_load(&told.throttled) > 0,
       "a guest that dirties too much is slowed, and the figures and an event say so");
    stats = stats_of(&j);
    ok(stats.downtime_limit_ns == 100000000, "the limit in use is among the figures");
    if (pthread_create(&thread, NULL, switch_over, &j))
        bail("no thread");
    pthread_join(thread, NULL);
    ok(arrived(&j), "told to switch over by another thread, the guest arrives whole");
    ok(atomic_load(&told.wrong) == 0 && atomic_load(&told.throttle) == 0,
       "it was not slowed any more when it was paused");
    ok(j.stats.aborted_pauses == 0 && atomic_load(&told.downtime) > 0,
       "neither limit nor slack aborted that pause, and an event announced it");
    ok(j.stats.throttle == 0 && brant_outgoing_switch_over(j.out, NULL) == BRANT_E_STATE,
       "afterwards it is too late to switch over");
    brant_outgoing_free(j.out);
    pair_free(from, to);
}

static void test_throttle_fails(void)
{
    brant_policy policy = { .size = sizeof policy, .slowing = BRANT_SLOWING_ALL };
    struct vm *from, *to;
    struct journey j;

    pair_new(&from, &to, true, 0);
    told.fails = true;
    journey_new(&j, from, to, &params);
    must(brant_outgoing_set_policy(j.out, &policy, &e));
    journey_begin(&j, false);
    comes(&j, "some passes", passes);
    must(brant_outgoing_set_downtime_limit(j.out, 3600000, &e));
    ok(arrived(&j), "a throttle that fails is no failure, and a higher limit ends the migration");
    ok(atomic_load(&told.warnings) == 1 && strstr(told.message, "no cgroup") &&
           strstr(told.message, "goes on"),
       "one warning says why: %s", told.message);
    brant_outgoing_free(j.out);
    pair_free(from, to);
}

static void test_limited(void)
{
    brant_policy policy = { .size = sizeof policy, .slowing = BRANT_SLOWING_WRITERS, .sync_ms = 100 };
    struct vm *from, *to;
    struct journey j;
    char why[200];

    if (rings_available(64 << 10, why, sizeof why)) {
        skip(why, "vCPUs that dirty are limited in their rings, without an operation");
        skip(why, "and not any more when the policy has gone");
        return;
    }
    pair_new(&from, &to, false, 64 << 10);
    journey_new(&j, from, to, &params);
    must(brant_outgoing_set_policy(j.out, &policy, &e));
    journey_begin(&j, false);
    ok(comes(&j, "a limit", limited), "vCPUs that dirty are limited in their rings, without an operation");
    policy.slowing = BRANT_SLOWING_OFF;
    must(brant_outgoing_set_policy(j.out, &policy, &e));
    must(brant_outgoing_switch_over(j.out, &e));
    ok(arrived(&j) && j.stats.limited_vcpus == 0, "and not any more when the policy has gone");
    brant_outgoing_free(j.out);
    pair_free(from, to);
}

/* Whether a call has failed with `code`, and its message, which is freed, has `words`. */
static bool refused(int32_t found, brant_error **e, int32_t code, const char *words)
{
    bool so = found == code && strstr(brant_error_message(*e), words);

    if (!so)
        note("%s: %s; expected: %s", brant_error_name(found), brant_error_message(*e), words);
    brant_error_free(*e);
    *e = NULL;
    return so;
}

static void test_refused(void)
{
    static const struct {
        brant_policy policy;
        const char *words;
    } wrong[] = {
        { { .slowing = 3 }, "BRANT_SLOWING_WRITERS (2), not 3" },
        { { .on_deadline = 9 }, "BRANT_DEADLINE_POSTCOPY (3), not 9" },
        { { .throttle_max = 100 }, "it can be 1 to 99" },
        { { .throttle_max = UINT32_MAX }, "it can be 1 to 99" },
        { { .downtime_ceiling_ms = 99 }, "it can be 100 to 3600000 ms" },
        { { .downtime_ceiling_ms = UINT64_MAX }, "it can be 100 to 3600000 ms" },
        { { .deadline_ms = UINT64_MAX }, "it can be 1 to 2592000000 ms" },
        { { .deadline_ms = 3600001 }, "the total timeout of 1 h" },
        { { .stall_ms = UINT64_MAX }, "it can be 1 to 86400000 ms" },
        { { .sync_ms = 99 }, "it can be 100 to 3600000 ms" },
        { { .sync_ms = 3600001 }, "it can be 100 to 3600000 ms" },
        { { .reserved = 1 }, "reserved is 1" },
    };
    brant_policy policy = { .size = sizeof policy, .slowing = BRANT_SLOWING_ALL };
    struct vm *from, *to;
    struct journey j;
    brant_error *e = NULL;
    bool all = true;
    int pair[2];

    pair_new(&from, &to, false, 0);
    journey_new(&j, from, to, &params);
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        brant_policy one = wrong[i].policy;

        one.size = sizeof one;
        all &= refused(brant_outgoing_set_policy(j.out, &one, &e), &e, BRANT_E_INVALID, wrong[i].words);
    }
    ok(all, "a policy out of range is refused with the range");
    all = refused(brant_outgoing_set_downtime_limit(j.out, 0, &e), &e, BRANT_E_INVALID, "1 ms to 1 h");
    all &= refused(brant_outgoing_set_downtime_limit(j.out, UINT64_MAX, &e), &e, BRANT_E_INVALID,
                   "1 ms to 1 h");
    ok(all, "so is a downtime limit");
    must(brant_outgoing_set_policy(j.out, &policy, &e));
    make_socketpair(pair);
    ok(refused(brant_outgoing_start_fd(j.out, pair[0], &e), &e, BRANT_E_INVALID, "operation `throttle`"),
       "a policy that slows the guest is refused at the start where the VMM cannot");
    close(pair[1]);
    policy.slowing = BRANT_SLOWING_WRITERS;
    must(brant_outgoing_set_policy(j.out, &policy, &e));
    make_socketpair(pair);
    ok(refused(brant_outgoing_start_fd(j.out, pair[0], &e), &e, BRANT_E_UNSUPPORTED, "dirty rings"),
       "so are limits of single vCPUs where no log tells them apart");
    close(pair[1]);
    brant_outgoing_free(j.out);
    brant_incoming_free(j.in);
    pair_free(from, to);
}

int main(void)
{
    need_kvm();
    plan(14);
    random_begin();
    test_slowed_and_switched_over();
    test_throttle_fails();
    test_limited();
    test_refused();
    return done();
}
