/*
 * Devices whose state is streamed: two of them, over two connections with a slow link between. What
 * used to be downtime goes while the guest runs. Memory is that of this process; no KVM.
 */
#define _GNU_SOURCE
#include <stdatomic.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>

#include <brant.h>

#include "tap.h"

enum { RAM = 1 << 20, DEVICES = 2, LANES = 2, MB = 1000000 };

#define MUST(call)                                                                             \
    do {                                                                                       \
        brant_error *e = NULL;                                                                 \
        int32_t code = (call);                                                                 \
        if (code)                                                                              \
            bail("line %d: %s: %s", __LINE__, #call, brant_error_message(e));                  \
    } while (0)

/* ---- the device: its state is a row of known bytes ---- */

struct device {
    const char *name;
    uint64_t running, stopped;       /* sizes of the parts */
    uint64_t given, given_running;   /* source */
    uint64_t loaded, loaded_running; /* destination */
    bool bad, runs;
    bool sticks; /* read_stopped returns after a cancel only */
    atomic_int stuck, cancelled;
    atomic_int begun, quiesced, stopped_times, resumed, ended, reset;
};

static unsigned char byte_at(uint64_t at)
{
    return (unsigned char)(at * 0x9e3779b97f4a7c15ull >> 32);
}

static int32_t begin(void *opaque, brant_reason *reason)
{
    struct device *d = opaque;

    (void)reason;
    d->begun++;
    return 0;
}

static int32_t left(void *opaque, brant_device_left *left, brant_reason *reason)
{
    struct device *d = opaque;

    (void)reason;
    left->running = d->running > d->given ? d->running - d->given : 0;
    left->initial = left->running;
    left->stopped = d->stopped;
    return 0;
}

static size_t give(struct device *d, unsigned char *to, size_t room, uint64_t end)
{
    size_t n = end > d->given ? (size_t)(end - d->given) : 0;

    if (n > room)
        n = room;
    for (size_t i = 0; i < n; i++)
        to[i] = byte_at(d->given + i);
    d->given += n;
    return n;
}

static int32_t read_running(void *opaque, void *buffer, size_t length, size_t *read,
                            brant_reason *reason)
{
    struct device *d = opaque;

    (void)reason;
    *read = give(d, buffer, length, d->running);
    d->given_running += *read;
    return 0;
}

static int32_t quiesce(void *opaque, brant_reason *reason)
{
    struct device *d = opaque;

    (void)reason;
    d->quiesced++;
    return 0;
}

static int32_t stop(void *opaque, brant_reason *reason)
{
    struct device *d = opaque;

    (void)reason;
    d->stopped_times++;
    d->runs = false;
    return 0;
}

static int32_t read_stopped(void *opaque, void *buffer, size_t length, size_t *read,
                            brant_reason *reason)
{
    struct device *d = opaque;

    if (d->sticks) {
        d->stuck = 1;
        while (!d->cancelled)
            usleep(1000);
        brant_reason_set(reason, "told to return");
        return -1;
    }
    *read = give(d, buffer, length, d->running + d->stopped);
    return 0;
}

static void cancel_device(void *opaque)
{
    struct device *d = opaque;

    d->cancelled++;
}

static int32_t resume(void *opaque, brant_reason *reason)
{
    struct device *d = opaque;

    (void)reason;
    d->resumed++;
    d->runs = true;
    return 0;
}

static void end(void *opaque)
{
    struct device *d = opaque;

    d->ended++;
}

static int32_t load(void *opaque, const void *data, size_t length, brant_reason *reason)
{
    struct device *d = opaque;

    (void)reason;
    for (size_t i = 0; i < length; i++)
        d->bad |= ((const unsigned char *)data)[i] != byte_at(d->loaded + i);
    d->loaded += length;
    return 0;
}

static int32_t load_running(void *opaque, const void *data, size_t length, brant_reason *reason)
{
    ((struct device *)opaque)->loaded_running += length;
    return load(opaque, data, length, reason);
}

static int32_t load_and_refuse(void *opaque, const void *data, size_t length, brant_reason *reason)
{
    (void)opaque, (void)data, (void)length;
    brant_reason_set(reason, "this one is full");
    return -1;
}

static int32_t run_device(void *opaque, brant_reason *reason)
{
    (void)reason;
    ((struct device *)opaque)->runs = true;
    return 0;
}

static void reset_device(void *opaque)
{
    ((struct device *)opaque)->reset++;
}

static brant_device described(struct device *d)
{
    return (brant_device){ .size = sizeof(brant_device), .name = d->name, .version = 2,
                           .opaque = d, .begin = begin, .left = left,
                           .read_running = read_running, .quiesce = quiesce, .stop = stop,
                           .read_stopped = read_stopped, .resume = resume, .end = end,
                           .load_running = load_running, .load_stopped = load, .run = run_device,
                           .reset = reset_device, .cancel = cancel_device };
}

/* ---- a guest ---- */

struct side {
    char *ram;
    brant_guest *guest;
    brant_tracker *tracker;
    struct device devices[DEVICES];
    atomic_int paused, resumed, ran;
};

static int32_t op_pause(void *opaque, brant_reason *reason)
{
    (void)reason;
    ((struct side *)opaque)->paused++;
    return 0;
}

static int32_t op_resume(void *opaque, brant_reason *reason)
{
    (void)reason;
    ((struct side *)opaque)->resumed++;
    return 0;
}

static int32_t op_run(void *opaque, brant_reason *reason)
{
    (void)reason;
    ((struct side *)opaque)->ran++;
    return 0;
}

static void side_begin(struct side *s)
{
    brant_ops ops = { .size = sizeof ops, .pause = op_pause, .resume = op_resume, .run = op_run };
    uint32_t block;

    s->ram = mmap(NULL, RAM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (s->ram == MAP_FAILED)
        bail("no memory");
    MUST(brant_guest_new(&ops, s, &s->guest, &e));
    MUST(brant_guest_add_block(s->guest, &(brant_ram_block){ .size = sizeof(brant_ram_block),
                                                             .name = "ram", .host = s->ram,
                                                             .length = RAM, .fd = -1 },
                               &block, &e));
    MUST(brant_tracker_new(s->guest, NULL, &s->tracker, &e));
}

static void side_end(struct side *s)
{
    brant_tracker_free(s->tracker);
    brant_guest_free(s->guest);
    munmap(s->ram, RAM);
}

/* ---- a slow link: all connections together carry `rate` bytes a second to the destination ---- */

static struct link {
    uint64_t rate;
    pthread_mutex_t lock;
    struct timespec free; /* when the link is free again */
} slow = { .lock = PTHREAD_MUTEX_INITIALIZER };

struct way {
    int from, to;
    bool limited;
    pthread_t thread;
};

static void *carry(void *arg)
{
    struct way *w = arg;
    static __thread char buffer[64 << 10];
    ssize_t n;

    while ((n = recv(w->from, buffer, sizeof buffer, 0)) > 0) {
        if (w->limited) {
            struct timespec now, until;
            uint64_t ns = (uint64_t)n * 1000000000 / slow.rate;

            pthread_mutex_lock(&slow.lock);
            clock_gettime(CLOCK_MONOTONIC, &now);
            if (now.tv_sec > slow.free.tv_sec ||
                (now.tv_sec == slow.free.tv_sec && now.tv_nsec > slow.free.tv_nsec))
                slow.free = now;
            ns += (uint64_t)slow.free.tv_nsec;
            slow.free.tv_sec += (time_t)(ns / 1000000000);
            slow.free.tv_nsec = (long)(ns % 1000000000);
            until = slow.free;
            pthread_mutex_unlock(&slow.lock);
            clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
        }
        for (ssize_t at = 0, sent; at < n; at += sent)
            if ((sent = send(w->to, buffer + at, (size_t)(n - at), MSG_NOSIGNAL)) <= 0)
                n = at, sent = 0;
    }
    shutdown(w->to, SHUT_WR);
    return NULL;
}

/* ---- a migration ---- */

struct ended {
    int32_t source, destination;
    brant_stats stats;
    char reason[512];
};

/* Cancels the migration once a device is stuck. */
struct canceller {
    struct device *device;
    brant_outgoing *out;
    int32_t code;
};

static void *cancel_when_stuck(void *arg)
{
    struct canceller *c = arg;

    while (!c->device->stuck)
        usleep(1000);
    c->code = brant_outgoing_cancel(c->out, NULL);
    return NULL;
}

static struct ended migrate_with(struct side *from, struct side *to, uint64_t switchover_ms,
                                 struct canceller *canceller)
{
    brant_params params = { .size = sizeof params, .channels = LANES,
                            .downtime_limit_ms = 60000, .switchover_timeout_ms = switchover_ms };
    pthread_t cancelling;
    brant_outgoing *out;
    brant_incoming *in;
    int near[LANES], far[LANES];
    struct way ways[2 * LANES];
    struct ended ended = { .stats.size = sizeof ended.stats };
    brant_error *e = NULL;

    MUST(brant_outgoing_new(from->tracker, &params, &out, &e));
    MUST(brant_incoming_new(to->guest, &params, &in, &e));
    for (int i = 0; i < LANES; i++) {
        int a[2], b[2], small = 64 << 10;

        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, a) ||
            socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, b))
            bail("no sockets");
        setsockopt(a[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
        near[i] = a[0], far[i] = b[1];
        ways[2 * i] = (struct way){ .from = a[1], .to = b[0], .limited = true };
        ways[2 * i + 1] = (struct way){ .from = b[0], .to = a[1] };
    }
    for (int i = 0; i < 2 * LANES; i++)
        if (pthread_create(&ways[i].thread, NULL, carry, &ways[i]))
            bail("no thread");
    MUST(brant_incoming_start_fds(in, far, LANES, &e));
    MUST(brant_outgoing_start_fds(out, near, LANES, &e));
    if (canceller) {
        canceller->out = out;
        if (pthread_create(&cancelling, NULL, cancel_when_stuck, canceller))
            bail("no thread");
    }
    ended.source = brant_outgoing_wait(out, patience(60000), &e);
    if (e)
        snprintf(ended.reason, sizeof ended.reason, "%s", brant_error_message(e));
    brant_error_free(e);
    if (canceller)
        pthread_join(cancelling, NULL);
    ended.destination = brant_incoming_wait(in, patience(60000), NULL);
    MUST(brant_outgoing_get_stats(out, &ended.stats, &e));
    brant_outgoing_free(out);
    brant_incoming_free(in);
    for (int i = 0; i < 2 * LANES; i++) {
        shutdown(ways[i].from, SHUT_RDWR);
        pthread_join(ways[i].thread, NULL);
    }
    for (int i = 0; i < LANES; i++) {
        close(ways[2 * i].from);
        close(ways[2 * i].to);
    }
    return ended;
}

static struct ended migrate(struct side *from, struct side *to)
{
    return migrate_with(from, to, 0, NULL);
}

static void with_devices(struct side *from, struct side *to, uint64_t running, uint64_t stopped)
{
    static const char *const names[DEVICES] = { "gpu", "nic" };

    side_begin(from);
    side_begin(to);
    memset(from->ram, 0x5a, RAM);
    for (int i = 0; i < DEVICES; i++) {
        brant_device d;

        from->devices[i] = (struct device){ .name = names[i], .running = running,
                                            .stopped = stopped, .runs = true };
        to->devices[i] = (struct device){ .name = names[i] };
        d = described(&from->devices[i]);
        MUST(brant_guest_add_device(from->guest, &d, &e));
        d = described(&to->devices[i]);
        MUST(brant_guest_add_device(to->guest, &d, &e));
    }
}

/* The downtime, in milliseconds, with 15 MB of each device. */
static uint64_t downtime(uint64_t running, uint64_t stopped, const char *how)
{
    struct side from = { 0 }, to = { 0 };
    struct ended ended;
    bool whole = true, alive = true;

    with_devices(&from, &to, running, stopped);
    ended = migrate(&from, &to);
    ok(ended.source == 0 && ended.destination == 0 && to.ran == 1, "%s: the guest moves (%s)", how,
       ended.reason);
    for (int i = 0; i < DEVICES; i++) {
        struct device *d = &from.devices[i], *there = &to.devices[i];

        whole &= !there->bad && there->loaded == d->given && d->given == running + stopped &&
                 there->loaded_running == d->given_running;
        alive &= there->runs && !d->runs && d->begun == 1 && d->ended == 1 && d->quiesced == 1 &&
                 d->stopped_times == 1 && d->resumed == 0 && there->reset == 0;
    }
    ok(whole, "%s: all state arrives", how);
    ok(alive, "%s: each device runs there, and was stopped once here", how);
    equal((long long)(ended.stats.device_running_bytes + ended.stats.device_stopped_bytes),
          (long long)(DEVICES * (running + stopped)), "%s: the figures say so", how);
    equal((long long)ended.stats.device_left_bytes, 0, "%s: nothing is left", how);
    side_end(&from);
    side_end(&to);
    return ended.stats.downtime_ns / 1000000;
}

static void what_cannot_be(void)
{
    struct side from = { 0 }, to = { 0 };
    struct device other = { .name = "gpu" };
    brant_device d = described(&other);
    struct ended ended;

    with_devices(&from, &to, 1000, 1000);
    equal(brant_guest_add_device(from.guest, &d, NULL), BRANT_E_INVALID,
          "two devices of one name are refused");
    d = (brant_device){ .size = sizeof d, .name = "none" };
    equal(brant_guest_add_device(from.guest, &d, NULL), BRANT_E_INVALID,
          "a device that can neither go nor come is refused");
    equal(brant_guest_remove_device(to.guest, "nic", 1, NULL), BRANT_E_NOT_FOUND,
          "a device that is not there is not removed");
    MUST(brant_guest_remove_device(to.guest, "nic", 0, &e));
    ended = migrate(&from, &to);
    ok(ended.source == BRANT_E_LAYOUT && strstr(ended.reason, "nic") && from.paused == 0,
       "a destination without a device refuses by name, before the pause (%s)", ended.reason);
    d = described(&to.devices[1]);
    d.load_stopped = load_and_refuse;
    MUST(brant_guest_add_device(to.guest, &d, &e));
    ended = migrate(&from, &to);
    ok(ended.source < 0 && strstr(ended.reason, "this one is full") && from.resumed == 1,
       "a device that refuses its state leaves the guest here (%s)", ended.reason);
    ok(from.devices[0].runs && from.devices[1].runs && from.devices[0].resumed == 1 &&
           from.devices[1].resumed == 1 && to.devices[0].reset == 1 && to.devices[1].reset == 1,
       "its devices run on here, and are reset there");
    side_end(&from);
    side_end(&to);
}

/* A source's device lacks what a source needs, which a destination does not. */
static void what_a_source_needs(void)
{
    struct side from = { 0 }, to = { 0 };
    struct ended ended;
    brant_device d;

    with_devices(&from, &to, 1000, 1000);
    MUST(brant_guest_remove_device(from.guest, "nic", 0, &e));
    d = described(&from.devices[1]);
    d.read_stopped = NULL;
    MUST(brant_guest_add_device(from.guest, &d, &e));
    ended = migrate(&from, &to);
    ok(ended.source < 0 && strstr(ended.reason, "nic") &&
           strstr(ended.reason, "read_stopped is NULL") && from.paused == 0,
       "a source's device without `read_stopped` is refused by name before the pause (%s)",
       ended.reason);
    side_end(&from);
    side_end(&to);
}

/* A device that reads no state before it is asked to return. */
static void stuck(bool cancel)
{
    const char *how = cancel ? "a cancel" : "the switchover timeout";
    struct side from = { 0 }, to = { 0 };
    struct canceller canceller;
    struct ended ended;

    with_devices(&from, &to, 1000, 1000);
    from.devices[1].sticks = true;
    canceller = (struct canceller){ .device = &from.devices[1], .code = -1 };
    ended = migrate_with(&from, &to, cancel ? 0 : patience(1000), cancel ? &canceller : NULL);
    ok(ended.source == (cancel ? BRANT_E_CANCELLED : BRANT_E_TIMEOUT),
       "%s ends a call of a device that blocks (%s)", how, ended.reason);
    ok(cancel ? canceller.code == 0 : !!strstr(ended.reason, "device `nic`"),
       "%s: and says so", how);
    ok(from.devices[0].cancelled == 1 && from.devices[1].cancelled == 1,
       "%s: each device is asked to return once", how);
    ok(from.devices[0].runs && from.devices[1].runs && from.resumed == 1 && to.ran == 0,
       "%s: the guest and its devices run on here", how);
    side_end(&from);
    side_end(&to);
}

int main(void)
{
    uint64_t with, without;

    plan(2 * 5 + 2 + 6 + 1 + 2 * 4);
    slow.rate = 12 * MB;
    with = downtime(0, 15 * MB, "stopped");
    without = downtime(15 * MB, 100000, "running");
    note("downtime with 30 MB of state at 12 MB/s: %llu ms, of which all is sent after the pause; "
         "%llu ms, when it goes while the guest runs",
         (unsigned long long)with, (unsigned long long)without);
    ok(with >= 2000, "30 MB after the pause are seconds of downtime: %llu ms",
       (unsigned long long)with);
    ok(without < with / 2, "what goes while the guest runs is no downtime: %llu ms",
       (unsigned long long)without);
    slow.rate = 400 * MB;
    what_cannot_be();
    what_a_source_needs();
    stuck(true);
    stuck(false);
    return done();
}
