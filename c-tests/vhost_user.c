/*
 * A guest whose disks are other processes: two back ends that speak vhost-user (memory
 * table, log in shared memory, features, stop of a ring) write guest memory through
 * descriptors of it, and mark what they wrote in brant's log. It migrates while they write,
 * and all of it arrives.
 *
 * The guest is nothing but memfds: what the back ends write is all that is written, so a write
 * of theirs that is missed is a page that differs. That it would be seen is
 * tried with back ends that do not log. Needs no KVM.
 */
#include "support.h"

#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

enum { BACK_ENDS = 2, BLOCKS = 3, REGIONS_MAX = 8, RUN_MAX = 3 };

/* ---- vhost-user, as much of it as a log takes ---- */

enum request {
    GET_FEATURES = 1,
    SET_FEATURES = 2,
    SET_OWNER = 3,
    SET_MEM_TABLE = 5,
    SET_LOG_BASE = 6,
    GET_VRING_BASE = 11,
    GET_PROTOCOL_FEATURES = 15,
    SET_PROTOCOL_FEATURES = 16,
    SET_VRING_ENABLE = 18,
};
#define F_LOG_ALL (1ull << 26)
#define F_PROTOCOL_FEATURES (1ull << 30)
#define PROTOCOL_LOG_SHMFD (1ull << 1)
#define PROTOCOL_REPLY_ACK (1ull << 3)
#define VERSION 1u
#define REPLY 4u
#define NEED_REPLY 8u

struct region { uint64_t gpa, size, user, offset; };

struct message {
    uint32_t request, flags, size;
    union {
        uint64_t number;
        struct { uint32_t index, state; } ring;
        struct { uint32_t count, padding; struct region regions[REGIONS_MAX]; } table;
        struct { uint64_t size, offset; } log;
    } payload;
} __attribute__((packed));
#define HEAD offsetof(struct message, payload)

static int message_send(int fd, struct message *m, const int *fds, unsigned count)
{
    struct iovec part = { m, HEAD + m->size };
    char control[CMSG_SPACE(REGIONS_MAX * sizeof(int))] = { 0 };
    struct msghdr h = { .msg_iov = &part, .msg_iovlen = 1 };

    if (count) {
        struct cmsghdr *c;

        h.msg_control = control;
        h.msg_controllen = CMSG_SPACE(count * sizeof(int));
        c = CMSG_FIRSTHDR(&h);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(count * sizeof(int));
        memcpy(CMSG_DATA(c), fds, count * sizeof(int));
    }
    return sendmsg(fd, &h, MSG_NOSIGNAL) == (ssize_t)part.iov_len ? 0 : -1;
}

/* One message; descriptors that come with it into fds, -1 for those that do not. */
static int message_receive(int fd, struct message *m, int *fds)
{
    struct iovec part = { m, HEAD };
    char control[CMSG_SPACE(REGIONS_MAX * sizeof(int))];
    struct msghdr h = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control,
                        .msg_controllen = sizeof control };

    for (int i = 0; fds && i < REGIONS_MAX; i++)
        fds[i] = -1;
    if (recvmsg(fd, &h, MSG_WAITALL | MSG_CMSG_CLOEXEC) != (ssize_t)HEAD ||
        m->size > sizeof m->payload)
        return -1;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&h); c && fds; c = CMSG_NXTHDR(&h, c))
        if (c->cmsg_type == SCM_RIGHTS)
            memcpy(fds, CMSG_DATA(c), c->cmsg_len - CMSG_LEN(0));
    return m->size == 0 || recv(fd, &m->payload, m->size, MSG_WAITALL) == (ssize_t)m->size ? 0 : -1;
}

/* ---- a back end: a process of its own ---- */

/* What the test may know of it and tell it beside the protocol. */
struct shared {
    _Atomic uint64_t writes;
    atomic_bool mute, refuse_log;
};

struct back_end {
    int socket;
    struct shared *shared;
    struct message table;
    char *memory[REGIONS_MAX];
    uint8_t *log;
    uint64_t log_size, features, random;
    bool running;
};

static uint64_t back_end_random(struct back_end *b, uint64_t n)
{
    b->random += 0x9e3779b97f4a7c15ull;
    return gv_mix(b->random) % n;
}

/* Writes at a place in the guest, then marks. What it writes is never there twice. */
static void back_end_write(struct back_end *b, uint64_t gpa, uint64_t length)
{
    uint64_t stamp = gv_mix(b->random ^ atomic_load(&b->shared->writes));

    for (uint32_t i = 0; i < b->table.payload.table.count; i++) {
        struct region r = b->table.payload.table.regions[i];

        if (gpa < r.gpa || gpa + length > r.gpa + r.size)
            continue;
        for (uint64_t at = 0; at + 8 <= length; at += 8, stamp++)
            memcpy(b->memory[i] + (gpa - r.gpa) + at, &stamp, 8);
        if (!(b->features & F_LOG_ALL) || atomic_load(&b->shared->mute))
            return;
        for (uint64_t page = gpa / PAGE; page <= (gpa + length - 1) / PAGE; page++) {
            if (page / 8 >= b->log_size)
                _exit(3);
            __atomic_fetch_or(&b->log[page / 8], (uint8_t)(1 << page % 8), __ATOMIC_RELEASE);
        }
        return;
    }
}

static void back_end_burst(struct back_end *b)
{
    for (int i = 0; i < 16 && b->table.payload.table.count; i++) {
        uint64_t which = back_end_random(b, b->table.payload.table.count);
        struct region r = b->table.payload.table.regions[which];
        /* Mostly the first half MiB of each, so that it can converge. */
        uint64_t within = back_end_random(b, 32) ? 512 << 10 : r.size;
        uint64_t length = 8 + 8 * back_end_random(b, RUN_MAX * PAGE / 8);
        uint64_t at = 8 * back_end_random(b, within / 8);

        if (at + length > r.size)
            length = r.size - at;
        back_end_write(b, r.gpa + at, length);
        atomic_fetch_add(&b->shared->writes, 1);
    }
    /* As a device with something else to do now and then. */
    usleep(200);
}

static void *map(int fd, uint64_t size, uint64_t offset)
{
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)offset);

    if (at == MAP_FAILED)
        _exit(4);
    close(fd);
    return at;
}

static void back_end_answer(struct back_end *b)
{
    struct message m;
    int fds[REGIONS_MAX];
    uint64_t answer = 0;
    bool reply = false;

    if (message_receive(b->socket, &m, fds))
        _exit(0);
    switch (m.request) {
    case GET_FEATURES:
        answer = F_LOG_ALL | F_PROTOCOL_FEATURES;
        reply = true;
        break;
    case GET_PROTOCOL_FEATURES:
        answer = PROTOCOL_LOG_SHMFD | PROTOCOL_REPLY_ACK;
        reply = true;
        break;
    case SET_FEATURES:
        b->features = m.payload.number;
        break;
    case SET_MEM_TABLE:
        for (uint32_t i = 0; i < b->table.payload.table.count; i++)
            munmap(b->memory[i], b->table.payload.table.regions[i].size);
        b->table = m;
        for (uint32_t i = 0; i < m.payload.table.count; i++)
            b->memory[i] = map(fds[i], m.payload.table.regions[i].size,
                               m.payload.table.regions[i].offset);
        break;
    case SET_LOG_BASE:
        if (atomic_load(&b->shared->refuse_log)) {
            close(fds[0]);
            answer = 1;
            reply = true;
            break;
        }
        if (b->log)
            munmap(b->log, b->log_size);
        b->log = map(fds[0], m.payload.log.size, m.payload.log.offset);
        b->log_size = m.payload.log.size;
        /* Answered in any case, without a payload. */
        m.flags = VERSION | REPLY;
        m.size = 0;
        if (message_send(b->socket, &m, NULL, 0))
            _exit(0);
        return;
    case GET_VRING_BASE:
        b->running = false;
        m.flags = VERSION | REPLY;
        if (message_send(b->socket, &m, NULL, 0))
            _exit(0);
        return;
    case SET_VRING_ENABLE:
        b->running = m.payload.ring.state;
        break;
    default:
        break;
    }
    if (!reply && !(m.flags & NEED_REPLY))
        return;
    m.flags = VERSION | REPLY;
    m.size = 8;
    m.payload.number = answer;
    if (message_send(b->socket, &m, NULL, 0))
        _exit(0);
}

__attribute__((noreturn)) static void back_end_run(struct back_end *b)
{
    /* It ends with the test, however that ends. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;) {
        struct pollfd p = { .fd = b->socket, .events = POLLIN };

        if (poll(&p, 1, b->running ? 0 : -1) > 0)
            back_end_answer(b);
        if (b->running)
            back_end_burst(b);
    }
}

/* ---- the front end: the VMM ---- */

struct disk {
    int socket;
    pid_t pid;
    struct shared *shared;
};

static struct disk disks[BACK_ENDS];

/* Sends and, if it is to be answered, waits for that. 0, or -1 if the back end is gone or
 * says no. */
static int ask(struct disk *d, struct message *m, const int *fds, unsigned count, uint64_t *answer)
{
    uint32_t request = m->request;
    bool answered = m->flags & NEED_REPLY || answer || request == SET_LOG_BASE ||
                    request == GET_VRING_BASE;

    m->flags |= VERSION;
    if (message_send(d->socket, m, fds, count))
        return -1;
    if (!answered)
        return 0;
    if (message_receive(d->socket, m, NULL) || m->request != request || !(m->flags & REPLY))
        return -1;
    if (answer)
        *answer = m->payload.number;
    else if (m->size == 8 && request != GET_VRING_BASE && m->payload.number != 0)
        return -1;
    return 0;
}

static int set_number(struct disk *d, uint32_t request, uint64_t number)
{
    struct message m = { .request = request, .flags = NEED_REPLY, .size = 8,
                         .payload.number = number };

    return ask(d, &m, NULL, 0, NULL);
}

static int set_ring(struct disk *d, uint32_t request, uint32_t state)
{
    struct message m = { .request = request, .flags = request == SET_VRING_ENABLE ? NEED_REPLY : 0,
                         .size = 8, .payload.ring = { 0, state } };

    return ask(d, &m, NULL, 0, NULL);
}

static void disk_start(struct disk *d, int i)
{
    int pair[2];
    uint64_t features = 0;
    struct message m = { .request = GET_FEATURES };

    d->shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (d->shared == MAP_FAILED)
        bail("no memory");
    make_socketpair(pair);
    d->pid = fork();
    if (d->pid < 0)
        bail("fork: %s", strerror(errno));
    if (d->pid == 0) {
        struct back_end b = { .socket = pair[1], .shared = d->shared,
                              .random = random_state + (uint64_t)i };

        close(pair[0]);
        for (int other = 0; other < i; other++)
            close(disks[other].socket);
        back_end_run(&b);
    }
    close(pair[1]);
    d->socket = pair[0];
    if (ask(d, &m, NULL, 0, &features) || !(features & F_LOG_ALL))
        bail("the back end cannot log");
    m = (struct message){ .request = GET_PROTOCOL_FEATURES };
    if (ask(d, &m, NULL, 0, &features) || !(features & PROTOCOL_LOG_SHMFD))
        bail("the back end takes no log in shared memory");
    if (set_number(d, SET_PROTOCOL_FEATURES, PROTOCOL_LOG_SHMFD | PROTOCOL_REPLY_ACK) ||
        set_number(d, SET_FEATURES, F_PROTOCOL_FEATURES))
        bail("the back end does not listen");
}

/* How it ended: 0 if it did by itself when its socket was closed. */
static int disk_end(struct disk *d)
{
    int status = -1;

    close(d->socket);
    if (waitpid(d->pid, &status, 0) != d->pid)
        status = -1;
    munmap(d->shared, PAGE);
    return status;
}

/* ---- a guest of three blocks, the last of which comes later ---- */

struct block { const char *name; uint64_t gpa, length; };

static const struct block blocks[BLOCKS] = {
    { "low", 0, 24 * MIB },
    /* Neither begins nor ends at a word of the log, and there is a hole before it. */
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
    brant_slot slot = { .size = sizeof slot, .block = b->name, .length = b->length,
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

static void tell_memory(struct guest *g)
{
    for (int i = 0; i < BACK_ENDS; i++) {
        struct message m = { .request = SET_MEM_TABLE, .flags = NEED_REPLY };

        m.payload.table.count = g->plugged;
        m.size = 8 + g->plugged * sizeof(struct region);
        for (unsigned b = 0; b < g->plugged; b++)
            m.payload.table.regions[b] = (struct region){
                blocks[b].gpa, blocks[b].length, (uintptr_t)g->host[b], 0 };
        if (ask(&disks[i], &m, g->fds, g->plugged, NULL))
            bail("back end %d does not take the memory table", i);
    }
}

/* Pages that differ. */
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
    uint64_t length;
    bool fail_save;
};

static int32_t vhost_on(void *opaque, const brant_vhost_memory *log, brant_reason *reason)
{
    struct vmm *v = opaque;

    v->logs_on++;
    for (int i = 0; i < BACK_ENDS; i++) {
        struct message m = { .request = SET_LOG_BASE, .size = 16,
                             .payload.log = { log->length, 0 } };

        if (ask(&disks[i], &m, &log->fd, 1, NULL) ||
            set_number(&disks[i], SET_FEATURES, F_PROTOCOL_FEATURES | F_LOG_ALL)) {
            brant_reason_set(reason, "the back end does not take the log");
            return -1;
        }
    }
    v->length = log->length;
    return 0;
}

static int32_t vhost_off(void *opaque, brant_reason *reason)
{
    struct vmm *v = opaque;

    (void)reason;
    v->logs_off++;
    for (int i = 0; i < BACK_ENDS; i++)
        if (set_number(&disks[i], SET_FEATURES, F_PROTOCOL_FEATURES))
            return -1;
    return 0;
}

static void writes_wait(uint64_t n)
{
    for (int i = 0; i < BACK_ENDS; i++) {
        uint64_t until = atomic_load(&disks[i].shared->writes) + n;

        while (atomic_load(&disks[i].shared->writes) < until)
            sched_yield();
    }
}

static int rings(bool run)
{
    int failed = 0;

    for (int i = 0; i < BACK_ENDS; i++)
        failed |= run ? set_ring(&disks[i], SET_VRING_ENABLE, 1)
                      : set_ring(&disks[i], GET_VRING_BASE, 0);
    return failed;
}

static int32_t on_pause(void *opaque, brant_reason *reason)
{
    (void)opaque, (void)reason;
    /* What is written now only the last sync finds. */
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

/* The way between the two: it stops in the middle of the first pass until it is let go on. */
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
                /* One that has ended takes the other with it. */
                shutdown(*to, SHUT_RDWR);
                open = 0;
                break;
            }
            through += i ? 0 : (uint64_t)n;
        }
    }
    close(way->source);
    close(way->destination);
    /* For whoever waits for a middle that never came. */
    atomic_store(&way->in_the_middle, true);
    return NULL;
}

/* A migration to `to`, while the disks write; in the middle of its first pass, `during`
 * happens. The code of the source. */
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
    /* The same two guests each time: the copy that an earlier migration made has ended. */
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

/* ---- what is promised ---- */

/* Rounds of syncs while they write, with a copy that follows; then they stop. */
static void tracker_follows(void)
{
    struct guest g, copy;
    struct vmm v = { .guest = &g };
    brant_tracker *tracker;
    brant_tracker_stats stats = { .size = sizeof stats };
    brant_sync sync = { .size = sizeof sync };
    uint64_t vhost = 0, others = 0;

    guest_make(&g, 2, NULL, NULL);
    guest_make(&copy, 2, NULL, NULL);
    tracker = track(&g, &v);
    tell_memory(&g);
    must(brant_tracker_start(tracker, BRANT_START_ALL, &e));
    rings(true);
    for (int round = 0; round < 50; round++) {
        size_t count = 1;

        if (round == 49)
            rings(false);
        must(brant_tracker_sync(tracker, BRANT_SYNC_RUNNING, &sync, &e));
        vhost += sync.vhost_pages;
        others += sync.kvm_pages + sync.reported_pages + sync.vfio_pages;
        do {
            brant_run runs[64];

            must(brant_tracker_take(tracker, runs, 64, &count, &e));
            for (size_t i = 0; i < count; i++)
                memcpy(copy.host[runs[i].block] + runs[i].first_page * PAGE, runs[i].host,
                       runs[i].pages * PAGE);
        } while (count);
        if (round < 49)
            writes_wait(20);
    }
    ok(vhost > 1000 && others == 0, "syncs find what back ends write, and count it as theirs");
    equal(differ(&g, &copy), 0, "a copy that follows them misses nothing");
    must(brant_tracker_get_stats(tracker, &stats, &e));
    equal(stats.stray_marks, 0, "no bit was outside of memory");
    must(brant_tracker_stop(tracker, &e));
    ok(v.logs_on == 1 && v.logs_off == 1, "logging was switched on once, and off once");
    brant_tracker_free(tracker);
    guest_free(&g);
    guest_free(&copy);
}

/* What a VMM has fetched itself, from a mapping for DMA that it removes or from another log. */
static void bitmap_marked(void)
{
    struct guest g;
    brant_tracker *tracker;
    /* Page 70, pages 126 to 129, and one beyond what is said to be there. */
    uint64_t words[3] = { 0, 3ull << 62 | 1ull << 6, 3 | 1ull << 40 };
    uint64_t first = blocks[1].gpa - 70 * PAGE;
    brant_tracker_stats stats = { .size = sizeof stats };
    brant_run runs[8];
    size_t count;
    bool good;

    guest_make(&g, 2, NULL, NULL);
    must(brant_tracker_new(g.guest, NULL, &tracker, &e));
    brant_tracker_mark_bitmap(tracker, first, words, 168);
    must(brant_tracker_start(tracker, BRANT_START_CLEAN, &e));
    brant_tracker_mark_bitmap(tracker, first, words, 168);
    /* Nowhere, and as far up as it goes. */
    brant_tracker_mark_bitmap(tracker, 0xfffffffffffff000, words, 192);
    must(brant_tracker_sync(tracker, BRANT_SYNC_RUNNING, NULL, &e));
    must(brant_tracker_take(tracker, runs, 8, &count, &e));
    good = count == 2 && runs[0].block == 1 && runs[0].first_page == 0 && runs[0].pages == 1 &&
           runs[1].block == 1 && runs[1].first_page == 56 && runs[1].pages == 4;
    must(brant_tracker_get_stats(tracker, &stats, &e));
    ok(good && stats.stray_marks > 0, "a bitmap of the VMM's own is marked page by page");
    brant_tracker_free(tracker);
    guest_free(&g);
}

static void plug(struct vmm *v, struct guest *to)
{
    uint64_t before = v->length;

    /* The destination has it first; the source's back ends are told last. */
    must(guest_plug(to, &e));
    must(guest_plug(v->guest, &e));
    ok(v->length > before && v->logs_on >= 2, "memory further up moves them to a longer log");
    tell_memory(v->guest);
    writes_wait(200);
}

static void plug_refused(struct vmm *v, struct guest *to)
{
    brant_error *e = NULL;
    int32_t code;

    (void)to;
    atomic_store(&disks[1].shared->refuse_log, true);
    code = guest_plug(v->guest, &e);
    ok(code == BRANT_E_VMM && strstr(brant_error_message(e), "does not take the log"),
       "a back end that refuses a longer log refuses the slot, with its reason");
    note("%s", brant_error_message(e));
    brant_error_free(e);
    atomic_store(&disks[1].shared->refuse_log, false);
    /* The block without a slot is not the destination's. */
    must(brant_guest_remove_block(v->guest->guest, blocks[2].name, &e));
    writes_wait(200);
}

int main(void)
{
    struct guest from, to;
    struct vmm v = { .guest = &from };
    brant_tracker *tracker;
    brant_stats stats = { .size = sizeof stats };
    bool ended = true;

    plan(18);
    random_begin();
    for (int i = 0; i < BACK_ENDS; i++)
        disk_start(&disks[i], i);
    tracker_follows();
    bitmap_marked();

    guest_make(&from, 2, &source_ops, &v);
    for (unsigned i = 0; i < 2; i++)
        for (uint64_t at = 0; at < blocks[i].length; at += 8)
            memcpy(from.host[i] + at, &(uint64_t){ gv_mix(at + i) }, 8);
    tracker = track(&from, &v);
    tell_memory(&from);
    rings(true);

    v.fail_save = true;
    guest_make(&to, 2, &destination_ops, NULL);
    ok(migrate(&v, tracker, &to, NULL, &stats) == BRANT_E_VMM && v.logs_off == 1,
       "a migration that fails switches logging off");
    writes_wait(100);
    guest_free(&to);
    v.fail_save = false;

    guest_make(&to, 2, &destination_ops, NULL);
    equal(migrate(&v, tracker, &to, NULL, &stats), 0, "and another one succeeds");
    equal(differ(&from, &to), 0, "all that the back ends wrote meanwhile arrived");
    ok(stats.last_pages > 0, "some of it was found by the last sync");
    guest_free(&to);
    rings(true);

    for (int i = 0; i < BACK_ENDS; i++)
        atomic_store(&disks[i].shared->mute, true);
    guest_make(&to, 2, &destination_ops, NULL);
    equal(migrate(&v, tracker, &to, NULL, &stats), 0, "back ends that do not log migrate too");
    ok(differ(&from, &to) > 0, "and are found out by what arrived");
    guest_free(&to);
    for (int i = 0; i < BACK_ENDS; i++)
        atomic_store(&disks[i].shared->mute, false);
    rings(true);

    guest_make(&to, 2, &destination_ops, NULL);
    equal(migrate(&v, tracker, &to, plug_refused, &stats), 0, "the migration goes on without it");
    equal(differ(&from, &to), 0, "and nothing that back ends wrote was lost");
    guest_free(&to);
    rings(true);

    munmap(from.host[2], blocks[2].length);
    close(from.fds[2]);
    from.host[2] = NULL;
    guest_make(&to, 2, &destination_ops, NULL);
    equal(migrate(&v, tracker, &to, plug, &stats), 0, "memory plugged in the middle migrates");
    equal(differ(&from, &to), 0, "with all that back ends wrote before, meanwhile and there");
    guest_free(&to);

    brant_tracker_free(tracker);
    guest_free(&from);
    for (int i = 0; i < BACK_ENDS; i++)
        ended &= disk_end(&disks[i]) == 0;
    ok(ended, "the back ends end with their sockets, and none wrote past its log");
    return done();
}
