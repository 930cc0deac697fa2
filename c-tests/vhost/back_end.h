/*
 * A back end of vhost-user: a process of its own that writes guest memory and marks it in brant's log.
 */
#ifndef VHOST_BACK_END_H
#define VHOST_BACK_END_H

#include "vhost/protocol.h"

/* What the test may read and tell it beside the protocol. */
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

/* Writes at a place in the guest, then marks. It never writes a value twice. */
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
        /* Mostly the first half MiB of each region, so that the migration can converge. */
        uint64_t within = back_end_random(b, 32) ? 512 << 10 : r.size;
        uint64_t length = 8 + 8 * back_end_random(b, RUN_MAX * PAGE / 8);
        uint64_t at = 8 * back_end_random(b, within / 8);

        if (at + length > r.size)
            length = r.size - at;
        back_end_write(b, r.gpa + at, length);
        atomic_fetch_add(&b->shared->writes, 1);
    }
    /* As a device with other work now and then. */
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

#endif
