/*
 * A guest of three memfds that back ends write, and that a VMM tracks and migrates.
 */
#ifndef VHOST_GUEST_H
#define VHOST_GUEST_H

#include "vhost/front_end.h"

struct block { const char *name; uint64_t gpa, length; };

static const struct block blocks[BLOCKS] = {
    { "low", 0, 24 * MIB },
    /* Neither begins nor ends at a word of the log, and has a hole before it. */
    { "high", 128 * MIB + 5 * PAGE, 8 * MIB + 3 * PAGE },
    { "plugged", 1024 * MIB + 3 * PAGE, 2 * MIB + 7 * PAGE },
};

struct guest {
    brant_guest *guest;
    char *host[BLOCKS];
    int fds[BLOCKS];
    unsigned plugged;
};

static int32_t guest_plug(struct guest *g, brant_error **e)
{
    const struct block *b = &blocks[g->plugged];
    brant_ram_block block = { .size = sizeof block, .name = b->name, .length = b->length };
    brant_slot slot = { .size = sizeof slot, .length = b->length,
                        .guest_address = b->gpa, .slot = BRANT_NO_SLOT };
    int32_t code;

    if (!g->host[g->plugged]) {
        int fd = memfd_create(b->name, MFD_CLOEXEC);

        if (fd < 0 || ftruncate(fd, (off_t)b->length))
            bail("memfd: %s", strerror(errno));
        g->fds[g->plugged] = fd;
        g->host[g->plugged] = mmap(NULL, b->length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (g->host[g->plugged] == MAP_FAILED)
            bail("mmap: %s", strerror(errno));
        block.host = g->host[g->plugged];
        block.fd = fd;
        block.flags = BRANT_RAM_FILE;
        must(brant_guest_add_block(g->guest, &block, NULL, &e));
    }
    must(brant_guest_find_block(g->guest, b->name, &slot.block, &e));
    code = brant_guest_add_slot(g->guest, &slot, e);
    g->plugged += code == 0;
    return code;
}

static void guest_make(struct guest *g, unsigned count, const brant_ops *ops, void *opaque)
{
    memset(g, 0, sizeof *g);
    must(brant_guest_new(ops, opaque, &g->guest, &e));
    while (g->plugged < count)
        must(guest_plug(g, &e));
}

static void guest_free(struct guest *g)
{
    brant_guest_free(g->guest);
    for (int i = 0; i < BLOCKS; i++) {
        if (!g->host[i])
            continue;
        munmap(g->host[i], blocks[i].length);
        close(g->fds[i]);
    }
}

static void tell_memory_to(struct guest *g, int i)
{
    struct message m = { .request = SET_MEM_TABLE, .flags = NEED_REPLY };

    m.payload.table.count = g->plugged;
    m.size = 8 + g->plugged * sizeof(struct region);
    for (unsigned b = 0; b < g->plugged; b++)
        m.payload.table.regions[b] = (struct region){
            blocks[b].gpa, blocks[b].length, (uintptr_t)g->host[b], 0 };
    if (ask(&disks[i], &m, g->fds, g->plugged, NULL))
        bail("back end %d does not take the memory table", i);
}

static void tell_memory(struct guest *g)
{
    for EACH_DISK(i)
        tell_memory_to(g, i);
}

/* How many pages differ. */
static uint64_t differ(const struct guest *a, const struct guest *b)
{
    uint64_t differs = 0;

    for (unsigned i = 0; i < a->plugged; i++)
        for (uint64_t at = 0; at < blocks[i].length; at += PAGE) {
            if (memcmp(a->host[i] + at, b->host[i] + at, PAGE) == 0)
                continue;
            if (differs++ < 3)
                note("%s: page %" PRIu64 " differs", blocks[i].name, at / PAGE);
        }
    return differs + (a->plugged != b->plugged);
}

/* ---- operations ---- */

struct vmm {
    struct guest *guest;
    int logs_on, logs_off;
    /* The log in use: for a back end that is added while logging is on. */
    int log;
    uint64_t length;
    bool fail_save;
};

static int give_log(const struct vmm *v, int i)
{
    struct message m = { .request = SET_LOG_BASE, .size = 16, .payload.log = { v->length, 0 } };

    if (ask(&disks[i], &m, &v->log, 1, NULL))
        return -1;
    return set_number(&disks[i], SET_FEATURES, F_PROTOCOL_FEATURES | F_LOG_ALL);
}

static int32_t vhost_on(void *opaque, const brant_vhost_memory *log, brant_reason *reason)
{
    struct vmm *v = opaque;
    int old = v->log;
    uint64_t old_length = v->length;

    v->logs_on++;
    /* brant's descriptor is brant's; this is for back ends to come. */
    v->log = fcntl(log->fd, F_DUPFD_CLOEXEC, 3);
    v->length = log->length;
    for EACH_DISK(i) {
        if (give_log(v, i) == 0)
            continue;
        close(v->log);
        v->log = old;
        v->length = old_length;
        brant_reason_set(reason, "the back end does not take the log");
        return -1;
    }
    if (old)
        close(old);
    return 0;
}

static int32_t vhost_off(void *opaque, brant_reason *reason)
{
    struct vmm *v = opaque;

    (void)reason;
    v->logs_off++;
    if (v->log)
        close(v->log);
    v->log = 0;
    for EACH_DISK(i)
        if (set_number(&disks[i], SET_FEATURES, F_PROTOCOL_FEATURES))
            return -1;
    return 0;
}

static void writes_wait(uint64_t n)
{
    for EACH_DISK(i) {
        uint64_t until = atomic_load(&disks[i].shared->writes) + n;

        while (atomic_load(&disks[i].shared->writes) < until)
            sched_yield();
    }
}

static int rings(bool run)
{
    int failed = 0;

    for EACH_DISK(i)
        failed |= run ? set_ring(&disks[i], SET_VRING_ENABLE, 1)
                      : set_ring(&disks[i], GET_VRING_BASE, 0);
    return failed;
}

static int32_t on_pause(void *opaque, brant_reason *reason)
{
    (void)opaque, (void)reason;
    /* Only the last sync finds what is written now. */
    writes_wait(200);
    return rings(false);
}

static int32_t on_resume(void *opaque, brant_reason *reason)
{
    (void)opaque, (void)reason;
    return rings(true);
}

static int32_t on_save(void *opaque, brant_saver *saver, brant_reason *reason)
{
    struct vmm *v = opaque;

    if (v->fail_save) {
        brant_reason_set(reason, "not this time");
        return -1;
    }
    return brant_saver_put(saver, "rings", 0, 1, "x", 1, NULL);
}

static int32_t on_load(void *opaque, const brant_state_blob *blob, brant_reason *reason)
{
    (void)opaque, (void)blob, (void)reason;
    return 0;
}

static int32_t on_run(void *opaque, brant_reason *reason)
{
    (void)opaque, (void)reason;
    return 0;
}

static const brant_ops source_ops = { .size = sizeof source_ops, .pause = on_pause,
                                      .resume = on_resume, .save = on_save };
static const brant_ops destination_ops = { .size = sizeof destination_ops, .load = on_load,
                                           .run = on_run };

static brant_tracker *track(struct guest *g, struct vmm *v)
{
    brant_tracker *tracker;
    brant_vhost_log vhost = { .size = sizeof vhost, .opaque = v, .log_on = vhost_on,
                          .log_off = vhost_off };

    must(brant_tracker_new(g->guest, NULL, &tracker, &e));
    must(brant_tracker_add_vhost(tracker, &vhost, &e));
    return tracker;
}

/* The connection between the two: it stops in the middle of the first pass until it is released. */
struct way {
    int source, destination;
    atomic_bool in_the_middle, go_on;
};
#define MIDDLE (4 * MIB)

static void *way_run(void *arg)
{
    struct way *way = arg;
    static char buffer[64 << 10];
    uint64_t through = 0;
    int open = 2;

    while (open) {
        bool held = through >= MIDDLE && !atomic_load(&way->go_on);
        struct pollfd p[2] = { { .fd = held ? -1 : way->source, .events = POLLIN },
                               { .fd = way->destination, .events = POLLIN } };

        if (held)
            atomic_store(&way->in_the_middle, true);
        /* While it is held it looks whether it still is. */
        poll(p, 2, held ? 1 : -1);
        for (int i = 0; i < 2; i++) {
            int *from = i ? &way->destination : &way->source;
            int *to = i ? &way->source : &way->destination;
            ssize_t n;

            if (p[i].fd < 0 || !p[i].revents)
                continue;
            n = recv(*from, buffer, sizeof buffer, 0);
            for (ssize_t sent = 0, now; sent < n; sent += now)
                if ((now = send(*to, buffer + sent, (size_t)(n - sent), MSG_NOSIGNAL)) <= 0)
                    n = 0;
            if (n <= 0) {
                /* A direction that has ended ends the other one. */
                shutdown(*to, SHUT_RDWR);
                open = 0;
                break;
            }
            through += i ? 0 : (uint64_t)n;
        }
    }
    close(way->source);
    close(way->destination);
    /* For a thread that waits for a middle that never came. */
    atomic_store(&way->in_the_middle, true);
    return NULL;
}

/* Migrates to `to` while the disks write. In the middle of the first pass, `during` is called.
 * Returns the source's code. */
static int32_t migrate(struct vmm *v, brant_tracker *tracker, struct guest *to,
                       void (*during)(struct vmm *, struct guest *), brant_stats *stats)
{
    struct way way = { 0 };
    brant_outgoing *out;
    brant_incoming *in;
    int source[2], destination[2];
    pthread_t thread;
    int32_t code;

    make_socketpair(source);
    make_socketpair(destination);
    way.source = source[1];
    way.destination = destination[0];
    if (pthread_create(&thread, NULL, way_run, &way))
        bail("no thread");
    /* The two guests are always the same ones: the copy that an earlier migration made has ended.
     */
    must(brant_guest_give_up(to->guest, &e));
    must(brant_guest_reclaim(v->guest->guest, &e));
    must(brant_incoming_new(to->guest, NULL, &in, &e));
    must(brant_incoming_start_fd(in, destination[1], &e));
    must(brant_outgoing_new(tracker, NULL, &out, &e));
    must(brant_outgoing_start_fd(out, source[0], &e));
    while (!atomic_load(&way.in_the_middle))
        sched_yield();
    writes_wait(100);
    if (during)
        during(v, to);
    atomic_store(&way.go_on, true);
    code = brant_outgoing_wait(out, 60000, NULL);
    brant_incoming_wait(in, 60000, NULL);
    must(brant_outgoing_get_stats(out, stats, &e));
    brant_outgoing_free(out);
    brant_incoming_free(in);
    pthread_join(thread, NULL);
    return code;
}

#endif
