/*
 * The tracker on a real guest that writes during syncs. Every page that the guest wrote is found,
 * in each mode of KVM's log, with each way of clearing, with one vCPU and with several. The checks
 * are in oracle.h; oracle.c makes them for every kind of log, with signals and stops. This tests
 * the tracker alone, and no migration.
 */
#include "oracle.h"

enum { VCPU_CASES = 2, MODES = 3, CLEARINGS = 4, PROMISES = 1 + ORACLE_JUDGED };

static const struct tracking modes[MODES] = {
    { "get-and-clear", BRANT_KVM_GET_AND_CLEAR, 0, 0 },
    { "manual-protect", BRANT_KVM_MANUAL_PROTECT, 0, 0 },
    { "initially-set", BRANT_KVM_INITIALLY_SET, 0, 0 },
};

static const struct tracking clearings[CLEARINGS] = {
    { "chunks of 2^6 pages", 0, BRANT_CLEAR_CHUNKED, 6 },
    { "chunks of 2^12 pages", 0, BRANT_CLEAR_CHUNKED, 12 },
    { "chunks of 2^18 pages", 0, BRANT_CLEAR_CHUNKED, 18 },
    { "cleared at sync", 0, BRANT_CLEAR_AT_SYNC, 0 },
};

static const enum gv_workload workloads[] = { GV_RANDOM, GV_SWEEP, GV_HOT };

/* Two blocks and four slots, none of whose ends but the first is a multiple of 64 pages. */
static const struct mv_config config = {
    .nregions = 2,
    .regions = {
        { .bytes = 40 * MIB + 5 * PAGE, .nslots = 3,
          .slot_bytes = { 10 * MIB + 3 * PAGE, 20 * MIB + 7 * PAGE } },
        { .name = "shared", .bytes = 32 * MIB + PAGE, .memfd = true },
    },
    .workload = GV_RANDOM,
    .fill_percent = 30,
};

static void follow(struct vm *vm, struct copy *copy)
{
    for (int round = 0; round < 6; round++) {
        vm_writes(vm, 300 + random_below(3000));
        vm_sync(vm, BRANT_SYNC_RUNNING);
        switch (random_below(4)) {
        case 0:
            oracle_put_back(vm);
            break;
        case 1:
            copy_take(copy, UINT64_MAX, 64);
            break;
        default:
            copy_take(copy, 1 + random_below(40), 1 + random_below(16));
            break;
        }
    }
}

static void one_case(struct vm *vm, struct copy *copy, const struct tracking *how, bool all)
{
    brant_tracker *tracker;
    struct reference then;

    vm_pause(vm);
    vm_track(vm, how);
    tracker = atomic_load(&vm->tracker);
    memset(copy->found, 0, vm->pages);
    copy->taken = 0;
    if (all)
        memset(copy->memory, 0xaa, vm->pages * PAGE);
    else
        copy_all(copy);
    must(brant_tracker_start(tracker, all ? BRANT_START_ALL : BRANT_START_CLEAN, &e));
    vm_sync(vm, BRANT_SYNC_STOPPED);
    copy_drain(copy);
    ok(copy->taken == (all ? vm->pages : 0) && copy_differs(copy) == 0,
       "%s: a start hands out %s once", how->name, all ? "every page" : "no page");

    then = oracle_begin(vm, copy);
    vm_resume(vm);
    follow(vm, copy);
    vm_pause(vm);
    vm_sync(vm, BRANT_SYNC_STOPPED);
    copy_drain(copy);
    oracle_judge(vm, copy, &then, how->name, 1, true);

    must(brant_tracker_stop(tracker, &e));
    vm_untrack(vm);
    vm_resume(vm);
}

int main(void)
{
    static const unsigned vcpus[VCPU_CASES] = { 1, 4 };
    unsigned n = 0;

    need_kvm();
    plan(VCPU_CASES * (MODES * CLEARINGS * PROMISES + 1));
    random_begin();
    for (int v = 0; v < VCPU_CASES; v++) {
        struct mv_config c = config;
        struct copy copy;
        struct vm *vm;

        c.vcpus = vcpus[v];
        c.seed = random_below(UINT32_MAX);
        vm = vm_new(&c);
        copy = copy_new(vm);
        vm_start(vm);
        for (int m = 0; m < MODES; m++)
            for (int k = 0; k < CLEARINGS; k++, n++) {
                char name[128];
                struct tracking how = { name, modes[m].mode, clearings[k].clearing,
                                        clearings[k].shift };

                snprintf(name, sizeof name, "%s, %s, %u vCPU%s", modes[m].name, clearings[k].name,
                         vcpus[v], vcpus[v] > 1 ? "s" : "");
                mv_set_workload(vm->machine, workloads[n % 3]);
                mv_set_rate(vm->machine, n % 2 ? 60000 : 0);
                one_case(vm, &copy, &how, n % 4 < 2);
            }
        ok(vm_runs_clean(vm), "%u vCPUs: the guest finds all that it wrote", vcpus[v]);
        vm_free(vm);
        copy_free(&copy);
    }
    return done();
}
