/*
 * Memory that changes while a real guest migrates. Slots are deleted and made again, cut elsewhere,
 * and moved to another guest address and back. Blocks are added with a KVM slot of their own,
 * removed again, and unmapped at once. This happens in the order that the header asks for, while
 * eight threads mark all of the memory. Slots also go while the guest stands still, in the right
 * order and in the wrong one: what the guest wrote through them arrives all the same.
 */
#include "support.h"

#include <linux/kvm.h>

static const struct tracking trackings[] = {
    { "get-and-clear", BRANT_KVM_GET_AND_CLEAR, BRANT_CLEAR_CHUNKED, 0 },
    { "manual-protect, small chunks", BRANT_KVM_MANUAL_PROTECT, BRANT_CLEAR_CHUNKED, 6 },
    { "initially-set", BRANT_KVM_INITIALLY_SET, BRANT_CLEAR_CHUNKED, 0 },
    { "initially-set, cleared at sync", BRANT_KVM_INITIALLY_SET, BRANT_CLEAR_AT_SYNC, 0 },
};

enum {
    WAYS = sizeof trackings / sizeof trackings[0],
    MOVING_PROMISES = 4,
    GOING_PROMISES = 3,
    MARKERS = 8,
    DIMMS = 3,
    CHANGES = 16,
    A_PASS = 4,
    /* The region that is cut anew, whose index is its block's number: see vm_describe. */
    CUT = 1,
};

/* The numbers of this test's slots begin here, and the slots lie far above the guest's memory. */
#define FIRST_NUMBER 100u
#define ELSEWHERE (1ull << 36)
#define APART (64 * MIB)
#define DIMM_BYTES (MIB + 5 * PAGE)

struct slot {
    uint32_t number;
    uint64_t offset, bytes, gpa;
};

struct dimm {
    char name[16];
    void *here, *there;
    struct slot slot;
    /* The block's number at the source and at the destination. */
    uint32_t id, there_id;
};

struct plant {
    struct vm *from, *to;
    /* The block that is cut anew: its region, and its slots now. */
    const struct mv_region *region;
    struct slot cut[2];
    unsigned ncut;
    struct dimm dimms[DIMMS];
    uint32_t next_number;
    unsigned added, removed, passes;
    atomic_uint changes;
    /* Held by one change of the memory at a time, or by the guest's last pause. */
    pthread_mutex_t changing;
    bool paused;
    atomic_bool stop;
    atomic_uint newest;
};

/* Makes a slot, or deletes it if `bytes` is 0. */
static void kvm_slot(struct vm *vm, uint32_t number, uint64_t gpa, uint64_t bytes, void *host)
{
    struct kvm_userspace_memory_region region = {
        .slot = number,
        .guest_phys_addr = gpa,
        .memory_size = bytes,
        .userspace_addr = (uintptr_t)host,
    };

    if (ioctl(mv_vm_fd(vm->machine), KVM_SET_USER_MEMORY_REGION, &region))
        bail("slot %u of %" PRIu64 " bytes at %#" PRIx64 ": %s", number, bytes, gpa, strerror(errno));
}

static void describe(struct vm *vm, uint32_t block, const struct slot *s)
{
    brant_slot slot = {
        .size = sizeof slot,
        .block = block,
        .offset = s->offset,
        .length = s->bytes,
        .guest_address = s->gpa,
        .slot = s->number,
    };

    must(brant_guest_add_slot(vm->guest, &slot, &e));
}

static void forget(struct vm *vm, const struct slot *s)
{
    must(brant_guest_remove_slot(vm->guest, s->number, s->gpa, &e));
}

/* Makes a slot of the cut block while the guest stands still. */
static void make_slot(struct plant *p, struct slot *s, uint64_t gpa)
{
    s->gpa = gpa;
    kvm_slot(p->from, s->number, gpa, s->bytes, (char *)p->region->host + s->offset);
    describe(p->from, CUT, s);
}

static void delete_slot(struct plant *p, const struct slot *s)
{
    forget(p->from, s);
    kvm_slot(p->from, s->number, s->gpa, 0, NULL);
}

/* Shows the block by one slot or two from now on, with other numbers. */
static void cut_anew(struct plant *p)
{
    uint64_t pages = p->region->bytes / PAGE, at = random_below(pages);

    vm_pause(p->from);
    for (unsigned i = 0; i < p->ncut; i++)
        delete_slot(p, &p->cut[i]);
    p->ncut = at ? 2 : 1;
    p->cut[0] = (struct slot){ .number = p->next_number++, .bytes = at ? at * PAGE : p->region->bytes };
    p->cut[1] = (struct slot){ .number = p->next_number++,
                               .offset = at * PAGE,
                               .bytes = p->region->bytes - at * PAGE };
    for (unsigned i = 0; i < p->ncut; i++)
        make_slot(p, &p->cut[i], p->region->gpa + p->cut[i].offset);
    vm_resume(p->from);
}

/* KVM moves a slot away, the VMM writes there, and KVM moves it back. */
static void move_there_and_back(struct plant *p)
{
    struct slot *s = &p->cut[random_below(p->ncut)];
    uint64_t page = random_below(s->bytes / PAGE);
    uint64_t *host = (uint64_t *)((char *)p->region->host + s->offset + page * PAGE);
    uint64_t kept;

    vm_pause(p->from);
    forget(p->from, s);
    make_slot(p, s, ELSEWHERE);
    /* The guest's word is restored at once, with marks at both addresses, because the guest checks
     * its pages itself. */
    kept = *host;
    *host = ~kept;
    brant_tracker_mark(atomic_load(&p->from->tracker), s->gpa + page * PAGE, 8);
    forget(p->from, s);
    make_slot(p, s, p->region->gpa + s->offset);
    *host = kept;
    brant_tracker_mark(atomic_load(&p->from->tracker), s->gpa + page * PAGE, 8);
    vm_resume(p->from);
}

static void *map_dimm(void)
{
    void *memory = mmap(NULL, DIMM_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED)
        bail("mmap: %s", strerror(errno));
    return memory;
}

static uint32_t add_block(struct vm *vm, const char *name, void *host)
{
    brant_ram_block block = {
        .size = sizeof block, .name = name, .host = host, .length = DIMM_BYTES, .fd = -1
    };
    uint32_t id = 0;

    must(brant_guest_add_block(vm->guest, &block, &id, &e));
    return id;
}

/* Writes and then marks, by guest address and by block in turn. */
static void scribble(struct plant *p, struct dimm *d)
{
    brant_tracker *tracker = atomic_load(&p->from->tracker);

    for (unsigned i = 0; i < 64; i++) {
        uint64_t at = random_below(DIMM_BYTES / 8) * 8;

        *(volatile uint64_t *)((char *)d->here + at) = now_us() ^ random_below(UINT64_MAX);
        if (i % 2)
            brant_tracker_mark(tracker, d->slot.gpa + at, 8);
        else
            brant_tracker_mark_block(tracker, d->id, at, 8);
    }
}

static void add_dimm(struct plant *p, unsigned n)
{
    struct dimm *d = &p->dimms[n];

    snprintf(d->name, sizeof d->name, "dimm%u", n);
    d->there = map_dimm();
    memset(d->there, 0x5a, DIMM_BYTES / 2);
    d->there_id = add_block(p->to, d->name, d->there);
    d->here = map_dimm();
    d->slot = (struct slot){ p->next_number++, 0, DIMM_BYTES, ELSEWHERE + (2 + n) * APART };
    kvm_slot(p->from, d->slot.number, d->slot.gpa, DIMM_BYTES, d->here);
    d->id = add_block(p->from, d->name, d->here);
    atomic_store(&p->newest, d->id);
    describe(p->from, d->id, &d->slot);
    scribble(p, d);
    p->added++;
}

static void remove_dimm(struct plant *p, struct dimm *d)
{
    must(brant_guest_remove_block(p->from->guest, d->id, &e));
    kvm_slot(p->from, d->slot.number, d->slot.gpa, 0, NULL);
    munmap(d->here, DIMM_BYTES);
    must(brant_guest_remove_block(p->to->guest, d->there_id, &e));
    munmap(d->there, DIMM_BYTES);
    d->here = NULL;
    p->removed++;
}

/* Makes one change at random. False once the guest was paused for the last time. */
static bool change(struct plant *p)
{
    unsigned n = (unsigned)random_below(DIMMS);
    bool goes_on;

    pthread_mutex_lock(&p->changing);
    goes_on = !p->paused;
    if (goes_on) {
        switch (random_below(5)) {
        case 0:
            cut_anew(p);
            break;
        case 1:
            move_there_and_back(p);
            break;
        default:
            if (!p->dimms[n].here)
                add_dimm(p, n);
            else if (random_below(2))
                remove_dimm(p, &p->dimms[n]);
            else
                scribble(p, &p->dimms[n]);
        }
        atomic_fetch_add(&p->changes, 1);
    }
    pthread_mutex_unlock(&p->changing);
    return goes_on;
}

/* Marks any memory that exists, existed or may come. */
static void *marks(void *arg)
{
    struct plant *p = arg;
    brant_tracker *tracker = atomic_load(&p->from->tracker);
    uint64_t state = now_us();

    while (!atomic_load(&p->stop)) {
        for (unsigned i = 0; i < 4; i++) {
            uint64_t random = gv_mix(++state);

            if (i % 2)
                brant_tracker_mark(tracker, ELSEWHERE + random % (6 * APART), 8);
            else
                brant_tracker_mark_block(tracker, atomic_load(&p->newest) + 2 - (uint32_t)(random % 4),
                                         random % (2 * DIMM_BYTES), 8);
        }
        sleep_us(200);
    }
    return NULL;
}

/* Waits until a change is complete, and lets no other begin. */
static int32_t pause_changes(void *opaque, brant_reason *reason)
{
    struct vm *vm = opaque;
    struct plant *p = vm->at_arg;

    pthread_mutex_lock(&p->changing);
    p->paused = true;
    pthread_mutex_unlock(&p->changing);
    return op_pause(opaque, reason);
}

/* Some changes come before each pass ends, however busy the machine is. */
static void await_changes(struct vm *vm, const brant_event *event)
{
    struct plant *p = vm->at_arg;

    if (event->kind != BRANT_EVENT_PASS)
        return;
    for (p->passes++; atomic_load(&p->changes) < p->passes * A_PASS && p->passes * A_PASS <= CHANGES;)
        sleep_us(200);
}

static struct mv_config config_of(unsigned way)
{
    return (struct mv_config){
        .vcpus = 2,
        .nregions = 2,
        .regions = { { .bytes = 12 * MIB }, { .name = "cut", .bytes = 12 * MIB + 3 * PAGE } },
        .workload = way % 2 ? GV_SWEEP : GV_RANDOM,
        .rate = 3000,
        .fill_percent = 70,
        .seed = random_below(UINT32_MAX),
    };
}

static void plant_new(struct plant *p, unsigned way)
{
    struct mv_config c = config_of(way);
    brant_ops ops = vm_ops;
    const struct mv_slot *slots;
    unsigned n;

    *p = (struct plant){ .changing = PTHREAD_MUTEX_INITIALIZER, .next_number = FIRST_NUMBER };
    ops.pause = pause_changes;
    p->from = vm_new_with(&c, 0, &ops, NULL);
    c.incoming = true;
    p->to = vm_new(&c);
    vm_track(p->from, &trackings[way]);
    vm_track(p->to, &trackings[way]);
    p->region = &mv_regions(p->from->machine, &n)[CUT];
    atomic_store(&p->newest, 1);
    slots = mv_slots(p->from->machine, &n);
    for (unsigned i = 0; i < n; i++)
        if (slots[i].region == CUT)
            p->cut[p->ncut++] = (struct slot){ slots[i].id, slots[i].offset, slots[i].bytes, slots[i].gpa };
    p->from->at_arg = p;
    vm_start(p->from);
    vm_writes(p->from, 200);
}

/* Whether a surviving block is equal on both sides. Then removes it. */
static bool dimm_equal(struct plant *p, struct dimm *d)
{
    bool equal = memcmp(d->here, d->there, DIMM_BYTES) == 0;

    remove_dimm(p, d);
    return equal;
}

/* The source's migration state, by its statistics. */
static uint32_t state_of(struct journey *j)
{
    brant_stats stats = { .size = sizeof stats };

    must(brant_outgoing_get_stats(j->out, &stats, &e));
    return stats.state;
}

static void changes_while_copying(unsigned way)
{
    const char *name = trackings[way].name;
    /* At this bandwidth the downtime allows only a few pages, so the guest is copied until it
     * hardly writes any more. More is marked during `pause`, so the first pauses are aborted. */
    brant_params params = { .size = sizeof params,
                            .max_bandwidth = 48 * MIB,
                            .switchover_bandwidth = 64 << 10,
                            .expected_pause_us = 1000,
                            .overrun = BRANT_OVERRUN_CARRY_ON };
    struct plant p;
    struct journey j = { .stats = { .size = sizeof j.stats } };
    pthread_t threads[MARKERS];
    unsigned survivors = 0, same = 0;
    int pair[2];

    plant_new(&p, way);
    j.from = p.from;
    j.to = p.to;
    p.from->on_event = await_changes;
    must(brant_outgoing_new(atomic_load(&p.from->tracker), &params, &j.out, &e));
    must(brant_incoming_new(p.to->guest, NULL, &j.in, &e));
    make_socketpair(pair);
    journey_begin_fds(&j, pair[0], pair[1]);
    for (unsigned i = 0; i < MARKERS; i++)
        if (pthread_create(&threads[i], NULL, marks, &p))
            bail("no thread");
    while (state_of(&j) < BRANT_SOURCE_COPYING)
        sleep_us(200);
    while (atomic_load(&p.changes) < CHANGES && state_of(&j) == BRANT_SOURCE_COPYING && change(&p))
        vm_writes(p.from, random_below(100));
    mv_set_rate(p.from->machine, 400);
    journey_end(&j, false);
    atomic_store(&p.stop, true);
    for (unsigned i = 0; i < MARKERS; i++)
        pthread_join(threads[i], NULL);

    if (!ok(j.source.code == 0 && j.destination.code == 0, "%s: memory changes while it migrates", name))
        note("source: %s; destination: %s", j.source.why, j.destination.why);
    ok(j.source.code == 0 && journey_equal(&j), "%s: every page arrives as it was", name);
    for (unsigned i = 0; i < DIMMS; i++)
        if (p.dimms[i].here) {
            survivors++;
            same += dimm_equal(&p, &p.dimms[i]);
        }
    note("%u changes: %u blocks added, %u removed, %u there at the end", atomic_load(&p.changes), p.added,
         p.removed - survivors, survivors);
    ok(same == survivors && atomic_load(&p.changes) >= A_PASS, "%s: so do the blocks that came on the way", name);
    ok(j.destination.code == 0 && vm_runs_clean(p.to), "%s: the guest goes on", name);
    vm_free(p.from);
    vm_free(p.to);
}

/* ---- slots that go for good ---- */

/* The guest stands still, and its last writes were not harvested yet. */
static int32_t slots_go(struct vm *vm, enum op op, brant_reason *reason)
{
    struct plant *p = vm->at_arg;

    (void)reason;
    for (unsigned i = 0; op == OP_PAUSE && i < p->ncut; i++) {
        if (!p->paused) {
            delete_slot(p, &p->cut[i]);
            continue;
        }
        kvm_slot(vm, p->cut[i].number, p->cut[i].gpa, 0, NULL);
        forget(vm, &p->cut[i]);
    }
    return 0;
}

static void slots_that_go(unsigned way, bool wrong_order)
{
    const char *order = wrong_order ? "deleted before it is removed" : "removed and then deleted";
    const char *name = trackings[way].name;
    struct plant p;
    struct journey j;
    bool gone;

    plant_new(&p, way);
    p.paused = wrong_order;
    p.from->at = slots_go;
    journey_new(&j, p.from, p.to, NULL);
    journey_begin(&j, false);
    journey_end(&j, false);
    if (!ok(j.source.code == 0 && j.destination.code == 0, "%s, a slot %s: migrates", name, order))
        note("source: %s; destination: %s", j.source.why, j.destination.why);
    ok(j.source.code == 0 && journey_equal(&j) && vm_runs_clean(p.to),
       "%s, a slot %s: what the guest wrote through it arrives", name, order);
    /* KVM refuses a slot that overlaps another one. */
    gone = true;
    for (unsigned i = 0; i < p.ncut; i++) {
        struct kvm_userspace_memory_region region = {
            .slot = FIRST_NUMBER + i,
            .guest_phys_addr = p.cut[i].gpa,
            .memory_size = p.cut[i].bytes,
            .userspace_addr = (uintptr_t)p.region->host + p.cut[i].offset,
        };

        gone = gone && ioctl(mv_vm_fd(p.from->machine), KVM_SET_USER_MEMORY_REGION, &region) == 0;
    }
    ok(gone, "%s, a slot %s: it is not there any more", name, order);
    vm_free(p.from);
    vm_free(p.to);
}

int main(void)
{
    need_kvm();
    plan(WAYS * (MOVING_PROMISES + 2 * GOING_PROMISES));
    random_begin();
    for (unsigned way = 0; way < WAYS; way++) {
        changes_while_copying(way);
        slots_that_go(way, false);
        slots_that_go(way, true);
    }
    return done();
}
