/*
 * Unusual memory layouts, migrated with a real guest in them: blocks and slots that begin and end
 * anywhere, several slots for a block, many blocks. Also layouts that differ between the two sides:
 * both refuse, with words that name the block and the difference, and the guest runs on. A
 * destination that refuses needs no machine, only blocks.
 */
#include "support.h"

static const struct tracking trackings[] = {
    { "get-and-clear", BRANT_KVM_GET_AND_CLEAR, BRANT_CLEAR_CHUNKED, 0 },
    { "manual-protect, small chunks", BRANT_KVM_MANUAL_PROTECT, BRANT_CLEAR_CHUNKED, 6 },
    { "initially-set", BRANT_KVM_INITIALLY_SET, BRANT_CLEAR_CHUNKED, 0 },
    { "initially-set, cleared at sync", BRANT_KVM_INITIALLY_SET, BRANT_CLEAR_AT_SYNC, 0 },
};

struct layout {
    const char *name;
    struct mv_config config;
};

static const struct layout layouts[] = {
    { "blocks that begin and end at no multiple of 64 pages",
      { .nregions = 3,
        .regions = { { .bytes = 12 * MIB + 5 * PAGE },
                     { .bytes = 7 * MIB + 13 * PAGE, .memfd = true },
                     { .bytes = 9 * MIB + 63 * PAGE } } } },
    { "one block over three slots",
      { .nregions = 1,
        .regions = { { .bytes = 24 * MIB + 3 * PAGE,
                       .nslots = 3,
                       .slot_bytes = { 5 * MIB + PAGE, 11 * MIB + 31 * PAGE } } } } },
    { "ten blocks",
      { .nregions = 10,
        .regions = { { .bytes = 3 * MIB + PAGE },
                     { .name = "one page", .bytes = PAGE },
                     { .bytes = 63 * PAGE },
                     { .bytes = 64 * PAGE, .memfd = true },
                     { .name = "b\xc3\xa4nk", .bytes = 65 * PAGE },
                     { .bytes = 4 * MIB, .nslots = 2, .slot_bytes = { 511 * PAGE } },
                     { .bytes = 2 * MIB - PAGE },
                     { .bytes = 2 * MIB + PAGE, .memfd = true },
                     { .bytes = 5 * MIB + 17 * PAGE },
                     { .bytes = 2 * PAGE, .nslots = 2, .slot_bytes = { PAGE } } } } },
};

enum { LAYOUTS = sizeof layouts / sizeof layouts[0], WAYS = 4, MIGRATION_PROMISES = 3 };

/* `way`: 0 and 1 over a socket pair, 2 and 3 over TCP. */
static void migrates(const struct layout *layout, unsigned way)
{
    struct mv_config c = layout->config;
    const struct tracking *how = &trackings[way];
    char name[160];
    struct journey j;
    struct vm *from, *to;

    snprintf(name, sizeof name, "%s, %s, %s", layout->name, way < 2 ? "socket pair" : "TCP", how->name);
    c.vcpus = 2;
    c.workload = way % 2 ? GV_SWEEP : GV_RANDOM;
    c.rate = 20000;
    c.fill_percent = 60;
    c.seed = random_below(UINT32_MAX);
    from = vm_new(&c);
    c.incoming = true;
    to = vm_new(&c);
    vm_track(from, how);
    vm_track(to, how);
    vm_start(from);
    vm_writes(from, 2000);
    journey_new(&j, from, to, NULL);
    journey_begin(&j, way >= 2);
    journey_end(&j, false);
    if (!ok(j.source.code == 0 && j.destination.code == 0, "%s: migrates", name))
        note("source: %s; destination: %s", j.source.why, j.destination.why);
    ok(j.source.code == 0 && journey_equal(&j), "%s: arrives page by page as it was", name);
    ok(j.destination.code == 0 && vm_runs_clean(to), "%s: the guest goes on", name);
    vm_free(from);
    vm_free(to);
}

/* ---- layouts that differ ---- */

struct block {
    const char *name;
    uint64_t bytes, page_size;
};

static int32_t run_never(void *opaque, brant_reason *reason)
{
    (void)opaque;
    (void)reason;
    bail("a destination with another layout runs the guest");
}

static int32_t load_never(void *opaque, const brant_state_blob *blob, brant_reason *reason)
{
    (void)blob;
    return run_never(opaque, reason);
}

static const brant_ops never = { .size = sizeof never, .load = load_never, .run = run_never };

/* Offers `vm` a destination of `blocks`, and expects both sides to name `block` and `what`. */
static void differs(struct vm *vm, const struct block *blocks, unsigned n, const char *name,
                    const char *block, const char *what)
{
    struct journey j = { .from = vm, .stats = { .size = sizeof j.stats } };
    void *memory[8];
    brant_guest *guest;
    uint64_t written = vm_written(vm);
    int pair[2];

    must(brant_guest_new(&never, NULL, &guest, &e));
    for (unsigned i = 0; i < n; i++) {
        brant_ram_block b = { .size = sizeof b,
                              .name = blocks[i].name,
                              .length = blocks[i].bytes,
                              .page_size = blocks[i].page_size,
                              .fd = -1 };

        memory[i] = mmap(NULL, blocks[i].bytes, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory[i] == MAP_FAILED)
            bail("mmap: %s", strerror(errno));
        b.host = memory[i];
        must(brant_guest_add_block(guest, &b, NULL, &e));
    }
    must(brant_outgoing_new(atomic_load(&vm->tracker), NULL, &j.out, &e));
    must(brant_incoming_new(guest, NULL, &j.in, &e));
    make_socketpair(pair);
    journey_begin_fds(&j, pair[0], pair[1]);
    journey_end(&j, false);

    note("%s: \"%s\"", name, j.source.why);
    ok(j.source.code == BRANT_E_LAYOUT && j.destination.code == BRANT_E_LAYOUT,
       "%s: both sides say that the layouts differ", name);
    if (!ok(strstr(j.source.why, block) && strstr(j.source.why, what) &&
                strstr(j.destination.why, block) && strstr(j.destination.why, what),
            "%s: both sides name the block and the difference", name))
        note("source: %s; destination: %s", j.source.why, j.destination.why);
    ok(atomic_load(&vm->calls[OP_PAUSE]) == 0 && vm_runs_clean(vm) && vm_written(vm) > written,
       "%s: the guest runs on", name);

    brant_guest_free(guest);
    for (unsigned i = 0; i < n; i++)
        munmap(memory[i], blocks[i].bytes);
}

enum { DIFFERENCES = 5, DIFFERENCE_PROMISES = 3 };

static void layouts_that_differ(void)
{
    struct mv_config c = {
        .vcpus = 1,
        .nregions = 2,
        .regions = { { .name = "main", .bytes = 16 * MIB }, { .name = "high", .bytes = 4 * MIB } },
        .workload = GV_RANDOM,
        .rate = 20000,
    };
    struct vm *vm = vm_new(&c), *to;
    struct journey j;

    vm_track(vm, &trackings[2]);
    vm_start(vm);

    struct block name[] = { { "main", 16 * MIB, 0 }, { "low", 4 * MIB, 0 } };
    differs(vm, name, 2, "another name", "high", "low");
    struct block length[] = { { "main", 16 * MIB, 0 }, { "high", 8 * MIB, 0 } };
    differs(vm, length, 2, "another length", "high", "8388608");
    struct block page_size[] = { { "main", 16 * MIB, 2 * MIB }, { "high", 4 * MIB, 0 } };
    differs(vm, page_size, 2, "another page size", "main", "2097152");
    struct block extra[] = { { "main", 16 * MIB, 0 }, { "high", 4 * MIB, 0 }, { "video", MIB, 0 } };
    differs(vm, extra, 3, "a block that the source lacks", "video", "1048576");
    struct block missing[] = { { "main", 16 * MIB, 0 } };
    differs(vm, missing, 1, "a block that the destination lacks", "high", "4194304");

    c.incoming = true;
    to = vm_new(&c);
    vm_track(to, &trackings[2]);
    journey_new(&j, vm, to, NULL);
    journey_begin(&j, false);
    journey_end(&j, false);
    if (!ok(j.source.code == 0 && j.destination.code == 0 && journey_equal(&j) && vm_runs_clean(to),
            "after all refusals it migrates to a destination of its layout"))
        note("source: %s; destination: %s", j.source.why, j.destination.why);
    vm_free(vm);
    vm_free(to);
}

int main(void)
{
    need_kvm();
    plan(LAYOUTS * WAYS * MIGRATION_PROMISES + DIFFERENCES * DIFFERENCE_PROMISES + 1);
    random_begin();
    for (unsigned i = 0; i < LAYOUTS; i++)
        for (unsigned way = 0; way < WAYS; way++)
            migrates(&layouts[i], way);
    layouts_that_differ();
    return done();
}
