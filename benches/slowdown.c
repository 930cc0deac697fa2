/*
 * How many pages a second a guest writes at full speed, while it is tracked in the named way or not at all. The guest
 * is that of examples/minivmm, with one vCPU and 256 MiB that it writes at random. brant syncs ten times a second and
 * takes every pending page, as the passes of a migration do, but copies none. Prints only the rate, or the reason why
 * there is none. Called by benches/figures/slowdown.rs.
 */
#include "support.h"

/* The time that counts comes after a beginning in which the guest writes every page once. */
enum { COUNTED_MS = 1000, SYNC_MS = 100 };

static const struct tracking ways[] = {
    { "get-and-clear", BRANT_KVM_GET_AND_CLEAR, BRANT_CLEAR_CHUNKED, 0 },
    { "manual", BRANT_KVM_MANUAL_PROTECT, BRANT_CLEAR_CHUNKED, 0 },
    { "initially-set", BRANT_KVM_INITIALLY_SET, BRANT_CLEAR_CHUNKED, 0 },
    { "initially-set-at-sync", BRANT_KVM_INITIALLY_SET, BRANT_CLEAR_AT_SYNC, 0 },
    { "ring", BRANT_KVM_RING, BRANT_CLEAR_CHUNKED, 0 },
};

static void take_all(struct vm *vm)
{
    brant_run runs[256];
    size_t count = 0;

    do
        must(brant_tracker_take(atomic_load(&vm->tracker), runs, 256, &count, &e));
    while (count);
}

int main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : "";
    const struct tracking *way = NULL;
    struct mv_config config = {
        .vcpus = 1, .memory_bytes = 256 * MIB, .workload = GV_SWEEP, .fill_percent = 100
    };
    uint64_t begun, until, next, written;
    uint64_t ring_bytes = 0;
    char why[256];
    struct vm *vm;

    if (mv_kvm_available(why, sizeof why)) {
        printf("%s\n", why);
        return 0;
    }
    for (unsigned i = 0; i < sizeof ways / sizeof ways[0]; i++)
        if (strcmp(ways[i].name, name) == 0)
            way = &ways[i];
    if (!way && strcmp(name, "untracked") != 0)
        bail("one of untracked, get-and-clear, manual, initially-set, initially-set-at-sync, ring");
    if (way && way->mode == BRANT_KVM_RING) {
        ring_bytes = RING_DEFAULT;
        if (rings_available(ring_bytes, why, sizeof why)) {
            printf("%s\n", why);
            return 0;
        }
    }
    vm = vm_new_with_rings(&config, ring_bytes);
    vm->kick = true;
    vm_start(vm);
    /* The first touch of a page costs the host more than anything that is measured here. */
    vm_writes(vm, vm->pages);
    vm_pause(vm);
    mv_set_workload(vm->machine, GV_RANDOM);
    if (way) {
        vm_track(vm, way);
        must(brant_tracker_start(atomic_load(&vm->tracker), BRANT_START_ALL, &e));
    }
    vm_resume(vm);
    begun = now_us();
    written = vm_written(vm);
    until = begun + COUNTED_MS * 1000;
    for (next = begun + SYNC_MS * 1000; next <= until; next += SYNC_MS * 1000) {
        uint64_t now = now_us();

        if (now < next)
            sleep_us(next - now);
        if (way) {
            vm_sync(vm, BRANT_SYNC_RUNNING);
            take_all(vm);
        }
    }
    written = vm_written(vm) - written;
    printf("%.0f\n", (double)written * 1e6 / (double)(now_us() - begun));
    vm_free(vm);
    return 0;
}
