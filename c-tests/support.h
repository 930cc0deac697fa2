/*
 * Helpers for C tests with a real guest: a guest of examples/minivmm that is described to brant,
 * its migration to another one in this process, the pages found in its memory, and random numbers.
 * Each such program includes this once, and need not include tap.h. It is no model of a VMM:
 * examples/minivmm/migrate.c is one.
 *
 * Impossible events end the program (must, bail), so that tests have no branches for them.
 */
#ifndef SUPPORT_H
#define SUPPORT_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>

#include <brant.h>

#include "digest.h"
#include "machine.h"
#include "state.h"
#include "tap.h"

#define UNUSED __attribute__((unused))
#define PAGE ((uint64_t)MV_PAGE)
#define MIB (1ull << 20)

/* ---- time and numbers at random ---- */

UNUSED static uint64_t now_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

UNUSED static void sleep_us(uint64_t us)
{
    struct timespec t = { (time_t)(us / 1000000), (long)(us % 1000000) * 1000 };

    while (nanosleep(&t, &t) && errno == EINTR)
        ;
}

static uint64_t random_state;

/* Begins with SEED from the environment, or with the clock. The seed is printed, so that a failure
 * can be repeated. */
UNUSED static void random_begin(void)
{
    const char *seed = getenv("SEED");

    random_state = seed ? strtoull(seed, NULL, 0) : now_us() ^ (uint64_t)getpid() << 32;
    note("seed: SEED=%" PRIu64, random_state);
}

UNUSED static uint64_t random_below(uint64_t n)
{
    random_state += 0x9e3779b97f4a7c15ull;
    return gv_mix(random_state) % n;
}

/* ---- errors ---- */

/* Checks `code`, the result of a call that has to succeed. */
UNUSED static void must_at(int32_t code, brant_error *e, const char *what, int line)
{
    if (code)
        bail("line %d: %s: %s (%d: %s)", line, what, brant_error_name(code), code,
             brant_error_message(e));
}

#define must(call)                               \
    do {                                         \
        brant_error *e = NULL;                   \
        int32_t must_code = (call);              \
        must_at(must_code, e, #call, __LINE__);  \
    } while (0)

UNUSED static void *must_alloc(size_t count, size_t size)
{
    void *memory = calloc(count ? count : 1, size);

    if (!memory)
        bail("out of memory");
    return memory;
}

/* ---- a guest ---- */

enum op { OP_PAUSE, OP_RESUME, OP_SAVE, OP_LOAD, OP_RELEASE, OP_RUN, OP_COUNT };

struct vm {
    struct mv_machine *machine;
    brant_guest *guest;
    /* The tracker that gets the machine's marks. Exchanged only while the guest stands still. */
    _Atomic(brant_tracker *) tracker;
    uint64_t pages;
    /* A digest of each page, taken when the guest is paused for good (release) or has arrived (run,
     * before it runs). */
    uint64_t *digests;
    struct mv_counters frozen;
    /* Called at the beginning of each operation, and fails it unless it returns 0. May be NULL. */
    int32_t (*at)(struct vm *vm, enum op op, brant_reason *reason);
    void *at_arg;
    /* Called with each event. May be NULL. */
    void (*on_event)(struct vm *vm, const brant_event *event);
    atomic_int calls[OP_COUNT];
    /* Bytes of each vCPU's dirty ring; 0 without one. */
    uint64_t ring_bytes;
    /* Whether the tracker kicks the vCPUs before it harvests. */
    bool kick;
    atomic_ullong full_exits;
};

/* brant's default size of a dirty ring. */
#define RING_DEFAULT UINT64_MAX

static void vm_mark(void *opaque, uint64_t gpa, uint64_t len)
{
    struct vm *vm = opaque;

    brant_tracker_mark(atomic_load(&vm->tracker), gpa, len);
}

/* If a test sets this, it gets each descriptor that a vm lends to brant. `lent_back` closes or
 * replaces it right after the call. */
static int (*lent)(int fd);
static void (*lent_back)(int fd);

static int lend(int fd)
{
    return lent && fd >= 0 ? lent(fd) : fd;
}

static void take_back(int fd)
{
    if (lent_back && fd >= 0)
        lent_back(fd);
}

static int vm_created(void *opaque, int vm_fd)
{
    struct vm *vm = opaque;
    int fd = lend(vm_fd);

    if (vm->ring_bytes)
        must(brant_kvm_enable_ring(fd, vm->ring_bytes == RING_DEFAULT ? 0 : vm->ring_bytes,
                                   &vm->ring_bytes, &e));
    take_back(fd);
    return 0;
}

static int vm_ring_full(void *opaque, unsigned vcpu)
{
    struct vm *vm = opaque;

    atomic_fetch_add(&vm->full_exits, 1);
    return brant_tracker_ring_full(atomic_load(&vm->tracker), vcpu, NULL);
}

static void vm_describe(struct vm *vm, const brant_ops *ops, void *opaque)
{
    unsigned nregions, nslots;
    const struct mv_region *regions = mv_regions(vm->machine, &nregions);
    const struct mv_slot *slots = mv_slots(vm->machine, &nslots);

    must(brant_guest_new(ops, opaque, &vm->guest, &e));
    for (unsigned i = 0; i < nregions; i++) {
        brant_ram_block block = {
            .size = sizeof block,
            .name = regions[i].name,
            .host = regions[i].host,
            .length = regions[i].bytes,
            .fd = lend(regions[i].fd),
            .flags = regions[i].fd < 0 ? 0 : BRANT_RAM_FILE,
        };
        uint32_t id = 0;

        must(brant_guest_add_block(vm->guest, &block, &id, &e));
        take_back(block.fd);
        /* Slots name their blocks by this number, and runs become guest addresses by it. */
        if (id != i)
            bail("block %u has the number %u", i, id);
    }
    for (unsigned i = 0; i < nslots; i++) {
        brant_slot slot = {
            .size = sizeof slot,
            .block = slots[i].region,
            .offset = slots[i].offset,
            .length = slots[i].bytes,
            .guest_address = slots[i].gpa,
            .slot = slots[i].id,
            .kvm_flags = slots[i].flags,
        };

        must(brant_guest_add_slot(vm->guest, &slot, &e));
    }
}

/* A guest that has not started yet, with dirty rings of `bytes` (0: none; or RING_DEFAULT) and
 * these operations. They get `opaque`, or the struct vm if that is NULL. The hooks get the struct
 * vm. */
UNUSED static struct vm *vm_new_with(const struct mv_config *config, uint64_t bytes,
                                     const brant_ops *ops, void *opaque)
{
    struct vm *vm = must_alloc(1, sizeof *vm);
    struct mv_config c = *config;
    char why[256];

    vm->ring_bytes = bytes;
    c.hooks.opaque = vm;
    c.hooks.mark = vm_mark;
    c.hooks.vm_created = vm_created;
    c.hooks.dirty_ring_full = vm_ring_full;
    vm->machine = mv_machine_new(&c, why, sizeof why);
    if (!vm->machine)
        bail("no machine: %s", why);
    vm->pages = mv_memory_bytes(vm->machine) / PAGE;
    vm->digests = must_alloc(vm->pages, sizeof *vm->digests);
    vm_describe(vm, ops, opaque ? opaque : vm);
    return vm;
}

/* The operations that migrate a vm: see below. */
static const brant_ops vm_ops;

UNUSED static struct vm *vm_new_with_rings(const struct mv_config *config, uint64_t bytes)
{
    return vm_new_with(config, bytes, &vm_ops, NULL);
}

UNUSED static struct vm *vm_new(const struct mv_config *config)
{
    return vm_new_with_rings(config, 0);
}

/* How dirty pages are found. */
struct tracking {
    const char *name;
    uint32_t mode, clearing, shift;
};

/* Adds KVM's log of the guest to a tracker, and its vCPUs if they have rings. */
UNUSED static void vm_add_kvm(struct vm *vm, brant_tracker *tracker, uint32_t mode)
{
    brant_kvm_log kvm = { .size = sizeof kvm, .vm_fd = lend(mv_vm_fd(vm->machine)), .mode = mode };

    must(brant_tracker_add_kvm(tracker, &kvm, &e));
    take_back(kvm.vm_fd);
    for (unsigned i = 0; vm->ring_bytes && i < mv_vcpu_count(vm->machine); i++) {
        int fd = lend(mv_vcpu_fd(vm->machine, i));

        must(brant_tracker_add_vcpu(tracker, i, fd, &e));
        take_back(fd);
    }
}

/* Gives the guest a tracker. It stands still, or has not started. */
UNUSED static void vm_track(struct vm *vm, const struct tracking *how)
{
    brant_tracker_config config = { sizeof config, how->clearing, how->shift };
    brant_tracker *tracker;

    must(brant_tracker_new(vm->guest, &config, &tracker, &e));
    vm_add_kvm(vm, tracker, how->mode);
    atomic_store(&vm->tracker, tracker);
}

/* Frees the guest's tracker while it stands still. */
UNUSED static void vm_untrack(struct vm *vm)
{
    brant_tracker_free(atomic_exchange(&vm->tracker, NULL));
}

UNUSED static void vm_free(struct vm *vm)
{
    if (!vm)
        return;
    mv_destroy(vm->machine);
    brant_tracker_free(atomic_load(&vm->tracker));
    brant_guest_free(vm->guest);
    free(vm->digests);
    free(vm);
}

UNUSED static void vm_start(struct vm *vm)
{
    if (mv_start(vm->machine))
        bail("start: %s", mv_error(vm->machine));
}

UNUSED static void vm_pause(struct vm *vm)
{
    if (mv_pause(vm->machine))
        bail("pause: %s", mv_error(vm->machine));
}

UNUSED static void vm_resume(struct vm *vm)
{
    if (mv_resume(vm->machine))
        bail("resume: %s", mv_error(vm->machine));
}

/* Lets the guest run until it has written `n` pages more. */
UNUSED static void vm_writes(struct vm *vm, uint64_t n)
{
    if (mv_wait_writes(vm->machine, n, patience(30000)))
        bail("the guest does not write: %s", mv_error(vm->machine));
}

UNUSED static uint64_t vm_written(struct vm *vm)
{
    struct mv_counters c;

    mv_counters(vm->machine, -1, &c);
    return c.writes;
}

/* The guest's own check: it goes on writing, and finds everything that it wrote and that the VMM
 * wrote for it. */
UNUSED static bool vm_runs_clean(struct vm *vm)
{
    struct mv_counters c;
    uint64_t bad = 0;

    if (mv_wait_writes(vm->machine, 200, patience(30000)) ||
        mv_self_check(vm->machine, patience(60000), &bad)) {
        note("the guest does not go on: %s", mv_error(vm->machine));
        return false;
    }
    mv_counters(vm->machine, -1, &c);
    if (bad || c.device_errors)
        note("%" PRIu64 " bad pages, %" PRIu64 " device errors", bad, c.device_errors);
    return bad == 0 && c.device_errors == 0;
}

UNUSED static void vm_digest(struct vm *vm, uint64_t *digests)
{
    if (mv_digest_pages(vm->machine, digests) < 0)
        bail("digests: %s", mv_error(vm->machine));
}

/* ---- a copy that follows the guest's memory ---- */

/* Pages are numbered by guest address: blocks follow each other without gaps. */
struct copy {
    struct vm *vm;
    char *memory;
    /* 1 for each page that was taken since it was last set to 0. */
    uint8_t *found;
    uint64_t taken;
};

UNUSED static struct copy copy_new(struct vm *vm)
{
    return (struct copy){
        .vm = vm,
        .memory = must_alloc(vm->pages, PAGE),
        .found = must_alloc(vm->pages, 1),
    };
}

UNUSED static void copy_free(struct copy *copy)
{
    free(copy->memory);
    free(copy->found);
}

static uint64_t run_page(struct vm *vm, const brant_run *run)
{
    unsigned n;
    const struct mv_region *regions = mv_regions(vm->machine, &n);

    if (run->block >= n || (run->first_page + run->pages) * PAGE > regions[run->block].bytes ||
        run->host != (char *)regions[run->block].host + run->first_page * PAGE)
        bail("a run outside of guest memory: block %u, page %" PRIu64, run->block, run->first_page);
    return regions[run->block].gpa / PAGE + run->first_page;
}

/* Copies all of memory as it is now. */
UNUSED static void copy_all(struct copy *copy)
{
    if (mv_read(copy->vm->machine, 0, copy->memory, copy->vm->pages * PAGE))
        bail("guest memory cannot be read");
}

/* Copies a run that was handed out before this call. */
UNUSED static void copy_run(struct copy *copy, const brant_run *run)
{
    uint64_t page = run_page(copy->vm, run);

    memcpy(copy->memory + page * PAGE, run->host, run->pages * PAGE);
    memset(copy->found + page, 1, run->pages);
    copy->taken += run->pages;
}

/* Takes at most `calls` times `capacity` runs, and copies them. True at the end of the walk. */
UNUSED static bool copy_take(struct copy *copy, uint64_t calls, size_t capacity)
{
    brant_tracker *tracker = atomic_load(&copy->vm->tracker);
    brant_run runs[64];

    while (calls-- > 0) {
        size_t count = 0;

        must(brant_tracker_take(tracker, runs, capacity, &count, &e));
        for (size_t i = 0; i < count; i++)
            copy_run(copy, &runs[i]);
        if (count == 0)
            return true;
    }
    return false;
}

/* Takes every pending page. The walk may have begun in the middle. */
UNUSED static void copy_drain(struct copy *copy)
{
    brant_tracker_stats stats = { .size = sizeof stats };

    do {
        copy_take(copy, UINT64_MAX, 64);
        must(brant_tracker_get_stats(atomic_load(&copy->vm->tracker), &stats, &e));
    } while (stats.pending_pages);
}

/* How many pages differ, for a guest that stands still. */
UNUSED static uint64_t copy_differs(struct copy *copy)
{
    uint64_t differs = 0;

    for (uint64_t page = 0; page < copy->vm->pages; page++) {
        const char *host = mv_host(copy->vm->machine, page * PAGE, PAGE);

        if (memcmp(copy->memory + page * PAGE, host, PAGE) == 0)
            continue;
        if (differs++ < 5)
            note("guest page %#" PRIx64 " differs from the copy", page);
    }
    return differs;
}

UNUSED static brant_sync vm_sync(struct vm *vm, uint32_t when)
{
    brant_sync sync = { .size = sizeof sync };

    must(brant_tracker_sync(atomic_load(&vm->tracker), when, &sync, &e));
    return sync;
}

/* ---- migrating it to another one in this process ---- */

static int32_t op_begins(struct vm *vm, enum op op, brant_reason *reason)
{
    atomic_fetch_add(&vm->calls[op], 1);
    return vm->at ? vm->at(vm, op, reason) : 0;
}

static int32_t op_fails(struct vm *vm, brant_reason *reason)
{
    brant_reason_set(reason, mv_error(vm->machine));
    return -1;
}

static int32_t op_pause(void *opaque, brant_reason *reason)
{
    struct vm *vm = opaque;

    /* A slow pause: only the last sync finds what the guest writes meanwhile. */
    if (mv_wait_writes(vm->machine, 100, patience(10000)) || mv_pause(vm->machine))
        return op_fails(vm, reason);
    return op_begins(vm, OP_PAUSE, reason);
}

static int32_t op_resume(void *opaque, brant_reason *reason)
{
    struct vm *vm = opaque;
    int32_t code = op_begins(vm, OP_RESUME, reason);

    return code ? code : mv_resume(vm->machine) ? op_fails(vm, reason) : 0;
}

static int32_t op_save(void *opaque, brant_saver *saver, brant_reason *reason)
{
    struct vm *vm = opaque;
    uint64_t stamp = now_us();

    /* A save may write guest memory. Nothing else writes this page. */
    if (mv_write(vm->machine, 0, &stamp, sizeof stamp))
        return op_fails(vm, reason);
    if (mv_save(vm->machine, saver, reason))
        return -1;
    return op_begins(vm, OP_SAVE, reason);
}

static int32_t op_load(void *opaque, const brant_state_blob *blob, brant_reason *reason)
{
    struct vm *vm = opaque;
    int32_t code = op_begins(vm, OP_LOAD, reason);

    if (code)
        return code;
    return mv_load(vm->machine, blob, reason);
}

static int32_t op_release(void *opaque, brant_reason *reason)
{
    struct vm *vm = opaque;

    mv_counters(vm->machine, -1, &vm->frozen);
    if (mv_digest_pages(vm->machine, vm->digests) < 0)
        return op_fails(vm, reason);
    return op_begins(vm, OP_RELEASE, reason);
}

static int32_t op_run(void *opaque, brant_reason *reason)
{
    struct vm *vm = opaque;
    int32_t code = op_begins(vm, OP_RUN, reason);

    if (code)
        return code;
    mv_counters(vm->machine, -1, &vm->frozen);
    if (mv_digest_pages(vm->machine, vm->digests) < 0)
        return op_fails(vm, reason);
    return mv_start(vm->machine) ? op_fails(vm, reason) : 0;
}

static int32_t op_map_block(void *opaque, const char *name, int32_t fd, uint64_t length,
                            uint64_t offset, void **address, brant_reason *reason)
{
    struct vm *vm = opaque;

    *address = mv_replace_memory(vm->machine, name, fd, offset, length);
    return *address ? 0 : op_fails(vm, reason);
}

static int32_t op_kick(void *opaque, brant_reason *reason)
{
    struct vm *vm = opaque;

    return vm->kick && mv_kick(vm->machine) ? op_fails(vm, reason) : 0;
}

static void op_event(void *opaque, const brant_event *event)
{
    struct vm *vm = opaque;

    if (vm->on_event)
        vm->on_event(vm, event);
}

static const brant_ops vm_ops = {
    .size = sizeof vm_ops,
    .pause = op_pause,
    .resume = op_resume,
    .save = op_save,
    .load = op_load,
    .release = op_release,
    .run = op_run,
    .event = op_event,
    .kick = op_kick,
    .map_block = op_map_block,
};

struct side {
    int32_t code;
    char why[512];
};

struct journey {
    struct vm *from, *to;
    brant_outgoing *out;
    brant_incoming *in;
    struct side source, destination;
    brant_stats stats;
};

UNUSED static void side_set(struct side *side, int32_t code, brant_error *e)
{
    side->code = code;
    snprintf(side->why, sizeof side->why, "%s", brant_error_message(e));
    brant_error_free(e);
}

UNUSED static void make_socketpair(int pair[2])
{
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
        bail("socketpair: %s", strerror(errno));
}

/* Makes both migrations. begin_* or a test starts them. */
UNUSED static void journey_new(struct journey *j, struct vm *from, struct vm *to,
                               const brant_params *params)
{
    *j = (struct journey){ .from = from, .to = to, .stats = { .size = sizeof j->stats } };
    must(brant_outgoing_new(atomic_load(&from->tracker), params, &j->out, &e));
    must(brant_incoming_new(to->guest, params, &j->in, &e));
}

UNUSED static void journey_begin_fds(struct journey *j, int source, int destination)
{
    must(brant_incoming_start_fd(j->in, destination, &e));
    must(brant_outgoing_start_fd(j->out, source, &e));
}

UNUSED static void journey_begin(struct journey *j, bool tcp)
{
    char bound[128];
    int pair[2];

    if (tcp) {
        must(brant_incoming_listen(j->in, "tcp:127.0.0.1:0", &e));
        must(brant_incoming_get_endpoint(j->in, bound, sizeof bound, NULL, &e));
        must(brant_outgoing_start(j->out, bound, &e));
        return;
    }
    make_socketpair(pair);
    journey_begin_fds(j, pair[0], pair[1]);
}

/* Waits for the end on both sides, and frees both migrations except, if `keep`, the source's. */
UNUSED static void journey_end(struct journey *j, bool keep)
{
    brant_error *e = NULL;
    int32_t code = brant_outgoing_wait(j->out, patience(60000), &e);

    side_set(&j->source, code, e);
    code = brant_incoming_wait(j->in, patience(60000), &e);
    side_set(&j->destination, code, e);
    brant_outgoing_get_stats(j->out, &j->stats, NULL);
    brant_incoming_free(j->in);
    j->in = NULL;
    if (!keep) {
        brant_outgoing_free(j->out);
        j->out = NULL;
    }
}

/* Whether every page, and the guest's counters, arrived as they were sent. */
UNUSED static bool journey_equal(const struct journey *j)
{
    uint64_t differs = 0;

    for (uint64_t page = 0; page < j->from->pages; page++)
        if (j->from->digests[page] != j->to->digests[page] && differs++ < 5)
            note("guest page %#" PRIx64 " arrived differently", page);
    if (j->from->frozen.writes != j->to->frozen.writes)
        note("%" PRIu64 " writes here, %" PRIu64 " there", j->from->frozen.writes,
             j->to->frozen.writes);
    return differs == 0 && j->from->pages == j->to->pages &&
           j->from->frozen.writes == j->to->frozen.writes && j->from->frozen.writes > 0;
}

/* 0, or -1 and the reason why this KVM has no dirty rings of this size. */
UNUSED static int rings_available(uint64_t bytes, char *why, size_t len)
{
    brant_error *e = NULL;
    int kvm, machine;
    int32_t code;

    if (mv_kvm_available(why, len))
        return -1;
    kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    /* KVM_CREATE_VM */
    machine = ioctl(kvm, 0xae01, 0);
    if (machine < 0)
        bail("KVM_CREATE_VM: %s", strerror(errno));
    close(kvm);
    code = brant_kvm_enable_ring(machine, bytes == RING_DEFAULT ? 0 : bytes, NULL, &e);
    close(machine);
    snprintf(why, len, "%s", brant_error_message(e));
    brant_error_free(e);
    return code ? -1 : 0;
}

/* Without KVM no promise of the program can be tested. */
UNUSED static void need_kvm(void)
{
    char why[200];

    if (mv_kvm_available(why, sizeof why))
        skip_all(why);
}

#endif
