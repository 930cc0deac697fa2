/*
 * The part of vhost-user that a log needs: messages over a socket, with descriptors.
 */
#ifndef VHOST_PROTOCOL_H
#define VHOST_PROTOCOL_H

#include "support.h"
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

enum { BACK_ENDS = 2, BLOCKS = 3, REGIONS_MAX = 8, RUN_MAX = 3 };

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

/* Receives one message. Its descriptors go into `fds`, -1 for each missing one. */
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

#endif
