/*
 * The tracker, compared with an independent witness: the pages that KVM's log reports are those
 * that the memory manager saw written in the same memory. The witness is userfaultfd in its
 * asynchronous write-protect mode, read by PAGEMAP_SCAN (Linux 6.7). It lives in the process' page
 * tables, knows nothing of KVM, and sees the VMM's own writes too. Both begin at one moment in
 * which the guest stands still, and end at another.
 */
#include "support.h"

#include <fcntl.h>

/* <linux/userfaultfd.h> and <linux/fs.h> of Linux 6.7, for older headers. */
struct uffd_api {
    uint64_t api, features, ioctls;
};
struct uffd_register {
    uint64_t start, len, mode, ioctls;
};
struct scan {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages, category_inverted,
        category_mask, category_anyof_mask, return_mask;
};
struct scanned {
    uint64_t start, end, categories;
};
#define WITNESS_API _IOWR(0xaa, 0x3f, struct uffd_api)
#define WITNESS_REGISTER _IOWR(0xaa, 0x00, struct uffd_register)
#define WITNESS_SCAN _IOWR('f', 16, struct scan)
#define WITNESS_WP_UNPOPULATED (1ull << 13)
#define WITNESS_WP_ASYNC (1ull << 15)
#define WITNESS_MODE_WP 2
#define WITNESS_WP_MATCHING 1
#define WITNESS_CHECK_WPASYNC 2
#define WITNESS_WRITTEN 2

enum { PROMISES = 4 };

static int uffd, pagemap;

/* NULL, or the reason why there is no witness here. */
static const char *witness_new(void)
{
    static char why[128];
    struct uffd_api api = { 0xaa, WITNESS_WP_ASYNC | WITNESS_WP_UNPOPULATED, 0 };

    uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (uffd < 0)
        snprintf(why, sizeof why, "no userfaultfd: %s", strerror(errno));
    else if (ioctl(uffd, WITNESS_API, &api))
        snprintf(why, sizeof why, "userfaultfd has no asynchronous write protection: %s",
                 strerror(errno));
    else if ((pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC)) < 0)
        snprintf(why, sizeof why, "no /proc/self/pagemap: %s", strerror(errno));
    else
        return NULL;
    return why;
}

/* Sets seen[page] for every page written since the last call, and begins anew. With `seen` NULL it
 * only begins anew. */
static void witness_ask(struct vm *vm, uint8_t *seen)
{
    static struct scanned found[256];
    unsigned n;
    const struct mv_region *regions = mv_regions(vm->machine, &n);

    for (unsigned i = 0; i < n; i++) {
        uint64_t host = (uintptr_t)regions[i].host, end = host + regions[i].bytes;

        for (uint64_t at = host; at < end;) {
            struct scan scan = {
                .size = sizeof scan,
                .flags = WITNESS_WP_MATCHING | WITNESS_CHECK_WPASYNC,
                .start = at,
                .end = end,
                .vec = seen ? (uintptr_t)found : 0,
                .vec_len = seen ? 256 : 0,
                .category_mask = WITNESS_WRITTEN,
                .return_mask = WITNESS_WRITTEN,
            };
            long count = ioctl(pagemap, WITNESS_SCAN, &scan);

            if (count < 0)
                bail("PAGEMAP_SCAN: %s", strerror(errno));
            for (long k = 0; seen && k < count; k++)
                memset(seen + regions[i].gpa / PAGE + (found[k].start - host) / PAGE, 1,
                       (found[k].end - found[k].start) / PAGE);
            at = scan.walk_end;
        }
    }
}

static void witness_watch(struct vm *vm)
{
    unsigned n;
    const struct mv_region *regions = mv_regions(vm->machine, &n);

    for (unsigned i = 0; i < n; i++) {
        struct uffd_register reg = { (uintptr_t)regions[i].host, regions[i].bytes, WITNESS_MODE_WP,
                                     0 };

        if (ioctl(uffd, WITNESS_REGISTER, &reg))
            bail("UFFDIO_REGISTER: %s", strerror(errno));
    }
}

static void one_case(struct vm *vm, struct copy *copy, const struct tracking *how)
{
    uint64_t only_brant = 0, only_witness = 0, both = 0, lost = 0;
    uint64_t *before = must_alloc(vm->pages, 8), *after = must_alloc(vm->pages, 8);
    uint8_t *seen = must_alloc(vm->pages, 1);

    vm_pause(vm);
    vm_track(vm, how);
    must(brant_tracker_start(atomic_load(&vm->tracker), BRANT_START_ALL, &e));
    copy_drain(copy);
    memset(copy->found, 0, vm->pages);
    vm_digest(vm, before);
    witness_ask(vm, NULL);

    vm_resume(vm);
    for (int round = 0; round < 5; round++) {
        vm_writes(vm, 500 + random_below(3000));
        vm_sync(vm, BRANT_SYNC_RUNNING);
        copy_take(copy, 1 + random_below(60), 1 + random_below(32));
    }
    vm_pause(vm);
    vm_sync(vm, BRANT_SYNC_STOPPED);
    copy_drain(copy);
    witness_ask(vm, seen);
    vm_digest(vm, after);

    for (uint64_t page = 0; page < vm->pages; page++) {
        both += copy->found[page] & seen[page];
        if (seen[page] && !copy->found[page]) {
            only_witness++;
            lost += before[page] != after[page];
            note("the witness alone saw guest page %#" PRIx64 ", which %s", page,
                 before[page] != after[page] ? "changed" : "did not change");
        }
        if (!seen[page] && copy->found[page] && only_brant++ < 5)
            note("brant alone found guest page %#" PRIx64, page);
    }
    note("%s: %" PRIu64 " pages found by both", how->name, both);
    /* The memory manager lets KVM write the page first; then KVM lets the vCPU write it, and logs
     * that. A pause in between leaves a page that the witness has seen and nobody has written. */
    ok(both > 500 && lost == 0 && only_witness <= mv_vcpu_count(vm->machine),
       "%s: brant finds every page that the witness saw written", how->name);
    equal(only_brant, 0, "%s: brant finds no page that the witness saw unwritten", how->name);

    memset(seen, 0, vm->pages);
    witness_ask(vm, seen);
    equal(vm_sync(vm, BRANT_SYNC_STOPPED).found_pages + (memchr(seen, 1, vm->pages) != NULL), 0,
          "%s: neither finds a page of a guest that stands still", how->name);
    equal(copy_differs(copy), 0, "%s: a copy of what was handed out equals the guest", how->name);
    vm_untrack(vm);
    vm_resume(vm);
    free(seen);
    free(before);
    free(after);
}

int main(void)
{
    static const struct tracking modes[] = {
        { "get-and-clear", BRANT_KVM_GET_AND_CLEAR, BRANT_CLEAR_CHUNKED, 0 },
        { "manual-protect", BRANT_KVM_MANUAL_PROTECT, BRANT_CLEAR_CHUNKED, 8 },
        { "initially-set", BRANT_KVM_INITIALLY_SET, BRANT_CLEAR_CHUNKED, 6 },
    };
    static const unsigned vcpus[] = { 1, 4 };
    const char *why;

    need_kvm();
    why = witness_new();
    if (why)
        skip_all(why);
    plan(2 * 3 * PROMISES);
    random_begin();
    for (int v = 0; v < 2; v++) {
        struct mv_config c = {
            .vcpus = vcpus[v],
            .nregions = 2,
            .regions = { { .bytes = 24 * MIB + 9 * PAGE, .nslots = 2, .slot_bytes = { 9 * MIB + PAGE } },
                         { .bytes = 24 * MIB } },
            .workload = GV_RANDOM,
            .fill_percent = 30,
            .seed = random_below(UINT32_MAX),
        };
        struct vm *vm = vm_new(&c);
        struct copy copy = copy_new(vm);

        witness_watch(vm);
        vm_start(vm);
        for (int m = 0; m < 3; m++) {
            char name[64];
            struct tracking how = modes[m];

            snprintf(name, sizeof name, "%s, %u vCPU%s", modes[m].name, vcpus[v],
                     vcpus[v] > 1 ? "s" : "");
            how.name = name;
            mv_set_workload(vm->machine, m == 1 ? GV_SWEEP : GV_RANDOM);
            one_case(vm, &copy, &how);
        }
        vm_free(vm);
        copy_free(&copy);
    }
    close(uffd);
    close(pagemap);
    return done();
}
