/*
 * KVM's dirty rings on real guests. No write of a guest is lost, whatever the size of the rings:
 * with signals at the vCPU threads all the time, with the process stopped and continued, over
 * syncs, starts and stops, and after overruns.
 *
 * There are two guests. minivmm's has a record and memory of its own, with which the tracker's
 * pages are compared. The bare one (bare.h) overruns every ring.
 *
 * time limit: 300 s
 */
#include "bare.h"

/* ---- minivmm's guest ---- */

/* Two blocks and four slots at odd places. */
static const struct mv_config config = {
    .nregions = 2,
    .regions = {
        { .bytes = 24 * MIB + 5 * PAGE, .nslots = 3,
          .slot_bytes = { 6 * MIB + 3 * PAGE, 10 * MIB + 7 * PAGE } },
        { .name = "shared", .bytes = 16 * MIB + PAGE, .memfd = true },
    },
    .workload = GV_RANDOM,
    .fill_percent = 30,
};

/* Thousands of signals a second at the vCPU threads. Without the gaps the guest would come to nothing: each is a pause. */
static atomic_bool pestering;

static void *pester(void *machine)
{
    while (atomic_load(&pestering)) {
        mv_kick(machine);
        usleep(200);
    }
    return NULL;
}

static brant_kvm_info kvm_info(brant_tracker *tracker)
{
    brant_kvm_info info = { .size = sizeof info };

    must(brant_tracker_get_kvm(tracker, &info, NULL, 0, NULL, &e));
    return info;
}

static void track(struct vm *vm, uint32_t mode)
{
    struct tracking how = { "ring", mode, BRANT_CLEAR_CHUNKED, 0 };

    vm_track(vm, &how);
}

static void some_syncs(struct vm *vm, struct copy *copy, int rounds)
{
    brant_tracker *tracker = atomic_load(&vm->tracker);

    for (int round = 0; round < rounds; round++) {
        brant_run runs[8];
        size_t count;

        vm_writes(vm, 100 + random_below(4000));
        vm_sync(vm, BRANT_SYNC_RUNNING);
        switch (random_below(4)) {
        case 0:
            /* Taken, and not copied. */
            must(brant_tracker_take(tracker, runs, 8, &count, &e));
            for (size_t i = 0; i < count; i++)
                must(brant_tracker_put_back(tracker, runs[i].block, runs[i].first_page,
                                            runs[i].pages, &e));
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

/* How many pages differ from `before` and were not found. */
static uint64_t not_found(struct vm *vm, const struct copy *copy, const uint64_t *before,
                          uint64_t *changed, uint64_t *idle)
{
    const struct gv_mailbox *mailbox = mv_host(vm->machine, GV_VCPU_GPA, sizeof *mailbox);
    uint64_t *after = must_alloc(vm->pages, 8), lost = 0;

    *changed = *idle = 0;
    vm_digest(vm, after);
    for (uint64_t page = 0; page < vm->pages; page++) {
        if (before[page] == after[page]) {
            *idle += page >= mailbox->record_gpa / PAGE && copy->found[page];
            continue;
        }
        ++*changed;
        if (!copy->found[page] && lost++ < 5)
            note("guest page %#" PRIx64 " was written and not found", page);
    }
    free(after);
    return lost;
}

enum { EXACT = 5 };

static void exact(unsigned vcpus, uint64_t bytes, bool kick)
{
    struct mv_config c = config;
    uint64_t *before, changed, idle, dirty, sum = 0;
    brant_tracker *tracker;
    brant_kvm_info info;
    struct copy copy;
    struct vm *vm;
    pthread_t pest;
    char name[64];

    snprintf(name, sizeof name, "%u vCPUs, rings of %" PRIu64 " entries", vcpus, bytes / 16);
    c.vcpus = vcpus;
    c.seed = random_below(UINT32_MAX);
    vm = vm_new_with_rings(&c, bytes);
    vm->kick = kick;
    copy = copy_new(vm);
    before = must_alloc(vm->pages, 8);
    track(vm, BRANT_KVM_AUTO);
    tracker = atomic_load(&vm->tracker);
    copy_all(&copy);
    vm_digest(vm, before);
    must(brant_tracker_start(tracker, BRANT_START_CLEAN, &e));
    vm_start(vm);
    atomic_store(&pestering, true);
    pthread_create(&pest, NULL, pester, vm->machine);
    for (int part = 0; part < 3; part++) {
        mv_set_rate(vm->machine, part == 1 ? 40000 : 0);
        some_syncs(vm, &copy, 6);
        if (part == 2)
            break;
        /* A migration that is cancelled, and the next one. */
        vm_pause(vm);
        vm_sync(vm, BRANT_SYNC_STOPPED);
        copy_drain(&copy);
        must(brant_tracker_stop(tracker, &e));
        if (part == 1) {
            /* The next tracker does not know the rings' positions. */
            vm_untrack(vm);
            track(vm, BRANT_KVM_RING);
            tracker = atomic_load(&vm->tracker);
        }
        must(brant_tracker_start(tracker, BRANT_START_CLEAN, &e));
        vm_resume(vm);
    }
    vm_pause(vm);
    vm_sync(vm, BRANT_SYNC_STOPPED);
    copy_drain(&copy);
    atomic_store(&pestering, false);
    pthread_join(pest, NULL);
    info = kvm_info(tracker);
    note("%s: %" PRIu64 " harvested in %" PRIu64 " rounds, %llu full, %" PRIu64 " interrupted", name,
         info.harvested, info.rounds, atomic_load(&vm->full_exits), info.interrupted);
    ok(not_found(vm, &copy, before, &changed, &idle) == 0 && changed > 200,
       "%s: every page that changed is found", name);
    equal(copy_differs(&copy), 0, "%s: a copy of what was handed out equals the guest", name);
    equal(vm_sync(vm, BRANT_SYNC_STOPPED).found_pages, 0,
          "%s: of a guest that stands still a sync finds nothing", name);
    for (unsigned i = 0; i < vcpus; i++) {
        must(brant_tracker_vcpu_dirty(tracker, i, &dirty, &e));
        sum += dirty > 0 ? dirty : UINT32_MAX;
    }
    ok(info.mode == BRANT_KVM_RING && info.ring_bytes == bytes && info.vcpus == vcpus &&
           info.overruns == 0 && info.stray_entries == 0 && sum >= info.harvested && sum < UINT32_MAX,
       "%s: nothing overran, and each vCPU's share is told", name);
    vm_resume(vm);
    ok(vm_runs_clean(vm), "%s: the guest finds all that it wrote", name);
    vm_pause(vm);
    must(brant_tracker_stop(tracker, &e));
    vm_free(vm);
    copy_free(&copy);
    free(before);
}

/* Whether every thread of a process is stopped. */
static bool all_stopped(pid_t process)
{
    char path[64], text[4096], list[4096];
    bool all = true;
    int tasks, fd;
    long n;

    snprintf(path, sizeof path, "/proc/%d/task", (int)process);
    tasks = open(path, O_RDONLY | O_DIRECTORY);
    while (all && (n = syscall(SYS_getdents64, tasks, list, sizeof list)) > 0)
        for (long at = 0; at < n;) {
            /* struct linux_dirent64: d_reclen at 16, d_name at 19. */
            unsigned short length;
            const char *name = list + at + 19, *state;
            ssize_t got;

            memcpy(&length, list + at + 16, sizeof length);
            at += length;
            if (name[0] == '.')
                continue;
            snprintf(path, sizeof path, "/proc/%d/task/%s/stat", (int)process, name);
            fd = open(path, O_RDONLY);
            got = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
            close(fd);
            text[got > 0 ? got : 0] = 0;
            state = strrchr(text, ')');
            all = all && (!state || state[2] == 'T');
        }
    close(tasks);
    return all;
}

/* A stop that is withdrawn before the threads have noticed it cannot be seen, so each stop is
 * awaited. */
__attribute__((noreturn)) static void stop_and_continue(pid_t process)
{
    for (int i = 0; getppid() == process; i++) {
        kill(process, SIGSTOP);
        while (getppid() == process && !all_stopped(process))
            ;
        kill(process, SIGCONT);
        /* On a slow machine the guest gets as far. */
        usleep(patience(100 + (unsigned)i * 13 % 1500));
    }
    _exit(0);
}

/* The process is stopped and continued all the time, and no mask keeps that out of a reset. */
static void stopped_and_continued(void)
{
    struct mv_config c = config;
    brant_tracker *tracker;
    brant_kvm_info info;
    struct copy copy;
    struct vm *vm;
    pid_t child;

    c.vcpus = 4;
    c.seed = random_below(UINT32_MAX);
    vm = vm_new_with_rings(&c, 16384);
    copy = copy_new(vm);
    track(vm, BRANT_KVM_RING);
    tracker = atomic_load(&vm->tracker);
    copy_all(&copy);
    must(brant_tracker_start(tracker, BRANT_START_CLEAN, &e));
    vm_start(vm);
    child = fork();
    if (child == 0)
        stop_and_continue(getppid());
    for (int i = 0; i < (brief() ? 8 : 40); i++)
        some_syncs(vm, &copy, 1);
    kill(child, SIGKILL);
    kill(getpid(), SIGCONT);
    waitpid(child, NULL, 0);
    vm_pause(vm);
    vm_sync(vm, BRANT_SYNC_STOPPED);
    copy_drain(&copy);
    info = kvm_info(tracker);
    note("stopped and continued: %" PRIu64 " rounds, %" PRIu64 " interrupted, %" PRIu64
         " pages in doubt, %" PRIu64 " recoveries",
         info.rounds, info.interrupted, info.doubtful_pages, info.recoveries);
    equal(copy_differs(&copy), 0, "stopped and continued all the time, no page is lost");
    vm_free(vm);
    copy_free(&copy);
}

/* Another program's initially-set mode is still on, and perhaps its logging. Switching logging on
 * would protect no page then, and a ring would stay empty while the guest writes. The guest's code
 * runs natively, because stores that KVM emulates are logged all the same. */
static void left_by_somebody(bool logging)
{
    struct kvm_enable_cap cap = { .cap = 168, .args = { 3 } };
    const struct mv_slot *slots;
    struct copy copy;
    struct vm *vm;
    unsigned n;

    vm = vm_new_with_rings(&config, 65536);
    vm_start(vm);
    vm_writes(vm, 20000);
    vm_pause(vm);
    if (ioctl(mv_vm_fd(vm->machine), KVM_ENABLE_CAP, &cap) < 0)
        bail("initially-set mode: %s", strerror(errno));
    slots = mv_slots(vm->machine, &n);
    for (unsigned i = 0; logging && i < n; i++) {
        struct kvm_userspace_memory_region region = {
            .slot = slots[i].id,
            .flags = slots[i].flags | KVM_MEM_LOG_DIRTY_PAGES,
            .guest_phys_addr = slots[i].gpa,
            .memory_size = slots[i].bytes,
            .userspace_addr = (uintptr_t)slots[i].host,
        };

        if (ioctl(mv_vm_fd(vm->machine), KVM_SET_USER_MEMORY_REGION, &region) < 0)
            bail("logging of slot %u: %s", slots[i].id, strerror(errno));
    }
    copy = copy_new(vm);
    track(vm, BRANT_KVM_RING);
    copy_all(&copy);
    must(brant_tracker_start(atomic_load(&vm->tracker), BRANT_START_CLEAN, &e));
    vm_resume(vm);
    vm_writes(vm, 5000);
    vm_pause(vm);
    vm_sync(vm, BRANT_SYNC_STOPPED);
    copy_drain(&copy);
    equal(copy_differs(&copy), 0, "a machine that was left initially set%s loses nothing",
          logging ? " and logged" : "");
    vm_free(vm);
    copy_free(&copy);
}

enum { OVERRUN = 4 };

/* Stores of `n` bytes at once, several times, with syncs in between; then the checks. */
static void overrun(uint64_t bytes, uint64_t n)
{
    struct bare b = bare_new(bytes);
    brant_kvm_info info;
    uint64_t warnings = 0;
    bool runs = true;
    char name[64];

    snprintf(name, sizeof name, "a ring of %" PRIu64 " entries, stores of %" PRIu64 " bytes",
             bytes / 16, n);
    bare_track(&b);
    bare_runs(&b, STRIDE_AT, 16 * PAGE, 50, 1);
    for (int i = 0; i < 4 && runs; i++) {
        uint64_t at = (16 + random_below(64)) * PAGE + random_below(PAGE);

        runs = bare_runs(&b, CODE_AT, at, n, (uint8_t)(i + 2)) &&
               bare_runs(&b, STRIDE_AT, (20 + random_below(100)) * PAGE, 1 + random_below(900),
                         (uint8_t)(i + 100));
        if (random_below(2))
            warnings += bare_sync(&b, BRANT_SYNC_RUNNING).warnings;
        if (random_below(2))
            bare_take(&b);
    }
    ok(runs, "%s: the guest is never held up for ever", name);
    warnings += bare_sync(&b, BRANT_SYNC_STOPPED).warnings;
    bare_take(&b);
    equal(bare_differs(&b), 0, "%s: no page is lost", name);
    info = kvm_info(b.tracker);
    note("%s: %" PRIu64 " overruns, %" PRIu64 " pushes lost, %" PRIu64 " recoveries, %" PRIu64
         " warnings, %" PRIu64 " full exits",
         name, info.overruns, info.lost_pushes, info.recoveries, warnings, b.full_exits);
    ok((info.overruns > 0) == (info.recoveries > 0) && (info.overruns > 0) == (warnings > 0),
       "%s: an overrun is told and mended", name);
    ok(bare_is_exact(&b), "%s: afterwards the ring is exact again", name);
    bare_free(&b);
}

/* Makes the kernel push for a vCPU that does not run: pages of a wall clock. */
static void push(int vcpu, uint64_t gpa)
{
    struct { struct kvm_msrs head; struct kvm_msr_entry entry; } msr = {
        .head.nmsrs = 1, .entry = { .index = WALL_CLOCK, .data = gpa }
    };

    must_ioctl(vcpu, KVM_SET_MSRS, &msr);
}

static void added_later(void)
{
    struct bare b = bare_new(65536);
    uint64_t dirty = 0;
    int later;

    /* The code's page is mapped first. With nested paging KVM makes a page writable when it is
     * first read, and reports it as dirty. */
    bare_runs(&b, STRIDE_AT, 16 * PAGE, 1, 0);
    bare_track(&b);
    bare_runs(&b, STRIDE_AT, 16 * PAGE, 10, 1);
    later = (int)must_ioctl(b.vm, KVM_CREATE_VCPU, 1);
    must(brant_tracker_add_vcpu(b.tracker, 8, later, &e));
    push(later, 900 * PAGE);
    equal(bare_sync(&b, BRANT_SYNC_RUNNING).found_pages, 11,
          "what a vCPU writes that was added while tracking is found");
    must(brant_tracker_vcpu_dirty(b.tracker, 8, &dirty, &e));
    bare_take(&b);
    ok(dirty > 0 && bare_differs(&b) == 0, "and is told as its own");
    close(later);
    bare_free(&b);
}

/* ---- what is refused ---- */

static bool refused(int32_t code, int32_t expected, brant_error **e, const char *says)
{
    bool good = code == expected && strstr(brant_error_message(*e), says);

    if (!good)
        note("%d: %s", code, brant_error_message(*e));
    brant_error_free(*e);
    *e = NULL;
    return good;
}

static void refusals(void)
{
    int vm = (int)must_ioctl(sys_kvm(), KVM_CREATE_VM, 0), vcpu;
    brant_kvm_log kvm = { .size = sizeof kvm, .mode = BRANT_KVM_RING };
    brant_kvm_info info = { .size = sizeof info };
    brant_tracker *tracker;
    brant_guest *guest;
    uint64_t bytes = 0;
    char reason[200];
    brant_error *e;

    must(brant_guest_new(NULL, NULL, &guest, &e));
    must(brant_tracker_new(guest, NULL, &tracker, &e));
    ok(refused(brant_kvm_enable_ring(vm, 5000, NULL, &e), BRANT_E_INVALID, &e, "5000") &&
           refused(brant_kvm_enable_ring(vm, 2048, NULL, &e), BRANT_E_INVALID, &e, "2048") &&
           refused(brant_kvm_enable_ring(vm, 1 << 21, NULL, &e), BRANT_E_INVALID, &e, "2097152"),
       "a ring of an impossible size is refused, and the sizes that can be are named");
    kvm.vm_fd = vm;
    ok(refused(brant_tracker_add_kvm(tracker, &kvm, &e), BRANT_E_STATE, &e, "enable"),
       "the ring of a machine that has none is refused");
    vcpu = (int)must_ioctl(vm, KVM_CREATE_VCPU, 0);
    ok(refused(brant_kvm_enable_ring(vm, 0, NULL, &e), BRANT_E_KERNEL, &e, "vCPU"),
       "enabling rings after the first vCPU is refused, and that is named");
    close(vcpu);
    close(vm);
    vm = (int)must_ioctl(sys_kvm(), KVM_CREATE_VM, 0);
    must(brant_kvm_enable_ring(vm, 0, &bytes, &e));
    ok(bytes >= 4096 && (bytes & (bytes - 1)) == 0 &&
           refused(brant_kvm_enable_ring(vm, 0, NULL, &e), BRANT_E_STATE, &e, "already"),
       "rings are enabled once, with a size that is told");
    kvm.vm_fd = vm;
    kvm.mode = BRANT_KVM_INITIALLY_SET;
    ok(refused(brant_tracker_add_kvm(tracker, &kvm, &e), BRANT_E_UNSUPPORTED, &e, "ring"),
       "a bitmap of a machine with rings is refused");
    kvm.vm_fd = vm;
    kvm.mode = BRANT_KVM_AUTO;
    kvm.ring_bytes = bytes / 2;
    must(brant_tracker_add_kvm(tracker, &kvm, &e));
    must(brant_tracker_get_kvm(tracker, &info, reason, sizeof reason, NULL, &e));
    ok(info.mode == BRANT_KVM_RING && strstr(reason, "ring"), "left to brant, the ring is picked: %s",
       reason);
    ok(refused(brant_tracker_start(tracker, BRANT_START_CLEAN, &e), BRANT_E_STATE, &e, "vCPU"),
       "tracking does not start without a vCPU");
    vcpu = (int)must_ioctl(vm, KVM_CREATE_VCPU, 0);
    ok(refused(brant_tracker_add_vcpu(tracker, 0, vcpu, &e), BRANT_E_INVALID, &e, "found") &&
           refused(brant_tracker_add_vcpu(tracker, 0, vm, &e), BRANT_E_INVALID, &e, "vCPU"),
       "a ring of another size, and what is no vCPU, are refused");
    ok(refused(brant_tracker_ring_full(tracker, 3, &e), BRANT_E_NOT_FOUND, &e, "vCPU 3"),
       "a vCPU that nobody told of is refused");
    brant_tracker_free(tracker);
    brant_guest_free(guest);
    close(vcpu);
    close(vm);
}

enum { REFUSALS = 9 };

/* A VMM that reports an exit again and again. exit_reason is old then, and the ring must not be
 * given entries that are not in use. */
static void told_again(void)
{
    struct bare b = bare_new(4096);
    bool runs = true;

    b.told_again = 20;
    bare_track(&b);
    /* Until a ring was full, which depends on whether the guest or the reaper is faster. */
    for (int i = 0; runs && i < 64 && (i < 8 || b.full_exits == 0); i++)
        runs = bare_runs(&b, STRIDE_AT, 16 * PAGE, 1500, (uint8_t)(i + 1));
    ok(runs && b.full_exits > 0, "full exits that are told again and again do not hold up the guest");
    bare_sync(&b, BRANT_SYNC_STOPPED);
    bare_take(&b);
    ok(bare_differs(&b) == 0 && bare_is_exact(&b), "and lose nothing, and the ring is exact");
    note("%" PRIu64 " full exits, %" PRIu64 " overruns", b.full_exits, kvm_info(b.tracker).overruns);
    bare_free(&b);
}

/* A rate probe and a migration, each with a tracker that stays. */
static void in_turn(void)
{
    struct bare b = bare_new(65536);
    brant_tracker *other, *first;
    uint64_t wrong = 0, found;

    bare_track(&b);
    must(brant_tracker_stop(b.tracker, &e));
    first = b.tracker;
    bare_track(&b);
    other = b.tracker;
    must(brant_tracker_stop(other, &e));
    for (int i = 0; i < 8; i++) {
        b.tracker = i % 2 ? other : first;
        must(brant_tracker_start(b.tracker, BRANT_START_CLEAN, &e));
        bare_runs(&b, STRIDE_AT, (16 + (uint64_t)i) * PAGE, 20, (uint8_t)(i + 1));
        found = bare_sync(&b, BRANT_SYNC_RUNNING).found_pages;
        /* While logging is off, nested paging may join mapped pages into large ones and map them
         * anew when they are read. Then the pages of the code count too. */
        wrong += found < 20 || found > 20 + 3;
        bare_take(&b);
        wrong += bare_differs(&b);
        must(brant_tracker_stop(b.tracker, &e));
    }
    ok(wrong == 0 && kvm_info(first).overruns == 0 && kvm_info(other).overruns == 0,
       "two trackers in turn find what is written, at each sync");
    brant_tracker_free(first);
    b.tracker = other;
    bare_free(&b);
}

/* ---- a dirty limit ---- */

enum { LIMITED = 6 };

/* How many pages vCPU 0 writes while vCPU 1 writes `n`. */
static uint64_t meanwhile(struct vm *vm, uint64_t n)
{
    struct mv_counters from, other, now;

    mv_counters(vm->machine, 0, &from);
    mv_counters(vm->machine, 1, &other);
    do {
        usleep(1000);
        mv_counters(vm->machine, 1, &now);
    } while (now.writes < other.writes + n);
    mv_counters(vm->machine, 0, &now);
    return now.writes - from.writes;
}

/* One of two vCPUs is limited by the C interface. */
static void limited(void)
{
    struct mv_config c = config;
    uint64_t before, slowed;
    brant_error *e = NULL;
    brant_tracker *tracker;
    struct copy copy;
    struct vm *vm;

    c.vcpus = 2;
    c.workload = GV_SWEEP;
    vm = vm_new_with_rings(&c, 4096);
    vm->kick = true;
    copy = copy_new(vm);
    track(vm, BRANT_KVM_RING);
    tracker = atomic_load(&vm->tracker);
    copy_all(&copy);
    ok(refused(brant_tracker_limit_vcpu(tracker, 0, 1000, &e), BRANT_E_STATE, &e, "started"),
       "no vCPU is limited while nothing is tracked");
    must(brant_tracker_start(tracker, BRANT_START_CLEAN, &e));
    vm_start(vm);
    vm_writes(vm, 1000);
    before = meanwhile(vm, 3000);
    ok(kvm_info(tracker).limit_waits == 0, "without a limit no vCPU waits");
    must(brant_tracker_limit_vcpu(tracker, 0, 100, &e));
    /* Its ring fills first. How long that takes is the scheduler's affair. */
    do {
        (void)meanwhile(vm, 100);
    } while (kvm_info(tracker).limit_waits == 0);
    slowed = meanwhile(vm, 3000);
    ok(kvm_info(tracker).limited_vcpus == 1 && slowed * 3 < before,
       "a limited vCPU wrote %" PRIu64 " pages instead of %" PRIu64, slowed, before);
    /* Each kicks and harvests, while the vCPU waits. */
    for (int i = 0; i < 5; i++) {
        vm_sync(vm, BRANT_SYNC_RUNNING);
        copy_take(&copy, UINT64_MAX, 64);
    }
    must(brant_tracker_limit_vcpu(tracker, 0, 0, &e));
    ok(kvm_info(tracker).limited_vcpus == 0 &&
           refused(brant_tracker_limit_vcpu(tracker, 9, 1, &e), BRANT_E_NOT_FOUND, &e, "vCPU 9"),
       "the limit is lifted, and a vCPU that is not there has none");
    must(brant_tracker_limit_vcpu(tracker, 0, 1, &e));
    vm_pause(vm);
    vm_sync(vm, BRANT_SYNC_STOPPED);
    copy_drain(&copy);
    ok(copy_differs(&copy) == 0, "the pause does not wait, and no page is lost");
    must(brant_tracker_remove_vcpu(tracker, 0, &e));
    ok(refused(brant_tracker_ring_full(tracker, 0, &e), BRANT_E_NOT_FOUND, &e, "vCPU 0") &&
           kvm_info(tracker).vcpus == 1 && kvm_info(tracker).limited_vcpus == 0,
       "a removed vCPU is not there any more");
    must(brant_tracker_stop(tracker, &e));
    copy_free(&copy);
    vm_free(vm);
}

int main(void)
{
    static const uint64_t sizes[] = { 4096, 16384, 65536, 1 << 20 };
    enum { SIZES = sizeof sizes / sizeof sizes[0] };

    need_kvm();
    if (ioctl(sys_kvm(), KVM_CHECK_EXTENSION, 223) <= 0)
        skip_all("this KVM has no dirty rings");
    plan(REFUSALS + LIMITED + SIZES * 2 * EXACT + 1 + 6 * OVERRUN + 2 + 1 + 4);
    random_begin();
    refusals();
    left_by_somebody(false);
    left_by_somebody(true);
    told_again();
    in_turn();
    added_later();
    limited();
    for (int i = 0; i < SIZES; i++) {
        if (brief() && i % 2) {
            for (int n = 0; n < 2 * EXACT; n++)
                skip("BRANT_SHORT", "rings of %" PRIu64 " entries", sizes[i] / 16);
            continue;
        }
        exact(1, sizes[i], i % 2);
        exact(4, sizes[i], !(i % 2));
    }
    stopped_and_continued();
    overrun(4096, 100);
    overrun(4096, 300);
    overrun(4096, 20000);
    overrun(65536, 4500);
    overrun(65536, 200000);
    overrun(1 << 20, 300000);
    return done();
}
