/*
 * The tracker on a real guest that writes while it is looked at: every page that the
 * guest wrote is found, in each mode of KVM's log, each way of clearing, with one vCPU
 * and with several. Held against three things that know nothing of any log: the guest's
 * own record of its writes, a digest of every page, and a copy that is kept up to date
 * with nothing but what the tracker hands out.
 * Not about migrations: the tracker alone.
 */
#include "support.h"

enum { VCPU_CASES = 2, MODES = 3, CLEARINGS = 4, PROMISES = 6 };

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

/* The guest's record of a moment: for each page of the work area the number of its last write,
 * and the number of the write that its vCPU may have been stopped in: the page is written
 * first, the record after it. */
struct record {
    uint64_t *sequence, *in_flight, *work_page, pages;
};

static struct record record_now(struct vm *vm)
{
    struct record r = { must_alloc(vm->pages, 8), must_alloc(vm->pages, 8), must_alloc(vm->pages, 8),
                        0 };

    for (unsigned i = 0; i < mv_vcpu_count(vm->machine); i++) {
        uint64_t first, n = mv_record(vm->machine, i, &first, r.sequence + r.pages, vm->pages);
        struct mv_counters c;

        mv_counters(vm->machine, (int)i, &c);
        for (uint64_t p = 0; p < n; p++) {
            r.work_page[r.pages + p] = first / PAGE + p;
            r.in_flight[r.pages + p] = c.writes + 1;
        }
        r.pages += n;
    }
    return r;
}

static void record_free(struct record *r)
{
    free(r->sequence);
    free(r->in_flight);
    free(r->work_page);
}

/* Takes a little, and gives some of it back without looking at it. */
static void take_and_put_back(struct vm *vm)
{
    brant_tracker *tracker = atomic_load(&vm->tracker);
    brant_run runs[4];
    size_t count = 0;

    must(brant_tracker_take(tracker, runs, 4, &count, &e));
    for (size_t i = 0; i < count; i++)
        must(brant_tracker_put_back(tracker, runs[i].block, runs[i].first_page, runs[i].pages, &e));
}

static void follow(struct vm *vm, struct copy *copy)
{
    for (int round = 0; round < 6; round++) {
        vm_writes(vm, 300 + random_below(3000));
        vm_sync(vm, BRANT_SYNC_RUNNING);
        switch (random_below(4)) {
        case 0:
            take_and_put_back(vm);
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
    uint64_t *before = must_alloc(vm->pages, 8), *after = must_alloc(vm->pages, 8);
    uint64_t recorded = 0, changed = 0, lost_records = 0, lost_digests = 0, found = 0, idle = 0;
    brant_tracker *tracker;
    /* Before it lie stacks and page tables, which are also written with what they hold already. */
    const struct gv_mailbox *mailbox = mv_host(vm->machine, GV_VCPU_GPA, sizeof *mailbox);
    uint64_t first_record = mailbox->record_gpa / PAGE;
    struct record then, now;
    brant_sync sync;

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

    /* The reference. */
    memset(copy->found, 0, vm->pages);
    then = record_now(vm);
    vm_digest(vm, before);
    vm_resume(vm);
    follow(vm, copy);
    vm_pause(vm);
    vm_sync(vm, BRANT_SYNC_STOPPED);
    copy_drain(copy);
    now = record_now(vm);
    vm_digest(vm, after);

    for (uint64_t i = 0; i < now.pages; i++)
        if (now.sequence[i] != then.sequence[i]) {
            recorded++;
            /* A page that was written before the reference, and recorded after it. */
            if (now.sequence[i] == then.in_flight[i] && before[now.work_page[i]] == after[now.work_page[i]])
                continue;
            if (!copy->found[now.work_page[i]] && lost_records++ < 5)
                note("guest page %#" PRIx64 " was recorded and not found", now.work_page[i]);
        }
    for (uint64_t page = 0; page < vm->pages; page++) {
        found += copy->found[page];
        if (before[page] != after[page]) {
            changed++;
            if (!copy->found[page] && lost_digests++ < 5)
                note("guest page %#" PRIx64 " was written and not found", page);
        } else {
            idle += page >= first_record && copy->found[page];
        }
    }
    note("%s: %" PRIu64 " pages by the guest's record, %" PRIu64 " changed, %" PRIu64 " found",
         how->name, recorded, changed, found);
    ok(recorded > 200 && lost_records == 0, "%s: every page that the guest recorded is found",
       how->name);
    ok(changed >= recorded && lost_digests == 0,
       "%s: every page that changed is found, records and mailboxes too", how->name);
    equal(copy_differs(copy), 0, "%s: a copy of what was handed out equals the guest", how->name);
    /* KVM logs a page when the vCPU is allowed to write it; the pause can come before it does. */
    if (!ok(idle <= mv_vcpu_count(vm->machine),
            "%s: no more is found than was written, but the page that a vCPU was about to write",
            how->name))
        note("%" PRIu64 " pages", idle);
    sync = vm_sync(vm, BRANT_SYNC_STOPPED);
    ok(sync.found_pages == 0 && sync.pending_pages == 0,
       "%s: of a guest that stands still a sync finds nothing", how->name);

    must(brant_tracker_stop(tracker, &e));
    vm_untrack(vm);
    vm_resume(vm);
    record_free(&then);
    record_free(&now);
    free(before);
    free(after);
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
