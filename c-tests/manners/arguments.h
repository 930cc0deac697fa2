/*
 * Valid arguments for each function, made and lent for one call.
 */
#ifndef MANNERS_ARGUMENTS_H
#define MANNERS_ARGUMENTS_H

#include "manners/table.h"

static int lend(struct args *a)
{
    a->lent = true;
    return a->fd = dup(more_fd);
}

/* A struct kvm_cpuid2 without entries. */
static const uint32_t no_cpuid[2];

/* A connection whose other end is closed. */
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

/* One connection for each channel, of which there is one; none where the list is NULL. */
static const int *hand_over_list(struct args *a)
{
    if (!(a->null >> 1 & 1))
        hand_over(a);
    return &a->fd;
}

/* A virtual machine, if there are any. */
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

static int32_t no_state(void *opaque, const void *data, size_t length, brant_reason *reason)
{
    (void)opaque, (void)data, (void)length, (void)reason;
    return 0;
}

static int32_t no_start(void *opaque, brant_reason *reason)
{
    (void)opaque, (void)reason;
    return 0;
}

static int32_t no_transfer(void *opaque, uint32_t direction, int32_t fd, int32_t *given,
                           brant_reason *reason)
{
    (void)opaque, (void)direction, (void)fd, (void)given, (void)reason;
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
    a->brant_slot = (brant_slot){ .size = sizeof a->brant_slot, .block = 0, .length = BLOCK,
                                  .guest_address = 1ull << 40, .slot = BRANT_NO_SLOT };
    a->brant_ops = all_operations;
    a->brant_device = (brant_device){ .size = sizeof a->brant_device, .name = "gpu",
                                      .load_stopped = no_state, .run = no_start };
    a->brant_params = (brant_params){ .size = sizeof a->brant_params };
    a->brant_policy = (brant_policy){ .size = sizeof a->brant_policy };
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
    a->brant_vfio_device = (brant_vfio_device){ .size = sizeof a->brant_vfio_device, .name = "nic",
                                                .fd = -1 };
    a->brant_vhost_user_device = (brant_vhost_user_device){
        .size = sizeof a->brant_vhost_user_device, .name = "fs",
        .set_device_state_fd = no_transfer, .check_device_state = no_vhost_off };
    a->brant_iommufd_log = (brant_iommufd_log){ .size = sizeof a->brant_iommufd_log, .fd = -1 };
    a->brant_state_blob = (brant_state_blob){ .size = sizeof a->brant_state_blob,
                                              .name = "kvm-vcpu", .version = 1,
                                              .data = a->words, .length = 8 };
    a->brant_stats.size = sizeof a->brant_stats;
    a->brant_sync.size = sizeof a->brant_sync;
    a->brant_tracker_stats.size = sizeof a->brant_tracker_stats;
    a->brant_consumer_stats.size = sizeof a->brant_consumer_stats;
    a->brant_lane_stats.size = sizeof a->brant_lane_stats;
    a->brant_rate_params.size = sizeof a->brant_rate_params;
    a->brant_dirty_rate.size = sizeof a->brant_dirty_rate;
    a->brant_forecast.size = sizeof a->brant_forecast;
    a->brant_gate_config = (brant_gate_config){ .size = sizeof(brant_gate_config) };
    a->brant_image_save_params.size = sizeof a->brant_image_save_params;
    a->brant_image_restore_params.size = sizeof a->brant_image_restore_params;
    a->brant_image_merge_params.size = sizeof a->brant_image_merge_params;
    a->brant_image_stats.size = sizeof a->brant_image_stats;
    a->brant_recorded.size = sizeof a->brant_recorded;
    a->region = (brant_uffd_region){ .address = PAGE, .length = PAGE };
}

/* A structure of another size, at the very end of readable memory. */
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
        /* An argument that is no structure has none. */
        if (size < arg->fd + sizeof a->fd || size == SIZE_MAX)
            continue;
        if (arg->machine)
            lend_vm(a);
        else
            lend(a);
        memcpy(at + arg->fd, &a->fd, sizeof a->fd);
    }
}

#endif
