/*
 * Twists the arguments of every function of the C interface, one at a time, and
 * holds the function to what the header promises: a code, an error object that
 * goes with it, nothing written to where results go, no crash, no deadlock, no
 * descriptor or thread left over. Which functions there are, and what is valid and
 * refused of each argument, is a table that scripts/gen-api-test writes from the
 * header; included by what it writes, and by nothing else. Needs no KVM.
 *
 * time limit: 180 s
 */
#ifndef MANNERS_H
#define MANNERS_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <linux/kvm.h>

#include "tap.h"

enum { PAGE = 4096, BLOCK = 64 * PAGE, ARGS = 8, FIELDS = 4, RUNS = 8 };
/* What a call may be promised to return, beside codes and numbers. */
#define FINE (INT64_MAX - 1)       /* as if nothing were twisted */
#define DESCRIPTOR (INT64_MAX - 2) /* an open one */
#define WITH_KVM (INT64_MAX - 3)   /* 0 where there is KVM */
#define WITH_RINGS (INT64_MAX - 4) /* 0 where KVM has dirty rings */
#define ANYTHING (INT64_MAX - 5)   /* 0 or a code */
#define UNTOUCHED 0x5a5a5a5a5a5a5a5aull

enum state { FRESH, TRACKING, RUNNING, COMPLETED, CANCELLED, FAILED, UNANSWERED, STATES };
static const char *const states[] = { "fresh", "tracking", "running", "completed", "cancelled",
                                      "failed", "unanswered" };
enum kind { NONE, HANDLE, OUT_HANDLE, OUT_NUMBER, POINTER, TEXT, GIVEN, FILLED, NUMBER, ENUM, FIXED };

struct world;

/* What one call is made with. */
struct args {
    brant_ram_block brant_ram_block;
    brant_slot brant_slot;
    brant_ops brant_ops;
    brant_params brant_params;
    brant_tracker_config brant_tracker_config;
    brant_kvm_log brant_kvm_log;
    brant_kvm_info brant_kvm_info;
    brant_kvm_costs brant_kvm_costs;
    brant_kvm_workload brant_kvm_workload;
    brant_vhost_log brant_vhost_log;
    brant_vfio_log brant_vfio_log;
    brant_iommufd_log brant_iommufd_log;
    brant_stats brant_stats;
    brant_sync brant_sync;
    brant_tracker_stats brant_tracker_stats;
    brant_consumer_stats brant_consumer_stats;
    brant_rate_params brant_rate_params;
    brant_dirty_rate brant_dirty_rate;
    brant_run runs[RUNS];
    char buffer[64];
    uint64_t words[4];
    uint64_t outs[ARGS];
    uint64_t timeout_ms;
    /* A descriptor that is lent for the call, or a socket that becomes brant's by it. */
    int fd;
    bool lent, handed;
    ino_t socket;
    /* The twists: arguments that are NULL, or something else. */
    unsigned null;
    const void *instead[ARGS];
    unsigned numbered;
    uint64_t number;
};

#define P(a, i, valid)                                                                            \
    ((a)->null >> (i) & 1 ? NULL                                                                  \
                          : (a)->instead[i] ? (__typeof__(1 ? (valid) : NULL))(uintptr_t)(a)->instead[i] \
                                            : (valid))
#define N(a, i, valid) ((a)->numbered >> (i) & 1 ? (__typeof__(valid))(a)->number : (valid))
#define GUEST(w) (*((w)->at_destination ? &(w)->there : &(w)->guest))

struct argument {
    const char *name;
    enum kind kind;
    int64_t null, wrong;
    size_t size, offset, fd;
    struct { const char *name; size_t offset; } fields[FIELDS];
    /* That descriptor is of a virtual machine. */
    bool machine;
};

struct row {
    const char *name;
    int64_t (*call)(struct world *, struct args *, brant_error **);
    void (*unmake)(void *);
    void (*gone)(struct world *);
    bool has_error, any_thread, inside;
    int64_t good, callback;
    enum side own;
    enum state state;
    struct { bool known; int64_t code; } states[STATES];
    struct argument args[ARGS];
};
extern const struct row rows[FUNCTIONS];

struct side_of { struct world *w; bool destination; };

struct world {
    brant_guest *guest, *there;
    brant_tracker *tracker;
    brant_consumer *consumer;
    brant_rate *rate;
    brant_outgoing *outgoing;
    brant_incoming *incoming;
    brant_bitmap *bitmap, *other_bitmap;
    brant_blocker *blocker;
    brant_error *error;
    brant_reason *reason;
    brant_saver *saver;
    struct side_of sides[2];
    bool at_destination, threads;
    /* What is done once inside an operation, at which side. */
    void (*inside)(struct world *, void *);
    void *inside_arg;
    enum operation operation;
    enum side side;
    bool fail_release, fail_run;
    atomic_int begun;
    sem_t connected, called;
    int peers[2];
};

static char *memory[2], *more, *guard;
static int more_fd, kvm_fd = -1;
static char current[200];
static char problem[400];
static unsigned seconds = 10;

/* Says what is tried now, for whoever finds it hanging or crashed. */
__attribute__((format(printf, 1, 2))) static void trying(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(current, sizeof current, format, args);
    va_end(args);
    alarm(seconds);
}

static void last_words(int signal)
{
    const char *how = signal == SIGALRM ? "Bail out! it hangs: " : "Bail out! it crashed: ";

    if (write(1, how, strlen(how)) + write(1, current, strlen(current)) + write(1, "\n", 1) < 0)
        _exit(254);
    _exit(255);
}

__attribute__((format(printf, 1, 2))) static void wrong(const char *format, ...)
{
    va_list args;
    char what[200];

    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    note("%s: %s", current, what);
    problem[0] = 1;
}

static bool nothing_wrong(void)
{
    bool good = !problem[0];

    problem[0] = 0;
    return good;
}

static void must(int32_t code, const char *what)
{
    if (code)
        bail("%s: %s: %s", current, what, brant_error_name(code));
}
#define MUST(call) must(call, #call)

static bool is_open(int fd)
{
    return fcntl(fd, F_GETFD) >= 0;
}

/* Whether a socket that was handed over is still open: a thread that an earlier call started may
 * by now have opened another descriptor with its number. */
static bool left_open(const struct args *a)
{
    struct stat now;

    return fstat(a->fd, &now) == 0 && S_ISSOCK(now.st_mode) && now.st_ino == a->socket;
}

static int open_descriptors(void)
{
    int n = 0;

    for (int fd = 0; fd < 256; fd++)
        n += is_open(fd);
    return n;
}

/* The threads of this process, brant's and ours. */
static int threads(void)
{
    char text[4096];
    int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
    ssize_t n = read(fd, text, sizeof text - 1);
    const char *at;

    close(fd);
    text[n > 0 ? n : 0] = 0;
    at = strstr(text, "\nThreads:");
    return at ? atoi(at + 9) : -1;
}

/* ---- arguments ---- */

static int lend(struct args *a)
{
    a->lent = true;
    return a->fd = dup(more_fd);
}

/* A connection, whose other end is gone by now. */
static int hand_over(struct args *a)
{
    struct stat made;
    int pair[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) || fstat(pair[0], &made))
        bail("socketpair: %s", strerror(errno));
    close(pair[1]);
    a->handed = true;
    a->socket = made.st_ino;
    return a->fd = pair[0];
}

/* A virtual machine, where there are any. */
static int lend_vm(struct args *a)
{
    if (kvm_fd < 0)
        return lend(a);
    a->lent = true;
    return a->fd = ioctl(kvm_fd, KVM_CREATE_VM, 0);
}

static int32_t no_log(void *opaque, const uint32_t *slots, size_t count, brant_reason *reason)
{
    (void)opaque, (void)slots, (void)count, (void)reason;
    return 0;
}

static int32_t no_vhost_log(void *opaque, const brant_vhost_memory *log, brant_reason *reason)
{
    (void)opaque, (void)log, (void)reason;
    return 0;
}

static int32_t no_vhost_off(void *opaque, brant_reason *reason)
{
    (void)opaque, (void)reason;
    return 0;
}

static const brant_ops all_operations = { .size = sizeof all_operations, ALL_OPERATIONS
                                          .log_on = no_log, .log_off = no_log };

static void args_fill(struct args *a)
{
    memset(a, 0, sizeof *a);
    a->fd = -1;
    a->timeout_ms = 1;
    for (int i = 0; i < ARGS; i++)
        a->outs[i] = UNTOUCHED;
    for (int i = 0; i < 4; i++)
        a->words[i] = 0x11ull << i;
    a->brant_ram_block = (brant_ram_block){ .size = sizeof a->brant_ram_block, .name = "more",
                                            .host = more, .length = BLOCK, .fd = -1,
                                            .flags = BRANT_RAM_FILE };
    a->brant_slot = (brant_slot){ .size = sizeof a->brant_slot, .block = "ram", .length = BLOCK,
                                  .guest_address = 1ull << 40, .slot = BRANT_NO_SLOT };
    a->brant_ops = all_operations;
    a->brant_params = (brant_params){ .size = sizeof a->brant_params };
    a->brant_tracker_config = (brant_tracker_config){ .size = sizeof a->brant_tracker_config };
    a->brant_kvm_log = (brant_kvm_log){ .size = sizeof a->brant_kvm_log, .vm_fd = -1,
                                .switched_by = BRANT_SWITCHED_BY_VMM };
    a->brant_kvm_info.size = sizeof a->brant_kvm_info;
    a->brant_kvm_costs.size = sizeof a->brant_kvm_costs;
    a->brant_kvm_workload = (brant_kvm_workload){ .size = sizeof a->brant_kvm_workload,
                                                  .limit_ms = 20 };
    a->brant_vhost_log = (brant_vhost_log){ .size = sizeof a->brant_vhost_log, .log_on = no_vhost_log,
                                    .log_off = no_vhost_off };
    a->brant_vfio_log = (brant_vfio_log){ .size = sizeof a->brant_vfio_log, .fd = -1 };
    a->brant_iommufd_log = (brant_iommufd_log){ .size = sizeof a->brant_iommufd_log, .fd = -1 };
    a->brant_stats.size = sizeof a->brant_stats;
    a->brant_sync.size = sizeof a->brant_sync;
    a->brant_tracker_stats.size = sizeof a->brant_tracker_stats;
    a->brant_consumer_stats.size = sizeof a->brant_consumer_stats;
    a->brant_rate_params.size = sizeof a->brant_rate_params;
    a->brant_dirty_rate.size = sizeof a->brant_dirty_rate;
}

/* A structure with another size, at the very end of what may be read. */
static void *resized(const struct argument *arg, const void *valid, size_t size, char tail)
{
    size_t there = size < sizeof(size_t) ? sizeof(size_t) : size;
    char *at = guard + PAGE - there;
    size_t known = there < arg->size ? there : arg->size;

    memset(at, tail, there);
    memcpy(at, valid, known);
    memcpy(at, &size, sizeof size);
    return at;
}

/* A structure with a descriptor in it gets one. */
static void args_lend(const struct row *row, struct args *a)
{
    for (int i = 0; i < ARGS; i++) {
        const struct argument *arg = &row->args[i];
        char *at = a->instead[i] ? (char *)(uintptr_t)a->instead[i] : (char *)a + arg->offset;
        size_t size;

        if (arg->kind != GIVEN || !arg->fd || a->null >> i & 1)
            continue;
        memcpy(&size, at, sizeof size);
        /* What is no structure has none. */
        if (size < arg->fd + sizeof a->fd || size == SIZE_MAX)
            continue;
        if (arg->machine)
            lend_vm(a);
        else
            lend(a);
        memcpy(at + arg->fd, &a->fd, sizeof a->fd);
    }
}

/* ---- one call, and what is promised of each ---- */

static void call(struct world *w, const struct row *row, struct args *a, bool with_error,
                 int64_t expected)
{
    brant_error *e = (brant_error *)(uintptr_t)UNTOUCHED;
    struct args before;
    int64_t got;

    args_lend(row, a);
    before = *a;
    got = row->call(w, a, with_error ? &e : NULL);
    if (expected == FINE)
        expected = row->good;
    if (expected == WITH_KVM)
        expected = kvm_fd >= 0 ? 0 : ANYTHING;
    if (expected == WITH_RINGS)
        expected = kvm_fd >= 0 && ioctl(kvm_fd, KVM_CHECK_EXTENSION, 223) > 0 ? 0 : ANYTHING;
    if (expected == DESCRIPTOR) {
        if (got < 0 || !is_open((int)got))
            wrong("no descriptor: %lld", (long long)got);
    } else if (expected != ANYTHING && got != expected) {
        wrong("returned %lld, not %lld", (long long)got, (long long)expected);
    }
    if (!row->has_error) {
        if (got == BRANT_E_INTERNAL)
            wrong("a defect: it panicked");
    } else {
        const char *name = brant_error_name((int32_t)got);

        if (got > 0 || got == BRANT_E_INTERNAL || strcmp(name, "unknown error") == 0)
            wrong("returned %lld%s%s", (long long)got, with_error && got ? ": " : "",
                  with_error && got ? brant_error_message(e) : "");
        if (with_error && got == 0 && e != NULL)
            wrong("succeeded, and the error was not set to NULL");
        if (with_error && got != 0 && (uintptr_t)e == UNTOUCHED)
            wrong("failed, and the error was not set");
        else if (with_error && got != 0) {
            if (brant_error_code(e) != got || brant_error_message(e)[0] == 0)
                wrong("the error says %d (%s), not %lld", brant_error_code(e),
                      brant_error_message(e), (long long)got);
            brant_error_free(e);
        }
        if (a->handed && !w->threads && got != 0 && left_open(a))
            wrong("failed, and left the socket open that was handed over");
    }
    /* What brant keeps of it is counted when the world ends. */
    if (a->lent && close(a->fd))
        wrong("closed the descriptor that was lent");
    for (int i = 0; i < ARGS; i++) {
        const struct argument *arg = &row->args[i];

        if (arg->kind == OUT_HANDLE && a->outs[i] != UNTOUCHED && a->outs[i] != 0) {
            if (got != 0)
                wrong("failed, and wrote to %s", arg->name);
            else if (row->unmake)
                row->unmake((void *)(uintptr_t)a->outs[i]);
        }
        if (arg->kind == OUT_NUMBER && row->has_error && got != 0 && a->outs[i] != UNTOUCHED)
            wrong("failed, and wrote to %s", arg->name);
        if (arg->kind == FILLED && got != 0 &&
            memcmp((char *)a + arg->offset, (char *)&before + arg->offset, arg->size))
            wrong("failed, and wrote to %s", arg->name);
    }
    if (row->gone && got == 0 && !(a->null & 1))
        row->gone(w);
}

/* ---- a source, a destination, and the rest ---- */

static int32_t operation(void *opaque, enum operation op, brant_saver *saver, brant_reason *reason)
{
    struct side_of *s = opaque;
    struct world *w = s->w;

    if (w->inside && w->operation == op && w->side == (s->destination ? DESTINATION : SOURCE) &&
        atomic_fetch_add(&w->begun, 1) == 0) {
        /* Not before both were started: what is done here may free them. */
        sem_wait(&w->connected);
        w->reason = reason;
        w->saver = saver;
        w->at_destination = s->destination;
        w->inside(w, w->inside_arg);
        w->at_destination = false;
        w->reason = NULL;
        w->saver = NULL;
        sem_post(&w->called);
    }
    if (saver)
        brant_saver_put(saver, "piece", 0, 1, "x", 1, NULL);
    if (op == OP_release && w->fail_release)
        return -1;
    if (op == OP_run && w->fail_run)
        return -1;
    return 0;
}

static void guest_make(brant_guest **guest, char *host, struct side_of *side)
{
    brant_ram_block block = { .size = sizeof block, .name = "ram", .host = host, .length = BLOCK,
                              .fd = -1 };
    brant_slot slot = { .size = sizeof slot, .block = "ram", .length = BLOCK, .slot = BRANT_NO_SLOT };

    MUST(brant_guest_new(&all_operations, side, guest, NULL));
    MUST(brant_guest_add_block(*guest, &block, NULL, NULL));
    MUST(brant_guest_add_slot(*guest, &slot, NULL));
}

static int descriptors_before, threads_before;

/* The state that it is to be in; FRESH: it is to enter none. */
static void world_begin(struct world *w, enum state state)
{
    /* What stays unanswered because a callback waits for it must not take long (a second comes
     * on top); what is to be handed over may take as long as it does. */
    bool handed_over = state == COMPLETED || state == UNANSWERED;
    brant_params params = { .size = sizeof params,
                            .handover_timeout_ms = handed_over ? 0 : 100,
                            .switchover_timeout_ms = patience(5000) };
    brant_rate_params rate = { .size = sizeof rate, .period_ms = 10 };

    descriptors_before = open_descriptors();
    threads_before = threads();
    memset(w, 0, sizeof *w);
    sem_init(&w->connected, 0, 0);
    sem_init(&w->called, 0, 0);
    w->peers[0] = w->peers[1] = -1;
    for (int i = 0; i < 2; i++)
        w->sides[i] = (struct side_of){ w, i };
    guest_make(&w->guest, memory[0], &w->sides[0]);
    guest_make(&w->there, memory[1], &w->sides[1]);
    MUST(brant_tracker_new(w->guest, NULL, &w->tracker, NULL));
    /* One that is done: what is tracked is a matter of the state. */
    MUST(brant_consumer_new(w->tracker, BRANT_START_CLEAN, &w->consumer, NULL));
    MUST(brant_consumer_stop(w->consumer, NULL));
    MUST(brant_rate_new(w->tracker, &rate, &w->rate, NULL));
    MUST(brant_outgoing_new(w->tracker, &params, &w->outgoing, NULL));
    MUST(brant_incoming_new(w->there, &params, &w->incoming, NULL));
    MUST(brant_bitmap_new(4096, &w->bitmap, NULL));
    MUST(brant_bitmap_new(4096, &w->other_bitmap, NULL));
    MUST(brant_bitmap_set(w->bitmap, 5, 2, NULL, NULL));
    MUST(brant_blocker_new(w->guest, "for now", &w->blocker, NULL));
    brant_blocker_free(w->blocker);
    /* A blocker of another guest than those that migrate. */
    w->blocker = NULL;
    brant_tracker_start(NULL, 0, &w->error);
}

static void connect_both(struct world *w)
{
    int pair[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
        bail("socketpair: %s", strerror(errno));
    MUST(brant_incoming_start_fd(w->incoming, pair[1], NULL));
    MUST(brant_outgoing_start_fd(w->outgoing, pair[0], NULL));
    sem_post(&w->connected);
}

static void world_enter(struct world *w, enum state state)
{
    int one[2], two[2];

    switch (state) {
    case TRACKING:
        MUST(brant_tracker_start(w->tracker, BRANT_START_CLEAN, NULL));
        brant_consumer_free(w->consumer);
        MUST(brant_consumer_new(w->tracker, BRANT_START_CLEAN, &w->consumer, NULL));
        brant_tracker_mark(w->tracker, 0, BLOCK);
        break;
    case RUNNING: /* with peers that say nothing */
    case FAILED:  /* with peers that are gone */
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, one) ||
            socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, two))
            bail("socketpair: %s", strerror(errno));
        w->peers[0] = one[1];
        w->peers[1] = two[1];
        if (state == FAILED)
            for (int i = 0; i < 2; i++) {
                close(w->peers[i]);
                w->peers[i] = -1;
            }
        MUST(brant_outgoing_start_fd(w->outgoing, one[0], NULL));
        MUST(brant_incoming_start_fd(w->incoming, two[0], NULL));
        if (state == FAILED &&
            (brant_outgoing_wait(w->outgoing, patience(9000), NULL) == 0 ||
             brant_incoming_wait(w->incoming, patience(9000), NULL) == 0))
            bail("%s: a migration to nobody succeeded", current);
        break;
    case COMPLETED:
        connect_both(w);
        MUST(brant_outgoing_wait(w->outgoing, BRANT_NO_LIMIT, NULL));
        MUST(brant_incoming_wait(w->incoming, BRANT_NO_LIMIT, NULL));
        break;
    case CANCELLED:
        MUST(brant_outgoing_cancel(w->outgoing, NULL));
        MUST(brant_incoming_cancel(w->incoming, NULL));
        break;
    case UNANSWERED:
        w->fail_run = true;
        connect_both(w);
        if (brant_outgoing_wait(w->outgoing, BRANT_NO_LIMIT, NULL) != BRANT_E_UNANSWERED)
            bail("%s: answered all the same", current);
        brant_incoming_wait(w->incoming, BRANT_NO_LIMIT, NULL);
        break;
    default:
        break;
    }
}

static void world_end(struct world *w)
{
    int left;

    if (brant_outgoing_free(w->outgoing) || brant_incoming_free(w->incoming))
        wrong("a migration cannot be freed");
    brant_blocker_free(w->blocker);
    brant_rate_free(w->rate);
    brant_tracker_free(w->tracker);
    brant_consumer_free(w->consumer);
    brant_guest_free(w->guest);
    brant_guest_free(w->there);
    brant_bitmap_free(w->bitmap);
    brant_bitmap_free(w->other_bitmap);
    brant_error_free(w->error);
    for (int i = 0; i < 2; i++)
        if (w->peers[i] >= 0)
            close(w->peers[i]);
    sem_destroy(&w->connected);
    sem_destroy(&w->called);
    left = open_descriptors() - descriptors_before;
    if (left)
        wrong("%d descriptors are left over", left);
    /* A thread that was waited for is still counted until the kernel is done with it. */
    for (unsigned ms = patience(10000); (left = threads() - threads_before) > 0 && ms > 0; ms--)
        nanosleep(&(struct timespec){ 0, 1000000 }, NULL);
    if (left)
        wrong("%d threads are left over", left);
}

/* ---- calls with a twist, each in a world of its own ---- */

struct twisted { const struct row *row; struct args *a; bool with_error; int64_t expected; };

static void call_twisted(struct world *w, void *arg)
{
    struct twisted *t = arg;

    call(w, t->row, t->a, t->with_error, t->expected);
}

static void blocked(struct world *w)
{
    MUST(brant_blocker_new(w->there, "for now", &w->blocker, NULL));
}

static void twist(const struct row *row, struct args *a, int64_t expected)
{
    for (int with_error = 0; with_error < 2; with_error++) {
        struct args copy = *a;
        struct twisted t = { row, &copy, with_error, expected };
        struct world w;

        world_begin(&w, row->inside ? FRESH : row->state);
        if (row->gone)
            blocked(&w);
        if (row->inside) {
            w.inside = call_twisted;
            w.inside_arg = &t;
            w.operation = OP_save;
            w.side = SOURCE;
            connect_both(&w);
            sem_wait(&w.called);
        } else {
            world_enter(&w, row->state);
            call_twisted(&w, &t);
        }
        world_end(&w);
        if (!row->has_error)
            break;
    }
}

static bool points(const struct argument *arg)
{
    return arg->kind >= HANDLE && arg->kind <= FILLED;
}

static void try_null(const struct row *row)
{
    struct args a;
    int64_t all = ANYTHING;

    args_fill(&a);
    trying("%s as it should be", row->name);
    twist(row, &a, FINE);
    for (int i = 0; i < ARGS; i++) {
        if (!points(&row->args[i]))
            continue;
        args_fill(&a);
        a.null = 1u << i;
        trying("%s with NULL for %s", row->name, row->args[i].name);
        twist(row, &a, row->args[i].null);
        if (row->args[i].null == BRANT_E_INVALID)
            all = BRANT_E_INVALID;
    }
    args_fill(&a);
    a.null = ~0u;
    trying("%s with NULL for everything", row->name);
    twist(row, &a, all);
    ok(nothing_wrong(), "%s: NULL for each argument, and for all", row->name);
}

static void try_sizes(const struct row *row, int i)
{
    const struct argument *arg = &row->args[i];
    const struct { size_t size; char tail; int64_t given, filled; } sizes[] = {
        { 0, 0, BRANT_E_INVALID, BRANT_E_INVALID },
        { 7, 0, BRANT_E_INVALID, BRANT_E_INVALID },
        { 8, 0, ANYTHING, FINE },
        { arg->size / 2, 0, ANYTHING, FINE },
        { arg->size, 0, FINE, FINE },
        { arg->size + 16, 0, FINE, FINE },
        { arg->size + 16, 1, BRANT_E_INVALID, FINE },
        { SIZE_MAX, 0, BRANT_E_INVALID, BRANT_E_INVALID },
    };
    struct args a;

    for (size_t n = 0; n < sizeof sizes / sizeof sizes[0]; n++) {
        size_t size = sizes[n].size;

        args_fill(&a);
        a.instead[i] = resized(arg, (char *)&a + arg->offset, size > PAGE ? arg->size : size,
                               sizes[n].tail);
        if (size > PAGE)
            memcpy((void *)(uintptr_t)a.instead[i], &size, sizeof size);
        trying("%s with %s of size %zu%s", row->name, arg->name, size,
               sizes[n].tail ? " and something in its tail" : "");
        twist(row, &a, arg->kind == GIVEN ? sizes[n].given : sizes[n].filled);
        if (arg->kind == FILLED && size > arg->size && size < PAGE)
            for (size_t k = arg->size; k < size; k++)
                if (((const char *)a.instead[i])[k])
                    wrong("what it does not know is not 0");
    }
}

static void try_values(const struct row *row)
{
    static char longest[100001];
    struct args a;

    memset(longest, 'x', sizeof longest - 1);
    for (int i = 0; i < ARGS; i++) {
        const struct argument *arg = &row->args[i];

        if (arg->kind == GIVEN || arg->kind == FILLED)
            try_sizes(row, i);
        for (int f = 0; f < FIELDS && arg->fields[f].name; f++) {
            const uint32_t none = UINT32_MAX;

            args_fill(&a);
            memcpy((char *)&a + arg->offset + arg->fields[f].offset, &none, sizeof none);
            trying("%s with all bits set in %s.%s", row->name, arg->name, arg->fields[f].name);
            twist(row, &a, BRANT_E_INVALID);
        }
        if (arg->kind == ENUM || arg->kind == NUMBER)
            for (int n = 0; n < 2; n++) {
                args_fill(&a);
                a.numbered = 1u << i;
                a.number = n ? UINT64_MAX : 0;
                trying("%s with %s for %s", row->name, n ? "all bits set" : "0", arg->name);
                twist(row, &a, arg->kind == ENUM && n ? BRANT_E_INVALID : ANYTHING);
            }
        if (arg->kind == TEXT) {
            const char *texts[] = { "no \xff UTF-8", "", longest };

            for (int n = 0; n < 3; n++) {
                args_fill(&a);
                a.instead[i] = texts[n];
                trying("%s with text %d for %s", row->name, n, arg->name);
                twist(row, &a, n == 0 ? arg->wrong : ANYTHING);
            }
        }
    }
    ok(nothing_wrong(), "%s: other sizes, enumerations, numbers and text", row->name);
}

static void try_states(const struct row *row)
{
    for (enum state state = 0; state < STATES; state++) {
        struct world w;
        struct args a;
        int64_t expected = row->states[state].known ? row->states[state].code
                           : state == row->state && !row->inside ? FINE : ANYTHING;

        trying("%s when %s", row->name, states[state]);
        args_fill(&a);
        world_begin(&w, state);
        world_enter(&w, state);
        if (row->gone)
            blocked(&w);
        call(&w, row, &a, true, expected);
        /* And what it left of everything is still of use. */
        for (int i = 0; i < FUNCTIONS; i++)
            if (!rows[i].gone && rows[i].any_thread) {
                args_fill(&a);
                call(&w, &rows[i], &a, true, ANYTHING);
            }
        world_end(&w);
    }
    ok(nothing_wrong(), "%s: in every state", row->name);
}

static void try_callbacks(const struct row *row)
{
    for (enum operation op = 0; op < OPERATIONS; op++)
        for (enum side side = SOURCE; side <= DESTINATION; side++) {
            struct world w;
            struct args a;
            struct twisted t = { row, &a, true, ANYTHING };

            if (operations[op].side != side && operations[op].side != BOTH)
                continue;
            args_fill(&a);
            if (row->own == side && row->callback) {
                t.expected = row->callback;
                a.timeout_ms = BRANT_NO_LIMIT;
            }
            trying("%s inside %s of the %s", row->name, operations[op].name,
                   side == SOURCE ? "source" : "destination");
            world_begin(&w, FRESH);
            w.inside = call_twisted;
            w.inside_arg = &t;
            w.operation = op;
            w.side = side;
            w.fail_release = op == OP_resume;
            connect_both(&w);
            while (sem_wait(&w.called))
                ;
            world_end(&w);
        }
    ok(nothing_wrong(), "%s: inside every operation", row->name);
}

/* ---- from several threads ---- */

struct hammer {
    struct world *w;
    /* Called in turn; NULL: all that any thread may call, at random. */
    const struct row *const *some;
    atomic_bool *stop;
    atomic_ullong calls;
    uint64_t seed;
};

static void *hammer_run(void *arg)
{
    struct hammer *h = arg;
    struct args a;

    while (!atomic_load(h->stop)) {
        const struct row *row;

        if (h->some) {
            size_t n = 0;

            while (h->some[n])
                n++;
            row = h->some[h->calls % n];
        } else {
            h->seed = h->seed * 6364136223846793005ull + 1442695040888963407ull;
            row = &rows[(h->seed >> 33) % FUNCTIONS];
        }
        if (!row->any_thread) {
            h->seed++;
            continue;
        }
        args_fill(&a);
        call(h->w, row, &a, true, ANYTHING);
        h->calls++;
    }
    return NULL;
}

static void hammered(enum state state, const struct row *const *one, const struct row *const *two,
                     unsigned ms)
{
    struct timespec t = { 0, (long)ms * 1000000 };
    atomic_bool stop = false;
    struct world w;
    struct hammer h[2] = { { &w, one, &stop, 0, 1 }, { &w, two, &stop, 0, 99 } };
    pthread_t ids[2];

    world_begin(&w, state);
    world_enter(&w, state);
    w.threads = true;
    for (int i = 0; i < 2; i++)
        if (pthread_create(&ids[i], NULL, hammer_run, &h[i]))
            bail("no thread");
    /* On a busy machine a thread may not have begun by then. */
    do
        nanosleep(&t, NULL);
    while (h[0].calls == 0 || h[1].calls == 0);
    atomic_store(&stop, true);
    for (int i = 0; i < 2; i++)
        pthread_join(ids[i], NULL);
    world_end(&w);
}

static void try_threads(const struct row *row)
{
    const struct row *const one[] = { row, NULL };

    if (!row->any_thread)
        return;
    for (enum state state = FRESH; state <= RUNNING; state++) {
        trying("%s beside all others, %s", row->name, states[state]);
        hammered(state, one, NULL, 10);
    }
    ok(nothing_wrong(), "%s: beside all others on another thread", row->name);
}

static const struct row *named(const char *name)
{
    for (int i = 0; i < FUNCTIONS; i++)
        if (strcmp(rows[i].name, name) == 0)
            return &rows[i];
    bail("there is no %s", name);
}

/* The pairs that a VMM's threads are most often in, for longer. */
static void try_pairs(void)
{
    const struct row *const marks[] = { named("brant_tracker_mark"),
                                        named("brant_tracker_mark_block"), NULL };
    const struct row *const syncs[] = { named("brant_tracker_sync"), named("brant_tracker_take"),
                                        named("brant_tracker_put_back"),
                                        named("brant_tracker_get_stats"), NULL };
    const struct row *const figures[] = { named("brant_outgoing_get_stats"),
                                          named("brant_outgoing_get_stats_json"),
                                          named("brant_incoming_get_stats"), NULL };
    const struct row *const ends[] = { named("brant_outgoing_wait"), named("brant_outgoing_cancel"),
                                       named("brant_incoming_wait"), named("brant_incoming_cancel"),
                                       NULL };
    const struct row *const blocks[] = { named("brant_guest_add_block"),
                                         named("brant_guest_remove_block"),
                                         named("brant_guest_add_slot"),
                                         named("brant_guest_remove_slot"), NULL };

    trying("marks beside syncs");
    hammered(TRACKING, marks, syncs, 200);
    ok(nothing_wrong(), "marks beside syncs, takes and put-backs");
    trying("figures beside cancels and waits");
    for (int i = 0; i < 20; i++)
        hammered(RUNNING, figures, ends, 10);
    ok(nothing_wrong(), "figures beside cancels and waits");
    trying("blocks that come and go beside marks");
    for (int i = 0; i < 20; i++)
        hammered(TRACKING, blocks, marks, 10);
    ok(nothing_wrong(), "blocks and slots that come and go beside marks");
}

static char *mapped(int fd, size_t bytes)
{
    char *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                    fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, fd, 0);

    if (at == MAP_FAILED)
        bail("mmap: %s", strerror(errno));
    return at;
}

int main(int argc, char **argv)
{
    const char *only = argc > 1 ? argv[1] : NULL;
    int any = 0, chosen = 0;

    for (int i = 0; i < FUNCTIONS; i++)
        if (!only || strcmp(only, rows[i].name) == 0) {
            chosen++;
            any += rows[i].any_thread;
        }
    plan(chosen * 4 + any + (only ? 0 : 3));
    if (getenv("MANNERS_SECONDS"))
        seconds = (unsigned)atoi(getenv("MANNERS_SECONDS"));
    signal(SIGALRM, last_words);
#ifndef __SANITIZE_ADDRESS__
    signal(SIGSEGV, last_words);
    signal(SIGBUS, last_words);
    signal(SIGABRT, last_words);
#endif
    signal(SIGPIPE, SIG_DFL);
    memory[0] = mapped(-1, BLOCK);
    memory[1] = mapped(-1, BLOCK);
    memset(memory[0], 7, BLOCK / 2);
    more_fd = memfd_create("more", MFD_CLOEXEC);
    if (more_fd < 0 || ftruncate(more_fd, BLOCK))
        bail("memfd: %s", strerror(errno));
    more = mapped(more_fd, BLOCK);
    guard = mapped(-1, 2 * PAGE);
    mprotect(guard + PAGE, PAGE, PROT_NONE);
    kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    for (int i = 0; i < FUNCTIONS; i++) {
        if (only && strcmp(only, rows[i].name))
            continue;
        try_null(&rows[i]);
        try_values(&rows[i]);
        try_states(&rows[i]);
        try_callbacks(&rows[i]);
        try_threads(&rows[i]);
    }
    if (!only)
        try_pairs();
    return done();
}

#endif
