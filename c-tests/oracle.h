/*
 * The oracle of the tracker. Whatever happens to the tracker while a guest writes, every page that
 * the guest wrote is found, a copy made only of the pages that are handed out equals the guest, and
 * nothing is found twice in a guest that stands still. Three things that know nothing of any log
 * decide this: the guest's own record of its writes, a digest of every page, and the copy.
 *
 * oracle_begin and oracle_judge are the reference and the verdict, for a test with actions of its
 * own in between. oracle() does everything for one kind of log: random blocks, slots and chunks,
 * syncs, walks cut short, runs put back, tracking stopped and started, and all the time signals and
 * stops of the process. A kind of log is a struct oracle_kind, which says how the log is added to a
 * tracker. See oracle.c.
 */
#ifndef ORACLE_H
#define ORACLE_H

#include "support.h"

#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

/* ---- the guest's record ---- */

/* The guest's record at one moment: for each page of the work area the number of its last write,
 * and for each vCPU the number of the write in which it may have been stopped. (The page is written
 * first, the record after it.) */
struct record {
    uint64_t *sequence, *in_flight, *work_page, pages;
};

UNUSED static struct record record_now(struct vm *vm)
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

UNUSED static void record_free(struct record *r)
{
    free(r->sequence);
    free(r->in_flight);
    free(r->work_page);
}

/* ---- the reference and the verdict ---- */

/* From now on every write has to be found. The guest stands still, and nothing is pending. */
struct reference {
    struct record record;
    uint64_t *digests;
};

UNUSED static struct reference oracle_begin(struct vm *vm, struct copy *copy)
{
    struct reference r = { record_now(vm), must_alloc(vm->pages, 8) };

    memset(copy->found, 0, vm->pages);
    vm_digest(vm, r.digests);
    return r;
}

enum { ORACLE_JUDGED = 5 };

/* What disturbed the rings while they were tracked. A process that is stopped in the wrong moment
 * leaves pages in doubt, which every sync reports. After an overrun every page is reported. */
UNUSED static brant_kvm_info oracle_rings(struct vm *vm)
{
    brant_kvm_info info = { .size = sizeof info };

    must(brant_tracker_get_kvm(atomic_load(&vm->tracker), &info, NULL, 0, NULL, &e));
    return info;
}

UNUSED static bool oracle_undisturbed(struct vm *vm)
{
    brant_kvm_info info = oracle_rings(vm);

    return info.interrupted == 0 && info.recoveries == 0;
}

/* The verdict: five promises. The guest stands still, and everything was harvested and taken.
 * `pauses`: how often the guest was paused since the reference. `exact`: the logs report only
 * written pages. */
UNUSED static void oracle_judge(struct vm *vm, struct copy *copy, struct reference *then,
                                const char *name, unsigned pauses, bool exact)
{
    /* Before the work area lie stacks and page tables, to which the guest also writes unchanged
     * values. */
    const struct gv_mailbox *mailbox = mv_host(vm->machine, GV_VCPU_GPA, sizeof *mailbox);
    uint64_t first_record = mailbox->record_gpa / PAGE;
    uint64_t *before = then->digests, *after = must_alloc(vm->pages, 8);
    uint64_t recorded = 0, changed = 0, lost_records = 0, lost_digests = 0, found = 0, idle = 0;
    uint64_t doubtful;
    struct record now = record_now(vm);
    brant_sync sync;

    vm_digest(vm, after);
    for (uint64_t i = 0; i < now.pages; i++)
        if (now.sequence[i] != then->record.sequence[i]) {
            recorded++;
            /* A page that was written before the reference, and recorded after it. */
            if (now.sequence[i] == then->record.in_flight[i] &&
                before[now.work_page[i]] == after[now.work_page[i]])
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
         name, recorded, changed, found);
    ok(recorded > 200 && lost_records == 0, "%s: every page that the guest recorded is found",
       name);
    ok(changed >= recorded && lost_digests == 0,
       "%s: every page that changed is found, records and mailboxes too", name);
    equal(copy_differs(copy), 0, "%s: a copy of what was handed out equals the guest", name);
    /* KVM logs a page when it allows the vCPU to write it; the pause can come before the write. */
    if (!ok(!exact || idle <= (uint64_t)mv_vcpu_count(vm->machine) * pauses,
            "%s: no more is found than was written, but the page that a vCPU was about to write",
            name))
        note("%" PRIu64 " pages", idle);
    doubtful = oracle_rings(vm).doubtful_pages;
    sync = vm_sync(vm, BRANT_SYNC_STOPPED);
    if (doubtful)
        note("%s: %" PRIu64 " pages in doubt", name, doubtful);
    ok(sync.found_pages <= doubtful && sync.pending_pages == sync.found_pages,
       "%s: of a guest that stands still a sync finds nothing", name);
    record_free(&now);
    record_free(&then->record);
    free(then->digests);
    free(after);
}

/* Takes a few pages, and puts them back without reading them, as after a pass that failed. */
UNUSED static void oracle_put_back(struct vm *vm)
{
    brant_tracker *tracker = atomic_load(&vm->tracker);
    brant_run runs[4];
    size_t count = 0;

    must(brant_tracker_take(tracker, runs, 4, &count, &e));
    for (size_t i = 0; i < count; i++)
        must(brant_tracker_put_back(tracker, runs[i].block, runs[i].first_page, runs[i].pages, &e));
}

/* ---- what comes from outside ---- */

/* Interrupts this process' waits thousands of times a second, and stops and continues the whole
 * process. */
struct weather {
    timer_t timer;
    pid_t stopper;
    /* Shared with the stopper. */
    atomic_int *ends;
};

static atomic_ulong oracle_signals;

static void oracle_interrupted(int signal)
{
    (void)signal;
    atomic_fetch_add(&oracle_signals, 1);
}

/* The stopper continues the process after each stop. So it is asked to end and not killed, which
 * could come between the two. */
static void oracle_stopper(pid_t parent, atomic_int *ends, uint64_t seed)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    alarm(0);
    while (!atomic_load(ends) && getppid() == parent) {
        seed = gv_mix(seed + 1);
        sleep_us(1000 + seed % 30000);
        kill(parent, SIGSTOP);
        sleep_us(200 + seed / 3 % 5000);
        kill(parent, SIGCONT);
    }
    _exit(0);
}

UNUSED static struct weather weather_begin(void)
{
    struct sigaction act = { .sa_handler = oracle_interrupted };
    struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR2 };
    /* A prime, so that it keeps in step with nothing. */
    struct itimerspec every = { { 0, 397000 }, { 0, 397000 } };
    struct weather w;
    uint64_t seed = random_below(UINT64_MAX);
    pid_t self = getpid();

    w.ends = mmap(NULL, sizeof *w.ends, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (w.ends == MAP_FAILED)
        bail("mmap: %s", strerror(errno));
    w.stopper = fork();
    if (w.stopper == 0)
        oracle_stopper(self, w.ends, seed);
    /* Without SA_RESTART, so that interrupted calls return EINTR. */
    if (w.stopper < 0 || sigaction(SIGUSR2, &act, NULL) ||
        timer_create(CLOCK_MONOTONIC, &event, &w.timer) || timer_settime(w.timer, 0, &every, NULL))
        bail("signals: %s", strerror(errno));
    return w;
}

UNUSED static void weather_end(struct weather *w)
{
    struct sigaction act = { .sa_handler = SIG_IGN };

    timer_delete(w->timer);
    sigaction(SIGUSR2, &act, NULL);
    atomic_store(w->ends, 1);
    while (waitpid(w->stopper, NULL, 0) < 0 && errno == EINTR)
        ;
    munmap(w->ends, sizeof *w->ends);
}

/* ---- all of it ---- */

/* A kind of log. */
struct oracle_kind {
    const char *name;
    /* Adds the log to the tracker before that is started, while the guest stands still. NULL: the
     * VMM's marks are the only log. `mode` is the field below. */
    void (*add)(struct vm *vm, brant_tracker *tracker, uint32_t mode);
    uint32_t mode, clearing;
    /* The kind of machine whose writes it sees. */
    enum mv_kind machine;
    /* Whether it may report pages that were not written. */
    bool inexact;
    /* Returns 0, or -1 and the reason why the kind cannot be used here. NULL: it can, wherever the
     * machine can. */
    int (*available)(char *why, size_t len);
    /* The size in bytes of the machine's dirty rings, or RING_DEFAULT; 0 without rings. */
    uint64_t ring_bytes;
    /* Called after the tracker has been freed. May be NULL. */
    void (*removed)(struct vm *vm);
};

enum { ORACLE_PROMISES = 1 + ORACLE_JUDGED + 1, ORACLE_ROUNDS = 40 };

/* Blocks and slots that begin and end anywhere. */
static struct mv_config oracle_layout(const struct oracle_kind *kind, unsigned vcpus)
{
    struct mv_config c = {
        .kind = kind->machine,
        .vcpus = vcpus,
        .nregions = 2 + (unsigned)random_below(3),
        .workload = GV_RANDOM,
        .fill_percent = 30,
        .seed = random_below(UINT32_MAX),
    };

    for (unsigned i = 0; i < c.nregions; i++) {
        struct mv_region_config *r = &c.regions[i];
        /* The first block has what the guest needs to run. */
        uint64_t pages = (i == 0 ? 4096 : 64) + random_below(4096);

        r->bytes = pages * PAGE;
        r->memfd = random_below(2);
        r->nslots = 1 + (unsigned)random_below(3);
        for (unsigned s = 0; s + 1 < r->nslots; s++)
            r->slot_bytes[s] = (1 + random_below(pages / r->nslots - 1)) * PAGE;
    }
    return c;
}

static void oracle_track(struct vm *vm, const struct oracle_kind *kind)
{
    brant_tracker_config config = { sizeof config, kind->clearing, 6 + (uint32_t)random_below(random_below(2) ? 1 : 13) };
    brant_tracker *tracker;

    must(brant_tracker_new(vm->guest, &config, &tracker, &e));
    if (kind->add)
        kind->add(vm, tracker, kind->mode);
    atomic_store(&vm->tracker, tracker);
}

/* The guest stands still from now on, and the copy gets everything that it wrote. */
static void oracle_settle(struct vm *vm, struct copy *copy)
{
    vm_pause(vm);
    vm_sync(vm, BRANT_SYNC_STOPPED);
    copy_drain(copy);
}

/* Checks all ORACLE_PROMISES. */
UNUSED static void oracle(const struct oracle_kind *kind, unsigned vcpus)
{
    static const enum gv_workload workloads[] = { GV_RANDOM, GV_SWEEP, GV_HOT };
    struct mv_config config;
    struct reference then;
    struct weather weather;
    struct copy copy;
    struct vm *vm;
    char name[128], why[256];
    unsigned pauses = 1;
    bool all = random_below(2), exact = !kind->inexact;

    snprintf(name, sizeof name, "%s, %u vCPU%s", kind->name, vcpus, vcpus > 1 ? "s" : "");
    if ((kind->machine == MV_KVM && mv_kvm_available(why, sizeof why)) ||
        (kind->ring_bytes && rings_available(kind->ring_bytes, why, sizeof why)) ||
        (kind->available && kind->available(why, sizeof why))) {
        for (int i = 0; i < ORACLE_PROMISES; i++)
            skip(why, "%s", name);
        return;
    }
    config = oracle_layout(kind, vcpus);
    vm = vm_new_with_rings(&config, kind->ring_bytes);
    vm->kick = random_below(2);
    copy = copy_new(vm);
    oracle_track(vm, kind);
    vm_start(vm);
    vm_writes(vm, 500);
    weather = weather_begin();

    vm_pause(vm);
    if (all)
        memset(copy.memory, 0xaa, vm->pages * PAGE);
    else
        copy_all(&copy);
    must(brant_tracker_start(atomic_load(&vm->tracker), all ? BRANT_START_ALL : BRANT_START_CLEAN, &e));
    vm_sync(vm, BRANT_SYNC_STOPPED);
    copy_drain(&copy);
    ok(copy.taken == (all ? vm->pages : 0) && copy_differs(&copy) == 0,
       "%s: a start hands out %s once", name, all ? "every page" : "no page");

    then = oracle_begin(vm, &copy);
    vm_resume(vm);
    for (int round = 0; round < ORACLE_ROUNDS; round++) {
        mv_set_workload(vm->machine, workloads[random_below(3)]);
        mv_set_rate(vm->machine, random_below(2) ? 0 : 60000);
        vm_writes(vm, 1 + random_below(1500));
        switch (random_below(8)) {
        case 0:
            oracle_put_back(vm);
            break;
        case 1:
            copy_take(&copy, UINT64_MAX, 64);
            break;
        case 2:
            copy_take(&copy, 1 + random_below(40), 1 + random_below(16));
            break;
        case 3:
            oracle_settle(vm, &copy);
            pauses++;
            if (random_below(2)) {
                /* As a cancelled migration leaves it to the next one. */
                exact = exact && oracle_undisturbed(vm);
                must(brant_tracker_stop(atomic_load(&vm->tracker), &e));
                must(brant_tracker_start(atomic_load(&vm->tracker), BRANT_START_CLEAN, &e));
            }
            vm_resume(vm);
            break;
        case 4:
            /* A walk while the guest writes between one run and the next. */
            for (uint64_t steps = 5 + random_below(30); steps > 0; steps--) {
                copy_take(&copy, 1, 1 + random_below(3));
                vm_writes(vm, 1 + random_below(20));
            }
            break;
        default:
            vm_sync(vm, BRANT_SYNC_RUNNING);
        }
    }
    oracle_settle(vm, &copy);
    exact = exact && oracle_undisturbed(vm);
    oracle_judge(vm, &copy, &then, name, pauses, exact);
    weather_end(&weather);
    vm_resume(vm);
    ok(vm_runs_clean(vm), "%s: the guest finds all that it wrote", name);
    vm_pause(vm);
    vm_untrack(vm);
    if (kind->removed)
        kind->removed(vm);
    vm_free(vm);
    copy_free(&copy);
}

/* ---- the kinds that need no more than this ---- */

/* userfaultfd's write protection of a guest under KVM, whose writes nobody marks. */
UNUSED static void oracle_add_userfault(struct vm *vm, brant_tracker *tracker, uint32_t mode)
{
    (void)vm, (void)mode;
    must(brant_tracker_add_userfault(tracker, &e));
}

UNUSED static int oracle_has_userfault(char *why, size_t len)
{
    brant_guest *guest;
    brant_tracker *tracker;
    brant_error *e = NULL;
    int32_t code;

    must(brant_guest_new(NULL, NULL, &guest, &e));
    must(brant_tracker_new(guest, NULL, &tracker, &e));
    code = brant_tracker_add_userfault(tracker, &e);
    snprintf(why, len, "%s", brant_error_message(e));
    brant_error_free(e);
    brant_tracker_free(tracker);
    brant_guest_free(guest);
    return code ? -1 : 0;
}

#endif
