/*
 * A source, a destination and all other handles, in one of the states in which a call may find
 * them.
 */
#ifndef MANNERS_WORLD_H
#define MANNERS_WORLD_H

#include "manners/call.h"

static int32_t operation(void *opaque, enum operation op, brant_saver *saver, brant_reason *reason)
{
    struct side_of *s = opaque;
    struct world *w = s->w;

    if (w->inside && w->operation == op && w->side == (s->destination ? DESTINATION : SOURCE) &&
        atomic_fetch_add(&w->begun, 1) == 0) {
        /* Only after both were started, because the call here may free them. */
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
    brant_slot slot = { .size = sizeof slot, .length = BLOCK, .slot = BRANT_NO_SLOT };

    MUST(brant_guest_new(&all_operations, side, guest, NULL));
    MUST(brant_guest_add_block(*guest, &block, &slot.block, NULL));
    MUST(brant_guest_add_slot(*guest, &slot, NULL));
}

static int descriptors_before, threads_before;

/* An open gate with a vCPU of this thread, which is not KVM's, and a device. */
static void make_gate(struct world *w)
{
    brant_gate_config config = { .size = sizeof config, .flags = BRANT_GATE_INSTALL_HANDLER };

    MUST(brant_gate_new(&config, &w->gate, NULL));
    MUST(brant_gate_start(w->gate, NULL));
    MUST(brant_gate_add_vcpu(w->gate, 7, -1, &w->gate_vcpu, NULL));
    MUST(brant_gate_add_device(w->gate, "disk", &w->gate_device, NULL));
}

/* Begins a world in this state; FRESH enters no state. */
static void world_begin(struct world *w, enum state state)
{
    /* A migration that stays unanswered because a callback waits for it must not take long (a
     * second comes on top). One that should be handed over may take its time. */
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
    /* A consumer that is stopped, because the state decides what is tracked. */
    MUST(brant_consumer_new(w->tracker, BRANT_START_CLEAN, &w->consumer, NULL));
    MUST(brant_consumer_stop(w->consumer, NULL));
    MUST(brant_rate_new(w->tracker, &rate, &w->rate, NULL));
    MUST(brant_outgoing_new(w->tracker, &params, &w->outgoing, NULL));
    MUST(brant_incoming_new(w->there, &params, &w->incoming, NULL));
    MUST(brant_image_save_new(w->tracker, NULL, &w->save, NULL));
    MUST(brant_image_restore_new(w->there, NULL, &w->restore, NULL));
    MUST(brant_image_chain_new(w->tracker, &w->chain, NULL));
    MUST(brant_image_merging_new(NULL, &w->merging, NULL));
    MUST(brant_bitmap_new(4096, &w->bitmap, NULL));
    MUST(brant_bitmap_new(4096, &w->other_bitmap, NULL));
    MUST(brant_bitmap_set(w->bitmap, 5, 2, NULL, NULL));
    MUST(brant_blocker_new(w->guest, "for now", &w->blocker, NULL));
    brant_blocker_free(w->blocker);
    /* A blocker of a guest that does not migrate. */
    w->blocker = NULL;
    make_gate(w);
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
    if (brant_image_save_free(w->save) || brant_image_restore_free(w->restore))
        wrong("a save or a restore cannot be freed");
    brant_image_merging_free(w->merging);
    brant_blocker_free(w->blocker);
    brant_gate_device_free(w->gate_device);
    brant_gate_vcpu_free(w->gate_vcpu);
    brant_gate_free(w->gate);
    brant_rate_free(w->rate);
    brant_tracker_free(w->tracker);
    brant_consumer_free(w->consumer);
    brant_image_chain_free(w->chain);
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
    /* A thread that was joined is still counted until the kernel is done with it. */
    for (unsigned ms = patience(10000); (left = threads() - threads_before) > 0 && ms > 0; ms--)
        nanosleep(&(struct timespec){ 0, 1000000 }, NULL);
    if (left)
        wrong("%d threads are left over", left);
}

#endif
