/*
 * What a VMM that embeds brant relies on around a migration: names, blockers, signals in threads
 * that its operations make, messages of operations, and places where the library must work without
 * /proc. Needs no KVM.
 */
#include "support.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>

#define BYTES (4 * MIB)

static int32_t nothing(void *opaque, brant_reason *reason)
{
    (void)opaque;
    (void)reason;
    return 0;
}

static char *private_memory(void)
{
    char *at = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (at == MAP_FAILED)
        bail("mmap: %s", strerror(errno));
    return at;
}

/* A guest of one block. */
static brant_guest *guest_of(char *memory, const brant_ops *ops, void *opaque)
{
    brant_ram_block block = { .size = sizeof block, .name = "ram", .host = memory, .length = BYTES };
    brant_guest *guest;

    must(brant_guest_new(ops, opaque, &guest, &e));
    must(brant_guest_add_block(guest, &block, NULL, &e));
    return guest;
}

/* Whether the error's message has all of these texts. Frees the error. */
static bool says(brant_error *error, const char *text)
{
    bool found = strstr(brant_error_message(error), text) != NULL;

    if (!found)
        note("the message is: %s", brant_error_message(error));
    brant_error_free(error);
    return found;
}

/* ---- blocks and blockers ---- */

static void names(void)
{
    brant_guest *guest;
    brant_error *e = NULL;
    brant_ram_block block = { .size = sizeof block, .name = "two\nlines", .length = BYTES,
                              .host = private_memory() };

    must(brant_guest_new(NULL, NULL, &guest, &e));
    ok(brant_guest_add_block(guest, &block, NULL, &e) == BRANT_E_INVALID &&
           says(e, "control characters"),
       "a block name that the stream would refuse is refused when the block is added");
    brant_guest_free(guest);
    munmap(block.host, BYTES);
}

static void blockers(void)
{
    char *memory = private_memory();
    brant_ops ops = { .size = sizeof ops, .pause = nothing, .resume = nothing };
    brant_guest *guest = guest_of(memory, &ops, NULL), *other;
    brant_tracker *tracker;
    brant_outgoing *out;
    brant_error *e = NULL;

    must(brant_blocker_new(guest, "a GPU is passed through", NULL, &e));
    must(brant_tracker_new(guest, NULL, &tracker, &e));
    must(brant_outgoing_new(tracker, NULL, &out, &e));
    ok(brant_outgoing_start(out, "tcp:127.0.0.1:1", &e) == BRANT_E_BLOCKED &&
           says(e, "a GPU is passed through"),
       "a reason without a handle blocks the guest as long as it exists");
    brant_outgoing_free(out);
    ops.size -= 4;
    ok(brant_guest_new(&ops, NULL, &other, &e) == BRANT_E_INVALID && says(e, "size"),
       "a structure that ends inside a pointer is refused, and no half of one is called");
    brant_tracker_free(tracker);
    brant_guest_free(guest);
    munmap(memory, BYTES);
}

/* ---- one migration between two guests of this process ---- */

struct ends {
    char *here, *there;
    brant_guest *from, *to;
    brant_tracker *tracker;
    brant_outgoing *out;
    brant_incoming *in;
};

static void ends_open(struct ends *m, const brant_ops *ops, void *opaque)
{
    int s[2];

    m->here = private_memory();
    m->there = private_memory();
    memset(m->here, 7, BYTES / 2);
    m->from = guest_of(m->here, ops, opaque);
    m->to = guest_of(m->there, ops, opaque);
    must(brant_tracker_new(m->from, NULL, &m->tracker, &e));
    must(brant_outgoing_new(m->tracker, NULL, &m->out, &e));
    must(brant_incoming_new(m->to, NULL, &m->in, &e));
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, s))
        bail("socketpair: %s", strerror(errno));
    must(brant_incoming_start_fd(m->in, s[1], &e));
    must(brant_outgoing_start_fd(m->out, s[0], &e));
}

static void ends_close(struct ends *m)
{
    brant_outgoing_free(m->out);
    brant_incoming_free(m->in);
    brant_tracker_free(m->tracker);
    brant_guest_free(m->from);
    brant_guest_free(m->to);
    munmap(m->here, BYTES);
    munmap(m->there, BYTES);
}

/* ---- signals ---- */

/* The thread that `run` makes, as a vCPU's, which a signal must reach. */
struct vcpu {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t known;
    bool is_known, blocked;
    sigset_t inside;
};

static void *vcpu_main(void *opaque)
{
    struct vcpu *v = opaque;
    sigset_t mask;

    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    pthread_mutex_lock(&v->lock);
    v->blocked = sigismember(&mask, SIGUSR1) == 1;
    v->is_known = true;
    pthread_cond_signal(&v->known);
    pthread_mutex_unlock(&v->lock);
    return NULL;
}

static int32_t run_makes_a_thread(void *opaque, brant_reason *reason)
{
    struct vcpu *v = opaque;

    (void)reason;
    return pthread_create(&v->thread, NULL, vcpu_main, v);
}

static int32_t save_looks_at_its_mask(void *opaque, brant_saver *saver, brant_reason *reason)
{
    struct vcpu *v = opaque;

    (void)saver;
    (void)reason;
    pthread_sigmask(SIG_SETMASK, NULL, &v->inside);
    return 0;
}

static void signals(void)
{
    struct vcpu v = { .lock = PTHREAD_MUTEX_INITIALIZER, .known = PTHREAD_COND_INITIALIZER };
    brant_ops ops = { .size = sizeof ops, .pause = nothing, .resume = nothing,
                      .save = save_looks_at_its_mask, .run = run_makes_a_thread };
    struct ends m;

    ends_open(&m, &ops, &v);
    must(brant_outgoing_wait(m.out, BRANT_NO_LIMIT, &e));
    must(brant_incoming_wait(m.in, BRANT_NO_LIMIT, &e));
    pthread_mutex_lock(&v.lock);
    while (!v.is_known)
        pthread_cond_wait(&v.known, &v.lock);
    pthread_mutex_unlock(&v.lock);
    pthread_join(v.thread, NULL);
    ok(!v.blocked, "a signal reaches a vCPU thread that `run` made");
    ok(sigismember(&v.inside, SIGUSR1) == 1, "in the other operations all signals are masked");
    ends_close(&m);
}

/* ---- a piece of state that cannot be put ---- */

static int32_t save_a_bad_piece(void *opaque, brant_saver *saver, brant_reason *reason)
{
    (void)reason;
    int32_t put = brant_saver_put(saver, "", 0, 1, "x", 1, NULL);

    /* A VMM that checks the return value, or one that does not. */
    return *(bool *)opaque ? put : 0;
}

static void savers(void)
{
    brant_ops ops = { .size = sizeof ops, .pause = nothing, .resume = nothing, .run = nothing,
                      .save = save_a_bad_piece };

    for (int looks = 0; looks < 2; looks++) {
        bool opaque = looks;
        brant_error *e = NULL;
        struct ends m;

        ends_open(&m, &ops, &opaque);
        ok(brant_outgoing_wait(m.out, BRANT_NO_LIMIT, &e) == BRANT_E_VMM && says(e, "name"),
           looks ? "a piece that is refused in `save` keeps its message"
                 : "a `save` whose piece was refused fails even if it says otherwise");
        ends_close(&m);
    }
}

/* ---- without /proc ---- */

static int in_child(int (*body)(void))
{
    pid_t child;
    int status;

    fflush(NULL);
    child = fork();
    if (child < 0)
        bail("fork: %s", strerror(errno));
    if (child == 0) {
        alarm(60);
        _exit(body());
    }
    while (waitpid(child, &status, 0) < 0 && errno == EINTR)
        ;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

/* Moves a guest, and checks that its contents arrived. */
static int moves(void)
{
    brant_ops ops = { .size = sizeof ops, .pause = nothing, .resume = nothing, .run = nothing };
    brant_error *e = NULL;
    brant_guest *guest;
    char *here = private_memory(), *there = private_memory();
    brant_ram_block block = { .size = sizeof block, .name = "ram", .length = BYTES };
    brant_tracker *tracker;
    brant_outgoing *out;
    brant_incoming *in;
    int s[2];

    memset(here + 4096, 9, 4096);
    block.host = here;
    if (brant_guest_new(&ops, NULL, &guest, &e) || brant_guest_add_block(guest, &block, NULL, &e))
        return 10;
    if (brant_tracker_new(guest, NULL, &tracker, &e) ||
        brant_outgoing_new(tracker, NULL, &out, &e))
        return 11;
    block.host = there;
    if (brant_guest_new(&ops, NULL, &guest, &e) || brant_guest_add_block(guest, &block, NULL, &e) ||
        brant_incoming_new(guest, NULL, &in, &e))
        return 12;
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, s) || brant_incoming_start_fd(in, s[1], &e) ||
        brant_outgoing_start_fd(out, s[0], &e))
        return 13;
    if (brant_outgoing_wait(out, 30000, &e) || brant_incoming_wait(in, 30000, &e))
        return 14;
    return memcmp(here, there, BYTES) ? 15 : 0;
}

static char empty_place[] = "/tmp/brant-chroot-XXXXXX";

static int in_a_chroot(void)
{
    if (chroot(empty_place) || chdir("/"))
        return 77;
    return moves();
}

/* A mapping whose name is not UTF-8 lies beside the guest's memory. */
static int beside_a_strange_name(void)
{
    char path[] = "/tmp/brant-\xff\xfe-XXXXXX";
    int fd = mkstemp(path);

    if (fd < 0)
        return 77;
    unlink(path);
    if (ftruncate(fd, BYTES))
        return 78;
    for (int i = 0; i < 64; i++)
        if (mmap(NULL, BYTES, PROT_READ, i % 2 ? MAP_SHARED : MAP_PRIVATE, fd, 0) == MAP_FAILED)
            return 79;
    return moves();
}

static void places(void)
{
    int code;

    if (!mkdtemp(empty_place))
        bail("mkdtemp: %s", strerror(errno));
    code = in_child(in_a_chroot);
    rmdir(empty_place);
    if (code == 77)
        skip("chroot needs root", "a guest moves in a chroot without /proc");
    else
        ok(code == 0, "a guest moves in a chroot without /proc (%d)", code);
    code = in_child(beside_a_strange_name);
    ok(code == 0, "a guest moves beside a mapping whose name is not UTF-8 (%d)", code);
}

int main(void)
{
    plan(9);
    names();
    blockers();
    signals();
    savers();
    places();
    return done();
}
