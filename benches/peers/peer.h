/*
 * What the programs in this directory share: errors that end them, and the words that they exchange
 * with scripts/bench-peers.
 */
#ifndef PEER_H
#define PEER_H

#include <brant.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static brant_error *error;

static inline void must(int32_t code)
{
    if (code == 0)
        return;
    fprintf(stderr, "%s: %s\n", brant_error_name(code), brant_error_message(error));
    exit(1);
}

static inline void say(const char *word)
{
    if (write(1, word, strlen(word)) < 0)
        exit(1);
}

static inline void await_byte(void)
{
    char byte;

    if (read(0, &byte, 1) < 0)
        exit(1);
}

#endif
