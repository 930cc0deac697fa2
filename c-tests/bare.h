/*
 * A guest without a VMM, for ring.c. It runs at privilege level 0 without paging. A KVM that
 * emulates such code pushes an entry for each byte of a string store, and no ring is large enough
 * for that.
 */
#ifndef BARE_H
#define BARE_H

#include "support.h"
#include <linux/kvm.h>
#include <pthread.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>

enum { RING_FULL = 31, RESET_DIRTY_RINGS = 0xaec7, WALL_CLOCK = 0x4b564d00 };

enum { BARE_PAGES = 2048, BARE_SLOT = 3, CODE_AT = 0x1000, STRIDE_AT = 0x1010 };

struct bare {
    int vm, vcpu;
    struct kvm_run *run;
    char *memory, *copy;
    brant_guest *guest;
    brant_tracker *tracker;
    uint64_t full_exits, taken;
    /* How often each full exit is reported again. */
    unsigned told_again;
};

static int sys_kvm(void)
{
    static int fd = -1;

    if (fd < 0)
        fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    return fd;
}

static long must_ioctl_at(long result, const char *what, int line)
{
    if (result < 0)
        bail("line %d: %s: %s", line, what, strerror(errno));
    return result;
}
#define must_ioctl(fd, request, arg) \
    must_ioctl_at(ioctl(fd, request, arg), #request, __LINE__)

static void bare_log(struct bare *b, bool on)
{
    struct kvm_userspace_memory_region region = {
        .slot = BARE_SLOT,
        .flags = on ? KVM_MEM_LOG_DIRTY_PAGES : 0,
        .memory_size = BARE_PAGES * PAGE,
        .userspace_addr = (uintptr_t)b->memory,
    };

    must_ioctl(b->vm, KVM_SET_USER_MEMORY_REGION, &region);
}

static struct bare bare_new(uint64_t bytes)
{
    static const uint8_t fill[] = { 0xf3, 0xaa, 0xf4 };                       /* rep stosb; hlt */
    static const uint8_t stride[] = { 0x88, 0x07, 0x81, 0xc7, 0, 0x10, 0, 0,  /* mov [edi], al; add edi, 4096 */
                                      0x49, 0x75, 0xf5, 0xf4 };               /* dec ecx; jnz; hlt */
    struct bare b = { .vm = -1 };
    uint32_t block;
    struct kvm_sregs s;

    b.memory = mmap(NULL, BARE_PAGES * PAGE, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    b.copy = must_alloc(BARE_PAGES, PAGE);
    memcpy(b.memory + CODE_AT, fill, sizeof fill);
    memcpy(b.memory + STRIDE_AT, stride, sizeof stride);
    memcpy(b.copy, b.memory, BARE_PAGES * PAGE);
    b.vm = (int)must_ioctl(sys_kvm(), KVM_CREATE_VM, 0);
    must(brant_kvm_enable_ring(b.vm, bytes, NULL, &e));
    bare_log(&b, false);
    b.vcpu = (int)must_ioctl(b.vm, KVM_CREATE_VCPU, 0);
    b.run = mmap(NULL, (size_t)must_ioctl(sys_kvm(), KVM_GET_VCPU_MMAP_SIZE, 0),
                 PROT_READ | PROT_WRITE, MAP_SHARED, b.vcpu, 0);
    /* Flat 32-bit segments of level 0, no paging. */
    must_ioctl(b.vcpu, KVM_GET_SREGS, &s);
    s.cr0 |= 1;
    s.cs = (struct kvm_segment){ .limit = 0xffffffff, .selector = 8, .type = 11, .present = 1,
                                 .db = 1, .s = 1, .g = 1 };
    s.ds = s.es = s.ss = s.fs = s.gs = s.cs;
    s.ds.type = s.es.type = s.ss.type = s.fs.type = s.gs.type = 3;
    must_ioctl(b.vcpu, KVM_SET_SREGS, &s);
    must(brant_guest_new(NULL, NULL, &b.guest, &e));
    must(brant_guest_add_block(b.guest, &(brant_ram_block){ .size = sizeof(brant_ram_block),
                                                            .name = "bare", .host = b.memory,
                                                            .length = BARE_PAGES * PAGE, .fd = -1 },
                               &block, &e));
    must(brant_guest_add_slot(b.guest, &(brant_slot){ .size = sizeof(brant_slot), .block = block,
                                                      .length = BARE_PAGES * PAGE,
                                                      .slot = BARE_SLOT }, &e));
    return b;
}

static void bare_track(struct bare *b)
{
    brant_kvm_log kvm = { .size = sizeof kvm, .vm_fd = b->vm, .mode = BRANT_KVM_RING };

    must(brant_tracker_new(b->guest, NULL, &b->tracker, &e));
    must(brant_tracker_add_kvm(b->tracker, &kvm, &e));
    must(brant_tracker_add_vcpu(b->tracker, 7, b->vcpu, &e));
    must(brant_tracker_start(b->tracker, BRANT_START_CLEAN, &e));
}

static void bare_free(struct bare *b)
{
    brant_tracker_free(b->tracker);
    brant_guest_free(b->guest);
    close(b->vcpu);
    close(b->vm);
    munmap(b->memory, BARE_PAGES * PAGE);
    free(b->copy);
}

/* Runs the guest's program at `code` to its end. False if it came out with a full ring for ever. */
static bool bare_runs(struct bare *b, uint64_t code, uint64_t at, uint64_t n, uint8_t value)
{
    struct kvm_regs r = { .rip = code, .rdi = at, .rcx = n, .rax = value, .rflags = 2 };
    uint64_t limit = b->full_exits + 100000;

    must_ioctl(b->vcpu, KVM_SET_REGS, &r);
    for (;;) {
        if (ioctl(b->vcpu, KVM_RUN, 0) < 0) {
            if (errno == EINTR || errno == EAGAIN)
                continue;
            bail("KVM_RUN: %s", strerror(errno));
        }
        if (b->run->exit_reason == KVM_EXIT_HLT)
            return true;
        if (b->run->exit_reason != RING_FULL)
            bail("unexpected exit %u", b->run->exit_reason);
        if (++b->full_exits > limit)
            return false;
        for (unsigned i = 0; i <= b->told_again; i++)
            must(brant_tracker_ring_full(b->tracker, 7, &e));
    }
}

static void bare_take(struct bare *b)
{
    brant_run runs[64];
    size_t count;

    do {
        must(brant_tracker_take(b->tracker, runs, 64, &count, &e));
        for (size_t i = 0; i < count; i++) {
            memcpy(b->copy + runs[i].first_page * PAGE, runs[i].host, runs[i].pages * PAGE);
            b->taken += runs[i].pages;
        }
    } while (count > 0);
}

static uint64_t bare_differs(const struct bare *b)
{
    uint64_t differs = 0;

    for (uint64_t page = 0; page < BARE_PAGES; page++)
        differs += memcmp(b->memory + page * PAGE, b->copy + page * PAGE, PAGE) != 0;
    return differs;
}

static brant_sync bare_sync(struct bare *b, uint32_t when)
{
    brant_sync sync = { .size = sizeof sync };

    must(brant_tracker_sync(b->tracker, when, &sync, &e));
    return sync;
}

/* Uses the ring in any way, then in a known way. The ring is exact again if exactly the known pages
 * are found. There are few pages, because more would overrun the smallest ring again. */
static bool bare_is_exact(struct bare *b)
{
    for (int round = 0; round < 3; round++) {
        uint64_t first = 16 + random_below(BARE_PAGES - 400), n = 1 + random_below(100);
        brant_sync sync;

        bare_sync(b, BRANT_SYNC_STOPPED);
        bare_take(b);
        if (!bare_runs(b, STRIDE_AT, first * PAGE, n, (uint8_t)(1 + random_below(255))))
            return false;
        sync = bare_sync(b, BRANT_SYNC_STOPPED);
        b->taken = 0;
        bare_take(b);
        if (sync.found_pages < n || bare_differs(b)) {
            note("%" PRIu64 " pages written, %" PRIu64 " found, %" PRIu64 " differ", n,
                 sync.found_pages, bare_differs(b));
            return false;
        }
        if (round == 2 && sync.found_pages != n) {
            note("%" PRIu64 " pages written, %" PRIu64 " found", n, sync.found_pages);
            return false;
        }
    }
    return true;
}

#endif
