/*
 * The manners of the C interface, each on a small scale: versions, errors, NULL, descriptors,
 * parameters and marks. Needs no KVM. What a migration does to a guest is tested by other programs.
 * structures.c, bitmap.c and callbacks.c have subjects of their own.
 */
#include "still.h"

#include <fcntl.h>

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
    brant_blocker_free(NULL);
    brant_reason_set(NULL, "x");
    brant_tracker_mark(NULL, 0, 1);
    brant_tracker_mark_block(NULL, 0, 0, 1);
    ok(brant_outgoing_free(NULL) == 0 && brant_incoming_free(NULL) == 0 &&
           brant_bitmap_count(NULL) == 0 && brant_bitmap_test(NULL, 0) == 0,
       "what may be NULL may be NULL");
}

/* Every argument that must not be NULL: each gives BRANT_E_INVALID, and the error says so too. */
static void null_is_refused(void)
{
    struct still s = still_new(), bare = still_with(NULL, NULL, 0, 0), halves[2];
    brant_ops half = { .size = sizeof half, .pause = nothing, .run = nothing };
    brant_bitmap *bitmap;
    brant_outgoing *out;
    brant_incoming *in;
    brant_blocker *blocker;
    brant_tracker *tracker;
    brant_guest *guest;
    brant_run run;
    brant_stats stats = { .size = sizeof stats };
    brant_lane_stats lane = { .size = sizeof lane };
    brant_tracker_stats tracker_stats = { .size = sizeof tracker_stats };
    uint64_t words = 0, first, length;
    size_t count;
    char text[8];
    brant_error *e = NULL;
    unsigned tried = 0, refused = 0;
    uint32_t id;

    halves[0] = still_with(&half, NULL, 0, 0);
    half.pause = half.run = NULL;
    half.resume = nothing;
    halves[1] = still_with(&half, NULL, 0, 0);
    must(brant_bitmap_new(64, &bitmap, &e));
    must(brant_outgoing_new(s.tracker, NULL, &out, &e));
    must(brant_incoming_new(s.guest, NULL, &in, &e));
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
    REFUSES(brant_guest_new(&plain, NULL, NULL, &e));
    REFUSES(brant_guest_new(&(brant_ops){ .size = 0 }, NULL, &guest, &e));
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
    REFUSES(brant_guest_find_block(NULL, "ram", &id, &e));
    REFUSES(brant_guest_find_block(s.guest, NULL, &id, &e));
    REFUSES(brant_guest_find_block(s.guest, "ram", NULL, &e));
    REFUSES(brant_guest_remove_block(NULL, s.block, &e));
    REFUSES(brant_guest_add_slot(NULL, &(brant_slot){ .size = sizeof(brant_slot) }, &e));
    REFUSES(brant_guest_add_slot(s.guest, NULL, &e));
    REFUSES(brant_guest_add_slot(s.guest, &(brant_slot){ .size = sizeof(brant_slot), .block = s.block }, &e));
    REFUSES(brant_guest_remove_slot(NULL, 0, 0, &e));
    REFUSES(brant_blocker_new(NULL, "x", &blocker, &e));
    REFUSES(brant_blocker_new(s.guest, NULL, &blocker, &e));
    REFUSES(brant_saver_put(NULL, "x", 0, 0, "x", 1, &e));
    REFUSES(brant_tracker_new(NULL, NULL, &tracker, &e));
    REFUSES(brant_tracker_new(s.guest, NULL, NULL, &e));
    REFUSES(brant_tracker_add_kvm(NULL, NULL, &e));
    REFUSES(brant_tracker_add_kvm(s.tracker, NULL, &e));
    REFUSES(brant_tracker_start(NULL, BRANT_START_ALL, &e));
    REFUSES(brant_tracker_start(s.tracker, 2, &e));
    REFUSES(brant_tracker_stop(NULL, &e));
    REFUSES(brant_tracker_sync(NULL, BRANT_SYNC_RUNNING, NULL, &e));
    REFUSES(brant_tracker_sync(s.tracker, 2, NULL, &e));
    REFUSES(brant_tracker_take(NULL, &run, 1, &count, &e));
    REFUSES(brant_tracker_take(s.tracker, NULL, 1, &count, &e));
    REFUSES(brant_tracker_take(s.tracker, &run, 1, NULL, &e));
    REFUSES(brant_tracker_put_back(NULL, 0, 0, 1, &e));
    REFUSES(brant_tracker_get_stats(NULL, &tracker_stats, &e));
    REFUSES(brant_tracker_get_stats(s.tracker, NULL, &e));
    REFUSES(brant_outgoing_new(NULL, NULL, &out, &e));
    REFUSES(brant_outgoing_new(s.tracker, NULL, NULL, &e));
    REFUSES(brant_outgoing_new(bare.tracker, NULL, &out, &e));
    REFUSES(brant_outgoing_new(halves[0].tracker, NULL, &out, &e));
    REFUSES(brant_outgoing_new(halves[1].tracker, NULL, &out, &e));
    REFUSES(brant_outgoing_start(NULL, "tcp:127.0.0.1:1", &e));
    REFUSES(brant_outgoing_start(out, NULL, &e));
    REFUSES(brant_outgoing_start(out, "carrier pigeon", &e));
    REFUSES(brant_outgoing_start_fd(NULL, dup(0), &e));
    REFUSES(brant_outgoing_start_fd(out, -1, &e));
    REFUSES(brant_outgoing_start_fds(NULL, (int[]){ dup(0) }, 1, &e));
    REFUSES(brant_outgoing_start_fds(out, NULL, 1, &e));
    REFUSES(brant_outgoing_start_fds(out, (int[]){ -1 }, 0, &e));
    REFUSES(brant_outgoing_start_fds(out, (int[]){ -1 }, 65, &e));
    REFUSES(brant_outgoing_start_fds(out, (int[]){ 0, 0 }, 2, &e));
    REFUSES(brant_outgoing_start_fds(out, (int[]){ dup(0) }, 1, &e));
    REFUSES(brant_outgoing_cancel(NULL, &e));
    REFUSES(brant_outgoing_wait(NULL, 0, &e));
    REFUSES(brant_outgoing_resolve(NULL, BRANT_RESOLVE_RESUME, &e));
    REFUSES(brant_outgoing_resolve(out, 0, &e));
    REFUSES(brant_outgoing_get_stats(NULL, &stats, &e));
    REFUSES(brant_outgoing_get_stats(out, NULL, &e));
    REFUSES(brant_outgoing_lane_stats(NULL, 0, &lane, &e));
    REFUSES(brant_outgoing_lane_stats(out, 0, NULL, &e));
    REFUSES(brant_outgoing_lane_stats(out, 1, &lane, &e));
    REFUSES(brant_outgoing_get_stats_json(NULL, text, sizeof text, NULL, &e));
    REFUSES(brant_outgoing_get_stats_json(out, NULL, 1, NULL, &e));
    REFUSES(brant_incoming_new(NULL, NULL, &in, &e));
    REFUSES(brant_incoming_new(s.guest, NULL, NULL, &e));
    REFUSES(brant_incoming_new(bare.guest, NULL, &in, &e));
    REFUSES(brant_incoming_new(halves[1].guest, NULL, &in, &e));
    REFUSES(brant_incoming_listen(NULL, "tcp:127.0.0.1:0", &e));
    REFUSES(brant_incoming_listen(in, NULL, &e));
    REFUSES(brant_incoming_get_endpoint(NULL, text, sizeof text, NULL, &e));
    REFUSES(brant_incoming_start_fd(NULL, dup(0), &e));
    REFUSES(brant_incoming_start_fd(in, -1, &e));
    REFUSES(brant_incoming_start_fds(NULL, (int[]){ dup(0) }, 1, &e));
    REFUSES(brant_incoming_start_fds(in, NULL, 1, &e));
    REFUSES(brant_incoming_start_fds(in, (int[]){ -1 }, 0, &e));
    REFUSES(brant_incoming_start_fds(in, (int[]){ -1 }, 65, &e));
    REFUSES(brant_incoming_start_fds(in, (int[]){ 0, 0 }, 2, &e));
    REFUSES(brant_incoming_start_fds(in, (int[]){ dup(0) }, 1, &e));
    REFUSES(brant_incoming_lane_stats(NULL, 0, &lane, &e));
    REFUSES(brant_incoming_lane_stats(in, 0, NULL, &e));
    REFUSES(brant_incoming_lane_stats(in, 64, &lane, &e));
    REFUSES(brant_incoming_cancel(NULL, &e));
    REFUSES(brant_incoming_wait(NULL, 0, &e));
    REFUSES(brant_incoming_get_stats(NULL, &stats, &e));
    REFUSES(brant_incoming_get_stats(in, NULL, &e));
    REFUSES(brant_incoming_get_stats_json(NULL, text, sizeof text, NULL, &e));
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
    still_free(&halves[0]);
    still_free(&halves[1]);
    still_free(&bare);
    still_free(&s);
}

/* Whether the error's message has this text. Frees the error. */
static bool says(brant_error *error, const char *text)
{
    bool found = strstr(brant_error_message(error), text) != NULL;

    if (!found)
        note("the message is: %s", brant_error_message(error));
    brant_error_free(error);
    return found;
}

static void operations(void)
{
    brant_ops ops = { .size = sizeof ops, .pause = nothing };
    struct still none = still_with(NULL, NULL, 0, 0), some = still_with(&ops, NULL, 0, 0);
    brant_kvm_log kvm = { .size = sizeof kvm, .switched_by = BRANT_SWITCHED_BY_VMM };
    brant_outgoing *out;
    brant_incoming *in;
    brant_error *e = NULL;

    must(brant_tracker_start(none.tracker, BRANT_START_ALL, &e));
    ok(brant_tracker_sync(none.tracker, BRANT_SYNC_RUNNING, NULL, NULL) == 0,
       "a guest without operations is tracked");
    ok(brant_outgoing_new(none.tracker, NULL, &out, &e) == BRANT_E_INVALID && says(e, "`pause`") &&
           brant_outgoing_new(some.tracker, NULL, &out, &e) == BRANT_E_INVALID && says(e, "`resume`"),
       "an operation that a source needs is missed by name");
    ok(brant_incoming_new(none.guest, NULL, &in, &e) == BRANT_E_INVALID && says(e, "`run`") &&
           brant_incoming_new(some.guest, NULL, &in, &e) == BRANT_E_INVALID && says(e, "`run`"),
       "so is the one that a destination needs");
    ok(brant_tracker_add_kvm(some.tracker, &kvm, &e) == BRANT_E_INVALID && says(e, "`log_on`"),
       "and those that a log needs which the VMM switches");
    still_free(&none);
    still_free(&some);
}

static void parameters(void)
{
    struct still s = still_new();
    brant_params wrong[] = {
        { .downtime_limit_ms = 3600001 },
        { .max_bandwidth = 65535 },
        { .max_bandwidth = (1ull << 40) + 1 },
        { .switchover_bandwidth = 1 },
        { .switchover_max_bandwidth = 65535 },
        { .downtime_slack_ms = 3600001 },
        { .expected_load_us = 3600000001 },
        { .expected_state_bytes = (1ull << 40) + 1 },
        { .total_timeout_ms = 30ull * 24 * 3600 * 1000 + 1 },
        { .connect_timeout_ms = 3600001 },
        { .io_timeout_ms = UINT64_MAX - 1 },
        { .switchover_timeout_ms = 3600001 },
        { .handover_timeout_ms = 3600001 },
        { .max_state_bytes = 4095 },
        { .channels = 65 },
        { .compression_level = 20 },
        { .compression_level = -1 },
    };
    brant_params most = { .size = sizeof most,
                          .downtime_limit_ms = 3600000,
                          .max_bandwidth = 1ull << 40,
                          .switchover_bandwidth = 65536,
                          .switchover_max_bandwidth = 65536,
                          .total_timeout_ms = BRANT_NO_LIMIT,
                          .connect_timeout_ms = 1,
                          .channels = 1 };
    brant_outgoing *out = NULL;
    bool all = true;

    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        brant_error *e = NULL;

        wrong[i].size = sizeof wrong[i];
        if (brant_outgoing_new(s.tracker, &wrong[i], &out, &e) !=
                BRANT_E_INVALID ||
            !strstr(brant_error_message(e), "can be")) {
            note("number %zu: %s", i, brant_error_message(e));
            all = false;
        }
        brant_error_free(e);
    }
    ok(all, "a parameter out of range is refused, and told the range");
    {
        struct {
            brant_params params;
            const char *says;
        } neither[] = {
            { { .prefault = BRANT_PREFAULT_OFF + 1 }, "BRANT_PREFAULT_ON (0) or BRANT_PREFAULT_OFF (1), not 2" },
            { { .compression = BRANT_COMPRESSION_ALWAYS + 1 }, "BRANT_COMPRESSION_ALWAYS (2), not 3" },
            { { .page_checksums = BRANT_CHECKSUMS_OFF + 1 }, "BRANT_CHECKSUMS_OFF (2), not 3" },
        };

        all = true;
        for (size_t i = 0; i < sizeof neither / sizeof neither[0]; i++) {
            brant_error *e = NULL;

            neither[i].params.size = sizeof neither[i].params;
            if (brant_outgoing_new(s.tracker, &neither[i].params, &out, &e) != BRANT_E_INVALID ||
                !strstr(brant_error_message(e), neither[i].says)) {
                note("%s: %s", neither[i].says, brant_error_message(e));
                all = false;
            }
            brant_error_free(e);
        }
        ok(all, "a parameter that is none of its values is refused, and told them");
    }
    ok(brant_outgoing_new(s.tracker, &most, &out, NULL) == 0,
       "the ends of the ranges are in them");
    brant_outgoing_free(out);
    still_free(&s);
}

static void marks(void)
{
    struct still s = still_new();
    brant_slot slot = { .size = sizeof slot, .block = s.block, .offset = PAGE, .length = s.bytes - PAGE,
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
    brant_tracker_mark_block(s.tracker, s.block, 511 * PAGE, 2 * PAGE);   /* across a stretch */
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

/* A memory module is unplugged, and another one of its name plugged in. The first one's number
 * names nothing then. */
static void block_numbers(void)
{
    struct still s = still_new();
    char *more = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    brant_ram_block block = { .size = sizeof block, .name = "more", .host = more, .length = MIB };
    brant_slot slot = { .size = sizeof slot, .length = MIB, .slot = BRANT_NO_SLOT };
    brant_sync sync = { .size = sizeof sync };
    uint32_t first, second, found = 4711;

    if (more == MAP_FAILED)
        bail("mmap: %s", strerror(errno));
    must(brant_guest_add_block(s.guest, &block, &first, &e));
    ok(brant_guest_find_block(s.guest, "more", &found, NULL) == 0 && found == first && first != s.block,
       "a block's number is found by its name");
    must(brant_guest_remove_block(s.guest, first, &e));
    found = 4711;
    ok(brant_guest_find_block(s.guest, "more", &found, NULL) == BRANT_E_NOT_FOUND && found == 4711,
       "a name that is gone is not found");
    must(brant_guest_add_block(s.guest, &block, &second, &e));
    ok(second != first && second != s.block, "a block of the same name has another number");
    slot.block = first;
    ok(brant_guest_remove_block(s.guest, first, NULL) == BRANT_E_NOT_FOUND &&
           brant_guest_add_slot(s.guest, &slot, NULL) == BRANT_E_NOT_FOUND &&
           brant_guest_mark_poisoned(s.guest, first, 0, 1, NULL) == BRANT_E_NOT_FOUND &&
           brant_guest_clear_poisoned(s.guest, first, 0, 1, NULL) == BRANT_E_NOT_FOUND,
       "the number of a removed block is BRANT_E_NOT_FOUND");
    must(brant_tracker_start(s.tracker, BRANT_START_CLEAN, &e));
    brant_tracker_mark_block(s.tracker, first, 0, MIB);
    must(brant_tracker_put_back(s.tracker, first, 0, 1, &e));
    must(brant_tracker_sync(s.tracker, BRANT_SYNC_RUNNING, &sync, &e));
    ok(sync.pending_pages == 0, "and marks by it mark nothing");
    must(brant_guest_remove_block(s.guest, second, &e));
    still_free(&s);
    munmap(more, MIB);
}

int main(void)
{
    plan(3 + 5 + 1 + 2 + 4 + 3 + 7 + 5);
    versions();
    errors();
    null_is_fine();
    null_is_refused();
    operations();
    parameters();
    marks();
    block_numbers();
    return done();
}
