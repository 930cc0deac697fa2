/*
 * Any memory of this process as a guest: userfaultfd's write protection through the C interface.
 * The guest is threads of this process, or the KVM guest of another tracker, whose log is the
 * witness. tests/userfault tests the log itself page by page.
 */
#include "support.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/wait.h>

enum { WRITERS = 4, BLOCKS = 10 };

static const unsigned sizes[BLOCKS] = { 1, 3, 511, 1024, 2049, 77, 513, 4097, 64, 3000 };

struct block {
    char *host, *copy;
    uint64_t pages;
};

static struct block blocks[BLOCKS];
static atomic_bool stop;

struct writer {
    pthread_t thread;
    unsigned number;
    _Atomic(uint64_t) writes;
    /* 1 for each written page, block by block. */
    uint8_t *record[BLOCKS];
};
static struct writer writers[WRITERS];

static char *map_block(unsigned i, uint64_t length, int *fd)
{
    char *at;

    *fd = -1;
    if (i % 3 == 1) {
        *fd = memfd_create("userfault", MFD_CLOEXEC);
        if (*fd < 0 || ftruncate(*fd, (off_t)length))
            bail("memfd: %s", strerror(errno));
    }
    at = mmap(NULL, length, PROT_READ | PROT_WRITE,
              *fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, *fd, 0);
    if (at == MAP_FAILED)
        bail("mmap: %s", strerror(errno));
    if (i % 3 == 2)
        madvise(at, length, MADV_HUGEPAGE);
    return at;
}

static brant_guest *guest_of_blocks(void)
{
    brant_guest *guest;

    must(brant_guest_new(NULL, NULL, &guest, &e));
    for (unsigned i = 0; i < BLOCKS; i++) {
        char name[16];
        brant_ram_block b = { .size = sizeof b, .name = name, .length = sizes[i] * PAGE };
        uint32_t id;

        snprintf(name, sizeof name, "ram%u", i);
        if (!blocks[i].host) {
            int fd;

            blocks[i].pages = sizes[i];
            blocks[i].host = map_block(i, b.length, &fd);
            blocks[i].copy = must_alloc(sizes[i], PAGE);
            b.fd = fd;
            b.flags = fd >= 0 ? BRANT_RAM_FILE : 0;
        }
        b.host = blocks[i].host;
        must(brant_guest_add_block(guest, &b, &id, &e));
        if (id != i)
            bail("block %u has the number %u", i, id);
    }
    return guest;
}

/* ---- who writes ---- */

static void *write_on(void *arg)
{
    struct writer *w = arg;
    uint64_t random = w->number + 1;

    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        random = random * 6364136223846793005ull + 1442695040888963407ull;
        unsigned i = (unsigned)(random >> 33) % BLOCKS;
        uint64_t page = (random >> 40) % blocks[i].pages;
        /* A place of its own in each page, so that each write changes a byte. */
        _Atomic(uint64_t) *at = (void *)(blocks[i].host + page * PAGE + w->number * 1024 + page % 128 * 8);

        w->record[i][page] = 1;
        atomic_store_explicit(at, atomic_load_explicit(&w->writes, memory_order_relaxed) + 1,
                              memory_order_relaxed);
        atomic_fetch_add_explicit(&w->writes, 1, memory_order_relaxed);
    }
    return NULL;
}

static void writers_start(void)
{
    atomic_store(&stop, false);
    for (unsigned n = 0; n < WRITERS; n++) {
        writers[n].number = n;
        atomic_store(&writers[n].writes, 0);
        for (unsigned i = 0; i < BLOCKS; i++) {
            if (!writers[n].record[i])
                writers[n].record[i] = must_alloc(blocks[i].pages, 1);
            memset(writers[n].record[i], 0, blocks[i].pages);
        }
        if (pthread_create(&writers[n].thread, NULL, write_on, &writers[n]))
            bail("no thread");
    }
}

static void writers_stop(void)
{
    atomic_store(&stop, true);
    for (unsigned n = 0; n < WRITERS; n++)
        pthread_join(writers[n].thread, NULL);
}

static bool writers_have(uint64_t writes)
{
    for (unsigned n = 0; n < WRITERS; n++)
        if (atomic_load(&writers[n].writes) < writes)
            return false;
    return true;
}

/* ---- what is found ---- */

static uint8_t *found[BLOCKS];

/* Takes and copies every pending page. Returns the number of pages. */
static uint64_t take(brant_tracker *tracker)
{
    uint64_t taken = 0;
    brant_run runs[64];
    size_t count;

    do {
        must(brant_tracker_take(tracker, runs, 64, &count, &e));
        for (size_t k = 0; k < count; k++) {
            struct block *b = &blocks[runs[k].block];

            memcpy(b->copy + runs[k].first_page * PAGE, runs[k].host, runs[k].pages * PAGE);
            memset(found[runs[k].block] + runs[k].first_page, 1, runs[k].pages);
            taken += runs[k].pages;
        }
    } while (count);
    return taken;
}

static brant_sync sync_now(brant_tracker *tracker, uint32_t when)
{
    brant_sync s = { .size = sizeof s };

    must(brant_tracker_sync(tracker, when, &s, &e));
    return s;
}

/* Stops all threads of this process and continues them, 20 times. */
static pid_t stopper_start(void)
{
    pid_t child, parent = getpid();

    child = fork();
    if (child < 0)
        bail("fork: %s", strerror(errno));
    if (child == 0) {
        for (int i = 0; i < 20; i++) {
            kill(parent, SIGSTOP);
            usleep(2000);
            kill(parent, SIGCONT);
            usleep(3000);
        }
        _exit(0);
    }
    return child;
}

static atomic_uint signals;

static void on_signal(int number)
{
    (void)number;
    atomic_fetch_add(&signals, 1);
}

/* To any thread that the kernel chooses; 0: no more. */
static void signals_every(long microseconds)
{
    static timer_t timer;
    static bool made;
    struct itimerspec every = { { 0, microseconds * 1000 }, { 0, microseconds * 1000 } };
    struct sigaction action = { .sa_handler = on_signal };
    struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1 };

    if (sigaction(SIGUSR1, &action, NULL) || (!made && timer_create(CLOCK_MONOTONIC, &event, &timer)) ||
        timer_settime(timer, 0, &every, NULL))
        bail("timer: %s", strerror(errno));
    made = true;
}

static void round_of_writers(brant_tracker *tracker, const char *what, bool stops, unsigned interrupted)
{
    uint64_t lost = 0, differ = 0, taken = 0, syncs = 0;
    pid_t child = -1;
    int status = 0;

    for (unsigned i = 0; i < BLOCKS; i++)
        memset(found[i], 0, blocks[i].pages);
    must(brant_tracker_start(tracker, BRANT_START_ALL, &e));
    taken += take(tracker);
    for (unsigned i = 0; i < BLOCKS; i++)
        memset(found[i], 0, blocks[i].pages);
    writers_start();
    if (stops)
        child = stopper_start();
    while (syncs < 50 || !writers_have(3000) || atomic_load(&signals) < interrupted ||
           (child > 0 && waitpid(child, &status, WNOHANG) == 0)) {
        sync_now(tracker, BRANT_SYNC_RUNNING);
        taken += take(tracker);
        syncs++;
    }
    writers_stop();
    sync_now(tracker, BRANT_SYNC_STOPPED);
    taken += take(tracker);
    for (unsigned i = 0; i < BLOCKS; i++)
        for (uint64_t page = 0; page < blocks[i].pages; page++) {
            for (unsigned n = 0; n < WRITERS; n++)
                lost += writers[n].record[i][page] && !found[i][page];
            differ += memcmp(blocks[i].host + page * PAGE, blocks[i].copy + page * PAGE, PAGE) != 0;
        }
    note("%s: %" PRIu64 " syncs, %" PRIu64 " pages taken, %u signals", what, syncs, taken,
         atomic_load(&signals));
    equal(lost, 0, "%s: every page that a writer recorded is found", what);
    equal(differ, 0, "%s: a copy of what was handed out is the memory, byte for byte", what);
    equal(sync_now(tracker, BRANT_SYNC_STOPPED).found_pages, 0,
          "%s: with the writers still, no page is found again", what);
    must(brant_tracker_stop(tracker, &e));
}

/* ---- other promises ---- */

static void written_pages_have_figures(brant_tracker *tracker)
{
    brant_sync s;

    must(brant_tracker_start(tracker, BRANT_START_CLEAN, &e));
    for (uint64_t page = 0; page < 100; page++)
        blocks[2].host[page * 3 * PAGE]++;
    s = sync_now(tracker, BRANT_SYNC_RUNNING);
    ok(s.found_pages == 100 && s.userfault_pages == 100 && s.pending_pages == 100,
       "a hundred pages written are a hundred found, by userfaultfd");
    ok(s.userfault_ns > 0 && s.userfault_ns <= s.time_ns && s.kvm_pages == 0 && s.reported_pages == 0,
       "their time is userfaultfd's share of the sync");
    equal(brant_tracker_add_userfault(tracker, NULL), BRANT_E_STATE,
          "a log is not added while tracking is on");
    take(tracker);
    must(brant_tracker_stop(tracker, &e));
}

static void second_is_refused(brant_tracker *tracker, brant_guest *guest)
{
    brant_tracker *second;
    brant_error *why = NULL;

    must(brant_tracker_new(guest, NULL, &second, &e));
    must(brant_tracker_add_userfault(second, &e));
    must(brant_tracker_start(tracker, BRANT_START_CLEAN, &e));
    equal(brant_tracker_start(second, BRANT_START_CLEAN, &why), BRANT_E_EXISTS,
          "memory that another userfaultfd has is refused");
    ok(why && strstr(brant_error_message(why), "`ram0`"), "and the block is named");
    note("%s", brant_error_message(why));
    brant_error_free(why);
    must(brant_tracker_stop(tracker, &e));
    equal(brant_tracker_start(second, BRANT_START_CLEAN, NULL), 0,
          "once the first has stopped the second may start");
    brant_tracker_free(second);
}

/* A VMM that becomes a daemon between making its tracker and starting it. */
static void child_tracks_itself(brant_tracker *tracker)
{
    int status = -1;
    pid_t child = fork();

    if (child < 0)
        bail("fork: %s", strerror(errno));
    if (child == 0) {
        brant_sync s = { .size = sizeof s };

        if (brant_tracker_start(tracker, BRANT_START_CLEAN, NULL))
            _exit(1);
        blocks[2].host[7 * PAGE]++;
        blocks[2].host[9 * PAGE]++;
        if (brant_tracker_sync(tracker, BRANT_SYNC_RUNNING, &s, NULL))
            _exit(2);
        _exit(s.found_pages == 2 ? 0 : 3);
    }
    waitpid(child, &status, 0);
    equal(status, 0, "a process that forks before it starts tracks its own memory");
}

static void refuse_the_call(void)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = { sizeof filter / sizeof filter[0], filter };

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
        _exit(9);
}

/* In a child whose system call is filtered, which can still use the device. */
static void device_serves_too(brant_guest *guest)
{
    bool device = access("/dev/userfaultfd", R_OK | W_OK) == 0;
    int status = -1;
    pid_t child;

    if (!device) {
        skip("/dev/userfaultfd cannot be opened", "where the system call is filtered the device serves");
    } else if ((child = fork()) == 0) {
        brant_sync s = { .size = sizeof s };
        brant_tracker *tracker;

        refuse_the_call();
        if (brant_tracker_new(guest, NULL, &tracker, NULL) || brant_tracker_add_userfault(tracker, NULL) ||
            brant_tracker_start(tracker, BRANT_START_CLEAN, NULL))
            _exit(1);
        blocks[2].host[7 * PAGE]++;
        if (brant_tracker_sync(tracker, BRANT_SYNC_RUNNING, &s, NULL))
            _exit(2);
        _exit(s.found_pages == 1 ? 0 : 3);
    } else {
        waitpid(child, &status, 0);
        equal(status, 0, "where the system call is filtered the device serves");
    }
    child = fork();
    if (child == 0) {
        brant_tracker *tracker;
        brant_error *why = NULL;

        /* A user who may not open the device. */
        if (device && setuid(65534))
            _exit(8);
        refuse_the_call();
        if (brant_tracker_new(guest, NULL, &tracker, NULL) ||
            brant_tracker_add_userfault(tracker, &why) != BRANT_E_UNSUPPORTED)
            _exit(1);
        _exit(strstr(brant_error_message(why), "/dev/userfaultfd") ? 0 : 2);
    }
    waitpid(child, &status, 0);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 8)
        skip("this user cannot be another", "where both are refused, the error says so");
    else
        equal(status, 0, "where both are refused, the error says so");
}

static void ends_leave_nothing(brant_guest *guest)
{
    brant_tracker *tracker;

    for (int i = 0; i < 3; i++) {
        must(brant_tracker_new(guest, NULL, &tracker, &e));
        must(brant_tracker_add_userfault(tracker, &e));
        must(brant_tracker_start(tracker, BRANT_START_CLEAN, &e));
        /* Freed while it is started. */
        brant_tracker_free(tracker);
    }
    ok(true, "a tracker that is freed gives the memory back");
}

/* ---- KVM's log as the witness ---- */

enum { KVM_PROMISES = 4 };

static void guest_of_kvm(unsigned vcpus)
{
    static const struct tracking how = { "", BRANT_KVM_AUTO, BRANT_CLEAR_CHUNKED, 6 };
    struct mv_config c = {
        .vcpus = vcpus,
        .nregions = 2,
        .regions = { { .bytes = 24 * MIB + 9 * PAGE, .nslots = 2, .slot_bytes = { 9 * MIB + PAGE } },
                     { .bytes = 24 * MIB, .memfd = true } },
        .workload = GV_RANDOM,
        .fill_percent = 30,
        .seed = random_below(UINT32_MAX),
    };
    struct vm *vm = vm_new(&c);
    struct copy by_kvm = copy_new(vm), by_userfault = copy_new(vm);
    uint64_t *before = must_alloc(vm->pages, 8), *after = must_alloc(vm->pages, 8);
    uint64_t only_kvm = 0, only_userfault = 0, changed = 0, both = 0;
    brant_tracker *kvm, *userfault;

    vm_track(vm, &how);
    kvm = atomic_load(&vm->tracker);
    /* Nobody marks for this tracker: it finds the VMM's writes too. */
    must(brant_tracker_new(vm->guest, NULL, &userfault, &e));
    must(brant_tracker_add_userfault(userfault, &e));
    vm_start(vm);
    vm_pause(vm);
    must(brant_tracker_start(kvm, BRANT_START_ALL, &e));
    must(brant_tracker_start(userfault, BRANT_START_CLEAN, &e));
    copy_drain(&by_kvm);
    copy_all(&by_userfault);
    memset(by_kvm.found, 0, vm->pages);
    vm_digest(vm, before);
    vm_resume(vm);
    for (int round = 0; round < 8; round++) {
        vm_writes(vm, 500 + random_below(2000));
        vm_sync(vm, BRANT_SYNC_RUNNING);
        copy_take(&by_kvm, 1 + random_below(60), 1 + random_below(32));
        must(brant_tracker_sync(userfault, BRANT_SYNC_RUNNING, NULL, &e));
        for (brant_run runs[32];;) {
            size_t count;

            must(brant_tracker_take(userfault, runs, 32, &count, &e));
            for (size_t i = 0; i < count; i++)
                copy_run(&by_userfault, &runs[i]);
            if (!count)
                break;
        }
    }
    vm_pause(vm);
    vm_sync(vm, BRANT_SYNC_STOPPED);
    copy_drain(&by_kvm);
    must(brant_tracker_sync(userfault, BRANT_SYNC_STOPPED, NULL, &e));
    for (brant_run run;;) {
        size_t count;

        must(brant_tracker_take(userfault, &run, 1, &count, &e));
        if (!count)
            break;
        copy_run(&by_userfault, &run);
    }
    vm_digest(vm, after);
    for (uint64_t page = 0; page < vm->pages; page++) {
        both += by_kvm.found[page] & by_userfault.found[page];
        if (by_kvm.found[page] && !by_userfault.found[page] && only_kvm++ < 5)
            note("KVM alone found guest page %#" PRIx64, page);
        if (!by_kvm.found[page] && by_userfault.found[page]) {
            only_userfault++;
            changed += before[page] != after[page];
        }
    }
    note("%u vCPUs: %" PRIu64 " pages found by both, %" PRIu64 " by userfaultfd alone", vcpus, both,
         only_userfault);
    ok(both > 500 && only_kvm == 0, "%u vCPUs: userfaultfd finds every page that KVM's log has", vcpus);
    /* The page is made writable, and then KVM lets the vCPU write it and logs that. A pause can
     * come in between. */
    ok(changed == 0 && only_userfault <= vcpus, "%u vCPUs: and no page that was not written", vcpus);
    equal(copy_differs(&by_userfault), 0, "%u vCPUs: a copy of what it handed out equals the guest", vcpus);
    must(brant_tracker_stop(userfault, &e));
    vm_resume(vm);
    ok(vm_runs_clean(vm), "%u vCPUs: the guest goes on and misses nothing", vcpus);
    brant_tracker_free(userfault);
    vm_free(vm);
    copy_free(&by_kvm);
    copy_free(&by_userfault);
    free(before);
    free(after);
}

int main(void)
{
    static const unsigned vcpus[] = { 1, 4 };
    brant_tracker *tracker;
    brant_guest *guest;
    brant_error *why = NULL;
    int32_t code;
    char text[200];

    must(brant_guest_new(NULL, NULL, &guest, &e));
    must(brant_tracker_new(guest, NULL, &tracker, &e));
    code = brant_tracker_add_userfault(tracker, &why);
    if (code == BRANT_E_UNSUPPORTED)
        skip_all(brant_error_message(why));
    must_at(code, why, "brant_tracker_add_userfault", __LINE__);
    brant_tracker_free(tracker);
    brant_guest_free(guest);

    plan(3 * 3 + 11 + 2 * KVM_PROMISES);
    random_begin();
    ok(brant_has_feature("userfault") == 1, "the library says that it has it");
    guest = guest_of_blocks();
    for (unsigned i = 0; i < BLOCKS; i++)
        found[i] = must_alloc(blocks[i].pages, 1);
    must(brant_tracker_new(guest, NULL, &tracker, &e));
    must(brant_tracker_add_userfault(tracker, &e));
    child_tracks_itself(tracker);
    round_of_writers(tracker, "four writers", false, 0);
    signals_every(200);
    round_of_writers(tracker, "with a signal every 0.2 ms", false, 100);
    signals_every(0);
    round_of_writers(tracker, "stopped and continued", true, 0);
    written_pages_have_figures(tracker);
    second_is_refused(tracker, guest);
    ends_leave_nothing(guest);
    device_serves_too(guest);
    brant_tracker_free(tracker);
    brant_guest_free(guest);

    for (int v = 0; v < 2; v++) {
        if (mv_kvm_available(text, sizeof text)) {
            for (int i = 0; i < KVM_PROMISES; i++)
                skip(text, "%u vCPUs of KVM: promise %d", vcpus[v], i + 1);
            continue;
        }
        guest_of_kvm(vcpus[v]);
    }
    return done();
}
