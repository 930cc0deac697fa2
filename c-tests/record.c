/*
 * A migration recorded as JSON lines: what is in them, and that no reader holds a migration up. The guest is
 * plain memory, and both sides are in this process.
 */
#include "support.h"

enum { LENGTH = 4096 * 4096 };

struct party {
    brant_guest *guest;
    char *memory;
};

static int32_t nothing(void *opaque, brant_reason *reason)
{
    (void)opaque, (void)reason;
    return 0;
}

static int32_t told;
static brant_outgoing *recorded_by;

/* Inside a callback a recording is not ended. */
static void event(void *opaque, const brant_event *happened)
{
    (void)opaque, (void)happened;
    if (recorded_by != NULL)
        told = brant_outgoing_end_record(recorded_by, NULL, NULL);
}

static const brant_ops source = { .size = sizeof source, .pause = nothing, .resume = nothing, .event = event };
static const brant_ops destination = { .size = sizeof destination, .run = nothing };

static struct party party_new(const brant_ops *ops)
{
    brant_ram_block block = { .size = sizeof block, .name = "ram", .length = LENGTH };
    struct party s;

    s.memory = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    block.host = s.memory;
    must(brant_guest_new(ops, NULL, &s.guest, &e));
    must(brant_guest_add_block(s.guest, &block, NULL, &e));
    return s;
}

static void party_free(struct party *s)
{
    brant_guest_free(s->guest);
    munmap(s->memory, LENGTH);
}

/* What the source's and the destination's recordings became. */
struct outcome {
    int32_t code;
    char message[200];
    brant_recorded recorded;
};

static void say(struct outcome *o, brant_error *error)
{
    snprintf(o->message, sizeof o->message, "%s", brant_error_message(error));
    brant_error_free(error);
}

/* Moves a guest, recorded on two descriptors, which are closed as soon as they are lent; -1: not recorded. */
static void move(int here, int there, struct outcome *from, struct outcome *to)
{
    struct party a = party_new(&source), b = party_new(&destination);
    brant_tracker *tracker;
    brant_outgoing *out;
    brant_incoming *in;
    brant_error *error;
    int pair[2];

    for (size_t at = 0; at < LENGTH; at += 2 * PAGE)
        memset(a.memory + at, 'x', PAGE);
    must(brant_tracker_new(a.guest, NULL, &tracker, &e));
    must(brant_outgoing_new(tracker, NULL, &out, &e));
    must(brant_incoming_new(b.guest, NULL, &in, &e));
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
        bail("socketpair: %s", strerror(errno));
    must(brant_outgoing_record(out, here, 10, "a \"small\" guest", &e));
    close(here);
    if (there >= 0) {
        must(brant_incoming_record(in, there, 0, NULL, &e));
        close(there);
    }
    recorded_by = out;
    must(brant_incoming_start_fd(in, pair[1], &e));
    must(brant_outgoing_start_fd(out, pair[0], &e));
    must(brant_outgoing_wait(out, patience(30000), &e));
    must(brant_incoming_wait(in, patience(30000), &e));
    recorded_by = NULL;
    from->recorded.size = to->recorded.size = sizeof to->recorded;
    from->code = brant_outgoing_end_record(out, &from->recorded, &error);
    say(from, error);
    if (there >= 0) {
        to->code = brant_incoming_end_record(in, &to->recorded, &error);
        say(to, error);
    }
    ok(memcmp(a.memory, b.memory, LENGTH) == 0, "the guest has moved");
    brant_outgoing_free(out);
    brant_incoming_free(in);
    brant_tracker_free(tracker);
    party_free(&a);
    party_free(&b);
}

static char text[1 << 20];

/* The whole of a file, and how many lines it has. */
static uint64_t read_lines(int fd)
{
    ssize_t got, all = 0;
    uint64_t lines = 0;

    lseek(fd, 0, SEEK_SET);
    while ((got = read(fd, text + all, sizeof text - 1 - (size_t)all)) > 0)
        all += got;
    text[all] = 0;
    for (char *at = text; (at = strchr(at, '\n')) != NULL; at++)
        lines++;
    close(fd);
    return lines;
}

static bool has(const char *words)
{
    bool found = strstr(text, words) != NULL;

    if (!found)
        note("not in the recording: %s", words);
    return found;
}

int main(void)
{
    struct outcome from = { 0 }, to = { 0 };
    brant_outgoing *out;
    brant_tracker *tracker;
    struct party idle;
    int files[2], pipes[2], null;
    char full[4096];

    plan(11);
    for (int i = 0; i < 2; i++)
        files[i] = memfd_create("recording", MFD_CLOEXEC);
    move(dup(files[0]), dup(files[1]), &from, &to);
    ok(from.code == 0 && to.code == 0 && from.recorded.dropped == 0, "both sides are recorded (%s%s)",
       from.message, to.message);
    equal(told, BRANT_E_CALLBACK, "a recording is not ended inside a callback");
    equal(read_lines(files[0]), from.recorded.lines, "every line of the source is in its file");
    ok(has("{\"time_ns\":0,\"kind\":\"begin\",\"version\":1,") && has("\"what\":\"a \\\"small\\\" guest\"")
           && has("\"kind\":\"stats\",\"state\":\"completed\"") && has("\"promised_memory_ns\":")
           && has("\"dirty_pages_per_second\":") && has("\"lanes\":[{\"state\":\"")
           && has("\"kind\":\"event\",\"event\":\"pass\"") && has("\"kind\":\"end\",\"error\":0"),
       "figures, parts of the downtime, lanes, events and the end are in it");
    equal(read_lines(files[1]), to.recorded.lines, "and every line of the destination");

    if (pipe2(pipes, O_CLOEXEC))
        bail("pipe: %s", strerror(errno));
    memset(full, '\n', sizeof full);
    fcntl(pipes[1], F_SETFL, O_NONBLOCK);
    while (write(pipes[1], full, sizeof full) > 0) {
    }
    fcntl(pipes[1], F_SETFL, 0);
    move(pipes[1], -1, &from, &to);
    ok(from.code == 0 && from.recorded.lines == 0 && from.recorded.dropped > 2,
       "a full pipe holds up nothing, and %" PRIu64 " lines are dropped", from.recorded.dropped);
    close(pipes[0]);
    if (pipe2(pipes, O_CLOEXEC))
        bail("pipe: %s", strerror(errno));
    close(pipes[0]);
    move(pipes[1], -1, &from, &to);
    ok(from.code == BRANT_E_IO && strstr(from.message, "nobody reads"),
       "a reader that is gone ends the recording alone: %s", from.message);

    idle = party_new(&source);
    null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    must(brant_tracker_new(idle.guest, NULL, &tracker, &e));
    must(brant_outgoing_new(tracker, NULL, &out, &e));
    ok(brant_outgoing_record(out, null, 0, NULL, NULL) == BRANT_E_INVALID
           && brant_outgoing_record(out, -1, 0, NULL, NULL) == BRANT_E_INVALID
           && brant_outgoing_record(out, null, 9, NULL, NULL) == BRANT_E_INVALID
           && brant_outgoing_end_record(out, NULL, NULL) == BRANT_E_STATE,
       "what cannot be recorded is refused");
    close(null);
    brant_outgoing_free(out);
    brant_tracker_free(tracker);
    party_free(&idle);
    return done();
}
