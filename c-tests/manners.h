/*
 * Twists the arguments of every function of the C interface, one at a time, and checks the header's
 * promises: a code, an error object that fits it, nothing written to results, no crash, no
 * deadlock, no descriptor or thread left over. scripts/gen-api-test writes a table from the header:
 * the functions, and valid and refused values of each argument. Only that table's program includes
 * this file. Needs no KVM.
 *
 * time limit: 180 s
 */
#ifndef MANNERS_H
#define MANNERS_H

#include "manners/threads.h"
#include "manners/twists.h"

static char *mapped(int fd, size_t bytes)
{
    char *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                    fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, fd, 0);

    if (at == MAP_FAILED)
        bail("mmap: %s", strerror(errno));
    return at;
}

int main(int argc, char **argv)
{
    const char *only = argc > 1 ? argv[1] : NULL;
    int any = 0, chosen = 0;

    for (int i = 0; i < FUNCTIONS; i++)
        if (!only || strcmp(only, rows[i].name) == 0) {
            chosen++;
            any += rows[i].any_thread;
        }
    plan(chosen * 4 + any + (only ? 0 : 3));
    if (getenv("MANNERS_SECONDS"))
        seconds = (unsigned)atoi(getenv("MANNERS_SECONDS"));
    signal(SIGALRM, last_words);
#ifndef __SANITIZE_ADDRESS__
    signal(SIGSEGV, last_words);
    signal(SIGBUS, last_words);
    signal(SIGABRT, last_words);
#endif
    signal(SIGPIPE, SIG_DFL);
    memory[0] = mapped(-1, BLOCK);
    memory[1] = mapped(-1, BLOCK);
    memset(memory[0], 7, BLOCK / 2);
    more_fd = memfd_create("more", MFD_CLOEXEC);
    if (more_fd < 0 || ftruncate(more_fd, BLOCK))
        bail("memfd: %s", strerror(errno));
    more = mapped(more_fd, BLOCK);
    guard = mapped(-1, 2 * PAGE);
    mprotect(guard + PAGE, PAGE, PROT_NONE);
    kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    for (int i = 0; i < FUNCTIONS; i++) {
        if (only && strcmp(only, rows[i].name))
            continue;
        try_null(&rows[i]);
        try_values(&rows[i]);
        try_states(&rows[i]);
        try_callbacks(&rows[i]);
        try_threads(&rows[i]);
    }
    if (!only)
        try_pairs();
    return done();
}

#endif
