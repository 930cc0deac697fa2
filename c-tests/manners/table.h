/*
 * A row of the table for each function, and the arguments of a call: the types of the table that
 * scripts/gen-api-test writes. Also how a failure is reported.
 */
#ifndef MANNERS_TABLE_H
#define MANNERS_TABLE_H

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

enum { PAGE = 4096, BLOCK = 64 * PAGE, ARGS = 8, FIELDS = 12, RUNS = 8 };
/* Promised results of a call, besides codes and numbers. */
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

/* The arguments of one call. */
struct args {
    brant_ram_block brant_ram_block;
    brant_recorded brant_recorded;
    brant_slot brant_slot;
    brant_ops brant_ops;
    brant_device brant_device;
    brant_params brant_params;
    brant_policy brant_policy;
    brant_tracker_config brant_tracker_config;
    brant_kvm_log brant_kvm_log;
    brant_kvm_info brant_kvm_info;
    brant_kvm_costs brant_kvm_costs;
    brant_kvm_workload brant_kvm_workload;
    brant_vhost_log brant_vhost_log;
    brant_vfio_log brant_vfio_log;
    brant_vfio_device brant_vfio_device;
    brant_vhost_user_device brant_vhost_user_device;
    brant_iommufd_log brant_iommufd_log;
    brant_state_blob brant_state_blob;
    brant_stats brant_stats;
    brant_sync brant_sync;
    brant_tracker_stats brant_tracker_stats;
    brant_consumer_stats brant_consumer_stats;
    brant_lane_stats brant_lane_stats;
    brant_rate_params brant_rate_params;
    brant_dirty_rate brant_dirty_rate;
    brant_forecast brant_forecast;
    brant_gate_config brant_gate_config;
    brant_image_save_params brant_image_save_params;
    brant_image_restore_params brant_image_restore_params;
    brant_image_merge_params brant_image_merge_params;
    brant_image_stats brant_image_stats;
    brant_run runs[RUNS];
    brant_missing_run missing[RUNS];
    brant_blocked blocked[RUNS];
    brant_uffd_region region;
    char buffer[64];
    uint64_t words[4];
    uint64_t outs[ARGS];
    uint64_t timeout_ms;
    /* A descriptor that is lent for the call, or a socket that the call hands over to brant. */
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
    /* The descriptor is one of a virtual machine. */
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
    brant_image_save *save;
    brant_image_restore *restore;
    brant_image_chain *chain;
    brant_image_merging *merging;
    brant_bitmap *bitmap, *other_bitmap;
    brant_blocker *blocker;
    brant_gate *gate;
    brant_gate_vcpu *gate_vcpu;
    brant_gate_device *gate_device;
    brant_error *error;
    brant_reason *reason;
    brant_saver *saver;
    struct side_of sides[2];
    bool at_destination, threads;
    /* Called once inside an operation, at either side. */
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

/* Notes what is tried now, for a test that hangs or crashes. */
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

/* Whether a socket that was handed over is still open. A thread that an earlier call started may
 * have opened another descriptor with its number by now. */
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

#endif
