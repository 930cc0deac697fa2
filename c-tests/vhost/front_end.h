/*
 * The VMM's side of vhost-user: starts back ends and asks them.
 */
#ifndef VHOST_FRONT_END_H
#define VHOST_FRONT_END_H

#include "vhost/back_end.h"

struct disk {
    int socket; /* -1: there is no back end */
    pid_t pid;
    struct shared *shared;
};

static struct disk disks[BACK_ENDS];

/* The next back end that there is, from `from` on; BACK_ENDS if there is none. */
static int next_disk(int from)
{
    while (from < BACK_ENDS && disks[from].socket < 0)
        from++;
    return from;
}
#define EACH_DISK(i) (int i = next_disk(0); i < BACK_ENDS; i = next_disk(i + 1))

/* Sends a message, and waits for the answer if there should be one. 0, or -1 if the back end is
 * gone or refuses. */
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
    static uint64_t started;
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
                              .random = random_state + started };

        close(pair[0]);
        for (int other = 0; other < i; other++)
            close(disks[other].socket);
        back_end_run(&b);
    }
    /* Each one writes other values. */
    started++;
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

/* How the back end ended: 0 if by itself, when its socket was closed. */
static int disk_end(struct disk *d)
{
    int status = -1;

    close(d->socket);
    d->socket = -1;
    if (waitpid(d->pid, &status, 0) != d->pid)
        status = -1;
    munmap(d->shared, PAGE);
    return status;
}

#endif
