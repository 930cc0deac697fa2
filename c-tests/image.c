/*
 * A real guest in a file: saved while it runs, and restored into another machine of this process.
 * On both machines the guest's own check program finds nothing missing, and every page is as it was
 * at the pause. When a save fails, the guest runs on and there is no file.
 */
#include "support.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/resource.h>
#include <sys/stat.h>

static const struct mv_config config = {
    .vcpus = 2,
    .nregions = 2,
    .regions = { { .bytes = 24 * MIB }, { .bytes = 8 * MIB + PAGE, .memfd = true } },
    .workload = GV_MIXED,
    .rate = 20000,
    .fill_percent = 40,
};

static char directory[64], path[128];

/* Files in the test's directory. */
static unsigned files(void)
{
    DIR *d = opendir(directory);
    struct dirent *entry;
    unsigned count = 0;

    if (!d)
        bail("%s: %s", directory, strerror(errno));
    while ((entry = readdir(d)))
        count += entry->d_name[0] != '.' || strlen(entry->d_name) > 2;
    closedir(d);
    return count;
}

/* The image must have the memory at the end of the save of state. */
static int32_t digest_at_save(struct vm *vm, enum op op, brant_reason *reason)
{
    (void)reason;
    if (op == OP_SAVE) {
        mv_counters(vm->machine, -1, &vm->frozen);
        vm_digest(vm, vm->digests);
    }
    return 0;
}

/* The guest as it is at the start of the save, whose writes afterwards find little room. */
static const brant_image_save_params at_start = {
    .size = sizeof at_start,
    .instant = BRANT_IMAGE_INSTANT_START,
    .max_copy_bytes = MIB,
};

static struct vm *destination(void)
{
    struct mv_config there = config;

    there.incoming = true;
    return vm_new(&there);
}

static int32_t save(struct vm *vm, const brant_image_save_params *params, brant_image_stats *stats, char *why, size_t len)
{
    brant_image_save *save;
    brant_error *e = NULL;
    int32_t code;

    must(brant_image_save_new(atomic_load(&vm->tracker), params, &save, &e));
    code = brant_image_save_start(save, path, &e);
    if (code == 0)
        code = brant_image_save_wait(save, patience(60000), &e);
    snprintf(why, len, "%s", e ? brant_error_message(e) : "");
    brant_error_free(e);
    must(brant_image_save_get_stats(save, stats, &e));
    brant_image_save_free(save);
    return code;
}

static int32_t restore_with(struct vm *vm, const brant_image_restore_params *params, brant_image_stats *stats, char *why,
                            size_t len)
{
    brant_image_restore *restore;
    brant_error *e = NULL;
    int32_t code;

    must(brant_image_restore_new(vm->guest, params, &restore, &e));
    code = brant_image_restore_start(restore, path, &e);
    if (code == 0)
        code = brant_image_restore_wait(restore, patience(60000), &e);
    snprintf(why, len, "%s", e ? brant_error_message(e) : "");
    brant_error_free(e);
    must(brant_image_restore_get_stats(restore, stats, &e));
    brant_image_restore_free(restore);
    return code;
}

static int32_t restore(struct vm *vm, brant_image_stats *stats, char *why, size_t len)
{
    return restore_with(vm, NULL, stats, why, len);
}

/* Starts a guest before its memory is here, has it run on pages that come when they are touched, and hurries then. */
static int32_t restore_at_once(struct vm *vm, brant_image_stats *stats, bool *clean, char *why, size_t len)
{
    brant_image_restore_params params = { .size = sizeof params, .lazy = 1 };
    brant_image_restore *restore;
    brant_error *e = NULL;
    int32_t code;

    must(brant_image_restore_new(vm->guest, &params, &restore, &e));
    code = brant_image_restore_start(restore, path, &e);
    while (code == 0 && atomic_load(&vm->calls[OP_RUN]) == 0 && brant_image_restore_wait(restore, 1, NULL) == BRANT_E_PENDING)
        ;
    *clean = code == 0 && atomic_load(&vm->calls[OP_RUN]) == 1 && vm_runs_clean(vm);
    if (code == 0)
        code = brant_image_restore_finish(restore, patience(60000), &e);
    snprintf(why, len, "%s", e ? brant_error_message(e) : "");
    brant_error_free(e);
    must(brant_image_restore_get_stats(restore, stats, &e));
    brant_image_restore_free(restore);
    return code;
}

/* How many pages differ between a saved guest and a restored one. */
static uint64_t differs(const struct vm *from, const struct vm *to)
{
    uint64_t count = 0;

    for (uint64_t page = 0; page < from->pages; page++)
        if (from->digests[page] != to->digests[page] && count++ < 5)
            note("guest page %#" PRIx64 " was restored differently", page);
    return count + (from->frozen.writes != to->frozen.writes);
}

/* vCPUs fault on pages that are not here, and the guest itself finds each of them as it was. */
static void started_at_once(void)
{
    static const struct tracking how = { "manual protect", BRANT_KVM_MANUAL_PROTECT, BRANT_CLEAR_CHUNKED, 6 };
    struct vm *from = vm_new(&config), *to = destination();
    brant_image_stats stats = { .size = sizeof stats };
    brant_image_restore_params params = { .size = sizeof params, .lazy = 2 };
    brant_image_restore *restore;
    brant_error *e = NULL;
    char why[512];
    bool clean;
    uint32_t state;
    int32_t code;

    from->at = digest_at_save;
    vm_track(from, &how);
    vm_start(from);
    vm_writes(from, 3000);
    code = save(from, NULL, &stats, why, sizeof why);
    equal(code, 0, "lazy: a running guest is saved (%s)", why);
    equal(brant_image_restore_new(to->guest, &params, &restore, &e), BRANT_E_INVALID, "lazy is 0 or 1");
    brant_error_free(e);
    code = restore_at_once(to, &stats, &clean, why, sizeof why);
    equal(code, 0, "lazy: it is restored into a machine that runs meanwhile (%s)", why);
    ok(clean, "lazy: the guest goes on before its memory is here, and finds all of its pages");
    must(brant_guest_get_state(to->guest, &state, &e));
    equal(state, BRANT_GUEST_HERE, "lazy: in the end the whole guest is here");
    ok(stats.faults > 0 && stats.lost_pages == 0 && stats.remaining_bytes == 0 && stats.fault_max_ns >= stats.fault_p99_ns,
       "lazy: the figures say so (%" PRIu64 " faults, %" PRIu64 " pages waited for)", stats.faults, stats.urgent_pages);
    ok(vm_runs_clean(to), "lazy: and it runs on");
    vm_free(from);
    vm_free(to);
    unlink(path);
}

static void there_and_back(const struct tracking *how, uint64_t ring, const brant_image_save_params *params)
{
    struct vm *from = vm_new_with_rings(&config, ring), *to = destination();
    brant_image_stats saved = { .size = sizeof saved }, restored = { .size = sizeof restored };
    char why[512];
    int32_t code;

    from->at = digest_at_save;
    vm_track(from, how);
    vm_start(from);
    vm_writes(from, 3000);
    code = save(from, params, &saved, why, sizeof why);
    equal(code, 0, "%s: a running guest is saved (%s)", how->name, why);
    ok(saved.state == BRANT_IMAGE_COMPLETED && saved.progress == 10000 && saved.downtime_ns != BRANT_UNKNOWN &&
           saved.file_bytes <= (33 + 8) * MIB,
       "%s: the figures say so", how->name);
    ok(vm_runs_clean(from), "%s: it runs on", how->name);
    code = restore(to, &restored, why, sizeof why);
    equal(code, 0, "%s: it is restored into another machine (%s)", how->name, why);
    if (code == 0) {
        equal(differs(from, to), 0, "%s: every page is as it was when the guest was paused", how->name);
        ok(vm_runs_clean(to), "%s: the restored guest goes on, and finds all of its pages", how->name);
    } else {
        skip("it was not restored", "%s: every page is as it was when the guest was paused", how->name);
        skip("it was not restored", "%s: the restored guest goes on, and finds all of its pages", how->name);
    }
    vm_free(from);
    vm_free(to);
    unlink(path);
}

/* A file system without room for the guest. */
static void full_disk(struct vm *vm)
{
    brant_image_stats stats = { .size = sizeof stats };
    char why[512];
    int32_t code;

    if (mount("tmpfs", directory, "tmpfs", 0, "size=4m")) {
        for (int i = 0; i < 3; i++)
            skip("no file system can be mounted here", "a full disk fails the save and the guest runs on");
        return;
    }
    code = save(vm, NULL, &stats, why, sizeof why);
    ok(code == BRANT_E_KERNEL && strstr(why, strerror(ENOSPC)), "a full disk fails the save (%s)", why);
    equal(files(), 0, "no file is left on it");
    ok(vm_runs_clean(vm), "the guest runs on");
    if (umount(directory))
        bail("umount: %s", strerror(errno));
}

/* Whether this process may have a userfaultfd for faults of the kernel. */
static bool can_protect(void)
{
    long fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

    if (fd >= 0)
        close((int)fd);
    return fd >= 0 || !access("/dev/userfaultfd", R_OK | W_OK);
}

static void refusals(void)
{
    static const struct tracking how = { "manual protect", BRANT_KVM_MANUAL_PROTECT, BRANT_CLEAR_CHUNKED, 6 };
    struct vm *vm = vm_new(&config);
    brant_image_save_params params[] = { at_start, at_start, at_start, at_start };
    brant_image_save *save;

    vm_track(vm, &how);
    params[0].guest = BRANT_IMAGE_STAY_PAUSED;
    params[1].guest = BRANT_IMAGE_ALREADY_PAUSED;
    params[2].max_copy_bytes = MIB - 1;
    params[3].instant = 2;
    for (unsigned i = 0; i < 4; i++) {
        int32_t code = brant_image_save_new(atomic_load(&vm->tracker), &params[i], &save, NULL);

        equal(code, BRANT_E_INVALID, "parameters that contradict a save of the start are refused, %u", i);
    }
    equal(brant_guest_before_discard(vm->guest, 0, 16 * MIB, NULL), 0, "without a save a discard waits for nobody");
    vm_free(vm);
}

/* A guest that runs on is saved four times, each image with what changed since the one before, and a fifth time onto a
 * disk that is full meanwhile. Every image is the guest at its instant, and so is the one full image of them. */
static void chain_of_images(bool start_too)
{
    static const struct tracking how = { "chain", BRANT_KVM_MANUAL_PROTECT, BRANT_CLEAR_CHUNKED, 6 };
    static const char *words[] = { "holds all of memory", "holds what changed", "holds what changed, after a failure",
                                   "of the start holds what changed" };
    struct vm *from = vm_new(&config), *other = vm_new(&config), *to;
    brant_image_stats stats = { .size = sizeof stats };
    brant_image_save_params params = { .size = sizeof params };
    brant_image_chain *chain, *others;
    brant_image_save *refused;
    struct rlimit limit, small;
    char first[128], why[512], last[sizeof path];
    int32_t code;

    memcpy(last, path, sizeof path);
    from->at = digest_at_save;
    vm_track(from, &how);
    vm_track(other, &how);
    must(brant_image_chain_new(atomic_load(&from->tracker), &chain, &e));
    must(brant_image_chain_new(atomic_load(&other->tracker), &others, &e));
    params.chain = others;
    equal(brant_image_save_new(atomic_load(&from->tracker), &params, &refused, NULL), BRANT_E_INVALID,
          "a chain of another tracker is refused");
    brant_image_chain_free(others);
    vm_free(other);
    params.chain = chain;
    vm_start(from);
    vm_writes(from, 3000);
    for (int number = 0; number < 4; number++) {
        if (number == 2) {
            getrlimit(RLIMIT_FSIZE, &limit);
            small = limit;
            small.rlim_cur = MIB;
            setrlimit(RLIMIT_FSIZE, &small);
            snprintf(path, sizeof path, "%s/chain.full", directory);
            code = save(from, &params, &stats, why, sizeof why);
            setrlimit(RLIMIT_FSIZE, &limit);
            equal(code, BRANT_E_KERNEL, "chain: a save without room fails (%s)", why);
        }
        if (number == 3 && start_too)
            params.instant = BRANT_IMAGE_INSTANT_START;
        snprintf(path, sizeof path, "%s/chain.%d", directory, number);
        vm_writes(from, 500);
        code = save(from, &params, &stats, why, sizeof why);
        equal(code, 0, "chain: image %d %s (%s)", number, words[number], why);
        to = destination();
        code = restore(to, &stats, why, sizeof why);
        equal(code, 0, "chain: image %d is restored (%s)", number, why);
        equal(differs(from, to), 0, "chain: image %d is the guest at its instant", number);
        ok(vm_runs_clean(to), "chain: the guest of image %d goes on", number);
        vm_free(to);
    }
    ok(vm_runs_clean(from), "chain: the guest runs on");
    brant_image_chain_free(chain);
    snprintf(first, sizeof first, "%s/chain.0", directory);
    equal(brant_image_merge(path, first, NULL), BRANT_E_INVALID, "chain: an image that others need is not replaced");
    must(brant_image_merge(path, last, &e));
    unlink(first);
    to = destination();
    code = restore(to, &stats, why, sizeof why);
    ok(code == BRANT_E_NOT_FOUND && strstr(why, "chain.0"), "chain: a missing image is named (%s)", why);
    vm_free(to);
    memcpy(path, last, sizeof path);
    to = destination();
    code = restore(to, &stats, why, sizeof why);
    equal(code, 0, "chain: one full image of all is restored (%s)", why);
    equal(differs(from, to), 0, "chain: and is the guest at the last instant");
    ok(vm_runs_clean(to), "chain: which goes on");
    vm_free(to);
    vm_free(from);
    unlink(path);
    for (int number = 1; number < 4; number++) {
        snprintf(first, sizeof first, "%s/chain.%d", directory, number);
        unlink(first);
    }
}

/* The digests take a page of private memory that was never touched for zeros, and an untouched page of a mapped file has
 * contents. */
static int32_t touch_at_run(struct vm *vm, enum op op, brant_reason *reason)
{
    unsigned count;
    const struct mv_region *r = mv_regions(vm->machine, &count);

    (void)reason;
    for (unsigned i = 0; op == OP_RUN && i < count; i++)
        for (uint64_t at = 0; at < r[i].bytes; at += PAGE)
            (void)*((volatile const unsigned char *)r[i].host + at);
    return 0;
}

/* A guest whose memory is the image's file itself, and one whose shared memory cannot be. */
static void mapped_image(void)
{
    static const struct tracking how = { "mapped", BRANT_KVM_MANUAL_PROTECT, BRANT_CLEAR_CHUNKED, 6 };
    brant_image_restore_params params = { .size = sizeof params, .trusted = 1, .lazy = 1 };
    brant_image_stats stats = { .size = sizeof stats };
    struct mv_config all_private = config;
    struct vm *from, *to;
    brant_image_restore *restored;
    char why[512];
    int32_t code;

    from = vm_new(&config);
    to = destination();
    from->at = digest_at_save;
    vm_track(from, &how);
    vm_start(from);
    vm_writes(from, 1000);
    code = save(from, NULL, &stats, why, sizeof why);
    equal(code, 0, "mapped: a guest with shared memory is saved (%s)", why);
    equal(brant_image_restore_new(to->guest, &params, &restored, NULL), BRANT_E_INVALID, "trusted or lazy, not both");
    params.lazy = 0;
    code = restore_with(to, &params, &stats, why, sizeof why);
    ok(code == BRANT_E_UNSUPPORTED && strstr(why, "shared memory"), "mapped: shared memory is refused by name (%s)", why);
    vm_free(from);
    vm_free(to);

    all_private.regions[1].memfd = false;
    from = vm_new(&all_private);
    all_private.incoming = true;
    to = vm_new(&all_private);
    from->at = digest_at_save;
    to->at = touch_at_run;
    vm_track(from, &how);
    vm_start(from);
    vm_writes(from, 3000);
    code = save(from, NULL, &stats, why, sizeof why);
    equal(code, 0, "mapped: a guest with private memory is saved (%s)", why);
    code = restore_with(to, &params, &stats, why, sizeof why);
    equal(code, 0, "mapped: it is restored in its image (%s)", why);
    equal(differs(from, to), 0, "mapped: every page is as it was");
    unlink(path);
    ok(vm_runs_clean(to), "mapped: the guest goes on, also when the file has no name any more");
    vm_free(from);
    vm_free(to);
}

static void failures(void)
{
    static const struct tracking how = { "manual protect", BRANT_KVM_MANUAL_PROTECT, BRANT_CLEAR_CHUNKED, 6 };
    struct vm *from = vm_new(&config), *to;
    brant_image_stats stats = { .size = sizeof stats };
    static const char zeros[4096];
    static char contents[4096];
    struct rlimit limit, small;
    uint64_t page = 20;
    char named[40];
    char why[512];
    uint32_t state;
    int32_t code;
    FILE *file;

    vm_track(from, &how);
    vm_start(from);
    vm_writes(from, 1000);

    /* No file may be longer than 1 MiB, as on a full disk. */
    getrlimit(RLIMIT_FSIZE, &limit);
    small = limit;
    small.rlim_cur = MIB;
    setrlimit(RLIMIT_FSIZE, &small);
    code = save(from, NULL, &stats, why, sizeof why);
    setrlimit(RLIMIT_FSIZE, &limit);
    equal(code, BRANT_E_KERNEL, "without room the save fails (%s)", why);
    ok(strstr(why, path) != NULL, "and its message names the file");
    equal(stats.error, BRANT_E_KERNEL, "so do the figures");
    equal(files(), 0, "no file is left");
    ok(vm_runs_clean(from), "the guest runs on");

    full_disk(from);
    {
        brant_image_save *canceled;
        brant_outgoing *out;
        int pair[2];

        make_socketpair(pair);
        must(brant_image_save_new(atomic_load(&from->tracker), NULL, &canceled, &e));
        must(brant_image_save_start(canceled, path, &e));
        must(brant_outgoing_new(atomic_load(&from->tracker), NULL, &out, &e));
        code = brant_outgoing_start_fd(out, pair[0], NULL);
        must(brant_image_save_cancel(canceled, &e));
        /* A save of 32 MiB may be complete by then. */
        ok(code == BRANT_E_BUSY || (code == 0 && !brant_outgoing_cancel(out, NULL)),
           "no migration begins while the guest is saved");
        brant_outgoing_free(out);
        code = brant_image_save_wait(canceled, 0, NULL);
        ok(code == BRANT_E_CANCELLED || code == 0, "a save is cancelled, or was over");
        equal(files(), code == 0, "a cancelled save leaves no file");
        brant_image_save_free(canceled);
        close(pair[1]);
        unlink(path);
    }
    ok(vm_runs_clean(from), "the guest runs on");

    code = save(from, NULL, &stats, why, sizeof why);
    equal(code, 0, "when there is room the same guest is saved (%s)", why);
    file = fopen(path, "r+");
    if (!file)
        bail("%s: %s", path, strerror(errno));
    /* Finds the first page with contents, because the bytes of a hole mean nothing. Blocks begin at
     * 2 MiB. */
    while (fseek(file, (long)(2 * MIB + page * PAGE), SEEK_SET) == 0 && fread(contents, sizeof contents, 1, file) == 1 &&
           memcmp(contents, zeros, sizeof zeros) == 0)
        page++;
    contents[100] ^= 0x10;
    snprintf(named, sizeof named, "page %" PRIu64 ",", page);
    if (fseek(file, (long)(2 * MIB + page * PAGE), SEEK_SET) || fwrite(contents, sizeof contents, 1, file) != 1 ||
        fclose(file))
        bail("%s: %s", path, strerror(errno));
    to = destination();
    code = restore(to, &stats, why, sizeof why);
    equal(code, BRANT_E_IMAGE, "a damaged file is refused (%s)", why);
    ok(strstr(why, named) && strstr(why, "expected checksum"), "by its page and what was expected");
    vm_free(to);
    if (truncate(path, 3 * MIB))
        bail("truncate: %s", strerror(errno));
    to = destination();
    code = restore(to, &stats, why, sizeof why);
    equal(code, BRANT_E_IMAGE, "a file that was cut is refused (%s)", why);
    equal(atomic_load(&to->calls[OP_RUN]) + atomic_load(&to->calls[OP_LOAD]), 0, "nothing of it is loaded or run");
    must(brant_guest_get_state(to->guest, &state, &e));
    equal(state, BRANT_GUEST_EMPTY, "no guest is there");
    vm_free(to);
    unlink(path);
    to = destination();
    code = restore(to, &stats, why, sizeof why);
    equal(code, BRANT_E_NOT_FOUND, "a file that is not there is not found (%s)", why);
    vm_free(to);
    vm_free(from);
}

int main(void)
{
    static const struct tracking hows[] = {
        { "get and clear", BRANT_KVM_GET_AND_CLEAR, BRANT_CLEAR_CHUNKED, 0 },
        { "manual protect", BRANT_KVM_MANUAL_PROTECT, BRANT_CLEAR_CHUNKED, 6 },
        { "initially set", BRANT_KVM_INITIALLY_SET, BRANT_CLEAR_CHUNKED, 12 },
    };
    static const struct tracking start = { "instant at the start", BRANT_KVM_MANUAL_PROTECT, BRANT_CLEAR_CHUNKED, 6 };
    char reason[256];

    if (mv_kvm_available(reason, sizeof reason))
        skip_all(reason);
    plan(4 * 6 + 7 + 24 + 7 + 19 + 5);
    snprintf(directory, sizeof directory, "/tmp/brant-image-XXXXXX");
    if (!mkdtemp(directory))
        bail("mkdtemp: %s", strerror(errno));
    snprintf(path, sizeof path, "%s/guest.image", directory);
    for (unsigned i = 0; i < sizeof hows / sizeof hows[0]; i++)
        there_and_back(&hows[i], 0, NULL);
    if (can_protect())
        there_and_back(&start, 0, &at_start);
    else
        for (int i = 0; i < 6; i++)
            skip("no userfaultfd", "a guest is saved as it is at the start");
    refusals();
    started_at_once();
    chain_of_images(can_protect());
    mapped_image();
    failures();
    rmdir(directory);
    return done();
}
