/*
 * A guest without a machine: a few pages of this process that are never written, for tests that
 * need a guest to migrate but no KVM.
 */
#ifndef STILL_H
#define STILL_H

#include "support.h"

struct still {
    brant_guest *guest;
    uint32_t block;
    brant_tracker *tracker;
    char *memory;
    uint64_t bytes;
};

UNUSED static brant_ram_block block_of(const struct still *s)
{
    return (brant_ram_block){ .size = sizeof(brant_ram_block), .name = "ram", .host = s->memory,
                              .length = s->bytes, .fd = -1 };
}

UNUSED static int32_t nothing(void *opaque, brant_reason *reason)
{
    (void)opaque;
    (void)reason;
    return 0;
}

UNUSED static const brant_ops plain = { .size = sizeof plain, .pause = nothing, .resume = nothing,
                                        .run = nothing };

/* A guest with these operations. The first `filled` bytes of its memory have the value `fill`; the
 * others were never touched. */
UNUSED static struct still still_with(const brant_ops *ops, void *opaque, char fill, uint64_t filled)
{
    struct still s = { .bytes = 4 * MIB };
    brant_ram_block block;

    s.memory = mmap(NULL, s.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (s.memory == MAP_FAILED)
        bail("mmap: %s", strerror(errno));
    memset(s.memory, fill, filled);
    block = block_of(&s);
    must(brant_guest_new(ops, opaque, &s.guest, &e));
    must(brant_guest_add_block(s.guest, &block, &s.block, &e));
    must(brant_tracker_new(s.guest, NULL, &s.tracker, &e));
    return s;
}

/* A guest that can move. */
UNUSED static struct still still_new(void)
{
    return still_with(&plain, NULL, 0, 0);
}

UNUSED static void still_free(struct still *s)
{
    brant_tracker_free(s->tracker);
    brant_guest_free(s->guest);
    munmap(s->memory, s->bytes);
}

#endif
