/*
 * One side of a migration by brant of a guest that writes all the time. scripts/bench-peers times it
 * beside one by QEMU of the same guest: the same ROM (rom.S), memory and link.
 *
 *     busy source ADDRESS FD BYTES ROM BANDWIDTH LIMIT_MS SLOWING TIMEOUT_MS [postcopy]
 *     busy destination ADDRESS FD BYTES ROM
 *     busy save FILE FD BYTES ROM BANDWIDTH
 *     busy disk FILE BANDWIDTH
 *     busy ticks
 *
 * ADDRESS, FD and BYTES are as in side.c; with FD -1 the memory is private, and a source's is filled
 * here. ROM is the file of the ROM, at most 64 KiB. The link carries BANDWIDTH bytes a second, before
 * the pause and after it. SLOWING is a BRANT_SLOWING_*; with BRANT_SLOWING_WRITERS the log is KVM's
 * dirty rings. A migration fails after TIMEOUT_MS. Times of day are microseconds of CLOCK_REALTIME.
 *
 * A source says "ready" while its guest runs and starts at a byte on standard input. With "postcopy" a
 * second byte switches to postcopy. It says "moved" or "failed", the downtime in microseconds, the bytes
 * sent, the passes, and at what time of day the guest stood still; and the reason on standard error.
 * A destination says "ready", "runs" in `run`, and at the end for how many microseconds threads have
 * waited for pages, and at what time of day `run` was called.
 * "save" says "ready" while its guest runs, saves the guest as it is at a byte on standard input to
 * FILE, and says "saved" and for how many microseconds the guest was paused.
 * "disk" writes its standard input to FILE past the page cache, BANDWIDTH bytes a second (0: as fast as
 * possible), syncs it, and only then gives it its name: for QEMU, which saves into a pipe.
 * "ticks" says how many ticks the time-stamp counter has in a second.
 */
#define _GNU_SOURCE /* O_DIRECT */
#include "peer.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <time.h>
#include <x86intrin.h>

enum { HUGE_PAGE = 2 << 20, STEP = 1 << 20 };
enum { RING_BYTES = 16 << 10, RING_FULL = 31, ROM_AT = 0xf0000, ROM_BYTES = 0x10000, SLICE_US = 10000 };

/* The one vCPU, and what its threads have agreed on. */
static struct {
    int vm, fd;
    struct kvm_run *run;
    brant_tracker *tracker;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool started, running, resting, parked;
    uint32_t throttle;
    /* Times of day. */
    uint64_t stood, ran;
} vcpu = { .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER };

static void check(bool good, const char *what)
{
    if (good)
        return;
    perror(what);
    exit(1);
}

static uint64_t now_us(clockid_t clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

/* In the vCPU's thread: KVM_RUN ends at once, also the next one. */
static void kicked(int number)
{
    (void)number;
    vcpu.run->immediate_exit = 1;
}

static void *run_vcpu(void *unused)
{
    for (;;) {
        pthread_mutex_lock(&vcpu.lock);
        vcpu.parked = true;
        pthread_cond_broadcast(&vcpu.changed);
        while (!vcpu.running || vcpu.resting)
            pthread_cond_wait(&vcpu.changed, &vcpu.lock);
        vcpu.parked = false;
        pthread_mutex_unlock(&vcpu.lock);
        while (ioctl(vcpu.fd, KVM_RUN, 0) == 0) {
            check(vcpu.run->exit_reason == RING_FULL, "an unexpected exit");
            must(brant_tracker_ring_full(vcpu.tracker, 0, &error));
        }
        check(errno == EINTR, "KVM_RUN");
        vcpu.run->immediate_exit = 0;
    }
    return unused;
}

/* Lets a throttled vCPU rest for its share of each slice. */
static void *throttles(void *unused)
{
    pthread_mutex_lock(&vcpu.lock);
    for (;;) {
        while (vcpu.throttle == 0 || !vcpu.running)
            pthread_cond_wait(&vcpu.changed, &vcpu.lock);
        struct timespec until;
        uint64_t rest = SLICE_US * vcpu.throttle / 100, runs = SLICE_US - rest;

        pthread_mutex_unlock(&vcpu.lock);
        usleep((useconds_t)runs);
        pthread_mutex_lock(&vcpu.lock);
        if (vcpu.throttle == 0 || !vcpu.running)
            continue;
        vcpu.resting = true;
        pthread_kill(vcpu.thread, SIGUSR1);
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += (long)rest * 1000;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        while (vcpu.throttle != 0 && vcpu.running)
            if (pthread_cond_timedwait(&vcpu.changed, &vcpu.lock, &until))
                break;
        vcpu.resting = false;
        pthread_cond_broadcast(&vcpu.changed);
    }
    return unused;
}

static int32_t set_running(bool running)
{
    pthread_mutex_lock(&vcpu.lock);
    vcpu.running = running;
    pthread_cond_broadcast(&vcpu.changed);
    if (!running) {
        pthread_kill(vcpu.thread, SIGUSR1);
        while (!vcpu.parked)
            pthread_cond_wait(&vcpu.changed, &vcpu.lock);
    }
    pthread_mutex_unlock(&vcpu.lock);
    return 0;
}

static int32_t do_pause(void *opaque, brant_reason *reason)
{
    (void)opaque;
    (void)reason;
    set_running(false);
    vcpu.stood = now_us(CLOCK_REALTIME);
    return 0;
}

static int32_t do_resume(void *opaque, brant_reason *reason)
{
    (void)opaque;
    (void)reason;
    return set_running(true);
}

static int32_t do_run(void *opaque, brant_reason *reason)
{
    vcpu.ran = now_us(CLOCK_REALTIME);
    say("runs\n");
    return do_resume(opaque, reason);
}

static int32_t do_throttle(void *opaque, uint32_t which, uint32_t percent, brant_reason *reason)
{
    (void)opaque;
    (void)which;
    (void)reason;
    pthread_mutex_lock(&vcpu.lock);
    vcpu.throttle = percent;
    pthread_cond_broadcast(&vcpu.changed);
    pthread_mutex_unlock(&vcpu.lock);
    return 0;
}

struct state {
    struct kvm_regs regs;
    struct kvm_sregs sregs;
};

static int32_t do_save(void *opaque, brant_saver *saver, brant_reason *reason)
{
    struct state state;

    (void)opaque;
    (void)reason;
    memset(&state, 0, sizeof state);
    check(ioctl(vcpu.fd, KVM_GET_REGS, &state.regs) == 0, "KVM_GET_REGS");
    check(ioctl(vcpu.fd, KVM_GET_SREGS, &state.sregs) == 0, "KVM_GET_SREGS");
    return brant_saver_put(saver, "vcpu", 0, 1, &state, sizeof state, NULL);
}

static int32_t do_load(void *opaque, const brant_state_blob *blob, brant_reason *reason)
{
    struct state state;

    (void)opaque;
    (void)reason;
    if (blob->length != sizeof state)
        return BRANT_E_UNSUPPORTED;
    memcpy(&state, blob->data, sizeof state);
    check(ioctl(vcpu.fd, KVM_SET_SREGS, &state.sregs) == 0, "KVM_SET_SREGS");
    check(ioctl(vcpu.fd, KVM_SET_REGS, &state.regs) == 0, "KVM_SET_REGS");
    return 0;
}

static void new_vm(void *memory, uint64_t bytes, bool rings)
{
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    struct kvm_userspace_memory_region region = {
        .memory_size = bytes, .userspace_addr = (uintptr_t)memory
    };
    struct sigaction on_kick = { .sa_handler = kicked };
    struct kvm_sregs sregs;
    pthread_t throttler;
    int size;

    vcpu.vm = kvm < 0 ? -1 : ioctl(kvm, KVM_CREATE_VM, 0);
    check(vcpu.vm >= 0, "/dev/kvm");
    if (rings)
        must(brant_kvm_enable_ring(vcpu.vm, RING_BYTES, NULL, &error));
    check(ioctl(vcpu.vm, KVM_SET_USER_MEMORY_REGION, &region) == 0, "KVM_SET_USER_MEMORY_REGION");
    vcpu.fd = ioctl(vcpu.vm, KVM_CREATE_VCPU, 0);
    size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    vcpu.run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu.fd, 0);
    check(vcpu.run != MAP_FAILED, "mmap of a vCPU");
    /* After a reset it is at 0xfffffff0, above this guest's memory. */
    check(ioctl(vcpu.fd, KVM_GET_SREGS, &sregs) == 0, "KVM_GET_SREGS");
    sregs.cs.base = ROM_AT;
    check(ioctl(vcpu.fd, KVM_SET_SREGS, &sregs) == 0, "KVM_SET_SREGS");
    sigaction(SIGUSR1, &on_kick, NULL);
    check(!pthread_create(&vcpu.thread, NULL, run_vcpu, NULL), "a thread");
    check(!pthread_create(&throttler, NULL, throttles, NULL), "a thread");
}

static void load_rom(unsigned char *memory, const char *path)
{
    FILE *file = fopen(path, "rb");

    check(file && fread(memory + ROM_AT, ROM_BYTES, 1, file) == 1, path);
    fclose(file);
}

static void source(brant_guest *guest, brant_params *params, char **argv)
{
    brant_policy policy = BRANT_INIT(brant_policy);
    brant_kvm_log log = BRANT_INIT(brant_kvm_log);
    brant_stats stats = BRANT_INIT(brant_stats);
    brant_outgoing *outgoing;
    int32_t ended;

    params->max_bandwidth = params->switchover_max_bandwidth = strtoull(argv[6], NULL, 10);
    params->downtime_limit_ms = strtoull(argv[7], NULL, 10);
    policy.slowing = (uint32_t)atoi(argv[8]);
    params->total_timeout_ms = strtoull(argv[9], NULL, 10);
    if (argv[10])
        params->postcopy = BRANT_POSTCOPY_ALLOWED;
    log.vm_fd = vcpu.vm;
    must(brant_tracker_new(guest, NULL, &vcpu.tracker, &error));
    must(brant_tracker_add_kvm(vcpu.tracker, &log, &error));
    if (policy.slowing == BRANT_SLOWING_WRITERS)
        must(brant_tracker_add_vcpu(vcpu.tracker, 0, vcpu.fd, &error));
    must(brant_outgoing_new(vcpu.tracker, params, &outgoing, &error));
    must(brant_outgoing_set_policy(outgoing, &policy, &error));
    set_running(true);
    say("ready\n");
    await_byte();
    must(brant_outgoing_start(outgoing, argv[2], &error));
    if (argv[10]) {
        await_byte();
        must(brant_outgoing_start_postcopy(outgoing, &error));
    }
    ended = brant_outgoing_wait(outgoing, BRANT_NO_LIMIT, &error);
    must(brant_outgoing_get_stats(outgoing, &stats, NULL));
    printf("%s %llu %llu %u %llu\n", ended ? "failed" : "moved", (unsigned long long)stats.downtime_ns / 1000,
           (unsigned long long)stats.wire_bytes, stats.pass, (unsigned long long)vcpu.stood);
    fflush(stdout);
    must(ended);
    await_byte();
}

static void destination(brant_guest *guest, const brant_params *params, const char *address)
{
    brant_stats stats = BRANT_INIT(brant_stats);
    brant_incoming *incoming;

    must(brant_incoming_new(guest, params, &incoming, &error));
    must(brant_incoming_listen(incoming, address, &error));
    say("ready\n");
    must(brant_incoming_wait(incoming, BRANT_NO_LIMIT, &error));
    must(brant_incoming_get_stats(incoming, &stats, NULL));
    printf("%llu %llu\n", (unsigned long long)stats.fault_blocked_ns / 1000, (unsigned long long)vcpu.ran);
    fflush(stdout);
    await_byte();
}

static void save(brant_guest *guest, const char *path, const char *bandwidth)
{
    brant_image_save_params params = BRANT_INIT(brant_image_save_params);
    brant_image_stats stats = BRANT_INIT(brant_image_stats);
    brant_image_save *save;

    params.instant = BRANT_IMAGE_INSTANT_START;
    params.max_bandwidth = strtoull(bandwidth, NULL, 10);
    must(brant_tracker_new(guest, NULL, &vcpu.tracker, &error));
    must(brant_image_save_new(vcpu.tracker, &params, &save, &error));
    set_running(true);
    say("ready\n");
    await_byte();
    must(brant_image_save_start(save, path, &error));
    must(brant_image_save_wait(save, BRANT_NO_LIMIT, &error));
    must(brant_image_save_get_stats(save, &stats, NULL));
    printf("saved %llu\n", (unsigned long long)stats.downtime_ns / 1000);
    fflush(stdout);
    await_byte();
}

static int disk(const char *path, const char *bandwidth)
{
    uint64_t most = strtoull(bandwidth, NULL, 10), done = 0, begun = now_us(CLOCK_MONOTONIC);
    void *buffer = aligned_alloc(HUGE_PAGE, STEP);
    char name[4096];
    ssize_t got;
    int file;

    snprintf(name, sizeof name, "%s.new", path);
    file = open(name, O_WRONLY | O_CREAT | O_TRUNC | O_DIRECT | O_CLOEXEC, 0600);
    check(buffer && file >= 0, name);
    do {
        size_t filled = 0;

        while (filled < STEP && (got = read(0, (char *)buffer + filled, STEP - filled)) > 0)
            filled += (size_t)got;
        check(got >= 0, "read");
        if (filled < STEP) /* The end, which is no multiple of a block. */
            check(!fcntl(file, F_SETFL, O_WRONLY), "F_SETFL");
        check(write(file, buffer, filled) == (ssize_t)filled, "write");
        done += filled;
        while (most && done * 1000000 / most > now_us(CLOCK_MONOTONIC) - begun)
            usleep(500);
    } while (got > 0);
    check(!fsync(file), "fsync");
    check(!rename(name, path), path);
    return 0;
}

static int ticks(void)
{
    struct timespec begun, ended;
    uint64_t before, after;
    double seconds;

    clock_gettime(CLOCK_MONOTONIC, &begun);
    before = __rdtsc();
    usleep(200000);
    clock_gettime(CLOCK_MONOTONIC, &ended);
    after = __rdtsc();
    seconds = (double)(ended.tv_sec - begun.tv_sec) + (double)(ended.tv_nsec - begun.tv_nsec) / 1e9;
    printf("%.0f\n", (double)(after - before) / seconds);
    return 0;
}

/* Mapped as QEMU maps it: all of it backed, private memory in huge pages where the kernel has them. */
static char *new_memory(int fd, uint64_t bytes)
{
    int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED : MAP_SHARED | MAP_POPULATE;
    char *at = NULL, *memory;

    if (fd < 0) {
        /* Room on both sides, or a neighbour would look like a part of it. */
        at = mmap(NULL, bytes + 2 * HUGE_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        check(at != MAP_FAILED, "mmap");
        at += HUGE_PAGE - ((uintptr_t)at & (HUGE_PAGE - 1));
    }
    memory = mmap(at, bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
    check(memory != MAP_FAILED, "mmap");
    if (fd < 0) {
        (void)madvise(memory, bytes, MADV_HUGEPAGE);
        check(!madvise(memory, bytes, MADV_POPULATE_WRITE), "MADV_POPULATE_WRITE");
    }
    return memory;
}

/* Writes what no compressor makes smaller. */
static void fill(char *memory, uint64_t bytes)
{
    uint64_t state = 88172645463325252, *word = (uint64_t *)memory, *end = word + bytes / 8;

    while (word < end) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *word++ = state;
    }
}

int main(int argc, char **argv)
{
    brant_ops ops = BRANT_INIT(brant_ops);
    brant_params params = BRANT_INIT(brant_params);
    brant_ram_block block = BRANT_INIT(brant_ram_block);
    brant_slot slot = BRANT_INIT(brant_slot);
    brant_guest *guest;
    uint64_t bytes;
    bool from, saves, rings;
    struct statfs about;
    char *memory;

    if (argc == 2 && !strcmp(argv[1], "ticks"))
        return ticks();
    if (argc == 4 && !strcmp(argv[1], "disk"))
        return disk(argv[2], argv[3]);
    from = (argc == 10 || argc == 11) && !strcmp(argv[1], "source");
    saves = argc == 7 && !strcmp(argv[1], "save");
    if (!from && !saves && (argc != 6 || strcmp(argv[1], "destination")))
        return 2;
    bytes = strtoull(argv[4], NULL, 10);
    block.fd = atoi(argv[3]);
    memory = new_memory(block.fd, bytes);
    if (block.fd < 0 && (from || saves))
        fill(memory, bytes);
    rings = from && atoi(argv[8]) == BRANT_SLOWING_WRITERS;
    new_vm(memory, bytes, rings);
    if (from || saves)
        load_rom((unsigned char *)memory, argv[5]);
    ops.pause = do_pause;
    ops.resume = do_resume;
    ops.run = do_run;
    ops.save = do_save;
    ops.load = do_load;
    ops.throttle = do_throttle;
    must(brant_guest_new(&ops, NULL, &guest, &error));
    block.name = "ram";
    block.host = memory;
    block.length = slot.length = bytes;
    if (block.fd >= 0) {
        check(!fstatfs(block.fd, &about), "fstatfs");
        block.page_size = (uint64_t)about.f_bsize;
        block.flags = BRANT_RAM_FILE;
    }
    must(brant_guest_add_block(guest, &block, &slot.block, &error));
    must(brant_guest_add_slot(guest, &slot, &error));
    if (from)
        source(guest, &params, argv);
    else if (saves)
        save(guest, argv[2], argv[6]);
    else
        destination(guest, &params, argv[2]);
    /* The threads and the guest end with the process. */
    exit(0);
}
