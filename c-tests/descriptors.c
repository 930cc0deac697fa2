/*
 * Who owns a descriptor. A descriptor that the VMM lends to a call stays the VMM's: it may close it
 * right after, and brant goes on with a duplicate. A refused call keeps no duplicate. A connected
 * socket is handed over: brant closes it, whatever the call returns. Without KVM the calls that
 * need it are left out.
 */
#include "still.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

enum { FDS = 1024 };

static bool is_open(int fd)
{
    return fcntl(fd, F_GETFD) >= 0;
}

static int open_descriptors(void)
{
    int n = 0;

    for (int fd = 0; fd < FDS; fd++)
        n += is_open(fd);
    return n;
}

/* How many descriptors name the same file as `fd`, itself not counted; the last of them. */
static int others_of(int fd, int *other)
{
    struct stat file, found;
    int n = 0;

    if (fstat(fd, &file))
        bail("fstat: %s", strerror(errno));
    for (int i = 0; i < FDS; i++)
        if (i != fd && fstat(i, &found) == 0 && found.st_ino == file.st_ino &&
            found.st_dev == file.st_dev) {
            *other = i;
            n++;
        }
    return n;
}

static int memfd(uint64_t bytes)
{
    int fd = memfd_create("lent", 0);

    if (fd < 0 || ftruncate(fd, (off_t)bytes))
        bail("memfd: %s", strerror(errno));
    return fd;
}

static char *mapped(int fd, uint64_t bytes)
{
    char *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    if (at == MAP_FAILED)
        bail("mmap: %s", strerror(errno));
    return at;
}

/* ---- lent, and closed right after the call ---- */

/* Other files at the numbers that were lent, so that a call on a number that brant kept fails. */
static int strangers[64], nstrangers;

static int lent_for_a_call(int fd)
{
    return dup(fd);
}

static void closed_after_it(int fd)
{
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);

    if (null < 0 || dup2(null, fd) != fd || nstrangers == 64)
        bail("no other descriptor at %d: %s", fd, strerror(errno));
    close(null);
    strangers[nstrangers++] = fd;
}

static struct vm *vm_of(enum mv_kind kind, uint64_t ring_bytes, bool incoming)
{
    struct mv_config c = { .kind = kind,
                           .vcpus = 2,
                           .memory_bytes = 16 * MIB,
                           .memfd = true,
                           .workload = GV_RANDOM,
                           .rate = 20000,
                           .fill_percent = 50,
                           .incoming = incoming };
    struct vm *vm = vm_new_with_rings(&c, ring_bytes);
    struct tracking how = { "lent", ring_bytes ? BRANT_KVM_RING : BRANT_KVM_AUTO, 0, 0 };
    brant_tracker *tracker;

    if (kind == MV_KVM) {
        vm_track(vm, &how);
        return vm;
    }
    must(brant_tracker_new(vm->guest, NULL, &tracker, &e));
    atomic_store(&vm->tracker, tracker);
    return vm;
}

static void moves(const char *name, enum mv_kind kind, uint64_t ring_bytes)
{
    int before = open_descriptors();
    struct vm *from, *to;
    struct journey j;

    lent = lent_for_a_call;
    lent_back = closed_after_it;
    from = vm_of(kind, ring_bytes, false);
    to = vm_of(kind, ring_bytes, true);
    note("%s: %d descriptors were lent", name, nstrangers);
    vm_start(from);
    vm_writes(from, 500);
    journey_new(&j, from, to, NULL);
    journey_begin(&j, false);
    journey_end(&j, false);
    if (!ok(j.source.code == 0 && j.destination.code == 0 && journey_equal(&j) && vm_runs_clean(to),
            "%s: a guest moves whose descriptors the VMM closed after each call", name))
        note("source: %s; destination: %s", j.source.why, j.destination.why);
    vm_free(from);
    vm_free(to);
    lent = NULL;
    lent_back = NULL;
    while (nstrangers)
        close(strangers[--nstrangers]);
    equal(open_descriptors(), before, "%s: and brant's duplicates are gone with it", name);
}

/* ---- what brant keeps ---- */

static void kept(void)
{
    int fd = memfd(4 * MIB), other = -1, standard, zero;
    brant_ram_block block = { .size = sizeof block, .name = "ram", .host = mapped(fd, 4 * MIB),
                              .length = 4 * MIB, .fd = fd, .flags = BRANT_RAM_FILE };
    brant_guest *guest;
    uint32_t id;

    must(brant_guest_new(NULL, NULL, &guest, &e));
    must(brant_guest_add_block(guest, &block, &id, &e));
    ok(others_of(fd, &other) == 1 && fcntl(other, F_GETFD) == FD_CLOEXEC &&
           fcntl(fd, F_GETFD) == 0,
       "brant keeps one duplicate, which is closed on exec; the VMM's own is as it was");
    must(brant_guest_remove_block(guest, id, &e));
    equal(others_of(fd, &other), 0, "it is closed with its block");

    /* The lowest free number is 0. */
    standard = dup(0);
    close(0);
    zero = dup(fd);
    block.fd = zero;
    ok(zero == 0 && brant_guest_add_block(guest, &block, NULL, NULL) == 0 && is_open(0),
       "descriptor 0 is lent like any other");
    brant_guest_free(guest);
    close(zero);
    if (standard >= 0) {
        dup2(standard, 0);
        close(standard);
    }
    equal(others_of(fd, &other), 0, "and freeing the guest closes the duplicate of a block that it has");
    munmap(block.host, 4 * MIB);
    close(fd);
}

/* ---- descriptors of something else ---- */

static brant_error *said;

static bool invalid(int32_t code, const char *what, const char *expected, const char *found)
{
    const char *words = said ? brant_error_message(said) : "no error";
    bool good = code == BRANT_E_INVALID && strstr(words, expected) && strstr(words, found);

    if (!good)
        note("%s: %d, \"%s\"", what, code, words);
    brant_error_free(said);
    said = NULL;
    return good;
}

static bool invalid_vm(struct still *s, int fd, const char *what, const char *expected, const char *found)
{
    brant_kvm_log log = { .size = sizeof log, .vm_fd = fd };

    return invalid(brant_tracker_add_kvm(s->tracker, &log, &said), what, expected, found) &&
           invalid(brant_kvm_enable_ring(fd, 0, NULL, &said), what, expected, found);
}

static void of_something_else(void)
{
    struct still s = still_new();
    int fd = memfd(s.bytes), null = open("/dev/null", O_RDWR | O_CLOEXEC), pipes[2];
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), vm = kvm < 0 ? -1 : ioctl(kvm, 0xae01, 0);
    int vcpu = vm < 0 ? -1 : ioctl(vm, 0xae41, 0);
    const char *a_vm = "the descriptor that KVM_CREATE_VM returned";
    brant_ram_block lent = block_of(&s), negative = block_of(&s), flagged = block_of(&s);
    char *file = mapped(fd, s.bytes);
    bool all = true;

    if (pipe2(pipes, O_CLOEXEC))
        bail("pipe2: %s", strerror(errno));
    all &= invalid_vm(&s, fd, "a memfd as a VM", a_vm, "found a file");
    all &= invalid_vm(&s, null, "/dev/null as a VM", a_vm, "found a character device");
    all &= invalid_vm(&s, pipes[0], "a pipe as a VM", a_vm, "found a pipe");
    if (kvm >= 0)
        all &= invalid_vm(&s, kvm, "/dev/kvm as a VM", a_vm, "found /dev/kvm itself");
    if (vcpu >= 0)
        all &= invalid_vm(&s, vcpu, "a vCPU as a VM", a_vm, "found a descriptor");
    all &= invalid_vm(&s, -1, "-1 as a VM", "no open descriptor", "is -1");
    all &= invalid_vm(&s, -5, "-5 as a VM", "no open descriptor", "is -5");
    ok(all, "a descriptor that is of no VM is invalid, and the error says what it is");

    lent.name = negative.name = flagged.name = "other";
    lent.flags = flagged.flags = BRANT_RAM_FILE;
    lent.host = file;
    lent.fd = pipes[0];
    negative.fd = flagged.fd = -5;
    all = invalid(brant_guest_add_block(s.guest, &lent, NULL, &said), "a pipe as a file", "block `other`",
                  "found a pipe") &&
          invalid(brant_guest_add_block(s.guest, &negative, NULL, &said), "-5", "fd is -5", "0 or -1") &&
          invalid(brant_guest_add_block(s.guest, &flagged, NULL, &said), "-5 with BRANT_RAM_FILE", "is -5",
                  "no open descriptor");
    ok(all, "a block's descriptor is one of a file, and no negative number but -1");
    close(pipes[0]);
    close(pipes[1]);
    still_free(&s);
    munmap(file, s.bytes);
    close(fd);
    close(null);
    close(vcpu);
    close(vm);
    close(kvm);
}

/* ---- calls that are refused ---- */

struct refusal {
    const char *what;
    int32_t code;
};

static void refused(void)
{
    struct still s = still_new();
    int fd = memfd(s.bytes), null = open("/dev/null", O_RDWR | O_CLOEXEC), before, other;
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), vm = kvm < 0 ? -1 : ioctl(kvm, 0xae01, 0);
    struct {
        brant_ram_block block;
        uint64_t unknown;
    } more = { .block = block_of(&s), .unknown = 1 };
    brant_ram_block taken = block_of(&s), elsewhere = block_of(&s), flagless = block_of(&s),
                    failed = block_of(&s);
    brant_kvm_log mode = { .size = sizeof mode, .vm_fd = vm < 0 ? null : vm, .mode = 17 };
    brant_kvm_log no_vm = { .size = sizeof no_vm, .vm_fd = null };
    brant_kvm_log by_vmm = { .size = sizeof by_vmm, .vm_fd = vm < 0 ? null : vm,
                             .switched_by = BRANT_SWITCHED_BY_VMM };
    brant_kvm_log no_rings = { .size = sizeof no_rings, .vm_fd = vm < 0 ? null : vm,
                               .mode = BRANT_KVM_RING };
    brant_vfio_log vfio = { .size = sizeof vfio, .fd = null };
    brant_iommufd_log iommufd = { .size = sizeof iommufd, .fd = null, .hwpt_id = 1 };

    taken.fd = elsewhere.fd = flagless.fd = more.block.fd = fd;
    failed.fd = -1;
    taken.flags = elsewhere.flags = more.block.flags = failed.flags = BRANT_RAM_FILE;
    elsewhere.name = "other";
    failed.name = "failed";
    flagless.name = "flagless";
    more.block.size = sizeof more;
    must(brant_tracker_start(s.tracker, BRANT_START_CLEAN, &e));
    must(brant_tracker_stop(s.tracker, &e));
    before = open_descriptors();
    const struct refusal refusals[] = {
        { "a block whose name is there", brant_guest_add_block(s.guest, &taken, NULL, NULL) },
        { "a block that is no mapping of the file", brant_guest_add_block(s.guest, &elsewhere, NULL, NULL) },
        { "a file without BRANT_RAM_FILE", brant_guest_add_block(s.guest, &flagless, NULL, NULL) },
        { "the result of a failed dup", brant_guest_add_block(s.guest, &failed, NULL, NULL) },
        { "a block with an unknown field", brant_guest_add_block(s.guest, &more.block, NULL, NULL) },
        { "a block of no guest", brant_guest_add_block(NULL, &taken, NULL, NULL) },
        { "a KVM log of an unknown mode", brant_tracker_add_kvm(s.tracker, &mode, NULL) },
        { "a KVM log of what is no VM", brant_tracker_add_kvm(s.tracker, &no_vm, NULL) },
        { "a KVM log without its operations", brant_tracker_add_kvm(s.tracker, &by_vmm, NULL) },
        { "rings of a VM without any", brant_tracker_add_kvm(s.tracker, &no_rings, NULL) },
        { "rings for what is no VM", brant_kvm_enable_ring(null, 0, NULL, NULL) },
        { "rings of no size", brant_kvm_enable_ring(vm < 0 ? null : vm, 5000, NULL, NULL) },
        { "a vCPU of a tracker without rings", brant_tracker_add_vcpu(s.tracker, 0, null, NULL) },
        { "what is no VFIO device", brant_tracker_add_vfio_device(s.tracker, &vfio, NULL) },
        { "what is no VFIO container", brant_tracker_add_vfio_container(s.tracker, &vfio, NULL) },
        { "what is no iommufd", brant_tracker_add_iommufd(s.tracker, &iommufd, NULL) },
    };
    bool all = true;

    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++)
        if (refusals[i].code == 0) {
            note("%s was not refused", refusals[i].what);
            all = false;
        }
    ok(all, "what cannot be is refused, whatever is lent for it");
    ok(open_descriptors() == before && others_of(fd, &other) == 0,
       "and a refused call keeps no duplicate");
    ok(is_open(fd) && is_open(null) && (vm < 0 || is_open(vm)), "nor closes what it was lent");
    still_free(&s);
    close(fd);
    close(null);
    close(vm);
    close(kvm);
}

/* ---- sockets ---- */

static int socket_new(void)
{
    int pair[2];

    make_socketpair(pair);
    close(pair[1]);
    return pair[0];
}

static void handed_over(void)
{
    struct still s = still_new();
    brant_outgoing *out;
    brant_incoming *in;
    int fd;

    must(brant_outgoing_new(s.tracker, NULL, &out, &e));
    must(brant_incoming_new(s.guest, NULL, &in, &e));
    brant_outgoing_cancel(out, NULL);
    brant_incoming_cancel(in, NULL);
    fd = socket_new();
    ok(brant_outgoing_start_fd(out, fd, NULL) == BRANT_E_CANCELLED && !is_open(fd),
       "the socket of a migration that was cancelled before it started is closed");
    fd = socket_new();
    ok(brant_incoming_start_fd(in, fd, NULL) == BRANT_E_CANCELLED && !is_open(fd),
       "at the destination too");
    fd = socket_new();
    ok(brant_outgoing_start_fd(NULL, fd, NULL) == BRANT_E_INVALID && !is_open(fd) &&
           (fd = socket_new()) >= 0 && brant_incoming_start_fd(NULL, fd, NULL) == BRANT_E_INVALID &&
           !is_open(fd),
       "and that of no migration at all");
    brant_outgoing_free(out);
    brant_incoming_free(in);
    still_free(&s);
}

int main(void)
{
    char why[300];
    bool kvm = mv_kvm_available(why, sizeof why) == 0;
    bool rings = kvm && rings_available(RING_DEFAULT, why, sizeof why) == 0;

    if (!rings)
        note("left out: %s", why);
    plan(2 * (1 + kvm + rings) + 4 + 2 + 3 + 3);
    random_begin();
    moves("plain memory", MV_PROCESS, 0);
    if (kvm)
        moves("KVM's bitmaps", MV_KVM, 0);
    if (rings)
        moves("KVM's rings", MV_KVM, RING_DEFAULT);
    kept();
    of_something_else();
    refused();
    handed_over();
    return done();
}
