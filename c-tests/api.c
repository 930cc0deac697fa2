/*
 * The manners of the C interface, each in small: versions, errors, NULL, structures of other
 * sizes, descriptors, bitmaps against a naive model, blockers, and what may be called where.
 * Needs no KVM: where something has to be migrated it is a few pages of this process that
 * nobody writes to. What a migration does to a guest is the matter of the other programs.
 */
#include "support.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>

/* ---- a guest without a machine ---- */

struct still {
    brant_guest *guest;
    brant_tracker *tracker;
    char *memory;
    uint64_t bytes;
};

static brant_ram_block block_of(const struct still *s)
{
    return (brant_ram_block){ .size = sizeof(brant_ram_block), .name = "ram", .host = s->memory,
                              .length = s->bytes, .fd = -1 };
}

/* The first `filled` bytes of its memory hold `fill`; the rest has never been touched. */
static struct still still_new(char fill, uint64_t filled)
{
    struct still s = { .bytes = 4 * MIB };
    brant_ram_block block;

    s.memory = mmap(NULL, s.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (s.memory == MAP_FAILED)
        bail("mmap: %s", strerror(errno));
    memset(s.memory, fill, filled);
    block = block_of(&s);
    must(brant_guest_new(&s.guest, &e));
    must(brant_guest_add_block(s.guest, &block, NULL, &e));
    must(brant_tracker_new(s.guest, NULL, &s.tracker, &e));
    return s;
}

static void still_free(struct still *s)
{
    brant_tracker_free(s->tracker);
    brant_guest_free(s->guest);
    munmap(s->memory, s->bytes);
}

static int32_t nothing(void *opaque, brant_reason *reason)
{
    (void)opaque;
    (void)reason;
    return 0;
}

static const brant_ops plain = { .size = sizeof plain, .pause = nothing, .resume = nothing,
                                 .run = nothing };

static bool is_open(int fd)
{
    return fcntl(fd, F_GETFD) >= 0;
}

/* ---- one subject after the other ---- */

static void versions(void)
{
    static const char *const features[] = { "bitmap", "tracker", "migration", "kvm-log",
                                            "reported", "tcp",   "unix",      "fd" };
    char text[32];
    bool all = true;

    snprintf(text, sizeof text, "%d.%d.%d", BRANT_VERSION_MAJOR, BRANT_VERSION_MINOR,
             BRANT_VERSION_PATCH);
    ok(strcmp(brant_version(), text) == 0, "the library has the version of the header");
    for (size_t i = 0; i < sizeof features / sizeof features[0]; i++)
        all = all && brant_has_feature(features[i]) == 1;
    ok(all, "the library has every feature that the header names");
    ok(brant_has_feature("telepathy") == 0 && brant_has_feature("") == 0 &&
           brant_has_feature("Bitmap") == 0 && brant_has_feature(NULL) == 0,
       "a feature that nobody knows is none");
}

static void errors(void)
{
    brant_error *e = (brant_error *)(uintptr_t)8; /* whatever was there before */
    brant_bitmap *bitmap = NULL;
    bool names = true;
    int32_t code;

    code = brant_bitmap_new(64, &bitmap, &e);
    ok(code == 0 && e == NULL, "success sets the error to NULL, whatever it was");
    brant_bitmap_free(bitmap);
    e = (brant_error *)(uintptr_t)8;
    bitmap = NULL;
    code = brant_bitmap_new(BRANT_BITMAP_BITS_MAX + 1, &bitmap, &e);
    ok(code == BRANT_E_INVALID && e && brant_error_code(e) == code && bitmap == NULL &&
           strstr(brant_error_message(e), "1099511627776"),
       "a failure sets an error with the code and a sentence with the limit");
    brant_error_free(e);
    ok(brant_bitmap_new(BRANT_BITMAP_BITS_MAX + 1, &bitmap, NULL) == BRANT_E_INVALID,
       "an error that nobody wants is not made");
    ok(brant_error_code(NULL) == 0 && strcmp(brant_error_message(NULL), "") == 0,
       "no error has the code 0 and an empty message");
    for (int32_t a = BRANT_E_INTERNAL; a <= 0; a++) {
        names = names && *brant_error_name(a) && strcmp(brant_error_name(a), brant_error_name(-99));
        for (int32_t b = BRANT_E_INTERNAL; b < a; b++)
            names = names && strcmp(brant_error_name(a), brant_error_name(b));
    }
    ok(names && strcmp(brant_error_name(0), "success") == 0 &&
           strcmp(brant_error_name(1), "unknown error") == 0 &&
           strcmp(brant_error_name(INT32_MIN), "unknown error") == 0,
       "every code has a name of its own");
}

static void null_is_fine(void)
{
    brant_error_free(NULL);
    brant_bitmap_free(NULL);
    brant_guest_free(NULL);
    brant_tracker_free(NULL);
    brant_unblock(NULL);
    brant_reason_set(NULL, "x");
    brant_tracker_mark(NULL, 0, 1);
    brant_tracker_mark_block(NULL, 0, 0, 1);
    ok(brant_outgoing_free(NULL) == 0 && brant_incoming_free(NULL) == 0 &&
           brant_bitmap_count(NULL) == 0 && brant_bitmap_test(NULL, 0) == 0,
       "what may be NULL may be NULL");
}

/* All that cannot be NULL. Each line gives BRANT_E_INVALID, and the error says so too. */
static void null_is_refused(void)
{
    struct still s = still_new(0, 0);
    brant_bitmap *bitmap;
    brant_outgoing *out;
    brant_incoming *in;
    brant_blocker *blocker;
    brant_tracker *tracker;
    brant_guest *guest;
    brant_run run;
    brant_stats stats = { .size = sizeof stats };
    brant_tracker_stats tracker_stats = { .size = sizeof tracker_stats };
    uint64_t words = 0, first, length;
    size_t count;
    char text[8];
    brant_error *e = NULL;
    unsigned tried = 0, refused = 0;

    must(brant_bitmap_new(64, &bitmap, &e));
    must(brant_outgoing_new(s.guest, s.tracker, &plain, NULL, NULL, &out, &e));
    must(brant_incoming_new(s.guest, &plain, NULL, NULL, &in, &e));
#define REFUSES(call)                                                                     \
    do {                                                                                  \
        int32_t code = (call);                                                            \
        tried++;                                                                          \
        if (code == BRANT_E_INVALID && brant_error_code(e) == code && *brant_error_message(e)) \
            refused++;                                                                    \
        else                                                                              \
            note("line %d: %s gives %d", __LINE__, #call, code);                          \
        brant_error_free(e);                                                              \
        e = NULL;                                                                         \
    } while (0)
    REFUSES(brant_bitmap_new(1, NULL, &e));
    REFUSES(brant_bitmap_set(NULL, 0, 1, NULL, &e));
    REFUSES(brant_bitmap_clear(NULL, 0, 1, NULL, &e));
    REFUSES(brant_bitmap_merge_words(NULL, 0, &words, 1, NULL, &e));
    REFUSES(brant_bitmap_merge_words(bitmap, 0, NULL, 1, NULL, &e));
    REFUSES(brant_bitmap_merge(NULL, bitmap, NULL, &e));
    REFUSES(brant_bitmap_merge(bitmap, NULL, NULL, &e));
    REFUSES(brant_bitmap_merge(bitmap, bitmap, NULL, &e));
    REFUSES(brant_guest_new(NULL, &e));
    REFUSES(brant_guest_add_block(NULL, &(brant_ram_block){ .size = sizeof(brant_ram_block), .fd = -1 },
                                  NULL, &e));
    REFUSES(brant_guest_add_block(s.guest, NULL, NULL, &e));
    REFUSES(brant_guest_add_block(
        s.guest, &(brant_ram_block){ .size = sizeof(brant_ram_block), .length = PAGE, .fd = -1 }, NULL,
        &e));
    REFUSES(brant_guest_add_block(
        s.guest,
        &(brant_ram_block){ .size = sizeof(brant_ram_block), .name = "x", .length = PAGE, .fd = -1 },
        NULL, &e));
    REFUSES(brant_guest_remove_block(NULL, "ram", &e));
    REFUSES(brant_guest_remove_block(s.guest, NULL, &e));
    REFUSES(brant_guest_add_slot(NULL, &(brant_slot){ .size = sizeof(brant_slot) }, &e));
    REFUSES(brant_guest_add_slot(s.guest, NULL, &e));
    REFUSES(brant_guest_add_slot(s.guest, &(brant_slot){ .size = sizeof(brant_slot) }, &e));
    REFUSES(brant_guest_remove_slot(NULL, 0, 0, &e));
    REFUSES(brant_block(NULL, "x", &blocker, &e));
    REFUSES(brant_block(s.guest, NULL, &blocker, &e));
    REFUSES(brant_saver_put(NULL, "x", 0, 0, "x", 1, &e));
    REFUSES(brant_tracker_new(NULL, NULL, &tracker, &e));
    REFUSES(brant_tracker_new(s.guest, NULL, NULL, &e));
    REFUSES(brant_tracker_add_kvm(NULL, NULL, NULL, NULL, &e));
    REFUSES(brant_tracker_add_kvm(s.tracker, NULL, NULL, NULL, &e));
    REFUSES(brant_tracker_start(NULL, BRANT_START_ALL, &e));
    REFUSES(brant_tracker_start(s.tracker, 2, &e));
    REFUSES(brant_tracker_stop(NULL, &e));
    REFUSES(brant_tracker_sync(NULL, BRANT_SYNC_RUNNING, NULL, &e));
    REFUSES(brant_tracker_sync(s.tracker, 2, NULL, &e));
    REFUSES(brant_tracker_take(NULL, &run, 1, &count, &e));
    REFUSES(brant_tracker_take(s.tracker, NULL, 1, &count, &e));
    REFUSES(brant_tracker_take(s.tracker, &run, 0, &count, &e));
    REFUSES(brant_tracker_take(s.tracker, &run, 1, NULL, &e));
    REFUSES(brant_tracker_put_back(NULL, 0, 0, 1, &e));
    REFUSES(brant_tracker_get_stats(NULL, &tracker_stats, &e));
    REFUSES(brant_tracker_get_stats(s.tracker, NULL, &e));
    REFUSES(brant_outgoing_new(NULL, s.tracker, &plain, NULL, NULL, &out, &e));
    REFUSES(brant_outgoing_new(s.guest, NULL, &plain, NULL, NULL, &out, &e));
    REFUSES(brant_outgoing_new(s.guest, s.tracker, NULL, NULL, NULL, &out, &e));
    REFUSES(brant_outgoing_new(s.guest, s.tracker, &plain, NULL, NULL, NULL, &e));
    REFUSES(brant_outgoing_new(s.guest, s.tracker,
                               &(brant_ops){ .size = sizeof(brant_ops), .pause = nothing }, NULL, NULL,
                               &out, &e));
    REFUSES(brant_outgoing_start(NULL, "tcp:127.0.0.1:1", &e));
    REFUSES(brant_outgoing_start(out, NULL, &e));
    REFUSES(brant_outgoing_start(out, "carrier pigeon", &e));
    REFUSES(brant_outgoing_start_fd(NULL, dup(0), &e));
    REFUSES(brant_outgoing_start_fd(out, -1, &e));
    REFUSES(brant_outgoing_cancel(NULL, &e));
    REFUSES(brant_outgoing_wait(NULL, 0, &e));
    REFUSES(brant_outgoing_resolve(NULL, BRANT_RESOLVE_RESUME, &e));
    REFUSES(brant_outgoing_resolve(out, 0, &e));
    REFUSES(brant_outgoing_get_stats(NULL, &stats, &e));
    REFUSES(brant_outgoing_get_stats(out, NULL, &e));
    REFUSES(brant_outgoing_stats_json(NULL, text, sizeof text, NULL, &e));
    REFUSES(brant_outgoing_stats_json(out, NULL, 1, NULL, &e));
    REFUSES(brant_incoming_new(NULL, &plain, NULL, NULL, &in, &e));
    REFUSES(brant_incoming_new(s.guest, NULL, NULL, NULL, &in, &e));
    REFUSES(brant_incoming_new(s.guest, &plain, NULL, NULL, NULL, &e));
    REFUSES(brant_incoming_new(s.guest, &(brant_ops){ .size = sizeof(brant_ops) }, NULL, NULL, &in, &e));
    REFUSES(brant_incoming_listen(NULL, "tcp:127.0.0.1:0", text, sizeof text, NULL, &e));
    REFUSES(brant_incoming_listen(in, NULL, text, sizeof text, NULL, &e));
    REFUSES(brant_incoming_start_fd(NULL, dup(0), &e));
    REFUSES(brant_incoming_start_fd(in, -1, &e));
    REFUSES(brant_incoming_cancel(NULL, &e));
    REFUSES(brant_incoming_wait(NULL, 0, &e));
    REFUSES(brant_incoming_get_stats(NULL, &stats, &e));
    REFUSES(brant_incoming_get_stats(in, NULL, &e));
    REFUSES(brant_incoming_stats_json(NULL, text, sizeof text, NULL, &e));
#undef REFUSES
    equal(refused, tried, "NULL and nonsense are refused with a reason, by every function");
    ok(brant_outgoing_event_fd(NULL) < 0 && brant_incoming_event_fd(NULL) < 0 &&
           brant_bitmap_next_run(NULL, 0, 1, &first, &length) == BRANT_E_INVALID &&
           brant_bitmap_next_run(bitmap, 0, 0, &first, &length) == BRANT_E_INVALID,
       "and by those without an error to set");
    (void)guest;
    brant_outgoing_free(out);
    brant_incoming_free(in);
    brant_bitmap_free(bitmap);
    still_free(&s);
}

/* ---- structures of other sizes ---- */

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
    int32_t code = brant_guest_add_block(s->guest, structure, NULL, e);

    if (code == 0)
        brant_guest_remove_block(s->guest, "another", NULL);
    return code;
}

static void fill_slot(void *structure, const struct still *s)
{
    brant_slot slot = { .size = sizeof slot, .block = "ram", .length = s->bytes,
                        .slot = BRANT_NO_SLOT };

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
    int32_t code = brant_outgoing_new(s->guest, s->tracker, &plain, NULL, structure, &out, e);

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
    brant_outgoing *out = NULL;
    int32_t code = brant_outgoing_new(s->guest, s->tracker, structure, NULL, NULL, &out, e);

    brant_outgoing_free(out);
    return code;
}

static const struct sized given[] = {
    { "brant_ram_block", sizeof(brant_ram_block), offsetof(brant_ram_block, fd), fill_block, give_block },
    /* Without its last two fields it names KVM's slot 0. */
    { "brant_slot", sizeof(brant_slot), sizeof(brant_slot), fill_slot, give_slot },
    { "brant_tracker_config", sizeof(brant_tracker_config), sizeof(size_t), fill_config, give_config },
    { "brant_params", sizeof(brant_params), sizeof(size_t), fill_params, give_params },
    { "brant_ops", sizeof(brant_ops), offsetof(brant_ops, log_on), fill_ops, give_ops },
};

enum { GIVEN = sizeof given / sizeof given[0] };

static void structures_given(void)
{
    struct still s = still_new(0, 0);

    for (int i = 0; i < GIVEN; i++) {
        const struct sized *g = &given[i];
        /* Exactly as long as it says, so that a sanitizer sees a byte too many being read. */
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

    must(brant_outgoing_new(s->guest, s->tracker, &plain, NULL, NULL, &out, &e));
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
    struct still s = still_new(0, 0);

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

/* ---- descriptors ---- */

static void descriptors(void)
{
    struct still s = still_new(0, 0);
    struct {
        brant_ram_block block;
        uint64_t unknown;
    } more = { .block = block_of(&s), .unknown = 1 };
    brant_ram_block block = block_of(&s);
    struct {
        brant_kvm kvm;
        uint64_t unknown;
    } more_kvm = { .unknown = 1 };
    brant_kvm kvm = { .size = sizeof kvm, .mode = 17 };
    brant_outgoing *out;
    brant_incoming *in;
    int fd;

    block.flags = more.block.flags = BRANT_RAM_FILE;
    block.fd = fd = dup(0); /* The name is there already. */
    ok(brant_guest_add_block(s.guest, &block, NULL, NULL) != 0 && !is_open(fd),
       "the descriptor of a block that is refused is closed");
    more.block.size = sizeof more;
    more.block.fd = fd = dup(0);
    ok(brant_guest_add_block(s.guest, &more.block, NULL, NULL) == BRANT_E_INVALID && !is_open(fd),
       "and so is that of a block with a field that is not known");
    more_kvm.kvm.size = sizeof more_kvm;
    more_kvm.kvm.vm_fd = fd = dup(0);
    ok(brant_tracker_add_kvm(s.tracker, &more_kvm.kvm, NULL, NULL, NULL) == BRANT_E_INVALID &&
           !is_open(fd),
       "and that of a KVM with a field that is not known");
    kvm.vm_fd = fd = dup(0);
    ok(brant_tracker_add_kvm(s.tracker, &kvm, NULL, NULL, NULL) != 0 && !is_open(fd),
       "and that of a KVM that is refused");
    must(brant_outgoing_new(s.guest, s.tracker, &plain, NULL, NULL, &out, &e));
    must(brant_incoming_new(s.guest, &plain, NULL, NULL, &in, &e));
    brant_outgoing_cancel(out, NULL);
    brant_incoming_cancel(in, NULL);
    fd = dup(0);
    ok(brant_outgoing_start_fd(out, fd, NULL) == BRANT_E_CANCELLED && !is_open(fd),
       "and that of a migration that was cancelled before it started");
    fd = dup(0);
    ok(brant_incoming_start_fd(in, fd, NULL) == BRANT_E_CANCELLED && !is_open(fd),
       "at the destination too");
    fd = dup(0);
    ok(brant_outgoing_start_fd(NULL, fd, NULL) == BRANT_E_INVALID && !is_open(fd) &&
           (fd = dup(0)) >= 0 && brant_incoming_start_fd(NULL, fd, NULL) == BRANT_E_INVALID &&
           !is_open(fd),
       "and that of no migration at all");
    brant_outgoing_free(out);
    brant_incoming_free(in);
    still_free(&s);
}

/* ---- bitmaps ---- */

static void check_bitmap(const brant_bitmap *bitmap, const uint8_t *model, uint64_t bits, bool *good)
{
    uint64_t at = 0, set = 0, model_set = 0, first, length;
    uint64_t longest = 1 + random_below(bits + 1);
    int32_t found;

    for (uint64_t i = 0; i < bits; i++)
        model_set += model[i];
    while ((found = brant_bitmap_next_run(bitmap, at, longest, &first, &length)) == 1) {
        *good = *good && first >= at && length >= 1 && length <= longest && first + length <= bits;
        for (uint64_t i = at; *good && i < first + length; i++)
            *good = model[i] == (i >= first);
        if (!*good)
            return;
        /* It ends because it is long enough, or because the next bit is clear. */
        *good = length == longest || first + length == bits || !model[first + length];
        set += length;
        at = first + length;
    }
    *good = *good && found == 0 && set == model_set && brant_bitmap_count(bitmap) == model_set;
    for (int i = 0; i < 20 && bits; i++) {
        uint64_t bit = random_below(bits);

        *good = *good && brant_bitmap_test(bitmap, bit) == model[bit];
    }
    *good = *good && brant_bitmap_test(bitmap, bits) == 0;
}

static void bitmaps(void)
{
    static const uint64_t sizes[] = { 0, 1, 63, 64, 65, 127, 4096, 4097, 300000 };
    bool good = true, limits = true;

    for (size_t k = 0; k < sizeof sizes / sizeof sizes[0]; k++) {
        uint64_t bits = sizes[k];
        uint8_t *model = must_alloc(bits, 1);
        uint64_t *words = must_alloc(bits / 64 + 2, 8);
        brant_bitmap *bitmap, *other;

        must(brant_bitmap_new(bits, &bitmap, &e));
        for (int step = 0; good && step < 120; step++) {
            uint64_t first = random_below(bits + 1), count = random_below(bits - first + 1);
            uint64_t changed = ~0ull, expected = 0;
            unsigned op = (unsigned)random_below(4);

            if (op < 2) {
                for (uint64_t i = first; i < first + count; i++) {
                    expected += model[i] == op;
                    model[i] = !op;
                }
                must((op ? brant_bitmap_clear : brant_bitmap_set)(bitmap, first, count, &changed, &e));
            } else {
                for (uint64_t i = 0; i < count / 64 + 1; i++)
                    words[i] = gv_mix(random_state + i) & gv_mix(random_state - i);
                random_below(2);
                for (uint64_t i = 0; i < count; i++)
                    if (words[i / 64] >> i % 64 & 1) {
                        expected += !model[first + i];
                        model[first + i] = 1;
                    }
                if (op == 2) {
                    must(brant_bitmap_merge_words(bitmap, first, words, count, &changed, &e));
                } else {
                    must(brant_bitmap_new(bits, &other, &e));
                    must(brant_bitmap_merge_words(other, first, words, count, NULL, &e));
                    must(brant_bitmap_merge(bitmap, other, &changed, &e));
                    brant_bitmap_free(other);
                }
            }
            if (changed != expected) {
                note("%" PRIu64 " bits, step %d, operation %u: %" PRIu64 " changed, not %" PRIu64, bits,
                     step, op, changed, expected);
                good = false;
            }
            if (step % 10 == 0)
                check_bitmap(bitmap, model, bits, &good);
        }
        limits = limits && brant_bitmap_set(bitmap, bits, 1, NULL, NULL) == BRANT_E_INVALID &&
                 brant_bitmap_clear(bitmap, 0, bits + 1, NULL, NULL) == BRANT_E_INVALID &&
                 brant_bitmap_set(bitmap, 1, UINT64_MAX, NULL, NULL) == BRANT_E_INVALID &&
                 brant_bitmap_merge_words(bitmap, UINT64_MAX, words, 2, NULL, NULL) == BRANT_E_INVALID;
        must(brant_bitmap_new(bits + 1, &other, &e));
        limits = limits && brant_bitmap_merge(bitmap, other, NULL, NULL) == BRANT_E_INVALID;
        check_bitmap(bitmap, model, bits, &limits);
        brant_bitmap_free(other);
        brant_bitmap_free(bitmap);
        free(model);
        free(words);
    }
    ok(good, "a bitmap does what an array of bytes does");
    ok(limits, "what reaches past its end is refused and changes nothing");
    {
        brant_bitmap *huge;
        uint64_t first = 0, length = 0, last = (1ull << 34) - 1;

        must(brant_bitmap_new(last + 1, &huge, &e));
        must(brant_bitmap_set(huge, last, 1, NULL, &e));
        ok(brant_bitmap_next_run(huge, 0, 1, &first, &length) == 1 && first == last && length == 1,
           "a bitmap for 64 TiB costs what is set in it");
        brant_bitmap_free(huge);
    }
}

/* ---- parameters ---- */

static void parameters(void)
{
    struct still s = still_new(0, 0);
    brant_params wrong[] = {
        { .downtime_limit_ms = 3600001 },
        { .max_bandwidth = 65535 },
        { .max_bandwidth = (1ull << 40) + 1 },
        { .switchover_bandwidth = 1 },
        { .total_timeout_ms = 30ull * 24 * 3600 * 1000 + 1 },
        { .connect_timeout_ms = 3600001 },
        { .io_timeout_ms = UINT64_MAX - 1 },
        { .switchover_timeout_ms = 3600001 },
        { .handover_timeout_ms = 3600001 },
        { .max_state = 4095 },
        { .channels = 2 },
    };
    brant_params most = { .size = sizeof most,
                          .downtime_limit_ms = 3600000,
                          .max_bandwidth = 1ull << 40,
                          .switchover_bandwidth = 65536,
                          .total_timeout_ms = BRANT_NO_LIMIT,
                          .connect_timeout_ms = 1,
                          .channels = 1 };
    brant_outgoing *out = NULL;
    bool all = true;

    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        brant_error *e = NULL;

        wrong[i].size = sizeof wrong[i];
        if (brant_outgoing_new(s.guest, s.tracker, &plain, NULL, &wrong[i], &out, &e) !=
                BRANT_E_INVALID ||
            !strstr(brant_error_message(e), "can be")) {
            note("number %zu: %s", i, brant_error_message(e));
            all = false;
        }
        brant_error_free(e);
    }
    ok(all, "a parameter out of range is refused, and told the range");
    ok(brant_outgoing_new(s.guest, s.tracker, &plain, NULL, &most, &out, NULL) == 0,
       "the ends of the ranges are in them");
    brant_outgoing_free(out);
    still_free(&s);
}

/* ---- marks and pages ---- */

static void marks(void)
{
    struct still s = still_new(0, 0);
    brant_slot slot = { .size = sizeof slot, .block = "ram", .offset = PAGE, .length = s.bytes - PAGE,
                        .guest_address = 1ull << 32, .slot = BRANT_NO_SLOT };
    brant_tracker_stats stats = { .size = sizeof stats };
    brant_sync sync = { .size = sizeof sync };
    brant_run runs[4];
    size_t count = 9;

    must(brant_guest_add_slot(s.guest, &slot, &e));
    ok(brant_tracker_sync(s.tracker, BRANT_SYNC_RUNNING, &sync, NULL) == BRANT_E_STATE,
       "what was not started is not synced");
    must(brant_tracker_start(s.tracker, BRANT_START_CLEAN, &e));
    ok(brant_tracker_start(s.tracker, BRANT_START_CLEAN, NULL) == BRANT_E_STATE,
       "tracking is started once");
    brant_tracker_mark(s.tracker, (1ull << 32) + 10 * PAGE - 1, 2); /* pages 10 and 11 */
    brant_tracker_mark_block(s.tracker, 0, 511 * PAGE, 2 * PAGE);   /* across a stretch */
    brant_tracker_mark(s.tracker, 0, 1);                            /* nothing is there */
    must(brant_tracker_sync(s.tracker, BRANT_SYNC_STOPPED, &sync, &e));
    must(brant_tracker_take(s.tracker, runs, 4, &count, &e));
    ok(sync.found_pages == 4 && sync.reported_pages == 4 && sync.pending_pages == 4 && count == 3 &&
           runs[0].first_page == 10 && runs[0].pages == 2 && runs[1].first_page == 511 &&
           runs[1].pages == 1 && runs[2].first_page == 512 && runs[2].pages == 1 &&
           runs[2].host == s.memory + 512 * PAGE,
       "marks are found, as pages of the block, in runs that cross no 2 MiB");
    must(brant_tracker_get_stats(s.tracker, &stats, &e));
    equal(stats.stray_marks, 1, "a mark where no memory is is counted");
    must(brant_tracker_take(s.tracker, runs, 4, &count, &e));
    ok(count == 0, "what was taken is not handed out again");
    must(brant_tracker_put_back(s.tracker, 0, 511, 1, &e));
    must(brant_tracker_stop(s.tracker, &e));
    must(brant_tracker_take(s.tracker, runs, 4, &count, &e));
    ok(count == 1 && runs[0].first_page == 511, "what is put back is handed out again, after the stop too");
    ok(brant_tracker_put_back(s.tracker, 0, 1, s.bytes / PAGE, NULL) == BRANT_E_INVALID &&
           brant_tracker_put_back(s.tracker, 0, UINT64_MAX, 2, NULL) == BRANT_E_INVALID &&
           brant_tracker_put_back(s.tracker, 4000, 0, 1, NULL) == 0,
       "what reaches past a block is refused, and a block that is gone is passed over");
    still_free(&s);
}

/* ---- inside callbacks ---- */

struct inside {
    struct still source, destination;
    brant_outgoing *out;
    brant_incoming *in;
    bool cancel_source, cancel_destination;
    int32_t source_wait, source_free, source_cancel, source_stats, taken, second;
    size_t taken_runs;
    int32_t destination_wait, destination_free, destination_cancel;
    atomic_int threads, masked, started_first;
    atomic_int events, completed, failed;
    atomic_int load_cancel;
};

static int32_t inside_early_save(void *opaque, brant_saver *saver, brant_reason *reason)
{
    struct inside *t = opaque;
    brant_stats stats = { .size = sizeof stats };
    brant_run run;

    (void)reason;
    t->source_wait = brant_outgoing_wait(t->out, BRANT_NO_LIMIT, NULL);
    t->source_free = brant_outgoing_free(t->out);
    t->source_stats = brant_outgoing_get_stats(t->out, &stats, NULL);
    t->taken_runs = 7;
    t->taken = brant_tracker_take(t->source.tracker, &run, 1, &t->taken_runs, NULL);
    t->second = brant_outgoing_start(t->out, "tcp:127.0.0.1:1", NULL);
    if (t->cancel_source)
        t->source_cancel = brant_outgoing_cancel(t->out, NULL);
    return brant_saver_put(saver, "x", 0, 0, NULL, 0, NULL);
}

static int32_t inside_save(void *opaque, brant_saver *saver, brant_reason *reason)
{
    (void)opaque;
    (void)reason;
    return brant_saver_put(saver, "piece", 7, 3, "12345", 5, NULL);
}

static int32_t inside_early_load(void *opaque, const brant_state *state, brant_reason *reason)
{
    (void)opaque;
    (void)reason;
    return state->length != 0;
}

static int32_t inside_load(void *opaque, const brant_state *state, brant_reason *reason)
{
    struct inside *t = opaque;

    if (t->cancel_destination)
        t->load_cancel = brant_incoming_cancel(t->in, NULL);
    if (strcmp(state->name, "piece") || state->instance != 7 || state->version != 3 ||
        state->length != 5 || memcmp(state->data, "12345", 5)) {
        brant_reason_set(reason, "the state is not what was saved");
        return -1;
    }
    return 0;
}

static int32_t inside_run(void *opaque, brant_reason *reason)
{
    struct inside *t = opaque;

    (void)reason;
    t->destination_wait = brant_incoming_wait(t->in, BRANT_NO_LIMIT, NULL);
    t->destination_free = brant_incoming_free(t->in);
    t->destination_cancel = brant_incoming_cancel(t->in, NULL);
    return 0;
}

static void inside_thread_start(void *opaque, uint32_t role)
{
    struct inside *t = opaque;
    sigset_t mask;

    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    t->masked += sigismember(&mask, SIGTERM) == 1 && sigismember(&mask, SIGALRM) == 1 &&
                 sigismember(&mask, SIGRTMIN + 4) == 1;
    t->threads += role == BRANT_ROLE_MIGRATION;
}

static void inside_event(void *opaque, const brant_event *event)
{
    struct inside *t = opaque;

    t->events += event->message != NULL && event->size >= sizeof *event;
    t->completed += event->kind == BRANT_EVENT_COMPLETED;
    t->failed += event->kind == BRANT_EVENT_FAILED;
}

static struct inside *inside_new(void)
{
    static const brant_ops ops = {
        .size = sizeof ops,
        .pause = nothing,
        .resume = nothing,
        .save = inside_save,
        .load = inside_load,
        .early_save = inside_early_save,
        .early_load = inside_early_load,
        .run = inside_run,
        .event = inside_event,
        .thread_start = inside_thread_start,
    };
    struct inside *t = must_alloc(1, sizeof *t);

    t->source = still_new('s', 2 * MIB);
    t->destination = still_new('d', 4 * MIB);
    must(brant_outgoing_new(t->source.guest, t->source.tracker, &ops, t, NULL, &t->out, &e));
    must(brant_incoming_new(t->destination.guest, &ops, t, NULL, &t->in, &e));
    return t;
}

static void inside_begin(struct inside *t)
{
    int pair[2];

    make_socketpair(pair);
    must(brant_incoming_start_fd(t->in, pair[1], &e));
    must(brant_outgoing_start_fd(t->out, pair[0], &e));
}

static void inside_free(struct inside *t)
{
    brant_outgoing_free(t->out);
    brant_incoming_free(t->in);
    still_free(&t->source);
    still_free(&t->destination);
    free(t);
}

static void callbacks(void)
{
    struct inside *t = inside_new();
    brant_stats stats = { .size = sizeof stats };
    struct pollfd look;
    char json[4096], cut[16];
    size_t needed = 0, needed_again = 0;
    int32_t code, there;

    ok(brant_outgoing_wait(t->out, 0, NULL) == BRANT_E_STATE &&
           brant_outgoing_resolve(t->out, BRANT_RESOLVE_RESUME, NULL) == BRANT_E_STATE,
       "what was not started is neither waited for nor resolved");
    look = (struct pollfd){ .fd = brant_outgoing_event_fd(t->out), .events = POLLIN };
    inside_begin(t);
    code = brant_outgoing_wait(t->out, patience(30000), NULL);
    there = brant_incoming_wait(t->in, patience(30000), NULL);
    ok(code == 0 && there == 0 && memcmp(t->source.memory, t->destination.memory, t->source.bytes) == 0,
       "memory arrives byte for byte, over what was there");
    ok(t->source_wait == BRANT_E_CALLBACK && t->source_free == BRANT_E_CALLBACK &&
           t->destination_wait == BRANT_E_CALLBACK && t->destination_free == BRANT_E_CALLBACK,
       "waiting and freeing inside a callback are errors, not deadlocks");
    ok(t->source_stats == 0, "the figures can be read inside a callback");
    ok(t->taken == 0 && t->taken_runs == 0,
       "while a migration runs the VMM takes what is pending for itself, not what it sends");
    ok(t->second != 0 && brant_outgoing_start(t->out, "tcp:127.0.0.1:1", NULL) == BRANT_E_STATE,
       "a migration is started once");
    equal(t->destination_cancel, BRANT_E_STATE, "a guest that was handed over cannot be sent back");
    ok(t->threads == 2 && t->masked == 2, "each thread announces itself, all signals masked");
    ok(t->events > 4 && t->completed == 2 && t->failed == 0, "events tell how it went at both sides");
    ok(poll(&look, 1, 0) == 1 && look.revents == POLLIN, "the event descriptor says that there is news");
    must(brant_outgoing_get_stats(t->out, &stats, &e));
    ok(stats.progress == 10000 && stats.phase == BRANT_SOURCE_COMPLETED && stats.remaining_bytes == 0 &&
           stats.state_bytes == 5 && stats.data_pages >= t->source.bytes / PAGE / 2 &&
           stats.data_pages + stats.zero_pages >= t->source.bytes / PAGE,
       "the figures of a migration that completed say so");
    must(brant_outgoing_stats_json(t->out, NULL, 0, &needed, &e));
    must(brant_outgoing_stats_json(t->out, cut, sizeof cut, &needed_again, &e));
    must(brant_outgoing_stats_json(t->out, json, sizeof json, NULL, &e));
    ok(needed > sizeof cut && needed == needed_again && needed == strlen(json) + 1 &&
           strlen(cut) == sizeof cut - 1 && strncmp(cut, json, sizeof cut - 1) == 0 &&
           json[0] == '{' && json[strlen(json) - 1] == '}' && strstr(json, "\"state\":"),
       "the JSON is cut to the buffer, and how much it takes is told");
    ok(brant_outgoing_cancel(t->out, NULL) == BRANT_E_STATE, "what has completed is not cancelled");
    inside_free(t);

    t = inside_new();
    t->cancel_source = true;
    inside_begin(t);
    code = brant_outgoing_wait(t->out, patience(30000), NULL);
    there = brant_incoming_wait(t->in, patience(30000), NULL);
    ok(code == BRANT_E_CANCELLED && t->source_cancel == 0 && there != 0 && t->failed == 2,
       "cancelling inside a callback of the source ends it at both sides");
    must(brant_outgoing_cancel(t->out, &e));
    inside_free(t);

    t = inside_new();
    t->cancel_destination = true;
    inside_begin(t);
    code = brant_outgoing_wait(t->out, patience(30000), NULL);
    there = brant_incoming_wait(t->in, patience(30000), NULL);
    ok(there == BRANT_E_CANCELLED && t->load_cancel == 0 && code != 0 && t->destination_wait == 0,
       "cancelling inside a callback of the destination ends it at both sides, and it never runs");
    inside_free(t);
}

/* ---- blockers ---- */

static void blockers(void)
{
    struct inside *t = inside_new();
    brant_blocker *disk, *dongle;
    brant_error *e = NULL;
    int pair[2];
    int32_t code;

    must(brant_block(t->source.guest, "a disk is local", &disk, &e));
    must(brant_block(t->source.guest, "a dongle is plugged in", &dongle, &e));
    make_socketpair(pair);
    code = brant_outgoing_start_fd(t->out, pair[0], &e);
    ok(code == BRANT_E_BLOCKED && strstr(brant_error_message(e), "a disk is local") &&
           strstr(brant_error_message(e), "a dongle is plugged in"),
       "a guest that is blocked is not migrated, and every reason is told");
    brant_error_free(e);
    e = NULL;
    close(pair[1]);
    brant_unblock(disk);
    brant_unblock(dongle);
    brant_outgoing_free(t->out);
    must(brant_outgoing_new(t->source.guest, t->source.tracker, &plain, NULL, NULL, &t->out, &e));
    inside_begin(t);
    ok(brant_outgoing_wait(t->out, patience(30000), NULL) == 0 && brant_incoming_wait(t->in, patience(30000), NULL) == 0,
       "one that is not blocked any more is");
    inside_free(t);

    t = inside_new();
    must(brant_block(t->source.guest, "late", &disk, &e));
    brant_guest_free(t->source.guest);
    t->source.guest = NULL;
    brant_unblock(disk);
    ok(true, "a reason can be taken back after its guest is gone");
    inside_free(t);
}

int main(void)
{
    plan(3 + 5 + 1 + 2 + GIVEN * 3 + FILLED * 2 + 7 + 3 + 2 + 7 + 15 + 3);
    random_begin();
    versions();
    errors();
    null_is_fine();
    null_is_refused();
    structures_given();
    structures_filled();
    descriptors();
    bitmaps();
    parameters();
    marks();
    callbacks();
    blockers();
    return done();
}
