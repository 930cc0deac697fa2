/*
 * The system calls of brant's threads, compared with the list of docs/threads.md, so that a VMM can
 * confine these threads by that list.
 *
 * Each thread of brant's gets a filter in `thread_start`, by which the kernel asks before every
 * system call. A thread of the test's notes the number and lets the call go on. The VMM's
 * operations run on other threads, so the noted calls are brant's own. Each scenario is a process
 * of its own.
 *
 * time limit: 400 s
 */
#include "support.h"
#include "syscalls.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

/* More than any architecture has. */
#define CALLS 1024
#define LISTENERS 64

/* ---- what is noted ---- */

/* Without a lock, because a thread that waits for the supervisor must not hold a lock that the
 * supervisor waits for. */
struct noted {
    /* Descriptors; 0: not yet, -1: not any more. */
    atomic_int listeners[LISTENERS], count;
    int wake[2];
    /* Only the supervisor uses this. */
    bool seen[CALLS];
    atomic_int unfiltered;
};

static struct noted noted;

/* Answers the kernel until told to stop. */
static void *supervise(void *unused)
{
    (void)unused;
    for (;;) {
        struct pollfd polls[LISTENERS + 1] = { { .fd = noted.wake[0], .events = POLLIN } };
        int n = 1;

        for (int i = 0; i < LISTENERS; i++) {
            int fd = atomic_load(&noted.listeners[i]);

            if (fd > 0)
                polls[n++] = (struct pollfd){ .fd = fd, .events = POLLIN };
        }
        /* A thread that has just got its filter can wake no other thread, so the supervisor looks
         * by itself. */
        if (poll(polls, (nfds_t)n, 2) < 0)
            continue;
        if (polls[0].revents) {
            char what;

            if (read(noted.wake[0], &what, 1) == 1 && what == 'e')
                return NULL;
        }
        for (int i = 1; i < n; i++) {
            struct seccomp_notif ask = { 0 };
            struct seccomp_notif_resp answer = { 0 };

            if (polls[i].revents & POLLIN &&
                ioctl(polls[i].fd, SECCOMP_IOCTL_NOTIF_RECV, &ask) == 0) {
                /* This call is the test's own. */
                if (ask.data.nr >= 0 && ask.data.nr < CALLS && ask.data.nr != SYS_seccomp)
                    noted.seen[ask.data.nr] = true;
                answer.id = ask.id;
                answer.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
                ioctl(polls[i].fd, SECCOMP_IOCTL_NOTIF_SEND, &answer);
            } else if (polls[i].revents & (POLLHUP | POLLERR | POLLNVAL)) {
                /* The last thread with this filter has ended. */
                for (int k = 0; k < LISTENERS; k++)
                    if (atomic_load(&noted.listeners[k]) == polls[i].fd)
                        atomic_store(&noted.listeners[k], -1);
                close(polls[i].fd);
            }
        }
    }
}

/* Called on a thread of brant's. A thread that another one of brant's made has that one's filter
 * already. */
static void op_thread_start(void *opaque, uint32_t role)
{
    struct sock_filter ask_always[] = { BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF) };
    struct sock_fprog program = { 1, ask_always };
    long fd;

    (void)opaque, (void)role;
    fd = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
    /* From now on each call of this thread waits until the supervisor knows the listener. */
    if (fd > 0) {
        int at = atomic_fetch_add(&noted.count, 1);

        atomic_store(&noted.listeners[at % LISTENERS], (int)fd);
    } else if (errno != EBUSY) {
        atomic_fetch_add(&noted.unfiltered, 1);
    }
}

/* ---- operations elsewhere ---- */

/* One of the VMM's operations, made by a thread for which brant's waits. */
struct job {
    int32_t (*op)(void *, brant_reason *);
    int32_t (*op_saver)(void *, brant_saver *, brant_reason *);
    int32_t (*op_blob)(void *, const brant_state_blob *, brant_reason *);
    void *opaque;
    brant_reason *reason;
    brant_saver *saver;
    const brant_state_blob *blob;
    int32_t code;
    bool done;
    struct job *next;
};

static struct {
    pthread_mutex_t lock;
    pthread_cond_t some, done;
    struct job *jobs;
    bool end;
} hands = { .lock = PTHREAD_MUTEX_INITIALIZER, .some = PTHREAD_COND_INITIALIZER,
            .done = PTHREAD_COND_INITIALIZER };

static void *hand(void *unused)
{
    (void)unused;
    pthread_mutex_lock(&hands.lock);
    while (!hands.end) {
        struct job *j = hands.jobs;

        if (!j) {
            pthread_cond_wait(&hands.some, &hands.lock);
            continue;
        }
        hands.jobs = j->next;
        pthread_mutex_unlock(&hands.lock);
        j->code = j->op         ? j->op(j->opaque, j->reason)
                  : j->op_saver ? j->op_saver(j->opaque, j->saver, j->reason)
                                : j->op_blob(j->opaque, j->blob, j->reason);
        pthread_mutex_lock(&hands.lock);
        j->done = true;
        pthread_cond_broadcast(&hands.done);
    }
    pthread_mutex_unlock(&hands.lock);
    return NULL;
}

static int32_t elsewhere(struct job *j)
{
    pthread_mutex_lock(&hands.lock);
    j->next = hands.jobs;
    hands.jobs = j;
    pthread_cond_signal(&hands.some);
    while (!j->done)
        pthread_cond_wait(&hands.done, &hands.lock);
    pthread_mutex_unlock(&hands.lock);
    return j->code;
}

#define PLAIN(name)                                                          \
    static int32_t far_##name(void *opaque, brant_reason *reason)            \
    {                                                                        \
        return elsewhere(&(struct job){ .op = op_##name, .opaque = opaque,   \
                                        .reason = reason });                 \
    }
PLAIN(pause)
PLAIN(resume)
PLAIN(release)
PLAIN(run)

static int32_t far_kick(void *opaque, brant_reason *reason)
{
    return elsewhere(&(struct job){ .op = op_kick, .opaque = opaque, .reason = reason });
}

static int32_t far_save(void *opaque, brant_saver *saver, brant_reason *reason)
{
    return elsewhere(&(struct job){ .op_saver = op_save, .opaque = opaque, .saver = saver,
                                    .reason = reason });
}

static int32_t far_load(void *opaque, const brant_state_blob *blob, brant_reason *reason)
{
    return elsewhere(&(struct job){ .op_blob = op_load, .opaque = opaque, .blob = blob,
                                    .reason = reason });
}

static const brant_ops far_ops = {
    .size = sizeof far_ops, .pause = far_pause,     .resume = far_resume, .save = far_save,
    .load = far_load,       .release = far_release, .run = far_run,       .kick = far_kick,
    .thread_start = op_thread_start,
};

/* ---- scenarios ---- */

enum way { BY_FD, BY_TCP, BY_UNIX };
enum log { KVM_LOG, KVM_RINGS, USERFAULT, MARKS_ONLY };

struct scenario {
    const char *name;
    enum way way;
    enum log log;
    uint32_t mode;
    bool memfd;
    /* The guest has ballooned pages. */
    bool balloon;
    /* Cancelled in the first pass. */
    bool cancel;
    /* A save to a file and a restore from it, instead of a migration. */
    bool image;
    /* The policy limits what vCPUs write, and they wait. */
    bool limit;
};

static const struct scenario scenarios[] = {
    { .name = "TCP, KVM's log, private memory", .way = BY_TCP, .log = KVM_LOG },
    { .name = "a unix socket, get-and-clear, a memfd", .way = BY_UNIX, .log = KVM_LOG,
      .mode = BRANT_KVM_GET_AND_CLEAR, .memfd = true },
    { .name = "a connected socket, manual protect, a balloon", .log = KVM_LOG,
      .mode = BRANT_KVM_MANUAL_PROTECT, .balloon = true },
    { .name = "a balloon over a memfd", .log = KVM_LOG, .memfd = true, .balloon = true },
    { .name = "dirty rings", .log = KVM_RINGS, .mode = BRANT_KVM_RING },
    { .name = "dirty rings and a dirty limit", .log = KVM_RINGS, .mode = BRANT_KVM_RING,
      .limit = true },
    { .name = "userfaultfd", .log = USERFAULT },
    { .name = "userfaultfd over a memfd", .log = USERFAULT, .memfd = true },
    { .name = "marks alone", .way = BY_TCP, .log = MARKS_ONLY },
    { .name = "a cancel", .way = BY_TCP, .log = KVM_LOG, .cancel = true },
    { .name = "a guest saved to a file and restored", .log = KVM_LOG, .image = true },
};
#define SCENARIOS (int)(sizeof scenarios / sizeof scenarios[0])

static struct vm *new_vm(const struct scenario *s, bool incoming)
{
    struct mv_config config = { .kind = s->log == KVM_LOG || s->log == KVM_RINGS ? MV_KVM
                                                                                : MV_PROCESS,
                                .memory_bytes = 16 * MIB, .memfd = s->memfd,
                                .workload = GV_RANDOM, .rate = s->limit ? 0 : 1000,
                                .fill_percent = 50,
                                .incoming = incoming };

    uint64_t ring = s->limit ? 16 << 10 : RING_DEFAULT;
    struct vm *vm = vm_new_with(&config, s->log == KVM_RINGS ? ring : 0, &far_ops, NULL);

    vm->kick = true;
    return vm;
}

/* By a file whose directory is on a disk. */
static void play_image(struct vm *from, struct vm *to)
{
    char directory[] = "/tmp/brant-syscalls-XXXXXX", path[64];
    brant_image_restore *restore;
    brant_image_save *save;

    if (!mkdtemp(directory))
        bail("mkdtemp: %s", strerror(errno));
    snprintf(path, sizeof path, "%s/image", directory);
    must(brant_image_save_new(atomic_load(&from->tracker), NULL, &save, &e));
    must(brant_image_save_start(save, path, &e));
    must(brant_image_save_wait(save, patience(60000), &e));
    brant_image_save_free(save);
    must(brant_image_restore_new(to->guest, NULL, &restore, &e));
    must(brant_image_restore_start(restore, path, &e));
    must(brant_image_restore_wait(restore, patience(60000), &e));
    brant_image_restore_free(restore);
    unlink(path);
    rmdir(directory);
    vm_free(from);
    vm_free(to);
}

/* A guest that writes more than its link carries, so that its policy limits vCPUs. On a KVM that
 * emulates guest code, rings of 1024 entries may overrun, and then all of memory is dirty: so the
 * policy pauses the guest in the end, however much is left. */
static const brant_params limiting = {
    .size = sizeof limiting, .max_bandwidth = 20 * 1000000, .switchover_max_bandwidth = 20 * 1000000,
    .downtime_limit_ms = 300,
};

static void check_waited(brant_tracker *tracker)
{
    brant_kvm_info info = { .size = sizeof info };

    must(brant_tracker_get_kvm(tracker, &info, NULL, 0, NULL, &e));
    if (info.limit_waits == 0)
        bail("no vCPU has waited for a dirty limit");
}

/* Plays a scenario in a process of its own. */
static void play(const struct scenario *s)
{
    brant_tracker_config config = { .size = sizeof config };
    brant_kvm_log kvm = { .size = sizeof kvm, .mode = s->mode };
    struct vm *from = new_vm(s, false), *to = new_vm(s, true);
    brant_params params = { .size = sizeof params };
    brant_policy writers = { .size = sizeof writers, .slowing = BRANT_SLOWING_WRITERS,
                             .deadline_ms = patience(4000), .on_deadline = BRANT_DEADLINE_PAUSE };
    char bound[160], path[] = "/tmp/brant-syscalls-XXXXXX", unix_path[200];
    brant_tracker *tracker;
    brant_outgoing *out;
    brant_incoming *in;
    brant_error *e = NULL;
    int pair[2];
    int32_t code;

    must(brant_tracker_new(from->guest, &config, &tracker, &e));
    if (s->log == KVM_LOG || s->log == KVM_RINGS) {
        kvm.vm_fd = mv_vm_fd(from->machine);
        must(brant_tracker_add_kvm(tracker, &kvm, &e));
    }
    for (unsigned i = 0; s->log == KVM_RINGS && i < mv_vcpu_count(from->machine); i++)
        must(brant_tracker_add_vcpu(tracker, i, mv_vcpu_fd(from->machine, i), &e));
    if (s->log == USERFAULT)
        must(brant_tracker_add_userfault(tracker, &e));
    atomic_store(&from->tracker, tracker);
    if (s->balloon) {
        must(brant_guest_must_tell_host(from->guest, 1, &e));
        must(brant_guest_must_tell_host(to->guest, 1, &e));
    }
    vm_start(from);
    vm_writes(from, 500);
    if (s->balloon)
        brant_guest_mark_ballooned(from->guest, 12 * MIB, 2 * MIB);
    if (s->image) {
        play_image(from, to);
        return;
    }
    if (s->limit)
        params = limiting;
    must(brant_outgoing_new(tracker, &params, &out, &e));
    if (s->limit)
        must(brant_outgoing_set_policy(out, &writers, &e));
    must(brant_incoming_new(to->guest, &params, &in, &e));
    switch (s->way) {
    case BY_FD:
        make_socketpair(pair);
        must(brant_incoming_start_fd(in, pair[1], &e));
        must(brant_outgoing_start_fd(out, pair[0], &e));
        break;
    case BY_TCP:
        must(brant_incoming_listen(in, "tcp:127.0.0.1:0", &e));
        must(brant_incoming_get_endpoint(in, bound, sizeof bound, NULL, &e));
        must(brant_outgoing_start(out, bound, &e));
        break;
    case BY_UNIX:
        if (!mkdtemp(path))
            bail("mkdtemp: %s", strerror(errno));
        snprintf(unix_path, sizeof unix_path, "unix:%s/socket", path);
        must(brant_incoming_listen(in, unix_path, &e));
        must(brant_outgoing_start(out, unix_path, &e));
        break;
    }
    if (s->cancel)
        brant_outgoing_cancel(out, NULL);
    code = brant_outgoing_wait(out, patience(60000), &e);
    if (code && !s->cancel)
        bail("%s: %s", s->name, brant_error_message(e));
    brant_error_free(e);
    if (s->cancel)
        brant_incoming_cancel(in, NULL);
    brant_incoming_wait(in, patience(60000), NULL);
    brant_outgoing_free(out);
    brant_incoming_free(in);
    if (s->limit)
        check_waited(tracker);
    if (s->way == BY_UNIX)
        rmdir(path);
    vm_free(from);
    vm_free(to);
}

static void child(const struct scenario *s, int out)
{
    pthread_t supervisor, threads[4];

    if (pipe(noted.wake) || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        bail("pipe: %s", strerror(errno));
    pthread_create(&supervisor, NULL, supervise, NULL);
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, hand, NULL);
    play(s);
    pthread_mutex_lock(&hands.lock);
    hands.end = true;
    pthread_cond_broadcast(&hands.some);
    pthread_mutex_unlock(&hands.lock);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    if (write(noted.wake[1], "e", 1) != 1)
        bail("write: %s", strerror(errno));
    pthread_join(supervisor, NULL);
    if (atomic_load(&noted.unfiltered))
        bail("%d threads without a filter", atomic_load(&noted.unfiltered));
    if (write(out, noted.seen, sizeof noted.seen) != (ssize_t)sizeof noted.seen)
        bail("write: %s", strerror(errno));
}

static bool is_listed(int call)
{
    for (size_t i = 0; i < sizeof syscalls_listed / sizeof syscalls_listed[0]; i++)
        if (syscalls_listed[i] == call)
            return true;
    return false;
}

static const char *name_of(int call)
{
    size_t known = sizeof syscall_names / sizeof syscall_names[0];

    return (size_t)call < known && syscall_names[call] ? syscall_names[call] : "?";
}

/* Whether the scenario can be tried here; if not, why. */
static bool possible(const struct scenario *s, char *why, size_t len)
{
    if (s->log == KVM_LOG)
        return mv_kvm_available(why, len) == 0;
    if (s->log == KVM_RINGS)
        return rings_available(RING_DEFAULT, why, len) == 0;
    return true;
}

int main(void)
{
    static bool all[CALLS];
    char why[256];

    plan(SCENARIOS);
    for (int i = 0; i < SCENARIOS; i++) {
        const struct scenario *s = &scenarios[i];
        bool seen[CALLS] = { false };
        int pair[2], status = 0, strange = 0, any = 0;
        pid_t pid;

        if (!possible(s, why, sizeof why)) {
            skip(why, "%s: no system call that the list lacks", s->name);
            continue;
        }
        if (pipe(pair))
            bail("pipe: %s", strerror(errno));
        fflush(NULL);
        pid = fork();
        if (pid < 0)
            bail("fork: %s", strerror(errno));
        if (pid == 0) {
            alarm(patience(100));
            child(s, pair[1]);
            _exit(0);
        }
        close(pair[1]);
        if (read(pair[0], seen, sizeof seen) != (ssize_t)sizeof seen)
            note("%s: nothing was noted", s->name);
        close(pair[0]);
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
            ;
        for (int call = 0; call < CALLS; call++) {
            any += seen[call];
            all[call] |= seen[call];
            if (seen[call] && !is_listed(call)) {
                note("%s: not in the list: %s (%d)", s->name, name_of(call), call);
                strange++;
            }
        }
        ok(status == 0 && any > 0 && strange == 0, "%s: no system call that the list lacks", s->name);
    }
    for (int call = 0; call < CALLS; call++)
        if (is_listed(call) && !all[call])
            note("listed, and not called this time: %s", name_of(call));
    return done();
}
