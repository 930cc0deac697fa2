/*
 * A Linux guest moves ten times between two processes of the example VMM with a serial console
 * (examples/serialvmm), back and forth. A shell in the guest counts and tells the time, a program
 * beside it writes and checks memory; both, and the kernel's complaints, come out of the serial port.
 * What both processes print is one pipe, so the guest's words must go on from one process to the next
 * at the byte. Another program writes and checks a virtio disk, whose file is read afterwards, and
 * each move has a line in flight that the guest sends back by a virtio console.
 *
 * BRANT_LINUX names a directory with bzImage, initrd and serialvmm; scripts/test-stock-kvm makes it.
 * BRANT_LINUX_VCPUS: 1 or 2, else one after the other.
 */
#define _GNU_SOURCE
#include "../examples/serialvmm/guest/disk.h"
#include "tap.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>

enum { HOPS = 10, SHORT_HOPS = 2 };

static const char *place;
static char sockets[2][64], disk[64];
static pid_t vmm[2];
/* What the guest says by its serial port, what both VMMs say, what the guest says by its virtio console. */
enum { SERIAL, VMMS, CONSOLE, SOURCES };
static int from[SOURCES];
static char said[SOURCES][512];
static size_t length[SOURCES];

static struct {
    long ticks;               /* the last one that came */
    long rounds;              /* of the checker */
    long disk;                /* of the disk's */
    bool ready;               /* its console is */
    long echoes;              /* lines that came back by it */
    unsigned wrong;           /* ticks that are not the next one, WRONG lines */
    unsigned complaints;
    double first, last;       /* the guest's clock, seconds */
    double begun, now;        /* ours, when these came */
    double back;              /* the longest way that the guest's clock went back */
} guest;

static double seconds(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static pid_t start(int own, int out, int err, int console, const char *vcpus, bool begins)
{
    char program[256], kernel[256], initrd[256];
    pid_t child;

    snprintf(program, sizeof program, "%s/serialvmm", place);
    snprintf(kernel, sizeof kernel, "%s/bzImage", place);
    snprintf(initrd, sizeof initrd, "%s/initrd", place);
    fflush(stdout);
    child = fork();
    if (child == 0) {
        int nothing = open("/dev/null", O_RDONLY);

        prctl(PR_SET_PDEATHSIG, SIGKILL);
        dup2(nothing, 0);
        dup2(out, 1);
        dup2(err, 2);
        dup2(console, 3);
        execl(program, program, "--vcpus", vcpus, "--listen", sockets[own], "--to", sockets[!own],
              "--console", "3", "--disk", disk, begins ? "--kernel" : NULL, kernel, "--initrd", initrd,
              "--options", "quiet loglevel=4 mitigations=off", (char *)NULL);
        _exit(127);
    }
    return child;
}

/* A line of the guest's. */
static void heard(const char *line)
{
    static const char *complaints[] = { "BUG", "Oops", "WARNING", "stall", "lockup", "unstable",
                                        "panic", "hung" };
    long tick, round;
    double clock;

    for (size_t i = 0; i < sizeof complaints / sizeof *complaints; i++)
        if (strstr(line, complaints[i])) {
            guest.complaints++;
            note("the guest's kernel: %s", line);
            return;
        }
    if (strstr(line, "WRONG")) {
        guest.wrong++;
        note("%s", line);
    } else if (sscanf(line, "tick %ld %lf", &tick, &clock) == 2) {
        if (tick != guest.ticks + 1) {
            guest.wrong++;
            note("tick %ld follows %ld", tick, guest.ticks);
        }
        guest.now = seconds();
        if (guest.ticks == 0) {
            guest.first = guest.last = clock;
            guest.begun = guest.now;
        }
        if (guest.last - clock > guest.back)
            guest.back = guest.last - clock;
        guest.ticks = tick;
        guest.last = clock;
    } else if (sscanf(line, "checked %ld", &round) == 1) {
        if (round != guest.rounds + 1)
            guest.wrong++;
        guest.rounds = round;
    } else if (sscanf(line, "disk %ld", &round) == 1) {
        if (round != guest.disk + 1)
            guest.wrong++;
        guest.disk = round;
    } else if (*line) {
        note("the guest: %s", line);
    }
}

/* A line of the guest's, by its virtio console. */
static void answered(const char *line)
{
    long echo;

    if (strcmp(line, "ready") == 0)
        guest.ready = true;
    else if (sscanf(line, "line %ld", &echo) == 1 && echo == guest.echoes + 1)
        guest.echoes = echo;
    else {
        guest.wrong++;
        note("after %ld lines the console says: %s", guest.echoes, line);
    }
}

/* Reads what there is of one source. Returns whether a VMM said `wanted`. */
static bool listen_to(int which, const char *wanted)
{
    char *text = said[which], *end;
    ssize_t n = read(from[which], text + length[which], sizeof said[which] - 1 - length[which]);
    bool found = false;

    if (n <= 0)
        return false;
    length[which] += (size_t)n;
    text[length[which]] = 0;
    while ((end = strpbrk(text, "\r\n")) || length[which] == sizeof said[which] - 1) {
        size_t used = end ? (size_t)(end - text) + 1 : length[which];

        if (end)
            *end = 0;
        if (which == SERIAL) {
            heard(text);
        } else if (*text && which == CONSOLE) {
            answered(text);
        } else if (*text) {
            note("%s", text);
            found = found || (wanted && strstr(text, wanted));
        }
        length[which] -= used;
        memmove(text, text + used, length[which] + 1);
    }
    return found;
}

struct goal {
    long ticks, rounds, disk, echoes;
};

/* Until the guest has come to a goal, or, without one, a VMM has said `wanted`. */
static bool await(const struct goal *goal, const char *wanted, unsigned limit)
{
    double until = seconds() + limit;

    for (;;) {
        struct pollfd any[SOURCES];
        siginfo_t ended = { .si_pid = 0 };

        if (goal && guest.ticks >= goal->ticks && guest.rounds >= goal->rounds
            && guest.disk >= goal->disk && guest.echoes >= goal->echoes && guest.ready)
            return true;
        /* Neither ends by itself; its pid stays until it is waited for below. */
        waitid(P_ALL, 0, &ended, WEXITED | WNOHANG | WNOWAIT);
        if (seconds() > until || ended.si_pid)
            return false;
        for (int i = 0; i < SOURCES; i++)
            any[i] = (struct pollfd){ .fd = from[i], .events = POLLIN };
        if (poll(any, SOURCES, 200) < 0)
            return false;
        for (int i = 0; i < SOURCES; i++)
            if (any[i].revents && listen_to(i, wanted))
                return true;
    }
}

/* Every sector is whole, and is what the guest wrote last: so far as it came in its last round, that round's. */
static bool disk_is_right(long least)
{
    static uint64_t sector[DISK_SECTORS][DISK_WORDS];
    int fd = open(disk, O_RDONLY);
    bool right = fd >= 0 && pread(fd, sector, sizeof sector, 0) == sizeof sector;
    uint64_t newest = sector[0][0], turns = 0;

    close(fd);
    for (uint64_t i = 0; right && i < DISK_SECTORS; i++) {
        uint64_t round = sector[i][0];

        for (uint64_t word = 0; word < DISK_WORDS; word++)
            right = right && sector[i][word] == disk_value(round, i, word);
        if (i && round != sector[i - 1][0])
            turns++;
        right = right && (round == newest || round + 1 == newest) && turns < 2;
        if (!right)
            note("sector %llu is of round %llu, the first one of %llu", (unsigned long long)i,
                 (unsigned long long)round, (unsigned long long)newest);
    }
    /* The guest says so when the round is whole. */
    if (right && sector[DISK_SECTORS - 1][0] < (uint64_t)least) {
        note("the last sector is of round %llu, and the guest had %ld",
             (unsigned long long)sector[DISK_SECTORS - 1][0], least);
        right = false;
    }
    return right;
}

static bool empty_disk(void)
{
    int fd = open(disk, O_CREAT | O_TRUNC | O_WRONLY, 0600);
    bool made = fd >= 0 && ftruncate(fd, DISK_SECTORS * DISK_SECTOR) == 0;

    close(fd);
    return made;
}

static void move(const char *vcpus, int hops)
{
    int out[2], err[2], console[2], at = 0, hop = 0;
    unsigned limit = patience(20000) / 1000;
    bool boots, goes_on;

    memset(&guest, 0, sizeof guest);
    memset(length, 0, sizeof length);
    if (pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC)
        || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, console) || !empty_disk())
        bail("no pipe, or no file");
    from[SERIAL] = out[0], from[VMMS] = err[0], from[CONSOLE] = console[0];
    vmm[0] = start(0, out[1], err[1], console[1], vcpus, true);
    vmm[1] = start(1, out[1], err[1], console[1], vcpus, false);
    close(out[1]);
    close(err[1]);
    close(console[1]);
    boots = await(&(struct goal){ .ticks = 1, .disk = 1 }, NULL, limit);
    ok(boots, "a Linux kernel with %s vCPU boots to its init", vcpus);
    for (; boots && hop < hops; hop++) {
        struct goal next = { .ticks = guest.ticks + 5, .disk = guest.disk + 1, .echoes = hop };

        if (!await(&next, NULL, limit))
            break;
        dprintf(from[CONSOLE], "line %d\n", hop + 1);
        kill(vmm[at], SIGUSR1);
        if (!await(NULL, "the guest runs at", limit))
            break;
        at = !at;
        note("move %d: tick %ld, its clock at %.2f s, round %ld of the checker, %ld of the disk's", hop + 1,
             guest.ticks, guest.last, guest.rounds, guest.disk);
    }
    goes_on = boots && hop == hops
        && await(&(struct goal){ guest.ticks + 20, guest.rounds + 2, guest.disk + 2, hops }, NULL, limit);
    ok(hop == hops, "it moves %d times, back and forth (%d)", hops, hop);
    ok(goes_on, "and goes on afterwards: %ld ticks, %ld rounds of the checker, %ld of the disk's, "
       "%ld lines by the console", guest.ticks, guest.rounds, guest.disk, guest.echoes);
    ok(goes_on && guest.wrong == 0,
       "no count, no page, no sector and no line of it is missing, old, or there twice");
    note("its clock: %.2f s, ours: %.2f s", guest.last - guest.first, guest.now - guest.begun);
    ok(goes_on && guest.back == 0, "its clock never goes back (%.2f s)", guest.back);
    /* In an emulated machine a tick can be late by a second or two. */
    ok(goes_on && guest.last - guest.first > guest.now - guest.begun - 3
       && guest.last - guest.first < guest.now - guest.begun + 3,
       "its clock goes as ours, standstills included");
    ok(goes_on && guest.complaints == 0, "its kernel complains of nothing");
    for (int i = 0; i < 2; i++) {
        kill(vmm[i], SIGKILL);
        waitpid(vmm[i], NULL, 0);
    }
    ok(goes_on && disk_is_right(guest.disk), "its disk's file has all that it wrote, sector by sector");
    for (int i = 0; i < SOURCES; i++)
        close(from[i]);
}

int main(void)
{
    char directory[] = "/tmp/brant-linux-XXXXXX";
    const char *vcpus = getenv("BRANT_LINUX_VCPUS");
    int hops = brief() ? SHORT_HOPS : HOPS;

    place = getenv("BRANT_LINUX");
    if (!place)
        skip_all("BRANT_LINUX names no Linux guest (make test-stock-kvm has one)");
    if (!mkdtemp(directory))
        bail("no directory");
    snprintf(sockets[0], sizeof sockets[0], "unix:%s/a", directory);
    snprintf(sockets[1], sizeof sockets[1], "unix:%s/b", directory);
    snprintf(disk, sizeof disk, "%s/disk", directory);
    plan(vcpus ? 8 : 16);
    move(vcpus ? vcpus : "1", hops);
    if (!vcpus)
        move("2", hops);
    unlink(disk);
    unlink(sockets[0] + 5);
    unlink(sockets[1] + 5);
    rmdir(directory);
    return done();
}
