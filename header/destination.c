#include <brant.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { PAGE = 4096, BYTES = 16 << 20, COUNTED = 256 };

struct vmm {
    uint64_t *memory;
    uint64_t count;
    pthread_t thread;
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

static void *guest_thread(void *opaque)
{
    struct vmm *v = (struct vmm *)opaque;
    uint64_t first = v->count, wrong = 0;

    for (int i = 0; i < COUNTED; i++) {         // one round over what it wrote at the source
        uint64_t *number = &v->memory[v->count % COUNTED * PAGE / 8];
        v->count++;
        wrong += *number != (v->count <= COUNTED ? 0 : v->count - COUNTED);
        *number = v->count;
    }
    printf("the guest runs here from %llu on, with %llu wrong pages\n",
           (unsigned long long)first, (unsigned long long)wrong);
    return NULL;
}

static int32_t load(void *opaque, const brant_state_blob *blob, brant_reason *reason)
{
    struct vmm *v = (struct vmm *)opaque;

    if (strcmp(blob->name, "counter") || blob->version != 1 || blob->length != 8) {
        brant_reason_set(reason, "expected a counter, version 1, of 8 bytes");
        return -1;                              // the guest runs on at the source
    }
    memcpy(&v->count, blob->data, 8);
    return 0;
}

static int32_t run(void *opaque, brant_reason *reason)
{
    (void)reason;
    return pthread_create(&vmm.thread, NULL, guest_thread, opaque);
}

int main(int argc, char **argv)
{
    if (argc != 2)
        return 2;
    vmm.memory = (uint64_t *)mmap(NULL, BYTES, PROT_READ | PROT_WRITE,
                                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    brant_guest *guest;
    brant_ops ops = BRANT_INIT(brant_ops);
    ops.load = load;
    ops.run = run;
    expect_success(brant_guest_new(&ops, &vmm, &guest, &error));
    brant_ram_block block = BRANT_INIT(brant_ram_block);
    block.name = "ram";                         // as at the source, and as long
    block.host = vmm.memory;
    block.length = BYTES;
    expect_success(brant_guest_add_block(guest, &block, NULL, &error));

    brant_incoming *incoming;
    expect_success(brant_incoming_new(guest, NULL, &incoming, &error));
    expect_success(brant_incoming_listen(incoming, argv[1], &error));
    fprintf(stderr, "waiting for a source\n");
    int32_t code = brant_incoming_wait(incoming, BRANT_NO_LIMIT, &error);
    if (code == 0) {
        pthread_join(vmm.thread, NULL);
    } else {
        // The guest does not run here and never will; the source's VMM has it.
        fprintf(stderr, "%s: %s\n", brant_error_name(code), brant_error_message(error));
        brant_error_free(error);
    }

    brant_incoming_free(incoming);
    brant_guest_free(guest);
    munmap(vmm.memory, BYTES);
    return code != 0;
}
