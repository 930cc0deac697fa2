/*
 * Structures of other sizes than the library's. Smaller ones are accepted, an unknown tail must be
 * zero, and no byte behind a caller's structure is written.
 */
#include "still.h"

enum { TAIL = 24 };

struct sized {
    const char *name;
    size_t size, smaller;
    void (*fill)(void *structure, const struct still *s);
    int32_t (*give)(void *structure, const struct still *s, brant_error **e);
};

static void fill_block(void *structure, const struct still *s)
{
    static char memory[4096] __attribute__((aligned(4096)));
    brant_ram_block block = block_of(s);

    block.name = "another";
    block.host = memory;
    block.length = sizeof memory;
    memcpy(structure, &block, sizeof block);
}

static int32_t give_block(void *structure, const struct still *s, brant_error **e)
{
    uint32_t id;
    int32_t code = brant_guest_add_block(s->guest, structure, &id, e);

    if (code == 0)
        brant_guest_remove_block(s->guest, id, NULL);
    return code;
}

static void fill_slot(void *structure, const struct still *s)
{
    brant_slot slot = { .size = sizeof slot, .block = s->block, .slot = BRANT_NO_SLOT,
                        .length = s->bytes };

    memcpy(structure, &slot, sizeof slot);
}

static int32_t give_slot(void *structure, const struct still *s, brant_error **e)
{
    int32_t code = brant_guest_add_slot(s->guest, structure, e);

    if (code == 0)
        brant_guest_remove_slot(s->guest, BRANT_NO_SLOT, 0, NULL);
    return code;
}

static void fill_config(void *structure, const struct still *s)
{
    brant_tracker_config config = { .size = sizeof config };

    (void)s;
    memcpy(structure, &config, sizeof config);
}

static int32_t give_config(void *structure, const struct still *s, brant_error **e)
{
    brant_tracker *tracker = NULL;
    int32_t code = brant_tracker_new(s->guest, structure, &tracker, e);

    brant_tracker_free(tracker);
    return code;
}

static void fill_params(void *structure, const struct still *s)
{
    brant_params params = { .size = sizeof params };

    (void)s;
    memcpy(structure, &params, sizeof params);
}

static int32_t give_params(void *structure, const struct still *s, brant_error **e)
{
    brant_outgoing *out = NULL;
    int32_t code = brant_outgoing_new(s->tracker, structure, &out, e);

    brant_outgoing_free(out);
    return code;
}

static void fill_ops(void *structure, const struct still *s)
{
    (void)s;
    memcpy(structure, &plain, sizeof plain);
}

static int32_t give_ops(void *structure, const struct still *s, brant_error **e)
{
    brant_guest *guest = NULL;
    int32_t code = brant_guest_new(structure, NULL, &guest, e);

    (void)s;
    brant_guest_free(guest);
    return code;
}

static const struct sized given[] = {
    { "brant_ram_block", sizeof(brant_ram_block), offsetof(brant_ram_block, fd), fill_block, give_block },
    { "brant_slot", sizeof(brant_slot), offsetof(brant_slot, kvm_flags), fill_slot, give_slot },
    { "brant_tracker_config", sizeof(brant_tracker_config), sizeof(size_t), fill_config, give_config },
    { "brant_params", sizeof(brant_params), sizeof(size_t), fill_params, give_params },
    { "brant_ops", sizeof(brant_ops), offsetof(brant_ops, log_on), fill_ops, give_ops },
};

enum { GIVEN = sizeof given / sizeof given[0] };

static void structures_given(void)
{
    struct still s = still_new();

    for (int i = 0; i < GIVEN; i++) {
        const struct sized *g = &given[i];
        /* Exactly as long as its size says, so that a sanitizer notices a byte too many that is
         * read. */
        char *structure = must_alloc(1, g->size + TAIL);
        char *small = must_alloc(1, g->smaller);
        brant_error *e = NULL;
        int32_t zero, as_is, smaller, larger, unknown;

        g->fill(structure, &s);
        as_is = g->give(structure, &s, NULL);
        memcpy(small, structure, g->smaller);
        *(size_t *)(void *)small = g->smaller;
        smaller = g->give(small, &s, NULL);
        *(size_t *)(void *)structure = g->size + TAIL;
        larger = g->give(structure, &s, NULL);
        structure[g->size + TAIL - 1] = 1;
        unknown = g->give(structure, &s, &e);
        ok(as_is == 0 && smaller == 0 && larger == 0,
           "%s may be smaller, and larger with zeros behind", g->name);
        ok(unknown == BRANT_E_INVALID && strstr(brant_error_message(e), g->name),
           "%s with a field that is not known is refused by name", g->name);
        brant_error_free(e);
        e = NULL;
        *(size_t *)(void *)structure = 0;
        zero = g->give(structure, &s, &e);
        ok(zero == BRANT_E_INVALID && strstr(brant_error_message(e), g->name),
           "%s without its size is refused by name", g->name);
        brant_error_free(e);
        free(structure);
        free(small);
    }
    still_free(&s);
}

static int32_t get_tracker_stats(void *structure, const struct still *s, brant_error **e)
{
    return brant_tracker_get_stats(s->tracker, structure, e);
}

static int32_t get_sync(void *structure, const struct still *s, brant_error **e)
{
    return brant_tracker_sync(s->tracker, BRANT_SYNC_RUNNING, structure, e);
}

static int32_t get_stats(void *structure, const struct still *s, brant_error **e)
{
    brant_outgoing *out;
    int32_t code;

    must(brant_outgoing_new(s->tracker, NULL, &out, &e));
    code = brant_outgoing_get_stats(out, structure, e);
    brant_outgoing_free(out);
    return code;
}

static const struct sized filled[] = {
    { "brant_tracker_stats", sizeof(brant_tracker_stats), 16, NULL, get_tracker_stats },
    { "brant_sync", sizeof(brant_sync), 24, NULL, get_sync },
    { "brant_stats", sizeof(brant_stats), 16, NULL, get_stats },
};

enum { FILLED = sizeof filled / sizeof filled[0] };

static void structures_filled(void)
{
    struct still s = still_new();

    must(brant_tracker_start(s.tracker, BRANT_START_ALL, &e));
    for (int i = 0; i < FILLED; i++) {
        const struct sized *f = &filled[i];
        size_t most = f->size + TAIL;
        char *structure = must_alloc(1, most);
        bool whole, untouched = true, beyond = true, zero;

        memset(structure, 0x5a, most);
        *(size_t *)(void *)structure = f->smaller;
        whole = f->give(structure, &s, NULL) == 0 && *(size_t *)(void *)structure == f->smaller;
        for (size_t at = f->smaller; at < most; at++)
            untouched = untouched && structure[at] == 0x5a;
        ok(whole && untouched, "of a smaller %s no more than its size is written", f->name);

        memset(structure, 0x5a, most);
        *(size_t *)(void *)structure = most;
        whole = f->give(structure, &s, NULL) == 0 && *(size_t *)(void *)structure == most;
        for (size_t at = f->size; at < most; at++)
            beyond = beyond && structure[at] == 0;
        *(size_t *)(void *)structure = 0;
        zero = f->give(structure, &s, NULL) == BRANT_E_INVALID;
        ok(whole && beyond && zero, "of a larger %s the unknown rest is zero", f->name);
        free(structure);
    }
    still_free(&s);
}

int main(void)
{
    plan(GIVEN * 3 + FILLED * 2);
    structures_given();
    structures_filled();
    return done();
}
