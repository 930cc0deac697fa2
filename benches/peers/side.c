/*
 * One side of a migration by brant that scripts/bench-peers times beside one by QEMU: a guest of
 * one memory slot and no vCPU, whose memory is a file that the script has filled.
 *
 *     side source ADDRESS FD BYTES CHANNELS PREFAULT
 *     side destination ADDRESS FD BYTES CHANNELS PREFAULT
 *
 * ADDRESS is brant's, "tcp:127.0.0.1:PORT"; FD the descriptor of the file, inherited. PREFAULT is 1
 * when all pages of the memory are to be mapped first. A source says "ready", starts at a byte on
 * standard input, and says "moved" when the destination runs. A destination says "ready" when it
 * listens, and "runs" in its operation `run`. Each then waits for the end of its input, so that
 * its processor time can be read.
 */
#include "peer.h"
#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

static int32_t nothing(void *opaque, brant_reason *reason)
{
    (void)opaque;
    (void)reason;
    return 0;
}

static int32_t run(void *opaque, brant_reason *reason)
{
    (void)opaque;
    (void)reason;
    say("runs\n");
    return 0;
}

/* A VM whose KVM logs writes to the memory, as a source's does. */
static int new_vm(void *memory, uint64_t bytes)
{
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    int vm = kvm < 0 ? -1 : ioctl(kvm, KVM_CREATE_VM, 0);
    struct kvm_userspace_memory_region region = {
        .memory_size = bytes, .userspace_addr = (uintptr_t)memory
    };

    if (vm < 0 || ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region)) {
        perror("/dev/kvm");
        exit(1);
    }
    return vm;
}

static void source(brant_guest *guest, const brant_params *params, const char *address,
                   void *memory, uint64_t bytes)
{
    brant_kvm_log log = BRANT_INIT(brant_kvm_log);
    brant_outgoing *outgoing;
    brant_tracker *tracker;

    log.vm_fd = new_vm(memory, bytes);
    must(brant_tracker_new(guest, NULL, &tracker, &error));
    must(brant_tracker_add_kvm(tracker, &log, &error));
    must(brant_outgoing_new(tracker, params, &outgoing, &error));
    say("ready\n");
    await_byte();
    must(brant_outgoing_start(outgoing, address, &error));
    must(brant_outgoing_wait(outgoing, BRANT_NO_LIMIT, &error));
    say("moved\n");
    await_byte();
    must(brant_outgoing_free(outgoing));
    brant_tracker_free(tracker);
}

static void destination(brant_guest *guest, const brant_params *params, const char *address)
{
    brant_incoming *incoming;

    must(brant_incoming_new(guest, params, &incoming, &error));
    must(brant_incoming_listen(incoming, address, &error));
    say("ready\n");
    must(brant_incoming_wait(incoming, BRANT_NO_LIMIT, &error));
    await_byte();
    must(brant_incoming_free(incoming));
}

int main(int argc, char **argv)
{
    brant_ops ops = BRANT_INIT(brant_ops);
    brant_params params = BRANT_INIT(brant_params);
    brant_ram_block block = BRANT_INIT(brant_ram_block);
    brant_slot slot = BRANT_INIT(brant_slot);
    brant_guest *guest;
    uint64_t bytes;
    void *memory;

    if (argc != 7)
        return 2;
    bytes = strtoull(argv[4], NULL, 10);
    block.fd = atoi(argv[3]);
    params.channels = atoi(argv[5]);
    memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                  MAP_SHARED | (atoi(argv[6]) ? MAP_POPULATE : 0), block.fd, 0);
    if (memory == MAP_FAILED) {
        perror("mmap");
        return 1;
    }
    ops.pause = ops.resume = nothing;
    ops.run = run;
    must(brant_guest_new(&ops, NULL, &guest, &error));
    block.name = "ram";
    block.host = memory;
    block.length = slot.length = bytes;
    block.flags = BRANT_RAM_FILE;
    must(brant_guest_add_block(guest, &block, &slot.block, &error));
    must(brant_guest_add_slot(guest, &slot, &error));
    if (!strcmp(argv[1], "source"))
        source(guest, &params, argv[2], memory, bytes);
    else
        destination(guest, &params, argv[2]);
    brant_guest_free(guest);
    return 0;
}
