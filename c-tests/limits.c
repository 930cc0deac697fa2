/*
 * Time limits and strangers, as a VMM in C meets them. The total timeout holds on both sides from
 * the beginning. Waiting for a connection does not count. A stranger at a listener neither ends nor
 * delays a migration. Needs no KVM.
 */
#include "support.h"

#include <sys/un.h>

#define BYTES (4 * MIB)

static int32_t nothing(void *opaque, brant_reason *reason)
{
    (void)opaque;
    (void)reason;
    return 0;
}

static char *private_memory(void)
{
    char *at = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (at == MAP_FAILED)
        bail("mmap: %s", strerror(errno));
    return at;
}

/* A guest of one block, which can move. */
static brant_guest *guest_of(char *memory)
{
    brant_ops ops = { .size = sizeof ops, .pause = nothing, .resume = nothing, .run = nothing };
    brant_ram_block block = { .size = sizeof block, .name = "ram", .host = memory, .length = BYTES };
    brant_guest *guest;

    must(brant_guest_new(&ops, NULL, &guest, &e));
    must(brant_guest_add_block(guest, &block, NULL, &e));
    return guest;
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

static brant_params total_ms(uint64_t ms)
{
    return (brant_params){ .size = sizeof(brant_params), .total_timeout_ms = ms };
}

/* A peer that accepts everything and sends nothing. */
static void silence(void)
{
    char *here = private_memory(), *there = private_memory();
    brant_guest *from = guest_of(here), *to = guest_of(there);
    brant_params params = total_ms(500);
    brant_tracker *tracker;
    brant_outgoing *outgoing;
    brant_incoming *incoming;
    brant_error *e = NULL;
    int s[2], t[2];

    if (socketpair(AF_UNIX, SOCK_STREAM, 0, s) || socketpair(AF_UNIX, SOCK_STREAM, 0, t))
        bail("socketpair: %s", strerror(errno));
    must(brant_tracker_new(from, NULL, &tracker, &e));
    must(brant_outgoing_new(tracker, &params, &outgoing, &e));
    must(brant_outgoing_start_fd(outgoing, s[0], &e));
    /* Shorter than the connect timeout, which is ten seconds. */
    ok(brant_outgoing_wait(outgoing, patience(8000), &e) == BRANT_E_TIMEOUT &&
           says(e, "waiting for HELLO_REPLY from the peer: the total timeout of 500 ms ran out"),
       "a source leaves a silent peer when its total timeout has run out");
    brant_outgoing_free(outgoing);
    brant_tracker_free(tracker);

    must(brant_incoming_new(to, &params, &incoming, &e));
    must(brant_incoming_start_fd(incoming, t[0], &e));
    ok(brant_incoming_wait(incoming, patience(8000), &e) == BRANT_E_TIMEOUT &&
           says(e, "waiting for HELLO from the peer: the incoming migration's total timeout of 500 ms ran out"),
       "so does a destination");
    brant_incoming_free(incoming);
    close(s[1]);
    close(t[1]);
    brant_guest_free(from);
    brant_guest_free(to);
    munmap(here, BYTES);
    munmap(there, BYTES);
}

static int stranger(const char *path)
{
    struct sockaddr_un at = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    strcpy(at.sun_path, path);
    if (fd < 0 || connect(fd, (struct sockaddr *)&at, sizeof at))
        bail("a stranger's connection: %s", strerror(errno));
    return fd;
}

static void strangers(void)
{
    char *here = private_memory(), *there = private_memory();
    brant_guest *from = guest_of(here), *to = guest_of(there);
    brant_params params = total_ms(100);
    brant_tracker *tracker;
    brant_outgoing *outgoing;
    brant_incoming *incoming;
    brant_error *e = NULL;
    char directory[] = "/tmp/brant-limits-XXXXXX", endpoint[64], bound[64], *path;
    int silent[5], i, gone;

    if (!mkdtemp(directory))
        bail("mkdtemp: %s", strerror(errno));
    snprintf(endpoint, sizeof endpoint, "unix:%s/s", directory);
    path = endpoint + strlen("unix:");
    must(brant_incoming_new(to, &params, &incoming, &e));
    must(brant_incoming_listen(incoming, endpoint, &e));
    ok(brant_incoming_wait(incoming, 500, &e) == BRANT_E_PENDING,
       "waiting for somebody to connect has no limit");
    brant_error_free(e);
    e = NULL;
    must(brant_incoming_cancel(incoming, &e));
    brant_incoming_free(incoming);

    must(brant_incoming_new(to, NULL, &incoming, &e));
    ok(brant_incoming_listen(incoming, endpoint, &e) == 0 &&
           brant_incoming_get_endpoint(incoming, bound, sizeof bound, NULL, &e) == 0 &&
           !strcmp(bound, endpoint),
       "after one that failed, another of the same guest listens at the same address");
    for (i = 0; i < 5; i++)
        silent[i] = stranger(path);
    gone = stranger(path);
    if (write(gone, "x", 1) != 1)
        bail("write: %s", strerror(errno));
    close(gone);
    memset(here, 7, BYTES);
    must(brant_tracker_new(from, NULL, &tracker, &e));
    must(brant_outgoing_new(tracker, NULL, &outgoing, &e));
    must(brant_outgoing_start(outgoing, endpoint, &e));
    ok(brant_outgoing_wait(outgoing, patience(8000), &e) == 0 &&
           brant_incoming_wait(incoming, patience(8000), &e) == 0 && !memcmp(here, there, BYTES),
       "a migration goes through beside silent connections and a port scanner");
    for (i = 0; i < 5; i++)
        close(silent[i]);
    brant_outgoing_free(outgoing);
    brant_incoming_free(incoming);
    brant_tracker_free(tracker);
    brant_guest_free(from);
    brant_guest_free(to);
    munmap(here, BYTES);
    munmap(there, BYTES);
    rmdir(directory);
}

int main(void)
{
    plan(5);
    silence();
    strangers();
    return done();
}
