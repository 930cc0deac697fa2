/*
 * The state of devices that are not the VMM's own: vhost-user back ends, which are threads here and
 * speak the protocol over a socket, and VFIO devices, of which this machine has none: the kernel
 * says so, and what it says arrives. Needs no KVM.
 */
#include "vhost/protocol.h"
#include <fcntl.h>
#include <semaphore.h>

enum { SET_DEVICE_STATE_FD = 42, CHECK_DEVICE_STATE = 43, LENGTH = 300000, NO_FD = 0x100 };

/* A back end with a state. It answers until its connection closes. */
struct back_end {
    int socket, front;
    char *state;
    size_t length;
    /* What it says to CHECK_DEVICE_STATE. */
    atomic_bool fails;
    /* It leaves SET_DEVICE_STATE_FD without a reply, and posts `asked`. */
    atomic_bool silent;
    sem_t asked;
    unsigned saved, loaded;
    pthread_t thread;
};

static void save_to(struct back_end *b, int fd)
{
    size_t at = 0;

    while (at < b->length) {
        ssize_t n = write(fd, b->state + at, b->length - at < 1000 ? b->length - at : 1000);

        if (n <= 0)
            break;
        at += (size_t)n;
    }
    b->saved++;
}

static void load_from(struct back_end *b, int fd)
{
    ssize_t n;

    b->length = 0;
    while (b->length < LENGTH && (n = read(fd, b->state + b->length, LENGTH - b->length)) > 0)
        b->length += (size_t)n;
    b->loaded++;
}

static void *serve(void *arg)
{
    struct back_end *b = arg;
    struct { uint32_t direction, phase; } transfer;
    int fds[REGIONS_MAX];
    struct message m;

    while (message_receive(b->socket, &m, fds) == 0) {
        struct message answer = { .request = m.request, .flags = VERSION | REPLY, .size = 8 };

        memcpy(&transfer, &m.payload, sizeof transfer);
        if (m.request == SET_DEVICE_STATE_FD && b->silent) {
            close(fds[0]);
            sem_post(&b->asked);
            continue;
        }
        answer.payload.number = m.request == SET_DEVICE_STATE_FD ? NO_FD : b->fails;
        if (message_send(b->socket, &answer, NULL, 0))
            break;
        if (m.request != SET_DEVICE_STATE_FD)
            continue;
        if (transfer.direction == BRANT_VHOST_USER_SAVE)
            save_to(b, fds[0]);
        else
            load_from(b, fds[0]);
        close(fds[0]);
    }
    close(b->socket);
    return NULL;
}

static void back_end_start(struct back_end *b, size_t length)
{
    int pair[2];

    memset(b, 0, sizeof *b);
    make_socketpair(pair);
    b->front = pair[0];
    b->socket = pair[1];
    b->state = must_alloc(1, LENGTH);
    b->length = length;
    sem_init(&b->asked, 0, 0);
    if (pthread_create(&b->thread, NULL, serve, b))
        bail("no thread");
}

static void back_end_end(struct back_end *b)
{
    close(b->front);
    pthread_join(b->thread, NULL);
    sem_destroy(&b->asked);
    free(b->state);
}

/* ---- the VMM ---- */

struct host {
    struct back_end back_end;
    pthread_mutex_t connection;
    brant_guest *guest;
    char *memory;
    unsigned pauses, resumes, runs;
};

static int32_t on_set(void *opaque, uint32_t direction, int32_t fd, int32_t *given,
                      brant_reason *reason)
{
    struct host *host = opaque;
    brant_error *error = NULL;
    int32_t code;

    pthread_mutex_lock(&host->connection);
    code = brant_vhost_user_set_device_state_fd(host->back_end.front, direction, fd, 60000, given,
                                                &error);
    pthread_mutex_unlock(&host->connection);
    if (code)
        brant_reason_set(reason, brant_error_message(error));
    brant_error_free(error);
    return code;
}

static int32_t on_check(void *opaque, brant_reason *reason)
{
    struct host *host = opaque;
    brant_error *error = NULL;
    int32_t code;

    pthread_mutex_lock(&host->connection);
    code = brant_vhost_user_check_device_state(host->back_end.front, 60000, &error);
    pthread_mutex_unlock(&host->connection);
    if (code)
        brant_reason_set(reason, brant_error_message(error));
    brant_error_free(error);
    return code;
}

static int32_t on_pause(void *opaque, brant_reason *reason)
{
    (void)reason;
    ((struct host *)opaque)->pauses++;
    return 0;
}

static int32_t on_resume(void *opaque, brant_reason *reason)
{
    (void)reason;
    ((struct host *)opaque)->resumes++;
    return 0;
}

static int32_t on_run(void *opaque, brant_reason *reason)
{
    (void)reason;
    ((struct host *)opaque)->runs++;
    return 0;
}

static const brant_ops ops = { .size = sizeof ops, .pause = on_pause, .resume = on_resume,
                               .run = on_run };

static brant_vhost_user_device device_of(struct host *host)
{
    return (brant_vhost_user_device){ .size = sizeof(brant_vhost_user_device), .name = "fs",
                                      .opaque = host, .version = 3, .set_device_state_fd = on_set,
                                      .check_device_state = on_check };
}

static void host_make(struct host *host, size_t length)
{
    brant_vhost_user_device device = device_of(host);
    brant_ram_block block = { .size = sizeof block, .name = "ram", .length = MIB };
    brant_slot slot = { .size = sizeof slot, .length = MIB, .slot = BRANT_NO_SLOT };

    memset(host, 0, sizeof *host);
    pthread_mutex_init(&host->connection, NULL);
    back_end_start(&host->back_end, length);
    host->memory = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (host->memory == MAP_FAILED)
        bail("mmap: %s", strerror(errno));
    block.host = host->memory;
    must(brant_guest_new(&ops, host, &host->guest, &e));
    must(brant_guest_add_block(host->guest, &block, &slot.block, &e));
    must(brant_guest_add_slot(host->guest, &slot, &e));
    must(brant_guest_add_vhost_user_device(host->guest, &device, &e));
}

static void host_free(struct host *host)
{
    brant_guest_free(host->guest);
    munmap(host->memory, MIB);
    back_end_end(&host->back_end);
}

static void sem_await(sem_t *sem)
{
    struct timespec limit;

    clock_gettime(CLOCK_REALTIME, &limit);
    limit.tv_sec += 60;
    while (sem_timedwait(sem, &limit))
        if (errno != EINTR)
            bail("the back end was not asked for its state in a minute");
}

struct ended {
    int32_t source, destination;
};

/* The side whose back end is silent, if any, cancels as soon as that was asked for its state. */
static struct ended move(struct host *from, struct host *to, brant_error **error)
{
    struct ended ended;
    brant_tracker *tracker;
    brant_outgoing *out;
    brant_incoming *in;
    int pair[2];

    make_socketpair(pair);
    must(brant_tracker_new(from->guest, NULL, &tracker, &e));
    must(brant_incoming_new(to->guest, NULL, &in, &e));
    must(brant_incoming_start_fd(in, pair[1], &e));
    must(brant_outgoing_new(tracker, NULL, &out, &e));
    must(brant_outgoing_start_fd(out, pair[0], &e));
    if (from->back_end.silent) {
        sem_await(&from->back_end.asked);
        must(brant_outgoing_cancel(out, &e));
    }
    if (to->back_end.silent) {
        sem_await(&to->back_end.asked);
        must(brant_incoming_cancel(in, &e));
    }
    ended.source = brant_outgoing_wait(out, 60000, error);
    ended.destination = brant_incoming_wait(in, 60000, NULL);
    brant_outgoing_free(out);
    brant_incoming_free(in);
    brant_tracker_free(tracker);
    return ended;
}

static int32_t migrate(struct host *from, struct host *to, brant_error **error)
{
    return move(from, to, error).source;
}

static void a_back_end_s_state_arrives(void)
{
    struct host from, to;

    host_make(&from, LENGTH);
    host_make(&to, 10);
    for (size_t i = 0; i < LENGTH; i++)
        from.back_end.state[i] = (char)gv_mix(i);
    equal(migrate(&from, &to, NULL), 0, "a guest with a vhost-user back end migrates");
    ok(to.runs == 1 && from.resumes == 0, "and runs at the destination");
    ok(to.back_end.length == LENGTH &&
           memcmp(from.back_end.state, to.back_end.state, LENGTH) == 0,
       "with all of the back end's state, which is more than a pipe holds");
    ok(from.back_end.saved == 1 && to.back_end.loaded == 1, "which went there once");
    host_free(&from);
    host_free(&to);
}

static void a_back_end_that_says_no_is_named(void)
{
    brant_error *error = NULL;
    struct host from, to;

    host_make(&from, LENGTH);
    host_make(&to, 10);
    to.back_end.fails = true;
    ok(migrate(&from, &to, &error) != 0 && strstr(brant_error_message(error), "fs") &&
           strstr(brant_error_message(error), "CHECK_DEVICE_STATE"),
       "a back end that did not understand its state fails the migration, by its name");
    note("%s", brant_error_message(error));
    brant_error_free(error);
    ok(to.runs == 0 && from.resumes == from.pauses, "and the guest runs on at the source");
    to.back_end.fails = false;
    equal(migrate(&from, &to, NULL), 0, "the next migration succeeds");
    host_free(&from);
    host_free(&to);
}

/* The reply would be waited for a minute: the callbacks say so. */
static void a_message_without_a_reply_ends_with_a_cancel(bool at_source)
{
    const char *where = at_source ? "the source" : "the destination";
    struct host from, to;
    struct ended ended;

    host_make(&from, LENGTH);
    host_make(&to, 10);
    (at_source ? &from : &to)->back_end.silent = true;
    ended = move(&from, &to, NULL);
    ok((at_source ? ended.source : ended.destination) == BRANT_E_CANCELLED,
       "a cancel at %s ends a message to a back end that does not reply", where);
    ok(ended.source < 0 && ended.destination < 0 && to.runs == 0 && from.pauses == 1 &&
           from.resumes == 1,
       "and the guest runs on at the source");
    host_free(&from);
    host_free(&to);
}

static int32_t wrong(struct host *host, brant_vhost_user_device device)
{
    return brant_guest_add_vhost_user_device(host->guest, &device, NULL);
}

static void wrong_arguments(void)
{
    struct host host;
    brant_vhost_user_device device;
    int32_t given;

    host_make(&host, 10);
    equal(wrong(&host, device_of(&host)), BRANT_E_INVALID, "a name is used once");
    device = device_of(&host);
    device.check_device_state = NULL;
    equal(wrong(&host, device), BRANT_E_INVALID, "both callbacks are required");
    equal(brant_vhost_user_set_device_state_fd(host.back_end.front, 2, 0, 1000, &given, NULL),
          BRANT_E_INVALID, "a direction is save or load");
    equal(brant_vhost_user_check_device_state(-1, 1000, NULL), BRANT_E_INVALID,
          "a connection is a descriptor");
    host_free(&host);
}

static void no_vfio_device(void)
{
    brant_error *error = NULL;
    brant_vfio_device device = { .size = sizeof device, .name = "nic", .instance = 2 };
    brant_guest *guest;
    brant_tracker *tracker;
    brant_outgoing *out;

    must(brant_guest_new(&ops, NULL, &guest, &e));
    device.fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    equal(brant_guest_add_vfio_device(guest, &device, &error), BRANT_E_UNSUPPORTED,
          "a descriptor that is no VFIO device is refused");
    ok(strstr(brant_error_message(error), "VFIO_DEVICE_GET_INFO") &&
           strstr(brant_error_message(error), "Inappropriate ioctl"),
       "with the call and the kernel's answer");
    note("%s", brant_error_message(error));
    brant_error_free(error);
    close(device.fd);
    device.fd = -1;
    equal(brant_guest_add_vfio_device(guest, &device, NULL), BRANT_E_INVALID,
          "and so is what is no descriptor");
    /* Nothing was added, and nothing blocks. */
    equal(brant_guest_remove_device(guest, "nic", 2, NULL), BRANT_E_NOT_FOUND,
          "a device that was refused is not the guest's");
    must(brant_tracker_new(guest, NULL, &tracker, &e));
    must(brant_outgoing_new(tracker, NULL, &out, &e));
    brant_outgoing_free(out);
    brant_tracker_free(tracker);
    brant_guest_free(guest);
}

int main(void)
{
    plan(19);
    /* As back ends do, which find a closed pipe by the error. */
    signal(SIGPIPE, SIG_IGN);
    a_back_end_s_state_arrives();
    a_back_end_that_says_no_is_named();
    a_message_without_a_reply_ends_with_a_cancel(true);
    a_message_without_a_reply_ends_with_a_cancel(false);
    wrong_arguments();
    no_vfio_device();
    return done();
}
