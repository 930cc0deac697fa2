/*
 * What a small VMM need not write itself: memory and its place in one call, marks by the addresses that
 * device code has, state without callbacks, a reason with a format, a progress line, and a buffer for the
 * figures that is large enough. The guest is plain memory, and both sides are in this process.
 */
#include "support.h"

enum { LENGTH = 64 * 4096, AT = 0x100000 };

struct timer {
    uint32_t count, mode;
};

struct small {
    brant_guest *guest;
    brant_tracker *tracker;
    char *memory;
    struct timer timers[2];
    char more[5000];
    /* What `loaded` found in the first timer. */
    uint32_t found;
    bool refuses;
};

static int32_t nothing(void *opaque, brant_reason *reason)
{
    (void)opaque, (void)reason;
    return 0;
}

/* As a VMM asks its kernel for state: before brant saves it. */
static int32_t own_save(void *opaque, brant_saver *saver, brant_reason *reason)
{
    struct small *s = opaque;

    (void)saver, (void)reason;
    s->timers[0].count++;
    return 0;
}

static int32_t own_loaded(void *opaque, brant_reason *reason)
{
    struct small *s = opaque;

    s->found = s->timers[0].count;
    if (s->refuses) {
        BRANT_REASON_SETF(reason, "timer %u counts %u", 0u, s->found);
        return -1;
    }
    return 0;
}

static const brant_ops ops = { .size = sizeof ops, .pause = nothing, .resume = nothing, .run = nothing,
                               .save = own_save, .loaded = own_loaded };

static struct small *small_new(void)
{
    struct small *s = must_alloc(1, sizeof *s);
    brant_ram_block block = { .size = sizeof block, .name = "ram", .length = LENGTH };

    s->memory = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    block.host = s->memory;
    must(brant_guest_new(&ops, s, &s->guest, &e));
    must(brant_guest_add_ram(s->guest, &block, AT, BRANT_NO_SLOT, NULL, &e));
    must(brant_tracker_new(s->guest, NULL, &s->tracker, &e));
    return s;
}

static void add(struct small *s, const char *name, uint32_t instance, uint32_t version, void *data,
                size_t length)
{
    must(brant_guest_add_state(s->guest, name, instance, version, data, length, &e));
}

static void small_free(struct small *s)
{
    brant_tracker_free(s->tracker);
    brant_guest_free(s->guest);
    munmap(s->memory, LENGTH);
    free(s);
}

static char message[300], line[BRANT_LINE_SIZE], json[BRANT_STATS_JSON_SIZE];

static int32_t kept(int32_t code, brant_error *e)
{
    snprintf(message, sizeof message, "%s", brant_error_message(e));
    brant_error_free(e);
    return code;
}

/* The code at the source. */
static int32_t migrate(struct small *from, struct small *to)
{
    brant_outgoing *out;
    brant_incoming *in;
    brant_error *error;
    size_t needed;
    int32_t code;
    int pair[2];

    must(brant_outgoing_new(from->tracker, NULL, &out, &e));
    must(brant_incoming_new(to->guest, NULL, &in, &e));
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
        bail("socketpair: %s", strerror(errno));
    must(brant_incoming_start_fd(in, pair[1], &e));
    must(brant_outgoing_start_fd(out, pair[0], &e));
    code = brant_outgoing_wait(out, patience(30000), &error);
    code = kept(code, error);
    brant_incoming_wait(in, patience(30000), NULL);
    must(brant_incoming_get_line(in, line, sizeof line, &e));
    note("%s", line);
    must(brant_outgoing_get_line(out, line, sizeof line, &e));
    note("%s", line);
    must(brant_outgoing_get_stats_json(out, json, sizeof json, &needed, &e));
    if (needed > sizeof json || strlen(json) + 1 != needed)
        bail("the figures take %zu bytes", needed);
    brant_outgoing_free(out);
    brant_incoming_free(in);
    return code;
}

static void states(void)
{
    struct small *a = small_new(), *b = small_new();

    add(a, "timer", 0, 3, &a->timers[0], sizeof a->timers[0]);
    add(a, "timer", 1, 3, &a->timers[1], sizeof a->timers[1]);
    add(a, "more", 0, 1, a->more, sizeof a->more);
    a->timers[0] = (struct timer){ 41, 7 };
    a->timers[1] = (struct timer){ 5, 6 };
    memset(a->more, 'm', sizeof a->more);

    add(b, "timer", 0, 2, &b->timers[0], sizeof b->timers[0]);
    ok(migrate(a, b) == BRANT_E_REFUSED && strstr(message, "state `timer`: the source sent version 3, and here it is 2"),
       "another version is refused by name: %s", message);
    must(brant_guest_remove_state(b->guest, "timer", 0, &e));
    add(b, "timer", 0, 3, &b->timers[0], 4);
    ok(migrate(a, b) == BRANT_E_REFUSED && strstr(message, "a length of 8, and here it is 4"),
       "another length too: %s", message);
    must(brant_guest_remove_state(b->guest, "timer", 0, &e));
    add(b, "timer", 0, 3, &b->timers[0], sizeof b->timers[0]);
    ok(migrate(a, b) == BRANT_E_REFUSED && strstr(message, "`timer`"),
       "a state that the destination does not have goes to its `load`, of which there is none: %s", message);
    add(b, "timer", 1, 3, &b->timers[1], sizeof b->timers[1]);
    add(b, "more", 0, 1, b->more, sizeof b->more);
    add(b, "rtc", 0, 1, b->more, 1);
    ok(migrate(a, b) == BRANT_E_REFUSED && strstr(message, "state `rtc`: the source sent none"),
       "one that did not come is named: %s", message);
    must(brant_guest_remove_state(b->guest, "rtc", 0, &e));
    b->refuses = true;
    ok(migrate(a, b) == BRANT_E_REFUSED && strstr(message, "timer 0 counts 46"),
       "a reason with a format: %s", message);
    b->refuses = false;
    a->timers[0].count = 100;
    ok(migrate(a, b) == 0, "the guest moves with its state, without `load`");
    ok(b->found == 101 && b->timers[0].mode == 7 && b->timers[1].count == 5
           && memcmp(a->more, b->more, sizeof a->more) == 0,
       "`save` came before, and `loaded` after");
    ok(strstr(line, "completed, 100.0 %") == line && strstr(line, "downtime"), "a line says so: %s", line);
    ok(brant_guest_add_state(b->guest, "more", 0, 1, b->more, 1, NULL) == BRANT_E_EXISTS
           && brant_guest_add_state(b->guest, "", 0, 1, b->more, 1, NULL) == BRANT_E_INVALID
           && brant_guest_add_state(b->guest, "x", 0, 1, b->more, SIZE_MAX, NULL) == BRANT_E_INVALID
           && brant_guest_remove_state(b->guest, "x", 0, NULL) == BRANT_E_NOT_FOUND,
       "what cannot be a state is refused");
    small_free(a);
    small_free(b);
}

static bool refused(struct small *s, void *data, size_t length, const char *words)
{
    brant_error *error;
    int32_t code = brant_guest_add_state(s->guest, "bad", 0, 1, data, length, &error);

    kept(code, error);
    note("%s", message);
    return code == BRANT_E_INVALID && strstr(message, "state `bad`: expected") && strstr(message, words);
}

/* Memory that cannot be accessed, at once or later: an error with the byte, and no signal. */
static void broken_states(void)
{
    struct small *a = small_new(), *b = small_new();
    char *page = mmap(NULL, 2 * 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int both = PROT_READ | PROT_WRITE;

    munmap(page + 4096, 4096);
    ok(refused(a, page, 8, "does not let it be read") && refused(a, page + 4096, 8, "nothing is mapped")
           && refused(a, (void *)(UINTPTR_MAX - 3), 8, "end of the address space")
           && refused(a, a->more, 0, "found 0 at"),
       "memory that cannot be read is no state");
    if (mprotect(page, 4096, both))
        bail("mprotect: %s", strerror(errno));
    ok(refused(a, page + 4090, 8, "byte 6: nothing is mapped"), "nor is memory that ends in the middle");
    add(a, "page", 0, 1, page, 4096);
    add(b, "page", 0, 1, b->more, 4096);
    mprotect(page, 4096, PROT_NONE);
    ok(migrate(a, b) == BRANT_E_VMM && strstr(message, "that can still be read; found at byte 0"),
       "state that cannot be read any more ends the migration: %s", message);
    mprotect(page, 4096, both);
    memset(page, 'p', 4096);
    ok(migrate(a, b) == 0 && b->more[4095] == 'p', "the guest was still here, and moves when it can be");
    small_free(a);
    small_free(b);

    a = small_new(), b = small_new();
    add(a, "page", 0, 1, a->more, 4096);
    add(b, "page", 0, 1, page, 4096);
    mprotect(page, 4096, PROT_READ);
    ok(migrate(a, b) == BRANT_E_REFUSED && strstr(message, "that can be written; found at byte 0"),
       "state that cannot be written is refused by the destination: %s", message);
    mprotect(page, 4096, both);
    ok(migrate(a, b) == 0, "and comes when it can be");
    small_free(a);
    small_free(b);
    munmap(page, 4096);
}

static uint64_t taken(struct small *s, uint64_t *first)
{
    brant_run runs[8];
    uint64_t pages = 0;
    size_t count;

    must(brant_tracker_sync(s->tracker, BRANT_SYNC_RUNNING, NULL, &e));
    do {
        must(brant_tracker_take(s->tracker, runs, 8, &count, &e));
        for (size_t i = 0; i < count; i++) {
            if (pages == 0)
                *first = runs[i].first_page;
            pages += runs[i].pages;
        }
    } while (count > 0);
    return pages;
}

static void memory(void)
{
    struct small *a = small_new();
    brant_ram_block block = { .size = sizeof block, .name = "other", .length = LENGTH };
    brant_tracker_stats stats = { .size = sizeof stats };
    uint64_t first = 0, strays;
    uint32_t id;

    /* At guest addresses that are taken: neither the slot nor the block is there. */
    block.host = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ok(brant_guest_add_ram(a->guest, &block, AT, BRANT_NO_SLOT, &id, NULL) != 0
           && brant_guest_find_block(a->guest, "other", &id, NULL) == BRANT_E_NOT_FOUND,
       "memory whose slot cannot be is not there at all");
    must(brant_guest_add_ram(a->guest, &block, AT + LENGTH, BRANT_NO_SLOT, &id, &e));

    must(brant_tracker_start(a->tracker, BRANT_START_CLEAN, &e));
    brant_tracker_mark_host(a->tracker, a->memory + 5 * PAGE + 4000, 200);
    ok(taken(a, &first) == 2 && first == 5, "a mark by address is a mark of the pages that have it");
    brant_tracker_mark_host(a->tracker, a->memory, LENGTH);
    ok(taken(a, &first) == 64, "a whole block");
    must(brant_tracker_get_stats(a->tracker, &stats, &e));
    strays = stats.stray_marks;
    brant_tracker_mark_host(a->tracker, (char *)block.host + LENGTH - PAGE, PAGE + 1);
    brant_tracker_mark_host(a->tracker, &first, sizeof first);
    brant_tracker_mark_host(a->tracker, NULL, 0);
    brant_tracker_mark_host(NULL, a->memory, 1);
    ok(taken(a, &first) >= 1, "the part that is in a block is marked");
    brant_tracker_mark_host(a->tracker, NULL, UINT64_MAX);
    ok(taken(a, &first) == 128, "all that there is is all blocks");
    must(brant_tracker_get_stats(a->tracker, &stats, &e));
    ok(stats.stray_marks >= strays + 2, "what is in no block is counted");
    small_free(a);
    munmap(block.host, LENGTH);
}

int main(void)
{
    plan(21);
    states();
    broken_states();
    memory();
    return done();
}
