/*
 * The endpoint at which a destination listens. It is asked for by a call of its own before, while
 * and after it listens, into buffers of every size. Needs no KVM.
 */
#include "support.h"

#define BYTES (2 * MIB)

static int32_t nothing(void *opaque, brant_reason *reason)
{
    (void)opaque;
    (void)reason;
    return 0;
}

static const brant_ops ops = { .size = sizeof(brant_ops), .pause = nothing, .resume = nothing,
                               .run = nothing };

static brant_guest *guest_of(void *memory)
{
    brant_ram_block block = { .size = sizeof block, .name = "ram", .host = memory, .length = BYTES };
    brant_guest *guest;

    must(brant_guest_new(&ops, NULL, &guest, &e));
    must(brant_guest_add_block(guest, &block, NULL, &e));
    return guest;
}

static brant_incoming *incoming_of(brant_guest *guest)
{
    brant_incoming *incoming;

    must(brant_incoming_new(guest, NULL, &incoming, &e));
    return incoming;
}

/* Whether there is no endpoint, for this reason. */
static bool nowhere(const brant_incoming *incoming, const char *why)
{
    char text[64] = "untouched";
    size_t needed = 77;
    brant_error *e = NULL;
    bool good = brant_incoming_get_endpoint(incoming, text, sizeof text, &needed, &e) == BRANT_E_STATE &&
                !strcmp(text, "untouched") && needed == 77 && strstr(brant_error_message(e), why);

    if (!good)
        note("found `%s`, needed %zu: %s", text, needed, brant_error_message(e));
    brant_error_free(e);
    return good;
}

/* The endpoint into a buffer of each size up to what it takes, and into none. */
static bool cut_as_asked(const brant_incoming *incoming, const char *whole)
{
    size_t length = strlen(whole), needed = 0;
    bool good = brant_incoming_get_endpoint(incoming, NULL, 0, &needed, NULL) == 0 &&
                needed == length + 1 && brant_incoming_get_endpoint(incoming, NULL, 0, NULL, NULL) == 0 &&
                brant_incoming_get_endpoint(incoming, NULL, 1, NULL, NULL) == BRANT_E_INVALID;

    for (size_t capacity = 1; capacity <= length + 2; capacity++) {
        size_t kept = capacity > length ? length : capacity - 1;
        char text[128];

        memset(text, '#', sizeof text);
        good &= brant_incoming_get_endpoint(incoming, text, capacity, &needed, NULL) == 0 &&
                needed == length + 1 && !memcmp(text, whole, kept) && text[kept] == 0 &&
                text[kept + 1] == '#';
    }
    return good;
}

/* A migration to the endpoint that a destination reports, whose text is in `bound`. */
static void moved(const char *asked, char *bound, size_t capacity, void *here, void *there)
{
    brant_guest *from = guest_of(here), *to = guest_of(there);
    brant_incoming *incoming = incoming_of(to);
    brant_outgoing *outgoing;
    brant_tracker *tracker;
    char again[128];

    memset(here, 5, BYTES);
    memset(there, 0, BYTES);
    ok(nowhere(incoming, "not started"), "%s: before it listens there is no endpoint", asked);
    must(brant_incoming_listen(incoming, asked, &e));
    must(brant_incoming_get_endpoint(incoming, bound, capacity, NULL, &e));
    note("asked for %s, found %s", asked, bound);
    ok(cut_as_asked(incoming, bound), "%s: a buffer that is too small has what fits, and the whole length is told", asked);
    must(brant_tracker_new(from, NULL, &tracker, &e));
    must(brant_outgoing_new(tracker, NULL, &outgoing, &e));
    must(brant_outgoing_start(outgoing, bound, &e));
    must(brant_outgoing_wait(outgoing, patience(30000), &e));
    must(brant_incoming_wait(incoming, patience(30000), &e));
    ok(!memcmp(here, there, BYTES), "%s: a source that is told it arrives", asked);
    must(brant_incoming_get_endpoint(incoming, again, sizeof again, NULL, &e));
    ok(!strcmp(again, bound), "%s: after the migration it is the same", asked);
    brant_outgoing_free(outgoing);
    brant_incoming_free(incoming);
    brant_tracker_free(tracker);
    brant_guest_free(from);
    brant_guest_free(to);
}

static void over_a_descriptor(void *memory)
{
    brant_guest *guest = guest_of(memory);
    brant_incoming *incoming = incoming_of(guest);
    int pair[2];

    make_socketpair(pair);
    must(brant_incoming_start_fd(incoming, pair[1], &e));
    ok(nowhere(incoming, "handed in"), "a migration over a descriptor listens nowhere");
    must(brant_incoming_cancel(incoming, &e));
    brant_incoming_free(incoming);
    close(pair[0]);
    brant_guest_free(guest);
}

/* A listener that fails before it listens leaves no file behind. */
static void taken(void *memory)
{
    brant_guest *first = guest_of(memory), *second = guest_of(memory);
    brant_incoming *holds = incoming_of(first), *fails = incoming_of(second);
    char bound[64];

    must(brant_incoming_listen(holds, "tcp:127.0.0.1:0", &e));
    must(brant_incoming_get_endpoint(holds, bound, sizeof bound, NULL, &e));
    ok(brant_incoming_listen(fails, bound, NULL) == BRANT_E_EXISTS && nowhere(fails, "not started"),
       "one that could not listen has no endpoint");
    ok(brant_incoming_listen(fails, "tcp:127.0.0.1:0", NULL) == 0 &&
           brant_incoming_get_endpoint(fails, bound, sizeof bound, NULL, NULL) == 0,
       "and can listen elsewhere");
    must(brant_incoming_cancel(holds, &e));
    must(brant_incoming_cancel(fails, &e));
    ok(brant_incoming_get_endpoint(fails, bound, sizeof bound, NULL, NULL) == 0,
       "a cancelled one still says where it was");
    brant_incoming_free(holds);
    brant_incoming_free(fails);
    brant_guest_free(first);
    brant_guest_free(second);
}

int main(void)
{
    void *here = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    void *there = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char directory[] = "/tmp/brant-endpoint-XXXXXX", asked[64], bound[128];
    unsigned port;

    if (here == MAP_FAILED || there == MAP_FAILED || !mkdtemp(directory))
        bail("set-up: %s", strerror(errno));
    plan(14);
    moved("tcp:127.0.0.1:0", bound, sizeof bound, here, there);
    ok(sscanf(bound, "tcp:127.0.0.1:%u", &port) == 1 && port > 0 && port < 65536,
       "port 0 is told as the port that was found");
    snprintf(asked, sizeof asked, "unix:%s/s", directory);
    moved(asked, bound, sizeof bound, here, there);
    ok(!strcmp(bound, asked), "a unix socket's path is told as it was given");
    over_a_descriptor(here);
    taken(here);
    rmdir(directory);
    munmap(here, BYTES);
    munmap(there, BYTES);
    return done();
}
