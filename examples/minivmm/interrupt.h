/*
 * Ctrl-C, a request to terminate, and SIGUSR1 (switch over now), as events that a loop can wait for. No handler runs, and no call of another
 * thread is interrupted.
 */
#ifndef MINIVMM_INTERRUPT_H
#define MINIVMM_INTERRUPT_H

#include <stdbool.h>

/* Call this before any thread is made: every thread then leaves SIGINT, SIGTERM and SIGUSR1 to the reader here. Returns
 * 0 or -1. */
int interrupt_init(void);
/* A descriptor that is readable when one of them has come. */
int interrupt_fd(void);
/* Waits up to `seconds` for SIGINT or SIGTERM. Returns the one that came, which has been read then, or 0. */
int interrupt_wait(double seconds);
/* Whether SIGUSR1 has been read since the last call. */
bool interrupt_switch_over(void);

#endif
