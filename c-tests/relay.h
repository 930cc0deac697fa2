/*
 * A relay between two sides that holds a record until told otherwise, or loses it, for owner.c and
 * late.c.
 */
#ifndef RELAY_H
#define RELAY_H

#include "copies.h"

enum { READY = 15, HANDOVER = 16, RUNNING = 17 };

struct relay {
    unsigned hold;
    int source, destination; /* our ends */
    sem_t reached, go;
    bool lost; /* what is held never comes */
    pthread_t there, back;
};

static bool all_sent(int fd, const char *bytes, size_t n)
{
    while (n > 0) {
        ssize_t sent = send(fd, bytes, n, MSG_NOSIGNAL);

        if (sent <= 0)
            return false;
        bytes += sent;
        n -= (size_t)sent;
    }
    return true;
}

static void pass_on(struct relay *relay, int from, int to)
{
    static __thread char record[32 + (1 << 22)];
    uint32_t payload;
    uint16_t type;

    while (recv(from, record, 32, MSG_WAITALL) == 32) {
        memcpy(&type, record + 4, sizeof type);
        memcpy(&payload, record + 24, sizeof payload);
        if (payload > sizeof record - 32 ||
            (payload && recv(from, record + 32, payload, MSG_WAITALL) != (ssize_t)payload))
            break;
        if (type == relay->hold) {
            sem_post(&relay->reached);
            wait_for(&relay->go);
            if (relay->lost)
                continue;
        }
        /* A side that has gone does not end the other direction. */
        if (!all_sent(to, record, 32 + payload))
            continue;
    }
    shutdown(to, SHUT_WR);
}

static void *pass_there(void *arg)
{
    struct relay *relay = arg;

    pass_on(relay, relay->source, relay->destination);
    return NULL;
}

static void *pass_back(void *arg)
{
    struct relay *relay = arg;

    pass_on(relay, relay->destination, relay->source);
    return NULL;
}

__attribute__((unused)) static void relay_begin(struct relay *relay, unsigned hold, brant_outgoing *out, brant_incoming *in)
{
    int source[2], destination[2];

    *relay = (struct relay){ .hold = hold };
    sem_init(&relay->reached, 0, 0);
    sem_init(&relay->go, 0, 0);
    pair_new(source);
    pair_new(destination);
    relay->source = source[1];
    relay->destination = destination[1];
    if (pthread_create(&relay->there, NULL, pass_there, relay) ||
        pthread_create(&relay->back, NULL, pass_back, relay))
        bail("no thread");
    MUST(brant_incoming_start_fd(in, destination[0], &e));
    MUST(brant_outgoing_start_fd(out, source[0], &e));
}

__attribute__((unused)) static void relay_end(struct relay *relay)
{
    shutdown(relay->source, SHUT_RDWR);
    shutdown(relay->destination, SHUT_RDWR);
    pthread_join(relay->there, NULL);
    pthread_join(relay->back, NULL);
    close(relay->source);
    close(relay->destination);
    sem_destroy(&relay->reached);
    sem_destroy(&relay->go);
}

#endif
