/*
 * Planted faults, one for each run, by which scripts/test-instrumented learns that a tool is
 * active: each fault must be reported, and a run without one must be clean. Half of them make
 * brant's own code fail, by false arguments. That shows that the library is instrumented too, and
 * not only the program.
 */
#include <brant.h>

#include <limits.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WORDS = 128, BITS = WORDS * 64 };

/* Never written, but the compiler cannot know that, and so cannot remove code. */
static volatile int one = 1;

static struct brant_bitmap *bitmap(void)
{
    struct brant_bitmap *made = NULL;

    if (brant_bitmap_new(2 * BITS, &made, NULL) != 0)
        abort();
    return made;
}

/* brant reads `more` words past the end of its argument. */
static void merged(struct brant_bitmap *into, int more)
{
    uint64_t *words = malloc(WORDS * sizeof *words);

    memset(words, 255, WORDS * sizeof *words);
    if (brant_bitmap_merge_words(into, 0, words, (uint64_t)(BITS + 64 * more), NULL, NULL) != 0)
        abort();
    free(words);
}

static void overread_in_brant(void)
{
    struct brant_bitmap *into = bitmap();

    merged(into, one);
    brant_bitmap_free(into);
}

__attribute__((noinline)) static void overflow_in_c(char *bytes, int length)
{
    bytes[length] = 1;
}

static void overflow(void)
{
    char *bytes = malloc(16);

    overflow_in_c(bytes, 15 + one);
    free(bytes);
}

static void undefined(void)
{
    printf("%d\n", INT_MAX - 1 + 2 * one);
}

__attribute__((noinline)) static void leak_one(void)
{
    struct brant_bitmap *volatile lost = bitmap();

    lost = NULL;
    (void)lost;
}

static void leak(void)
{
    char stack[4096];

    leak_one();
    /* A copy of the pointer that is left on the stack would hide the leak. */
    memset(stack, one, sizeof stack);
    __asm__ volatile("" : : "r"(stack) : "memory");
}

static int shared;

__attribute__((noinline)) static void race_in_c(void)
{
    shared++;
}

static struct brant_bitmap *both;

static void *racing(void *brants)
{
    if (brants)
        merged(both, 0);
    else
        race_in_c();
    return NULL;
}

/* Two threads change one object without a lock, which neither the library nor C allows. */
static void race(bool brants)
{
    pthread_t there;

    both = bitmap();
    if (pthread_create(&there, NULL, racing, brants ? both : NULL) != 0)
        abort();
    racing(brants ? both : NULL);
    pthread_join(there, NULL);
    brant_bitmap_free(both);
}

int main(int argc, char **argv)
{
    const char *fault = argc == 2 ? argv[1] : "";

    if (strcmp(fault, "none") == 0)
        merged(both = bitmap(), 0), brant_bitmap_free(both);
    else if (strcmp(fault, "overread-in-brant") == 0)
        overread_in_brant();
    else if (strcmp(fault, "overflow") == 0)
        overflow();
    else if (strcmp(fault, "undefined") == 0)
        undefined();
    else if (strcmp(fault, "leak") == 0)
        leak();
    else if (strcmp(fault, "race-in-brant") == 0)
        race(true);
    else if (strcmp(fault, "race") == 0)
        race(false);
    else
        return 2;
    return 0;
}
