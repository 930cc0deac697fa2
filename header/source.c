// The guest is a thread that counts: in its memory, page after page, and in one device.
#include <brant.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, BYTES = 16 << 20, COUNTED = 256 };
enum { PAUSED, RUNS, ENDED };

struct vmm {
    uint64_t *memory;
    uint64_t count;                             // the state of the device
    int guest;                                  // PAUSED, RUNS, ENDED
    pthread_mutex_t lock;
    brant_tracker *tracker;
};

static struct vmm vmm;
static brant_error *error;

static void expect_success(int32_t code)
{
    if (code == 0)
        return;
    fprintf(stderr, "%s: %s\n", brant_error_name(code), brant_error_message(error));
    exit(1);
}

static void count_on(struct vmm *v)
{
    uint64_t page = v->count++ % COUNTED;

    v->memory[page * PAGE / 8] = v->count;
    brant_tracker_mark(v->tracker, page * PAGE, 8);     // after the write
}

static void *guest_thread(void *opaque)
{
    struct vmm *v = (struct vmm *)opaque;

    for (int last = RUNS; last != ENDED; usleep(10)) {
        pthread_mutex_lock(&v->lock);
        last = v->guest;
        if (last == RUNS)
            count_on(v);
        pthread_mutex_unlock(&v->lock);
    }
    return NULL;
}

static int32_t make_guest(void *opaque, int state)
{
    struct vmm *v = (struct vmm *)opaque;

    pthread_mutex_lock(&v->lock);               // no guest is between a write and its mark
    v->guest = state;
    pthread_mutex_unlock(&v->lock);
    return 0;
}

static int32_t pause_guest(void *opaque, brant_reason *reason)
{
    (void)reason;
    return make_guest(opaque, PAUSED);
}

static int32_t resume_guest(void *opaque, brant_reason *reason)
{
    (void)reason;
    return make_guest(opaque, RUNS);
}

static int32_t save(void *opaque, brant_saver *saver, brant_reason *reason)
{
    struct vmm *v = (struct vmm *)opaque;

    (void)reason;
    return brant_saver_put(saver, "counter", 0, 1, &v->count, sizeof v->count, NULL);
}

int main(int argc, char **argv)
{
    if (argc != 2)
        return 2;
    vmm.memory = (uint64_t *)mmap(NULL, BYTES, PROT_READ | PROT_WRITE,
                                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    pthread_mutex_init(&vmm.lock, NULL);

    // What the guest is: operations, a block of memory, and its guest address, 0.
    brant_guest *guest;
    brant_ops ops = BRANT_INIT(brant_ops);
    ops.pause = pause_guest;
    ops.resume = resume_guest;
    ops.save = save;
    expect_success(brant_guest_new(&ops, &vmm, &guest, &error));
    brant_ram_block block = BRANT_INIT(brant_ram_block);
    block.name = "ram";
    block.host = vmm.memory;
    block.length = BYTES;
    brant_slot slot = BRANT_INIT(brant_slot);
    slot.length = BYTES;
    slot.slot = BRANT_NO_SLOT;
    expect_success(brant_guest_add_block(guest, &block, &slot.block, &error));
    expect_success(brant_guest_add_slot(guest, &slot, &error));

    // Who tells of its writes: the marks. KVM's log would be added here.
    expect_success(brant_tracker_new(guest, NULL, &vmm.tracker, &error));
    for (int i = 0; i < 1000; i++)              // the guest has a past
        count_on(&vmm);
    pthread_t thread;
    vmm.guest = RUNS;
    pthread_create(&thread, NULL, guest_thread, &vmm);

    brant_outgoing *outgoing;
    brant_params params = BRANT_INIT(brant_params);
    params.downtime_limit_ms = 100;
    expect_success(brant_outgoing_new(vmm.tracker, &params, &outgoing, &error));
    expect_success(brant_outgoing_start(outgoing, argv[1], &error));

    int32_t code;
    while ((code = brant_outgoing_wait(outgoing, 50, NULL)) == BRANT_E_PENDING) {
        brant_stats stats = BRANT_INIT(brant_stats);
        expect_success(brant_outgoing_get_stats(outgoing, &stats, &error));
        printf("%u.%02u %%\n", stats.progress / 100, stats.progress % 100);
    }
    int here = code != 0;                       // unless the migration completed
    if (here) {
        brant_outgoing_wait(outgoing, 0, &error);       // the same code, and its sentence
        printf("%s: %s\n", brant_error_name(code), brant_error_message(error));
        brant_error_free(error);
    }
    if (code == BRANT_E_UNANSWERED) {
        // The guest is paused. The destination's VMM knows whether `run` was called there.
        printf("does the guest run at the destination (y or n)? ");
        here = getchar() != 'y';
        expect_success(brant_outgoing_resolve(
            outgoing, here ? BRANT_RESOLVE_RESUME : BRANT_RESOLVE_DESTROY, &error));
    }
    if (here)
        printf("the guest runs on here\n");
    else
        printf("the guest runs at the destination from %llu on\n",
               (unsigned long long)vmm.count);

    brant_outgoing_free(outgoing);
    make_guest(&vmm, ENDED);                    // the end of the example, whatever it was
    pthread_join(thread, NULL);
    brant_tracker_free(vmm.tracker);
    brant_guest_free(guest);
    munmap(vmm.memory, BYTES);
    return here;
}
