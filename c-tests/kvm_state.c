/*
 * The state of KVM's vCPUs and VMs moves by brant_kvm_*: guest code at privilege level 3 and 0 changes registers,
 * timers and interrupts, the guest migrates, and guest code reads there what it had. A guest per program, with
 * memory of its own on each side.
 *
 * time limit: 60 s
 */
#include "support.h"
#include <linux/kvm.h>
#include <math.h>
#include <signal.h>

__asm__(".intel_syntax noprefix\n.include \"c-tests/kvm_state.inc\"\n.att_syntax prefix\n");

#define PROGRAM(name) extern const uint8_t kvm_state_##name[]
PROGRAM(image);
PROGRAM(image_end);
PROGRAM(registers);
PROGRAM(avx);
PROGRAM(system);
PROGRAM(clock);
PROGRAM(nested);
PROGRAM(self_ipi);
PROGRAM(timer);
PROGRAM(deadline);
PROGRAM(pit);
PROGRAM(halt);
PROGRAM(handler);

enum {
    RAM = 2 << 20, GDT = 0x1000, TSS = 0x1100, IDT = 0x3000, TABLES = 0x8000, CODE = 0x10000,
    INPUT = 0x20000, DUMP = 0x22000, VMCB = 0x25000, STACK = 0x40000, SIGNAL = 0x3fe00000, CPUIDS = 256,
    HALTED = 3
};

/* A machine with one vCPU, and its two roles in a migration. */
struct vmm {
    int vm, vcpu;
    struct kvm_run *run;
    uint8_t *ram;
    struct kvm_cpuid2 *cpuid;
    brant_guest *guest;
    bool no_compat;
    int loads;
};

static int kvm;

static long must_do(long result, const char *what, int line)
{
    if (result < 0)
        bail("line %d: %s: %s", line, what, strerror(errno));
    return result;
}
#define DO(fd, request, arg) must_do(ioctl(fd, request, arg), #request, __LINE__)

static uint64_t *word(struct vmm *m, uint64_t at)
{
    return (uint64_t *)(void *)(m->ram + at);
}

static uint64_t pattern(uint64_t n)
{
    return (n + 1) * 0x9e3779b97f4a7c15ull;
}

/* ---- the operations, as any VMM would have them ---- */

static int32_t say(brant_reason *reason, int32_t status, brant_error *error)
{
    if (status)
        brant_reason_set(reason, error ? brant_error_message(error) : "no such state here");
    brant_error_free(error);
    return status;
}

static int32_t nothing_op(void *opaque, brant_reason *reason)
{
    (void)opaque, (void)reason;
    return 0;
}

static int32_t resume_op(void *opaque, brant_reason *reason)
{
    struct vmm *m = opaque;
    brant_error *error = NULL;
    int32_t status = brant_kvm_vcpu_stood_still(m->vcpu, &error);

    return say(reason, status, error);
}

static int32_t early_save_op(void *opaque, brant_saver *saver, brant_reason *reason)
{
    struct vmm *m = opaque;

    (void)reason;
    return m->no_compat ? 0 : brant_kvm_compat_save(kvm, m->vm, m->cpuid, saver, NULL);
}

static int32_t early_load_op(void *opaque, const brant_state_blob *blob, brant_reason *reason)
{
    struct vmm *m = opaque;
    brant_error *error = NULL;
    int32_t status = brant_kvm_compat_check(-1, m->vm, m->cpuid, blob, &error);

    return say(reason, status, error);
}

static int32_t save_op(void *opaque, brant_saver *saver, brant_reason *reason)
{
    struct vmm *m = opaque;

    (void)reason;
    if (brant_kvm_vcpu_save(kvm, m->vm, m->vcpu, 0, saver, NULL))
        return -1;
    return brant_kvm_vm_save(-1, m->vm, saver, NULL);
}

static int32_t load_op(void *opaque, const brant_state_blob *blob, brant_reason *reason)
{
    struct vmm *m = opaque;
    brant_error *error = NULL;
    int32_t status = BRANT_E_NOT_FOUND;

    m->loads++;
    if (!strcmp(blob->name, "kvm-vcpu"))
        status = brant_kvm_vcpu_load(-1, m->vm, m->vcpu, blob, &error);
    else if (!strcmp(blob->name, "kvm-vm"))
        status = brant_kvm_vm_load(kvm, m->vm, blob, &error);
    return say(reason, status, error);
}

/* ---- a machine ---- */

static void gate(struct vmm *m, unsigned vector, const uint8_t *program)
{
    uint64_t at = CODE + (uint64_t)(program - kvm_state_image);

    *word(m, IDT + 16 * vector) = (at & 0xffff) | 8 << 16 | 0x8e00ull << 32 | (at >> 16 & 0xffff) << 48;
}

static struct vmm *vmm_new(bool chips)
{
    static const uint64_t gdt[] = { 0, 0x00af9b000000ffffull, 0x00cf93000000ffffull, 0x00affb000000ffffull,
                                    0x00cff3000000ffffull, 0x00008b0000000067ull | TSS << 16 };
    struct vmm *m = must_alloc(1, sizeof *m);
    brant_ops ops = { .size = sizeof ops, .pause = nothing_op, .resume = resume_op, .run = nothing_op,
                      .save = save_op, .load = load_op, .early_save = early_save_op,
                      .early_load = early_load_op };
    struct kvm_pit_config pit = { 0 };
    struct kvm_userspace_memory_region slot = { .memory_size = RAM };
    uint32_t block;

    m->ram = mmap(NULL, RAM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memcpy(m->ram + GDT, gdt, sizeof gdt);
    *word(m, TSS + 0x60) = 0x68ull << 48;
    *word(m, TABLES) = (TABLES + 0x1000) | 0x27;
    for (uint64_t gib = 0; gib < 4; gib += 3) {
        uint64_t table = TABLES + (gib ? 0x3000 : 0x2000);

        *word(m, TABLES + 0x1000 + 8 * gib) = table | 0x27;
        for (uint64_t i = 0; i < 512; i++)
            *word(m, table + 8 * i) = (gib << 30 | i << 21) | 0xe7;
    }
    memcpy(m->ram + CODE, kvm_state_image, (size_t)(kvm_state_image_end - kvm_state_image));
    m->vm = (int)DO(kvm, KVM_CREATE_VM, 0);
    if (chips) {
        DO(m->vm, KVM_CREATE_IRQCHIP, 0);
        DO(m->vm, KVM_CREATE_PIT2, &pit);
    }
    slot.userspace_addr = (uintptr_t)m->ram;
    DO(m->vm, KVM_SET_USER_MEMORY_REGION, &slot);
    m->vcpu = (int)DO(m->vm, KVM_CREATE_VCPU, 0);
    m->run = mmap(NULL, (size_t)DO(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED,
                  m->vcpu, 0);
    m->cpuid = must_alloc(1, sizeof *m->cpuid + CPUIDS * sizeof m->cpuid->entries[0]);
    m->cpuid->nent = CPUIDS;
    DO(kvm, KVM_GET_SUPPORTED_CPUID, m->cpuid);
    /* Older kernels have the timer's deadline and do not list its bit. */
    for (unsigned i = 0; i < m->cpuid->nent; i++)
        if (m->cpuid->entries[i].function == 1 && DO(m->vm, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER) > 0)
            m->cpuid->entries[i].ecx |= 1 << 24;
    DO(m->vcpu, KVM_SET_CPUID2, m->cpuid);
    must(brant_guest_new(&ops, m, &m->guest, &e));
    must(brant_guest_add_block(m->guest, &(brant_ram_block){ .size = sizeof(brant_ram_block), .name = "ram",
                                                             .host = m->ram, .length = RAM, .fd = -1 },
                               &block, &e));
    must(brant_guest_add_slot(m->guest, &(brant_slot){ .size = sizeof(brant_slot), .block = block,
                                                       .length = RAM }, &e));
    return m;
}

static void vmm_free(struct vmm *m)
{
    brant_guest_free(m->guest);
    munmap(m->run, (size_t)DO(kvm, KVM_GET_VCPU_MMAP_SIZE, 0));
    close(m->vcpu);
    close(m->vm);
    munmap(m->ram, RAM);
    free(m->cpuid);
    free(m);
}

static struct kvm_segment segment_of(uint16_t selector, uint8_t type, bool code)
{
    return (struct kvm_segment){ .limit = 0xffffffff, .selector = selector, .type = type, .present = 1,
                                 .dpl = selector & 3, .db = !code, .s = 1, .l = code, .g = 1 };
}

static void begin(struct vmm *m, const uint8_t *program, bool level_3)
{
    struct kvm_regs r = { .rip = CODE + (uint64_t)(program - kvm_state_image), .rsp = STACK, .rflags = 2 };
    struct kvm_sregs s;

    DO(m->vcpu, KVM_GET_SREGS, &s);
    s.cs = segment_of(level_3 ? 0x1b : 0x08, 11, true);
    s.ds = s.es = s.fs = s.gs = s.ss = segment_of(level_3 ? 0x23 : 0x10, 3, false);
    s.tr = (struct kvm_segment){ .base = TSS, .limit = 0x67, .selector = 0x28, .type = 11, .present = 1 };
    s.ldt = (struct kvm_segment){ .type = 2, .unusable = 1 };
    s.gdt = (struct kvm_dtable){ .base = GDT, .limit = 7 * 8 - 1 };
    s.idt = (struct kvm_dtable){ .base = IDT, .limit = 0xfff };
    s.cr0 = 0x80050033;
    s.cr3 = TABLES;
    s.cr4 = 0x620 | (program == kvm_state_avx ? 1 << 18 : 0);
    s.efer = 0x500;
    DO(m->vcpu, KVM_SET_SREGS, &s);
    DO(m->vcpu, KVM_SET_REGS, &r);
}

/* Runs until the guest signals; what it signals. */
static int run_on(struct vmm *m)
{
    int signal;

    for (;;) {
        if (ioctl(m->vcpu, KVM_RUN, 0) < 0) {
            if (errno == EINTR || errno == EAGAIN)
                continue;
            bail("KVM_RUN: %s", strerror(errno));
        }
        if (m->run->exit_reason == KVM_EXIT_MMIO && m->run->mmio.phys_addr == SIGNAL)
            break;
        bail("unexpected exit %u", m->run->exit_reason);
    }
    signal = m->run->mmio.data[0];
    m->run->immediate_exit = 1;
    if (ioctl(m->vcpu, KVM_RUN, 0) == 0 || errno != EINTR)
        bail("the exit is not retired");
    m->run->immediate_exit = 0;
    return signal;
}

static void on_signal(int number)
{
    (void)number;
}

/* Runs until the guest stands in hlt: a timer ends KVM_RUN again and again. */
static void run_until_halted(struct vmm *m)
{
    struct sigaction action = { .sa_handler = on_signal };
    struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1 };
    struct itimerspec every = { { 0, 5000000 }, { 0, 5000000 } };
    struct kvm_mp_state state = { 0 };
    timer_t timer;

    sigaction(SIGUSR1, &action, NULL);
    if (timer_create(CLOCK_MONOTONIC, &event, &timer) || timer_settime(timer, 0, &every, NULL))
        bail("timer: %s", strerror(errno));
    do {
        if (ioctl(m->vcpu, KVM_RUN, 0) == 0 || (errno != EINTR && errno != EAGAIN))
            bail("the guest does not halt: exit %u", m->run->exit_reason);
        DO(m->vcpu, KVM_GET_MP_STATE, &state);
    } while (state.mp_state != HALTED);
    timer_delete(timer);
}

/* Migrates; the source's result. `why` gets its message. */
static int32_t migrate(struct vmm *from, struct vmm *to, char *why, size_t length)
{
    brant_kvm_log log = { .size = sizeof log, .vm_fd = from->vm };
    brant_tracker *tracker;
    brant_outgoing *out;
    brant_incoming *in;
    brant_error *error = NULL;
    int pair[2];
    int32_t status;

    must(brant_tracker_new(from->guest, NULL, &tracker, &e));
    must(brant_tracker_add_kvm(tracker, &log, &e));
    must(brant_outgoing_new(tracker, NULL, &out, &e));
    must(brant_incoming_new(to->guest, NULL, &in, &e));
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
        bail("socketpair: %s", strerror(errno));
    must(brant_incoming_start_fd(in, pair[1], &e));
    must(brant_outgoing_start_fd(out, pair[0], &e));
    status = brant_outgoing_wait(out, BRANT_NO_LIMIT, &error);
    snprintf(why, length, "%s", error ? brant_error_message(error) : "");
    brant_error_free(error);
    brant_incoming_wait(in, BRANT_NO_LIMIT, NULL);
    brant_outgoing_free(out);
    brant_incoming_free(in);
    brant_tracker_free(tracker);
    return status;
}

/* Runs a program to its first signal, migrates the guest, and runs it on: what it signals then. */
static int moved(struct vmm *from, struct vmm *to, const uint8_t *program, bool level_3)
{
    static const unsigned vectors[] = { 0x30, 0x40, 0x41 };
    char why[1024];

    for (unsigned i = 0; i < 3; i++)
        gate(from, vectors[i], kvm_state_handler);
    begin(from, program, level_3);
    run_on(from);
    if (migrate(from, to, why, sizeof why)) {
        note("%s", why);
        return -1;
    }
    return run_on(to);
}

/* ---- the tests ---- */

static void level_3_registers(void)
{
    struct vmm *from = vmm_new(false), *to = vmm_new(false);
    unsigned general = 0, vectors = 0;
    double x87[2];

    for (uint64_t n = 0; n < 32; n++)
        *word(from, INPUT + 8 * n) = pattern(n);
    *word(from, INPUT + 0x200) = 0x027full | 0x9fc0ull << 32;
    for (uint64_t n = 0; n < 16; n++)
        *word(from, INPUT + 0x300 + 8 * n) = pattern(32 + n);
    equal(moved(from, to, kvm_state_registers, true), 2, "a guest at level 3 runs on after its move");
    for (uint64_t n = 0; n < 16; n++)
        general += *word(to, DUMP + 8 * n) == pattern(32 + n);
    equal(general, 16, "and has its general registers");
    ok((*word(to, DUMP + 0x80) & 0x401) == 0x401, "its flags");
    for (uint64_t n = 0; n < 32; n++)
        vectors += *word(to, DUMP + 0x100 + 8 * n) == pattern(n);
    equal(vectors, 32, "its SSE registers");
    memcpy(x87, to->ram + DUMP + 0x208, sizeof x87);
    ok((*word(to, DUMP + 0x200) & 0xffff) == 0x027f && *word(to, DUMP + 0x200) >> 32 == 0x9fc0 &&
           x87[0] == M_PI && x87[1] == 1.0, "its x87 stack and both control words");
    if ((*word(to, DUMP + 0x228) & 0xffff) != 0x1b)
        skip("this KVM runs level 3 with selectors of its own", "its segments");
    else
        ok(*word(to, DUMP + 0x218) == 0x23 && *word(to, DUMP + 0x220) == (0x23 | 0x1bull << 32), "its segments");
    vmm_free(from);
    vmm_free(to);
}

static void avx(void)
{
    struct vmm *from = vmm_new(false), *to = vmm_new(false);
    struct kvm_xcrs x;
    unsigned found = 0;
    uint32_t features = 0;

    for (unsigned i = 0; i < from->cpuid->nent; i++)
        if (from->cpuid->entries[i].function == 1)
            features = from->cpuid->entries[i].ecx;
    if ((features >> 26 & 5) != 5) {
        skip("this KVM has no AVX for guests", "AVX registers, whole");
    } else {
        DO(from->vcpu, KVM_GET_XCRS, &x);
        x.xcrs[0].value = 7;
        DO(from->vcpu, KVM_SET_XCRS, &x);
        for (uint64_t n = 0; n < 64; n++)
            *word(from, INPUT + 8 * n) = pattern(n);
        moved(from, to, kvm_state_avx, true);
        for (uint64_t n = 0; n < 64; n++)
            found += *word(to, DUMP + 8 * n) == pattern(n);
        equal(found, 64, "AVX registers, whole");
    }
    vmm_free(from);
    vmm_free(to);
}

static void level_0_registers(void)
{
    static const uint64_t input[] = {
        0x0013000800000000ull, 0x00007f1234567000ull, 0x00047700, 0x0000555566667000ull, 0x0000123456789000ull,
        0x0007010600070406ull, 0x0000222233334000ull, 0x0000111122223000ull, 0x0000111122224000ull, 0x600,
        0x0000444455556000ull, 5
    };
    struct vmm *from = vmm_new(false), *to = vmm_new(false);
    unsigned same = 0, count = sizeof input / sizeof input[0];

    memcpy(from->ram + INPUT, input, sizeof input);
    equal(moved(from, to, kvm_state_system, false), 2, "a guest at level 0 runs on after its move");
    for (unsigned i = 0; i < count; i++) {
        uint64_t found = *word(to, DUMP + 8 * i) & ~(i == 9 ? 0x400ull : 0);
        /* A processor without AMD's or Intel's other way into the kernel has 32 bits there. */
        bool equal = found == (input[i] & ~(i == 9 ? 0x400ull : 0)) || (i == 4 && (uint32_t)found == (uint32_t)input[i]);

        same += equal;
        if (!equal)
            note("word %u: found %#llx, expected %#llx", i, (unsigned long long)found,
                 (unsigned long long)input[i]);
    }
    equal(same, count, "and has its MSRs, debug registers, CR2 and CR8");
    ok(*word(to, DUMP + 0x68) > *word(to, DUMP + 0x60), "its TSC went on");
    vmm_free(from);
    vmm_free(to);
}

static void interrupts(void)
{
    static const struct {
        const uint8_t *program;
        const char *promise;
        uint64_t input;
    } of[] = {
        { kvm_state_self_ipi, "an interrupt that the local APIC holds is taken after the move", 0 },
        { kvm_state_timer, "the local APIC's timer fires after the move", 100000000 },
        { kvm_state_deadline, "the deadline of the TSC passes after the move", 200000000 },
        { kvm_state_pit, "the PIT's interrupt comes after the move, through the PIC", 0 },
    };

    for (unsigned i = 0; i < sizeof of / sizeof of[0]; i++) {
        struct vmm *from = vmm_new(true), *to = vmm_new(true);

        *word(from, INPUT) = of[i].input;
        equal(moved(from, to, of[i].program, false), 9, "%s", of[i].promise);
        vmm_free(from);
        vmm_free(to);
    }
}

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* A guest reads KVM's clock before its move and after it. */
static void clocks(void)
{
    struct vmm *from = vmm_new(false), *to = vmm_new(false);
    uint64_t began = now_ns(), took, went;

    equal(moved(from, to, kvm_state_clock, false), 2, "a guest with KVM's clock runs on after its move");
    took = now_ns() - began;
    went = *word(to, DUMP + 0x68) - *word(to, DUMP + 0x60);
    note("the guest's clock went on by %llu us, the test took %llu us", (unsigned long long)went / 1000,
         (unsigned long long)took / 1000);
    ok(went > 0 && went <= took + 5000000, "and its clock neither stands nor jumps");
    ok(*word(to, DUMP + 0x70) & 2, "and says that the guest stood still");
    vmm_free(from);
    vmm_free(to);
}

/* A guest of the guest's own, which is running when the guest moves. */
static void nested(void)
{
    struct vmm *from = vmm_new(false), *to = vmm_new(false);
    static const struct { uint32_t at; uint64_t value; } vmcb[] = {
        { 0x010, 3 },                              /* intercepts: VMRUN, VMMCALL */
        { 0x058, 1 },                              /* ASID */
        { 0x400, 0xffffffff0c930010 },             /* ES: selector, attributes, limit */
        { 0x410, 0xffffffff0a9b0008 },             /* CS */
        { 0x420, 0xffffffff0c930010 },             /* SS */
        { 0x430, 0xffffffff0c930010 },             /* DS */
        { 0x460, 55ull << 32 }, { 0x468, GDT },
        { 0x480, 0xfffull << 32 }, { 0x488, IDT },
        { 0x4d0, 0x1500 },                         /* EFER: SVME LMA LME */
        { 0x548, 0x620 }, { 0x550, TABLES }, { 0x558, 0x80050033 },
        { 0x560, 0x400 }, { 0x568, 0xffff0ff0 },   /* DR7, DR6 */
        { 0x570, 2 }, { 0x5d8, STACK }, { 0x668, 0x0007040600070406ull },
    };
    uint64_t state[1100] = { 0 };
    struct kvm_nested_state *head = (void *)state;
    uint32_t features = 0;

    for (unsigned i = 0; i < from->cpuid->nent; i++)
        if (from->cpuid->entries[i].function == 0x80000001)
            features = from->cpuid->entries[i].ecx;
    if (DO(from->vm, KVM_CHECK_EXTENSION, KVM_CAP_NESTED_STATE) == 0 || !(features & 4)) {
        skip("this KVM has no KVM_CAP_NESTED_STATE with SVM", "a guest of the guest's runs on after the move");
        skip("as above", "and its exit comes to the guest");
    } else {
        for (unsigned i = 0; i < sizeof vmcb / sizeof vmcb[0]; i++)
            *word(from, VMCB + vmcb[i].at) = vmcb[i].value;
        equal(moved(from, to, kvm_state_nested, false), 2, "a guest of the guest's runs on after the move");
        head->size = sizeof state;
        DO(from->vcpu, KVM_GET_NESTED_STATE, state);
        ok((head->flags & KVM_STATE_NESTED_GUEST_MODE) && *word(to, DUMP + 0x60) == 0x81,
           "and its exit comes to the guest");
        note("flags %#x, exit %#llx", head->flags, (unsigned long long)*word(to, DUMP + 0x60));
    }
    vmm_free(from);
    vmm_free(to);
}

static void halted(void)
{
    struct vmm *from = vmm_new(true), *to = vmm_new(true);
    struct kvm_mp_state state = { 0 };
    struct kvm_msi msi = { .address_lo = 0xfee00000, .data = 0x40 };
    struct kvm_clock_data before, after;
    char why[1024];

    gate(from, 0x40, kvm_state_handler);
    begin(from, kvm_state_halt, false);
    run_until_halted(from);
    DO(from->vm, KVM_GET_CLOCK, &before);
    must(migrate(from, to, why, sizeof why));
    DO(to->vcpu, KVM_GET_MP_STATE, &state);
    DO(to->vm, KVM_GET_CLOCK, &after);
    ok(after.clock >= before.clock, "KVM's clock does not go back");
    equal(state.mp_state, HALTED, "a guest that has halted stands after its move");
    DO(to->vm, KVM_SIGNAL_MSI, &msi);
    equal(run_on(to), 9, "and an interrupt wakes it up");
    vmm_free(from);
    vmm_free(to);
}

static void refused(void)
{
    struct vmm *from = vmm_new(true), *to = vmm_new(true);
    char why[1024];
    brant_error *error = NULL;

    begin(from, kvm_state_self_ipi, false);
    run_on(from);
    for (unsigned i = 0; i < to->cpuid->nent; i++)
        if (to->cpuid->entries[i].function == 0x80000002)
            to->cpuid->entries[i].eax ^= 1;
    ok(migrate(from, to, why, sizeof why) && strstr(why, "leaf 0x80000002.0 EAX") && to->loads == 0,
       "a destination with another CPUID refuses before the guest is paused, and names the bits");
    note("%s", why);
    DO(to->vcpu, KVM_SET_CPUID2, to->cpuid);
    from->no_compat = true;
    ok(migrate(from, to, why, sizeof why) && strstr(why, "leaf 0x80000002.0 EAX") && to->loads == 1,
       "and so does one that only finds out when it loads");
    note("%s", why);
    ok(brant_kvm_vcpu_stood_still(from->vm, &error) == BRANT_E_INVALID &&
           strstr(brant_error_message(error), "found the descriptor of a VM"),
       "a descriptor of another kind is named");
    brant_error_free(error);
    vmm_free(from);
    vmm_free(to);
}

/* Each descriptor in the place of each other one, and closed. */
static void descriptors(void)
{
    struct vmm *m = vmm_new(true);
    int closed = dup(m->vcpu);
    const struct { int kvm, vm, vcpu; const char *said; } of[] = {
        { m->vm, m->vm, m->vcpu, "kvm_fd: expected a descriptor of /dev/kvm, found the descriptor of a VM" },
        { m->vcpu, m->vm, m->vcpu, "kvm_fd: expected a descriptor of /dev/kvm, found the descriptor of a vCPU" },
        { closed, m->vm, m->vcpu, "kvm_fd: expected a descriptor of /dev/kvm, found no open descriptor" },
        { kvm, kvm, m->vcpu, "vm_fd: expected the descriptor that KVM_CREATE_VM returned, found /dev/kvm itself" },
        { kvm, m->vcpu, m->vcpu, "vm_fd: expected the descriptor that KVM_CREATE_VM returned, found the descriptor of a vCPU" },
        { -1, closed, m->vcpu, "vm_fd: expected the descriptor that KVM_CREATE_VM returned, found no open descriptor" },
        { -1, -1, m->vcpu, "vm_fd is -1" },
        { kvm, m->vm, kvm, "vcpu_fd: expected the descriptor that KVM_CREATE_VCPU returned, found /dev/kvm itself" },
        { kvm, m->vm, m->vm, "vcpu_fd: expected the descriptor that KVM_CREATE_VCPU returned, found the descriptor of a VM" },
        { kvm, m->vm, closed, "vcpu_fd: expected the descriptor that KVM_CREATE_VCPU returned, found no open descriptor" },
        { kvm, m->vm, m->vcpu, "state `kvm-vcpu`: it is cut short" },
    };
    const brant_state_blob blob = { .size = sizeof blob, .name = "kvm-vcpu", .version = 2 };
    unsigned said = 0, count = sizeof of / sizeof of[0];

    close(closed);
    for (unsigned i = 0; i < count; i++) {
        brant_error *error = NULL;
        int32_t status = brant_kvm_vcpu_load(of[i].kvm, of[i].vm, of[i].vcpu, &blob, &error);
        bool good = status == BRANT_E_INVALID && strstr(brant_error_message(error), of[i].said);

        said += good;
        if (!good)
            note("%u: %d: %s", i, status, error ? brant_error_message(error) : "nothing");
        brant_error_free(error);
    }
    equal(said, count, "each descriptor that is another one or closed is named, with what it has to be");
    vmm_free(m);
}

int main(void)
{
    kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm < 0)
        skip_all("there is no /dev/kvm");
    plan(26);
    level_3_registers();
    avx();
    level_0_registers();
    interrupts();
    clocks();
    nested();
    halted();
    refused();
    descriptors();
    return done();
}
