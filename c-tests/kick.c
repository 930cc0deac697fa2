/*
 * A VMM that kicks its vCPUs in the roughest way: it pauses the guest and resumes it. With dirty
 * rings brant kicks before each sync of a running guest. So no kick may come between `pause` and
 * `resume`, after a hand-over, or where a guest arrives: it would run a guest that stands still,
 * and then two run. That holds for every tracker, on every thread. On real guests with rings.
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

struct host {
    struct vm *vm;
    /* The machine's lock, for one controlling thread at a time. */
    pthread_mutex_t control;
    /* Whether the guest runs here, by all that the VMM was told. */
    atomic_bool may_run;
    atomic_int kicks, inside;
    /* Kicks of a guest that must not run, and pauses during a kick. */
    atomic_int wrong_kicks, wrong_pauses;
    /* A thread that syncs the tracker all the time. */
    pthread_t syncing;
    atomic_bool ends;
    atomic_int syncs;
};

static int32_t rough_kick(void *opaque, brant_reason *reason)
{
    struct host *host = opaque;
    int32_t code = 0;

    (void)reason;
    atomic_fetch_add(&host->inside, 1);
    if (!atomic_load(&host->may_run)) {
        /* The kick is only counted here; really made, it would end the test. */
        atomic_fetch_add(&host->wrong_kicks, 1);
    } else {
        pthread_mutex_lock(&host->control);
        code = mv_pause(host->vm->machine) || mv_resume(host->vm->machine) ? -1 : 0;
        pthread_mutex_unlock(&host->control);
    }
    if (!atomic_load(&host->may_run))
        atomic_fetch_add(&host->wrong_kicks, 1);
    atomic_fetch_add(&host->kicks, 1);
    atomic_fetch_sub(&host->inside, 1);
    return code;
}

static int32_t host_pause(void *opaque, brant_reason *reason)
{
    struct host *host = opaque;
    int32_t code;

    if (atomic_load(&host->inside))
        atomic_fetch_add(&host->wrong_pauses, 1);
    atomic_store(&host->may_run, false);
    pthread_mutex_lock(&host->control);
    code = op_pause(host->vm, reason);
    pthread_mutex_unlock(&host->control);
    return code;
}

static int32_t host_resume(void *opaque, brant_reason *reason)
{
    struct host *host = opaque;
    int32_t code;

    pthread_mutex_lock(&host->control);
    code = op_resume(host->vm, reason);
    pthread_mutex_unlock(&host->control);
    if (code == 0)
        atomic_store(&host->may_run, true);
    return code;
}

static int32_t host_save(void *opaque, brant_saver *saver, brant_reason *reason)
{
    return op_save(((struct host *)opaque)->vm, saver, reason);
}

static int32_t host_load(void *opaque, const brant_state_blob *blob, brant_reason *reason)
{
    return op_load(((struct host *)opaque)->vm, blob, reason);
}

static int32_t host_release(void *opaque, brant_reason *reason)
{
    return op_release(((struct host *)opaque)->vm, reason);
}

static int32_t host_run(void *opaque, brant_reason *reason)
{
    struct host *host = opaque;
    int32_t code;

    pthread_mutex_lock(&host->control);
    code = op_run(host->vm, reason);
    pthread_mutex_unlock(&host->control);
    if (code == 0)
        atomic_store(&host->may_run, true);
    return code;
}

static const brant_ops host_ops = { .size = sizeof host_ops, .pause = host_pause, .resume = host_resume,
                                    .save = host_save, .load = host_load, .release = host_release,
                                    .run = host_run, .kick = rough_kick };

/* A tracker of the machine's rings, with rough kicks. */
static brant_tracker *ring_tracker(struct host *host)
{
    brant_kvm_log kvm = { .size = sizeof kvm, .vm_fd = mv_vm_fd(host->vm->machine),
                      .mode = BRANT_KVM_RING };
    brant_tracker *tracker;

    must(brant_tracker_new(host->vm->guest, NULL, &tracker, &e));
    must(brant_tracker_add_kvm(tracker, &kvm, &e));
    for (unsigned i = 0; i < mv_vcpu_count(host->vm->machine); i++)
        must(brant_tracker_add_vcpu(tracker, i, mv_vcpu_fd(host->vm->machine, i), &e));
    return tracker;
}

static struct host *host_new(bool runs)
{
    struct host *host = must_alloc(1, sizeof *host);
    struct mv_config c = config;

    c.incoming = !runs;
    c.seed = random_below(UINT32_MAX);
    pthread_mutex_init(&host->control, NULL);
    host->vm = vm_new_with(&c, RING_DEFAULT, &host_ops, host);
    atomic_store(&host->vm->tracker, ring_tracker(host));
    if (runs) {
        atomic_store(&host->may_run, true);
        vm_start(host->vm);
    } else {
        /* This machine waits for a guest. */
        must(brant_guest_give_up(host->vm->guest, &e));
    }
    return host;
}

static void host_free(struct host *host)
{
    vm_free(host->vm);
    pthread_mutex_destroy(&host->control);
    free(host);
}

static bool well_kicked(const struct host *host)
{
    if (host->wrong_kicks || host->wrong_pauses)
        note("%d kicks of a guest that must not run, %d pauses during a kick", host->wrong_kicks,
             host->wrong_pauses);
    return host->wrong_kicks == 0 && host->wrong_pauses == 0;
}

static void *sync_all_the_time(void *arg)
{
    struct host *host = arg;
    brant_sync sync = { .size = sizeof sync };

    while (!atomic_load(&host->ends)) {
        if (brant_tracker_sync(atomic_load(&host->vm->tracker), BRANT_SYNC_RUNNING, &sync, NULL) == 0)
            atomic_fetch_add(&host->syncs, 1);
        sleep_us(200);
    }
    return NULL;
}

static void syncs_begin(struct host *host)
{
    must(brant_tracker_start(atomic_load(&host->vm->tracker), BRANT_START_CLEAN, &e));
    atomic_store(&host->ends, false);
    if (pthread_create(&host->syncing, NULL, sync_all_the_time, host))
        bail("no thread");
}

/* Returns after some more syncs. */
static void syncs_go_on(struct host *host)
{
    int from = atomic_load(&host->syncs);
    uint64_t until = now_us() + patience(30000) * 1000ull;

    while (atomic_load(&host->syncs) < from + 20) {
        if (now_us() > until)
            bail("nothing is synced any more");
        sleep_us(1000);
    }
}

static void syncs_end(struct host *host)
{
    atomic_store(&host->ends, true);
    pthread_join(host->syncing, NULL);
    must(brant_tracker_stop(atomic_load(&host->vm->tracker), &e));
}

static bool stands_still(struct host *host)
{
    uint64_t written = vm_written(host->vm);

    sleep_us(20000);
    return vm_written(host->vm) == written;
}

/* Migrates by `tracker`. Returns the result at the source. */
static int32_t migrate(brant_tracker *tracker, struct host *to)
{
    brant_outgoing *out;
    brant_incoming *in;
    brant_error *error = NULL;
    int32_t code, there;
    int pair[2];

    must(brant_outgoing_new(tracker, NULL, &out, &e));
    must(brant_incoming_new(to->vm->guest, NULL, &in, &e));
    make_socketpair(pair);
    must(brant_incoming_start_fd(in, pair[1], &e));
    must(brant_outgoing_start_fd(out, pair[0], &e));
    code = brant_outgoing_wait(out, patience(60000), &error);
    there = brant_incoming_wait(in, patience(60000), NULL);
    if (code || there)
        note("%s (%s), there %s", brant_error_name(code), brant_error_message(error),
             brant_error_name(there));
    brant_error_free(error);
    brant_outgoing_free(out);
    brant_incoming_free(in);
    return code;
}

static int32_t fails(struct vm *vm, enum op op, brant_reason *reason)
{
    (void)vm;
    if (op != OP_LOAD)
        return 0;
    brant_reason_set(reason, "not this processor");
    return -1;
}

static void there_and_back(void)
{
    struct host *s = host_new(true), *d = host_new(false);
    int before;

    /* The destination's VMM tracks from the start, and syncs while the guest arrives. */
    syncs_begin(d);
    ok(migrate(atomic_load(&s->vm->tracker), d) == 0, "a guest that is kicked roughly moves");
    ok(s->kicks > 0, "it was kicked while it ran");
    ok(well_kicked(s) && stands_still(s),
       "no kick came after its pause: the end of tracking does not wake it");
    before = s->kicks;
    syncs_begin(s);
    syncs_go_on(s);
    syncs_end(s);
    ok(well_kicked(s) && stands_still(s) && s->kicks == before,
       "no tracker that starts and syncs at the source later kicks it");
    ok(well_kicked(d), "no kick came at the destination before its run");
    before = d->kicks;
    syncs_go_on(d);
    ok(d->kicks > before, "and they came when it ran there");
    syncs_end(d);
    ok(vm_runs_clean(d->vm), "the guest goes on there");

    /* A machine of this test runs only once, so the way back leads to a new one. */
    host_free(s);
    s = host_new(false);
    d->vm->at = NULL;
    s->vm->at = fails;
    before = d->kicks;
    ok(migrate(atomic_load(&d->vm->tracker), s) == BRANT_E_REFUSED && d->may_run && well_kicked(d),
       "a destination that refuses: the guest was paused, not kicked, and resumed");
    before = d->kicks;
    syncs_begin(d);
    syncs_go_on(d);
    ok(d->kicks > before && well_kicked(d), "and is kicked again when it has been resumed");
    syncs_end(d);
    before = s->kicks;
    syncs_begin(s);
    syncs_go_on(s);
    syncs_end(s);
    ok(s->kicks == before && well_kicked(s), "a destination where a guest should have arrived is not");
    host_free(s);
    host_free(d);
}

enum { ROUNDS = 6 };

/* One tracker has the rings, and a thread of the VMM's syncs it. A migration uses the other. */
static void two_trackers(void)
{
    struct host *s = host_new(true);
    int resumed = 0, rounds = 0;
    brant_tracker *other;

    must(brant_tracker_new(s->vm->guest, NULL, &other, &e));
    syncs_begin(s);
    for (; rounds < ROUNDS; rounds++) {
        bool last = rounds == ROUNDS - 1;
        struct host *d = host_new(false);

        syncs_go_on(s);
        d->vm->at = last ? NULL : fails;
        if (migrate(other, d) == (last ? 0 : BRANT_E_REFUSED))
            resumed += last || s->may_run;
        syncs_go_on(s);
        if (last)
            ok(stands_still(s), "a guest that is handed over is not woken by a tracker that syncs on");
        host_free(d);
    }
    equal(resumed, ROUNDS, "with a second tracker that kicks all the time every migration ends well");
    ok(s->kicks > 0 && well_kicked(s), "each pause waited for the kicks that had begun, and none came after");
    syncs_end(s);
    brant_tracker_free(other);
    host_free(s);
}

int main(void)
{
    char why[300];

    if (rings_available(RING_DEFAULT, why, sizeof why))
        skip_all(why);
    plan(13);
    random_begin();
    there_and_back();
    two_trackers();
    return done();
}
