/*
 * A Linux guest moves ten times between two processes of the example VMM with a serial console
 * (examples/serialvmm), back and forth. A shell in the guest counts and tells the time, a program
 * beside it writes and checks memory; both, and the kernel's complaints, come out of the serial port.
 * What both processes print is one pipe, so the guest's words must go on from one process to the next
 * at the byte.
 *
 * BRANT_LINUX names a directory with bzImage, initrd and serialvmm; scripts/test-stock-kvm makes it.
 * BRANT_LINUX_VCPUS (1): in an emulated machine a kernel with two boots so slowly that it was never
 * seen to come to its init.
 *
 * time limit: 300 s
 */
#define _GNU_SOURCE
#include "tap.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>

enum { HOPS = 10, SHORT_HOPS = 2 };

static const char *place;
static char sockets[2][64];
static pid_t vmm[2];
/* What the guest says, and what both VMMs say. */
static int guest_out, vmm_err;
static char said[2][512];
static size_t length[2];

static struct {
    long ticks;               /* the last one that came */
    long rounds;              /* of the checker */
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

static pid_t start(int own, int out, int err, const char *vcpus, bool begins)
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
        if (begins)
            execl(program, program, "--vcpus", vcpus, "--listen", sockets[own], "--to",
                  sockets[!own], "--kernel", kernel, "--initrd", initrd, "--options",
                  "quiet loglevel=4 mitigations=off", (char *)NULL);
        else
            execl(program, program, "--vcpus", vcpus, "--listen", sockets[own], "--to",
                  sockets[!own], (char *)NULL);
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
    } else if (*line) {
        note("the guest: %s", line);
    }
}

/* Reads what there is of one pipe. Returns whether a VMM said `wanted`. */
static bool listen_to(int which, const char *wanted)
{
    char *text = said[which], *end;
    ssize_t n = read(which ? vmm_err : guest_out, text + length[which],
                     sizeof said[which] - 1 - length[which]);
    bool found = false;

    if (n <= 0)
        return false;
    length[which] += (size_t)n;
    text[length[which]] = 0;
    while ((end = strpbrk(text, "\r\n")) || length[which] == sizeof said[which] - 1) {
        size_t used = end ? (size_t)(end - text) + 1 : length[which];

        if (end)
            *end = 0;
        if (which == 0) {
            heard(text);
        } else if (*text) {
            note("%s", text);
            found = found || (wanted && strstr(text, wanted));
        }
        length[which] -= used;
        memmove(text, text + used, length[which] + 1);
    }
    return found;
}

/* Until the guest has counted to `ticks` and its checker to `rounds`, or a VMM has said `wanted`. */
static bool await(long ticks, long rounds, const char *wanted, unsigned limit)
{
    double until = seconds() + limit;

    for (;;) {
        struct pollfd from[2] = { { .fd = guest_out, .events = POLLIN },
                                  { .fd = vmm_err, .events = POLLIN } };

        if (!wanted && guest.ticks >= ticks && guest.rounds >= rounds)
            return true;
        siginfo_t ended = { .si_pid = 0 };

        /* Neither ends by itself; its pid stays until it is waited for below. */
        waitid(P_ALL, 0, &ended, WEXITED | WNOHANG | WNOWAIT);
        if (seconds() > until || ended.si_pid)
            return false;
        if (poll(from, 2, 200) < 0)
            return false;
        if (from[0].revents)
            listen_to(0, NULL);
        if (from[1].revents && listen_to(1, wanted))
            return true;
    }
}

static void move(const char *vcpus, int hops)
{
    int out[2], err[2], at = 0, hop = 0;
    unsigned limit = patience(20000) / 1000;
    bool boots, goes_on;

    memset(&guest, 0, sizeof guest);
    memset(length, 0, sizeof length);
    if (pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC))
        bail("no pipe");
    guest_out = out[0], vmm_err = err[0];
    vmm[0] = start(0, out[1], err[1], vcpus, true);
    vmm[1] = start(1, out[1], err[1], vcpus, false);
    close(out[1]);
    close(err[1]);
    boots = await(1, 0, NULL, limit);
    ok(boots, "a Linux kernel with %s vCPU boots to its init", vcpus);
    for (; boots && hop < hops; hop++) {
        if (!await(guest.ticks + 5, guest.rounds, NULL, limit))
            break;
        kill(vmm[at], SIGUSR1);
        if (!await(0, 0, "the guest runs at", limit))
            break;
        at = !at;
    }
    goes_on = boots && hop == hops && await(guest.ticks + 20, guest.rounds + 2, NULL, limit);
    ok(hop == hops, "it moves %d times, back and forth (%d)", hops, hop);
    ok(goes_on, "and goes on afterwards: %ld ticks, %ld rounds of the checker", guest.ticks,
       guest.rounds);
    ok(goes_on && guest.wrong == 0, "no count and no page of it is missing, old, or there twice");
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
    close(out[0]);
    close(err[0]);
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
    plan(7);
    move(vcpus ? vcpus : "1", hops);
    unlink(sockets[0] + 5);
    unlink(sockets[1] + 5);
    rmdir(directory);
    return done();
}
