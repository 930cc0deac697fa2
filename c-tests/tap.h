/*
 * What a C test needs to keep its promises and say so: numbered "ok" and "not
 * ok" lines (TAP), a plan, skips with a reason, and a time limit. Included
 * once by each program in c-tests; it knows nothing of brant.
 *
 *     int main(void)
 *     {
 *         plan(2);
 *         ok(1 + 1 == 2, "numbers add up");
 *         if (!machine)
 *             skip("there is no /dev/kvm", "a guest runs");
 *         else
 *             ok(run(machine) == 0, "a guest runs");
 *         return done();
 *     }
 *
 * ok(condition, promise...)   one promise; the condition's value is returned
 * equal(found, expected, promise...)   the same, with both numbers when it fails
 * skip(reason, promise...)    the promise could not be tried here
 * skip_all(reason)            none of them could: instead of plan(), ends the program
 * note(...)                   a comment, shown when the program fails
 * bail(...)                   nothing more can be tried: ends the program, failed
 * plan(n)                     first; done() last: `return done();`
 *
 * A program that runs longer than 120 s is killed, with all processes it
 * started. One that needs more says so in a comment of its source, on a line
 * of its own, in these words and in seconds: time limit: 300 s
 * plan() sets an alarm too, so that a program started by hand ends as well;
 * TAP_SECONDS in the environment changes it, 0 turns it off (for a debugger).
 *
 * Where everything is slow (scripts/test-stock-kvm), the environment says so:
 * patience(ms)   that long, times BRANT_PATIENCE: for a wait that is there only so
 *                that nothing hangs, never for what a promise is about
 * brief()        BRANT_SHORT is set: less of the same is wanted. What is left out is
 *                skipped, with that reason.
 *
 * All of it may be called from any thread, but not after fork() in the child.
 */
#ifndef TAP_H
#define TAP_H

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct {
    pthread_mutex_t lock;
    int planned, run, failed;
} tap_state = { .lock = PTHREAD_MUTEX_INITIALIZER };

__attribute__((unused)) static unsigned patience(unsigned ms)
{
    const char *times = getenv("BRANT_PATIENCE");
    int n = times ? atoi(times) : 1;

    return n > 1 ? ms * (unsigned)n : ms;
}

__attribute__((unused)) static bool brief(void)
{
    return getenv("BRANT_SHORT") != NULL;
}

/* One whole line, at once: a test that dies later has still said this. Not by printf, which drops
 * a line if a signal comes while the other end does not take it: a terminal, a serial port. */
__attribute__((format(printf, 1, 2), unused)) static void tap_print(const char *format, ...)
{
    char line[2048];
    va_list args;
    size_t n, at = 0;

    va_start(args, format);
    /* The last byte is for the newline. */
    vsnprintf(line, sizeof line - 1, format, args);
    va_end(args);
    n = strlen(line);
    line[n++] = '\n';
    fflush(stdout);
    while (at < n) {
        ssize_t written = write(STDOUT_FILENO, line + at, n - at);

        if (written < 0 && errno != EINTR)
            return;
        at += written < 0 ? 0 : (size_t)written;
    }
}

__attribute__((format(printf, 3, 0), unused)) static void
tap_line(const char *verdict, const char *reason, const char *format, va_list args)
{
    char promise[512];

    vsnprintf(promise, sizeof promise, format, args);
    tap_print("%s %d - %s%s%s", verdict, tap_state.run, promise, reason ? " # SKIP " : "",
              reason ? reason : "");
}

__attribute__((unused)) static void plan(int promises)
{
    const char *seconds = getenv("TAP_SECONDS");

    setvbuf(stdout, NULL, _IOLBF, 0);
    tap_state.planned = promises;
    tap_print("1..%d", promises);
    alarm(seconds ? (unsigned)atoi(seconds) : 120);
}

__attribute__((format(printf, 4, 5), unused)) static bool
tap_ok(bool condition, const char *file, int line, const char *format, ...)
{
    va_list args;

    pthread_mutex_lock(&tap_state.lock);
    tap_state.run++;
    va_start(args, format);
    tap_line(condition ? "ok" : "not ok", NULL, format, args);
    va_end(args);
    if (!condition) {
        tap_state.failed++;
        tap_print("# at %s:%d", file, line);
    }
    pthread_mutex_unlock(&tap_state.lock);
    return condition;
}

#define ok(condition, ...) tap_ok((condition), __FILE__, __LINE__, __VA_ARGS__)

__attribute__((format(printf, 1, 2), unused)) static void note(const char *format, ...)
{
    char text[1024];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    pthread_mutex_lock(&tap_state.lock);
    tap_print("# %s", text);
    pthread_mutex_unlock(&tap_state.lock);
}

static inline bool tap_equal(long long found, long long expected, bool promised)
{
    if (!promised)
        note("found %lld (0x%llx), expected %lld (0x%llx)", found,
             (unsigned long long)found, expected, (unsigned long long)expected);
    return promised;
}

/* Both are evaluated once, as long long. */
#define equal(found, expected, ...)                                                     \
    __extension__({                                                                     \
        long long tap_found = (long long)(found);                                       \
        long long tap_expected = (long long)(expected);                                 \
        tap_equal(tap_found, tap_expected, ok(tap_found == tap_expected, __VA_ARGS__)); \
    })

__attribute__((format(printf, 2, 3), unused)) static void
skip(const char *reason, const char *format, ...)
{
    va_list args;

    pthread_mutex_lock(&tap_state.lock);
    tap_state.run++;
    va_start(args, format);
    tap_line("ok", reason, format, args);
    va_end(args);
    pthread_mutex_unlock(&tap_state.lock);
}

__attribute__((noreturn, unused)) static void skip_all(const char *reason)
{
    tap_print("1..0 # SKIP %s", reason);
    exit(0);
}

__attribute__((format(printf, 1, 2), noreturn, unused)) static void
bail(const char *format, ...)
{
    char text[1024];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    tap_print("Bail out! %s", text);
    /* Not exit(): other threads may be anywhere. */
    _exit(255);
}

/* 0 if every promise was kept, for main() to return. */
__attribute__((unused)) static int done(void)
{
    if (tap_state.run != tap_state.planned)
        note("%d promises planned, %d tried", tap_state.planned, tap_state.run);
    return tap_state.failed || tap_state.run != tap_state.planned;
}

#endif
