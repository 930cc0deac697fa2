/*
 * Three ways in which a consumer of KVM's dirty log loses a page. They are planted here, and a
 * comparison of memory notices each. Beside each stands the tracker in the same scenario, which
 * loses nothing:
 * - a page is copied before its protection is restored;
 * - one copy of the bitmap is used for two clears;
 * - a page is found to be a hole before its protection is restored.
 *
 * Nothing depends on chance: the guest sweeps over all of its pages, and stands still while the
 * consumer works.
 */
#include "support.h"

#include <fcntl.h>
#include <linux/kvm.h>

enum { SLOT_PAGES = 4096, SLOT_WORDS = SLOT_PAGES / 64 };

static const struct tracking modes[] = {
    { "get-and-clear", BRANT_KVM_GET_AND_CLEAR, BRANT_CLEAR_CHUNKED, 6 },
    { "manual-protect", BRANT_KVM_MANUAL_PROTECT, BRANT_CLEAR_CHUNKED, 6 },
    { "initially-set", BRANT_KVM_INITIALLY_SET, BRANT_CLEAR_CHUNKED, 6 },
};

static struct vm *sweeping_vm(bool cut)
{
    struct mv_config c = {
        .vcpus = 1,
        .nregions = 1,
        .regions = { { .bytes = SLOT_PAGES * PAGE } },
        .workload = GV_SWEEP,
    };

    if (cut) {
        /* Both odd, with different distances to a multiple of 64. */
        c.regions[0].nslots = 3;
        c.regions[0].slot_bytes[0] = 1037 * PAGE;
        c.regions[0].slot_bytes[1] = 1111 * PAGE;
    }
    return vm_new(&c);
}

/* Lets the guest write every page of the work area at least once, and stops it. */
static void write_all(struct vm *vm)
{
    vm_resume(vm);
    vm_writes(vm, 2 * vm->pages);
    vm_pause(vm);
}

/* ---- the log by hand ---- */

static void raw_set(struct vm *vm, uint64_t manual, uint32_t flags)
{
    struct kvm_enable_cap cap = { .cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, .args = { manual } };
    unsigned n;
    const struct mv_slot *slot = mv_slots(vm->machine, &n);
    struct kvm_userspace_memory_region region = {
        .slot = slot->id,
        .flags = flags,
        .guest_phys_addr = slot->gpa,
        .memory_size = slot->bytes,
        .userspace_addr = (uintptr_t)slot->host,
    };

    if (ioctl(mv_vm_fd(vm->machine), KVM_ENABLE_CAP, &cap) ||
        ioctl(mv_vm_fd(vm->machine), KVM_SET_USER_MEMORY_REGION, &region))
        bail("the log by hand: %s", strerror(errno));
}

static void raw_get(struct vm *vm, uint64_t *words)
{
    struct kvm_dirty_log log = { .slot = 0, .dirty_bitmap = words };

    if (ioctl(mv_vm_fd(vm->machine), KVM_GET_DIRTY_LOG, &log))
        bail("KVM_GET_DIRTY_LOG: %s", strerror(errno));
}

static void raw_clear(struct vm *vm, uint64_t *words)
{
    struct kvm_clear_dirty_log log = { .slot = 0, .num_pages = SLOT_PAGES, .dirty_bitmap = words };

    if (ioctl(mv_vm_fd(vm->machine), KVM_CLEAR_DIRTY_LOG, &log))
        bail("KVM_CLEAR_DIRTY_LOG: %s", strerror(errno));
}

static void raw_copy(struct copy *copy, const uint64_t *words)
{
    for (uint64_t page = 0; page < SLOT_PAGES; page++)
        if (words[page / 64] >> page % 64 & 1)
            memcpy(copy->memory + page * PAGE, mv_host(copy->vm->machine, page * PAGE, PAGE), PAGE);
}

/* How many work pages differ. The VMM writes some of the others, which KVM does not log. */
static uint64_t work_differs(struct copy *copy)
{
    uint64_t first, differs = 0, n = mv_record(copy->vm->machine, 0, &first, NULL, 0);

    for (uint64_t page = first / PAGE; page < first / PAGE + n; page++)
        differs += memcmp(copy->memory + page * PAGE,
                          mv_host(copy->vm->machine, page * PAGE, PAGE), PAGE) != 0;
    return differs;
}

/* Whether a page of private memory was never touched. */
static bool is_hole(struct vm *vm, uint64_t page)
{
    static int fd = -1;
    uint64_t entry, at = (uintptr_t)mv_host(vm->machine, page * PAGE, PAGE) / PAGE;

    if (fd < 0)
        fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (pread(fd, &entry, 8, (off_t)(at * 8)) != 8)
        bail("pagemap: %s", strerror(errno));
    return !(entry >> 62);
}

/* ---- copied before the clear ---- */

static void copied_before(const struct tracking *how, bool wrong)
{
    struct vm *vm = sweeping_vm(false);
    struct copy copy = copy_new(vm);
    uint64_t words[SLOT_WORDS], differs;

    vm_track(vm, how);
    must(brant_tracker_start(atomic_load(&vm->tracker), BRANT_START_ALL, &e));
    copy_drain(&copy);
    write_all(vm);
    vm_sync(vm, BRANT_SYNC_RUNNING);
    if (wrong) {
        /* In this mode KVM may be asked any number of times, so the pending pages are copied now
         * ... */
        raw_get(vm, words);
        raw_copy(&copy, words);
    }
    write_all(vm);
    if (wrong) {
        size_t count;
        brant_run runs[64];

        /* ... and they are already copied when the tracker hands them out. */
        do
            must(brant_tracker_take(atomic_load(&vm->tracker), runs, 64, &count, &e));
        while (count);
    } else {
        copy_take(&copy, UINT64_MAX, 64);
    }
    vm_sync(vm, BRANT_SYNC_STOPPED);
    copy_drain(&copy);
    differs = wrong ? work_differs(&copy) : copy_differs(&copy);
    if (wrong)
        ok(differs > SLOT_PAGES / 2,
           "pages that are copied before they are handed out are lost, and it shows");
    else
        equal(differs, 0, "%s: pages that are copied when they are handed out are not lost",
              how->name);
    vm_free(vm);
    copy_free(&copy);
}

/* ---- one copy of the bitmap, two clears ---- */

static void cleared_twice_by_hand(bool wrong)
{
    struct vm *vm = sweeping_vm(false);
    struct copy copy = copy_new(vm);
    uint64_t words[SLOT_WORDS], later[SLOT_WORDS];

    raw_set(vm, 1, KVM_MEM_LOG_DIRTY_PAGES);
    write_all(vm);
    raw_get(vm, words);
    raw_clear(vm, words);
    raw_copy(&copy, words);
    write_all(vm);
    if (wrong)
        raw_clear(vm, words);
    raw_get(vm, later);
    raw_clear(vm, later);
    raw_copy(&copy, later);
    if (wrong)
        ok(work_differs(&copy) > SLOT_PAGES / 2,
           "pages that are cleared twice with one copy of the bitmap are lost, and it shows");
    else
        equal(work_differs(&copy), 0, "pages that are cleared once with each copy are not lost");
    vm_free(vm);
    copy_free(&copy);
}

/* Chunks share words of a slot's bitmap with their neighbours, because the slots begin anywhere.
 * The guest writes all pages once between two of the pieces that are taken, and never again, so a
 * loss in a neighbour stays a loss. This is done between each two pieces in turn. */
static void cleared_in_pieces(const struct tracking *how)
{
    struct vm *vm = sweeping_vm(true);
    struct copy copy = copy_new(vm);
    unsigned pieces = 1;
    uint64_t differs = 0;

    vm_track(vm, how);
    must(brant_tracker_start(atomic_load(&vm->tracker), BRANT_START_ALL, &e));
    copy_drain(&copy);
    for (unsigned between = 1; between <= pieces; between++) {
        write_all(vm);
        vm_sync(vm, BRANT_SYNC_RUNNING);
        for (pieces = 0; !copy_take(&copy, 1, 1);)
            if (++pieces == between)
                write_all(vm);
        vm_sync(vm, BRANT_SYNC_STOPPED);
        copy_drain(&copy);
        differs += copy_differs(&copy);
    }
    ok(pieces >= 8 && differs == 0,
       "%s: %u pieces that share words of a bitmap lose no page to each other", how->name, pieces);
    vm_free(vm);
    copy_free(&copy);
}

/* ---- seen to be a hole before the clear ---- */

static void hole_before_by_hand(void)
{
    struct vm *vm = sweeping_vm(false);
    struct copy copy = copy_new(vm);
    uint64_t words[SLOT_WORDS], later[SLOT_WORDS], holes = 0;

    raw_set(vm, 3, KVM_MEM_LOG_DIRTY_PAGES);
    raw_get(vm, words);
    for (uint64_t page = 0; page < SLOT_PAGES; page++)
        if (!is_hole(vm, page))
            memcpy(copy.memory + page * PAGE, mv_host(vm->machine, page * PAGE, PAGE), PAGE);
        else
            holes++; /* The copy has zeros there. */
    write_all(vm);
    raw_clear(vm, words);
    raw_get(vm, later);
    raw_copy(&copy, later);
    ok(holes > SLOT_PAGES / 2 && work_differs(&copy) > SLOT_PAGES / 2,
       "pages that are taken for holes before the clear are lost, and it shows");
    vm_free(vm);
    copy_free(&copy);
}

static void hole_after(const struct tracking *how)
{
    struct vm *vm = sweeping_vm(false);
    struct copy copy = copy_new(vm);
    uint64_t holes = 0, others = 0;
    size_t count;
    brant_run run;

    vm_track(vm, how);
    must(brant_tracker_start(atomic_load(&vm->tracker), BRANT_START_ALL, &e));
    vm_sync(vm, BRANT_SYNC_RUNNING);
    for (int taken = 0;; taken++) {
        /* Half of memory is handed out before the guest has run, and half afterwards. */
        if (taken == SLOT_PAGES / 512 / 2)
            write_all(vm);
        must(brant_tracker_take(atomic_load(&vm->tracker), &run, 1, &count, &e));
        if (count == 0)
            break;
        for (uint64_t page = run.first_page; page < run.first_page + run.pages; page++) {
            if (is_hole(vm, page)) {
                memset(copy.memory + page * PAGE, 0, PAGE);
                holes++;
            } else {
                memcpy(copy.memory + page * PAGE, mv_host(vm->machine, page * PAGE, PAGE), PAGE);
                others++;
            }
        }
    }
    vm_sync(vm, BRANT_SYNC_STOPPED);
    copy_drain(&copy);
    ok(holes > SLOT_PAGES / 4 && others > SLOT_PAGES / 4 && copy_differs(&copy) == 0,
       "%s: holes that are looked for in what was handed out are not lost", how->name);
    vm_free(vm);
    copy_free(&copy);
}

int main(void)
{
    need_kvm();
    plan(4 + 3 * 3);
    copied_before(&modes[1], true);
    for (int i = 0; i < 3; i++)
        copied_before(&modes[i], false);
    cleared_twice_by_hand(true);
    cleared_twice_by_hand(false);
    for (int i = 0; i < 3; i++)
        cleared_in_pieces(&modes[i]);
    hole_before_by_hand();
    for (int i = 0; i < 3; i++)
        hole_after(&modes[i]);
    return done();
}
