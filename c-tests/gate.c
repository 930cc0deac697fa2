/*
 * A VMM that has no pause of its own: its vCPU is a thread of six lines at a gate, its device a thread
 * that enters and leaves, and its table of operations has only `save` and `load`. The guest moves there
 * and back while it counts; each number is told by a port access, which must be neither lost nor made
 * twice. Then what must not work: a pause that somebody does not come to, a resume after the hand-over,
 * a shutdown in the middle of a migration.
 */
#include "support.h"

#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>

enum { MEMORY = 64 << 10, CODE_AT = 0x1000, TOLD = 0x80, ASKED = 0x81 };

/* Counts, tells the number, and asks for it again: in real mode. */
static const uint8_t program[] = {
    0x66, 0x43,             /* again: inc ebx */
    0x66, 0x89, 0xd8,       /*        mov eax, ebx */
    0x66, 0xe7, TOLD,       /*        out TOLD, eax */
    0x66, 0xe5, ASKED,      /*        in eax, ASKED */
    0x66, 0x39, 0xd8,       /*        cmp eax, ebx */
    0x74, 0xf0,             /*        je again */
    0xf4,                   /*        hlt: something was lost */
};

/* What the device has seen, wherever the guest is. */
static atomic_uint told;
static atomic_int wrongs;

struct host {
    int vm, vcpu;
    struct kvm_run *run;
    char *memory;
    pthread_t thread, device_thread;
    brant_gate *gate;
    brant_gate_device *device;
    brant_guest *guest;
    brant_tracker *tracker;
    atomic_bool refuses, ends;
    atomic_int paused_early, written, marked;
};

static void handle_io(struct kvm_run *run)
{
    void *data = (char *)run + run->io.data_offset;
    uint32_t value;

    memcpy(&value, data, sizeof value);
    if (run->io.port == TOLD) {
        if (value != atomic_load(&told) + 1)
            atomic_fetch_add(&wrongs, 1);
        atomic_store(&told, value);
    } else {
        value = atomic_load(&told);
        memcpy(data, &value, sizeof value);
    }
}

static void *vcpu_main(void *arg)
{
    struct host *h = arg;
    brant_gate_vcpu *vcpu;

    must(brant_gate_add_vcpu(h->gate, 0, h->vcpu, &vcpu, &e));
    while (brant_gate_vcpu_run(vcpu, NULL) == 0) {
        if (h->run->exit_reason == KVM_EXIT_IO)
            handle_io(h->run);
        else if (h->run->exit_reason != KVM_EXIT_INTR && atomic_fetch_add(&wrongs, 1) == 0)
            note("exit %u", h->run->exit_reason);
    }
    brant_gate_vcpu_free(vcpu);
    return NULL;
}

/* A device that writes guest memory by itself: its last page. */
static void *device_main(void *arg)
{
    struct host *h = arg;

    while (!atomic_load(&h->ends) && brant_gate_device_enter(h->device, BRANT_NO_LIMIT, NULL) == 0) {
        atomic_fetch_add(&h->written, 1);
        h->memory[MEMORY - 1]++;
        brant_tracker_mark(h->tracker, MEMORY - 1, 1);
        atomic_fetch_add(&h->marked, 1);
        must(brant_gate_device_leave(h->device, &e));
        sleep_us(100);
    }
    return NULL;
}

/* ---- the operations: state, and what the table's own pause finds ---- */

static int32_t host_pause(void *opaque, brant_reason *reason)
{
    struct host *h = opaque;

    (void)reason;
    if (atomic_load(&h->written) != atomic_load(&h->marked))
        atomic_fetch_add(&h->paused_early, 1);
    return 0;
}

static int32_t own_save(void *opaque, brant_saver *saver, brant_reason *reason)
{
    struct host *h = opaque;
    struct kvm_regs regs;
    struct kvm_sregs sregs;

    (void)reason;
    if (ioctl(h->vcpu, KVM_GET_REGS, &regs) || ioctl(h->vcpu, KVM_GET_SREGS, &sregs))
        return -1;
    return brant_saver_put(saver, "regs", 0, 1, &regs, sizeof regs, NULL)
           || brant_saver_put(saver, "sregs", 0, 1, &sregs, sizeof sregs, NULL);
}

static int32_t own_load(void *opaque, const brant_state_blob *blob, brant_reason *reason)
{
    struct host *h = opaque;
    bool regs = strcmp(blob->name, "regs") == 0;
    uint64_t copy[64];

    if (atomic_load(&h->refuses)) {
        brant_reason_set(reason, "not this processor");
        return -1;
    }
    if (blob->length > sizeof copy)
        return -1;
    memcpy(copy, blob->data, blob->length);
    return ioctl(h->vcpu, regs ? KVM_SET_REGS : KVM_SET_SREGS, copy);
}

static const brant_ops table = { .size = sizeof table, .pause = host_pause, .save = own_save,
                                 .load = own_load };

/* ---- a host ---- */

static int kvm(void)
{
    static int fd = -1;

    if (fd < 0)
        fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    return fd;
}

static struct host *host_new(bool with_guest)
{
    brant_gate_config config = { .size = sizeof config, .flags = BRANT_GATE_INSTALL_HANDLER };
    struct host *h = must_alloc(1, sizeof *h);
    struct kvm_userspace_memory_region region = { .memory_size = MEMORY };
    struct kvm_regs regs = { .rip = CODE_AT, .rflags = 2 };
    struct kvm_sregs sregs;

    h->memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    region.userspace_addr = (uintptr_t)h->memory;
    h->vm = ioctl(kvm(), KVM_CREATE_VM, 0);
    if (h->memory == MAP_FAILED || h->vm < 0 || ioctl(h->vm, KVM_SET_USER_MEMORY_REGION, &region))
        bail("no virtual machine: %s", strerror(errno));
    h->vcpu = ioctl(h->vm, KVM_CREATE_VCPU, 0);
    h->run = mmap(NULL, (size_t)ioctl(kvm(), KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE,
                  MAP_SHARED, h->vcpu, 0);
    if (h->vcpu < 0 || h->run == MAP_FAILED || ioctl(h->vcpu, KVM_GET_SREGS, &sregs))
        bail("no vCPU: %s", strerror(errno));
    sregs.cs.base = sregs.cs.selector = 0;
    if (ioctl(h->vcpu, KVM_SET_SREGS, &sregs) || ioctl(h->vcpu, KVM_SET_REGS, &regs))
        bail("no registers: %s", strerror(errno));
    if (with_guest)
        memcpy(h->memory + CODE_AT, program, sizeof program);

    must(brant_gate_new(&config, &h->gate, &e));
    must(brant_gate_add_device(h->gate, "disk", &h->device, &e));
    must(brant_guest_new(&table, h, &h->guest, &e));
    must(brant_guest_use_gate(h->guest, h->gate, &e));
    must(brant_guest_add_ram(h->guest, &(brant_ram_block){ .size = sizeof(brant_ram_block), .name = "ram",
                                                          .host = h->memory, .length = MEMORY },
                             0, 0, NULL, &e));
    must(brant_tracker_new(h->guest, NULL, &h->tracker, &e));
    must(brant_tracker_add_kvm(h->tracker, &(brant_kvm_log){ .size = sizeof(brant_kvm_log), .vm_fd = h->vm }, &e));
    /* Both threads wait at the gate until there is a guest. */
    if (pthread_create(&h->thread, NULL, vcpu_main, h)
        || pthread_create(&h->device_thread, NULL, device_main, h))
        bail("no thread");
    if (with_guest)
        must(brant_gate_start(h->gate, &e));
    return h;
}

static void host_free(struct host *h)
{
    atomic_store(&h->ends, true);
    must(brant_gate_shut_down(h->gate, &e));
    pthread_join(h->thread, NULL);
    pthread_join(h->device_thread, NULL);
    brant_gate_device_free(h->device);
    brant_gate_free(h->gate);
    brant_tracker_free(h->tracker);
    brant_guest_free(h->guest);
    close(h->vcpu);
    close(h->vm);
    munmap(h->memory, MEMORY);
    free(h);
}

static bool counts_on(void)
{
    unsigned before = atomic_load(&told);
    uint64_t until = now_us() + patience(10000) * 1000ull;

    while (atomic_load(&told) == before && now_us() < until)
        sleep_us(200);
    return atomic_load(&told) != before && atomic_load(&wrongs) == 0;
}

static bool stands(void)
{
    unsigned before = atomic_load(&told);

    sleep_us(5000);
    return atomic_load(&told) == before;
}

static uint32_t holds(struct host *h)
{
    uint32_t found;

    must(brant_gate_get_holds(h->gate, &found, &e));
    return found;
}

static char message[300];

/* The code of a call that passes `&e`, with its message kept. */
#define KEPT(call)                    \
    ({                                \
        brant_error *e = NULL;        \
        int32_t kept_code = (call);   \
        kept(kept_code, e);           \
    })

static int32_t kept(int32_t code, brant_error *e)
{
    snprintf(message, sizeof message, "%s", brant_error_message(e));
    brant_error_free(e);
    return code;
}

static int32_t migrate(struct host *from, struct host *to)
{
    brant_outgoing *out;
    brant_incoming *in;
    int32_t code;
    int pair[2];

    must(brant_outgoing_new(from->tracker, NULL, &out, &e));
    must(brant_incoming_new(to->guest, NULL, &in, &e));
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
        bail("socketpair: %s", strerror(errno));
    must(brant_incoming_start_fd(in, pair[1], &e));
    must(brant_outgoing_start_fd(out, pair[0], &e));
    code = KEPT(brant_outgoing_wait(out, patience(30000), &e));
    brant_incoming_wait(in, patience(30000), NULL);
    brant_outgoing_free(out);
    brant_incoming_free(in);
    return code;
}

static void moves(void)
{
    struct host *a = host_new(true), *b = host_new(false);
    int moved = 0;

    ok(counts_on(), "a guest starts at a gate");
    for (int i = 0; i < 10 && counts_on(); i++) {
        moved += migrate(i % 2 ? b : a, i % 2 ? a : b) == 0;
        /* The side that it left may get it again. */
        must(brant_guest_give_up((i % 2 ? b : a)->guest, &e));
    }
    if (!equal(moved, 10, "it moves ten times, there and back, with no pause of the VMM's own"))
        note("%s", message);
    ok(counts_on(), "no port access was lost or made twice");
    equal(atomic_load(&a->paused_early) + atomic_load(&b->paused_early), 0,
          "no device stood between a write and its mark in a pause");
    ok(holds(a) == 0 && holds(b) == BRANT_HELD_BY_MIGRATION, "one gate is open, and it is the guest's");

    /* A user's pause outlasts a migration that fails. */
    atomic_store(&b->refuses, true);
    must(brant_gate_pause(a->gate, patience(5000), &e));
    must(brant_gate_pause(a->gate, patience(5000), &e));
    ok(migrate(a, b) == BRANT_E_REFUSED && stands() && holds(a) == BRANT_HELD_BY_USER,
       "a guest that its user has paused stays paused after a migration that fails");
    must(brant_gate_resume(a->gate, &e));
    ok(stands() && holds(a) == BRANT_HELD_BY_USER, "it was paused twice, and one resume takes one pause back");
    must(brant_gate_resume(a->gate, &e));
    ok(counts_on(), "and runs when its user resumes it again");
    ok(migrate(a, b) == BRANT_E_REFUSED && counts_on(), "one that was not paused runs on");
    atomic_store(&b->refuses, false);

    ok(migrate(a, b) == 0 && counts_on(), "it moves");
    ok(KEPT(brant_gate_resume(a->gate, &e)) == BRANT_E_STATE && strstr(message, "handed over"),
       "and is not resumed where it was: %s", message);
    ok(brant_gate_start(a->gate, NULL) == BRANT_E_STATE && holds(a) == BRANT_HELD_BY_MIGRATION,
       "nor started there");
    host_free(a);

    /* A shutdown while a migration waits for its pause: somebody is inside. */
    a = host_new(false);
    must(brant_gate_device_enter(b->device, BRANT_NO_LIMIT, &e));
    brant_outgoing *out;
    brant_incoming *in;
    int pair[2];
    must(brant_outgoing_new(b->tracker, NULL, &out, &e));
    must(brant_incoming_new(a->guest, NULL, &in, &e));
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
        bail("socketpair: %s", strerror(errno));
    must(brant_incoming_start_fd(in, pair[1], &e));
    must(brant_outgoing_start_fd(out, pair[0], &e));
    while (!(holds(b) & BRANT_HELD_BY_MIGRATION))
        sleep_us(100);
    must(brant_gate_shut_down(b->gate, &e));
    ok(KEPT(brant_outgoing_wait(out, patience(30000), &e)) == BRANT_E_VMM
           && strstr(message, "the guest has shut down"),
       "a shutdown during a pause ends the migration: %s", message);
    must(brant_gate_device_leave(b->device, &e));
    brant_outgoing_free(out);
    brant_incoming_free(in);
    host_free(a);
    host_free(b);
}

static void *pause_elsewhere(void *arg)
{
    return (void *)(intptr_t)KEPT(brant_gate_pause(arg, 50, &e));
}

/* Without KVM: what a gate says to those who use it wrongly. */
static void manners(void)
{
    brant_gate_config config = { .size = sizeof config, .signal = SIGUSR2 };
    brant_gate_vcpu *vcpu;
    brant_gate *gate;
    pthread_t thread;
    void *code;

    must(brant_gate_new(&config, &gate, &e));
    ok(KEPT(brant_gate_add_vcpu(gate, 3, -1, &vcpu, &e)) == BRANT_E_STATE
           && strstr(message, "needs a handler"),
       "without a handler no vCPU is added: %s", message);
    brant_gate_free(gate);
    config.flags = BRANT_GATE_INSTALL_HANDLER;
    must(brant_gate_new(&config, &gate, &e));
    must(brant_gate_start(gate, &e));
    must(brant_gate_add_vcpu(gate, 3, -1, &vcpu, &e));
    ok(KEPT(brant_gate_pause(gate, 1000, &e)) == BRANT_E_CALLBACK, "%s", message);
    must(brant_gate_vcpu_enter(vcpu, &e));
    if (pthread_create(&thread, NULL, pause_elsewhere, gate))
        bail("no thread");
    pthread_join(thread, &code);
    ok((intptr_t)code == BRANT_E_TIMEOUT && strstr(message, "vCPU 3 (in KVM_RUN)"),
       "a pause names who did not come: %s", message);
    must(brant_gate_vcpu_left(vcpu, 1, &e));
    must(brant_gate_vcpu_idle(vcpu, 1, &e));
    if (pthread_create(&thread, NULL, pause_elsewhere, gate))
        bail("no thread");
    pthread_join(thread, &code);
    ok((intptr_t)code == 0, "and the gate works afterwards");
    brant_gate_vcpu_free(vcpu);
    brant_gate_free(gate);
}

int main(void)
{
    char why[300];

    if (mv_kvm_available(why, sizeof why))
        skip_all(why);
    plan(17);
    random_begin();
    manners();
    moves();
    return done();
}
