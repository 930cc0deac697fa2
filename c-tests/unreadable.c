/*
 * Guest memory that is mapped but cannot be read or written, by the header alone. The migration
 * fails with BRANT_E_MEMORY, the message names block and offset, and the guest runs on. Or the
 * migration goes on without pages that were declared poisoned. Also a `save` that uses the stack
 * that the header promises. Each case is a process of its own, so that a signal is a failed case.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <brant.h>

#include "tap.h"

enum { PAGE = 4096, PAGES = 512, BROKEN = 300 };

struct side {
    brant_guest *guest;
    uint32_t ram;
    unsigned char *host;
    bool stands, ran;
    /* How many bytes of stack `save` uses. */
    size_t stack;
};

struct result {
    int32_t source, destination;
    char why[512];
    brant_stats stats;
};

static void must(int32_t code, const char *what)
{
    if (code)
        bail("%s: %s", what, brant_error_name(code));
}

static void fill(struct side *side, unsigned char value)
{
    memset(side->host, value, PAGES * PAGE);
}

static void protect(struct side *side, int access)
{
    if (mprotect(side->host + BROKEN * PAGE, PAGE, access))
        bail("mprotect: %s", strerror(errno));
}

static int32_t op_pause(void *opaque, brant_reason *reason)
{
    (void)reason;
    ((struct side *)opaque)->stands = true;
    return 0;
}

static int32_t op_resume(void *opaque, brant_reason *reason)
{
    (void)reason;
    ((struct side *)opaque)->stands = false;
    return 0;
}

static int32_t op_save(void *opaque, brant_saver *saver, brant_reason *reason)
{
    size_t size = ((struct side *)opaque)->stack;

    (void)saver;
    (void)reason;
    if (size) {
        volatile char *deep = __builtin_alloca(size);

        for (size_t i = 0; i < size; i += PAGE)
            deep[size - 1 - i] = 1;
    }
    return 0;
}

static int32_t op_run(void *opaque, brant_reason *reason)
{
    (void)reason;
    ((struct side *)opaque)->ran = true;
    return 0;
}

static void side_new(struct side *side)
{
    static const brant_ops ops = { .size = sizeof ops, .pause = op_pause, .resume = op_resume,
                                   .save = op_save, .run = op_run };
    brant_ram_block block = { .size = sizeof block, .name = "ram", .fd = -1 };

    *side = (struct side){ .stands = false };
    side->host = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (side->host == MAP_FAILED)
        bail("mmap: %s", strerror(errno));
    block.host = side->host;
    block.length = PAGES * PAGE;
    must(brant_guest_new(&ops, side, &side->guest, NULL), "guest");
    must(brant_guest_add_block(side->guest, &block, &side->ram, NULL), "block");
}

static struct result migrate(struct side *from, struct side *to)
{
    struct result result = { .stats = { .size = sizeof result.stats } };
    brant_tracker *tracker;
    brant_outgoing *out;
    brant_incoming *in;
    brant_error *error;
    int pair[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
        bail("socketpair: %s", strerror(errno));
    must(brant_tracker_new(from->guest, NULL, &tracker, NULL), "tracker");
    must(brant_incoming_new(to->guest, NULL, &in, NULL), "incoming");
    must(brant_outgoing_new(tracker, NULL, &out, NULL), "outgoing");
    must(brant_incoming_start_fd(in, pair[1], NULL), "start of incoming");
    must(brant_outgoing_start_fd(out, pair[0], NULL), "start of outgoing");
    result.source = brant_outgoing_wait(out, patience(30000), &error);
    snprintf(result.why, sizeof result.why, "%s", brant_error_message(error));
    brant_error_free(error);
    result.destination = brant_incoming_wait(in, patience(30000), NULL);
    must(brant_outgoing_get_stats(out, &result.stats, NULL), "figures");
    brant_outgoing_free(out);
    brant_incoming_free(in);
    brant_tracker_free(tracker);
    return result;
}

/* The results of a case, one bit for each of its promises. */
typedef unsigned (*body)(void);

static unsigned at_the_source(void)
{
    struct side from, to;
    struct result r;

    side_new(&from);
    side_new(&to);
    fill(&from, 7);
    protect(&from, PROT_NONE);
    r = migrate(&from, &to);
    return (r.source == BRANT_E_MEMORY) | (r.destination == BRANT_E_REFUSED) << 1 |
           (strstr(r.why, "block `ram`: the page at offset 0x12c000 ") != NULL) << 2 |
           (!from.stands && !to.ran && from.host[0] == 7) << 3;
}

static unsigned at_the_destination(void)
{
    struct side from, to;
    struct result r;

    side_new(&from);
    side_new(&to);
    fill(&from, 7);
    protect(&to, PROT_READ);
    r = migrate(&from, &to);
    return (r.source == BRANT_E_REFUSED) | (r.destination == BRANT_E_MEMORY) << 1 |
           (strstr(r.why, "block `ram`: the page at offset 0x12c000 ") != NULL) << 2 |
           (!from.stands && !to.ran) << 3;
}

static unsigned declared(void)
{
    struct side from, to;
    struct result r;

    side_new(&from);
    side_new(&to);
    fill(&from, 7);
    fill(&to, 8);
    protect(&from, PROT_NONE);
    must(brant_guest_mark_poisoned(from.guest, from.ram, BROKEN * PAGE + 5, 1, NULL), "poisoned");
    r = migrate(&from, &to);
    return (r.source == 0 && r.destination == 0) | (to.ran && from.stands) << 1 |
           (to.host[BROKEN * PAGE] == 0 && to.host[BROKEN * PAGE - 1] == 7) << 2 |
           (r.stats.poisoned_pages == 1) << 3;
}

static unsigned taken_back(void)
{
    struct side from, to;
    struct result r;

    side_new(&from);
    side_new(&to);
    fill(&from, 7);
    must(brant_guest_mark_poisoned(from.guest, from.ram, 0, PAGES * PAGE, NULL), "poisoned");
    must(brant_guest_clear_poisoned(from.guest, from.ram, 0, PAGES * PAGE, NULL), "taken back");
    r = migrate(&from, &to);
    return (r.source == 0 && r.destination == 0) | (to.host[BROKEN * PAGE] == 7) << 1 |
           (r.stats.poisoned_pages == 0) << 2 |
           (brant_guest_mark_poisoned(from.guest, from.ram, 0, PAGES * PAGE + 1, NULL) ==
                BRANT_E_INVALID &&
            brant_guest_mark_poisoned(from.guest, from.ram + 1, 0, 1, NULL) == BRANT_E_NOT_FOUND) << 3;
}

static unsigned deep(void)
{
    struct side from, to;
    struct result r;

    side_new(&from);
    side_new(&to);
    /* The rest is for the frames above, and for the process's thread-local variables. */
    from.stack = (8 << 20) - (512 << 10);
    r = migrate(&from, &to);
    return (r.source == 0) | (r.destination == 0) << 1 | (to.ran && from.stands) << 2 | 1 << 3;
}

static void try_alone(const char *name, body f, const char *const promises[4])
{
    unsigned found = 0;
    int status, pipes[2];
    pid_t child;

    if (pipe(pipes))
        bail("pipe: %s", strerror(errno));
    fflush(NULL);
    child = fork();
    if (child < 0)
        bail("fork: %s", strerror(errno));
    if (child == 0) {
        found = f();
        _exit(write(pipes[1], &found, sizeof found) != sizeof found);
    }
    close(pipes[1]);
    if (read(pipes[0], &found, sizeof found) != sizeof found)
        found = 0;
    close(pipes[0]);
    if (waitpid(child, &status, 0) != child)
        bail("waitpid: %s", strerror(errno));
    if (WIFSIGNALED(status))
        note("%s: ended by signal %d", name, WTERMSIG(status));
    for (int i = 0; i < 4; i++)
        ok(found >> i & 1, "%s: %s", name, promises[i]);
}

int main(void)
{
    static const struct {
        const char *name;
        body f;
        const char *promises[4];
    } cases[] = {
        { "unreadable at the source", at_the_source,
          { "the source's error is BRANT_E_MEMORY", "the destination is told",
            "the message names block and offset", "the guest runs on" } },
        { "read-only at the destination", at_the_destination,
          { "the source is told", "the destination's error is BRANT_E_MEMORY",
            "the source's message names block and offset", "the guest runs on" } },
        { "declared poisoned", declared,
          { "the migration goes on", "the guest moves", "the page is zero, its neighbour is not",
            "it is counted" } },
        { "taken back", taken_back,
          { "the migration succeeds", "the page arrives", "nothing is counted",
            "what is no range or no block is refused" } },
        { "a save that uses 7.5 MiB of stack", deep,
          { "the source succeeds", "the destination succeeds", "the guest moves",
            "and nothing is ended" } },
    };
    int count = sizeof cases / sizeof *cases;

    plan(4 * count);
    for (int i = 0; i < count; i++)
        try_alone(cases[i].name, cases[i].f, cases[i].promises);
    return done();
}
