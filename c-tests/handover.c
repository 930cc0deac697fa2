/*
 * Hand-over on one host: two processes, a real guest, and memory that goes to the new process by its
 * descriptor. The guest goes on in the new process and finds all of its memory as it wrote it; what is
 * no memfd is copied; and the old process keeps the guest when the new one is killed before the
 * hand-over.
 */
#include "support.h"

#include <signal.h>
#include <sys/wait.h>

static const struct tracking trackings[] = {
    { "manual", BRANT_KVM_AUTO, BRANT_CLEAR_CHUNKED, 0 },
};

#define HANDED (16 * MIB + 3 * PAGE)
#define COPIED (8 * MIB + PAGE)

/* Which of the guest's two blocks are memfds. */
static struct mv_config config_of(bool first, bool second)
{
    return (struct mv_config){
        .vcpus = 2,
        .nregions = 2,
        .regions = { { .name = "high", .bytes = HANDED, .memfd = first },
                     { .name = "low", .bytes = COPIED, .memfd = second } },
        .workload = GV_RANDOM,
        .rate = 30000,
        .fill_percent = 70,
        .seed = 7,
    };
}

/* The operation in which the new process dies. */
static enum op dies_at;

static int32_t die_there(struct vm *vm, enum op op, brant_reason *reason)
{
    (void)vm;
    (void)reason;
    if (op == dies_at)
        kill(getpid(), SIGKILL);
    return 0;
}

/* What the new process says of itself. */
struct told {
    uint64_t shared_bytes, total_bytes, writes;
    bool clean;
};

/* The new process: a guest arrives, runs, and checks its own pages. */
static int receive(char **words)
{
    int fd = atoi(words[0]), tell = atoi(words[1]);
    enum op dies = (enum op)atoi(words[2]);
    struct mv_config config = config_of(atoi(words[3]), atoi(words[4]));
    brant_stats stats = BRANT_INIT(brant_stats);
    struct told told = { 0 };
    brant_incoming *in;
    struct vm *vm;

    config.incoming = true;
    vm = vm_new(&config);
    dies_at = dies;
    vm->at = die_there;
    must(brant_incoming_new(vm->guest, NULL, &in, &e));
    must(brant_incoming_start_fd(in, fd, &e));
    if (brant_incoming_wait(in, BRANT_NO_LIMIT, NULL) == 0) {
        must(brant_incoming_get_stats(in, &stats, &e));
        told = (struct told){ stats.shared_bytes, stats.total_bytes, vm->frozen.writes, vm_runs_clean(vm) };
        if (write(tell, &told, sizeof told) != sizeof told)
            return 1;
    }
    brant_incoming_free(in);
    vm_free(vm);
    return 0;
}

/* Starts this program again as the new process. It makes a guest of its own, so it gets nothing of
 * this one's but two descriptors. */
static void become_receiver(const struct mv_config *config, int fd, int tell, enum op dies)
{
    char words[5][16];
    int numbers[5] = { fd, tell, (int)dies, config->regions[0].memfd, config->regions[1].memfd };

    fcntl(fd, F_SETFD, 0);
    fcntl(tell, F_SETFD, 0);
    for (int i = 0; i < 5; i++)
        snprintf(words[i], sizeof words[i], "%d", numbers[i]);
    execl("/proc/self/exe", "handover", words[0], words[1], words[2], words[3], words[4], (char *)NULL);
    _exit(127);
}

/* A guest that is handed over, or not. */
struct moved {
    int32_t code;
    char message[512];
    brant_stats stats;
    struct told told;
    int status;
};

static struct moved hand_over(struct vm *vm, const struct mv_config *config, uint32_t how, enum op dies,
                              brant_outgoing **kept)
{
    brant_params params = BRANT_INIT(brant_params);
    struct moved moved = { .stats = BRANT_INIT(brant_stats) };
    brant_error *error = NULL;
    brant_outgoing *out;
    int ends[2], tell[2];
    pid_t child;

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) || pipe2(tell, O_CLOEXEC))
        bail("no sockets");
    child = fork();
    if (child < 0)
        bail("no process");
    if (child == 0) {
        become_receiver(config, ends[1], tell[1], dies);
    }
    close(ends[1]);
    close(tell[1]);
    params.hand_over = how;
    params.handover_timeout_ms = 500;
    must(brant_outgoing_new(atomic_load(&vm->tracker), &params, &out, &e));
    moved.code = brant_outgoing_start_fd(out, ends[0], &error);
    if (moved.code == 0)
        moved.code = brant_outgoing_wait(out, BRANT_NO_LIMIT, &error);
    if (error)
        snprintf(moved.message, sizeof moved.message, "%s", brant_error_message(error));
    brant_error_free(error);
    must(brant_outgoing_get_stats(out, &moved.stats, &e));
    if (read(tell[0], &moved.told, sizeof moved.told) != sizeof moved.told)
        moved.told = (struct told){ 0 };
    close(tell[0]);
    if (waitpid(child, &moved.status, 0) != child)
        bail("the new process is lost");
    if (kept)
        *kept = out;
    else
        brant_outgoing_free(out);
    return moved;
}

static struct vm *running(const struct mv_config *config)
{
    struct vm *vm = vm_new(config);

    vm_track(vm, &trackings[0]);
    vm_start(vm);
    vm_writes(vm, 1000);
    return vm;
}

static void handed_over_whole(void)
{
    struct mv_config config = config_of(true, true);
    struct vm *vm = running(&config);
    struct moved moved = hand_over(vm, &config, BRANT_HAND_OVER_ONLY, OP_COUNT, NULL);

    ok(moved.code == 0 && moved.status == 0, "a guest of memfds is handed over: %s", moved.message);
    ok(moved.stats.shared_bytes == HANDED + COPIED && moved.told.shared_bytes == HANDED + COPIED &&
           moved.stats.data_pages == 0,
       "all of its memory is shared and no page is sent");
    ok(moved.told.clean && moved.told.writes == vm->frozen.writes,
       "it goes on where it stood, and all of its pages are as it wrote them");
    vm_free(vm);
}

static void the_rest_is_copied(void)
{
    struct mv_config config = config_of(true, false);
    struct vm *vm = running(&config);
    struct moved moved = hand_over(vm, &config, BRANT_HAND_OVER_POSSIBLE, OP_COUNT, NULL);

    ok(moved.code == 0 && moved.told.clean, "with a private block too: %s", moved.message);
    ok(moved.stats.shared_bytes == HANDED && moved.told.total_bytes == HANDED + COPIED &&
           moved.stats.data_pages > 0 && moved.told.writes == vm->frozen.writes,
       "the memfd is shared and the private block copied live");
    vm_free(vm);
}

static void refused(void)
{
    struct mv_config config = config_of(true, false);
    struct vm *vm = running(&config);
    struct moved moved = hand_over(vm, &config, BRANT_HAND_OVER_ONLY, OP_COUNT, NULL);

    ok(moved.code == BRANT_E_UNSUPPORTED && strstr(moved.message, "block `low` has to be copied"),
       "hand-over only names the block that has to be copied: %s", moved.message);
    ok(atomic_load(&vm->calls[OP_PAUSE]) == 0 && vm_runs_clean(vm), "the guest was never paused");
    vm_free(vm);
}

static void killed_before(void)
{
    struct mv_config config = config_of(true, true);
    struct vm *vm = running(&config);
    struct moved moved = hand_over(vm, &config, BRANT_HAND_OVER_ONLY, OP_LOAD, NULL);

    ok(WIFSIGNALED(moved.status) && moved.stats.state == BRANT_SOURCE_FAILED,
       "the new process is killed before the hand-over: %s", moved.message);
    ok(vm_runs_clean(vm), "the guest goes on in the old one, with its memory untouched");
    moved = hand_over(vm, &config, BRANT_HAND_OVER_ONLY, OP_COUNT, NULL);
    ok(moved.code == 0 && moved.told.clean, "and is handed over the next time: %s", moved.message);
    vm_free(vm);
}

static void killed_after(void)
{
    struct mv_config config = config_of(true, true);
    struct vm *vm = running(&config);
    brant_outgoing *out;
    struct moved moved = hand_over(vm, &config, BRANT_HAND_OVER_ONLY, OP_RUN, &out);

    ok(moved.code == BRANT_E_UNANSWERED, "the new process is killed after the hand-over: %s", moved.message);
    ok(brant_outgoing_resolve(out, BRANT_RESOLVE_RESUME, NULL) == BRANT_E_STATE,
       "the guest is not taken back into memory that may have run elsewhere");
    ok(brant_outgoing_resolve(out, BRANT_RESOLVE_DESTROY, NULL) == 0, "it is given up");
    ok(brant_guest_reclaim(vm->guest, NULL) == BRANT_E_STATE, "and is not reclaimed by the word that no copy runs");
    brant_outgoing_free(out);
    vm_free(vm);
}

int main(int argc, char **argv)
{
    char why[256];

    if (argc == 6)
        return receive(argv + 1);
    if (mv_kvm_available(why, sizeof why))
        skip_all(why);
    plan(14);
    handed_over_whole();
    the_rest_is_copied();
    refused();
    killed_before();
    killed_after();
    return done();
}
